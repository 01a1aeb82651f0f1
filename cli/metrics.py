"""`metrics`: every metric of the validator, for any list of trades."""

import csv
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cli.output import figure, out, print_fields, print_json, print_table
from shared.errors import FormatError
from shared.market.calendar import trading_day
from shared.metrics.bootstrap import Interval
from shared.metrics.equity import Month, months
from shared.metrics.monte_carlo import DRAWDOWN_PERCENTILES, MonteCarlo, MonteCarloConfig
from shared.metrics.sizing import SizingConfig
from shared.metrics.summary import MetricsConfig, Summary, document, summarise
from shared.numeric import Float64, Int64

#: The names by which columns are known; `pips` alone must be there.
PIPS, RISK, TIME = "pips", "risk", "time"


@dataclass(frozen=True)
class TradeFile:
    """Trades in the order in which they were left."""

    pips: Float64  # [N]
    risk_pips: Float64 | None  # [N]
    time_s: Int64 | None  # [N] UTC seconds at which each was left


def metrics(
    trades: Annotated[
        Path, typer.Argument(help="CSV with a header; columns pips, optional risk (pips) and time of exit")
    ],
    runs: Annotated[int, typer.Option(help="Monte Carlo runs")] = 200,
    seed: Annotated[int, typer.Option(help="of every resampling; the same seed gives the same numbers")] = 0,
    equity: Annotated[
        float, typer.Option(help="starting equity in pips of one unit")
    ] = MonteCarloConfig.starting_equity_pips,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Print every metric of a list of trades.

    With a column `time` days are cut at 17:00 New York and weekdays without a trade count as zero;
    without one, each trade counts as a day. Drawdown is seen at trade closes only.
    """
    config = MetricsConfig(
        monte_carlo=MonteCarloConfig(runs=runs, seed=seed, starting_equity_pips=equity),
        sizing=SizingConfig(seed=seed),
    )
    listed = read_trades(trades)
    days, daily, table = _days(listed)
    summary = summarise(listed.pips, np.cumsum(listed.pips), daily, config, risk_pips=listed.risk_pips)
    if as_json:
        whole = document(summary)
        assert isinstance(whole, dict)
        print_json({"file": str(trades), "days": days, **whole, "months": document(table)})
        return
    _print(str(trades), days, summary, table, with_risk=listed.risk_pips is not None)


def read_trades(path: Path) -> TradeFile:
    """Read a list of trades, put in order of time where the file has times.

    Raises:
        FormatError: names the file, the line and what would be right.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
            if PIPS not in columns:
                found = ", ".join(columns) or "nothing"
                raise FormatError(str(path), f"no column {PIPS!r} in the header ({found})", line=1)
            cells = [(rows.line_num, {name: row[column] for name, column in columns.items()}) for row in rows]
    except OSError as missing:
        raise FormatError(str(path), missing.strerror or "cannot be read") from missing
    except (UnicodeDecodeError, csv.Error) as garbled:
        raise FormatError(str(path), f"not a CSV file in UTF-8: {garbled}") from garbled
    if not cells:
        raise FormatError(str(path), "no trade: expected at least one line below the header")
    pips = np.array([_finite(path, line, PIPS, row[PIPS]) for line, row in cells])
    risk = np.array([_positive(path, line, row[RISK]) for line, row in cells]) if RISK in columns else None
    if TIME not in columns:
        return TradeFile(pips, risk, None)
    times = np.array([_moment(path, line, row[TIME]) for line, row in cells], np.int64)
    order = np.argsort(times, kind="stable")
    return TradeFile(pips[order], None if risk is None else risk[order], times[order])


def _finite(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise FormatError(str(path), f"{name} is {text!r}, expected a number", line=line)
    return value


def _positive(path: Path, line: int, text: str | None) -> float:
    value = _finite(path, line, RISK, text)
    if value <= 0.0:
        raise FormatError(str(path), f"{RISK} is {text!r}, expected a positive number of pips", line=line)
    return value


def _moment(path: Path, line: int, text: str | None) -> int:
    """ISO 8601, UTC where it names no zone, or seconds since 1970."""
    written = (text or "").strip()
    try:
        if written.isdecimal():
            return int(written)
        moment = datetime.fromisoformat(written)
    except ValueError as other:
        reason = f"{TIME} is {text!r}, expected ISO 8601 (2024-03-08T21:58:00Z) or seconds since 1970"
        raise FormatError(str(path), reason, line=line) from other
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _days(trades: TradeFile) -> tuple[str, Float64, tuple[Month, ...]]:
    """How days were told, the pips of each, and the monthly table where there are times."""
    if trades.time_s is None:
        return "each trade counts as a day: there is no column time", trades.pips, ()
    exit_days = trading_day(trades.time_s)
    span = np.arange(exit_days[0], exit_days[-1] + 1)
    weekdays = np.is_busday(span.astype("datetime64[D]"))
    days = span[weekdays | np.isin(span, exit_days)]
    daily = np.zeros(len(days))
    np.add.at(daily, np.searchsorted(days, exit_days), trades.pips)
    return "cut at 17:00 New York", daily, months(days, daily, exit_days, trades.pips)


def _print(title: str, days: str, summary: Summary, table: tuple[Month, ...], *, with_risk: bool) -> None:
    trades, daily, sizing = summary.trades, summary.daily, summary.sizing
    intervals = asdict(summary.intervals)
    confidence = f"{100 * summary.intervals.confidence:g} % interval"
    rows = [(name, value, _interval(intervals.get(name))) for name, value in asdict(trades).items()]
    print_table(title, ("trades", "value", confidence), rows)
    out.print(f"R: pips over {'the risk given' if with_risk else 'the mean absolute loss'}; days: {days}")
    print_fields(
        "days and drawdown",
        {
            **asdict(daily),
            "max_drawdown_pips": summary.max_drawdown_pips,
            "max_drawdown": summary.max_drawdown,
        },
    )
    safe_f = sizing.safe_f
    print_fields(
        "sizing",
        {
            "safe_f": safe_f.fraction if safe_f else None,
            "sized_on": f"{safe_f.resampling} resampling" if safe_f else None,
            "dd95": safe_f.dd95 if safe_f else None,
            "car25_percent": safe_f.car25_percent if safe_f else None,
            "kelly_discrete": summary.kelly_discrete,
            "kelly_continuous": sizing.kelly,
            "fraction": sizing.fraction,
            "because_of": sizing.reason,
        },
    )
    print_table("Monte Carlo, pips", _MONTE_CARLO, (_paths(paths) for paths in summary.monte_carlo))
    if table:
        print_table("months", tuple(asdict(table[0])), (tuple(asdict(month).values()) for month in table))


_MONTE_CARLO = (
    "resampling",
    "runs",
    "final 5 %",
    "median",
    "95 %",
    *(f"DD {percentile} %" for percentile in DRAWDOWN_PERCENTILES[2:]),
    "loss",
    "ruin",
)


def _paths(paths: MonteCarlo) -> list[object]:
    final = paths.fan_pips[:, -1]
    return [
        str(paths.resampling),
        paths.num_runs,
        *(float(value) for value in final[[0, 2, 4]]),
        *(float(value) for value in paths.max_drawdown_pips[2:]),
        paths.probability_of_loss,
        paths.probability_of_ruin,
    ]


def _interval(bounds: object) -> str:
    if not isinstance(bounds, dict):
        return ""
    interval = Interval(**bounds)
    return f"{figure(interval.low)} to {figure(interval.high)}"
