"""What a way of learning is worth: the same market learned in several ways, by several seeds.

Every run is one of `benchmarks.learn`; runs differ from each other in what their name says and in the seed
of market, weights and everything drawn. A run has learned when it first earns a given part of what the best
policy earns in the curve's validation sessions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.learn import LearnConfig, LearnReport, Spent, learn
from services.trainer.config import Shaping
from shared.adapters.picture import blank_figure, require_drawable, write_png
from shared.errors import SettingsError
from shared.numeric import Float64
from shared.search.config import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Changes one thing in a run.
Change = Callable[[LearnConfig], LearnConfig]

#: Part of the best policy's pips at which a run counts as having learned: 0.8 of what imitation comes to.
LEARNED_SHARE = 0.44


def _with(group: str, **fields: object) -> Change:
    """Other numbers in one group of settings."""
    return lambda config: replace(config, **{group: replace(getattr(config, group), **fields)})


#: The ways that docs/learning.md compares, the first one being the others' yardstick. Those that leave
#: something out are meant for `config/tuned.toml`.
WAYS: dict[str, Change] = {
    "as given": lambda config: config,
    "puct": _with("search", selection=Selection.PUCT),
    "25 simulations": _with("search", simulations=25),
    "puct, 25 simulations": _with("search", selection=Selection.PUCT, simulations=25),
    "one-step returns": _with("learner", n_step=1),
    "10-step returns": _with("learner", n_step=10),
    "rewards as paid": _with("learner", shaping=Shaping.NONE),
    "returns through excursions": _with("learner", trace_floor=0.0),
    "no excursions": _with("selfplay", excursion_rate=0.0),
    "small differences blown up": _with("search", min_q_span=0.01),
    "no preference to hold": _with("trainer", hold_logit=0.0),
}


@dataclass(frozen=True)
class Learned:
    """One run's way to its goal."""

    way: str
    seed: int
    minutes: Float64  # [P] of each evaluation
    shares: Float64  # [P] of the best policy's pips, in the same validation sessions
    reached: Spent | None  # when the share was first enough; None: never
    share: float  # of the best policy's pips in the test sessions, at the end

    def document(self) -> dict[str, object]:
        """As JSON tells it."""
        curve = {"minutes": self.minutes.tolist(), "shares": self.shares.tolist()}
        reached = asdict(self.reached) if self.reached else None
        return {"way": self.way, "seed": self.seed, "reached": reached, "share": self.share, "curve": curve}

    @classmethod
    def of(cls, way: str, report: LearnReport) -> "Learned":
        """What a run's report says of it."""
        shares = np.array([point.agent.pips.mean() / point.best.pips.mean() for point in report.curve])
        reached = next(
            (
                point.spent
                for point, share in zip(report.curve, shares, strict=True)
                if share >= LEARNED_SHARE
            ),
            None,
        )
        players = report.players
        return cls(
            way,
            report.config.seed,
            np.array([point.spent.seconds / 60.0 for point in report.curve]),
            shares,
            reached,
            float(players["agent"].pips.mean() / players["best"].pips.mean()),
        )


def compare(config: LearnConfig, ways: Iterable[str], seeds: Sequence[int]) -> Iterator[Learned]:
    """Learn once for every way and seed; each run when it is done.

    Raises:
        SettingsError: a way is not known.
    """
    ways = tuple(ways)
    for way in ways:
        if way not in WAYS:
            raise SettingsError(f"no way of learning {way!r}, expected one of {', '.join(WAYS)}")
    for seed in seeds:
        for way in ways:
            yield Learned.of(way, learn(replace(WAYS[way](config), seed=seed)))


def draw_comparison(runs: Sequence[Learned], path: Path) -> None:
    """Write a PNG: each way's mean share over the minutes, and every run of it.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: the file cannot be written.
    """
    require_drawable(path)
    figure = blank_figure(9, 5)
    _draw(figure.subplots(), runs)
    write_png(figure, path)


def _draw(axes: "Axes", runs: Sequence[Learned]) -> None:
    for number, way in enumerate(dict.fromkeys(run.way for run in runs)):
        color = f"C{number}"
        mine = [run for run in runs if run.way == way]
        for run in mine:
            axes.plot(run.minutes, run.shares, color=color, alpha=0.25, linewidth=1.0)
        grid = np.linspace(0.0, min(run.minutes[-1] for run in mine), 60)
        shares = np.mean([np.interp(grid, run.minutes, run.shares) for run in mine], axis=0)
        axes.plot(grid, shares, color=color, linewidth=2.0, label=f"{way} ({len(mine)} seeds)")
    axes.axhline(LEARNED_SHARE, color="#1f2933", linestyle=":", linewidth=1.0)
    axes.set_xlabel("minutes of self-play and learning")
    axes.set_ylabel("share of the best policy's net pips")
    axes.set_title("Ways of learning: thin lines are seeds, thick ones their mean")
    axes.grid(color="#e4e7eb")
    axes.legend(frameon=False)
