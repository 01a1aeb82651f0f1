"""The best policy under a discount, compared with the undiscounted best policy in the same sessions."""

import numpy as np
import pytest

from shared.adapters.tables.dataset import build_dataset
from shared.environment.environment import EnvironmentConfig, Prices
from shared.environment.reward import RewardScheme
from shared.market.synthetic import LAWS, Market, synthesize_with_state
from studies.discounting import SPLITS, Discounted, best_under, judge_discounts
from studies.optimum import best_rule, chain_of, solve, states_on_chain
from studies.scores import score_rule

NUM_BARS = 200_000
ENVIRONMENT = EnvironmentConfig(reward=RewardScheme.PNL)


@pytest.fixture(scope="module")
def rows() -> list[Discounted]:
    return judge_discounts((0.99, 0.997, 0.9995), num_bars=NUM_BARS, seed=1)


def test_less_discounting_makes_fewer_trades_and_earns_more(rows: list[Discounted]) -> None:
    trades, pips, entries = (
        [getattr(row, name) for row in rows] for name in ("trades", "pips", "entry_pips")
    )
    assert trades == sorted(trades, reverse=True)
    assert pips == sorted(pips)
    assert entries == sorted(entries)
    assert trades[1] > 1.15 * trades[2]


def test_a_discount_close_to_1_earns_about_as_much_as_the_best_policy(rows: list[Discounted]) -> None:
    """The undiscounted policy is found by backward induction and knows the session's end."""
    law = LAWS[Market.OU]
    synthetic = synthesize_with_state(law, NUM_BARS, 1)
    dataset = build_dataset(synthetic.bars, "synthetic ou, seed 1")
    starts = np.concatenate([dataset.sessions.non_overlapping(split) for split in SPLITS])
    rule = best_rule(solve(chain_of(law), ENVIRONMENT), states_on_chain(law, synthetic.state))
    best = score_rule(rule, Prices.of(dataset.bars), starts, ENVIRONMENT)
    assert 0.95 < rows[-1].pips / best.pips.mean() < 1.01
    assert rows[-1].trades == pytest.approx(best.trades.mean(), rel=0.2)
    assert rows[0].pips < 0.93 * best.pips.mean()


def test_with_heavy_discounting_every_gain_is_taken_at_once() -> None:
    """With almost no weight on the next bar, every position with a gain is closed."""
    policy = best_under(0.01, 4.0)
    middle = len(policy.enters) // 2
    assert policy.closes[middle + 5, middle]
    assert not policy.closes[middle + 3, middle]  # a postponed loss is discounted to almost nothing
