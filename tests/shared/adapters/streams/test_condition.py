"""The reported condition of a real server: memory, failed disk writes, pending entries, lag."""

import asyncio
from collections.abc import Awaitable

from redis.asyncio import Redis

from shared.adapters.streams.bus import Bus
from shared.adapters.streams.condition import RedisCondition
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from shared.runtime.redis_server import RedisServer

KEY = TRAJECTORIES.key


async def condition_of(own_redis: RedisServer) -> RedisCondition:
    bus = Bus(own_redis.url)
    try:
        return await bus.condition(TRAJECTORIES, TRAINER_GROUP)
    finally:
        await bus.close()


async def test_memory_use_and_limit_are_reported(own_redis: RedisServer, plain: Redis) -> None:
    before = await condition_of(own_redis)
    assert before.memory_limit_bytes == 2 << 30
    await plain.set("filler", b"x" * 5_000_000)
    assert 5_000_000 < (await condition_of(own_redis)).memory_bytes - before.memory_bytes < 20_000_000
    await plain.config_set("maxmemory", 40_000_000)
    assert 0.125 < (await condition_of(own_redis)).memory_share < 0.6
    await plain.config_set("maxmemory", 0)
    unlimited = await condition_of(own_redis)
    assert (unlimited.memory_limit_bytes, unlimited.memory_share) == (None, 0.0)


async def test_failed_disk_writes_are_reported(own_redis: RedisServer, plain: Redis) -> None:
    async def after(begun: Awaitable[object], in_progress: str) -> dict[str, bool]:
        await begun
        async with asyncio.timeout(60):
            while (await plain.info("persistence"))[in_progress]:  # noqa: ASYNC110  Redis has no event for it
                await asyncio.sleep(0.01)
        return (await condition_of(own_redis)).disk

    assert (await condition_of(own_redis)).disk == {"append": True, "rewrite": True, "snapshot": True}
    snapshot = own_redis.folder / "dump.rdb"
    snapshot.mkdir()
    saved = await after(plain.bgsave(), "rdb_bgsave_in_progress")
    assert saved == {"append": True, "rewrite": True, "snapshot": False}
    rewritten = own_redis.folder / "appendonlydir" / "appendonly.aof.2.base.rdb"
    rewritten.mkdir()
    assert not (await after(plain.bgrewriteaof(), "aof_rewrite_in_progress"))["rewrite"]
    rewritten.rmdir()
    snapshot.rmdir()
    assert (await after(plain.bgrewriteaof(), "aof_rewrite_in_progress"))["rewrite"]
    assert (await after(plain.bgsave(), "rdb_bgsave_in_progress"))["snapshot"]


async def test_pending_entries_are_reported_with_their_age(own_redis: RedisServer, plain: Redis) -> None:
    nothing = await condition_of(own_redis)
    assert (nothing.pending, nothing.pending_seconds, nothing.lag) == (0, 0.0, 0)
    ids = [await plain.xadd(KEY, {"n": n}) for n in range(5)]
    assert (await condition_of(own_redis)).pending == 0  # there is no group
    await plain.xgroup_create(KEY, TRAINER_GROUP, id="0")
    await plain.xreadgroup(TRAINER_GROUP, "trainer", {KEY: ">"}, count=3)
    await plain.xclaim(KEY, TRAINER_GROUP, "trainer", 0, [ids[1]], idle=200_000)
    found = await condition_of(own_redis)
    assert (found.pending, found.lag) == (3, 2)
    assert 200.0 <= found.pending_seconds < 400.0
    await plain.xack(KEY, TRAINER_GROUP, *ids[:3])
    found = await condition_of(own_redis)
    assert (found.pending, found.pending_seconds) == (0, 0.0)


async def test_the_lag_is_unknown_after_undelivered_entries_were_removed(
    own_redis: RedisServer, plain: Redis
) -> None:
    await plain.xgroup_create(KEY, TRAINER_GROUP, id="0", mkstream=True)
    ids = [await plain.xadd(KEY, {"n": n}) for n in range(5)]
    await plain.xreadgroup(TRAINER_GROUP, "trainer", {KEY: ">"}, count=2)
    await plain.xack(KEY, TRAINER_GROUP, *ids[:2])
    await plain.xdel(KEY, *ids[:2])  # as the trainer does after it has journalled them
    assert (await condition_of(own_redis)).lag == 3
    await plain.xdel(KEY, ids[3])
    assert (await condition_of(own_redis)).lag is None
    await plain.xreadgroup(TRAINER_GROUP, "trainer", {KEY: ">"})
    assert (await condition_of(own_redis)).lag == 0
