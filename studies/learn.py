"""Does it learn? Train on a market whose best policy is known, and compare on sessions it never saw.

Self-play and learning run side by side in this one process, a core each: the worker and the trainer of
the services without streams, journal and checkpoints. There are two yardsticks, played in the same test
sessions. One is the best policy for that market and that reward scheme (`studies.optimum`); it sees the
law's hidden state, which the agent can only guess at from prices, so its share need not reach 1. The other
is the agent's own network trained by supervision on that policy (`studies.imitation`). Beside them stand
a player of random legal actions and one that does nothing. All are judged greedily by plain sums over whole
sessions, undiscounted.

Two versions of the agent are judged: the newest, and the one that did best in validation sessions so far,
which is what a validator would have promoted.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Self

import numpy as np
from pydantic_core import to_jsonable_python

from services.selfplay.config import SelfPlayConfig
from services.selfplay.worker import SelfPlayWorker
from services.trainer.config import LearnerConfig, ReplayConfig, TrainerConfig
from services.trainer.publishing.metrics import UPDATE_FIGURES, TrainerMetrics
from services.trainer.training import Training, TrainingConfig
from services.validator.baselines import flat, random_legal
from services.validator.evaluate import choose_sessions
from shared.adapters.tables.dataset import build_dataset
from shared.adapters.tables.run_record import RunRecord
from shared.agent.agent import Agent
from shared.agent.rollout import MarketView
from shared.agent.trajectory import Trajectory
from shared.environment.environment import EnvironmentConfig, Prices
from shared.environment.reward import RewardScheme
from shared.errors import DataError, ServiceError, SettingsError
from shared.market.session import Split
from shared.market.synthetic import LAWS, Market, synthesize_with_state
from shared.messages.schemas import now
from shared.model.config import ModelConfig
from shared.numeric import Int64
from shared.runtime.allocator import keep_freed_memory
from shared.search.config import SearchConfig
from studies import imitation
from studies.imitation import ImitationSpent, learn_to_imitate, most_likely
from studies.optimum import Optimum, best_rule, chain_of, solve, states_on_chain
from studies.scores import Estimate, Rule, Scores, mean, score_agent, score_rule, share

#: Some five years: 1,400,000 bars to train on, and about 780 sessions of validation and test each. A share
#: of what 190 sessions earn is known to a fifth, too little to tell 0.90 from 0.97.
NUM_BARS = 2_000_000

#: Where nothing can be earned, an agent should have learned to do next to nothing.
GOAL_IDLE_TRADES = 0.2
GOAL_IDLE_LOSS_PIPS = 1.0

#: Of the imitation's reward (net pips under `pnl`), on the market whose moves come back, after these minutes.
GOAL_SHARES = {15.0: 0.90, 60.0: 0.97}

#: The agent is evaluated on the way at least this often.
LONGEST_UNJUDGED_SECONDS = 180.0

#: A run has learned when it earns this part of the imitation's net pips in the curve's sessions.
LEARNED_SHARE = 0.8

#: Told what the run has come to, after every batch of sessions.
Progress = Callable[["Spent"], None]


@dataclass(frozen=True)
class LearnConfig:
    """One run; the groups are those of the services' settings.

    Raises:
        SettingsError: a number is out of range.
    """

    market: Market = Market.OU
    minutes: float = 5.0  # of self-play and learning; evaluation is not counted
    imitation_minutes: float = 3.0  # of supervision, on top of the minutes; 0 leaves that yardstick out
    seed: int = 0  # of market, weights, sessions and everything drawn
    num_bars: int = NUM_BARS
    curve_points: int = 10  # evaluations on the way, evenly spaced; more of them in a long run
    curve_sessions: int = 768  # validation sessions of each of them: what is promoted is chosen by them
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    selfplay: SelfPlayConfig = field(default_factory=SelfPlayConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        """Check what the groups do not."""
        if not 0.0 < self.minutes < float("inf"):
            raise SettingsError(f"minutes is {self.minutes}, expected more than 0")
        if not 0.0 <= self.imitation_minutes < float("inf"):
            raise SettingsError(f"imitation_minutes is {self.imitation_minutes}, expected 0 or more")
        for name in ("curve_points", "curve_sessions"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True)
class Spent:
    """What a run has cost so far."""

    seconds: float  # of self-play and learning
    episodes: int
    updates: int


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation on the way, on validation sessions."""

    spent: Spent
    agent: Scores
    best: Scores  # the best policy in the same sessions


@dataclass(frozen=True)
class Imitation:
    """The network that was trained on the best policy."""

    spent: ImitationSpent
    validation: Scores  # in the curve's sessions
    test: Scores


@dataclass(frozen=True)
class PlayerSummary:
    """One player's mean session; see `scores.share` for when there is no share."""

    name: str
    pips: Estimate
    reward: Estimate
    trades: float
    share_of_pips: Estimate | None  # of the best policy's
    share_of_reward: Estimate | None
    imitation_share_of_pips: Estimate | None  # of the imitation's, where there is one
    imitation_share_of_reward: Estimate | None


@dataclass(frozen=True)
class LearnGoal:
    """Something to be reached, and what was."""

    goal: str
    reached: float | None  # None: there is nothing to compare with
    met: bool


@dataclass(frozen=True)
class LearnReport:
    """What a run came to, in test sessions."""

    config: LearnConfig
    curve: tuple[CurvePoint, ...]  # from before learning to the end of it
    starts: Int64  # [S] test sessions
    optimum_value: float  # mean computed reward of the best policy in these sessions
    players: dict[str, Scores]  # best, agent, promoted, nothing, random
    on_time: dict[float, Scores]  # the promoted version when the minutes of a goal were over
    promoted: Spent  # what the version had cost that did best in validation sessions
    imitation: Imitation | None  # left out

    @property
    def spent(self) -> Spent:
        """What the whole run cost."""
        return self.curve[-1].spent

    def summaries(self) -> list[PlayerSummary]:
        """Every player against both yardsticks."""
        best, bound = self.players["best"], self.imitation and self.imitation.test
        judged = {**self.players, "imitation": bound} if bound else self.players
        return [
            PlayerSummary(
                name,
                pips=mean(scores.pips),
                reward=mean(scores.reward),
                trades=float(scores.trades.mean()),
                share_of_pips=share(scores.pips, best.pips),
                share_of_reward=share(scores.reward, best.reward),
                imitation_share_of_pips=share(scores.pips, bound.pips) if bound else None,
                imitation_share_of_reward=share(scores.reward, bound.reward) if bound else None,
            )
            for name, scores in judged.items()
        ]

    @property
    def learned(self) -> Spent | None:
        """What it took until the agent first earned `LEARNED_SHARE` of the imitation's pips."""
        if self.imitation is None:
            return None
        enough = LEARNED_SHARE * self.imitation.validation.pips.mean()
        return next((point.spent for point in self.curve if point.agent.pips.mean() >= enough > 0.0), None)

    def goals(self) -> list[LearnGoal]:
        """What the run was to reach on the markets that there are goals for."""
        market, agent = self.config.market, self.players["agent"]
        if market is Market.OU:
            if self.imitation is None:
                return []
            bound = self.imitation.test.reward
            return [
                _share_goal(minutes, share(scores.reward, bound)) for minutes, scores in self.on_time.items()
            ]
        if (market, self.config.environment.reward) != (Market.GBM, RewardScheme.PNL):
            return []
        trades, pips = float(agent.trades.mean()), float(agent.pips.mean())
        return [
            LearnGoal(f"at most {GOAL_IDLE_TRADES} trades a session", trades, trades <= GOAL_IDLE_TRADES),
            LearnGoal(f"a loss under {GOAL_IDLE_LOSS_PIPS} pip a session", pips, pips > -GOAL_IDLE_LOSS_PIPS),
        ]


def _share_goal(minutes: float, part: Estimate | None) -> LearnGoal:
    """Of an imitation that earns nothing there is no share, and the goal is not met."""
    least = GOAL_SHARES[minutes]
    return LearnGoal(
        f"{least} of the imitation's reward, promoted after {minutes:g} minutes",
        part.value if part else None,
        part is not None and part.value >= least,
    )


@dataclass(frozen=True)
class _Arena:
    """A market with its best policy, cut into splits."""

    view: MarketView
    optimum: Optimum
    states: Int64  # [T] of the optimum's chain
    train: Int64  # every start
    validation: Int64  # non-overlapping starts
    test: Int64


def learn(
    config: LearnConfig,
    *,
    clock: Callable[[], float] = perf_counter,
    record: Path | None = None,
    progress: Progress | None = None,
    imitation_progress: imitation.Progress | None = None,
) -> LearnReport:
    """Train for some minutes, then judge every player in the test sessions.

    Args:
        config: of the run.
        clock: in seconds; what is learned depends on it only through how much fits into the minutes.
        record: folder for the record of the run (shared/adapters/tables/run_record.py); None keeps none.
        progress: told after every batch of sessions.
        imitation_progress: told while the imitation is trained, after the agent.
    Raises:
        DataError: the market is too short for a session of each split, or the record cannot be written.
        ServiceError: learning diverged.
    """
    keep_freed_memory()  # as the trainer does
    arena = _arena(config)
    environment = config.environment
    training = Training(
        TrainingConfig(
            config.model,
            config.replay,
            config.learner,
            replace(config.trainer, seed=config.seed),
            config.search.discount,
        ),
        arena.view.features,
        arena.view.fingerprint,
    )
    rule = best_rule(arena.optimum, arena.states)
    judge = _Judge(arena, config, rule)
    on_time: dict[float, Scores] = {}
    due, last = 0.0, 60.0 * config.minutes
    with _Recorder(record, config) as recorder:
        for agent, spent in _versions(arena, config, training, clock, recorder):
            if progress:
                progress(spent)
            over = [m for m in GOAL_SHARES if m not in on_time and spent.seconds >= 60.0 * m]
            if over or spent.seconds >= min(due, last):
                recorder.judged(judge.validate(agent, spent), agent.version)
                due = spent.seconds + min(last / config.curve_points, LONGEST_UNJUDGED_SECONDS)
            on_time |= dict.fromkeys(over, judge.test(judge.promoted)) if over else {}
    rules = {
        "best": rule,
        "nothing": flat,
        "random": random_legal(np.random.default_rng(config.seed)),
    }
    players = {
        name: score_rule(played, arena.view.prices, arena.test, environment) for name, played in rules.items()
    }
    players |= {"agent": judge.test(agent), "promoted": judge.test(judge.promoted)}
    expected = float(arena.optimum.value[arena.states[arena.test]].mean())
    bound = (
        _imitation(arena, config, rule, judge.sessions, clock, imitation_progress)
        if config.imitation_minutes > 0.0
        else None
    )
    return LearnReport(
        config, tuple(judge.curve), arena.test, expected, players, on_time, judge.promoted_at, bound
    )


class _Judge:
    """Plays versions in validation sessions on the way, and in the test sessions those that are asked for."""

    def __init__(self, arena: _Arena, config: LearnConfig, rule: Rule) -> None:
        self._arena, self._config = arena, config
        self.sessions = choose_sessions(arena.validation, config.curve_sessions)
        self._best = score_rule(rule, arena.view.prices, self.sessions, config.environment)
        self._tested: dict[int, Scores] = {}  # by version
        self._most = -np.inf  # reward of the promoted version in validation sessions
        self.curve: list[CurvePoint] = []

    def validate(self, agent: Agent, spent: Spent) -> CurvePoint:
        """Play the curve's sessions; what does as well as any before is promoted."""
        point = CurvePoint(spent, self._play(agent, self.sessions), self._best)
        self.curve.append(point)
        reward = float(point.agent.reward.mean())
        if reward >= self._most:
            self._most, self.promoted, self.promoted_at = reward, agent, spent
        return point

    def test(self, agent: Agent) -> Scores:
        """Play the test sessions, once a version."""
        if agent.version not in self._tested:
            self._tested[agent.version] = self._play(agent, self._arena.test)
        return self._tested[agent.version]

    def _play(self, agent: Agent, starts: Int64) -> Scores:
        return score_agent(agent, self._arena.view, starts, self._config.environment, self._config.search)


def _arena(config: LearnConfig) -> _Arena:
    law = LAWS[config.market]
    synthetic = synthesize_with_state(law, config.num_bars, config.seed)
    dataset = build_dataset(synthetic.bars, f"synthetic {config.market}, seed {config.seed}")
    starts = {
        Split.TRAIN: dataset.sessions.every(Split.TRAIN),
        Split.VALIDATION: dataset.sessions.non_overlapping(Split.VALIDATION),
        Split.TEST: dataset.sessions.non_overlapping(Split.TEST),
    }
    for split, found in starts.items():
        if len(found) == 0:
            raise DataError(f"a market of {config.num_bars:,} bars has no {split} session: give it more bars")
    return _Arena(
        MarketView(dataset.features, Prices.of(dataset.bars), dataset.outcomes, dataset.fingerprint),
        solve(chain_of(law), config.environment),
        states_on_chain(law, synthetic.state),
        *starts.values(),
    )


def _imitation(
    arena: _Arena,
    config: LearnConfig,
    rule: Rule,
    validation: Int64,
    clock: Callable[[], float],
    progress: imitation.Progress | None,
) -> Imitation:
    """Train the agent's network on the best policy and play the sessions of curve and test."""
    view, environment = arena.view, config.environment
    agent, spent = learn_to_imitate(
        rule,
        view,
        arena.train,
        environment,
        config.model,
        minutes=config.imitation_minutes,
        seed=config.seed,
        clock=clock,
        progress=progress,
    )
    scored = [
        score_rule(
            most_likely(agent, view.features, starts, environment.session_bars),
            view.prices,
            starts,
            environment,
        )
        for starts in (validation, arena.test)
    ]
    return Imitation(spent, *scored)


#: Figures of each evaluation in the record of a run.
_JUDGED = ("seconds", "pips", "reward", "trades", "best_pips", "best_reward")


class _Recorder:
    """Keeps the record of a run, where one is wanted."""

    def __init__(self, folder: Path | None, config: LearnConfig) -> None:
        self._metrics = TrainerMetrics()
        self._record = (
            RunRecord(folder, update_figures=UPDATE_FIGURES, version_figures=_JUDGED, tensorboard=True)
            if folder
            else None
        )
        if self._record:
            self._record.settings(to_jsonable_python(config))
            self._metrics.start_record(self._record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()

    def insert(self, training: Training, trajectory: Trajectory) -> None:
        """Take in a trajectory."""
        training.insert(trajectory)
        self._metrics.inserted(training, trajectory)

    def update(self, training: Training) -> None:
        """Make an update."""
        begin = perf_counter()
        statistics = training.update()
        self._metrics.updated(training, statistics, perf_counter() - begin)

    def judged(self, point: CurvePoint, version: int) -> None:
        """A version was evaluated."""
        if self._record:
            figures = {
                "seconds": point.spent.seconds,
                "pips": float(point.agent.pips.mean()),
                "reward": float(point.agent.reward.mean()),
                "trades": float(point.agent.trades.mean()),
                "best_pips": float(point.best.pips.mean()),
                "best_reward": float(point.best.reward.mean()),
            }
            self._record.version(version, point.spent.episodes, point.spent.updates, now(), figures)


def _versions(
    arena: _Arena,
    config: LearnConfig,
    training: Training,
    clock: Callable[[], float],
    recorder: _Recorder,
) -> Iterator[tuple[Agent, Spent]]:
    """The agent before learning and after every batch of sessions, until the minutes are spent.

    While it learns from a batch the next one is played, by the version that the batch before came to.
    """
    worker = SelfPlayWorker(
        "learn",
        arena.view,
        arena.train,
        config.selfplay,
        config.environment,
        config.search,
        np.random.default_rng(config.seed),
    )
    agent, seconds = Agent(training.learner.acting, version=0), 0.0
    batch: Sequence[Trajectory] = ()
    with ThreadPoolExecutor(1, "self-play") as player:
        while True:
            yield agent, Spent(seconds, training.position, training.learner.counters.updates)
            begin, left = clock(), 60.0 * config.minutes - seconds
            if left <= 0.0:
                return
            is_over = _from(begin + left, clock)
            playing = player.submit(worker.play, agent, training.position, is_over)
            _learn_from(batch, training, recorder, is_over)
            batch = playing.result()
            agent = Agent(training.learner.acting, agent.version + 1)
            seconds += clock() - begin


def _from(end: float, clock: Callable[[], float]) -> Callable[[], bool]:
    """True from a moment on."""
    return lambda: clock() >= end


def _learn_from(
    batch: Sequence[Trajectory], training: Training, recorder: _Recorder, is_over: Callable[[], bool]
) -> None:
    """Make the updates that a batch of sessions is worth; break off when the time is over.

    Raises:
        ServiceError: learning diverged.
    """
    for trajectory in batch:
        recorder.insert(training, trajectory)
        while training.may_update and not is_over():
            recorder.update(training)
            if training.learner.diverged:
                raise ServiceError(
                    f"learning diverged: {training.learner.counters.skipped_in_a_row} updates in a row "
                    "were not finite"
                )
