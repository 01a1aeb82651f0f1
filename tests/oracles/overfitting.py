"""Probability of backtest overfitting by CSCV, split by split."""

import math
from itertools import combinations

import numpy as np

from shared.numeric import Float64


def backtest_overfitting(returns: Float64, num_blocks: int) -> tuple[float, float, float]:
    """PBO, slope of the choice's ratio out of sample over that in sample, probability of loss."""
    num_trials = returns.shape[1]
    blocks = np.split(returns, num_blocks)
    below = losses = 0
    chosen_inside, chosen_outside = [], []
    for chosen in combinations(range(num_blocks), num_blocks // 2):
        inside = np.concatenate([blocks[b] for b in chosen])
        outside = np.concatenate([blocks[b] for b in range(num_blocks) if b not in chosen])
        best = max(range(num_trials), key=lambda trial: _ratio(inside[:, trial]))
        ratios = [_ratio(outside[:, trial]) for trial in range(num_trials)]
        rank = 1 + sum(ratio < ratios[best] for ratio in ratios)
        relative = rank / (num_trials + 1)
        below += math.log(relative / (1.0 - relative)) <= 0.0
        losses += ratios[best] < 0.0
        chosen_inside.append(_ratio(inside[:, best]))
        chosen_outside.append(ratios[best])
    total = len(chosen_inside)
    covariance = np.cov(chosen_inside, chosen_outside)
    return below / total, float(covariance[0, 1] / covariance[0, 0]), losses / total


def _ratio(returns: Float64) -> float:
    return float(returns.mean() / returns.std(ddof=1))
