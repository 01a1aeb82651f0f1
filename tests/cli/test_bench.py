"""`bench`: every command has a row, a yardstick and a goal; two of them are run."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import benchmarks.encodings
import benchmarks.engines
import benchmarks.learn
import benchmarks.networks
from benchmarks.learn import LearnConfig, LearnReport
from cli.bench import app
from shared.errors import SettingsError
from tests.benchmarks.test_compare import report
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


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[LearnConfig]:
    """`compare` keeps what it was asked for and takes no time; seed 7 is interrupted."""
    asked: list[LearnConfig] = []

    def learn(config: LearnConfig) -> LearnReport:
        if config.seed == 7:
            raise KeyboardInterrupt
        asked.append(config)
        return report(0.0, 3.0, 5.0, seed=config.seed)

    monkeypatch.setattr("benchmarks.compare.learn", learn)
    monkeypatch.chdir(tmp_path)
    return asked


def test_compare_learns_every_way_by_every_seed(compared: list[LearnConfig], tmp_path: Path) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_text("[search]\nmin_q_span = 5.0\n[learner]\nunroll_steps = 1\n")
    options = ("--way", "puct", "--seeds", "2", "--minutes", "1", "--profile", str(profile))
    answer = document("compare", *options)
    assert [config.seed for config in compared] == [0, 1]
    for config in compared:
        assert (config.search.min_q_span, config.learner.unroll_steps) == (5.0, 1)
        assert (config.search.selection, config.minutes, config.imitation_minutes) == ("puct", 1.0, 0.0)
    assert [(told["way"], told["seed"]) for told in answer["runs"]] == [("puct", 0), ("puct", 1)]
    assert [(told["way"], told["num_runs"]) for told in answer["ways"]] == [("puct", 2)]
    assert (tmp_path / "compare.png").stat().st_size > 1_000


def test_compare_goes_on_where_it_was_interrupted(compared: list[LearnConfig], tmp_path: Path) -> None:
    options = ["compare", "--way", "puct", "--minutes", "1", "--record", "kept", "--first-seed"]
    broken = CliRunner().invoke(app, [*options, "6", "--seeds", "3"])
    assert broken.exit_code == 130
    assert "puct, seed 6: 0.44 of the best policy's" in broken.stderr
    assert "interrupted; finished runs: 1, kept" in broken.stderr
    assert (tmp_path / "compare.png").stat().st_size > 1_000
    told = document(*options, "5", "--seeds", "2", "--way", "as given")
    assert [(config.search.selection, config.seed) for config in compared] == [
        ("puct", 6),
        ("puct", 5),
        ("gumbel", 5),
        ("gumbel", 6),
    ]
    assert [(one["way"], one["seed"]) for one in told["runs"]] == [
        ("puct", 5),
        ("puct", 6),
        ("as given", 5),
        ("as given", 6),
    ]


def test_compare_shows_what_a_record_holds_and_learns_nothing(compared: list[LearnConfig]) -> None:
    options = ("compare", "--minutes", "1", "--record", "kept")
    with pytest.raises(SettingsError, match="no run is kept in kept"):
        bench(*options, "--show")
    bench(*options, "--seeds", "1", "--first-seed", "3", "--way", "puct")
    assert "puct" in bench(*options, "--show")
    assert len(compared) == 1
    with pytest.raises(SettingsError, match=r"minutes 1.0, not 2.0;"):
        bench("compare", "--minutes", "2", "--record", "kept", "--show")
