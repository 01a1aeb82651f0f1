"""How self-play strays from the greedy action: as data, with random numbers drawn beforehand.

Each lane draws from its own stream, so what happens in a lane depends on its seed alone, not on the
lanes beside it. The schedule over episodes is the worker's (services/selfplay/exploration.py).
"""

from dataclasses import dataclass

import numpy as np

from shared.errors import SettingsError
from shared.numeric import Bool, Float64, Int8, Int64, require_shape
from shared.search.config import SearchConfig, Selection
from shared.search.model import RootNoise
from shared.search.search import SearchResult


@dataclass(frozen=True)
class Exploration:
    """How far to stray, beside the noise that the selection rule puts on the root.

    Under `puct` an action is drawn from visits^(1/temperature), and with probability epsilon from the
    legal ones instead. Under `gumbel` the root's noise alone makes the choice a draw from the improved
    policy: neither number is used.
    """

    temperature: float = 1.0  # 0: the most visited action
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        """Check both numbers' range."""
        if not 0.0 <= self.temperature < float("inf"):
            raise SettingsError(f"exploration.temperature is {self.temperature}, expected 0 or more")
        if not 0.0 <= self.epsilon <= 1.0:
            raise SettingsError(f"exploration.epsilon is {self.epsilon}, expected 0 to 1")


@dataclass(frozen=True)
class RootExploration:
    """One decision's exploration at each root."""

    exploration: Exploration
    noise: RootNoise
    uniform: Float64  # [B, 2] in [0, 1): whether to take any legal action, and which action

    def __post_init__(self) -> None:
        """Check that both are equally long."""
        require_shape("uniform", self.uniform, len(self.noise.gumbel), 2)

    def choose(self, result: SearchResult, legal: Bool, config: SearchConfig) -> Int8:
        """The action to take at each root, `[B]`; `legal` is `[B, A]`."""
        if config.selection is Selection.GUMBEL:
            return result.actions
        weights = _tempered(result, self.exploration.temperature)
        anything = self.uniform[:, :1] < self.exploration.epsilon
        shares = np.where(anything, legal / legal.sum(axis=1, keepdims=True), weights)
        # The first action whose share reaches past the number drawn; the last legal one if rounding
        # leaves the sum short of it.
        past = (shares.cumsum(axis=1) > self.uniform[:, 1:]) & (shares > 0.0)
        last = shares.shape[1] - 1 - (shares[:, ::-1] > 0.0).argmax(axis=1)
        chosen: Int8 = np.where(past.any(axis=1), past.argmax(axis=1), last).astype(np.int8)
        return chosen


@dataclass(frozen=True)
class LaneDraws:
    """The random numbers of whole sessions: `B` lanes, `T` decisions each."""

    exploration: Exploration
    gumbel: Float64  # [T, B, A]
    gamma: Float64  # [T, B, A]
    uniform: Float64  # [T, B, 2]

    @classmethod
    def drawn(
        cls,
        exploration: Exploration,
        seeds: Int64,
        num_steps: int,
        num_actions: int,
        dirichlet_alpha: float,
    ) -> "LaneDraws":
        """Draw everything that the lanes will need; `seeds` is `[B]`, not negative."""
        shape = (num_steps, len(seeds))
        gumbel, gamma = np.empty((*shape, num_actions)), np.empty((*shape, num_actions))
        uniform = np.empty((*shape, 2))
        for lane, seed in enumerate(seeds.tolist()):
            rng = np.random.default_rng(seed)
            gumbel[:, lane] = rng.gumbel(size=(num_steps, num_actions))
            gamma[:, lane] = rng.standard_gamma(dirichlet_alpha, size=(num_steps, num_actions))
            uniform[:, lane] = rng.random((num_steps, 2))
        return cls(exploration, gumbel, gamma, uniform)

    def at(self, step: int) -> RootExploration:
        """What every lane uses in one decision."""
        noise = RootNoise(self.gumbel[step], self.gamma[step])
        return RootExploration(self.exploration, noise, self.uniform[step])


def _tempered(result: SearchResult, temperature: float) -> Float64:
    """Shares of visits^(1/temperature), `[B, A]`; at temperature 0 all of it on the search's own choice."""
    if temperature == 0.0:
        chosen: Float64 = np.eye(result.visits.shape[1])[result.actions]
        return chosen
    relative = result.visits / result.visits.max(axis=1, keepdims=True)
    weights = relative ** (1.0 / temperature)
    shares: Float64 = weights / weights.sum(axis=1, keepdims=True)
    return shares
