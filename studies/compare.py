"""What a way of learning is worth: the same market learned in several ways, by several seeds.

Every run is one of `studies.learn`; runs differ from each other in what their name says and in the seed
of market, weights and everything drawn. A run has learned when it first earns a given part of what the best
policy earns in the curve's validation sessions.

Runs take minutes each, so each is kept in a folder as soon as it is done. Whoever calls again with the same
folder goes on with those that are missing; several processes may share one folder.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from services.trainer.config import Shaping
from shared.adapters.files import write_whole
from shared.errors import DataError, ServiceError, SettingsError
from shared.search.config import Selection
from studies.learn import LearnConfig, LearnReport, Spent, learn

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
    "no trade margin": _with("learner", trade_margin=0.0),
    "returns through excursions": _with("learner", trace_floor=0.0),
    "no excursions": _with("selfplay", excursion_rate=0.0, excursion_rate_end=None),
    "excursions at one rate": _with("selfplay", excursion_rate_end=None),
    "a short average": _with("learner", average_share=0.0),
    "dropout": _with("model", dropout=0.1),
    "no trade quota": _with("replay", trade_quota=0.0),
    "small differences blown up": _with("search", min_q_span=0.01),
    "no preference to hold": _with("trainer", hold_logit=0.0),
}


def plan(ways: Iterable[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Way and seed of every run, in the order in which they are made: one seed by all ways, then the next.

    Raises:
        SettingsError: a way is not known.
    """
    ways = tuple(dict.fromkeys(ways))
    for way in ways:
        if way not in WAYS:
            raise SettingsError(f"no way of learning {way!r}, expected one of {', '.join(WAYS)}")
    return [(way, seed) for seed in seeds for way in ways]


def configured(config: LearnConfig, way: str, seed: int) -> LearnConfig:
    """The settings of one run."""
    return replace(WAYS[way](config), seed=seed)


@dataclass(frozen=True)
class Learned:
    """One run's way to its goal; what diverged has no curve and no share."""

    way: str
    seed: int
    minutes: tuple[float, ...]  # of each evaluation
    shares: tuple[float, ...]  # of the best policy's pips, in the same validation sessions
    reached: Spent | None  # when the share was first enough; None: never
    share: float | None  # of the best policy's pips in the test sessions, at the end
    failure: str | None = None  # why the run came to no end

    @classmethod
    def of(cls, way: str, report: LearnReport) -> "Learned":
        """What a run's report says of it."""
        shares = [float(point.agent.pips.mean() / point.best.pips.mean()) for point in report.curve]
        spent = [point.spent for point in report.curve]
        reached = (then for then, share in zip(spent, shares, strict=True) if share >= LEARNED_SHARE)
        players = report.players
        return cls(
            way,
            report.config.seed,
            tuple(then.seconds / 60.0 for then in spent),
            tuple(shares),
            next(reached, None),
            float(players["agent"].pips.mean() / players["best"].pips.mean()),
        )

    def __str__(self) -> str:
        """One line for people."""
        name = f"{self.way}, seed {self.seed}"
        if self.failure is not None:
            return f"{name}: {self.failure}"
        reached = self.reached
        after = (
            f"after {reached.seconds / 60.0:.2f} minutes and {reached.episodes:,} episodes"
            if reached
            else "not reached"
        )
        return f"{name}: {LEARNED_SHARE} of the best policy's {after}; {self.share:.2f} at the end"


@dataclass(frozen=True)
class Recorded:
    """What the file of a run holds."""

    run: Learned
    settings: dict[str, JsonValue]  # with which it was made, those that its way changes included


_RECORDED = TypeAdapter(Recorded)


class CompareRecord:
    """A folder with a JSON file for every run, all of them made with the same settings."""

    def __init__(self, folder: Path, config: LearnConfig) -> None:
        """A record that is there, or that `begin` makes.

        Args:
            folder: of the record.
            config: of every run, but for its way and seed.
        """
        self._folder, self._config = folder, config

    def begin(self) -> None:
        """Make the folder where it is not there.

        Raises:
            DataError: it cannot be made.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as refused:
            raise DataError(f"{self._folder}: no folder for a record: {refused.strerror}") from refused

    def runs(self) -> list[Learned]:
        """Every run that is kept.

        Raises:
            DataError: a file is damaged, or named as another run's.
            SettingsError: a run was made with other settings.
        """
        return [self._read(path) for path in sorted(self._folder.glob("*.json"))]

    def find(self, way: str, seed: int) -> Learned | None:
        """A run, where it is kept; raises as `runs` does."""
        path = self._path(way, seed)
        return self._read(path) if path.exists() else None

    def keep(self, run: Learned) -> None:
        """Put a run on the disk.

        Raises:
            DataError: the disk refuses.
        """
        path = self._path(run.way, run.seed)
        document = to_jsonable_python(Recorded(run, self._settings(run)))
        try:
            write_whole(path, json.dumps(document, indent=1).encode())
        except OSError as refused:
            raise DataError(f"{path}: the run cannot be kept: {refused.strerror}") from refused

    def _path(self, way: str, seed: int) -> Path:
        return self._folder / f"{re.sub('[^a-z0-9]+', '-', way)}-{seed}.json"

    def _settings(self, run: Learned) -> dict[str, JsonValue]:
        settings: dict[str, JsonValue] = to_jsonable_python(configured(self._config, run.way, run.seed))
        return settings

    def _read(self, path: Path) -> Learned:
        try:
            recorded = _RECORDED.validate_json(path.read_bytes())
        except (OSError, ValidationError) as damaged:
            raise DataError(f"{path}: no run of `./run compare`, remove it: {damaged}") from damaged
        run = recorded.run
        if run.way not in WAYS or path != self._path(run.way, run.seed):
            raise DataError(f"{path}: holds the run of {run.way!r} by seed {run.seed}: remove or rename it")
        if others := list(_differences(recorded.settings, self._settings(run))):
            raise SettingsError(
                f"{path}: made with other settings: {'; '.join(others)}; expected those of the record, "
                "or another folder"
            )
        return run


def _differences(recorded: JsonValue, asked: JsonValue, name: str = "") -> Iterator[str]:
    """What two settings differ in, by name."""
    if isinstance(recorded, dict) and isinstance(asked, dict):
        for key in dict.fromkeys((*recorded, *asked)):
            yield from _differences(recorded.get(key), asked.get(key), f"{name}.{key}" if name else key)
    elif recorded != asked:
        yield f"{name} {recorded}, not {asked}"


def compare(
    config: LearnConfig, runs: Iterable[tuple[str, int]], record: CompareRecord | None = None
) -> Iterator[Learned]:
    """Learn once for every way and seed; each run when it is done.

    A run that diverges is told, and the next one begun.

    Args:
        config: of every run, but for its way and seed.
        runs: ways and seeds, from `plan`.
        record: keeps every run; what another process has put there by now is not repeated.
    Raises:
        DataError: the record cannot be read or written.
    """
    if record:
        record.begin()
    for way, seed in runs:
        run = record.find(way, seed) if record else None
        if run is None:
            run = _learn(config, way, seed)
            if record:
                record.keep(run)
        yield run


def _learn(config: LearnConfig, way: str, seed: int) -> Learned:
    try:
        return Learned.of(way, learn(configured(config, way, seed)))
    except ServiceError as diverged:
        return Learned(way, seed, (), (), None, None, failure=str(diverged))


@dataclass(frozen=True)
class Range:
    """What seeds come to together, and the least and the most of them."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class WaySummary:
    """One way over its seeds. A run that never reached the goal took infinitely long."""

    way: str
    num_runs: int
    num_reached: int
    num_failed: int
    median_minutes: Range  # until the goal
    median_episodes: Range
    mean_share: Range | None  # at the end; None: all diverged


def summaries(runs: Sequence[Learned]) -> list[WaySummary]:
    """Each way over its seeds."""
    return [
        _summary(way, [run for run in runs if run.way == way])
        for way in dict.fromkeys(run.way for run in runs)
    ]


def _summary(way: str, runs: Sequence[Learned]) -> WaySummary:
    never = float("inf")
    minutes = [run.reached.seconds / 60.0 if run.reached else never for run in runs]
    episodes = [float(run.reached.episodes) if run.reached else never for run in runs]
    shares = [run.share for run in runs if run.share is not None]
    return WaySummary(
        way,
        num_runs=len(runs),
        num_reached=sum(run.reached is not None for run in runs),
        num_failed=sum(run.failure is not None for run in runs),
        median_minutes=Range(median(minutes), min(minutes), max(minutes)),
        median_episodes=Range(median(episodes), min(episodes), max(episodes)),
        mean_share=Range(fmean(shares), min(shares), max(shares)) if shares else None,
    )
