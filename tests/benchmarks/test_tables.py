"""The tables of `bench` fit into 80 columns and break no word."""

from collections import Counter
from io import StringIO
from itertools import product

import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.learner import LearnerSpeed
from benchmarks.measure import Measurement
from benchmarks.peers.situations import Encoding
from benchmarks.search import PeerSpeed, SearchSpeed
from benchmarks.selfplay import SelfPlaySpeed, bfloat16_measurement
from benchmarks.selfplay_worker import PARTS, Resident, Timed, WorkerReport
from benchmarks.stream import Rates, StepCosts, StreamSpeed
from cli.bench_options import measurement_legend, measurement_table
from services.trainer.config import LearnerConfig
from shared.engine.precision import Precision

PRECISIONS = (Precision.FLOAT32, Precision.BFLOAT16)
PEERS = ("mctx", "LightZero's tree", "node objects")


def _search() -> list[Measurement]:
    pairs = product(PEERS, Encoding)
    peers = tuple(PeerSpeed(peer, encoding, 98_765.4, 12_345.6, 1.0) for peer, encoding in pairs)
    speeds = [SearchSpeed(256, 5, 123_456.7, 145_678.9, precision, peers) for precision in PRECISIONS]
    return [row for speed in speeds for row in speed.measurements]


def _selfplay() -> list[Measurement]:
    batch = Timed(10.0, dict.fromkeys(PARTS, 1.0))
    report = WorkerReport(128, 46_080, 3, 600.0, batch, 7.0, Resident(1_500.0, 1_600.0, 0.1))
    speeds = [SelfPlaySpeed(precision, 50, 1_330_000, report, (report,) * 16) for precision in PRECISIONS]
    gain = bfloat16_measurement(speeds)
    assert gain is not None
    return [*(row for speed in speeds for row in speed.measurements(soak=True)), gain]


def _learner() -> list[Measurement]:
    config = LearnerConfig(batch_size=1_024, stretch_steps=30)
    return LearnerSpeed(config, Precision.BFLOAT16, 1_020.5, 98_765.4, 123_456.7, {}).measurements


def _stream() -> list[Measurement]:
    rates, tool = Rates("redis-py", 1_234.5, 1_234.5), Rates("redis-benchmark", 1_234.5, 1_234.5)
    costs = StepCosts(*[1.0] * 8)
    return StreamSpeed(1_024, 38_123, rates, rates, tool, 1_234.5, 1_234.5, costs).measurements


def _others() -> list[Measurement]:
    names = (
        ("Monte Carlo, 100,000 runs x 5,000 trades, stationary", "a loop over runs in NumPy"),
        ("session index, 98,765 sessions in 1,316,789 bars", "NumPy over sliding windows"),
        ("draw 64 one by one, 10,000,000 steps", "NumPy takes 64 rows, 10,000,000 steps"),
        ("one decision over HTTP, p99 of 500", "the same decision in the process that asks"),
    )
    return [
        Measurement(name, 0.00012345, "s", yardstick, 123_456.7, goal_value=0.0012345, goal_ratio=0.9804)
        for name, yardstick in names
    ]


@pytest.mark.parametrize("measurements", [_search(), _selfplay(), _learner(), _stream(), _others()])
def test_a_table_fits_80_columns_without_breaking_a_word(measurements: list[Measurement]) -> None:
    table = measurement_table("benchmark", measurements, "measured")
    lines = _rows(table)
    assert max(map(len, lines)) <= 80
    printed = Counter(word for line in lines for word in line.replace("│", " ").split())
    cells = [str(cell) for column in table.columns for cell in (column.header, *column.cells)]
    assert printed == Counter(word for cell in cells for word in cell.split())


def test_a_row_of_the_search_takes_one_line() -> None:
    measurements = _search()
    assert len(_rows(measurement_table("search", measurements, "sizes"))) == 1 + len(measurements)


def test_the_legend_names_each_yardstick_and_the_common_unit() -> None:
    rows = _search()[:3]
    assert measurement_legend(rows) == [
        "unit: decisions/s",
        "yardstick a: the same network calls alone",
        "yardstick b: mctx, encoding shared",
        "yardstick c: mctx, each window encoded",
    ]
    values = list(measurement_table("search", rows, "sizes").columns[2].cells)
    assert values == ["145,679 a", "12,346 b", "12,346 c"]


def test_rows_with_different_units_each_show_their_unit() -> None:
    rows = _selfplay()
    assert not any(line.startswith("unit:") for line in measurement_legend(rows))
    for row, cell in zip(rows, measurement_table("selfplay", rows, "measured").columns[0].cells, strict=True):
        assert str(cell).endswith(f"({row.unit})")


def _rows(table: Table) -> list[str]:
    """The lines of a printed table without title and rules."""
    printed = StringIO()
    Console(file=printed, width=80).print(table)
    return [line for line in printed.getvalue().splitlines() if "│" in line]
