"""Runs mctx in its own process on one core, so that it uses one thread and does not disturb others.

XLA starts a thread for every core of the process, so the process pins itself to one core before it imports
jax. The caller stays on the same core (`on_one_core`), and the two alternate: while one measures, the other
waits for a message.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from time import perf_counter
from types import TracebackType
from typing import Self

from benchmarks.peers.situations import Encoding, Situations
from shared.errors import ServiceError
from shared.model.config import ModelConfig
from shared.numeric import Float32
from shared.search.config import SearchConfig

PACKAGES = ("jax", "mctx")

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

STOP_SECONDS = 10.0


@dataclass(frozen=True)
class _Round:
    situations: Situations
    simulations: int
    encoding: Encoding
    seconds: float


def mctx_missing() -> str | None:
    """The reason why mctx cannot be measured; None if it can."""
    absent = [package for package in PACKAGES if find_spec(package) is None]
    if absent:
        verb, them = ("is", "it") if len(absent) == 1 else ("are", "both")
        return f"{' and '.join(absent)} {verb} not installed; the extra `dev` includes {them}"
    if not hasattr(os, "sched_setaffinity"):
        return "this system cannot pin a process to one core"
    return None


@contextmanager
def on_one_core() -> Iterator[int]:
    """Pin this thread to one of its cores; yields the number of the core."""
    cores = os.sched_getaffinity(0)
    core = max(cores)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, cores)


def least_seconds(function: Callable[[], object], seconds: float) -> float:
    """The shortest time of a call, in seconds, over calls for `seconds` and at least one call."""
    least = float("inf")
    end = perf_counter() + seconds
    while True:
        begin = perf_counter()
        function()
        now = perf_counter()
        least = min(least, now - begin)
        if now >= end:
            return least


class MctxProcess:
    """A process that measures mctx on request; a context manager."""

    def __init__(
        self, weights: Mapping[str, Float32], model: ModelConfig, config: SearchConfig, core: int
    ) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._connection, theirs = spawning.Pipe()
        arguments = (theirs, core, dict(weights), model, config)
        self._process = spawning.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def least_seconds(
        self, situations: Situations, simulations: int, encoding: Encoding, seconds: float
    ) -> float:
        """The shortest time of the decisions, in seconds, over repetitions for `seconds`.

        The first call with new sizes also compiles.

        Raises:
            ServiceError: the process exited.
        """
        try:
            self._connection.send(_Round(situations, simulations, encoding, seconds))
            return float(self._connection.recv())
        except (EOFError, BrokenPipeError, ConnectionResetError) as ended:
            self._process.join(STOP_SECONDS)
            raise ServiceError(
                f"the process that measures mctx exited with status {self._process.exitcode}; "
                "its output is on stderr"
            ) from ended


def _serve(
    connection: "Connection[float, _Round]",
    core: int,
    weights: dict[str, Float32],
    model: ModelConfig,
    config: SearchConfig,
) -> None:
    os.sched_setaffinity(0, {core})
    os.environ.update(ENVIRONMENT)
    from benchmarks.peers.mctx_search import MctxSearch  # starts the threads of XLA

    search = MctxSearch(weights, model, config)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        situations, encoding = task.situations, task.encoding
        observed = situations.temporal if encoding is Encoding.SHARED else situations.windows
        decide = partial(
            search.decide, observed, situations.static, ~situations.legal, task.simulations, encoding
        )
        connection.send(least_seconds(decide, task.seconds))
