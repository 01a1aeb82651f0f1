import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.metrics import metrics
from cli.trade_file import read_trades
from shared.errors import FormatError, SettingsError

app = typer.Typer()
app.command()(metrics)

#: Six trades: wins 10, 20, 6, losses -8, -4 and one of 0; expectancy 4, profit factor 36 / 12.
PIPS = "pips\n10\n-8\n20\n0\n-4\n6\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "trades.csv"
    path.write_text(text)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def judged(path: Path, *options: object) -> dict[str, Any]:
    document = json.loads(run(path, "--json", *options))
    assert isinstance(document, dict)
    return document


def test_metrics_of_a_list_of_pips(tmp_path: Path) -> None:
    document = judged(written(tmp_path, PIPS))
    trades = document["trades"]
    assert trades["num_trades"] == 6
    assert trades["expectancy_pips"] == 4.0
    assert trades["win_rate"] == 0.5
    assert trades["profit_factor"] == 3.0
    assert trades["expectancy_r"] == pytest.approx(4.0 / 6.0)
    assert trades["sqn"] == pytest.approx(6**0.5 * 4.0 / 104.0**0.5)
    assert document["max_drawdown_pips"] == 8.0
    assert document["kelly_discrete"] == pytest.approx(0.6 - 0.4 / 2.0)
    assert [paths["resampling"] for paths in document["monte_carlo"]] == ["iid", "block"]
    assert document["days"] == "the trades have no times, so there are no days"
    daily = {name: document["daily"][name] for name in ("num_days", "sharpe", "sortino")}
    assert daily == {"num_days": 0, "sharpe": None, "sortino": None}
    assert document["sizing"]["safe_f"] is None
    assert document["undefined"]["daily.sharpe"] == document["undefined"]["sizing.safe_f"] == document["days"]


def test_a_profit_below_price_precision_counts_as_zero(tmp_path: Path) -> None:
    tiny = judged(written(tmp_path, "pips\n1e-200\n5\n-3\n"))
    assert tiny["trades"] == judged(written(tmp_path, "pips\n0\n5\n-3\n"))["trades"]


def test_a_trade_closed_at_the_end_of_the_week_belongs_to_friday(tmp_path: Path) -> None:
    """The week ends at 17:00 in New York, which is 22:00 UTC in January."""
    text = "time,pips\n2024-01-04T15:00:00Z,5\n2024-01-05T22:00:00Z,-3\n2024-01-08T15:00:00Z,2\n"
    assert judged(written(tmp_path, text))["daily"]["num_days"] == 3  # Thursday, Friday, Monday


def test_trades_per_year_annualises_trades_without_times(tmp_path: Path) -> None:
    """Six trades at 25 per year span sixty of 252 trading days."""
    path = written(tmp_path, PIPS)
    document = judged(path, "--trades-per-year", 25)
    assert document["daily"]["sharpe"] == pytest.approx(4.0 / 104.0**0.5 * 25**0.5)
    assert document["daily"]["sortino"] == pytest.approx(4.0 / (80.0 / 6) ** 0.5 * 25**0.5)
    assert document["sizing"]["safe_f"] is None
    many = judged(path, "--trades-per-year", 26)
    assert many["undefined"]["daily.sharpe"] == "58 days: fewer than 60, not annualised"
    timed = written(tmp_path, "pips,time\n1,2024-03-08T21:58:00Z\n")
    with pytest.raises(SettingsError, match="is for files without times"):
        judged(timed, "--trades-per-year", 25)


def test_columns_risk_and_time_are_used(tmp_path: Path) -> None:
    text = (
        "Time,Pips,Risk\n"
        "2024-03-11T21:30:00Z,-5,10\n"  # 17:30 New York: Tuesday's trading day
        "2024-03-08 21:30,10,10\n"  # Friday; out of order in the file
        "1710277200,6,5\n"  # 2024-03-12 21:00 UTC, 17:00 New York: Wednesday's
    )
    document = judged(written(tmp_path, text))
    assert document["trades"]["expectancy_r"] == pytest.approx((1.0 - 0.5 + 1.2) / 3.0)
    assert document["max_drawdown_pips"] == 5.0  # in order of time: 10, 5, 11
    assert document["daily"]["num_days"] == 4  # Friday, Monday without a trade, Tuesday, Wednesday
    assert document["months"] == [
        {
            "month": "2024-03",
            "num_days": 4,
            "pips": 11.0,
            "num_trades": 3,
            "win_rate": pytest.approx(2 / 3),
            "expectancy_pips": pytest.approx(11 / 3),
        }
    ]


def test_undefined_metrics_are_null(tmp_path: Path) -> None:
    document = judged(written(tmp_path, "pips\n3\n"))
    assert document["trades"]["profit_factor"] is None
    assert document["trades"]["sqn"] is None
    assert document["daily"]["sharpe"] is None
    assert document["sizing"]["fraction"] == 0.0


def test_the_seed_determines_the_resampling(tmp_path: Path) -> None:
    path = written(tmp_path, PIPS)
    assert judged(path, "--seed", 3) == judged(path, "--seed", 3)
    assert judged(path, "--seed", 3)["monte_carlo"] != judged(path, "--seed", 4)["monte_carlo"]
    assert judged(path, "--runs", 7)["monte_carlo"][0]["num_runs"] == 7


def test_tables_show_the_metrics_and_fit_80_columns(tmp_path: Path) -> None:
    text = run(written(tmp_path, PIPS))
    for word in (
        "expectancy_pips",
        "profit_factor",
        "mean absolute loss",
        "Monte Carlo",
        "the trades have no times",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"trades\.csv:1: no column 'pips' in the header \(nothing\)"),
        ("profit\n1\n", r"trades\.csv:1: no column 'pips' in the header \(profit\)"),
        ("pips\n", r"trades\.csv: no trade"),
        ("pips\n1\nmany\n", r"trades\.csv:3: pips is 'many', expected a number"),
        ("pips\nnan\n", r"trades\.csv:2: pips is 'nan'"),
        ("pips\n1\n\n1_0\n", r"trades\.csv:4: pips is '1_0', expected a number"),
        ('pips\n"1,5"\n', r"trades\.csv:2: pips is '1,5', expected a number with a decimal point"),
        (
            "pips\n1e300\n",
            r"trades\.csv:2: pips is 1e300, expected a number between -1,000,000 and 1,000,000",
        ),
        ("pips\n1e309\n", r"trades\.csv:2: pips is 1e309, expected a number between"),
        ("a,pips\n1\n", r"trades\.csv:2: 1 cells, the header has 2 columns"),
        ("pips,a\n1,2\n1,2,3\n", r"trades\.csv:3: 3 cells, the header has 2 columns"),
        ("pips,a,Pips\n1,2,3\n", r"trades\.csv:1: column 'pips' appears more than once"),
        ("pips;time\n1;2\n", r"trades\.csv:1: no column 'pips' .* separated by ';', expected commas"),
        ("pips,time\n1,1709971200000\n", r"trades\.csv:2: time is '1709971200000', .* like milliseconds"),
        ("pips,time\n1,0001-01-01\n", r"trades\.csv:2: time is '0001-01-01', .* years 1970 to 2099"),
        ("pips,time\n1,9999-12-31\n", r"trades\.csv:2: time is '9999-12-31', .* years 1970 to 2099"),
        ("pips,risk\n1,0\n", r"trades\.csv:2: risk is '0', expected a positive number"),
        ("pips,time\n1,noon\n", r"trades\.csv:2: time is 'noon', expected ISO 8601"),
    ],
)
def test_the_error_of_an_invalid_file_names_the_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read_trades(written(tmp_path, text))


def test_trades_outside_market_hours_cause_a_warning(tmp_path: Path) -> None:
    """Saturday noon and the minute before Sunday's open are outside; Friday's close and the open are not."""
    open_ = "pips,time\n1,2024-03-08T21:59:00Z\n1,2024-03-08T22:00:00Z\n-1,2024-03-10T21:00:00Z\n"
    assert read_trades(written(tmp_path, open_)).warnings == ()
    closed = written(tmp_path, open_ + "1,2024-03-09T12:00:00Z\n1,2024-03-10T20:59:00Z\n")
    (warning,) = judged(closed)["warnings"]
    assert warning.startswith(
        "2 of 5 trades were closed outside market hours, the first in line 5 (2024-03-09"
    )


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        read_trades(tmp_path / "absent.csv")
    (tmp_path / "trades.csv").write_bytes(b"pips\n\xff\xfe\n")
    with pytest.raises(FormatError, match="not a CSV file in UTF-8"):
        read_trades(tmp_path / "trades.csv")
    with pytest.raises(FormatError, match="Is a directory"):
        read_trades(tmp_path)


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="starting_equity_pips"):
        run(written(tmp_path, PIPS), "--equity", 0)
    with pytest.raises(SettingsError, match="runs"):
        run(written(tmp_path, PIPS), "--runs", 0)
    with pytest.raises(SettingsError, match="runs is 100000000, expected 1 to 100,000"):
        run(written(tmp_path, PIPS), "--runs", 100_000_000)
    with pytest.raises(SettingsError, match=r"starting_equity_pips is 1e-300, expected 1 to 1e\+12"):
        run(written(tmp_path, PIPS), "--equity", 1e-300)
