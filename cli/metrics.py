"""`metrics`: every metric of the validator, for any list of trades."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cli.output import err, figure, out, print_fields, print_json, print_table
from cli.trade_file import TradeFile, read_trades
from shared.errors import SettingsError
from shared.market.calendar import is_open, trading_day
from shared.metrics.bootstrap import Interval
from shared.metrics.equity import Month, months
from shared.metrics.monte_carlo import DRAWDOWN_PERCENTILES, MonteCarlo, MonteCarloConfig
from shared.metrics.sizing import SizingConfig
from shared.metrics.summary import NO_TIMES, MetricsConfig, Summary, document, summarise
from shared.metrics.undefined import reasons, why
from shared.numeric import Float64


def metrics(
    trades: Annotated[
        Path, typer.Argument(help="CSV with a header; columns pips, optional risk (pips) and time of exit")
    ],
    runs: Annotated[int, typer.Option(help="Monte Carlo runs, up to 100,000")] = 200,
    seed: Annotated[int, typer.Option(help="of every resampling; the same seed gives the same numbers")] = 0,
    equity: Annotated[
        float, typer.Option(help="starting equity in pips of one unit")
    ] = MonteCarloConfig.starting_equity_pips,
    trades_per_year: Annotated[
        float | None,
        typer.Option(help="annualises Sharpe and Sortino of a file without times", min=1.0, max=1e6),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Print every metric of a list of trades.

    With a column `time` days are cut at 17:00 New York and weekdays without a trade count as zero. Without
    one nothing is told per day or year, unless --trades-per-year says how many trades a year has. Drawdown
    is seen at trade closes only.
    """
    config = MetricsConfig(
        monte_carlo=MonteCarloConfig(runs=runs, seed=seed, starting_equity_pips=equity),
        sizing=SizingConfig(seed=seed),
    )
    listed = read_trades(trades)
    if trades_per_year is not None and listed.time_s is not None:
        raise SettingsError("--trades-per-year is for files without times; this one has a column `time`")
    for warning in listed.warnings:
        err.print(f"warning: {trades}: {warning}", highlight=False, soft_wrap=True, markup=False)
    days, daily, table = _days(listed)
    summary = summarise(
        listed.pips,
        np.cumsum(listed.pips),
        daily,
        config,
        risk_pips=listed.risk_pips,
        trades_per_year=trades_per_year,
    )
    undefined = {**reasons(summary), **reasons(table, "months")}
    if as_json:
        whole = document(summary)
        assert isinstance(whole, dict)
        print_json(
            {
                "file": str(trades),
                "days": days,
                "warnings": list(listed.warnings),
                **whole,
                "months": document(table),
                "undefined": undefined,
            }
        )
        return
    _print(str(trades), days, summary, table, undefined, with_risk=listed.risk_pips is not None)


def _days(trades: TradeFile) -> tuple[str, Float64 | None, tuple[Month, ...]]:
    """How days were told, the pips of each, and the monthly table; neither without times."""
    if trades.time_s is None:
        return NO_TIMES, None, ()
    closed = ~is_open(trades.time_s)
    exit_days = trading_day(trades.time_s - closed)  # a trade left as the week closes belongs to Friday
    span = np.arange(exit_days[0], exit_days[-1] + 1)
    weekdays = np.is_busday(span.astype("datetime64[D]"))
    days = span[weekdays | np.isin(span, exit_days)]
    daily = np.zeros(len(days))
    np.add.at(daily, np.searchsorted(days, exit_days), trades.pips)
    return "cut at 17:00 New York", daily, months(days, daily, exit_days, trades.pips)


def _print(
    title: str,
    days: str,
    summary: Summary,
    table: tuple[Month, ...],
    undefined: dict[str, str],
    *,
    with_risk: bool,
) -> None:
    intervals = asdict(summary.intervals)
    confidence = f"{100 * summary.intervals.confidence:g} % interval"
    rows = [
        (name, *_told({name: value}, "trades", undefined).values(), _interval(intervals, name, undefined))
        for name, value in asdict(summary.trades).items()
    ]
    print_table(title, ("trades", "value", confidence), rows)
    out.print(f"R: pips over {'the risk given' if with_risk else 'the mean absolute loss'}; days: {days}")
    daily = {name: value for name, value in asdict(summary.daily).items() if name != "reason"}
    drawdown = {"max_drawdown_pips": summary.max_drawdown_pips, "max_drawdown": summary.max_drawdown}
    print_fields("days and drawdown", {**_told(daily, "daily", undefined), **drawdown})
    print_fields("sizing", _sizing(summary, undefined))
    print_table("Monte Carlo, pips", _MONTE_CARLO, (_paths(paths) for paths in summary.monte_carlo))
    if table:
        months_told = (
            tuple(_told(asdict(month), f"months.{index}", undefined).values())
            for index, month in enumerate(table)
        )
        print_table("months", tuple(asdict(table[0])), months_told)


def _sizing(summary: Summary, undefined: dict[str, str]) -> dict[str, object]:
    sizing, safe_f = summary.sizing, summary.sizing.safe_f
    known = {
        "fraction": safe_f.fraction if safe_f else None,
        "dd95": safe_f.dd95 if safe_f else None,
        "car25_percent": safe_f.car25_percent if safe_f else None,
    }
    told = _told(known, "sizing.safe_f", undefined)
    return {
        "safe_f": told.pop("fraction"),
        "sized_on": f"{safe_f.resampling} resampling" if safe_f else why(undefined, "sizing.safe_f"),
        **told,
        **_told({"kelly_discrete": summary.kelly_discrete}, "", undefined),
        "kelly_continuous": _told({"kelly": sizing.kelly}, "sizing", undefined)["kelly"],
        "fraction": sizing.fraction,
        "because_of": sizing.reason,
    }


def _told(numbers: Mapping[str, object], path: str, undefined: dict[str, str]) -> dict[str, object]:
    """Numbers by their names below a path, those that are undefined as the reason."""
    return {
        name: why(undefined, f"{path}.{name}" if path else name) if value is None else value
        for name, value in numbers.items()
    }


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


def _interval(intervals: dict[str, object], name: str, undefined: dict[str, str]) -> str:
    if name not in intervals:
        return ""
    bounds = intervals[name]
    if not isinstance(bounds, dict):
        return why(undefined, f"intervals.{name}")
    interval = Interval(**bounds)
    return f"{figure(interval.low)} to {figure(interval.high)}"
