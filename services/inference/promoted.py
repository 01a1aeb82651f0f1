"""Serves the promoted version. A new one is loaded beside the current one, and refused if it is damaged."""

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
from shared.errors import CheckpointError, MuZeroError, StoreUnavailableError
from shared.features.kernels import NUM_FEATURES
from shared.features.window import WINDOW_BARS
from shared.market.bar import Instrument, normalized_name
from shared.messages.schemas import AlertRaised, Stage
from shared.messages.streams import ALERTS, PROMOTIONS
from shared.numeric import Float32
from shared.runtime.lifecycle import Lifecycle
from shared.search.config import SearchConfig

log = structlog.get_logger()

#: Instrument of a version whose manifest names none; older releases knew only this one.
_INSTRUMENT_OF_OLD_VERSIONS = "GBP_JPY"


@dataclass(frozen=True)
class Served:
    """A loaded version. A request uses one version from beginning to end, even if it is replaced."""

    agent: Agent
    version: int
    stage: Stage
    instrument: Instrument  # instrument of its training data

    def decide(self, windows: Float32, static: Float32, search: SearchConfig) -> Decisions:
        """Greedy decisions.

        Args:
            windows: `[B, 32, 9]` temporal windows.
            static: `[B, 6]` static features.
            search: settings of the search.
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
        """Prepare to serve; `refresh` loads the first version.

        Args:
            store: store of the versions and of the pointer.
            search: settings of the search of every decision.
            precision: number format of the network.
            instrument: refuse versions that were trained on another instrument; empty accepts any.
        """
        self._instrument = instrument and normalized_name(instrument)
        self._store, self._search, self._precision = store, search, precision
        self._served: Served | None = None
        self._refused: Pointed | None = None
        self._loading: Pointed | None = None
        self._pointer_error = ""
        self._is_store_lost = False
        # One thread makes the decisions, one after the other. Another loads and compiles versions, so that no
        # request waits for it.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="decide")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    @property
    def served(self) -> Served | None:
        """The version that decides now; None before the first is loaded."""
        return self._served

    @property
    def refused(self) -> int | None:
        """The version in the pointer, if it could not be loaded."""
        return self._refused.version if self._refused else None

    @property
    def absence(self) -> str:
        """The reason why no version decides yet."""
        if self._loading:
            return f"version {self._loading.version} is loading"
        if self._refused:
            return f"version {self._refused.version} was refused"
        return "no version is promoted yet"

    def close(self) -> None:
        """Stop the threads."""
        self._worker.shutdown(cancel_futures=True)
        self._loader.shutdown(cancel_futures=True)

    async def decide(self, served: Served, windows: Float32, static: Float32) -> Decisions:
        """Decide for one request, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, served.decide, windows, static, self._search)

    async def refresh(self) -> AlertRaised | None:
        """Serve the version in the pointer.

        Returns:
            An alert if the version is refused, the pointer is damaged or the store does not answer. None if
            all is well, or the same failure was returned before.
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
        except StoreUnavailableError as unavailable:
            return self._lose_store(unavailable)
        except MuZeroError as damaged:
            return self._refuse(pointed, damaged)
        finally:
            self._loading = None
        self._accept()
        log.info("version_served", version=pointed.version, stage=pointed.stage)
        return None

    async def follow(self, lifecycle: Lifecycle, *, poll_seconds: float) -> None:
        """Refresh at each announced promotion, and every `poll_seconds` in case one was missed."""
        bus = lifecycle.bus
        moved = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(_listen(bus, moved))]
            while not lifecycle.stopping.is_set():
                moved.clear()
                if alert := await self.refresh():
                    background.append(tasks.create_task(_raise_alert(bus, alert)))
                lifecycle.report(
                    version=self._served.version if self._served else None,
                    stage=self._served.stage if self._served else None,
                    refused=self.refused,
                )
                with contextlib.suppress(TimeoutError):
                    await lifecycle.until_stopping(asyncio.wait_for(moved.wait(), poll_seconds))
            for task in background:  # each waits for Redis without a time limit
                task.cancel()

    def _serves(self, pointed: Pointed) -> bool:
        served = self._served
        return served is not None and (served.version, served.stage) == (pointed.version, stage_of(pointed))

    def _load(self, pointed: Pointed) -> Served:
        """Load a version and make one decision with it, so that everything is compiled before a request.

        Raises:
            CheckpointError: the version is missing, damaged, of another instrument, or not finite.
        """
        agent = load_agent(self._store, pointed.version, self._precision)
        served = Served(agent, pointed.version, stage_of(pointed), self._instrument_of(pointed.version))
        windows = np.zeros((1, WINDOW_BARS, NUM_FEATURES), np.float32)
        decided = served.decide(windows, np.zeros((1, NUM_STATIC), np.float32), self._search)
        if not np.isfinite(decided.values).all():
            raise CheckpointError(
                f"version {pointed.version} computes the value {decided.values[0]}, expected a finite number"
            )
        return served

    def _instrument_of(self, version: int) -> Instrument:
        """The instrument that a version was trained on.

        Raises:
            CheckpointError: it differs from the instrument in the settings.
        """
        trained_on = trained_instrument(self._store.manifest(version))
        if trained_on is None:
            return Instrument.named(self._instrument or _INSTRUMENT_OF_OLD_VERSIONS)
        if self._instrument not in ("", trained_on.name):
            raise CheckpointError(
                f"version {version} was trained on {trained_on.name}, but MM_INFERENCE__INSTRUMENT is "
                f"{self._instrument}: unset it, or promote a version of that instrument"
            )
        return trained_on

    def _accept(self) -> None:
        """Forget earlier failures, so that the next one raises an alert again."""
        self._refused, self._pointer_error, self._is_store_lost = None, "", False

    def _refuse(self, pointed: Pointed | None, damaged: MuZeroError) -> AlertRaised | None:
        pointer_error = "" if pointed else str(damaged)
        is_repeated = (pointed, pointer_error) == (self._refused, self._pointer_error)
        self._refused, self._pointer_error, self._is_store_lost = pointed, pointer_error, False
        return None if is_repeated else self._alert("version_refused", damaged)

    def _lose_store(self, unavailable: StoreUnavailableError) -> AlertRaised | None:
        is_repeated, self._is_store_lost = self._is_store_lost, True
        return None if is_repeated else self._alert("store_unavailable", unavailable)

    def _alert(self, name: str, failure: MuZeroError) -> AlertRaised:
        """Log a failure, and return it as an alert that names the version in use."""
        version = self._served and self._served.version
        serving = "no version is served" if version is None else f"version {version} is still served"
        log.error(name, error=str(failure), serving=version)
        return AlertRaised(source="inference", name=name, detail=f"{failure}; {serving}")


async def _listen(bus: Bus, moved: asyncio.Event) -> None:
    """Set an event at each promotion. If Redis refuses reads, polling alone finds promotions."""
    with contextlib.suppress(MuZeroError):
        async for promotions in bus.follow(PROMOTIONS, await bus.last_id(PROMOTIONS)):
            if promotions:
                moved.set()


async def _raise_alert(bus: Bus, alert: AlertRaised) -> None:
    """Append an alert. If Redis refuses it, the log still has it."""
    with contextlib.suppress(MuZeroError):
        await bus.append(ALERTS, alert)
