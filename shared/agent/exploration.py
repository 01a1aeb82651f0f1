"""How self-play strays from the greedy action: as data, with random numbers drawn beforehand.

Each lane draws from its own stream, so what happens in a lane depends on its seed alone, not on the
lanes beside it. The schedule over episodes is the worker's (services/selfplay/exploration.py).
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from shared.environment.action import Action
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

    Under both an excursion may begin at any decision: any legal action, then HOLD for a random number of
    bars. Straying for single bars never shows what a position is worth, since a new one soon ends again
    (temporally extended epsilon-greedy, Dabney et al. 2021).
    """

    temperature: float = 1.0  # 0: the most visited action
    epsilon: float = 0.0
    excursion_rate: float = 0.0  # probability that one begins where none goes on
    excursion_bars: float = 30.0  # mean length, geometric

    def __post_init__(self) -> None:
        """Check every number's range."""
        if not 0.0 <= self.temperature < float("inf"):
            raise SettingsError(f"exploration.temperature is {self.temperature}, expected 0 or more")
        for name in ("epsilon", "excursion_rate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"exploration.{name} is {getattr(self, name)}, expected 0 to 1")
        if not 1.0 <= self.excursion_bars < float("inf"):
            raise SettingsError(f"exploration.excursion_bars is {self.excursion_bars}, expected 1 or more")


class Excursion(IntEnum):
    """What a decision is to an excursion."""

    NONE = 0
    FIRST = 1  # any legal action
    LATER = 2  # HOLD


@dataclass(frozen=True)
class RootExploration:
    """One decision's exploration at each root."""

    exploration: Exploration
    noise: RootNoise
    uniform: Float64  # [B, 2] in [0, 1): whether to take any legal action, and which action
    excursion: Int8  # [B] of `Excursion`

    def __post_init__(self) -> None:
        """Check that all are equally long."""
        require_shape("uniform", self.uniform, len(self.noise.gumbel), 2)
        require_shape("excursion", self.excursion, len(self.noise.gumbel))

    def choose(self, result: SearchResult, legal: Bool, config: SearchConfig) -> Int8:
        """The action to take at each root, `[B]`; `legal` is `[B, A]`."""
        anything = legal / legal.sum(axis=1, keepdims=True)
        if config.selection is Selection.GUMBEL:
            usual = result.actions
        else:
            weights = _tempered(result, self.exploration.temperature)
            strays = self.uniform[:, :1] < self.exploration.epsilon
            usual = self._drawn(np.where(strays, anything, weights))
        chosen: Int8 = np.select(
            [self.excursion == Excursion.FIRST, self.excursion == Excursion.LATER],
            [self._drawn(anything), np.int8(Action.HOLD)],
            usual,
        )
        return chosen

    def _drawn(self, shares: Float64) -> Int8:
        """An action of each row by its share, `[B, A]` -> `[B]`.

        The first action whose share reaches past the number drawn; the last one with a share if rounding
        leaves the sum short of it.
        """
        past = (shares.cumsum(axis=1) > self.uniform[:, 1:]) & (shares > 0.0)
        last = shares.shape[1] - 1 - (shares[:, ::-1] > 0.0).argmax(axis=1)
        drawn: Int8 = np.where(past.any(axis=1), past.argmax(axis=1), last).astype(np.int8)
        return drawn


@dataclass(frozen=True)
class LaneDraws:
    """The random numbers of whole sessions: `B` lanes, `T` decisions each."""

    exploration: Exploration
    gumbel: Float64  # [T, B, A]
    gamma: Float64  # [T, B, A]
    uniform: Float64  # [T, B, 2]
    excursion: Int8  # [T, B]

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
        uniform, excursion = np.empty((*shape, 2)), np.zeros(shape, np.int8)
        for lane, seed in enumerate(seeds.tolist()):
            rng = np.random.default_rng(seed)
            gumbel[:, lane] = rng.gumbel(size=(num_steps, num_actions))
            gamma[:, lane] = rng.standard_gamma(dirichlet_alpha, size=(num_steps, num_actions))
            uniform[:, lane] = rng.random((num_steps, 2))
            if exploration.excursion_rate > 0.0:
                _write_excursions(rng, exploration, excursion[:, lane])
        return cls(exploration, gumbel, gamma, uniform, excursion)

    def at(self, step: int) -> RootExploration:
        """What every lane uses in one decision."""
        noise = RootNoise(self.gumbel[step], self.gamma[step])
        return RootExploration(self.exploration, noise, self.uniform[step], self.excursion[step])


def _write_excursions(rng: np.random.Generator, exploration: Exploration, steps: Int8) -> None:
    """Where one lane's excursions begin and go on, into zeros `[T]`."""
    begins = rng.random(len(steps)) < exploration.excursion_rate
    bars = rng.geometric(1.0 / exploration.excursion_bars, len(steps))
    for first in np.flatnonzero(begins):
        if steps[first] == Excursion.NONE:
            steps[first] = Excursion.FIRST
            steps[first + 1 : first + bars[first]] = Excursion.LATER


def _tempered(result: SearchResult, temperature: float) -> Float64:
    """Shares of visits^(1/temperature), `[B, A]`; at temperature 0 all of it on the search's own choice."""
    if temperature == 0.0:
        chosen: Float64 = np.eye(result.visits.shape[1])[result.actions]
        return chosen
    relative = result.visits / result.visits.max(axis=1, keepdims=True)
    weights = relative ** (1.0 / temperature)
    shares: Float64 = weights / weights.sum(axis=1, keepdims=True)
    return shares
