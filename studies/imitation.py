"""How much of the best policy can observation and network express? Trained by plain supervision on it.

The yardstick beside the best policy: the agent's own network (representation, policy head, value head)
shown what the best policy does in states of the training sessions, and what it earned from there on. Its
greedy policy, the most likely legal action and no search, is then played like any other rule.

Chance leads a session to its state: it enters either side and leaves, seldom enough that positions last.
So position and market are independent of each other, and what to do is learned in states too that the best
policy avoids and a player that sees less gets into. In the best policy's own states flat means "not worth
entering yet": half of the states from there made a player that trades less and earns less.

It is a yardstick and no strict bound: where the observation leaves the best action open, it takes the most
likely one, which need not be the one that earns most.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shared.agent.agent import Agent
from shared.agent.embeddings import EmbeddingCache
from shared.agent.rollout import MarketView
from shared.environment.action import LEGAL, Action, Side
from shared.environment.environment import EnvironmentConfig, Lanes, Prices, reset, step
from shared.environment.position import NUM_STATIC
from shared.errors import SettingsError
from shared.features.window import windows
from shared.model.config import ModelConfig
from shared.model.network import Network, initial_network
from shared.numeric import Float32, Float64, Int8, Int64
from studies.scores import Rule

#: How likely chance enters or leaves at a bar.
CHANGES_A_BAR = 1 / 30

#: Sessions of one draw, each of which gives one state.
SESSIONS = 4_096

_BATCH, _LEARNING_RATE, _VALUE_WEIGHT, _GRADIENT_NORM = 256, 2e-3, 0.25, 1.0


@dataclass(frozen=True)
class Lessons:
    """States with what the best policy does and earns from there on; S rows."""

    bars: Int64  # [S] whose close is decided at
    sides: Int8  # [S] of `Side`
    static: Float32  # [S, 6]
    actions: Int8  # [S] of `Action`
    returns: Float64  # [S] rewards to the session's end, undiscounted


@dataclass(frozen=True)
class ImitationSpent:
    """What learning to imitate has cost so far."""

    seconds: float
    updates: int
    states: int  # drawn from, each drawn once or not at all


#: Told what it has come to, after every draw of states.
Progress = Callable[[ImitationSpent], None]


def draw_lessons(
    rule: Rule,
    prices: Prices,
    starts: Int64,
    environment: EnvironmentConfig,
    rng: np.random.Generator,
    num_sessions: int = SESSIONS,
) -> Lessons:
    """Play sessions from random starts, by chance up to some decision, then by the rule; keep that state.

    Args:
        rule: the best policy.
        prices: of the market.
        starts: sessions to draw from.
        environment: costs, rewards and the sessions' length.
        rng: draws starts, decisions and what chance does.
        num_sessions: S.
    """
    lanes = reset(rng.choice(starts, num_sessions))
    kept_at = rng.integers(environment.session_bars, size=num_sessions)
    lessons = Lessons(
        bars=lanes.bar + kept_at,
        sides=np.empty(num_sessions, np.int8),
        static=np.empty((num_sessions, NUM_STATIC), np.float32),
        actions=np.empty(num_sessions, np.int8),
        returns=np.zeros(num_sessions),
    )
    for decision in range(environment.session_bars):
        best = rule(lanes)
        kept = np.flatnonzero(kept_at == decision)
        lessons.sides[kept], lessons.actions[kept] = lanes.side[kept], best[kept]
        lessons.static[kept] = lanes.static()[kept]
        follows = decision >= kept_at
        transition = step(lanes, np.where(follows, best, _by_chance(lanes, rng)), prices, environment)
        lanes = transition.lanes
        lessons.returns[:] += np.where(follows, transition.reward, 0.0)
    return lessons


def learn_to_imitate(
    rule: Rule,
    market: MarketView,
    starts: Int64,
    environment: EnvironmentConfig,
    model: ModelConfig,
    *,
    minutes: float,
    seed: int,
    clock: Callable[[], float],
    progress: Progress | None = None,
) -> tuple[Agent, ImitationSpent]:
    """Train a fresh network on the best policy; the learning rate falls to zero over the minutes.

    Args:
        rule: the best policy.
        market: bars to learn from.
        starts: of the training sessions.
        environment: costs, rewards and the sessions' length.
        model: sizes of the network.
        minutes: to learn for, more than 0.
        seed: of weights, states and dropout.
        clock: in seconds; what is learned depends on it only through how much fits into the minutes.
        progress: told after every draw of states.
    Raises:
        SettingsError: the minutes are not more than 0.
    """
    if not 0.0 < minutes < float("inf"):
        raise SettingsError(f"minutes of imitation are {minutes}, expected more than 0")
    rng = np.random.default_rng(seed)
    network = initial_network(model, seed).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, fused=True)
    begin, updates, states, seconds = clock(), 0, 0, 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while seconds < 60.0 * minutes:
            lessons = draw_lessons(rule, market.prices, starts, environment, rng)
            states += len(lessons.bars)
            for first in range(0, len(lessons.bars), _BATCH):
                rows = slice(first, first + _BATCH)
                loss = _loss(network, market, lessons, rows)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_NORM, foreach=True)
                for group in optimizer.param_groups:
                    group["lr"] = _LEARNING_RATE * max(0.0, 1.0 - seconds / (60.0 * minutes))
                optimizer.step()
                updates += 1
                seconds = clock() - begin
                if seconds >= 60.0 * minutes:
                    break
            if progress:
                progress(ImitationSpent(seconds, updates, states))
    return Agent(network, version=0), ImitationSpent(seconds, updates, states)


def most_likely(agent: Agent, features: Float32, starts: Int64, session_bars: int) -> Rule:
    """A network's policy without search as a rule for the sessions from these starts.

    Raises:
        DataError: a session reaches into bars without features.
    """
    bars = np.unique(starts[:, None] + np.arange(session_bars))
    temporal = EmbeddingCache(0).rows(agent, features, bars)

    def rule(lanes: Lanes) -> Int8:
        rows = np.searchsorted(bars, lanes.bar)
        roots = agent.roots(temporal[rows], lanes.static(), (lanes.side + 1).astype(np.int8))
        masked = np.where(lanes.legal(), roots.policy_logits, -np.inf)
        actions: Int8 = masked.argmax(axis=1).astype(np.int8)
        return actions

    return rule


def _by_chance(lanes: Lanes, rng: np.random.Generator) -> Int8:
    """Enter either side or leave, once in a while."""
    num_lanes = len(lanes.bar)
    entry = np.where(rng.random(num_lanes) < 0.5, Action.BUY, Action.SELL)
    change = np.where(lanes.side == Side.FLAT, entry, Action.CLOSE)
    actions: Int8 = np.where(rng.random(num_lanes) < CHANGES_A_BAR, change, Action.HOLD).astype(np.int8)
    return actions


def _loss(network: Network, market: MarketView, lessons: Lessons, rows: slice) -> Tensor:
    """Cross-entropies of the best action among the legal ones, and of what was earned."""
    temporal = torch.from_numpy(windows(market.features, lessons.bars[rows]))
    policy, value = network.prediction(
        network.representation(temporal, torch.from_numpy(lessons.static[rows]))
    )
    legal = torch.from_numpy(LEGAL[lessons.sides[rows] + 1])
    actions = torch.from_numpy(lessons.actions[rows].astype(np.int64))
    returns = network.support.encode(torch.from_numpy(lessons.returns[rows].astype(np.float32)))
    return functional.cross_entropy(
        policy.masked_fill(~legal, -torch.inf), actions
    ) + _VALUE_WEIGHT * functional.cross_entropy(value, returns)
