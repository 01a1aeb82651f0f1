"""Trains the agent's network on the best policy, to see how much of that policy it can express.

This is a second yardstick beside the best policy. The agent's own network (representation, policy head,
value head) is trained on the best policy's actions in states of the training sessions and on its returns
from there. The network's greedy policy, the most likely legal action without search, is then played like
any other rule.

A random player plays each session up to the state that is drawn. It enters and closes at random, but seldom,
so that positions last. So position and market are independent, and the network also learns states that the
best policy avoids but a player with less information reaches. In the best policy's own states, being flat
implies "not worth entering yet". With half of the states from there, the network traded and earned less.

The result is not a strict bound. Where the observation does not determine the best action, the network takes
the most likely one, which need not earn the most.
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

#: Probability that the random player enters or closes at a bar.
CHANGES_A_BAR = 1 / 30

#: Sessions per draw; each gives one state.
SESSIONS = 4_096

_BATCH, _LEARNING_RATE, _VALUE_WEIGHT, _GRADIENT_NORM = 256, 2e-3, 0.25, 1.0


@dataclass(frozen=True)
class LabelledStates:
    """States labelled with the best policy's action and its return from there; S rows."""

    bars: Int64  # [S] bars at whose close the decision is made
    sides: Int8  # [S] of `Side`
    static: Float32  # [S, 6]
    actions: Int8  # [S] of `Action`
    returns: Float64  # [S] pips, undiscounted sum of rewards to the session's end


@dataclass(frozen=True)
class ImitationSpent:
    """Cost of the imitation so far."""

    seconds: float
    updates: int
    states: int  # drawn; each is used at most once


#: Called with the cost so far after every draw of states.
Progress = Callable[[ImitationSpent], None]


def draw_labelled_states(
    rule: Rule,
    prices: Prices,
    starts: Int64,
    environment: EnvironmentConfig,
    rng: np.random.Generator,
    num_sessions: int = SESSIONS,
) -> LabelledStates:
    """Play sessions at random up to a random decision, label its state, and play on by the rule.

    Args:
        rule: the best policy.
        prices: prices of the market.
        starts: starts of the sessions to draw from.
        environment: costs, rewards and the sessions' length.
        rng: draws starts, decisions and random actions.
        num_sessions: number of sessions, S.
    """
    lanes = reset(rng.choice(starts, num_sessions))
    kept_at = rng.integers(environment.session_bars, size=num_sessions)
    drawn = LabelledStates(
        bars=lanes.bar + kept_at,
        sides=np.empty(num_sessions, np.int8),
        static=np.empty((num_sessions, NUM_STATIC), np.float32),
        actions=np.empty(num_sessions, np.int8),
        returns=np.zeros(num_sessions),
    )
    for decision in range(environment.session_bars):
        best = rule(lanes)
        kept = np.flatnonzero(kept_at == decision)
        drawn.sides[kept], drawn.actions[kept] = lanes.side[kept], best[kept]
        drawn.static[kept] = lanes.static()[kept]
        follows = decision >= kept_at
        transition = step(lanes, np.where(follows, best, _random_actions(lanes, rng)), prices, environment)
        lanes = transition.lanes
        drawn.returns[:] += np.where(follows, transition.reward, 0.0)
    return drawn


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
    """Train a new network on the best policy; the learning rate falls linearly to zero.

    Args:
        rule: the best policy.
        market: bars to learn from.
        starts: starts of the training sessions.
        environment: costs, rewards and the sessions' length.
        model: sizes of the network.
        minutes: duration of training, more than 0.
        seed: seed of weights, states and dropout.
        clock: returns seconds; it only determines how many updates fit into the minutes.
        progress: called after every draw of states.
    Raises:
        SettingsError: the minutes are not positive and finite.
    """
    if not 0.0 < minutes < float("inf"):
        raise SettingsError(f"imitation minutes are {minutes}, expected more than 0")
    rng = np.random.default_rng(seed)
    network = initial_network(model, seed).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, fused=True)
    begin, updates, states, seconds = clock(), 0, 0, 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while seconds < 60.0 * minutes:
            drawn = draw_labelled_states(rule, market.prices, starts, environment, rng)
            states += len(drawn.bars)
            for first in range(0, len(drawn.bars), _BATCH):
                rows = slice(first, first + _BATCH)
                loss = _loss(network, market, drawn, rows)
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
    """Make a rule from a network's policy without search, for the sessions with these starts.

    Raises:
        DataError: a session includes bars without features.
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


def _random_actions(lanes: Lanes, rng: np.random.Generator) -> Int8:
    """Enter either side, or close, with probability `CHANGES_A_BAR`; otherwise hold."""
    num_lanes = len(lanes.bar)
    entry = np.where(rng.random(num_lanes) < 0.5, Action.BUY, Action.SELL)
    change = np.where(lanes.side == Side.FLAT, entry, Action.CLOSE)
    actions: Int8 = np.where(rng.random(num_lanes) < CHANGES_A_BAR, change, Action.HOLD).astype(np.int8)
    return actions


def _loss(network: Network, market: MarketView, drawn: LabelledStates, rows: slice) -> Tensor:
    """Cross-entropy of the best action among the legal ones, plus weighted cross-entropy of the return."""
    temporal = torch.from_numpy(windows(market.features, drawn.bars[rows]))
    policy, value = network.prediction(network.representation(temporal, torch.from_numpy(drawn.static[rows])))
    legal = torch.from_numpy(LEGAL[drawn.sides[rows] + 1])
    actions = torch.from_numpy(drawn.actions[rows].astype(np.int64))
    returns = network.support.encode(torch.from_numpy(drawn.returns[rows].astype(np.float32)))
    return functional.cross_entropy(
        policy.masked_fill(~legal, -torch.inf), actions
    ) + _VALUE_WEIGHT * functional.cross_entropy(value, returns)
