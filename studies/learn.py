"""Does the agent learn? It trains on a market with a known best policy and is compared on unseen sessions.

Self-play and learning run in parallel in this process, on a core each. They are the worker and the trainer
of the services, without streams, journal and checkpoints. Two yardsticks play the same test sessions. One is
the best policy for the market and the reward scheme (`studies.optimum`). It sees the law's hidden state,
which the agent can only estimate from prices, so the agent's share need not reach 1. The other is the
agent's own network trained on that policy by supervision (`studies.imitation`). A random player and
one that does nothing play too. Every player is evaluated by undiscounted sums over complete
sessions, and the agent plays greedily.

Two versions of the agent are evaluated: the newest, and the one that did best in validation sessions, which a
validator would have promoted.
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

#: About five years: 1,400,000 bars to train on, and about 780 sessions each for validation and test. With 190
#: sessions a share has an uncertainty of a fifth, too much to distinguish 0.90 from 0.97.
NUM_BARS = 2_000_000

#: On a market where nothing can be earned, the agent should hardly trade.
GOAL_IDLE_TRADES = 0.2
GOAL_IDLE_LOSS_PIPS = 1.0

#: Goals by minutes on the mean-reverting market, as shares of the imitation's reward (net pips under `pnl`).
GOAL_SHARES = {15.0: 0.90, 60.0: 0.97}

#: Longest time between two evaluations.
MAX_EVALUATION_INTERVAL_SECONDS = 180.0

#: A run has learned when it earns this share of the imitation's net pips in the curve's sessions.
LEARNED_SHARE = 0.8

#: Called with the cost so far after every batch of sessions.
Progress = Callable[["Spent"], None]


@dataclass(frozen=True)
class LearnConfig:
    """Settings of one run; the groups are those of the services' settings.

    Raises:
        SettingsError: a number is out of range.
    """

    market: Market = Market.OU
    minutes: float = 5.0  # of self-play and learning; evaluation is not counted
    imitation_minutes: float = 3.0  # of supervision, in addition; 0 omits this yardstick
    seed: int = 0  # of market, weights, sessions and all random draws
    num_bars: int = NUM_BARS
    curve_points: int = 10  # evenly spaced evaluations; a long run has more
    curve_sessions: int = 768  # validation sessions per evaluation; they choose the promoted version
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    selfplay: SelfPlayConfig = field(default_factory=SelfPlayConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        """Check the fields that are not groups."""
        if not 0.0 < self.minutes < float("inf"):
            raise SettingsError(f"minutes is {self.minutes}, expected more than 0")
        if not 0.0 <= self.imitation_minutes < float("inf"):
            raise SettingsError(f"imitation_minutes is {self.imitation_minutes}, expected 0 or more")
        for name in ("curve_points", "curve_sessions"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True)
class Spent:
    """Cost of a run so far."""

    seconds: float  # of self-play and learning
    episodes: int
    updates: int


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation in validation sessions."""

    spent: Spent
    agent: Scores
    best: Scores  # the best policy in the same sessions


@dataclass(frozen=True)
class Imitation:
    """Cost and scores of the network that was trained on the best policy."""

    spent: ImitationSpent
    validation: Scores  # in the curve's sessions
    test: Scores


@dataclass(frozen=True)
class PlayerSummary:
    """One player's means over sessions; see `scores.share` for when there is no share."""

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
    """A goal and the value that was reached."""

    goal: str
    reached: float | None  # None: no comparison was possible
    met: bool


@dataclass(frozen=True)
class LearnReport:
    """Results of a run, in test sessions."""

    config: LearnConfig
    curve: tuple[CurvePoint, ...]  # from before learning to its end
    starts: Int64  # [S] test sessions
    optimum_value: float  # expected reward of the best policy, mean over these sessions
    players: dict[str, Scores]  # best, agent, promoted, nothing, random
    promoted_by_minutes: dict[float, Scores]  # test scores of the version promoted by each goal's time
    promoted: Spent  # cost of the version that did best in validation sessions
    imitation: Imitation | None  # None: omitted

    @property
    def spent(self) -> Spent:
        """Cost of the complete run."""
        return self.curve[-1].spent

    def summaries(self) -> list[PlayerSummary]:
        """Compare every player with both yardsticks."""
        best, imitation = self.players["best"], self.imitation and self.imitation.test
        players = {**self.players, "imitation": imitation} if imitation else self.players
        return [
            PlayerSummary(
                name,
                pips=mean(scores.pips),
                reward=mean(scores.reward),
                trades=float(scores.trades.mean()),
                share_of_pips=share(scores.pips, best.pips),
                share_of_reward=share(scores.reward, best.reward),
                imitation_share_of_pips=share(scores.pips, imitation.pips) if imitation else None,
                imitation_share_of_reward=share(scores.reward, imitation.reward) if imitation else None,
            )
            for name, scores in players.items()
        ]

    @property
    def learned(self) -> Spent | None:
        """Cost when the agent first earned `LEARNED_SHARE` of the imitation's pips."""
        if self.imitation is None:
            return None
        enough = LEARNED_SHARE * self.imitation.validation.pips.mean()
        return next((point.spent for point in self.curve if point.agent.pips.mean() >= enough > 0.0), None)

    def goals(self) -> list[LearnGoal]:
        """Goals of the run; some markets have none."""
        market, agent = self.config.market, self.players["agent"]
        if market is Market.OU:
            if self.imitation is None:
                return []
            imitation = self.imitation.test.reward
            return [
                _share_goal(minutes, share(scores.reward, imitation))
                for minutes, scores in self.promoted_by_minutes.items()
            ]
        if (market, self.config.environment.reward) != (Market.GBM, RewardScheme.PNL):
            return []
        trades, pips = float(agent.trades.mean()), float(agent.pips.mean())
        return [
            LearnGoal(f"at most {GOAL_IDLE_TRADES} trades a session", trades, trades <= GOAL_IDLE_TRADES),
            LearnGoal(f"a loss under {GOAL_IDLE_LOSS_PIPS} pip a session", pips, pips > -GOAL_IDLE_LOSS_PIPS),
        ]


def _share_goal(minutes: float, part: Estimate | None) -> LearnGoal:
    """Goal for the share of the imitation's reward; not met if the imitation earns nothing."""
    least = GOAL_SHARES[minutes]
    return LearnGoal(
        f"{least} of the imitation's reward, promoted after {minutes:g} minutes",
        part.value if part else None,
        part is not None and part.value >= least,
    )


@dataclass(frozen=True)
class _Arena:
    """A market with its best policy and its sessions by split."""

    view: MarketView
    optimum: Optimum
    states: Int64  # [T] hidden state of each bar
    train: Int64  # all starts
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
    """Train for some minutes, then evaluate every player in the test sessions.

    Args:
        config: settings of the run.
        clock: returns seconds; it only determines how much learning fits into the minutes.
        record: folder for the record of the run (shared/adapters/tables/run_record.py); None: no record.
        progress: called after every batch of sessions.
        imitation_progress: called while the imitation is trained, after the agent.
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
    evaluator = _Evaluator(arena, config, rule)
    promoted_by_minutes: dict[float, Scores] = {}
    due, last = 0.0, 60.0 * config.minutes
    with _Recorder(record, config) as recorder:
        for agent, spent in _versions(arena, config, training, clock, recorder):
            if progress:
                progress(spent)
            over = [m for m in GOAL_SHARES if m not in promoted_by_minutes and spent.seconds >= 60.0 * m]
            if over or spent.seconds >= min(due, last):
                recorder.record_evaluation(evaluator.validate(agent, spent), agent.version)
                due = spent.seconds + min(last / config.curve_points, MAX_EVALUATION_INTERVAL_SECONDS)
            promoted_by_minutes |= dict.fromkeys(over, evaluator.test(evaluator.promoted)) if over else {}
    rules = {
        "best": rule,
        "nothing": flat,
        "random": random_legal(np.random.default_rng(config.seed)),
    }
    players = {
        name: score_rule(played, arena.view.prices, arena.test, environment) for name, played in rules.items()
    }
    players |= {"agent": evaluator.test(agent), "promoted": evaluator.test(evaluator.promoted)}
    expected = float(arena.optimum.value[arena.states[arena.test]].mean())
    imitation_result = (
        _imitation(arena, config, rule, evaluator.sessions, clock, imitation_progress)
        if config.imitation_minutes > 0.0
        else None
    )
    return LearnReport(
        config,
        tuple(evaluator.curve),
        arena.test,
        expected,
        players,
        promoted_by_minutes,
        evaluator.promoted_at,
        imitation_result,
    )


class _Evaluator:
    """Plays versions in validation sessions, and selected versions in test sessions."""

    def __init__(self, arena: _Arena, config: LearnConfig, rule: Rule) -> None:
        self._arena, self._config = arena, config
        self.sessions = choose_sessions(arena.validation, config.curve_sessions)
        self._best = score_rule(rule, arena.view.prices, self.sessions, config.environment)
        self._tested: dict[int, Scores] = {}  # by version
        self._highest_reward = -np.inf  # reward of the promoted version in validation sessions
        self.curve: list[CurvePoint] = []

    def validate(self, agent: Agent, spent: Spent) -> CurvePoint:
        """Play the curve's sessions; promote the version if no earlier one did better."""
        point = CurvePoint(spent, self._play(agent, self.sessions), self._best)
        self.curve.append(point)
        reward = float(point.agent.reward.mean())
        if reward >= self._highest_reward:
            self._highest_reward, self.promoted, self.promoted_at = reward, agent, spent
        return point

    def test(self, agent: Agent) -> Scores:
        """Play the test sessions, at most once per version."""
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
    """Train the agent's network on the best policy and play validation and test sessions."""
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


#: Figures recorded for each evaluation.
_EVALUATION = ("seconds", "pips", "reward", "trades", "best_pips", "best_reward")


class _Recorder:
    """Inserts trajectories and makes updates; records both if a folder is given."""

    def __init__(self, folder: Path | None, config: LearnConfig) -> None:
        self._metrics = TrainerMetrics()
        self._record = (
            RunRecord(folder, update_figures=UPDATE_FIGURES, version_figures=_EVALUATION, tensorboard=True)
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
        """Insert a trajectory."""
        training.insert(trajectory)
        self._metrics.inserted(training, trajectory)

    def update(self, training: Training) -> None:
        """Make an update."""
        begin = perf_counter()
        statistics = training.update()
        self._metrics.updated(training, statistics, perf_counter() - begin)

    def record_evaluation(self, point: CurvePoint, version: int) -> None:
        """Record the evaluation of a version."""
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
    """Yield the agent before learning and after every batch of sessions, until the minutes are spent.

    While the learner uses one batch, the previous version plays the next batch.
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
            is_over = _deadline(begin + left, clock)
            playing = player.submit(worker.play, agent, training.position, is_over)
            _learn_from(batch, training, recorder, is_over)
            batch = playing.result()
            agent = Agent(training.learner.acting, agent.version + 1)
            seconds += clock() - begin


def _deadline(end: float, clock: Callable[[], float]) -> Callable[[], bool]:
    """Make a function that returns True from a time on."""
    return lambda: clock() >= end


def _learn_from(
    batch: Sequence[Trajectory], training: Training, recorder: _Recorder, is_over: Callable[[], bool]
) -> None:
    """Insert a batch of sessions and make the updates that are due; stop updating when the time is over.

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
