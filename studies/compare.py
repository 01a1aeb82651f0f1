"""Compares variants of learning: ablations of the settings, each run on the same market with several seeds.

Every run is one of `studies.learn`. Runs differ in the settings of their variant and in the seed, which
determines market, weights and all random draws. A run has learned when it first earns `LEARNED_SHARE` of
the best policy's pips in the curve's validation sessions.

A run takes minutes, so each one is saved to a folder as soon as it is finished. A second call with the same
folder makes only the missing runs. Several processes may share a folder.
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
from shared.adapters.files import write_atomically
from shared.errors import DataError, ServiceError, SettingsError
from shared.search.config import Selection
from studies.learn import LearnConfig, LearnReport, Spent, learn

#: Changes the settings of a run.
Change = Callable[[LearnConfig], LearnConfig]

#: Share of the best policy's pips at which a run has learned: 0.8 of the imitation's share.
LEARNED_SHARE = 0.44


def _with(group: str, **fields: object) -> Change:
    """Make a change of some fields in one group of settings."""
    return lambda config: replace(config, **{group: replace(getattr(config, group), **fields)})


#: The variants in docs/learning.md; the first is the baseline. Ablations change `config/tuned.toml`.
VARIANTS: dict[str, Change] = {
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


def plan(variants: Iterable[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """List variant and seed of every run in order: all variants with one seed, then all with the next.

    Raises:
        SettingsError: a variant is unknown.
    """
    variants = tuple(dict.fromkeys(variants))
    for variant in variants:
        if variant not in VARIANTS:
            raise SettingsError(f"no variant {variant!r}, expected one of {', '.join(VARIANTS)}")
    return [(variant, seed) for seed in seeds for variant in variants]


def configured(config: LearnConfig, variant: str, seed: int) -> LearnConfig:
    """Settings of one run."""
    return replace(VARIANTS[variant](config), seed=seed)


@dataclass(frozen=True)
class RunResult:
    """Result of one run; a run that diverged has no curve and no share."""

    variant: str
    seed: int
    minutes: tuple[float, ...]  # of each evaluation
    shares: tuple[float, ...]  # of the best policy's pips, in the same validation sessions
    reached: Spent | None  # cost when the share first reached `LEARNED_SHARE`; None: never
    share: float | None  # of the best policy's pips in the test sessions, at the end
    failure: str | None = None  # why the run did not finish

    @classmethod
    def of(cls, variant: str, report: LearnReport) -> "RunResult":
        """Extract the result from a run's report."""
        shares = [float(point.agent.pips.mean() / point.best.pips.mean()) for point in report.curve]
        spent = [point.spent for point in report.curve]
        reached = (then for then, share in zip(spent, shares, strict=True) if share >= LEARNED_SHARE)
        players = report.players
        return cls(
            variant,
            report.config.seed,
            tuple(then.seconds / 60.0 for then in spent),
            tuple(shares),
            next(reached, None),
            float(players["agent"].pips.mean() / players["best"].pips.mean()),
        )

    def __str__(self) -> str:
        """Format the result as one line."""
        name = f"{self.variant}, seed {self.seed}"
        if self.failure is not None:
            return f"{name}: {self.failure}"
        reached = self.reached
        after = (
            f"after {reached.seconds / 60.0:.2f} minutes and {reached.episodes:,} episodes"
            if reached
            else "not reached"
        )
        return f"{name}: {LEARNED_SHARE} of the best policy's pips {after}; {self.share:.2f} at the end"


@dataclass(frozen=True)
class Recorded:
    """Contents of a run's file."""

    run: RunResult
    settings: dict[str, JsonValue]  # all settings of the run, including those that its variant changes


_RECORDED = TypeAdapter(Recorded)


class CompareRecord:
    """A folder with a JSON file for every run, all with the same base settings."""

    def __init__(self, folder: Path, config: LearnConfig) -> None:
        """Refer to a record that exists, or that `begin` creates.

        Args:
            folder: folder of the record.
            config: settings of every run, except for its variant and seed.
        """
        self._folder, self._config = folder, config

    def begin(self) -> None:
        """Create the folder if it does not exist.

        Raises:
            DataError: the folder cannot be created.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise DataError(f"{self._folder}: cannot hold a record: {failure.strerror}") from failure

    def runs(self) -> list[RunResult]:
        """Read every saved run.

        Raises:
            DataError: a file is damaged, or has another run's name.
            SettingsError: a run was made with other settings.
        """
        return [self._read(path) for path in sorted(self._folder.glob("*.json"))]

    def find(self, variant: str, seed: int) -> RunResult | None:
        """Read one run if it was saved; raises the same errors as `runs`."""
        path = self._path(variant, seed)
        return self._read(path) if path.exists() else None

    def keep(self, run: RunResult) -> None:
        """Save a run.

        Raises:
            DataError: the file cannot be written.
        """
        path = self._path(run.variant, run.seed)
        document = to_jsonable_python(Recorded(run, self._settings(run)))
        try:
            write_atomically(path, json.dumps(document, indent=1).encode())
        except OSError as failure:
            raise DataError(f"{path}: the run cannot be saved: {failure.strerror}") from failure

    def _path(self, variant: str, seed: int) -> Path:
        return self._folder / f"{re.sub('[^a-z0-9]+', '-', variant)}-{seed}.json"

    def _settings(self, run: RunResult) -> dict[str, JsonValue]:
        settings: dict[str, JsonValue] = to_jsonable_python(configured(self._config, run.variant, run.seed))
        return settings

    def _read(self, path: Path) -> RunResult:
        try:
            recorded = _RECORDED.validate_json(path.read_bytes())
        except (OSError, ValidationError) as damaged:
            raise DataError(f"{path}: not a run of `./run compare`, remove it: {damaged}") from damaged
        run = recorded.run
        if run.variant not in VARIANTS or path != self._path(run.variant, run.seed):
            raise DataError(
                f"{path}: holds the run of {run.variant!r} with seed {run.seed}: remove or rename it"
            )
        if others := list(_differences(recorded.settings, self._settings(run))):
            raise SettingsError(
                f"{path}: made with other settings: {'; '.join(others)}; use the same settings, "
                "or another folder"
            )
        return run


def _differences(recorded: JsonValue, expected: JsonValue, name: str = "") -> Iterator[str]:
    """Describe each difference between two settings by name."""
    if isinstance(recorded, dict) and isinstance(expected, dict):
        for key in dict.fromkeys((*recorded, *expected)):
            yield from _differences(recorded.get(key), expected.get(key), f"{name}.{key}" if name else key)
    elif recorded != expected:
        yield f"{name} {recorded}, not {expected}"


def compare(
    config: LearnConfig, runs: Iterable[tuple[str, int]], record: CompareRecord | None = None
) -> Iterator[RunResult]:
    """Make the run of every variant and seed; yield each as soon as it is finished, also if it diverged.

    Args:
        config: settings of every run, except for its variant and seed.
        runs: variants and seeds, from `plan`.
        record: saves every run; a run that another process has saved meanwhile is read from it.
    Raises:
        DataError: the record cannot be read or written.
    """
    if record:
        record.begin()
    for variant, seed in runs:
        run = record.find(variant, seed) if record else None
        if run is None:
            run = _learn(config, variant, seed)
            if record:
                record.keep(run)
        yield run


def _learn(config: LearnConfig, variant: str, seed: int) -> RunResult:
    try:
        return RunResult.of(variant, learn(configured(config, variant, seed)))
    except ServiceError as diverged:
        return RunResult(variant, seed, (), (), None, None, failure=str(diverged))


@dataclass(frozen=True)
class Range:
    """A summary value over seeds, with the smallest and the largest value of a seed."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class VariantSummary:
    """One variant summarised over its seeds; a run that never reached the goal counts as infinitely long."""

    variant: str
    num_runs: int
    num_reached: int
    num_failed: int
    median_minutes: Range  # until the goal
    median_episodes: Range
    mean_share: Range | None  # at the end; None: all runs diverged


def summaries(runs: Sequence[RunResult]) -> list[VariantSummary]:
    """Summarise each variant over its seeds."""
    return [
        _summary(variant, [run for run in runs if run.variant == variant])
        for variant in dict.fromkeys(run.variant for run in runs)
    ]


def _summary(variant: str, runs: Sequence[RunResult]) -> VariantSummary:
    never = float("inf")
    minutes = [run.reached.seconds / 60.0 if run.reached else never for run in runs]
    episodes = [float(run.reached.episodes) if run.reached else never for run in runs]
    shares = [run.share for run in runs if run.share is not None]
    return VariantSummary(
        variant,
        num_runs=len(runs),
        num_reached=sum(run.reached is not None for run in runs),
        num_failed=sum(run.failure is not None for run in runs),
        median_minutes=Range(median(minutes), min(minutes), max(minutes)),
        median_episodes=Range(median(episodes), min(episodes), max(episodes)),
        mean_share=Range(fmean(shares), min(shares), max(shares)) if shares else None,
    )
