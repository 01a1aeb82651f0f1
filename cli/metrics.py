"""`metrics`: the validator's metrics for any list of trades."""

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
        Path,
        typer.Argument(
            help="CSV file with the column pips, and optionally risk (in pips) and time (of exit)"
        ),
    ],
    runs: Annotated[int, typer.Option(help="number of Monte Carlo runs, up to 100,000")] = 200,
    seed: Annotated[int, typer.Option(help="random seed; the same seed gives the same numbers")] = 0,
    equity: Annotated[
        float, typer.Option(help="starting equity in pips; each trade is of one unit")
    ] = MonteCarloConfig.starting_equity_pips,
    trades_per_year: Annotated[
        float | None,
        typer.Option(
            help="trades per year, to annualise the Sharpe and Sortino ratios if the file has no times",
            min=1.0,
            max=1e6,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Print all metrics of a list of trades.

    With a column `time`, days end at 17:00 New York time, and weekdays without a trade count as zero. Without
    it there are no metrics per day, and none per year unless --trades-per-year is given. Drawdown is measured
    at trade closes only.
    """
    config = MetricsConfig(
        monte_carlo=MonteCarloConfig(runs=runs, seed=seed, starting_equity_pips=equity),
        sizing=SizingConfig(seed=seed),
    )
    listed = read_trades(trades)
    if trades_per_year is not None and listed.time_s is not None:
        raise SettingsError("--trades-per-year is for files without times; this file has a column `time`")
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
        metrics_document = document(summary)
        assert isinstance(metrics_document, dict)
        print_json(
            {
                "file": str(trades),
                "days": days,
                "warnings": list(listed.warnings),
                **metrics_document,
                "months": document(table),
                "undefined": undefined,
            }
        )
        return
    _print(str(trades), days, summary, table, undefined, with_risk=listed.risk_pips is not None)


def _days(trades: TradeFile) -> tuple[str, Float64 | None, tuple[Month, ...]]:
    """A note on where days end, the pips of each day, and the monthly table; without times, only the note."""
    if trades.time_s is None:
        return NO_TIMES, None, ()
    closed = ~is_open(trades.time_s)
    exit_days = trading_day(trades.time_s - closed)  # an exit at Friday 17:00 belongs to Friday
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
        (
            name,
            *_with_reasons({name: value}, "trades", undefined).values(),
            _interval(intervals, name, undefined),
        )
        for name, value in asdict(summary.trades).items()
    ]
    print_table(title, ("trades", "value", confidence), rows)
    out.print(f"R: pips divided by {'the risk' if with_risk else 'the mean absolute loss'}; days: {days}")
    daily = {name: value for name, value in asdict(summary.daily).items() if name != "reason"}
    drawdown = {"max_drawdown_pips": summary.max_drawdown_pips, "max_drawdown": summary.max_drawdown}
    print_fields("days and drawdown", {**_with_reasons(daily, "daily", undefined), **drawdown})
    print_fields("sizing", _sizing(summary, undefined))
    figures = [_monte_carlo_figures(paths) for paths in summary.monte_carlo]
    resamplings = [str(paths.resampling) for paths in summary.monte_carlo]
    rows = [(name, *(column[name] for column in figures)) for name in figures[0]]
    print_table("Monte Carlo, pips", ("resampling", *resamplings), rows)
    if table:
        month_rows = (
            tuple(_with_reasons(asdict(month), f"months.{index}", undefined).values())
            for index, month in enumerate(table)
        )
        print_table("months", tuple(asdict(table[0])), month_rows)


def _sizing(summary: Summary, undefined: dict[str, str]) -> dict[str, object]:
    sizing, safe_f = summary.sizing, summary.sizing.safe_f
    known = {
        "fraction": safe_f.fraction if safe_f else None,
        "dd95": safe_f.dd95 if safe_f else None,
        "car25_percent": safe_f.car25_percent if safe_f else None,
    }
    shown = _with_reasons(known, "sizing.safe_f", undefined)
    return {
        "safe_f": shown.pop("fraction"),
        "sized_on": f"{safe_f.resampling} resampling" if safe_f else why(undefined, "sizing.safe_f"),
        **shown,
        **_with_reasons({"kelly_discrete": summary.kelly_discrete}, "", undefined),
        "kelly_continuous": _with_reasons({"kelly": sizing.kelly}, "sizing", undefined)["kelly"],
        "fraction": sizing.fraction,
        "because_of": sizing.reason,
    }


def _with_reasons(numbers: Mapping[str, object], path: str, undefined: dict[str, str]) -> dict[str, object]:
    """The numbers, with undefined ones replaced by the reason.

    Args:
        numbers: numbers by name; None if undefined.
        path: path of the group in the document, for example `trades`.
        undefined: reasons by path of the number.
    """
    return {
        name: why(undefined, f"{path}.{name}" if path else name) if value is None else value
        for name, value in numbers.items()
    }


def _monte_carlo_figures(paths: MonteCarlo) -> dict[str, object]:
    low, median, high = paths.fan_pips[[0, 2, 4], -1].tolist()
    drawdowns = zip(DRAWDOWN_PERCENTILES[2:], paths.max_drawdown_pips[2:].tolist(), strict=True)
    return {
        "runs": paths.num_runs,
        "final profit, 5th percentile": low,
        "final profit, median": median,
        "final profit, 95th percentile": high,
        **{f"drawdown, {percentile}th percentile": value for percentile, value in drawdowns},
        "probability of loss": paths.probability_of_loss,
        "probability of ruin": paths.probability_of_ruin,
    }


def _interval(intervals: dict[str, object], name: str, undefined: dict[str, str]) -> str:
    if name not in intervals:
        return ""
    bounds = intervals[name]
    if not isinstance(bounds, dict):
        return why(undefined, f"intervals.{name}")
    interval = Interval(**bounds)
    return f"{figure(interval.low)} to {figure(interval.high)}"
