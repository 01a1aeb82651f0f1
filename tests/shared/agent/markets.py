"""A small market, and a small agent that chooses different actions in it."""

from functools import cache

from shared.agent.agent import Agent
from shared.agent.rollout import MarketView
from shared.environment.environment import Prices
from shared.environment.outcome import label_outcomes
from shared.features.window import temporal_features
from shared.market.synthetic import Market, synthesize
from tests.shared.model.networks import SMALL, randomized_network


@cache
def small_market() -> MarketView:
    bars = synthesize(Market.OU, 1500, seed=3)
    return MarketView(temporal_features(bars), Prices.of(bars), label_outcomes(bars.close), bars.fingerprint)


@cache
def small_agent() -> Agent:
    return Agent(randomized_network(SMALL, seed=34), version=7)
