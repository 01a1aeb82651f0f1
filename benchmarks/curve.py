"""The learning curve of a run as a picture."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.learn import LearnReport
from benchmarks.scores import Estimate, Scores, mean
from shared.environment.reward import RewardScheme
from shared.errors import DataError, ServiceError
from shared.numeric import Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID, _BLUE = "#1f2933", "#7b8794", "#e4e7eb", "#2563eb"


def require_drawable(path: Path) -> None:
    """Check, before minutes are spent, that a picture can be drawn.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: there is no folder to write to.
    """
    if find_spec("matplotlib") is None:
        raise ServiceError(
            "matplotlib, which draws the picture, is not installed; it comes with the extra `plots`"
        )
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise DataError(f"{path}: expected the name of a file, in a folder that exists")


def draw_curve(report: LearnReport, path: Path) -> None:
    """Write a PNG: what the agent earned a session, over the minutes that it had learned.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: the file cannot be written.
    """
    require_drawable(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.subplots(), report)
    write_png(figure, path)


def write_png(figure: "Figure", path: Path) -> None:
    """Write a picture to a file.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        figure.savefig(path, format="png", facecolor="white")
    except OSError as refused:
        raise DataError(f"{path}: the picture cannot be written: {refused.strerror}") from refused


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
    levels = {
        "best policy": _earned(report, report.curve[0].best),
        "nothing": _earned(report, report.players["nothing"]),
        "random": _earned(report, report.players["random"]),
    }
    for (name, level), style in zip(levels.items(), ("-", "--", ":"), strict=True):
        axes.axhline(level.value, color=_INK, linestyle=style, linewidth=1.0, label=name)
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
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.06))


def _earned(report: LearnReport, scores: Scores) -> Estimate:
    """What is to be made large: the sum of rewards, which are net pips under `pnl`."""
    values: Float64 = scores.pips if report.config.environment.reward is RewardScheme.PNL else scores.reward
    return mean(values)
