"""What a real server says of itself: full, unable to write, read from and not acknowledged, trimmed."""

import asyncio
from collections.abc import Awaitable

from redis.asyncio import Redis

from shared.adapters.streams.bus import Bus
from shared.adapters.streams.condition import RedisCondition
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from shared.runtime.redis_server import RedisServer

KEY = TRAJECTORIES.key


async def told(own_redis: RedisServer) -> RedisCondition:
    bus = Bus(own_redis.url)
    try:
        return await bus.condition(TRAJECTORIES, TRAINER_GROUP)
    finally:
        await bus.close()


async def test_memory_is_told_beside_its_limit(own_redis: RedisServer, plain: Redis) -> None:
    before = await told(own_redis)
    assert before.memory_limit_bytes == 2 << 30
    await plain.set("filler", b"x" * 5_000_000)
    assert 5_000_000 < (await told(own_redis)).memory_bytes - before.memory_bytes < 20_000_000
    await plain.config_set("maxmemory", 40_000_000)
    assert 0.125 < (await told(own_redis)).memory_share < 0.6
    await plain.config_set("maxmemory", 0)
    assert ((await told(own_redis)).memory_limit_bytes, (await told(own_redis)).memory_share) == (None, 0.0)


async def test_a_disk_that_refuses_is_told(own_redis: RedisServer, plain: Redis) -> None:
    async def after(begun: Awaitable[object], in_progress: str) -> dict[str, bool]:
        await begun
        async with asyncio.timeout(60):
            while (await plain.info("persistence"))[in_progress]:  # noqa: ASYNC110  another process's
                await asyncio.sleep(0.01)
        return (await told(own_redis)).disk

    assert (await told(own_redis)).disk == {"append": True, "rewrite": True, "snapshot": True}
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


async def test_what_was_delivered_and_not_acknowledged_is_told(own_redis: RedisServer, plain: Redis) -> None:
    nothing = await told(own_redis)
    assert (nothing.pending, nothing.pending_seconds, nothing.lag) == (0, 0.0, 0)
    ids = [await plain.xadd(KEY, {"n": n}) for n in range(5)]
    assert (await told(own_redis)).pending == 0  # there is no group yet
    await plain.xgroup_create(KEY, TRAINER_GROUP, id="0")
    await plain.xreadgroup(TRAINER_GROUP, "trainer", {KEY: ">"}, count=3)
    await plain.xclaim(KEY, TRAINER_GROUP, "trainer", 0, [ids[1]], idle=200_000)
    found = await told(own_redis)
    assert (found.pending, found.lag) == (3, 2)
    assert 200.0 <= found.pending_seconds < 400.0
    await plain.xack(KEY, TRAINER_GROUP, *ids[:3])
    found = await told(own_redis)
    assert (found.pending, found.pending_seconds) == (0, 0.0)


async def test_entries_removed_before_they_were_delivered_are_told_of_until_the_next_are_read(
    own_redis: RedisServer, plain: Redis
) -> None:
    await plain.xgroup_create(KEY, TRAINER_GROUP, id="0", mkstream=True)
    ids = [await plain.xadd(KEY, {"n": n}) for n in range(5)]
    await plain.xreadgroup(TRAINER_GROUP, "trainer", {KEY: ">"}, count=2)
    await plain.xack(KEY, TRAINER_GROUP, *ids[:2])
    await plain.xdel(KEY, *ids[:2])  # as the trainer does with what it journalled
    assert (await told(own_redis)).lag == 3
    await plain.xdel(KEY, ids[3])
    assert (await told(own_redis)).lag is None
    await plain.xreadgroup(TRAINER_GROUP, "trainer", {KEY: ">"})
    assert (await told(own_redis)).lag == 0
