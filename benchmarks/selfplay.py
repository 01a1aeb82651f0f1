"""Steps per second of self-play workers, compared with their network evaluations alone.

Each worker is a process pinned to one core. It reads a data set, plays batches and sends them to a real Redis
with fsync on every write (benchmarks/selfplay_worker.py). The yardstick is the time of the same work if tree,
environment, records, random numbers and sending cost nothing.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import SecretStr

from benchmarks.measure import Measurement
from benchmarks.selfplay_worker import PARTS, SENDING, Task, WorkerReport, join, measure
from services.selfplay.config import SelfPlayConfig
from services.selfplay.settings import SelfPlaySettings
from shared.adapters.tables.dataset import write_dataset
from shared.agent.agent import StoredWeights
from shared.engine.precision import Precision
from shared.environment.environment import EnvironmentConfig
from shared.errors import SettingsError
from shared.market.synthetic import Market, synthesize
from shared.model.config import ModelConfig
from shared.model.network import initial_network
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from shared.search.config import SearchConfig

#: Goals in docs/benchmarks.md.
GOAL_SHARE = 0.7
GOAL_SENDING_PERCENT = 2.0
GOAL_BFLOAT16 = 2.0
GOAL_SCALING = 0.95  # speed of a worker among others, relative to one alone
GOAL_MEGABYTES = 1_000.0
GOAL_GROWTH_PERCENT = 2.0  # per hour

#: The number of bars that `up` synthesizes without data.
NUM_BARS = 100_000

#: The part of a batch's time outside `PARTS`.
REST = "rest"


@dataclass(frozen=True)
class SelfPlaySpeed:
    """The results of one precision: one worker alone, and several at once."""

    precision: Precision
    simulations: int
    num_bars: int
    alone: WorkerReport
    at_once: tuple[WorkerReport, ...] = ()

    @property
    def steps_per_second(self) -> float:
        """Steps per second of the worker alone in its fastest batch."""
        return self.alone.steps_per_batch / self.alone.quickest.seconds

    @property
    def episodes_per_hour(self) -> float:
        """Episodes per hour of the worker alone in its fastest batch."""
        return 3600.0 * self.alone.lanes / self.alone.quickest.seconds

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the time of the fastest batch by part; they sum to 1."""
        quickest = self.alone.quickest
        shares = {part: quickest.parts[part] / quickest.seconds for part in PARTS}
        return {**shares, REST: 1.0 - sum(shares.values())}

    @property
    def scaling(self) -> float | None:
        """Speed of all workers at once relative to one alone; None if there is only one."""
        if not self.at_once:
            return None
        return sum(one.steps_per_second for one in self.at_once) / self.alone.steps_per_second

    def measurements(self, *, soak: bool = False) -> list[Measurement]:
        """The comparisons; with `soak`, also the growth of memory over minutes of play."""
        of = f"{self.alone.lanes} lanes, {self.simulations} simulations, {self.precision}"
        rows = [
            Measurement(
                name=f"self-play, {of}: {self.episodes_per_hour:,.0f} episodes/hour",
                value=self.steps_per_second,
                unit="steps/s",
                yardstick="its network evaluations alone",
                yardstick_value=self.alone.steps_per_batch / self.alone.bound_seconds,
                smaller_is_better=False,
                goal_ratio=GOAL_SHARE,
                label=f"self-play, {of}: {self.episodes_per_hour:,.0f} episodes/hour",
            ),
            Measurement(
                name=f"encoding and XADD, {of}",
                value=100.0 * self.shares[SENDING],
                unit="% of a batch's time",
                yardstick="the whole batch",
                yardstick_value=100.0,
                goal_value=GOAL_SENDING_PERCENT,
                label=f"encoding and XADD, {self.precision}",
            ),
        ]
        if self.at_once:
            count = len(self.at_once)
            rows.append(
                Measurement(
                    name=f"{count} processes at once, {of}",
                    value=sum(one.steps_per_second for one in self.at_once),
                    unit="steps/s",
                    yardstick="one process alone",
                    yardstick_value=self.alone.steps_per_second,
                    smaller_is_better=False,
                    goal_ratio=GOAL_SCALING * count,
                    label=f"{count} processes at once, {self.precision}",
                )
            )
        resident = self.alone.resident
        rows.append(
            Measurement(
                name=f"resident memory on {self.num_bars:,} bars, {of}",
                value=resident.megabytes,
                unit="MB",
                yardstick="its peak, while the data set was read or later",
                yardstick_value=resident.peak_megabytes,
                goal_value=GOAL_MEGABYTES,
                label=f"resident memory, {self.precision}",
            )
        )
        if soak:
            minutes = self.alone.seconds / 60.0
            rows.append(
                Measurement(
                    name=f"resident memory an hour later, at its growth in {minutes:.3g} minutes",
                    value=resident.megabytes * (1.0 + resident.growth_percent_per_hour / 100.0),
                    unit="MB",
                    yardstick="now",
                    yardstick_value=resident.megabytes,
                    goal_ratio=1.0 / (1.0 + GOAL_GROWTH_PERCENT / 100.0),
                )
            )
        return rows


def bfloat16_measurement(speeds: Sequence[SelfPlaySpeed]) -> Measurement | None:
    """The speed of bfloat16 relative to float32; None if only one was measured."""
    by_precision = {speed.precision: speed for speed in speeds}
    if len(by_precision) < 2:
        return None
    fast, exact = by_precision[Precision.BFLOAT16], by_precision[Precision.FLOAT32]
    return Measurement(
        name=f"self-play in bfloat16, {fast.alone.lanes} lanes, {fast.simulations} simulations",
        value=fast.steps_per_second,
        unit="steps/s",
        yardstick="in float32",
        yardstick_value=exact.steps_per_second,
        smaller_is_better=False,
        goal_ratio=GOAL_BFLOAT16,
        label="self-play in bfloat16",
    )


def bench_selfplay(
    *,
    model: ModelConfig | None = None,
    selfplay: SelfPlayConfig | None = None,
    search: SearchConfig | None = None,
    environment: EnvironmentConfig | None = None,
    num_bars: int = NUM_BARS,
    replicas: int = 1,
    precisions: Sequence[Precision] | None = None,
    seconds: float = 15.0,
    seed: int = 0,
) -> list[SelfPlaySpeed]:
    """Measure workers with random weights on a synthetic market.

    Args:
        model: sizes of the networks; None uses the reference sizes.
        selfplay: lanes and exploration; None uses the defaults.
        search: settings of the search; None uses the defaults.
        environment: length of a session and costs; None uses the defaults.
        num_bars: length of the market.
        replicas: number of processes at once, each on its own core; 1 measures only one worker alone.
        precisions: precisions to measure; None measures those that the processor supports.
        seconds: minimum duration of each measurement.
        seed: seed of the market, weights and random numbers.
    Raises:
        SettingsError: there are more replicas than cores.
        DataError: the market is too short for a training session.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= replicas <= len(cores):
        raise SettingsError(
            f"replicas is {replicas}, expected 1 to {len(cores)}, the number of cores of this process"
        )
    network = initial_network(model or ModelConfig(), seed)
    with _dataset_and_redis(num_bars, seed) as (dataset, redis_url):
        settings = SelfPlaySettings(
            dataset=dataset,
            redis_url=SecretStr(redis_url),
            selfplay=selfplay or SelfPlayConfig(),
            search=search or SearchConfig(),
            environment=environment or EnvironmentConfig(),
        )
        weights = StoredWeights(network.config, dict(network.arrays()))
        task = Task(settings, weights, Precision.FLOAT32, seconds, seed, cores[0])
        speeds = []
        for precision in precisions or available_precisions():
            tasks = [replace(task, precision=precision, core=core) for core in cores[:replicas]]
            (alone,) = _at_once(tasks[:1])
            at_once = tuple(_at_once(tasks)) if replicas > 1 else ()
            speeds.append(SelfPlaySpeed(precision, settings.search.simulations, num_bars, alone, at_once))
    return speeds


def available_precisions() -> list[Precision]:
    """float32, and bfloat16 if the processor supports it."""
    return sorted({Precision.FLOAT32, Precision.AUTO.resolved()}, key=lambda one: one != Precision.FLOAT32)


@contextmanager
def _dataset_and_redis(num_bars: int, seed: int) -> Iterator[tuple[Path, str]]:
    """Create a data set and run a Redis; yields its path and its URL."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "bars.duckdb"
        write_dataset(dataset, synthesize(Market.REGIMES, num_bars, seed), "synthetic regimes")
        server = RedisServer(Path(folder) / "redis", free_port())
        server.start()
        try:
            yield dataset, server.url
        finally:
            server.stop()


def _at_once(tasks: Sequence[Task]) -> list[WorkerReport]:
    """Run each task in a new process, all at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(tasks))
    with ProcessPoolExecutor(len(tasks), context, join, (barrier,)) as processes:
        return list(processes.map(measure, tasks))
