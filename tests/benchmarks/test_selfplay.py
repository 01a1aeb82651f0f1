"""The self-play benchmark at small sizes, in its own processes."""

import os

import numpy as np
import pytest

from benchmarks.selfplay import (
    REST,
    SelfPlaySpeed,
    available_precisions,
    bench_selfplay,
    bfloat16_measurement,
)
from benchmarks.selfplay_worker import (
    ENCODING,
    ENVIRONMENT,
    NETWORK,
    PARTS,
    SENDING,
    TREE,
    Resident,
    Timed,
    WorkerReport,
    growth_percent_per_hour,
)
from services.selfplay.config import SelfPlayConfig
from shared.engine.precision import Precision
from shared.environment.environment import EnvironmentConfig
from shared.errors import DataError, SettingsError
from shared.model.config import ModelConfig

SMALL = ModelConfig(temporal_channels=12, static_channels=4, value_bins=31)
ENVIRONMENT_CONFIG = EnvironmentConfig(session_bars=30)


def bench(**options: object) -> list[SelfPlaySpeed]:
    return bench_selfplay(
        model=SMALL,
        selfplay=SelfPlayConfig(lanes=2),
        environment=ENVIRONMENT_CONFIG,
        precisions=[Precision.FLOAT32],
        seconds=0.0,
        **{"num_bars": 5_000, **options},  # type: ignore[arg-type]
    )


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes at once need two cores")
def test_workers_are_measured_alone_and_at_once() -> None:
    (speed,) = bench(replicas=2)
    report = speed.alone
    assert (report.lanes, report.steps_per_batch, speed.simulations) == (2, 60, 5)
    assert report.batches >= 2
    assert speed.episodes_per_hour == pytest.approx(3600 * speed.steps_per_second / 30)
    assert all(report.quickest.parts[part] > 0.0 for part in PARTS)
    assert sum(speed.shares.values()) == pytest.approx(1.0)
    assert all(share > 0.0 for share in speed.shares.values())
    # The network calls alone take no longer than within self-play.
    assert report.bound_seconds < report.quickest.seconds
    # The memory of a process with Numba, data set and networks.
    assert 50.0 < report.resident.megabytes <= report.resident.peak_megabytes + 1.0
    assert len(speed.at_once) == 2
    playing, sending, scaling, memory = speed.measurements()
    assert playing.ratio == pytest.approx(report.bound_seconds / report.quickest.seconds)
    assert playing.goal == "ratio ≥ 0.7"
    assert sending.value == pytest.approx(100.0 * speed.shares[SENDING])
    assert speed.scaling == pytest.approx(scaling.ratio)
    assert scaling.goal == "ratio ≥ 1.9"
    assert memory.value == report.resident.megabytes


def made_up(precision: Precision, seconds: float, growth: float = 0.0) -> SelfPlaySpeed:
    parts = {NETWORK: 0.5, ENCODING: 0.1, TREE: 0.1, ENVIRONMENT: 0.05, SENDING: 0.05}
    quickest = Timed(seconds, {part: seconds * share for part, share in parts.items()})
    report = WorkerReport(4, 400, 3, 3 * seconds, quickest, 0.6 * seconds, Resident(500.0, 600.0, growth))
    return SelfPlaySpeed(precision, 5, 1_000, report)


def test_the_rest_is_the_time_without_a_named_part() -> None:
    speed = made_up(Precision.FLOAT32, 2.0)
    assert speed.shares[REST] == pytest.approx(0.2)
    assert speed.steps_per_second == 200.0
    assert speed.episodes_per_hour == 7_200.0
    assert speed.scaling is None
    assert [row.name.partition(",")[0] for row in speed.measurements()] == [
        "self-play",
        "encoding and XADD",
        "resident memory on 1",
    ]


@pytest.mark.parametrize(("growth", "met"), [(0.0, True), (-3.0, True), (1.9, True), (2.1, False)])
def test_memory_may_grow_by_two_percent_per_hour(growth: float, met: bool) -> None:
    row = made_up(Precision.FLOAT32, 2.0, growth).measurements(soak=True)[-1]
    assert row.value == pytest.approx(500.0 * (1 + growth / 100))
    assert row.met is met


def test_the_growth_of_memory_is_its_slope_after_the_start() -> None:
    hours = np.linspace(0.0, 0.5, 51)
    settled = [(3600.0 * hour, 1e9 + 4e7 * (hour - 0.3)) for hour in hours]
    settled[:10] = [(seconds, 5e8) for seconds, _ in settled[:10]]  # during the start
    assert growth_percent_per_hour(settled) == pytest.approx(4.0, rel=1e-3)
    assert growth_percent_per_hour(settled[:1]) == 0.0


def test_bfloat16_is_compared_with_float32() -> None:
    exact, fast = made_up(Precision.FLOAT32, 2.0), made_up(Precision.BFLOAT16, 0.9)
    assert bfloat16_measurement([exact]) is None
    row = bfloat16_measurement([exact, fast])
    assert row is not None
    assert row.ratio == pytest.approx(2.0 / 0.9)
    assert row.met
    assert available_precisions()[0] is Precision.FLOAT32


def test_an_impossible_measurement_is_refused() -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(SettingsError, match=rf"replicas is {cores + 1}, expected 1 to {cores}"):
        bench(replicas=cores + 1)
    with pytest.raises(DataError, match="train split"):
        bench(num_bars=300)
