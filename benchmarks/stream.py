"""Trajectories per second through the stream, compared with redis-benchmark and raw pipelines.

The benchmark starts a Redis with fsync on every write, like the deployed one. All clients send and read the
same payloads in batches of the same size, each over one connection, and alternate:

- The bus of this project encodes, retries, decodes and checks entries.
- redis-benchmark, or that of Valkey, runs if it is on PATH. It sends XADD, then XREADGROUP and a script that
  acknowledges and deletes the oldest pending entries, because it cannot send the ids that it read. It cuts
  its input at a zero byte, so the payload has ones instead of zeros.
- Pipelines of redis-py send XADD, then XREADGROUP, XACK and XDEL, with payloads encoded in advance.

The last two do not decode entries, so the bus is also measured without decoding. With decoding, it is also
compared with a redis-py reader that only detects damaged trajectories and returns the arrays: JSON, SHA-256
and NumPy views.

The benchmark also measures each step of a trajectory from the worker into the replay.
"""

import asyncio
import hashlib
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from redis.asyncio import Redis

from benchmarks.learner import random_trajectory
from benchmarks.measure import Measurement
from services.trainer.config import LearnerConfig, ReplayConfig
from services.trainer.intake.journal import Journal
from services.trainer.replay.buffer import Replay
from services.trainer.replay.targets import unrolled_steps
from shared.adapters.streams.bus import Bus
from shared.adapters.streams.entries import READ_COUNT
from shared.agent.trajectory import Trajectory
from shared.errors import ServiceError
from shared.messages.codec import decode_trajectory, encode, encode_trajectory
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from shared.search.config import SearchConfig

#: The goal in docs/benchmarks.md.
GOAL_SHARE = 0.8

#: Trajectories per batch, as a worker with 16 lanes sends them.
PIPELINE = 16

#: Repetitions of each client. The fastest counts.
TURNS = 8

_RAW_KEY, _BENCHMARK_KEY, _GROUP = "benchmark:redis-py", "benchmark:redis-benchmark", "benchmark"

#: KEYS: stream. ARGV: group, number of oldest pending entries to acknowledge and delete.
_REMOVE_OLDEST = """
local ids = {}
for at, entry in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[2])) do ids[at] = entry[1] end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
return redis.call('XDEL', KEYS[1], unpack(ids))
"""


@dataclass(frozen=True)
class Rates:
    """Trajectories per second of one client."""

    name: str
    append: float
    consume: float  # read, acknowledge and delete


@dataclass(frozen=True)
class StepCosts:
    """Microseconds per trajectory of each step from the worker to the replay."""

    encode: float
    append: float
    read: float  # includes checking envelope and header
    decode: float
    journal: float  # encoding with a checksum, and writing
    sync: float
    acknowledge: float
    insert: float  # includes computing the targets

    @property
    def rows(self) -> list[tuple[str, float]]:
        """The description and microseconds of each step."""
        names = {
            "encode": "encode",
            "append": "XADD, synced by Redis",
            "read": "XREADGROUP, header checked",
            "decode": "decode and check the arrays",
            "journal": "append to the journal",
            "sync": "sync the journal",
            "acknowledge": "XACK and XDEL, synced by Redis",
            "insert": "find targets, insert into the replay",
        }
        return [(names[field.name], getattr(self, field.name)) for field in fields(self)]


@dataclass(frozen=True)
class StreamSpeed:
    """Trajectories per second, bytes per stored trajectory, and the time of each step."""

    count: int
    entry_bytes: int
    ours: Rates  # with decoding and checks
    raw: Rates
    tool: Rates | None  # None if redis-benchmark is not on PATH
    undecoded: float  # trajectories per second of ours, read and acknowledged without decoding
    raw_decoded: float  # trajectories per second of redis-py with minimal decoding
    steps: StepCosts

    @property
    def measurements(self) -> list[Measurement]:
        """The comparisons. The goals are for redis-benchmark or, without it, for redis-py."""
        rows = [
            (
                name,
                value,
                f"{yardstick.name} {command}",
                yardstick_value,
                yardstick is (self.tool or self.raw),
            )
            for yardstick in (self.tool, self.raw)
            if yardstick is not None
            for name, value, command, yardstick_value in (
                ("append", self.ours.append, "XADD", yardstick.append),
                ("consume", self.ours.consume, "XREADGROUP, XACK, XDEL", yardstick.consume),
                ("consume undecoded", self.undecoded, "XREADGROUP, XACK, XDEL", yardstick.consume),
            )
        ]
        least = f"{self.raw.name}, json, SHA-256, NumPy's views"
        return [
            Measurement(
                name=f"{name}, {self.entry_bytes / 1000:.1f} kB",
                value=value,
                unit="/s",
                yardstick=yardstick,
                yardstick_value=yardstick_value,
                smaller_is_better=False,
                goal_ratio=GOAL_SHARE if has_goal and name != "consume undecoded" else None,
            )
            for name, value, yardstick, yardstick_value, has_goal in (
                *rows,
                ("consume", self.ours.consume, least, self.raw_decoded, False),
            )
        ]


def bench_stream(count: int = 1_024, *, seed: int = 0) -> StreamSpeed:
    """Send trajectories through the stream and read them.

    Args:
        count: number of trajectories, rounded down to a multiple of `TURNS * READ_COUNT`.
        seed: seed of the contents.
    Raises:
        ServiceError: no Redis server is installed, or redis-benchmark failed.
    """
    rng = np.random.default_rng(seed)
    few = [random_trajectory(rng, number) for number in range(PIPELINE)]
    reads = max(count // (TURNS * READ_COUNT), 1)
    total = TURNS * reads * READ_COUNT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder / "redis", free_port())
        server.start()
        try:
            rates, readers, steps = asyncio.run(_measured(server, few, reads, folder / "journal", rng))
        finally:
            server.stop()
    ours, raw, *tool = rates
    return StreamSpeed(
        count=total,
        entry_bytes=sum(len(value) for value in encode(*encode_trajectory(few[0])).values()),
        ours=ours,
        raw=raw,
        tool=tool[0] if tool else None,
        undecoded=readers["undecoded"],
        raw_decoded=readers["raw decoded"],
        steps=steps,
    )


async def _measured(
    server: RedisServer, few: Sequence[Trajectory], reads: int, folder: Path, rng: np.random.Generator
) -> tuple[list[Rates], dict[str, float], StepCosts]:
    bus, redis = Bus(server.url), Redis.from_url(server.url, protocol=2)
    try:
        rates, readers = await _turns(server, bus, redis, few, reads)
        return rates, readers, await _steps(bus, folder, rng, TURNS * reads * READ_COUNT // PIPELINE)
    finally:
        await bus.close()
        await redis.aclose()


async def _turns(
    server: RedisServer, bus: Bus, redis: Redis, few: Sequence[Trajectory], reads: int
) -> tuple[list[Rates], dict[str, float]]:
    """Measure this project's bus, redis-py and redis-benchmark, if present, in alternation.

    Each sends all entries and then reads all. Also returns the rates of the bus without decoding and of
    redis-py with decoding.
    """
    path = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    tool = _Tool(path, server, few[0]) if path else None
    for key in (_RAW_KEY, *([_BENCHMARK_KEY] if tool else [])):
        await redis.xgroup_create(key, _GROUP, id="0", mkstream=True)
    spent: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(TURNS):
        spent["append"].append(await _appended(bus, few, reads))
        spent["raw append"].append(await _appended_raw(redis, few, reads))
        if tool:
            spent["tool append"].append(await asyncio.to_thread(tool.append, reads))
            await tool.check(redis)
        spent["consume"].append(await _consumed(bus, reads))
        spent["raw consume"].append(await _consumed_raw(redis, reads))
        await _appended(bus, few, reads)
        spent["undecoded"].append(await _consumed(bus, reads, decoded=False))
        await _appended_raw(redis, few, reads)
        spent["raw decoded"].append(await _consumed_raw(redis, reads, decoded=True))
        if tool:
            spent["tool consume"].append(await asyncio.to_thread(tool.consume, reads))
        left = {key: await redis.xlen(key) for key in (TRAJECTORIES.key, _RAW_KEY, _BENCHMARK_KEY)}
        if any(left.values()):
            raise ServiceError(f"bench stream: entries are left unread: {left}")
    clients = [("this", ""), ("redis-py", "raw "), *([(Path(path).name, "tool ")] if path else [])]
    turn = reads * READ_COUNT
    rates = [
        Rates(name, turn / min(spent[f"{prefix}append"]), turn / min(spent[f"{prefix}consume"]))
        for name, prefix in clients
    ]
    return rates, {name: turn / min(spent[name]) for name in ("undecoded", "raw decoded")}


async def _appended(bus: Bus, few: Sequence[Trajectory], reads: int) -> float:
    start = perf_counter()
    for _ in range(reads * READ_COUNT // PIPELINE):
        await bus.append_all(TRAJECTORIES, [encode_trajectory(trajectory) for trajectory in few])
    return perf_counter() - start


async def _appended_raw(redis: Redis, few: Sequence[Trajectory], reads: int) -> float:
    payloads = [cast("dict[Any, Any]", encode(*encode_trajectory(trajectory))) for trajectory in few]
    start = perf_counter()
    for _ in range(reads * READ_COUNT // PIPELINE):
        async with redis.pipeline(transaction=False) as pipe:
            for payload in payloads:
                pipe.xadd(_RAW_KEY, payload)
            await pipe.execute()
    return perf_counter() - start


async def _consumed(bus: Bus, reads: int, *, decoded: bool = True) -> float:
    start, done = perf_counter(), 0
    async for batch in bus.consume(TRAJECTORIES, TRAINER_GROUP, "benchmark"):
        if decoded:
            for entry in batch.entries:
                decode_trajectory(entry.message, entry.arrays)
        await batch.ack()
        done += len(batch.entries)
        if done >= reads * READ_COUNT:
            break
    return perf_counter() - start


async def _consumed_raw(redis: Redis, reads: int, *, decoded: bool = False) -> float:
    start = perf_counter()
    for _ in range(reads):
        reply = await redis.xreadgroup(_GROUP, "one", {_RAW_KEY: ">"}, count=READ_COUNT)
        entries = cast("Any", reply)[0][1]
        ids = [entry_id for entry_id, _ in entries]
        if decoded:
            for _, fields_read in entries:
                _minimally_decoded(fields_read)
        async with redis.pipeline(transaction=True) as pipe:
            pipe.xack(_RAW_KEY, _GROUP, *ids)
            pipe.xdel(_RAW_KEY, *ids)
            await pipe.execute()
    return perf_counter() - start


def _minimally_decoded(entry: Mapping[bytes, bytes]) -> list[np.ndarray[Any, Any]]:
    """The arrays of a trajectory, with no check except the hash."""
    header, blob = json.loads(entry[b"body"]), entry[b"arrays"]
    if hashlib.sha256(blob).hexdigest() != header["arrays_sha256"]:
        raise ServiceError("bench stream: the SHA-256 of the arrays differs from that in the header")
    arrays, offset = [], 0
    for column in header["arrays"]:
        array = np.frombuffer(blob, column["dtype"], math.prod(column["shape"]), offset)
        offset += array.nbytes
        arrays.append(array.reshape(column["shape"]))
    return arrays


class _Tool:
    """redis-benchmark with one client and one payload. It measures the time itself."""

    def __init__(self, path: str, server: RedisServer, trajectory: Trajectory) -> None:
        self._base = [path, "-p", str(server.port), "-a", server.password, "-c", "1", "--csv"]
        payload = encode(*encode_trajectory(trajectory))
        self._arrays = payload.pop("arrays").replace(b"\0", b"\1")
        self._entry_bytes = len(self._arrays) + sum(map(len, payload.values()))
        words = [word for name, value in payload.items() for word in (name, value.decode())]
        self._add = ["XADD", _BENCHMARK_KEY, "*", *words, "arrays"]

    def append(self, reads: int) -> float:
        """Seconds to append the entries of `reads` reads."""
        return self._run(reads * READ_COUNT, PIPELINE, ["-x"], self._add, self._arrays)

    async def check(self, redis: Redis) -> None:
        """Check the size of an appended entry.

        Raises:
            ServiceError: the size differs from the payload.
        """
        newest = cast("Any", await redis.xrevrange(_BENCHMARK_KEY, count=1))
        stored = sum(len(value) for _, entry in newest for value in entry.values())
        if stored != self._entry_bytes:
            raise ServiceError(f"{self._base[0]}: appended {stored} bytes, expected {self._entry_bytes}")

    def consume(self, reads: int) -> float:
        """Seconds to read, acknowledge and delete the entries."""
        count = str(READ_COUNT)
        read = ["XREADGROUP", "GROUP", _GROUP, "one", "COUNT", count, "STREAMS", _BENCHMARK_KEY, ">"]
        remove = ["EVAL", _REMOVE_OLDEST, "1", _BENCHMARK_KEY, _GROUP, count]
        return self._run(reads, 1, [], read) + self._run(reads, 1, [], remove)

    def _run(
        self, requests: int, pipeline: int, options: list[str], command: list[str], last: bytes = b""
    ) -> float:
        arguments = [*self._base, "-n", str(requests), "-P", str(pipeline), *options, *command]
        done = subprocess.run(arguments, input=last, capture_output=True, check=False)
        rows = done.stdout.decode(errors="replace").splitlines()
        try:
            return requests / float(rows[-1].rsplit('","', 7)[1].strip('"'))
        except (IndexError, ValueError, ZeroDivisionError) as unknown:
            output = (done.stderr.decode(errors="replace") or "\n".join(rows))[-300:]
            raise ServiceError(f"{self._base[0]}: expected CSV with a rate, got: {output}") from unknown


async def _steps(bus: Bus, folder: Path, rng: np.random.Generator, rounds: int) -> StepCosts:
    """Measure each step of different trajectories into journal and replay; the fastest round counts."""
    journal = Journal(folder)
    learner = LearnerConfig()
    replay = Replay(ReplayConfig(), learner.unroll_steps)
    spent: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def clock(step: str) -> Iterator[None]:
        start = perf_counter()
        yield
        spent[step].append(perf_counter() - start)

    sync, synced = os.fsync, 0.0

    def timed_sync(descriptor: int) -> None:
        nonlocal synced
        start = perf_counter()
        sync(descriptor)
        synced += perf_counter() - start

    def insert(trajectory: Trajectory, position: int) -> None:
        replay.extend(
            unrolled_steps(
                trajectory,
                position,
                discount=SearchConfig().discount,
                n=learner.n_step,
                unroll_steps=learner.unroll_steps,
            )
        )

    insert(random_trajectory(rng, 0), 0)  # compiles the kernel
    batches = bus.consume(TRAJECTORIES, TRAINER_GROUP, "benchmark")
    for number in range(rounds):
        trajectories = [random_trajectory(rng, number) for _ in range(PIPELINE)]
        with clock("encode"):
            messages = [encode_trajectory(trajectory) for trajectory in trajectories]
        with clock("append"):
            await bus.append_all(TRAJECTORIES, messages)
        with clock("read"):
            batch = await anext(batches)
        with clock("decode"):
            decoded = [decode_trajectory(entry.message, entry.arrays) for entry in batch.entries]
        synced = 0.0
        with patch("os.fsync", timed_sync), clock("journal"):
            journal.append(decoded)
        spent["sync"].append(synced)
        spent["journal"][-1] -= synced
        with clock("acknowledge"):
            await batch.ack()
        with clock("insert"):
            for trajectory in decoded:
                insert(trajectory, number)
    journal.close()
    return StepCosts(**{step: 1e6 * min(seconds) / PIPELINE for step, seconds in spent.items()})
