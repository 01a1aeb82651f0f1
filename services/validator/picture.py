"""The chart of a validation report: Monte Carlo equity fan, drawdown, and net pips per month."""

from typing import TYPE_CHECKING

import numpy as np

from services.validator.report import ValidationReport
from shared.adapters.picture import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    RED,
    TITLE,
    blank_figure,
    date_axis,
    panels,
    png_bytes,
)
from shared.metrics.equity import drawdown_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def picture(report: ValidationReport) -> bytes:
    """Draw the chart of a report, as a PNG."""
    figure = blank_figure(11, 10)
    fan, drawdown, months = panels(figure, (3.0, 1.4, 1.4))
    _draw_fan(fan, report)
    _draw_drawdown(drawdown, report)
    _draw_months(months, report)
    return png_bytes(figure)


def _draw_fan(axes: "Axes", report: ValidationReport) -> None:
    axes.set_title("Equity: actual, and resampled in blocks of trades", **TITLE)
    axes.set_xlabel("trades")
    axes.set_ylabel("pips")
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    if not report.summary.monte_carlo:
        axes.text(0.5, 0.5, "no trades", transform=axes.transAxes, ha="center", color=MUTED)
        return
    paths = report.summary.monte_carlo[-1]
    trades, (p5, p25, p50, p75, p95) = paths.fan_trades, paths.fan_pips
    axes.fill_between(trades, p5, p95, color=BLUE, alpha=0.12, linewidth=0, label="5 to 95 %")
    axes.fill_between(trades, p25, p75, color=BLUE, alpha=0.22, linewidth=0, label="25 to 75 %")
    axes.plot(trades, p50, color=BLUE, linewidth=1.4, label="median")
    axes.plot(trades, report.realised_pips, color=INK, linewidth=1.6, label="actual")
    axes.margins(x=0.0)
    axes.legend(frameon=False, loc="best", ncols=4, fontsize=9)


def _draw_drawdown(axes: "Axes", report: ValidationReport) -> None:
    axes.set_title("Drawdown at the end of each trading day", **TITLE)
    axes.set_ylabel("pips")
    dates = report.days.astype("datetime64[D]")
    below = drawdown_curve(np.cumsum(report.daily_pips))
    axes.fill_between(dates, below, 0.0, step="post", color=RED, alpha=0.25, linewidth=0)
    axes.step(dates, below, where="post", color=RED, linewidth=1.0)
    axes.set_ylim(min(1.1 * below.min(), -1.0), 0.0)
    if len(dates) > 1:
        axes.set_xlim(dates[0], dates[-1])
    date_axis(axes, min_ticks=3, max_ticks=9)


def _draw_months(axes: "Axes", report: ValidationReport) -> None:
    axes.set_title("Net pips per month, marked to market", **TITLE)
    axes.set_ylabel("pips")
    pips = [month.pips for month in report.months]
    bars = axes.bar(
        range(len(pips)),
        pips,
        width=0.7,
        color=[GREEN if value >= 0 else RED for value in pips],
        alpha=0.85,
    )
    if len(pips) <= 24:
        axes.bar_label(bars, labels=[f"{value:+,.0f}" for value in pips], padding=3, fontsize=8, color=INK)
    every = max(1, len(pips) // 12)
    axes.set_xticks(range(0, len(pips), every), [month.month for month in report.months[::every]])
    axes.set_xlim(-0.75, max(len(pips), 4) - 0.25)
    axes.margins(y=0.25)
    axes.grid(visible=False, axis="x")
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
