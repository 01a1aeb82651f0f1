"""The effect of discounting: the best policy under a discount, evaluated by undiscounted sums.

The market is `ou`, and the policy knows the deviation from the mean. Reward is paid when a trade closes, the
horizon is infinite, and future rewards are discounted per bar. The lattice is that of `studies.optimum`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.adapters.tables.dataset import build_dataset
from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig, Lanes, Prices
from shared.environment.reward import RewardScheme
from shared.market.session import Split
from shared.market.synthetic import LAWS, Market, synthesize_with_state
from shared.numeric import Bool, Int8, Int64
from studies.optimum import chain_of, states_on_chain
from studies.scores import Rule, score_rule

#: The discount is a setting, and settings are not chosen by test sessions.
SPLITS = (Split.TRAIN, Split.VALIDATION)

#: Value iteration stops when no value changes by more than this.
TOLERANCE_PIPS = 1e-5


@dataclass(frozen=True)
class DiscountedPolicy:
    """A policy on a lattice of K deviations, lowest first; short positions mirror long ones."""

    enters: Bool  # [K] True where it buys when flat
    closes: Bool  # [K, K] True where it closes a long position, by present and entry deviation

    @property
    def entry_pips(self) -> int:
        """Smallest deviation from the mean at which it enters; 0 if it never does."""
        entered = np.flatnonzero(self.enters) - len(self.enters) // 2
        return -int(entered.max()) if len(entered) else 0


@dataclass(frozen=True)
class Discounted:
    """Undiscounted results of the best policy under a discount."""

    discount: float
    entry_pips: int
    pips: float  # net, mean of a session
    trades: float  # mean of a session


def best_under(discount: float, round_trip_pips: float) -> DiscountedPolicy:
    """Find the best policy by value iteration.

    At deviation d, F(d) is the value when flat and L(d, e) that of a long position entered at deviation e:
    F(d) = max(γ E F(d'), γ E L(d', d)), and likewise for a short entry;
    L(d, e) = max(d - e - c + γ E F(d'), γ E L(d', e)).

    Args:
        discount: γ per bar, below 1.
        round_trip_pips: cost of a round trip, c.
    Source: Bellman 1957.
    """
    chain = chain_of(LAWS[Market.OU])
    size = len(chain.successor)
    following = np.zeros((size, size))
    np.add.at(following, (np.arange(size)[:, None], chain.successor), chain.probability)
    deviation = (np.arange(size) - size // 2) * chain.step_pips
    gain = deviation[:, None] - deviation[None, :] - round_trip_pips
    flat, held, change = np.zeros(size), np.zeros((size, size)), np.inf
    while change > TOLERANCE_PIPS:
        waiting, holding = discount * following @ flat, discount * following @ held
        closing = gain + waiting[:, None]
        long = holding.diagonal()
        new_flat = np.maximum(waiting, np.maximum(long, long[::-1]))
        new_held = np.maximum(closing, holding)
        change = max(np.abs(new_flat - flat).max(), np.abs(new_held - held).max())
        flat, held = new_flat, new_held
    return DiscountedPolicy(long > waiting + TOLERANCE_PIPS, closing > holding)


def rule_of(policy: DiscountedPolicy, states: Int64, round_trip_pips: float) -> Rule:
    """Make a rule from the policy and the lattice's deviation of every bar, `[T]`."""
    highest = len(policy.enters) - 1

    def rule(lanes: Lanes) -> Int8:
        short = lanes.side == Side.SHORT
        state = states[lanes.bar]
        mirrored = np.where(short, highest - state, state)
        gained = np.rint(lanes.pnl + round_trip_pips).astype(np.int64)
        entered = np.clip(mirrored - gained, 0, highest)
        opening = np.where(
            policy.enters[state],
            Action.BUY,
            np.where(policy.enters[highest - state], Action.SELL, Action.HOLD),
        )
        leaving = np.where(policy.closes[mirrored, entered], Action.CLOSE, Action.HOLD)
        actions: Int8 = np.where(lanes.side == Side.FLAT, opening, leaving).astype(np.int8)
        return actions

    return rule


def judge_discounts(discounts: Sequence[float], *, num_bars: int, seed: int) -> list[Discounted]:
    """Play each discount's best policy in the same training and validation sessions.

    Args:
        discounts: γ per bar, below 1.
        num_bars: number of bars of the market.
        seed: seed of the market.
    """
    law, environment = LAWS[Market.OU], EnvironmentConfig(reward=RewardScheme.PNL)
    synthetic = synthesize_with_state(law, num_bars, seed)
    dataset = build_dataset(synthetic.bars, f"synthetic ou, seed {seed}")
    starts = np.concatenate([dataset.sessions.non_overlapping(split) for split in SPLITS])
    prices, states = Prices.of(dataset.bars), states_on_chain(law, synthetic.state)
    results = []
    for discount in discounts:
        policy = best_under(discount, environment.round_trip_pips)
        scores = score_rule(rule_of(policy, states, environment.round_trip_pips), prices, starts, environment)
        results.append(
            Discounted(discount, policy.entry_pips, float(scores.pips.mean()), float(scores.trades.mean()))
        )
    return results
