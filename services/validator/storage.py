"""The validator's checkpoint store and database, and how it waits while one of them is unavailable."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from shared.adapters.tables.validations import DATABASE, ValidationStore
from shared.adapters.versions.store import CheckpointStore
from shared.engine.precision import Precision
from shared.errors import RecordsUnavailableError, StoreUnavailableError
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()

_R = TypeVar("_R")

#: Pause between attempts while the checkpoint store or the database is unavailable.
STORE_RETRY_SECONDS = 5.0


class StoppedError(Exception):
    """The service was asked to stop. The next start finishes the work."""


@dataclass(frozen=True)
class Storage:
    """The checkpoint store, the folder of the reports and the database of judgements."""

    store: CheckpointStore
    reports: Path
    precision: Precision = Precision.AUTO  # numeric precision of the loaded networks

    @property
    def records(self) -> ValidationStore:
        """The database of judgements."""
        return ValidationStore(self.reports / DATABASE)


async def retry_until_stored(lifecycle: Lifecycle, call: Callable[[], _R]) -> _R:
    """Run a call in a thread, and repeat it while the store or the database is unavailable.

    Raises:
        StoppedError: the service was asked to stop before the call succeeded.
    """
    while True:
        try:
            return await asyncio.to_thread(call)
        except (StoreUnavailableError, RecordsUnavailableError) as unavailable:
            await pause(lifecycle, unavailable)
            if lifecycle.stopping.is_set():
                raise StoppedError from unavailable


async def pause(lifecycle: Lifecycle, unavailable: StoreUnavailableError | RecordsUnavailableError) -> None:
    """Log why the store or the database is unavailable, and wait before the next attempt."""
    log.warning("store_unavailable", error=str(unavailable), retry_seconds=STORE_RETRY_SECONDS)
    await lifecycle.sleep(STORE_RETRY_SECONDS)
