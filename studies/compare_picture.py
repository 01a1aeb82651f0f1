"""Draws the learning curves of `./run compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shared.adapters.picture import blank_figure, require_drawable, write_png
from shared.numeric import Float64
from studies.compare import LEARNED_SHARE, RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours of the variants in order; they repeat after the last one.
_COLOURS = (*(f"C{number}" for number in range(10)), "#1f2933")


def draw_comparison(runs: Sequence[RunResult], path: Path) -> None:
    """Write a PNG with each variant's mean share over the minutes and with every single run.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: the file cannot be written.
    """
    require_drawable(path)
    figure = blank_figure(11.5, 5)
    _draw(figure.subplots(), runs)
    write_png(figure, path)


def _draw(axes: "Axes", runs: Sequence[RunResult]) -> None:
    for number, variant in enumerate(dict.fromkeys(run.variant for run in runs)):
        color = _COLOURS[number % len(_COLOURS)]
        mine = [run for run in runs if run.variant == variant]
        done = [run for run in mine if run.failure is None]
        for run in done:
            axes.plot(run.minutes, run.shares, color=color, alpha=0.25, linewidth=1.0)
        label = (
            f"{variant} ({len(done)} seeds)"
            if done == mine
            else f"{variant} ({len(done)} of {len(mine)} seeds)"
        )
        axes.plot(*_mean_curve(done), color=color, linewidth=2.0, label=label)
    axes.axhline(LEARNED_SHARE, color="#1f2933", linestyle=":", linewidth=1.0)
    axes.set_xlabel("minutes of self-play and learning")
    axes.set_ylabel("share of the best policy's net pips")
    axes.set_title("Variants of learning: thin lines are seeds, thick ones their mean")
    axes.grid(color="#e4e7eb")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _mean_curve(runs: Sequence[RunResult]) -> tuple[Float64, Float64]:
    """Minutes up to the end of the shortest run, and the runs' mean share at each of them."""
    if not runs:
        return np.zeros(0), np.zeros(0)
    grid = np.linspace(0.0, min(run.minutes[-1] for run in runs), 60)
    return grid, np.mean([np.interp(grid, run.minutes, run.shares) for run in runs], axis=0)
