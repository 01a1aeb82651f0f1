"""`bench`: every command has a row, a yardstick and a goal; two of them are run."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

import benchmarks.encodings
import benchmarks.engines
import benchmarks.networks
from cli.bench import app
from tests.cli.benches import bench, bench_document
from tests.shared.model.networks import SMALL

COMMANDS = (
    "features",
    "sessions",
    "search",
    "selfplay",
    "learner",
    "stream",
    "montecarlo",
    "inference",
    "networks",
)


def test_every_benchmark_of_the_specification_is_a_command() -> None:
    assert set(COMMANDS) <= set(bench("--help").split())


def test_help_does_without_torch_and_pandas() -> None:
    script = "import sys, cli.bench; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_one_json_document_with_yardstick_ratio_and_goal() -> None:
    told = bench_document("montecarlo", "--runs", "5", "--trades", "50")
    assert told["benchmark"] == "montecarlo"
    row = told["measurements"][0]
    assert row["ratio"] == pytest.approx(row["yardstick_value"] / row["value"])
    assert row["yardstick"] == "a loop over runs in NumPy"
    assert row["goal"].endswith("ratio ≥ 20")
    assert row["met"] in (True, False)


def test_a_table_for_people() -> None:
    told = bench("montecarlo", "--runs", "5", "--trades", "50")
    assert told.startswith("bench montecarlo")
    assert "yardstick" in told


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`networks` measures small ones by torch alone; ONNX Runtime is not installed."""
    kept = [engine for engine in benchmarks.engines.engines() if engine.name == "torch eager"][:1]
    absent = replace(kept[0], name="ONNX Runtime", missing="not installed")
    monkeypatch.setattr(benchmarks.engines, "engines", lambda: (*kept, absent))
    for module, function in (
        (benchmarks.networks, "bench_engines"),
        (benchmarks.encodings, "bench_encodings"),
    ):
        monkeypatch.setattr(module, function, partial(getattr(module, function), SMALL))


@pytest.mark.usefixtures("small_networks")
def test_networks_tells_engines_encodings_and_what_is_left_out() -> None:
    told = bench_document("networks", "--batch", "3", "--batch", "2", "--seconds", "0")
    encodings = [row for row in told["measurements"] if "encoding" in row]
    engines = [row for row in told["measurements"] if "engine" in row]
    assert len(encodings) + len(engines) == len(told["measurements"])
    assert [row["rows"] for row in engines] == [3, 2]
    assert {row["windows"] for row in encodings} == {1, 360}
    assert told["left_out"] == {"ONNX Runtime, float32": "not installed"}


@pytest.mark.usefixtures("small_networks")
def test_networks_prints_tables_for_people() -> None:
    result = CliRunner().invoke(app, ["networks", "--batch", "2", "--seconds", "0"])
    assert result.exit_code == 0
    assert "torch eager" in result.stdout
    assert "the plain pass" in result.stdout
    assert "left out: ONNX Runtime, float32: not installed" in result.stderr


#: A small network that learns from stretches, as the tuned profile does.
PROFILE = """
[model]
temporal_channels = 12
static_channels = 4
value_bins = 31
[replay]
success_share = 0.0
[learner]
batch_size = 50
stretch_steps = 30
unroll_steps = 1
precision = "bfloat16"
"""


def test_learner_measures_the_learner_of_a_profile(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(PROFILE)
    told = bench_document("learner", "--seconds", "0", "--profile", str(tmp_path / "profile.toml"))
    updates, steps = told["measurements"]
    assert updates["name"] == "batch 50, stretches of 30, unroll 1, bfloat16"
    assert steps["value"] == pytest.approx(60 * updates["value"])  # two stretches
    assert sum(told["shares_of_time"].values()) == pytest.approx(1.0)


def test_learner_tells_where_an_update_spends_its_time(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(PROFILE)
    told = bench("learner", "--seconds", "0", "--profile", str(tmp_path / "profile.toml"))
    for word in ("updates/s", "steps/s", "drawing", "views", "optimizer"):
        assert word in told
