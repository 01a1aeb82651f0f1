"""The picture of `bench improvement`."""

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.improvement import RULES, Improvement, ImprovementReport
from shared.adapters.picture import require_drawable, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours of `RULES`.
COLOURS = ("#2563eb", "#d97706", "#6b7280")
_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_MARKERS = ("o", "s", "^")

#: Half the width of a 95 % interval, in standard errors.
_BAR = 1.96


def draw_improvement(report: ImprovementReport, path: Path) -> None:
    """Write a PNG with the gain of each rule over the number of simulations, one panel per error.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: the file cannot be written.
    """
    require_drawable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    errors = sorted({row.error for row in report.rows})
    figure = Figure(figsize=(4.8 * len(errors), 4.6), dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    FigureCanvasAgg(figure)
    (panels,) = figure.subplots(1, len(errors), sharey=True, squeeze=False)
    for error, axes in zip(errors, panels, strict=True):
        _draw(axes, report, error)
    panels[0].set_ylabel("gain of the policy target over the prior, in true Q")
    figure.suptitle(
        f"Gain of the policy target on {report.problems:,} one-step problems (bars: 95 %)",
        x=0.01,
        ha="left",
        color=_INK,
        fontsize=12,
        fontweight="bold",
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    write_png(figure, path)


def _draw(axes: "Axes", report: ImprovementReport, error: float) -> None:
    axes.axhline(report.best_gain, color=_INK, linestyle="--", linewidth=1.0, label="always the best action")
    for rule, colour, marker in zip(RULES, COLOURS, _MARKERS, strict=True):
        rows = [row for row in report.rows if (row.rule, row.error) == (rule, error)]
        _draw_rule(axes, rows, rule, colour, marker)
    ticks = sorted({row.simulations for row in report.rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("simulations")
    model = "an exact model" if error == 0.0 else f"a model with standard error {error:g}"
    axes.set_title(f"error {error:g}: {model}", loc="left", fontsize=10, color=_INK)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_MUTED)


def _draw_rule(axes: "Axes", rows: list[Improvement], rule: str, colour: str, marker: str) -> None:
    axes.errorbar(
        [row.simulations for row in rows],
        [row.gain for row in rows],
        yerr=[_BAR * row.standard_error for row in rows],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.8,
        capsize=2.5,
        label=rule,
    )
