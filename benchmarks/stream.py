"""Trajectories per second through the stream, against raw pipelined commands with the same payload.

A Redis of the benchmark's own syncs every write, as the shipped one does. The yardstick is redis-py's
pipeline of plain XADD, and of XREADGROUP, XACK and XDEL, with payloads made beforehand: no schemas, no
retries, no decoding. What the journal's sync costs is told beside it.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
from redis.asyncio import Redis

from benchmarks.learner import random_trajectory
from benchmarks.measure import Measurement
from services.trainer.journal import Journal
from shared.adapters.bus import READ_COUNT, Bus
from shared.agent.trajectory import Trajectory
from shared.messages.codec import decode_trajectory, encode, encode_trajectory
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from shared.runtime.redis_server import RedisServer, free_port

#: The goal in docs/benchmarks.md.
GOAL_SHARE = 0.8

#: Trajectories in one exchange, as a worker of 16 lanes sends them.
PIPELINE = 16

_RAW_KEY = "benchmark:raw"


@dataclass(frozen=True)
class StreamSpeed:
    """Trajectories per second, and bytes of one as it is stored."""

    count: int
    entry_bytes: int
    append_per_second: float
    raw_append_per_second: float
    consume_per_second: float  # decoded and acknowledged
    raw_consume_per_second: float
    journal_per_second: float  # appended and synced, in the batches that the stream gives

    @property
    def measurements(self) -> list[Measurement]:
        """As rows; the journal stands beside what Redis makes of the same payload, synced as well."""
        of = f"{self.count:,} trajectories of {self.entry_bytes / 1000:.1f} kB"
        rows = (
            ("appended", self.append_per_second, "raw XADD", self.raw_append_per_second, GOAL_SHARE),
            (
                "decoded and acknowledged",
                self.consume_per_second,
                "raw XREADGROUP, XACK, XDEL",
                self.raw_consume_per_second,
                GOAL_SHARE,
            ),
            ("journalled", self.journal_per_second, "raw XADD", self.raw_append_per_second, None),
        )
        return [
            Measurement(
                name=f"{of} {done}",
                value=value,
                unit="trajectories/s",
                yardstick=f"{raw} of such payloads",
                yardstick_value=raw_value,
                smaller_is_better=False,
                goal_ratio=goal,
            )
            for done, value, raw, raw_value, goal in rows
        ]


def bench_stream(count: int = 1_024, *, seed: int = 0) -> StreamSpeed:
    """Send some trajectories through the stream, and read them.

    Args:
        count: trajectories, in whole pipelines.
        seed: of what is in them.
    """
    rng = np.random.default_rng(seed)
    few = [random_trajectory(rng, number) for number in range(PIPELINE)]
    rounds = max(count // PIPELINE, 1)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis", free_port())
        server.start()
        try:
            append, raw_append, consume, raw_consume = asyncio.run(_streams(server.url, few, rounds))
        finally:
            server.stop()
        journal = _journal(Path(folder) / "journal", rng, rounds)
    total = rounds * PIPELINE
    return StreamSpeed(
        count=total,
        entry_bytes=sum(len(value) for value in encode(*encode_trajectory(few[0])).values()),
        append_per_second=total / append,
        raw_append_per_second=total / raw_append,
        consume_per_second=total / consume,
        raw_consume_per_second=total / raw_consume,
        journal_per_second=total / journal,
    )


async def _streams(url: str, few: Sequence[Trajectory], rounds: int) -> tuple[float, float, float, float]:
    """Seconds of appending and consuming, ours and raw; the two take turns."""
    bus, redis = Bus(url), Redis.from_url(url, protocol=2)
    payloads = [cast("dict[Any, Any]", encode(*encode_trajectory(trajectory))) for trajectory in few]
    ours = raw = 0.0
    for _ in range(rounds):
        start = perf_counter()
        await bus.append_all(TRAJECTORIES, [encode_trajectory(trajectory) for trajectory in few])
        middle = perf_counter()
        async with redis.pipeline(transaction=False) as pipe:
            for fields in payloads:
                pipe.xadd(_RAW_KEY, fields)
            await pipe.execute()
        ours, raw = ours + middle - start, raw + perf_counter() - middle
    consumed = await _consumed(bus, rounds * PIPELINE)
    raw_consumed = await _consumed_raw(redis, rounds * PIPELINE)
    await bus.close()
    await redis.aclose()
    return ours, raw, consumed, raw_consumed


async def _consumed(bus: Bus, count: int) -> float:
    start, done = perf_counter(), 0
    async for batch in bus.consume(TRAJECTORIES, TRAINER_GROUP, "benchmark"):
        for entry in batch.entries:
            decode_trajectory(entry.message, entry.arrays)
        await batch.ack()
        done += len(batch.entries)
        if done >= count:
            break
    return perf_counter() - start


async def _consumed_raw(redis: Redis, count: int) -> float:
    await redis.xgroup_create(_RAW_KEY, "raw", id="0")
    start, done = perf_counter(), 0
    while done < count:
        reply = await redis.xreadgroup("raw", "one", {_RAW_KEY: ">"}, count=READ_COUNT)
        ids = [entry_id for entry_id, _ in cast("Any", reply)[0][1]]
        async with redis.pipeline(transaction=True) as pipe:
            pipe.xack(_RAW_KEY, "raw", *ids)
            pipe.xdel(_RAW_KEY, *ids)
            await pipe.execute()
        done += len(ids)
    return perf_counter() - start


def _journal(folder: Path, rng: np.random.Generator, rounds: int) -> float:
    """Seconds of appending different trajectories, a pipeline's worth at a time."""
    journal, seconds = Journal(folder), 0.0
    for number in range(rounds):
        batch = [random_trajectory(rng, number) for _ in range(PIPELINE)]
        start = perf_counter()
        journal.append(batch)
        seconds += perf_counter() - start
    journal.close()
    return seconds
