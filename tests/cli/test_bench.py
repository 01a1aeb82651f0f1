"""`bench`: every command has a row, a yardstick and a goal; two of them are run."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import benchmarks.encodings
import benchmarks.engines
import benchmarks.learn
import benchmarks.networks
from benchmarks.compare import Learned
from benchmarks.learn import LearnConfig, Spent
from cli.bench import app
from tests.benchmarks.test_learn import CONFIG, run
from tests.shared.model.networks import SMALL

COMMANDS = (
    "features",
    "sessions",
    "search",
    "selfplay",
    "learner",
    "learn",
    "compare",
    "stream",
    "montecarlo",
    "inference",
    "networks",
)


def bench(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def document(*arguments: str) -> dict[str, Any]:
    told = json.loads(bench(*arguments, "--json"))
    assert isinstance(told, dict)
    return told


def test_every_benchmark_of_the_specification_is_a_command() -> None:
    assert set(COMMANDS) <= set(bench("--help").split())


def test_help_does_without_torch_and_pandas() -> None:
    script = "import sys, cli.bench; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_one_json_document_with_yardstick_ratio_and_goal() -> None:
    told = document("montecarlo", "--runs", "5", "--trades", "50")
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
def short_run(monkeypatch: pytest.MonkeyPatch) -> list[LearnConfig]:
    """`learn` keeps what it was asked for and runs a small one."""
    asked: list[LearnConfig] = []

    def learn(config: LearnConfig, **_: object) -> object:
        asked.append(config)
        return run()

    monkeypatch.setattr(benchmarks.learn, "learn", learn)
    return asked


def test_learn_tells_every_player_and_draws_its_curve(tmp_path: Path, short_run: list[LearnConfig]) -> None:
    picture = tmp_path / "curve.png"
    options = ("--market", "ou", "--reward", "amddp1", "--minutes", "2", "--seed", "3", "--out", str(picture))
    told = document("learn", *options, "--imitation-minutes", "0.5")
    (asked,) = short_run
    assert (asked.market, asked.environment.reward, asked.minutes, asked.seed) == ("ou", "amddp1", 2.0, 3)
    assert asked.imitation_minutes == 0.5
    names = {player["name"] for player in told["players"]}
    assert names == {"best", "agent", "nothing", "random", "imitation"}
    assert told["imitation_spent"]["updates"] > 0
    assert told["spent"]["episodes"] > 0
    assert len(told["curve"]) == CONFIG.curve_points + 1
    assert picture.is_file()


def test_learn_prints_shares_as_a_table(tmp_path: Path, short_run: list[LearnConfig]) -> None:
    told = bench("learn", "--out", str(tmp_path / "curve.png"))
    for title in ("net pips of both yardsticks", "reward of both yardsticks"):
        assert title in told
    assert "…" not in told  # no cell is cut in a terminal of 80 columns
    assert all(player in told for player in ("best", "agent", "nothing", "random", "imitation"))
    assert short_run


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
    told = document("networks", "--batch", "3", "--batch", "2", "--seconds", "0")
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


def test_compare_learns_every_way_by_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[tuple[str, ...], tuple[int, ...], LearnConfig]] = []
    curve = np.array([0.0, 1.0])

    def fake(config: LearnConfig, ways: Iterable[str], seeds: Sequence[int]) -> Iterator[Learned]:
        told.append((tuple(ways), tuple(seeds), config))
        for seed in seeds:
            yield Learned("puct", seed, curve, curve / 2, Spent(60.0, 32, 10), 0.5)

    monkeypatch.setattr("benchmarks.compare.compare", fake)
    monkeypatch.chdir(tmp_path)
    profile = tmp_path / "profile.toml"
    profile.write_text("[search]\nmin_q_span = 5.0\n[learner]\nunroll_steps = 1\n")
    options = ("--way", "puct", "--seeds", "2", "--minutes", "1", "--profile", str(profile))
    answer = document("compare", *options)
    [(ways, seeds, config)] = told
    assert (ways, seeds) == (("puct",), (0, 1))
    assert (config.search.min_q_span, config.learner.unroll_steps, config.imitation_minutes) == (5.0, 1, 0.0)
    assert [run["reached"]["episodes"] for run in answer["runs"]] == [32, 32]
    assert (tmp_path / "compare.png").stat().st_size > 1_000
