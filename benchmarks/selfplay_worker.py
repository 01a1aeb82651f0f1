"""Measures time and memory of one self-play process from inside the process.

Like the service, the process reads a data set, plays batches and sends each to Redis. The real calls are
timed while they run. Two agents with the same weights alternate, so that every batch starts with an empty
cache of embeddings, like the first batch of a new version.
"""

import asyncio
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from itertools import cycle
from pathlib import Path
from threading import Barrier
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import numpy as np
from redis import Redis

from services.selfplay.settings import SelfPlaySettings
from services.selfplay.worker import SelfPlayWorker
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.dataset import read_dataset
from shared.agent import rollout
from shared.agent.agent import Agent, StoredWeights
from shared.agent.trajectory import Trajectory
from shared.engine.precision import Precision
from shared.environment.environment import Lanes
from shared.errors import ServiceError
from shared.messages.codec import encode_trajectory
from shared.messages.streams import TRAJECTORIES
from shared.runtime.logs import configure_logs

#: The parts of a step. The rest is random numbers, records and lookups of embeddings.
NETWORK, ENCODING, TREE, ENVIRONMENT, SENDING = "network", "encoding", "tree", "environment", "sending"
PARTS = (NETWORK, ENCODING, TREE, ENVIRONMENT, SENDING)
_DECIDING = "deciding"  # network and tree

_NETWORK_CALLS = ("roots", "afterstates", "successors", "policies")
_ENCODER_CALLS = ("embed_span",)

#: The network calls of one decision in this many are recorded and repeated.
SAMPLED = 20
REPEATS = 5

#: Timeout for the start of the other processes.
PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Task:
    """The measurement of one process."""

    settings: SelfPlaySettings  # data set, Redis, lanes, search, environment
    weights: StoredWeights
    precision: Precision
    seconds: float  # minimum duration
    seed: int
    core: int  # core for the process


@dataclass(frozen=True)
class Timed:
    """The time of one batch, including sending without waiting for Redis."""

    seconds: float
    parts: dict[str, float]  # seconds of each of `PARTS`


@dataclass(frozen=True)
class Resident:
    """Resident memory of the process, including data set and code."""

    megabytes: float  # at the end
    peak_megabytes: float  # includes reading the data set
    growth_percent_per_hour: float


@dataclass(frozen=True)
class WorkerReport:
    """The results of one process."""

    lanes: int
    steps_per_batch: int
    batches: int
    seconds: float  # total of all batches
    quickest: Timed  # the fastest batch
    bound_seconds: float  # time of the network evaluations of a batch alone
    resident: Resident

    @property
    def steps_per_second(self) -> float:
        """Mean over all batches."""
        return self.batches * self.steps_per_batch / self.seconds


_barrier: Barrier | None = None


def join(barrier: Barrier) -> None:
    """Set the barrier at which the process waits for the others before it measures."""
    global _barrier  # noqa: PLW0603  the initializer of a process pool can pass values only in this way
    _barrier = barrier


def measure(task: Task) -> WorkerReport:
    """Play and measure one process.

    Raises:
        DataError: the data set cannot be read or has no session.
        ServiceError: another process failed, so the processes cannot be measured together.
    """
    os.sched_setaffinity(0, {task.core})
    configure_logs("selfplay", f"core-{task.core}", level="WARNING", form="console")  # no logs on stdout
    try:
        player = _Player(task)
        player.batch()  # compiles, and allocates the memory
    except BaseException:
        if _barrier:
            _barrier.abort()
        raise
    if _barrier:
        try:
            _barrier.wait(PATIENCE_SECONDS)
        except RuntimeError as broken:
            raise ServiceError("another self-play process of this benchmark did not start") from broken
    begin = perf_counter()
    batches: list[Timed] = []
    memory: list[tuple[float, float]] = []
    while perf_counter() - begin < task.seconds or len(batches) < 2:
        batches.append(player.batch())
        memory.append((perf_counter() - begin, resident_bytes()))
    report = WorkerReport(
        lanes=task.settings.selfplay.lanes,
        steps_per_batch=player.worker.steps_per_batch,
        batches=len(batches),
        seconds=sum(batch.seconds for batch in batches),
        quickest=min(batches, key=lambda batch: batch.seconds),
        bound_seconds=player.bound_seconds(),
        resident=Resident(
            memory[-1][1] / 1e6,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
            growth_percent_per_hour(memory),
        ),
    )
    player.close()
    return report


def resident_bytes() -> float:
    """Resident memory of this process."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def growth_percent_per_hour(memory: Sequence[tuple[float, float]]) -> float:
    """Slope of a regression line through the last four fifths of the samples, relative to their mean.

    Args:
        memory: samples of seconds and bytes.
    """
    later = np.array(memory[len(memory) // 5 :])
    if len(later) < 2:
        return 0.0
    seconds, size = later.T
    slope = np.polyfit(seconds - seconds.mean(), size, 1)[0]
    return float(100.0 * 3600.0 * slope / size.mean())


class _Player:
    """A worker with its agents, bus and Redis, whose calls are timed."""

    def __init__(self, task: Task) -> None:
        settings = task.settings
        generator = np.random.default_rng([task.seed, task.core])
        dataset = read_dataset(settings.dataset)
        self.worker = SelfPlayWorker.of(f"core-{task.core}", dataset, settings, generator)
        del dataset  # frees what the worker does not use, as in the service
        self._agents = cycle([Agent(task.weights, version, task.precision) for version in (0, 1)])
        url = settings.redis_address
        self._loop, self._bus, self._redis = asyncio.Runner(), Bus(url), Redis.from_url(url)

    def close(self) -> None:
        self._loop.run(self._bus.close())
        self._loop.close()
        self._redis.close()

    def batch(self) -> Timed:
        """Play a batch and send it."""
        spent = dict.fromkeys((*PARTS, _DECIDING), 0.0)
        agent = next(self._agents)
        begin = perf_counter()
        with _timed_calls(agent, spent):
            finished = self.worker.play(agent, 0, lambda: False)
        seconds = perf_counter() - begin
        # A worker continues to play while it waits for Redis, so sending costs only CPU time.
        begin = process_time()
        self._send(finished)
        spent[SENDING] = process_time() - begin
        seconds += spent[SENDING]
        self._redis.delete(TRAJECTORIES.key)
        spent[TREE] = spent.pop(_DECIDING) - spent[NETWORK]
        return Timed(seconds, spent)

    def _send(self, finished: Sequence[Trajectory]) -> None:
        messages = [encode_trajectory(trajectory) for trajectory in finished]
        self._loop.run(self._bus.append_all(TRAJECTORIES, messages))

    def bound_seconds(self) -> float:
        """Time of the network evaluations of a batch alone.

        Repeats all passes of the encoder, and the calls of every `SAMPLED`th decision. The time of those
        calls is scaled to all decisions.
        """
        agent = next(self._agents)
        encoding: list[Callable[[], object]] = []
        decisions: list[list[Callable[[], object]]] = []

        def recording(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def record(*arguments: Any) -> Any:
                if name in _ENCODER_CALLS:
                    encoding.append(partial(call, *arguments))
                    return call(*arguments)
                if name == "roots":
                    decisions.append([])
                if len(decisions) % SAMPLED == 1:
                    decisions[-1].append(partial(call, *(np.array(argument) for argument in arguments)))
                return call(*arguments)

            return record

        with _replaced(agent, (*_NETWORK_CALLS, *_ENCODER_CALLS), recording):
            self.worker.play(agent, 0, lambda: False)
        sampled = [calls for calls in decisions if calls]
        deciding = sum(_least_seconds(calls) for calls in sampled)
        return _least_seconds(encoding) + deciding * len(decisions) / len(sampled)


def _least_seconds(calls: Sequence[Callable[[], object]]) -> float:
    """The fastest of `REPEATS` repetitions of all calls in order."""
    least = float("inf")
    for _ in range(REPEATS):
        begin = perf_counter()
        for call in calls:
            call()
        least = min(least, perf_counter() - begin)
    return least


@contextmanager
def _timed_calls(agent: Agent, spent: dict[str, float]) -> Iterator[None]:
    """Add the time of the agent, the decisions and the environment to `spent` by part."""

    def timing(part: str) -> Callable[[str, Callable[..., Any]], Callable[..., Any]]:
        return lambda _, call: _timed(part, call, spent)

    with ExitStack() as stack:
        stack.enter_context(_replaced(agent, _NETWORK_CALLS, timing(NETWORK)))
        stack.enter_context(_replaced(agent, _ENCODER_CALLS, timing(ENCODING)))
        stack.enter_context(_replaced(rollout, ("decide",), timing(_DECIDING)))
        stack.enter_context(_replaced(rollout, ("reset", "step"), timing(ENVIRONMENT)))
        stack.enter_context(_replaced(Lanes, ("static",), timing(ENVIRONMENT)))
        yield


@contextmanager
def _replaced(
    owner: object, names: Sequence[str], by: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(owner, name, by(name, getattr(owner, name))))
        yield


def _timed(part: str, call: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    @wraps(call)
    def timed(*arguments: Any, **named: Any) -> Any:
        with _timing(part, spent):
            return call(*arguments, **named)

    return timed


@contextmanager
def _timing(part: str, spent: dict[str, float]) -> Iterator[None]:
    begin = perf_counter()
    yield
    spent[part] += perf_counter() - begin
