"""Computes the best policy for a synthetic market and a reward scheme, by value iteration.

The market's law is approximated on a lattice of one-pip moves: `Chain` holds the transitions between hidden
states, their probabilities, and the price moves. On the lattice the solution is exact. It maximises the
undiscounted sum of a session's rewards, as the evaluation does. The policy knows the law, the hidden state
(deviation from the mean, or regime) at the last close, the position with its drawdowns, and the number of
decisions left.

Execution costs nothing beyond the spread: a synthetic bar opens at the previous close, so a decision is
filled at the price at which it was made. A position therefore earns every move from the close of its entry
decision to the close of its exit decision. A session's last decision is filled and closed at once.

Differences between lattice and law:
- Prices and deviations are rounded to the lattice. The variance that rounding adds is subtracted
  (Sheppard's correction), so that means and variances of moves are those of the law.
- `ou`: the random walk of the slow mean (0.2 pips a bar) is left out. It earns nothing on average, but it
  would make drawdowns slightly larger.
- `gbm`: the standard deviation of a move is constant, although under the law it changes with the price.
- Drawdowns above `Chain.drawdown_cap_pips` count as that value.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig, Lanes
from shared.environment.reward import RewardWeights
from shared.errors import SettingsError
from shared.market.synthetic import GbmLaw, Law, OuLaw, RegimesLaw
from shared.numeric import Float64, Int8, Int64, kernel

#: Step of the lattice of prices and deviations.
STEP_PIPS = 1.0

#: Extent of the lattice, in standard deviations of a move and of the stationary deviation.
_MOVE_DEVIATIONS, _STATE_DEVIATIONS = 4.5, 4.5

#: An action must be better than waiting by this margin, so that rounding errors do not break ties.
_EDGE_PIPS = 1e-9

_HOLD, _BUY, _SELL = int(Action.HOLD), int(Action.BUY), int(Action.SELL)


@dataclass(frozen=True)
class Chain:
    """A market on a lattice: K hidden states with J transitions each."""

    successor: Int64  # [K, J] hidden state at the next close
    move: Int64  # [K, J] price move to the next close, in lattice steps
    probability: Float64  # [K, J]; rows sum to 1
    step_pips: float
    drawdown_cap_pips: float  # larger drawdowns count as this value


@dataclass(frozen=True)
class Optimum:
    """A best policy and its value, for N decisions per session, K hidden states and D drawdown levels."""

    entry: Int8  # [N, K] `Action` to take when flat
    #: `[N, 2, K, D]`, short before long: smallest max drawdown at which the policy holds a position with this
    #: drawdown; below it, the policy closes. The larger the max drawdown already is, the less additional
    #: penalty holding risks.
    hold_from: Int64
    value: Float64  # [K] pips, expected reward of a session that starts in this state
    step_pips: float


def chain_of(law: Law) -> Chain:
    """Approximate a synthetic market's law on the lattice."""
    match law:
        case GbmLaw():
            moves, weights = _cells(0.0, law.sigma_pips)
            return _chain([[(0, int(move), weight) for move, weight in _pairs(moves, weights)]], 250.0)
        case OuLaw():
            return _chain(_ou_rows(law), 64.0)
        case RegimesLaw():
            cells = [_cells(*numbers) for numbers in zip(law.drift_pips, law.sigma_pips, strict=True)]
            rows = [
                [
                    (following, int(move), probability * weight)
                    for following, probability in enumerate(transition)
                    for move, weight in _pairs(*cells[following])
                ]
                for transition in law.transition
            ]
            return _chain(rows, 250.0)


def states_on_chain(law: Law, state: Float64) -> Int64:
    """Convert the hidden state of each bar, `[T]` (`SyntheticBars.state`), to the chain's state index."""
    if isinstance(law, OuLaw):
        reach = _ou_reach(law)
        return np.clip(np.rint(state / STEP_PIPS), -reach, reach).astype(np.int64) + reach
    return state.astype(np.int64)


def solve(chain: Chain, environment: EnvironmentConfig) -> Optimum:
    """Find the policy with the largest expected sum of rewards in a session.

    Oracle: tests/studies/test_optimum.py, which tries every action after every path through the environment.

    Raises:
        SettingsError: financing is not 0, or the spread is not a multiple of the lattice's step.
    """
    weights = environment.reward_weights
    spread = environment.round_trip_pips / chain.step_pips
    if environment.financing_pips_per_night != 0.0:
        raise SettingsError(
            "environment.financing_pips_per_night: expected 0, because synthetic markets charge no financing"
        )
    if spread != round(spread):
        raise SettingsError(
            f"a round trip costs {environment.round_trip_pips} pips: expected a multiple of {chain.step_pips}"
        )
    levels = round(chain.drawdown_cap_pips / chain.step_pips) + 1 if weights.drawdown_penalty > 0.0 else 1
    entry, hold_from, value = _iterate(
        chain.successor,
        chain.move,
        chain.probability,
        chain.step_pips,
        round(spread),
        weights,
        environment.session_bars,
        levels,
    )
    return Optimum(entry, hold_from, value, chain.step_pips)


def best_rule(optimum: Optimum, states: Int64) -> Callable[[Lanes], Int8]:
    """Make a rule that plays the policy; `states`, `[T]`, is the chain's state at every bar."""
    levels = optimum.hold_from.shape[-1]

    def level_of(pips: Float64) -> Int64:
        return np.clip(np.rint(pips / optimum.step_pips), 0, levels - 1).astype(np.int64)

    def rule(lanes: Lanes) -> Int8:
        state, long = states[lanes.bar], (lanes.side == Side.LONG).astype(np.int64)
        drawdown, max_drawdown = level_of(lanes.peak - lanes.pnl), level_of(lanes.max_drawdown)
        held = max_drawdown >= optimum.hold_from[lanes.step, long, state, drawdown]
        actions: Int8 = np.where(
            lanes.side == Side.FLAT,
            optimum.entry[lanes.step, state],
            np.where(held, Action.HOLD, Action.CLOSE),
        ).astype(np.int8)
        return actions

    return rule


def _ou_reach(law: OuLaw) -> int:
    """How many steps the lattice of deviations extends above and below 0."""
    return int(np.ceil(_STATE_DEVIATIONS * law.deviation_pips / STEP_PIPS))


def _ou_rows(law: OuLaw) -> list[list[tuple[int, int, float]]]:
    """Transitions between deviations. The price moves by as much as the deviation."""
    reach = _ou_reach(law)
    rows = []
    for state in range(-reach, reach + 1):
        following, weights = _cells(law.persistence * state * STEP_PIPS, law.sigma_pips)
        following = np.clip(following, -reach, reach)
        rows.append([(int(to) + reach, int(to) - state, weight) for to, weight in _pairs(following, weights)])
    return rows


def _cells(mean_pips: float, sigma_pips: float) -> tuple[Int64, Float64]:
    """Lattice points around a normal variable's mean, and the probability that each is the nearest one."""
    sigma = np.sqrt((sigma_pips / STEP_PIPS) ** 2 - 1 / 12)
    mean = mean_pips / STEP_PIPS
    points = np.arange(
        np.floor(mean - _MOVE_DEVIATIONS * sigma), np.ceil(mean + _MOVE_DEVIATIONS * sigma) + 1
    )
    edges = np.append(points, points[-1] + 1) - 0.5
    weights = np.diff([NormalDist(mean, sigma).cdf(edge) for edge in edges])
    return points.astype(np.int64), weights / weights.sum()


def _pairs(points: Int64, weights: Float64) -> Iterable[tuple[int, float]]:
    return zip(points.tolist(), weights.tolist(), strict=True)


def _chain(rows: list[list[tuple[int, int, float]]], drawdown_cap_pips: float) -> Chain:
    """Make a chain. A row lists (successor, move, probability) of one state; short rows are zero-padded."""
    shape = len(rows), max(map(len, rows))
    successor, move, probability = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape)
    for state, row in enumerate(rows):
        successor[state, : len(row)], move[state, : len(row)], probability[state, : len(row)] = zip(
            *row, strict=True
        )
    return Chain(successor, move, probability, STEP_PIPS, drawdown_cap_pips)


@kernel
def _iterate(
    successor: Int64,
    move: Int64,
    probability: Float64,
    step_pips: float,
    spread: int,
    weights: RewardWeights,
    num_decisions: int,
    levels: int,
) -> tuple[Int8, Int64, Float64]:
    """Iterate from the last decision to the first. Return the first three fields of `Optimum`.

    `flat[k]` is the expected future reward without a position, in state k. `held[s, k, d, m]` is the same
    with a position of side s, drawdown d and max drawdown m. It counts only future moves, and only the
    drawdown penalty in excess of that of m.
    """
    num_states = len(successor)
    entry = np.zeros((num_decisions, num_states), np.int8)
    hold_from = np.zeros((num_decisions, 2, num_states, levels), np.int64)
    costs = weights.entry_bonus - spread * step_pips
    penalty = weights.drawdown_penalty * step_pips
    flat = np.empty(num_states)
    flat[:] = max(-weights.idle_penalty, costs)
    if costs > -weights.idle_penalty + _EDGE_PIPS:
        entry[num_decisions - 1, :] = _BUY
    held = np.zeros((2, num_states, levels, levels))
    for decision in range(num_decisions - 2, -1, -1):
        next_flat, next_held = flat, held
        flat, held = np.empty_like(next_flat), np.zeros_like(next_held)
        for state in range(num_states):
            successors, probabilities = successor[state], probability[state]
            close_value = (probabilities * next_flat[successors]).sum()
            best = close_value - weights.idle_penalty
            for long in range(2):
                gains = (2 * long - 1) * move[state]
                entered = _entry_value(
                    next_held[long], successors, gains, probabilities, spread, step_pips, penalty
                )
                if costs + entered > best + _EDGE_PIPS:
                    best = costs + entered
                    entry[decision, state] = _BUY if long else _SELL
                for drawdown in range(levels):
                    values = held[long, state, drawdown]
                    _write_hold_values(
                        next_held[long],
                        successors,
                        gains,
                        probabilities,
                        drawdown,
                        step_pips,
                        penalty,
                        values,
                    )
                    threshold = levels
                    for max_drawdown in range(levels - 1, drawdown - 1, -1):
                        if values[max_drawdown] >= close_value - _EDGE_PIPS and threshold == max_drawdown + 1:
                            threshold = max_drawdown
                        values[max_drawdown] = max(values[max_drawdown], close_value)
                    hold_from[decision, long, state, drawdown] = threshold
            flat[state] = best
    return entry, hold_from, flat


@kernel
def _entry_value(
    next_held: Float64,
    successor: Int64,
    gains: Int64,
    probability: Float64,
    spread: int,
    step_pips: float,
    penalty: float,
) -> float:
    """Expected future reward of a position entered now, before costs. It has no drawdown yet."""
    value = 0.0
    for transition in range(len(successor)):
        drawdown = min(max(spread - gains[transition], 0), next_held.shape[-1] - 1)
        following = next_held[successor[transition], drawdown, drawdown]
        value += probability[transition] * (gains[transition] * step_pips - penalty * drawdown + following)
    return value


@kernel
def _write_hold_values(
    next_held: Float64,
    successor: Int64,
    gains: Int64,
    probability: Float64,
    drawdown: int,
    step_pips: float,
    penalty: float,
    values: Float64,
) -> None:
    """Write the expected future reward of a held position to `values`, indexed by its max drawdown so far."""
    levels = len(values)
    values[drawdown:] = 0.0
    for transition in range(len(successor)):
        weight = probability[transition]
        if weight == 0.0:
            continue
        next_drawdown = min(max(drawdown - gains[transition], 0), levels - 1)
        following = next_held[successor[transition], next_drawdown]
        earned = weight * gains[transition] * step_pips
        for max_drawdown in range(drawdown, min(next_drawdown, levels)):
            values[max_drawdown] += earned + weight * (
                following[next_drawdown] - penalty * (next_drawdown - max_drawdown)
            )
        for max_drawdown in range(max(drawdown, next_drawdown), levels):
            values[max_drawdown] += earned + weight * following[max_drawdown]
