"""Plays sessions in batches; one version plays a whole batch. Queues and signals are in `service`."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from services.selfplay.config import SelfPlayConfig
from services.selfplay.exploration import exploration_at
from services.selfplay.settings import SelfPlaySettings
from shared.adapters.tables.dataset import Dataset
from shared.agent.agent import Agent
from shared.agent.embeddings import EmbeddingCache
from shared.agent.rollout import MarketView, play
from shared.agent.trajectory import Trajectory
from shared.environment.environment import EnvironmentConfig, Prices
from shared.errors import DataError
from shared.market.session import Split
from shared.numeric import Int64
from shared.search.config import SearchConfig

#: Upper bound of the lanes' seeds, exclusive.
MAX_SEED = 2**53


class SelfPlayWorker:
    """Draws sessions of the train split at random and plays them in lockstep."""

    def __init__(
        self,
        name: str,
        market: MarketView,
        starts: Int64,
        config: SelfPlayConfig,
        environment: EnvironmentConfig,
        search: SearchConfig,
        generator: np.random.Generator,
    ) -> None:
        """Prepare to play.

        Args:
            name: worker name to record in the trajectories.
            market: features, prices and outcomes of the data set.
            starts: `[M]` bars at which a session may start.
            config: lanes and exploration.
            environment: costs, rewards, length of a session.
            search: settings of the search.
            generator: draws sessions and seeds. Equally seeded workers play the same sessions.
        Raises:
            DataError: `starts` is empty.
        """
        if len(starts) == 0:
            raise DataError("the data set has no session in its train split: give it more bars")
        self._name, self._market, self._starts = name, market, starts
        self._config, self._environment, self._search = config, environment, search
        self._generator = generator
        self._embeddings = EmbeddingCache(config.embedding_megabytes * 1_000_000)

    @classmethod
    def of(
        cls, name: str, dataset: Dataset, settings: SelfPlaySettings, generator: np.random.Generator
    ) -> "SelfPlayWorker":
        """A worker for the train split of a data set; see `__init__`."""
        return cls(
            name,
            MarketView(dataset.features, Prices.of(dataset.bars), dataset.outcomes, dataset.fingerprint),
            dataset.sessions.every(Split.TRAIN),
            settings.selfplay,
            settings.environment,
            settings.search,
            generator,
        )

    @property
    def steps_per_batch(self) -> int:
        """Decisions in one batch."""
        return self._config.lanes * self._environment.session_bars

    def play(self, agent: Agent, episode: int, stop: Callable[[], bool]) -> Sequence[Trajectory]:
        """Play one batch to its end; return an empty sequence if asked to stop earlier.

        Args:
            agent: the version that plays the batch.
            episode: number of episodes that the version learned from; sets the exploration.
            stop: called after every step; True stops the batch.
        """
        finished: Sequence[Trajectory] = ()
        for finished in self.steps(agent, episode, self._config.lanes):
            if not finished and stop():
                break
        return finished

    def steps(self, agent: Agent, episode: int, sessions: int) -> Iterator[Sequence[Trajectory]]:
        """Play one batch. Each step yields an empty sequence; the last yields all trajectories.

        Args:
            agent: the version that plays the batch.
            episode: number of episodes that the version learned from.
            sessions: number of sessions in lockstep.
        """
        return play(
            agent,
            self._market,
            self._generator.choice(self._starts, sessions),
            self._environment,
            self._search,
            seeds=self._generator.integers(MAX_SEED, size=sessions),
            exploration=exploration_at(episode, self._config),
            worker=self._name,
            embeddings=self._embeddings,
        )

    def episodes(
        self, agent: Agent, episode: int, count: int, progress: Callable[[int], None]
    ) -> list[Trajectory]:
        """Play exactly `count` sessions, in as many batches as needed.

        Args:
            agent: the version that plays all sessions.
            episode: number of episodes that the version learned from.
            count: number of sessions.
            progress: called after every step with its number of decisions.
        """
        played: list[Trajectory] = []
        while len(played) < count:
            sessions = min(self._config.lanes, count - len(played))
            for finished in self.steps(agent, episode, sessions):
                played.extend(finished)
                progress(sessions)
        return played
