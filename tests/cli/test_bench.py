"""The `bench` commands: every measurement has a yardstick and a goal."""

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


def test_every_benchmark_is_a_command() -> None:
    assert set(COMMANDS) <= set(bench("--help").split())


def test_help_imports_neither_torch_nor_pandas() -> None:
    script = "import sys, cli.bench; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_json_has_the_yardstick_the_ratio_and_the_goal() -> None:
    printed = bench_document("montecarlo", "--runs", "5", "--trades", "50")
    assert printed["benchmark"] == "montecarlo"
    row = printed["measurements"][0]
    assert row["ratio"] == pytest.approx(row["yardstick_value"] / row["value"])
    assert row["yardstick"] == "a loop over runs in NumPy"
    assert row["goal"].endswith("ratio ≥ 20")
    assert row["met"] in (True, False)


def test_a_table_names_the_yardstick() -> None:
    printed = bench("montecarlo", "--runs", "5", "--trades", "50")
    assert printed.startswith("bench montecarlo")
    assert "yardstick" in printed


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `networks` measure small networks with torch only, as if ONNX Runtime were not installed."""
    kept = [engine for engine in benchmarks.engines.engines() if engine.name == "torch eager"][:1]
    absent = replace(kept[0], name="ONNX Runtime", missing="not installed")
    monkeypatch.setattr(benchmarks.engines, "engines", lambda: (*kept, absent))
    for module, function in (
        (benchmarks.networks, "bench_engines"),
        (benchmarks.encodings, "bench_encodings"),
    ):
        monkeypatch.setattr(module, function, partial(getattr(module, function), SMALL))


@pytest.mark.usefixtures("small_networks")
def test_networks_reports_engines_encodings_and_missing_engines() -> None:
    printed = bench_document("networks", "--batch", "3", "--batch", "2", "--seconds", "0")
    encodings = [row for row in printed["measurements"] if "encoding" in row]
    engines = [row for row in printed["measurements"] if "engine" in row]
    assert len(encodings) + len(engines) == len(printed["measurements"])
    assert [row["rows"] for row in engines] == [3, 2]
    assert {row["windows"] for row in encodings} == {1, 360}
    assert printed["left_out"] == {"ONNX Runtime, float32": "not installed"}


@pytest.mark.usefixtures("small_networks")
def test_networks_prints_tables() -> None:
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


def test_learner_uses_the_settings_of_a_profile(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(PROFILE)
    printed = bench_document("learner", "--seconds", "0", "--profile", str(tmp_path / "profile.toml"))
    updates, steps = printed["measurements"]
    assert updates["name"] == "batch 50, stretches of 30, unroll 1, bfloat16"
    assert steps["value"] == pytest.approx(60 * updates["value"])  # two stretches
    assert sum(printed["shares_of_time"].values()) == pytest.approx(1.0)


def test_learner_prints_the_time_per_part_of_an_update(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(PROFILE)
    printed = bench("learner", "--seconds", "0", "--profile", str(tmp_path / "profile.toml"))
    for word in ("updates/s", "steps/s", "drawing", "views", "optimizer"):
        assert word in printed
