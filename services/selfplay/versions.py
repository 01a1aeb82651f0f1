"""Selects the version that plays: the newest announced, or an older one while the newest is damaged."""

import asyncio
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge

from services.selfplay.settings import SelfPlaySettings
from shared.adapters.versions.agents import load_agent
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent
from shared.errors import CheckpointError, MessageError, StoreUnavailableError
from shared.messages.schemas import CheckpointPublished
from shared.messages.streams import CHECKPOINTS
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

VERSION = Gauge("mm_selfplay_version", "Checkpoint version that plays")


@dataclass(frozen=True)
class Player:
    """A loaded version, and the number of episodes it learned from, which sets its exploration."""

    agent: Agent
    episode: int


class NewestVersion:
    """Follows the announcements of versions, and loads the newest one on request."""

    def __init__(self, settings: SelfPlaySettings, lifecycle: Lifecycle) -> None:
        self._settings, self._lifecycle = settings, lifecycle
        self._store = CheckpointStore(settings.checkpoint_root)
        self._announced: CheckpointPublished | None = None
        self._any_announced = asyncio.Event()
        self._player: Player | None = None
        self._refused: int | None = None

    async def follow(self) -> None:
        """Keep the newest announcement until asked to stop; older ones that were missed are skipped."""
        bus = self._lifecycle.bus
        after = await self._lifecycle.until_stopping(bus.last_id(CHECKPOINTS))
        if after is None:
            return
        messages = bus.follow(CHECKPOINTS, after)
        is_new = True
        while not self._lifecycle.stopping.is_set():
            newest = await self._lifecycle.until_stopping(self._read_newest()) if is_new else None
            if newest is not None:
                self.accept(newest)
            is_new = bool(await self._lifecycle.until_stopping(anext(messages)))

    def accept(self, announced: CheckpointPublished) -> None:
        """Let the next `load` return this version."""
        self._announced = announced
        self._any_announced.set()

    async def wait(self) -> None:
        """Wait for the first announcement."""
        await self._any_announced.wait()

    async def load(self) -> Player | None:
        """The newest announced version; while it is damaged, the one that played last, else an older one.

        Returns:
            None while no version can be loaded.
        """
        newest, player = self._announced, self._player
        known = {self._refused, player.agent.version if player else None}
        if newest is None or newest.version in known:
            return player
        try:
            loaded = await asyncio.to_thread(self._load, newest.version)
            if loaded is None:
                loaded = player or await asyncio.to_thread(self._load_older, newest.version)
                self._refused = newest.version
        except StoreUnavailableError as unavailable:  # the next call tries again
            log.warning("version_not_fetched", version=newest.version, error=str(unavailable))
            return player
        self._player = loaded
        return loaded

    async def _read_newest(self) -> CheckpointPublished | None:
        """The newest announcement; None when there is none, or this worker cannot read it."""
        try:
            return await self._lifecycle.bus.newest(CHECKPOINTS)
        except MessageError as unreadable:
            log.error("announcement_unreadable", error=str(unreadable))  # noqa: TRY400
            return None

    def _load(self, version: int) -> Player | None:
        """Load a version; None when it is missing or damaged, which is logged.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        try:
            episode = self._store.manifest(version).episode
            agent = load_agent(self._store, version, self._settings.precision)
        except CheckpointError as damaged:
            log.error("version_refused", version=version, error=str(damaged))  # noqa: TRY400
            return None
        VERSION.set(version)
        return Player(agent, episode)

    def _load_older(self, version: int) -> Player | None:
        """Load the newest undamaged version below `version`; None when there is none.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        for older in reversed(self._store.versions()):
            if older < version and (player := self._load(older)):
                log.warning("older_version_plays", version=older, newest=version)
                return player
        return None
