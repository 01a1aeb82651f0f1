"""`simulate`: the numbers equal those of the environment, and invalid input is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cli.simulate import simulate
from shared.adapters.tables.dataset import write_dataset
from shared.errors import DataError, FormatError, IllegalActionError, SettingsError
from shared.market.bar import BarSeries
from shared.market.synthetic import Market, synthesize
from tests.oracles import environment as oracle

NUM_BARS = 700

app = typer.Typer()
app.command()(simulate)


@pytest.fixture(scope="module")
def bars() -> BarSeries:
    return synthesize(Market.REGIMES, NUM_BARS, seed=1)


@pytest.fixture(scope="module")
def data(bars: BarSeries, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulate") / "d.duckdb"
    write_dataset(path, bars, "synthetic")
    return path


def run(data: Path, actions: str, *options: object, start: int = 200) -> str:
    """Run a command that succeeds; returns its stdout."""
    file = data.parent / "actions.txt"
    file.write_text(actions)
    arguments = ["--data", data, "--start", start, "--actions", file, *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def document(data: Path, actions: str, *options: object, start: int = 200) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(data, actions, "--json", *options, start=start))
    return found


class TestJson:
    @pytest.mark.parametrize("scheme", ["amddp1", "pnl"])
    def test_steps_and_trades_equal_those_of_the_oracle(
        self, data: Path, bars: BarSeries, scheme: str
    ) -> None:
        actions = [1, 0, 0, 3, 0, 2, 0, 3, 1, 0]
        text = "\n".join(map(str, actions))
        found = document(data, text, "--reward", scheme, "--spread", 2.5)
        played = oracle.play(
            200, actions, bars.open.tolist(), bars.close.tolist(), pip=0.01, scheme=scheme, cost_pips=2.5
        )
        steps = found["steps"]
        assert [set(step) for step in steps] == [{"bar", "action", "reward", "pnl", "static"}] * 10
        assert [step["bar"] for step in steps] == list(range(200, 210))
        assert [step["reward"] for step in steps] == pytest.approx(played.rewards, rel=1e-5)
        np.testing.assert_allclose([step["static"] for step in steps], played.statics, rtol=1e-5, atol=1e-7)
        pnl = [100 * np.arctanh(static[1]) for static in played.statics]
        assert [step["pnl"] for step in steps] == pytest.approx(pnl)
        names = (
            "entry_bar",
            "exit_bar",
            "side",
            "entry_price",
            "exit_price",
            "pips",
            "max_drawdown",
            "bars_held",
        )
        assert len(found["trades"]) == len(played.trades) == 3
        for trade, expected in zip(found["trades"], played.trades, strict=True):
            assert trade == pytest.approx(dict(zip(names, expected, strict=True)))

    def test_actions_may_be_names_or_numbers_and_empty_lines_are_skipped(self, data: Path) -> None:
        named = document(data, "BUY\nhold\n\n  Close \r\nSELL\n")
        assert named == document(data, "1\n0\n3\n2")
        assert [step["action"] for step in named["steps"]] == ["BUY", "HOLD", "CLOSE", "SELL"]

    def test_a_position_open_after_the_last_action_is_closed_at_the_next_open(self, data: Path) -> None:
        found = document(data, "BUY\nHOLD")
        assert [(trade["entry_bar"], trade["exit_bar"]) for trade in found["trades"]] == [(201, 202)]

    def test_the_first_and_the_last_start_that_the_bars_allow(self, data: Path) -> None:
        assert document(data, "BUY", start=150)["steps"][0]["bar"] == 150
        assert document(data, "BUY", start=NUM_BARS - 2)["trades"][0]["exit_bar"] == NUM_BARS - 1
        assert len(document(data, "HOLD\n" * 360, start=NUM_BARS - 361)["steps"]) == 360


class TestTables:
    def test_tables_show_steps_trades_and_the_sum_of_trades(self, data: Path) -> None:
        text = run(data, "BUY\nHOLD\nCLOSE\nSELL")
        for word in ("Steps", "Trades", "Sum", "BUY", "long", "short", "2020-01-06 01:21"):
            assert word in text


class TestRefusals:
    @pytest.mark.parametrize(
        ("actions", "text"),
        [
            (
                "BUY\nHOLD\nWAIT\n",
                r"actions\.txt:3: 'WAIT' is not an action, expected one of HOLD, BUY, SELL, CLOSE",
            ),
            ("\nBUY\n4\n", r"actions\.txt:3: '4' is not an action"),
            ("1.0", r"actions\.txt:1: '1\.0' is not an action"),
            ("\n\n", r"actions\.txt: has no action, expected one per line"),
            ("HOLD\n" * 361, r"actions\.txt:361: more actions than the 360 decisions of a session"),
        ],
    )
    def test_the_error_of_an_invalid_list_names_file_and_line(
        self, data: Path, actions: str, text: str
    ) -> None:
        with pytest.raises(FormatError, match=text):
            run(data, actions)

    @pytest.mark.parametrize("start", [-1, 0, 149, 697, 5000])
    def test_a_start_too_close_to_either_end_of_the_data_is_refused(self, data: Path, start: int) -> None:
        with pytest.raises(DataError, match=f"start {start}: expected 150 to 696"):
            run(data, "BUY\nHOLD\nCLOSE", start=start)

    def test_a_data_set_too_short_for_any_start_is_refused(self, tmp_path: Path, bars: BarSeries) -> None:
        path = tmp_path / "short.duckdb"
        write_dataset(path, bars[:152], "synthetic")
        document(path, "BUY", start=150)
        with pytest.raises(
            DataError, match="2 actions need 153 bars, warm-up included; the data set has 152"
        ):
            run(path, "BUY\nHOLD", start=150)

    def test_the_error_of_an_illegal_action_names_its_bar_and_legal_actions(self, data: Path) -> None:
        text = "bar 201, position LONG: BUY is illegal, expected one of HOLD, CLOSE"
        with pytest.raises(IllegalActionError, match=text):
            run(data, "BUY\nBUY")

    def test_a_negative_spread_is_refused(self, data: Path) -> None:
        with pytest.raises(SettingsError, match="spread_pips is -1"):
            run(data, "BUY", "--spread", "-1")

    def test_a_missing_list_and_a_binary_file_are_refused(self, data: Path, tmp_path: Path) -> None:
        binary = tmp_path / "binary"
        binary.write_bytes(b"\xff\xfe\x00")
        for path in (tmp_path / "absent", tmp_path, binary):
            result = CliRunner().invoke(app, ["--data", str(data), "--start", "200", "--actions", str(path)])
            assert isinstance(result.exception, FormatError)
            assert "cannot be read as a list of actions" in str(result.exception)

    def test_a_start_outside_valid_sessions_is_noted_on_stderr(self, data: Path) -> None:
        file = data.parent / "one.txt"
        file.write_text("HOLD")
        result = CliRunner().invoke(
            app, ["--data", str(data), "--start", str(NUM_BARS - 2), "--actions", str(file), "--json"]
        )
        assert result.exit_code == 0
        assert "no valid session of 360 bars starts" in result.stderr
        json.loads(result.stdout)
