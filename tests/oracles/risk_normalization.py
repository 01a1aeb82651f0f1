"""Bandy's risk normalisation in plain Python, step by step as he publishes it.

Source: Howard Bandy, Quantitative Technical Analysis (2014), and his package risk-normalization,
whose search multiplies the fraction by tolerance / drawdown until the two agree.
"""

import random


def one_curve(gains: list[float], fraction: float, horizon: int, rng: random.Random) -> tuple[float, float]:
    """Final equity and deepest drawdown of one drawn curve."""
    equity = peak = 1.0
    deepest = 0.0
    for _ in range(horizon):
        equity *= 1.0 + fraction * rng.choice(gains)
        peak = max(peak, equity)
        deepest = max(deepest, (peak - equity) / peak)
    return equity, deepest


def safe_f_and_car25(
    gains: list[float], horizon: int, curves: int, tolerance: float, seed: int
) -> tuple[float, float]:
    rng = random.Random(seed)
    fraction = 1.0
    for _ in range(50):
        falls = sorted(one_curve(gains, fraction, horizon, rng)[1] for _ in range(curves))
        tail = falls[int(0.95 * curves)]
        if abs(tail - tolerance) < 0.003:
            break
        fraction *= tolerance / tail
    finals = sorted(one_curve(gains, fraction, horizon, rng)[0] for _ in range(curves))
    wealth = finals[int(0.25 * curves)]
    return fraction, 100.0 * (wealth ** (252.0 / horizon) - 1.0)
