"""Exploration in self-play: its settings, and the random numbers of a session drawn in advance.

Each lane draws from its own random stream, so its result depends on its own seed and not on the other lanes.
The schedule over episodes is in services/selfplay/exploration.py.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import numpy as np

from shared.environment.action import Action
from shared.numeric import Bool, Float64, Int8, Int64, require_shape
from shared.search.config import SearchConfig, Selection
from shared.search.model import RootNoise
from shared.search.search import SearchResult
from shared.setting import (
    NonNegative,
    Range,
    Share,
    check_group,
    setting,
)


@dataclass(frozen=True)
class Exploration:
    """Settings of the exploration that is added to the root noise of the selection rule.

    With `puct` the action is drawn from visits^(1/temperature), or with probability epsilon uniformly from
    the legal actions. With `gumbel` the root noise alone makes the action a draw from the improved policy,
    so temperature and epsilon are not used.

    With both rules an excursion can start at any decision: a uniformly drawn legal action, then HOLD for a
    random number of bars. Exploring for single bars never shows the value of a position, because the agent
    soon closes it again (temporally extended epsilon-greedy, Dabney et al. 2021).
    """

    temperature: NonNegative = setting(
        1.0, "temperature of the visit counts; 0 selects the most visited action"
    )
    epsilon: Share = setting(0.0, "probability of a random legal action")
    excursion_rate: Share = setting(0.0, "probability that a decision outside an excursion starts one")
    excursion_bars: Annotated[float, Range(low=1.0)] = setting(
        30.0, "mean length of an excursion, geometrically distributed"
    )

    def __post_init__(self) -> None:
        """Check every range."""
        check_group("exploration", self)


class Excursion(IntEnum):
    """The role of a decision in an excursion."""

    NONE = 0
    FIRST = 1  # any legal action
    LATER = 2  # HOLD


@dataclass(frozen=True)
class RootExploration:
    """The exploration of one decision at each root."""

    exploration: Exploration
    noise: RootNoise
    uniform: Float64  # [B, 2] in [0, 1): the first is compared with epsilon, the second draws the action
    excursion: Int8  # [B] `Excursion`

    def __post_init__(self) -> None:
        """Check that all arrays have one row per root."""
        require_shape("uniform", self.uniform, len(self.noise.gumbel), 2)
        require_shape("excursion", self.excursion, len(self.noise.gumbel))

    def choose(self, result: SearchResult, legal: Bool, config: SearchConfig) -> Int8:
        """Choose an action for each root, `[B]`; `legal` is `[B, A]`."""
        any_legal = legal / legal.sum(axis=1, keepdims=True)
        if config.selection is Selection.GUMBEL:
            actions = result.actions
        else:
            weights = _tempered(result, self.exploration.temperature)
            explores = self.uniform[:, :1] < self.exploration.epsilon
            actions = self._draw(np.where(explores, any_legal, weights))
        chosen: Int8 = np.select(
            [self.excursion == Excursion.FIRST, self.excursion == Excursion.LATER],
            [self._draw(any_legal), np.int8(Action.HOLD)],
            actions,
        )
        return chosen

    def _draw(self, shares: Float64) -> Int8:
        """Draw an action per row from its probabilities, `[B, A]` -> `[B]`.

        Takes the first action whose cumulative probability exceeds the random number. If rounding leaves the
        total below that number, takes the last action with a positive probability.
        """
        past = (shares.cumsum(axis=1) > self.uniform[:, 1:]) & (shares > 0.0)
        last = shares.shape[1] - 1 - (shares[:, ::-1] > 0.0).argmax(axis=1)
        drawn: Int8 = np.where(past.any(axis=1), past.argmax(axis=1), last).astype(np.int8)
        return drawn


@dataclass(frozen=True)
class LaneDraws:
    """The random numbers of `B` lanes for all `T` decisions of their sessions."""

    exploration: Exploration
    gumbel: Float64  # [T, B, A]
    gamma: Float64  # [T, B, A]
    uniform: Float64  # [T, B, 2]
    excursion: Int8  # [T, B] `Excursion`

    @classmethod
    def draw(
        cls,
        exploration: Exploration,
        seeds: Int64,
        num_steps: int,
        num_actions: int,
        dirichlet_alpha: float,
    ) -> "LaneDraws":
        """Draw the random numbers of each lane from its seed; `seeds` is `[B]`, 0 or more."""
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
        """The random numbers of all lanes for one decision."""
        noise = RootNoise(self.gumbel[step], self.gamma[step])
        return RootExploration(self.exploration, noise, self.uniform[step], self.excursion[step])


def _write_excursions(rng: np.random.Generator, exploration: Exploration, steps: Int8) -> None:
    """Write the excursions of one lane into zeros `[T]`."""
    starts = rng.random(len(steps)) < exploration.excursion_rate
    bars = rng.geometric(1.0 / exploration.excursion_bars, len(steps))
    for first in np.flatnonzero(starts):
        if steps[first] == Excursion.NONE:
            steps[first] = Excursion.FIRST
            steps[first + 1 : first + bars[first]] = Excursion.LATER


def _tempered(result: SearchResult, temperature: float) -> Float64:
    """Probabilities ∝ visits^(1/temperature), `[B, A]`; temperature 0 selects the action of the search."""
    if temperature == 0.0:
        chosen: Float64 = np.eye(result.visits.shape[1])[result.actions]
        return chosen
    relative = result.visits / result.visits.max(axis=1, keepdims=True)
    weights = relative ** (1.0 / temperature)
    shares: Float64 = weights / weights.sum(axis=1, keepdims=True)
    return shares
