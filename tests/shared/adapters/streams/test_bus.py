"""The bus over a real Redis: at least once, in order, nothing lost when it or a reader dies."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from shared.adapters.streams import consumer_group, entries
from shared.adapters.streams.bus import HEARTBEATS_UNREADABLE, Bus
from shared.adapters.streams.connection import cancellable
from shared.adapters.streams.consumer_group import ENTRIES_GONE, MAX_DELIVERIES
from shared.adapters.streams.entries import Batch
from shared.adapters.streams.lease import Lease
from shared.adapters.streams.scripts import ADD
from shared.errors import ServiceError, SettingsError
from shared.messages.codec import decode_trajectory, encode, encode_trajectory
from shared.messages.schemas import AlertRaised, CheckpointPublished, Heartbeat, TrajectoryFinished, now
from shared.messages.streams import ALERTS, CHECKPOINTS, DEAD, TRAINER_GROUP, TRAJECTORIES, heartbeat_key
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.shared.messages.trajectories import random_trajectory, same
from tests.waiting import PATIENCE_SECONDS

Batches = list[Batch[TrajectoryFinished]]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_group, "BLOCK_MS", 20)


def consumer(bus: Bus, name: str = "one", reclaim_after_ms: int = 60_000):  # type: ignore[no-untyped-def]
    return bus.consume(TRAJECTORIES, TRAINER_GROUP, name, reclaim_after_ms=reclaim_after_ms)


async def send(bus: Bus, *seeds: int) -> None:
    for seed in seeds:
        await bus.append(TRAJECTORIES, *encode_trajectory(random_trajectory(seed)))


async def read(batches: AsyncIterator[Batch[TrajectoryFinished]], count: int) -> Batches:
    """Batches until they hold so many entries."""
    found: Batches = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(len(batch.entries) for batch in found) < count:
            found.append(await anext(batches))
    return found


def seeds_of(batches: Batches) -> list[int]:
    return [entry.message.seed for batch in batches for entry in batch.entries]


async def test_what_is_appended_is_delivered_in_order_with_its_arrays(bus: Bus) -> None:
    await send(bus, 1, 2)
    length = await bus.append_all(
        TRAJECTORIES, [encode_trajectory(random_trajectory(seed)) for seed in (3, 4, 5)]
    )
    assert length == 5
    batches = await read(consumer(bus), 5)
    assert seeds_of(batches) == [1, 2, 3, 4, 5]
    for entry in batches[0].entries:
        decoded = decode_trajectory(entry.message, entry.arrays)
        assert same(decoded, random_trajectory(entry.message.seed))


async def test_many_are_appended_a_few_in_each_exchange(bus: Bus, redis: Redis) -> None:
    asked = await num_calls(redis, "xlen")
    trajectories = [encode_trajectory(random_trajectory(seed)) for seed in range(17)]
    assert await bus.append_all(TRAJECTORIES, trajectories) == 17
    assert await num_calls(redis, "xlen") - asked == 3  # the length is asked for once in each
    assert await bus.append_all(TRAJECTORIES, []) == 17
    assert seeds_of(await read(consumer(bus), 17)) == list(range(17))


async def test_of_an_exchange_that_fills_redis_what_was_refused_alone_is_sent_again(
    own_bus: Bus, plain: Redis
) -> None:
    big = [encode_trajectory(random_trajectory(seed, 5_000)) for seed in range(8)]
    used = (await plain.info("memory"))["used_memory"]
    await plain.config_set("maxmemory", used + 4 * len(big[0][1]))
    sending = asyncio.create_task(own_bus.append_all(TRAJECTORIES, big))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not own_bus.degraded:  # noqa: ASYNC110  a state, not an event
            await asyncio.sleep(0.01)
        assert 0 < await own_bus.length(TRAJECTORIES) < len(big)
        await plain.config_set("maxmemory", 0)
        assert await sending == len(big)
    assert sorted(seeds_of(await read(consumer(own_bus), len(big)))) == list(range(len(big)))


async def test_an_acknowledged_entry_leaves_the_stream_and_another_does_not(bus: Bus) -> None:
    await send(bus, 1, 2)
    batches = consumer(bus)
    (batch,) = await read(batches, 2)
    assert await bus.length(TRAJECTORIES) == 2
    await batch.ack()
    await batch.ack()  # again does no harm
    assert await bus.length(TRAJECTORIES) == 0
    assert seeds_of([await anext(batches)]) == []


async def test_a_consumer_that_died_gets_its_own_entries_first(bus: Bus) -> None:
    await send(bus, *range(40))
    assert seeds_of(await read(consumer(bus), 32)) == list(range(32))
    again = consumer(bus)
    batches = await read(again, 40)
    assert seeds_of(batches) == list(range(40))
    for batch in batches:
        await batch.ack()
    assert await bus.length(TRAJECTORIES) == 0


async def test_what_is_acknowledged_while_it_is_about_to_come_again_does_not_come(bus: Bus) -> None:
    await send(bus, 1, 2)
    (batch,) = await read(consumer(bus), 2)
    again = consumer(bus)
    assert seeds_of(await read(again, 1)) == [1]
    await batch.ack()
    await send(bus, 3)
    assert seeds_of(await read(again, 1)) == [3]


async def test_what_another_consumer_left_is_taken_over(bus: Bus) -> None:
    await send(bus, 1, 2, 3)
    await read(consumer(bus, "died"), 3)
    batches = await read(consumer(bus, "heir", reclaim_after_ms=0), 3)
    assert seeds_of(batches) == [1, 2, 3]
    for batch in batches:
        await batch.ack()
    assert await bus.length(TRAJECTORIES) == 0


@pytest.mark.parametrize("reader", ["died", "heir"])
async def test_an_entry_that_somebody_removed_while_it_was_pending_is_counted_and_told(
    bus: Bus, redis: Redis, reader: str
) -> None:
    """By who was given it and died, when it is back, as by who takes over from it."""
    await send(bus, 1, 2, 3)
    (delivered,) = await read(consumer(bus, "died"), 3)
    removed = delivered.entries[1].entry_id
    await redis.xdel(TRAJECTORIES.key, removed)
    before = value_of(ENTRIES_GONE)
    with structlog.testing.capture_logs() as told:
        batches = await read(consumer(bus, reader, reclaim_after_ms=0), 2)
    assert seeds_of(batches) == [1, 3]
    gone = [line for line in told if line["event"] == "entry_gone"]
    assert [(line["stream"], line["entry_id"]) for line in gone] == [(TRAJECTORIES.key, removed)]
    assert value_of(ENTRIES_GONE) == before + 1
    (alert,) = await bus.recent(ALERTS, count=10)
    assert (alert.message.source, alert.message.name) == (TRAINER_GROUP, "entries_gone")
    assert alert.message.detail.startswith(f"1 of {TRAJECTORIES.key}, the first {removed}: it was removed")
    for batch in batches:
        await batch.ack()
    assert (await redis.xpending(TRAJECTORIES.key, TRAINER_GROUP))["pending"] == 0


def value_of(counter: Counter) -> float:
    (family,) = counter.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_total"))


async def test_a_reader_of_news_looks_for_abandoned_entries_now_and_then_and_takes_all_there_are(
    bus: Bus, redis: Redis
) -> None:
    """Not once a batch, a third of its questions; yet a look that found many goes on until the last."""
    reclaim_after_ms = 3_000
    await send(bus, *range(70))
    died = consumer(bus, "died")
    await read(died, 70)
    await asyncio.sleep(reclaim_after_ms / 1_000)
    await redis.config_resetstat()
    batches = consumer(bus, "heir", reclaim_after_ms)

    async def next_seeds(count: int) -> list[int]:
        """Acknowledged as they come: on a slow machine they would count as abandoned by this one soon."""
        seeds: list[int] = []
        while len(seeds) < count:
            batch = await anext(batches)
            await batch.ack()
            seeds += seeds_of([batch])
        return seeds

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await next_seeds(70) == list(range(70))
        looks = await num_calls(redis, "xautoclaim")
        assert looks >= 3  # 32 entries each
        trajectories = [encode_trajectory(random_trajectory(seed)) for seed in range(200)]
        await bus.append_all(TRAJECTORIES, trajectories)
        reads, began = await num_calls(redis, "xreadgroup"), asyncio.get_running_loop().time()
        assert await next_seeds(200) == list(range(200))
        seconds = asyncio.get_running_loop().time() - began
    assert await num_calls(redis, "xreadgroup") - reads >= 200 / 32
    assert await num_calls(redis, "xautoclaim") - looks <= 1 + seconds / (reclaim_after_ms / 10_000)


async def num_calls(redis: Redis, command: str) -> int:
    """Times that the server was asked this."""
    told = await redis.info("commandstats")
    return int(told.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_what_is_delivered_again_and_again_is_poison(bus: Bus) -> None:
    await send(bus, 1)
    for delivery in range(MAX_DELIVERIES):
        assert seeds_of(await read(consumer(bus, f"died-{delivery}", 0), 1)) == [1]
    last = consumer(bus, "careful", 0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await bus.length(TRAJECTORIES):
            assert seeds_of([await anext(last)]) == []
    (letter,) = await bus.recent(DEAD, count=10)
    assert letter.message.reason == f"delivered more than {MAX_DELIVERIES} times and never acknowledged"


async def test_what_ends_a_reader_that_keeps_its_name_is_poison_and_what_came_with_it_is_not(
    bus: Bus, redis_server: RedisServer
) -> None:
    await send(bus, 1, 2, 3)
    delivered = []
    for _ in range(MAX_DELIVERIES + 1):  # processes
        process = Bus(redis_server.url)
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for batch in consumer(process, "trainer"):
                if batch.entries:
                    delivered.append(seeds_of([batch]))
                if 2 in seeds_of([batch]):
                    break  # and of this one
                await batch.ack()
                if not await bus.length(TRAJECTORIES):
                    break
        await process.close()
    assert delivered == [[1, 2, 3], [1], [2], [2], [3]]
    assert await bus.length(TRAJECTORIES) == 0
    (letter,) = await bus.recent(DEAD, count=10)
    assert letter.message.reason == f"delivered more than {MAX_DELIVERIES} times and never acknowledged"


@pytest.mark.parametrize("same_process", [True, False])
async def test_a_delivery_counts_once_for_a_process_and_not_where_it_ends_in_good_order(
    bus: Bus, redis: Redis, redis_server: RedisServer, same_process: bool
) -> None:
    await send(bus, 1)
    for _ in range(MAX_DELIVERIES + 2):
        process = bus if same_process else Bus(redis_server.url)
        assert seeds_of(await read(consumer(process, "trainer"), 1)) == [1]
        if not same_process:
            await process.give_back()
            await process.close()
    assert await bus.length(DEAD) == 0
    (pending,) = await redis.xpending_range(TRAJECTORIES.key, TRAINER_GROUP, "-", "+", 10)
    assert pending["times_delivered"] == (2 if same_process else 1)
    await bus.give_back()
    await bus.give_back()  # again does no harm


async def test_what_another_reader_was_given_meanwhile_is_neither_taken_back_nor_given_back(
    bus: Bus, redis: Redis
) -> None:
    await send(bus, 1, 2)
    await read(consumer(bus), 2)
    batches = consumer(bus)
    assert seeds_of(await read(batches, 1)) == [1]  # both are known to be pending
    await redis.xgroup_createconsumer(TRAJECTORIES.key, TRAINER_GROUP, "other")
    await redis.xautoclaim(TRAJECTORIES.key, TRAINER_GROUP, "other", min_idle_time=0)
    assert seeds_of([await anext(batches)]) == []
    await bus.give_back()
    pending = await redis.xpending_range(TRAJECTORIES.key, TRAINER_GROUP, "-", "+", 10)
    assert [(one["consumer"], one["times_delivered"]) for one in pending] == [(b"other", 3), (b"other", 2)]
    await redis.xgroup_destroy(TRAJECTORIES.key, TRAINER_GROUP)
    await bus.give_back()  # there is none


async def test_entries_that_cannot_be_read_are_dead_letters_and_the_good_ones_go_on(
    bus: Bus, redis: Redis
) -> None:
    await send(bus, 1)
    unknown = {**encode(*encode_trajectory(random_trajectory(7))), "version": b"99"}
    poison: list[dict[str, bytes]] = [{"garbage": b"\xff\x00"}, unknown, {"type": b"TrajectoryFinished"}]
    for fields in poison:
        await redis.xadd(TRAJECTORIES.key, fields)  # type: ignore[arg-type]
    await send(bus, 2)
    batches = await read(consumer(bus), 2)
    assert seeds_of(batches) == [1, 2]
    for batch in batches:
        await batch.ack()
    assert await bus.length(TRAJECTORIES) == 0
    letters = [entry.message for entry in await bus.recent(DEAD, count=10)]
    assert len(letters) == 3
    assert "schema version '99', known is 1" in letters[1].reason
    assert letters[2].excerpt == "garbage=\ufffd\x00"


async def test_a_reader_can_put_an_entry_with_the_dead_letters(bus: Bus) -> None:
    await send(bus, 1, 2)
    (batch,) = await read(consumer(bus), 2)
    await bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, batch.entries[0], "of another data set")
    assert await bus.length(TRAJECTORIES) == 1
    (letter,) = await bus.recent(DEAD, count=10)
    assert letter.message.reason == "of another data set"
    assert letter.message.entry_id == batch.entries[0].entry_id


async def test_a_lost_group_is_made_again_and_nothing_sent_meanwhile_is_missed(
    bus: Bus, redis: Redis
) -> None:
    await send(bus, 1)
    batches = consumer(bus)
    (batch,) = await read(batches, 1)
    await batch.ack()
    await redis.xgroup_destroy(TRAJECTORIES.key, TRAINER_GROUP)
    await send(bus, 2)
    assert seeds_of(await read(batches, 1)) == [2]
    await redis.flushall()
    await send(bus, 3)
    assert seeds_of(await read(batches, 1)) == [3]
    await send(bus, 4)
    await read(batches, 1)
    again = consumer(bus)
    assert seeds_of(await read(again, 1)) == [3]  # and knows that another one is pending
    await redis.xgroup_destroy(TRAJECTORIES.key, TRAINER_GROUP)
    assert sorted(seeds_of(await read(again, 2))) == [3, 4]


async def test_a_wait_that_redis_breaks_off_goes_on(
    bus: Bus, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 7.0 answers -UNBLOCKED to who waits for a stream that is deleted."""
    monkeypatch.setattr(consumer_group, "BLOCK_MS", 5_000)
    reading = asyncio.create_task(read(consumer(bus), 1))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await _broken_off(redis):  # noqa: ASYNC110  a state, not an event
            await asyncio.sleep(0.01)
        await redis.delete(TRAJECTORIES.key)
        await send(bus, 1)
        assert seeds_of(await reading) == [1]


async def _broken_off(redis: Redis) -> bool:
    waiting = [client["id"] for client in await redis.client_list() if client["cmd"] == "xreadgroup"]
    return bool(waiting and await redis.client_unblock(int(waiting[0]), error=True))


@pytest.mark.parametrize("breaks", [False, True])
async def test_a_cancellation_that_the_client_took_for_its_own_is_one(breaks: bool) -> None:
    async def swallow() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if breaks:
                raise ConnectionError("broken while it connected") from None

    waiting = asyncio.create_task(cancellable(swallow()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_cancelled_reads_leave_nothing_behind(bus: Bus) -> None:
    """A read given up when an entry arrives: the entry may be pending, and is found at the next start."""
    for seed in range(20):
        reading = asyncio.create_task(_acknowledged(bus))
        await asyncio.sleep(0.002 * (seed % 5))
        await send(bus, seed)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for batch in consumer(bus):
            await batch.ack()
            if not await bus.length(TRAJECTORIES):
                break


async def _acknowledged(bus: Bus) -> None:
    async for batch in consumer(bus):
        await batch.ack()


async def test_an_announcement_is_in_the_stream_and_under_its_name(bus: Bus) -> None:
    assert await bus.newest(CHECKPOINTS) is None
    for version in range(3):
        message = CheckpointPublished(version=version, episode=0, update=0, weights_sha256="0" * 64)
        await bus.announce(CHECKPOINTS, message)
    newest = await bus.newest(CHECKPOINTS)
    assert newest is not None
    assert newest.version == 2
    assert [entry.message.version for entry in await bus.recent(CHECKPOINTS, count=2)] == [2, 1]
    older = await bus.recent(CHECKPOINTS, count=1)
    earlier = await bus.recent(CHECKPOINTS, count=9, before=older[0].entry_id)
    assert [entry.message.version for entry in earlier] == [1, 0]


async def test_a_follower_sees_every_message_after_its_place(bus: Bus, redis: Redis) -> None:
    assert await bus.last_id(ALERTS) == "0-0"
    await bus.append(ALERTS, AlertRaised(source="test", name="before"))
    after = await bus.last_id(ALERTS)
    await bus.append(ALERTS, AlertRaised(source="test", name="first"))
    await redis.xadd(ALERTS.key, {"type": b"nonsense"})
    await bus.append(ALERTS, AlertRaised(source="test", name="second"))
    messages = bus.follow(ALERTS, after)
    assert [entry.message.name for entry in await anext(messages)] == ["first", "second"]
    assert await anext(messages) == []
    assert "type is 'nonsense'" in (await bus.recent(DEAD, count=1))[0].message.reason


async def test_a_bounded_stream_is_trimmed_and_the_trajectories_never_are(bus: Bus, redis: Redis) -> None:
    assert TRAJECTORIES.max_length is None
    for _ in range(ALERTS.max_length // 100 if ALERTS.max_length else 0):
        async with redis.pipeline(transaction=False) as pipe:
            for _ in range(200):
                pipe.xadd(ALERTS.key, {"type": b"x"})
            await pipe.execute()
    await bus.append(ALERTS, AlertRaised(source="test", name="last"))
    assert ALERTS.max_length is not None
    assert await bus.length(ALERTS) < 1.1 * ALERTS.max_length


async def test_heartbeats_live_a_while_and_go_with_the_service(bus: Bus, redis: Redis) -> None:
    beats = [
        Heartbeat(
            service="selfplay", instance=name, state="running", pid=1, started_at=now(), detail={"version": 3}
        )
        for name in ("b", "a")
    ]
    for beat in beats:
        await bus.beat(beat)
    assert await bus.heartbeats() == beats[::-1]
    assert 0 < await redis.pttl(heartbeat_key("selfplay", "a")) <= 15_000
    await bus.still("selfplay", "a")
    assert await bus.heartbeats() == beats[:1]


@pytest.mark.parametrize(
    ("key", "text", "where"),
    [
        (heartbeat_key("trainer", "older").encode(), b'{"schema_version":2,"unknown":0}', "schema_version"),
        (heartbeat_key("trainer", "").encode() + b"\xff", b"not JSON", ""),
    ],
)
async def test_a_heartbeat_of_another_schema_is_skipped_counted_and_told_of_once(
    bus: Bus, redis: Redis, key: bytes, text: bytes, where: str
) -> None:
    good = Heartbeat(service="selfplay", instance="a", state="running", pid=1, started_at=now())
    await bus.beat(good)
    await redis.set(key, text)
    before = value_of(HEARTBEATS_UNREADABLE)
    with structlog.testing.capture_logs() as told:
        assert await bus.heartbeats() == [good]
        assert await bus.heartbeats() == [good]
    assert value_of(HEARTBEATS_UNREADABLE) == before + 2
    (line,) = told
    assert (line["event"], line["where"]) == ("heartbeat_unreadable", where)
    assert line["key"] == key.decode("utf-8", "replace")


async def test_a_client_tries_once_and_says_which_replies_it_expects(redis_server: RedisServer) -> None:
    """What redis-py does unless told otherwise changes from release to release."""
    bus, lease = Bus(redis_server.url), Lease(redis_server.url, "test", "one", seconds=1.0)
    for client in (bus._redis, lease._redis):
        settings = client.connection_pool.connection_kwargs
        assert (settings["protocol"], settings["legacy_responses"]) == (2, True)
        assert settings["health_check_interval"] == 15
        assert settings["retry"].get_retries() == 0
    await bus.close()
    await lease.release()


async def test_a_restart_of_redis_mid_stream_loses_nothing(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    producer, reader = Bus(server.url), Bus(server.url)
    received: list[int] = []

    async def consume_all() -> None:
        async for batch in consumer(reader):
            received.extend(entry.message.seed for entry in batch.entries)
            await batch.ack()
            if len(set(received)) == 30:
                return

    async def produce() -> None:
        for seed in range(30):
            await send(producer, seed)

    consuming, producing = asyncio.create_task(consume_all()), asyncio.create_task(produce())
    try:
        for _ in range(2):
            async with asyncio.timeout(PATIENCE_SECONDS):
                before = len(received)
                while len(received) < min(before + 3, 30):  # noqa: ASYNC110  either task may be the one to wait for
                    await asyncio.sleep(0.001)
            await asyncio.to_thread(server.stop, kill=True)
            await asyncio.to_thread(server.start)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(consuming, producing)
        assert set(received) == set(range(30))  # at least once; ids are counted by the journal
        assert not producer.degraded
    finally:
        consuming.cancel()
        producing.cancel()
        await asyncio.gather(consuming, producing, return_exceptions=True)
        await producer.close()
        await reader.close()
        server.stop()


async def test_while_redis_is_away_the_bus_is_degraded_and_waits(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    bus = Bus(server.url)
    await bus.ping()
    server.stop()
    waiting = asyncio.create_task(bus.append(ALERTS, AlertRaised(source="test", name="late")))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not bus.degraded:  # noqa: ASYNC110  a state, not an event
            await asyncio.sleep(0.01)
    with pytest.raises((ConnectionError, OSError)):
        await asyncio.wait_for(_ping(bus), PATIENCE_SECONDS)
    assert not waiting.done()
    server.start()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting
    assert [entry.message.name for entry in await bus.recent(ALERTS, count=5)] == ["late"]
    await bus.close()
    server.stop()


async def _ping(bus: Bus) -> None:
    from redis.exceptions import RedisError

    try:
        await bus.ping()
    except RedisError as away:
        raise ConnectionError(str(away)) from away


@pytest.mark.parametrize("key", [TRAJECTORIES.key, ALERTS.key, DEAD.key])
async def test_a_key_that_holds_something_else_is_an_error_that_says_so(
    bus: Bus, redis: Redis, key: str
) -> None:
    """Whoever meets it first; nothing that was in the streams is touched."""
    if key == DEAD.key:
        await redis.xadd(TRAJECTORIES.key, {"garbage": b"\xff"})
    await redis.set(key, "another program's")

    async def use() -> None:
        if key == ALERTS.key:
            await bus.append(ALERTS, AlertRaised(source="test", name="first"))
        else:
            await anext(consumer(bus))

    with pytest.raises(ServiceError, match=r"^Redis refuses to .*WRONGTYPE.* a database of its own$") as told:
        await asyncio.wait_for(use(), PATIENCE_SECONDS)
    assert (key if key != DEAD.key else "dead-letter from") in str(told.value)
    assert await redis.get(key) == b"another program's"
    if key == DEAD.key:
        assert await bus.length(TRAJECTORIES) == 1


async def test_a_redis_that_knows_no_flags_of_scripts_is_an_error_that_says_which_is_needed(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To Redis 6 a script's first line is no Lua, as here its second."""
    monkeypatch.setattr(entries, "ADD", ADD.replace("\n", "\n#!lua\n", 1))
    with pytest.raises(ServiceError, match=r"append to mm:alerts: .* Redis 7\.0 or Valkey$"):
        await asyncio.wait_for(bus.append(ALERTS, AlertRaised(source="test", name="first")), PATIENCE_SECONDS)


async def test_a_wrong_password_is_an_error_and_not_a_wait(redis_server: RedisServer) -> None:
    bus = Bus(redis_server.url.replace(redis_server.password, "wrong"))
    with pytest.raises(SettingsError, match="MM_REDIS_URL: Redis refuses to tell the length of"):
        await asyncio.wait_for(bus.length(TRAJECTORIES), PATIENCE_SECONDS)
    await bus.close()
