"""Draws the learning curve of a run."""

from pathlib import Path
from typing import TYPE_CHECKING

from shared.adapters.picture import blank_figure, require_drawable, write_png
from shared.environment.reward import RewardScheme
from shared.numeric import Float64
from studies.learn import LearnReport
from studies.scores import Estimate, Scores, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _BLUE = "#1f2933", "#7b8794", "#e4e7eb", "#2563eb"


def draw_curve(report: LearnReport, path: Path) -> None:
    """Write a PNG with the agent's earnings per session over the minutes of learning.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: the file cannot be written.
    """
    require_drawable(path)
    figure = blank_figure(9, 5)
    _draw(figure.subplots(), report)
    write_png(figure, path)


def _draw(axes: "Axes", report: LearnReport) -> None:
    config, spent = report.config, report.spent
    unit = "net pips" if config.environment.reward is RewardScheme.PNL else "reward"
    minutes = [point.spent.seconds / 60.0 for point in report.curve]
    earned = [_earned(report, point.agent) for point in report.curve]
    axes.fill_between(
        minutes,
        [one.interval.low for one in earned],
        [one.interval.high for one in earned],
        color=_BLUE,
        alpha=0.15,
        linewidth=0,
    )
    axes.plot(minutes, [one.value for one in earned], color=_BLUE, marker="o", markersize=4, label="agent")
    best = next(n for n, point in enumerate(report.curve) if point.spent == report.promoted)
    axes.plot(
        minutes[best], earned[best].value, "o", color=_BLUE, markersize=10, fillstyle="none", label="promoted"
    )
    levels = {
        "best policy": _earned(report, report.curve[0].best),
        "nothing": _earned(report, report.players["nothing"]),
    }
    if report.imitation:
        levels["imitation"] = _earned(report, report.imitation.validation)
    for (name, level), style in zip(levels.items(), ("-", "--", "-."), strict=False):
        axes.axhline(level.value, color=_INK, linestyle=style, linewidth=1.0, label=name)
    # Random play loses ten times what can be earned. A line for it would flatten the curve, so it is a label.
    random = _earned(report, report.players["random"]).value
    axes.plot([], [], " ", label=f"random {random:,.0f}")
    axes.set_title(
        f"{config.market}, {config.environment.reward}, seed {config.seed}: "
        f"{spent.episodes:,} episodes, {spent.updates:,} updates",
        loc="left",
        fontsize=11,
        fontweight="bold",
    )
    axes.set_xlabel("minutes of self-play and learning")
    axes.set_ylabel(f"{unit} a session, {len(report.curve[0].agent.pips)} validation sessions")
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_MUTED)
    axes.legend(frameon=False, ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.06))


def _earned(report: LearnReport, scores: Scores) -> Estimate:
    """The quantity that is maximised: the sum of rewards, or net pips under `pnl`."""
    values: Float64 = scores.pips if report.config.environment.reward is RewardScheme.PNL else scores.reward
    return mean(values)
