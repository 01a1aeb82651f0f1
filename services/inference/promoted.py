"""The promoted version, ready to decide; swapped whole, and kept when its successor is damaged."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import structlog

from shared.adapters.streams.bus import Bus
from shared.adapters.versions.agents import load_agent, trained_instrument
from shared.adapters.versions.manifest import Pointed, Pointer, stage_of
from shared.adapters.versions.store import CheckpointStore
from shared.agent.agent import Agent
from shared.agent.decide import Decisions, decide
from shared.engine.precision import Precision
from shared.environment.position import NUM_STATIC
from shared.errors import CheckpointError, MuZeroError, StoreAwayError
from shared.features.kernels import NUM_FEATURES
from shared.features.window import WINDOW_BARS
from shared.market.bar import Instrument, normal_name
from shared.messages.schemas import AlertRaised, Stage
from shared.messages.streams import ALERTS, PROMOTIONS
from shared.numeric import Float32
from shared.runtime.lifecycle import Lifecycle
from shared.search.config import SearchConfig

log = structlog.get_logger()

#: What versions decide for whose manifests do not name an instrument: older releases knew no other.
_BEFORE_MANIFESTS_NAMED_IT = "GBP_JPY"


@dataclass(frozen=True)
class Served:
    """One loaded version; a request takes it once and is answered by it alone."""

    agent: Agent
    version: int
    stage: Stage
    instrument: Instrument  # that it was trained on

    def decide(self, windows: Float32, static: Float32, search: SearchConfig) -> Decisions:
        """Greedy decisions.

        Args:
            windows: `[B, 32, 9]`.
            static: `[B, 6]`.
            search: how to plan.
        """
        return decide(self.agent, self.agent.embed_windows(windows), static, search)


class PromotedVersion:
    """Follows the store's `promoted` pointer."""

    def __init__(
        self,
        store: CheckpointStore,
        search: SearchConfig,
        precision: Precision = Precision.AUTO,
        *,
        instrument: str = "",
    ) -> None:
        """Nothing is loaded yet.

        Args:
            store: with the versions.
            search: how they plan.
            precision: of their numbers.
            instrument: versions that were trained on another one are refused; empty accepts any.
        """
        self._instrument = instrument and normal_name(instrument)
        self._store, self._search, self._precision = store, search, precision
        self._served: Served | None = None
        self._refused: Pointed | None = None
        self._loading: Pointed | None = None
        self._damage = ""  # of the pointer
        self._store_is_away = False
        # Kernels run in this one thread: decisions are made one after the other, and a version
        # is loaded and warmed in another, so that no request waits for it.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="decide")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    @property
    def served(self) -> Served | None:
        """The version that decides now, or None before the first."""
        return self._served

    @property
    def refused(self) -> int | None:
        """The version that the pointer names and that could not be loaded."""
        return self._refused.version if self._refused else None

    @property
    def absence(self) -> str:
        """Why no version decides yet."""
        if self._loading:
            return f"version {self._loading.version} is loading"
        if self._refused:
            return f"version {self._refused.version} was refused"
        return "no version is promoted yet"

    def close(self) -> None:
        """End the threads."""
        self._worker.shutdown(cancel_futures=True)
        self._loader.shutdown(cancel_futures=True)

    async def decide(self, served: Served, windows: Float32, static: Float32) -> Decisions:
        """One request's decisions, made off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, served.decide, windows, static, self._search)

    async def refresh(self) -> AlertRaised | None:
        """Serve what the pointer names.

        Returns:
            An alert when the version it names is refused, once for each such version, when the pointer is
            damaged, once until it changes, or when the store no longer answers, once until it does.
        """
        loop = asyncio.get_running_loop()
        pointed: Pointed | None = None
        try:
            pointed = await loop.run_in_executor(self._loader, self._store.pointer, Pointer.PROMOTED)
            if pointed is None or self._serves(pointed):
                self._accept()
                return None
            self._loading = pointed
            self._served = await loop.run_in_executor(self._loader, self._load, pointed)
        except StoreAwayError as away:
            return self._lose_store(away)
        except MuZeroError as damaged:
            return self._refuse(pointed, damaged)
        finally:
            self._loading = None
        self._accept()
        log.info("version_served", version=pointed.version, stage=pointed.stage)
        return None

    async def follow(self, lifecycle: Lifecycle, *, poll_seconds: float) -> None:
        """Refresh at each promotion told, and every `poll_seconds` for one told while Redis was away."""
        bus = lifecycle.bus
        moved = asyncio.Event()
        tasks = {asyncio.create_task(_listen(bus, moved))}
        try:
            while not lifecycle.stopping.is_set():
                moved.clear()
                if alert := await self.refresh():
                    tasks.add(asyncio.create_task(_raise_alert(bus, alert)))
                lifecycle.report(
                    version=self._served.version if self._served else None,
                    stage=self._served.stage if self._served else None,
                    refused=self.refused,
                )
                with contextlib.suppress(TimeoutError):
                    await lifecycle.until_stopping(asyncio.wait_for(moved.wait(), poll_seconds))
        finally:
            for task in tasks:  # each of them waits for Redis as long as it takes
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _serves(self, pointed: Pointed) -> bool:
        now = self._served
        return now is not None and (now.version, now.stage) == (pointed.version, stage_of(pointed))

    def _load(self, pointed: Pointed) -> Served:
        """Load a version and let it decide once, so that its first request finds everything compiled.

        Raises:
            CheckpointError: missing or damaged, or it decides nonsense.
        """
        agent = load_agent(self._store, pointed.version, self._precision)
        served = Served(agent, pointed.version, stage_of(pointed), self._instrument_of(pointed.version))
        windows = np.zeros((1, WINDOW_BARS, NUM_FEATURES), np.float32)
        decided = served.decide(windows, np.zeros((1, NUM_STATIC), np.float32), self._search)
        if not np.isfinite(decided.values).all():
            raise CheckpointError(f"version {pointed.version} values a state at {decided.values[0]}")
        return served

    def _instrument_of(self, version: int) -> Instrument:
        """The instrument that a version decides for.

        Raises:
            CheckpointError: it is another one than the setting says.
        """
        trained_on = trained_instrument(self._store.manifest(version))
        if trained_on is None:
            return Instrument.named(self._instrument or _BEFORE_MANIFESTS_NAMED_IT)
        if self._instrument not in ("", trained_on.name):
            raise CheckpointError(
                f"version {version} was trained on {trained_on.name}, but MM_INFERENCE__INSTRUMENT is "
                f"{self._instrument}: unset it, or promote a version of that instrument"
            )
        return trained_on

    def _accept(self) -> None:
        """Forget what was wrong."""
        self._refused, self._damage, self._store_is_away = None, "", False

    def _refuse(self, pointed: Pointed | None, damaged: MuZeroError) -> AlertRaised | None:
        damage = "" if pointed else str(damaged)
        told_before = (pointed, damage) == (self._refused, self._damage)
        self._refused, self._damage = pointed, damage
        if told_before:
            return None
        serving = f"version {self._served.version} goes on" if self._served else "none is served"
        log.error("version_refused", error=str(damaged), serving=self._served and self._served.version)
        return AlertRaised(source="inference", name="version_refused", detail=f"{damaged}; {serving}"[:2048])

    def _lose_store(self, away: StoreAwayError) -> AlertRaised | None:
        told_before, self._store_is_away = self._store_is_away, True
        if told_before:
            return None
        serving = f"version {self._served.version} goes on" if self._served else "none is served"
        log.error("store_away", error=str(away), serving=self._served and self._served.version)
        return AlertRaised(source="inference", name="store_away", detail=f"{away}; {serving}"[:2048])


async def _listen(bus: Bus, moved: asyncio.Event) -> None:
    async for promotions in bus.follow(PROMOTIONS, await bus.last_id(PROMOTIONS)):
        if promotions:
            moved.set()


async def _raise_alert(bus: Bus, alert: AlertRaised) -> None:
    await bus.append(ALERTS, alert)
