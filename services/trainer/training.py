"""A training run without input and output: it inserts trajectories, makes updates, saves and resumes.

The weights after N trajectories depend only on the settings and on these trajectories in their order. So a
killed run that resumes from a checkpoint and the journal has the same weights, bit for bit, as a run that
was never killed.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.intake.episodes import EpisodeWindow
from services.trainer.learning.distributed import Ranks
from services.trainer.learning.learner import Learner, LearnerCounters, UpdateStatistics, as_metrics
from services.trainer.learning.pacing import SamplesPerInsert
from services.trainer.learning.views import Views
from services.trainer.place import Rank
from services.trainer.replay.buffer import Replay
from services.trainer.replay.steps import Steps
from services.trainer.replay.targets import unrolled_steps
from shared.adapters.versions.agents import instrument_settings
from shared.adapters.versions.manifest import TRAINED_UNTIL, Manifest
from shared.adapters.versions.store import Tensors
from shared.agent.trajectory import Trajectory
from shared.environment.action import Action
from shared.errors import CheckpointError
from shared.market.bar import Instrument
from shared.model.config import ModelConfig
from shared.model.network import initial_network
from shared.numeric import Float32


@dataclass(frozen=True)
class TrainingConfig:
    """All settings that learning depends on."""

    model: ModelConfig
    replay: ReplayConfig
    learner: LearnerConfig
    trainer: TrainerConfig
    discount: float  # γ per bar, the same as in the search

    def recorded(self) -> dict[str, JsonValue]:
        """The settings as stored in a manifest."""
        return cast("dict[str, JsonValue]", asdict(self))


class SavedState(BaseModel):
    """The counters in a manifest's `state`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    attempts: int = Field(ge=0)
    updates: int = Field(ge=0)
    skipped: int = Field(ge=0)
    skipped_in_a_row: int = Field(ge=0)
    roll_backs: int = Field(ge=0)
    inserted: int = Field(ge=0)
    drawn: int = Field(ge=0)
    owed: float
    replay_start: int = Field(ge=0)  # journal number of the oldest trajectory that the replay needs

    @classmethod
    def of(cls, manifest: Manifest) -> "SavedState":
        """Read the counters of a version.

        Raises:
            CheckpointError: the manifest's state has other fields.
        """
        try:
            return cls.model_validate(manifest.state)
        except ValidationError as invalid:
            raise CheckpointError(f"version {manifest.version}: training state: {invalid}") from invalid


class Training:
    """One training run."""

    def __init__(
        self,
        config: TrainingConfig,
        features: Float32,
        dataset: str,
        ranks: Ranks | None = None,
        *,
        instrument: Instrument | None = None,
        trained_until: datetime | None = None,
    ) -> None:
        """Begin with random weights.

        Args:
            config: settings of the run.
            features: `[T, 9]` temporal features of the data set's bars.
            dataset: fingerprint of the data set.
            ranks: all ranks, if this is the leader of several.
            instrument: instrument of the bars; stored in each version.
            trained_until: opening time of the last bar of the training split; stored in each version.
        Raises:
            SettingsError: the configured device does not exist.
        """
        self.config, self.dataset, self.instrument = config, dataset, instrument
        self.trained_until = trained_until
        self.features = features
        seed = config.trainer.seed
        network = initial_network(config.model, seed)
        with torch.no_grad():
            network.policy_head.last.bias[Action.HOLD] = config.trainer.hold_logit
        device = ranks.device if ranks else Rank().device(config.trainer.device)
        self.learner = Learner(network, config.learner, seed, device, ranks)
        self.replay = Replay(config.replay, config.learner.unroll_steps)
        self.pacing = SamplesPerInsert(config.trainer.samples_per_insert, config.trainer.min_replay_steps)
        self.episodes = EpisodeWindow()
        self.position = 0  # trajectories learned from, ever
        self.roll_backs = 0
        self.last: UpdateStatistics | None = None
        self.replay_age = 0.0  # mean age of the last batch's steps, in trajectories inserted since

    @property
    def may_update(self) -> bool:
        """True when updates are owed for the trajectories inserted so far."""
        return self.pacing.may_draw(self.config.learner.batch_size, len(self.replay))

    def insert(self, trajectory: Trajectory) -> None:
        """Insert the next trajectory into the replay; its updates are then owed."""
        self._fill(trajectory)
        self.pacing.insert(len(trajectory))
        self.position += 1

    def update(self) -> UpdateStatistics:
        """Draw a batch and make one update."""
        torch.set_num_threads(self.config.trainer.threads)  # Numba's parallel kernels set it too
        config = self.config.learner
        steps = self.replay.sample(self.learner.generator(), config.batch_size, config.stretch_steps)
        self.pacing.draw(len(steps))
        self.replay_age = self.position - 1 - float(steps.positions.mean())
        self.last = self.learner.update(steps, self.views(steps))
        return self.last

    def views(self, steps: Steps) -> Views:
        """Collect the temporal features that some steps need."""
        return Views.of(
            self.features,
            steps.bars,
            steps.decisions,
            length=self.config.learner.stretch_steps,
            lookback=self.config.model.receptive_field,
        )

    def save(self, version: int) -> tuple[Manifest, Tensors, Tensors]:
        """Make a checkpoint of the present state: manifest, weights and optimizer moments."""
        counters = self.learner.counters
        state = SavedState(
            **asdict(counters),
            seed=self.learner.seed,
            roll_backs=self.roll_backs,
            inserted=self.pacing.inserted,
            drawn=self.pacing.drawn,
            owed=self.pacing.owed,
            replay_start=self.replay_start,
        )
        manifest = Manifest(
            version=version,
            episode=self.position,
            update=counters.updates,
            journal_position=self.position,
            dataset=self.dataset,
            model=cast("dict[str, JsonValue]", asdict(self.config.model)),
            settings=self._settings(),
            metrics=self.metrics(),
            state=state.model_dump(),
        )
        return manifest, self.learner.weights(), self.learner.moments()

    def _settings(self) -> dict[str, JsonValue]:
        """Settings of the run, with the instrument and the end of the training split."""
        settings = self.config.recorded() | instrument_settings(self.instrument)
        if self.trained_until is not None:
            settings[TRAINED_UNTIL] = self.trained_until.isoformat()
        return settings

    def resume(
        self, manifest: Manifest, weights: Tensors, moments: Tensors, read: Callable[[int], Trajectory]
    ) -> None:
        """Restore a saved state.

        Args:
            manifest: manifest of the version.
            weights: weights of the version.
            moments: moments of its optimizer.
            read: reads the trajectory with the given number from the journal.
        Raises:
            CheckpointError: the saved state does not fit this network.
            JournalError: the journal lacks a trajectory that the replay needs.
        """
        state = SavedState.of(manifest)
        # The split may have changed since the save. Then the weights come from both training splits.
        seen = [until for until in (self.trained_until, manifest.trained_until) if until is not None]
        self.trained_until = max(seen, default=None)
        self.learner.restore(dict(weights), dict(moments))
        self.learner.seed = state.seed
        self.learner.counters = LearnerCounters(
            attempts=state.attempts,
            updates=state.updates,
            skipped=state.skipped,
            skipped_in_a_row=state.skipped_in_a_row,
        )
        self.pacing.inserted, self.pacing.drawn, self.pacing.owed = state.inserted, state.drawn, state.owed
        self.roll_backs = state.roll_backs
        self.position = state.replay_start
        for trajectory in self._read_until(read, manifest.journal_position):
            self._fill(trajectory)
            self.position += 1

    def roll_back(self, weights: Tensors, moments: Tensors) -> None:
        """Replace diverged weights by those of an earlier version; all other state stays."""
        self.learner.restore(dict(weights), dict(moments))
        self.learner.counters.skipped_in_a_row = 0
        self.roll_backs += 1

    @property
    def replay_start(self) -> int:
        """Journal number of the oldest trajectory with a step in the replay."""
        oldest = self.replay.oldest_position
        return self.position if oldest is None else oldest

    def metrics(self) -> dict[str, float]:
        """Figures by name: losses of the last update, trading of the last episodes, replay and pacing."""
        replay = self.replay.statistics
        return {
            **(as_metrics(self.last) if self.last else {}),
            **self.episodes.metrics(),
            "samples_per_insert": self.pacing.ratio,
            "replay_steps": float(replay.num_steps),
            "replay_trade_share": replay.trade_share,
            "replay_successes": float(replay.num_success_steps),
            "updates_skipped": float(self.learner.counters.skipped),
            "roll_backs": float(self.roll_backs),
        }

    def _fill(self, trajectory: Trajectory) -> None:
        config = self.config.learner
        self.replay.extend(
            unrolled_steps(
                trajectory,
                self.position,
                discount=self.config.discount,
                n=config.n_step,
                unroll_steps=config.unroll_steps,
                trace_floor=config.trace_floor,
                shaping=config.shaping,
                trade_margin=config.trade_margin,
            )
        )
        self.episodes.add(trajectory)

    def _read_until(self, read: Callable[[int], Trajectory], end: int) -> Iterable[Trajectory]:
        return (read(position) for position in range(self.position, end))
