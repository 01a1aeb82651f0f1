"""The bus on a real Redis: at-least-once delivery in order, without loss when Redis or a consumer crashes."""

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
from shared.errors import MuZeroError, ServiceError, SettingsError
from shared.messages.codec import decode_trajectory, encode, encode_trajectory
from shared.messages.conditions import Condition
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
    """Batches with `count` entries in total."""
    found: Batches = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(len(batch.entries) for batch in found) < count:
            found.append(await anext(batches))
    return found


def seeds_of(batches: Batches) -> list[int]:
    return [entry.message.seed for batch in batches for entry in batch.entries]


async def test_appended_entries_are_delivered_in_order_with_their_arrays(bus: Bus) -> None:
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


async def test_many_entries_are_appended_a_few_per_round_trip(bus: Bus, redis: Redis) -> None:
    before = await num_calls(redis, "xlen")
    trajectories = [encode_trajectory(random_trajectory(seed)) for seed in range(17)]
    assert await bus.append_all(TRAJECTORIES, trajectories) == 17
    assert await num_calls(redis, "xlen") - before == 3  # one per round trip
    assert await bus.append_all(TRAJECTORIES, []) == 17
    assert seeds_of(await read(consumer(bus), 17)) == list(range(17))


async def test_only_entries_rejected_by_a_full_redis_are_sent_again(own_bus: Bus, plain: Redis) -> None:
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


async def test_only_acknowledged_entries_leave_the_stream(bus: Bus) -> None:
    await send(bus, 1, 2)
    batches = consumer(bus)
    (batch,) = await read(batches, 2)
    assert await bus.length(TRAJECTORIES) == 2
    await batch.ack()
    await batch.ack()  # idempotent
    assert await bus.length(TRAJECTORIES) == 0
    assert seeds_of([await anext(batches)]) == []


async def test_a_restarted_consumer_gets_its_pending_entries_first(bus: Bus) -> None:
    await send(bus, *range(40))
    assert seeds_of(await read(consumer(bus), 32)) == list(range(32))
    again = consumer(bus)
    batches = await read(again, 40)
    assert seeds_of(batches) == list(range(40))
    for batch in batches:
        await batch.ack()
    assert await bus.length(TRAJECTORIES) == 0


async def test_an_entry_acknowledged_before_its_redelivery_is_not_redelivered(bus: Bus) -> None:
    await send(bus, 1, 2)
    (batch,) = await read(consumer(bus), 2)
    again = consumer(bus)
    assert seeds_of(await read(again, 1)) == [1]
    await batch.ack()
    await send(bus, 3)
    assert seeds_of(await read(again, 1)) == [3]


async def test_abandoned_entries_are_claimed_by_another_consumer(bus: Bus) -> None:
    await send(bus, 1, 2, 3)
    await read(consumer(bus, "died"), 3)
    batches = await read(consumer(bus, "heir", reclaim_after_ms=0), 3)
    assert seeds_of(batches) == [1, 2, 3]
    for batch in batches:
        await batch.ack()
    assert await bus.length(TRAJECTORIES) == 0


@pytest.mark.parametrize("reader", ["died", "heir"])
async def test_a_pending_entry_missing_from_the_stream_is_counted_logged_and_alerted(
    bus: Bus, redis: Redis, reader: str
) -> None:
    """Both by the restarted consumer that had received it and by a consumer that claims it."""
    await send(bus, 1, 2, 3)
    (delivered,) = await read(consumer(bus, "died"), 3)
    removed = delivered.entries[1].entry_id
    await redis.xdel(TRAJECTORIES.key, removed)
    before = value_of(ENTRIES_GONE)
    with structlog.testing.capture_logs() as logs:
        batches = await read(consumer(bus, reader, reclaim_after_ms=0), 2)
    assert seeds_of(batches) == [1, 3]
    gone = [line for line in logs if line["event"] == "entry_gone"]
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


async def test_a_busy_consumer_searches_for_abandoned_entries_at_intervals(bus: Bus, redis: Redis) -> None:
    """One search per batch would be a third of all commands. A search that has begun runs to its end."""
    reclaim_after_ms = 3_000
    await send(bus, *range(70))
    died = consumer(bus, "died")
    await read(died, 70)
    await asyncio.sleep(reclaim_after_ms / 1_000)
    await redis.config_resetstat()
    batches = consumer(bus, "heir", reclaim_after_ms)

    async def next_seeds(count: int) -> list[int]:
        """Acknowledge each batch at once, so that it does not count as abandoned on a slow machine."""
        seeds: list[int] = []
        while len(seeds) < count:
            batch = await anext(batches)
            await batch.ack()
            seeds += seeds_of([batch])
        return seeds

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await next_seeds(70) == list(range(70))
        searches = await num_calls(redis, "xautoclaim")
        assert searches >= 3  # 32 entries each
        trajectories = [encode_trajectory(random_trajectory(seed)) for seed in range(200)]
        await bus.append_all(TRAJECTORIES, trajectories)
        reads, began = await num_calls(redis, "xreadgroup"), asyncio.get_running_loop().time()
        assert await next_seeds(200) == list(range(200))
        seconds = asyncio.get_running_loop().time() - began
    assert await num_calls(redis, "xreadgroup") - reads >= 200 / 32
    assert await num_calls(redis, "xautoclaim") - searches <= 1 + seconds / (reclaim_after_ms / 10_000)


async def num_calls(redis: Redis, command: str) -> int:
    """How often the server ran a command."""
    statistics = await redis.info("commandstats")
    return int(statistics.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_an_entry_delivered_too_often_becomes_a_dead_letter(bus: Bus) -> None:
    await send(bus, 1)
    for delivery in range(MAX_DELIVERIES):
        assert seeds_of(await read(consumer(bus, f"died-{delivery}", 0), 1)) == [1]
    last = consumer(bus, "careful", 0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await bus.length(TRAJECTORIES):
            assert seeds_of([await anext(last)]) == []
    (letter,) = await bus.recent(DEAD, count=10)
    assert letter.message.reason == f"delivered more than {MAX_DELIVERIES} times and never acknowledged"


async def test_an_entry_that_crashes_its_consumer_becomes_a_dead_letter_alone(
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
                    break  # simulates a crash
                await batch.ack()
                if not await bus.length(TRAJECTORIES):
                    break
        await process.close()
    assert delivered == [[1, 2, 3], [1], [2], [2], [3]]
    assert await bus.length(TRAJECTORIES) == 0
    (letter,) = await bus.recent(DEAD, count=10)
    assert letter.message.reason == f"delivered more than {MAX_DELIVERIES} times and never acknowledged"


@pytest.mark.parametrize("same_process", [True, False])
async def test_a_delivery_counts_once_per_process_and_not_after_a_graceful_shutdown(
    bus: Bus, redis: Redis, redis_server: RedisServer, same_process: bool
) -> None:
    await send(bus, 1)
    for _ in range(MAX_DELIVERIES + 2):
        process = bus if same_process else Bus(redis_server.url)
        assert seeds_of(await read(consumer(process, "trainer"), 1)) == [1]
        if not same_process:
            await process.release_pending()
            await process.close()
    assert await bus.length(DEAD) == 0
    (pending,) = await redis.xpending_range(TRAJECTORIES.key, TRAINER_GROUP, "-", "+", 10)
    assert pending["times_delivered"] == (2 if same_process else 1)
    await bus.release_pending()
    await bus.release_pending()  # idempotent


async def test_an_entry_claimed_by_another_consumer_is_neither_redelivered_nor_released(
    bus: Bus, redis: Redis
) -> None:
    await send(bus, 1, 2)
    await read(consumer(bus), 2)
    batches = consumer(bus)
    assert seeds_of(await read(batches, 1)) == [1]  # the consumer knows that both are pending
    await redis.xgroup_createconsumer(TRAJECTORIES.key, TRAINER_GROUP, "other")
    await redis.xautoclaim(TRAJECTORIES.key, TRAINER_GROUP, "other", min_idle_time=0)
    assert seeds_of([await anext(batches)]) == []
    await bus.release_pending()
    pending = await redis.xpending_range(TRAJECTORIES.key, TRAINER_GROUP, "-", "+", 10)
    assert [(one["consumer"], one["times_delivered"]) for one in pending] == [(b"other", 3), (b"other", 2)]
    await redis.xgroup_destroy(TRAJECTORIES.key, TRAINER_GROUP)
    await bus.release_pending()  # there is no group


async def test_undecodable_entries_become_dead_letters_and_valid_ones_are_delivered(
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
    assert "schema version '99', known: 1" in letters[1].reason
    assert letters[2].excerpt == "garbage=\ufffd\x00"


async def test_a_consumer_can_move_an_entry_to_the_dead_letters(bus: Bus) -> None:
    await send(bus, 1, 2)
    (batch,) = await read(consumer(bus), 2)
    await bus.dead_letter(TRAJECTORIES, TRAINER_GROUP, batch.entries[0], "of another data set")
    assert await bus.length(TRAJECTORIES) == 1
    (letter,) = await bus.recent(DEAD, count=10)
    assert letter.message.reason == "of another data set"
    assert letter.message.entry_id == batch.entries[0].entry_id


async def test_a_lost_group_is_recreated_and_no_entry_is_missed(bus: Bus, redis: Redis) -> None:
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
    assert seeds_of(await read(again, 1)) == [3]  # the consumer knows that 4 is pending too
    await redis.xgroup_destroy(TRAJECTORIES.key, TRAINER_GROUP)
    assert sorted(seeds_of(await read(again, 2))) == [3, 4]


async def test_a_blocking_read_that_redis_interrupts_is_repeated(
    bus: Bus, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 7.0 replies -UNBLOCKED to a blocking read of a stream that is deleted."""
    monkeypatch.setattr(consumer_group, "BLOCK_MS", 5_000)
    reading = asyncio.create_task(read(consumer(bus), 1))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await _interrupted(redis):  # noqa: ASYNC110  a state, not an event
            await asyncio.sleep(0.01)
        await redis.delete(TRAJECTORIES.key)
        await send(bus, 1)
        assert seeds_of(await reading) == [1]


async def _interrupted(redis: Redis) -> bool:
    waiting = [client["id"] for client in await redis.client_list() if client["cmd"] == "xreadgroup"]
    return bool(waiting and await redis.client_unblock(int(waiting[0]), error=True))


@pytest.mark.parametrize("breaks", [False, True])
async def test_a_cancellation_that_the_client_swallows_is_raised(breaks: bool) -> None:
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


async def test_cancelled_reads_lose_no_entry(bus: Bus) -> None:
    """An entry that arrives during a cancelled read may be pending; the next consumer gets it."""
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


async def test_an_announcement_is_appended_and_stored_under_its_name(bus: Bus) -> None:
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


async def test_an_alert_that_could_not_be_appended_is_not_active(bus: Bus, redis: Redis) -> None:
    began = AlertRaised(source="gateway", name="backlog", phase="began", detail="x")
    await redis.set(ALERTS.key, "not a stream")
    with pytest.raises(MuZeroError, match=ALERTS.key):
        await bus.append_condition_alert(began)
    assert await bus.active_conditions() == {}
    await redis.delete(ALERTS.key)
    assert await bus.append_condition_alert(began)
    assert not await bus.append_condition_alert(began)
    assert list(await bus.active_conditions()) == [Condition("gateway", "backlog")]


async def test_following_yields_every_message_after_an_id(bus: Bus, redis: Redis) -> None:
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


async def test_a_capped_stream_is_trimmed(bus: Bus, redis: Redis) -> None:
    assert TRAJECTORIES.max_length is None
    for _ in range(ALERTS.max_length // 100 if ALERTS.max_length else 0):
        async with redis.pipeline(transaction=False) as pipe:
            for _ in range(200):
                pipe.xadd(ALERTS.key, {"type": b"x"})
            await pipe.execute()
    await bus.append(ALERTS, AlertRaised(source="test", name="last"))
    assert ALERTS.max_length is not None
    assert await bus.length(ALERTS) < 1.1 * ALERTS.max_length


async def test_heartbeats_expire_and_are_cleared_at_shutdown(bus: Bus, redis: Redis) -> None:
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
    await bus.clear_heartbeat("selfplay", "a")
    assert await bus.heartbeats() == beats[:1]


@pytest.mark.parametrize(
    ("key", "text", "where"),
    [
        (heartbeat_key("trainer", "older").encode(), b'{"schema_version":2,"unknown":0}', "schema_version"),
        (heartbeat_key("trainer", "").encode() + b"\xff", b"not JSON", ""),
    ],
)
async def test_a_heartbeat_of_another_schema_is_skipped_counted_and_logged_once(
    bus: Bus, redis: Redis, key: bytes, text: bytes, where: str
) -> None:
    good = Heartbeat(service="selfplay", instance="a", state="running", pid=1, started_at=now())
    await bus.beat(good)
    await redis.set(key, text)
    before = value_of(HEARTBEATS_UNREADABLE)
    with structlog.testing.capture_logs() as logs:
        assert await bus.heartbeats() == [good]
        assert await bus.heartbeats() == [good]
    assert value_of(HEARTBEATS_UNREADABLE) == before + 2
    (line,) = logs
    assert (line["event"], line["where"]) == ("heartbeat_unreadable", where)
    assert line["key"] == key.decode("utf-8", "replace")


async def test_clients_do_not_retry_and_fix_their_protocol(redis_server: RedisServer) -> None:
    """The defaults of redis-py change from release to release."""
    bus, lease = Bus(redis_server.url), Lease(redis_server.url, "test", "one", seconds=1.0)
    for client in (bus._redis, lease._redis):
        settings = client.connection_pool.connection_kwargs
        assert (settings["protocol"], settings["legacy_responses"]) == (2, True)
        assert settings["health_check_interval"] == 15
        assert settings["retry"].get_retries() == 0
    await bus.close()
    await lease.release()


async def test_restarts_of_redis_lose_no_entry(tmp_path: Path) -> None:
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
        assert set(received) == set(range(30))  # at least once; consumers deduplicate
        assert not producer.degraded
    finally:
        consuming.cancel()
        producing.cancel()
        await asyncio.gather(consuming, producing, return_exceptions=True)
        await producer.close()
        await reader.close()
        server.stop()


async def test_while_redis_is_unavailable_the_bus_is_degraded_and_waits(tmp_path: Path) -> None:
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
    except RedisError as failure:
        raise ConnectionError(str(failure)) from failure


@pytest.mark.parametrize("key", [TRAJECTORIES.key, ALERTS.key, DEAD.key])
async def test_a_key_of_another_type_is_an_error_that_names_it(bus: Bus, redis: Redis, key: str) -> None:
    """Appends, reads and dead letters raise the error, and the entries stay in their streams."""
    if key == DEAD.key:
        await redis.xadd(TRAJECTORIES.key, {"garbage": b"\xff"})
    await redis.set(key, "another program's")

    async def use() -> None:
        if key == ALERTS.key:
            await bus.append(ALERTS, AlertRaised(source="test", name="first"))
        else:
            await anext(consumer(bus))

    with pytest.raises(
        ServiceError, match=r"^Redis refuses to .*WRONGTYPE.* a database of its own$"
    ) as error:
        await asyncio.wait_for(use(), PATIENCE_SECONDS)
    assert (key if key != DEAD.key else "dead-letter from") in str(error.value)
    assert await redis.get(key) == b"another program's"
    if key == DEAD.key:
        assert await bus.length(TRAJECTORIES) == 1


async def test_the_error_for_a_too_old_redis_names_the_required_version(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 6 rejects the first line of a script as invalid Lua; here the second line is invalid."""
    monkeypatch.setattr(entries, "ADD", ADD.replace("\n", "\n#!lua\n", 1))
    with pytest.raises(ServiceError, match=r"append to mm:alerts: .* Redis 7\.0 or Valkey$"):
        await asyncio.wait_for(bus.append(ALERTS, AlertRaised(source="test", name="first")), PATIENCE_SECONDS)


async def test_a_wrong_password_is_not_retried(redis_server: RedisServer) -> None:
    bus = Bus(redis_server.url.replace(redis_server.password, "wrong"))
    with pytest.raises(SettingsError, match="MM_REDIS_URL: Redis refuses to read the length of"):
        await asyncio.wait_for(bus.length(TRAJECTORIES), PATIENCE_SECONDS)
    await bus.close()
