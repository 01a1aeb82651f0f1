"""Processes killed at the worst moment: acknowledged trajectories are journalled exactly once."""

import asyncio
import contextlib
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from services.trainer.intake.journal import Journal
from shared.adapters.streams.bus import Bus
from shared.messages.codec import encode_trajectory
from shared.messages.streams import DEAD, TRAJECTORIES
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.broken_connections import BREAKS_CONNECTIONS
from tests.conftest import ROOT
from tests.faults.counts import print_figures, rounds, steps
from tests.faults.proxy import Proxy
from tests.faults.reading import (
    Tally,
    in_background,
    journal_all,
    journalled,
    send,
    until_drained,
)
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = BREAKS_CONNECTIONS

#: Matches the entry id in a reply to XADD, but not an "-ERR" reply to an unknown handshake command.
ENTRY_ID = re.compile(rb"\d-\d")

#: Number of trajectories sent before the one at which the process is killed.
BEFORE_THE_KILL = 5

#: Number of senders, and of trajectories per request, to keep Redis busy.
FLOOD_PRODUCERS, FLOOD_BATCH = 2, 50

#: Interval between marks in the append-only file.
MARK_SECONDS = 0.05


@rounds(4, 100)
async def test_a_producer_killed_before_a_reply_loses_no_acknowledged_trajectory(
    own_redis: RedisServer, tmp_path: Path, count: int
) -> None:
    acknowledged: set[int] = set()
    unanswered = 0
    producer: subprocess.Popen[str]
    replies = 0

    async def kill_at_a_reply(reply: bytes) -> bytes | None:
        nonlocal replies
        replies += bool(ENTRY_ID.search(reply))
        if replies <= BEFORE_THE_KILL:
            return reply
        producer.kill()
        return None

    async with Proxy(own_redis, reply=kill_at_a_reply) as proxy:
        for _ in steps(count):
            replies = 0
            first = len(acknowledged) + unanswered
            producer = subprocess.Popen(  # noqa: ASYNC220  it returns at once
                [sys.executable, "-m", "tests.faults.producer", proxy.url, str(first)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            output, _ = await asyncio.to_thread(producer.communicate, timeout=PATIENCE_SECONDS)
            acknowledged.update(map(int, output.split()))
            unanswered += 1

    bus, journal, tally = Bus(own_redis.url), Journal(tmp_path / "journal"), Tally()
    async with in_background(journal_all(bus, journal, tally)):
        await until_drained(bus)
    held = journalled(journal)
    lost = acknowledged - set(held)
    print_figures(
        "producer killed before the reply",
        kills=count,
        acknowledged=len(acknowledged),
        unanswered=unanswered,
        journalled=len(held),
        lost=len(lost),
        doubled=len(held) - len(set(held)),
    )
    assert lost == set()
    # Also contains the trajectories whose acknowledgement did not arrive.
    assert sorted(held) == list(range(count * (BEFORE_THE_KILL + 1)))
    assert len(acknowledged) == count * BEFORE_THE_KILL
    assert await bus.length(DEAD) == 0
    await bus.close()
    journal.close()


@rounds(3, 20)
async def test_a_killed_redis_loses_no_acknowledged_trajectory(
    own_redis: RedisServer, tmp_path: Path, count: int
) -> None:
    producer, reader = Bus(own_redis.url), Bus(own_redis.url)
    journal, tally = Journal(tmp_path / "journal"), Tally()
    async with in_background(journal_all(reader, journal, tally)):
        async with in_background(_produce(producer, tally)):
            for _ in steps(count):
                await _sent_for(tally, seconds=0.2)
                await asyncio.to_thread(own_redis.stop, kill=True)
                await asyncio.to_thread(own_redis.start)
            await _sent_for(tally, seconds=0.0)
        await until_drained(reader)
    held = journalled(journal)
    lost = tally.sent.keys() - set(held)
    print_figures(
        "redis killed, every write synced",
        kills=count,
        acknowledged=len(tally.sent),
        delivered=tally.delivered,
        journalled=len(held),
        lost=len(lost),
        doubled=len(held) - len(set(held)),
    )
    assert lost == set()
    assert len(held) == len(set(held))
    assert tally.delivered == len(held) + tally.doubled
    await producer.close()
    await reader.close()
    journal.close()


@pytest.mark.parametrize("dies", ["process", "machine"])
@rounds(1, 10)
async def test_a_redis_that_syncs_each_second_loses_at_most_two_seconds(
    tmp_path: Path, count: int, dies: str
) -> None:
    """The process is killed, or the machine dies and unsynced data is lost."""
    server = RedisServer(tmp_path / "redis", free_port(), appendfsync="everysec")
    server.start()
    if dies == "machine":
        await _skip_without_waitaof(server)
    bus, journal, tally = Bus(server.url), Journal(tmp_path / "journal"), Tally()
    producers = [Bus(server.url) for _ in range(FLOOD_PRODUCERS)]
    synced = Synced(server)
    deaths: list[tuple[float, float]] = []  # time of the kill, and of the recovery
    cut = 0
    async with in_background(*(_flood(producer, tally, n) for n, producer in enumerate(producers))):
        for _ in steps(count):
            async with synced.watching() if dies == "machine" else contextlib.nullcontext():
                await _sent_for(tally, seconds=2.0)
                died = time.monotonic()
                await asyncio.to_thread(server.stop, kill=True)
            if dies == "machine":
                cut += synced.cut_the_rest()
            await asyncio.to_thread(server.start)
            deaths.append((died, time.monotonic()))
    async with in_background(journal_all(bus, journal, tally)):
        await until_drained(bus)
    held = journalled(journal)
    lost = tally.sent.keys() - set(held)
    before_death = [
        max(next(died for died, back in deaths if tally.sent[seed] <= back) - tally.sent[seed], 0.0)
        for seed in lost
    ]
    print_figures(
        f"redis synced each second, its {dies} dies",
        times=count,
        acknowledged=len(tally.sent),
        journalled=len(held),
        bytes_cut=cut,
        lost=len(lost),
        longest_before_it_died_seconds=round(max(before_death, default=0.0), 2),
        busy_seconds=round(synced.late, 2),
        doubled=len(held) - len(set(held)),
    )
    assert len(held) == len(set(held))
    assert max(before_death, default=0.0) < 2.0 + synced.late
    for client in (bus, *producers):
        await client.close()
    journal.close()
    server.stop()


async def _skip_without_waitaof(server: RedisServer) -> None:
    async with Redis.from_url(server.url) as redis:
        version = (await redis.info("server"))["redis_version"]
    if tuple(int(part) for part in version.split(".")[:2]) < (7, 2):
        server.stop()
        pytest.skip(f"Redis {version} cannot report what it has synced: WAITAOF needs 7.2")


class Synced:
    """How much of the append-only file is synced to the disk, as the server reports it (WAITAOF).

    After a process is killed, the kernel still has everything that it wrote, so the file does not show what
    the death of the machine would lose. Therefore marks are written continuously. If the server reports a
    mark as synced, everything before it is on the disk, and everything after the newest such mark may be
    lost. The test assumes that a disk keeps synced data.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._numbers = itertools.count()
        self._newest = -1
        self.late = 0.0  # seconds by which a busy machine delayed a mark

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Write marks until the server dies."""
        async with (
            Redis.from_url(self._server.url, retry=Retry(NoBackoff(), 0), socket_timeout=None) as redis,
            asyncio.TaskGroup() as marks,
        ):
            await redis.config_set("auto-aof-rewrite-percentage", 0)  # a single file, without rewrites
            setting = marks.create_task(self._set_marks(redis, marks))
            yield
            setting.cancel()

    async def _set_marks(self, redis: Redis, marks: asyncio.TaskGroup) -> None:
        due = time.monotonic()
        while True:
            marks.create_task(self._mark(redis, next(self._numbers)))
            due = max(due + MARK_SECONDS, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            self.late = max(self.late, time.monotonic() - due)

    async def _mark(self, redis: Redis, number: int) -> None:
        with contextlib.suppress(RedisConnectionError):  # the server is dead
            async with redis.client() as connection:
                await connection.set("mark", _mark(number))
                if (await connection.waitaof(1, 0, 0))[0]:
                    self._newest = max(self._newest, number)

    def cut_the_rest(self) -> int:
        """Truncate the file after the newest synced mark; returns the number of bytes removed."""
        (log,) = (self._server.folder / "appendonlydir").glob("*.incr.aof")
        assert self._newest >= 0, "the server synced nothing of what it was sent"
        written = log.read_bytes()
        mark = _mark(self._newest)
        end = written.index(mark) + len(mark) + len(b"\r\n")
        os.truncate(log, end)
        return len(written) - end


def _mark(number: int) -> bytes:
    return b"mark-%09d" % number


async def _flood(bus: Bus, tally: Tally, producer: int) -> None:
    """Send batches continuously, faster than the disk syncs them."""
    for first in itertools.count(producer * 10_000_000, FLOOD_BATCH):
        seeds = range(first, first + FLOOD_BATCH)
        messages = [encode_trajectory(random_trajectory(seed)) for seed in seeds]
        await bus.append_all(TRAJECTORIES, messages)
        tally.sent.update(dict.fromkeys(seeds, time.monotonic()))


async def _produce(bus: Bus, tally: Tally) -> None:
    for seed in itertools.count():
        await send(bus, seed, tally)


async def _sent_for(tally: Tally, seconds: float) -> None:
    """Wait until a trajectory is acknowledged at least `seconds` from now."""
    begin = time.monotonic()
    await until(lambda: next(reversed(tally.sent.values()), 0.0) >= begin + seconds)
