"""Announces a judgement, and promotes the version if it passed."""

import asyncio

import structlog

from services.validator.storage import Storage, retry_until_stored
from shared.adapters.versions.manifest import Pointed, Pointer
from shared.adapters.versions.promotions import check_gate, promote, serve_unproven
from shared.errors import CheckpointError, PromotionError
from shared.messages.schemas import AlertRaised, ValidationReported, VersionPromoted
from shared.messages.streams import ALERTS, PROMOTIONS, VALIDATIONS
from shared.runtime.lifecycle import Lifecycle

log = structlog.get_logger()


async def raise_alert(lifecycle: Lifecycle, name: str, detail: str) -> None:
    """Append an alert from the validator to the alert stream."""
    await lifecycle.bus.append(ALERTS, AlertRaised(source="validator", name=name, detail=detail))


class BestPointer:
    """Reads the version to beat, and raises one alert each time that its pointer becomes damaged."""

    def __init__(self, lifecycle: Lifecycle, storage: Storage) -> None:
        self._lifecycle, self._storage = lifecycle, storage
        self._is_damaged = False

    async def version(self) -> int | None:
        """The version to beat; None if none is set or the pointer is damaged.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        try:
            best = await asyncio.to_thread(self._storage.store.pointer, Pointer.BEST)
        except CheckpointError as damaged:
            if not self._is_damaged:
                log.warning("best_damaged", error=str(damaged))
                alert = raise_alert(self._lifecycle, "best_damaged", str(damaged))
                await self._lifecycle.until_stopping(alert)
            self._is_damaged = True
            return None
        self._is_damaged = False
        return best.version if best else None


async def announce_and_promote(lifecycle: Lifecycle, storage: Storage, judged: ValidationReported) -> bool:
    """Announce a judgement and promote the version if it passed; safe to repeat.

    Returns:
        True, so that `Lifecycle.until_stopping` can tell completion from a stop.
    Raises:
        StoppedError: the service was asked to stop while the store was unavailable.
    """
    await lifecycle.bus.announce(VALIDATIONS, judged)
    log.info(
        "version_validated",
        version=judged.version,
        trades=judged.num_trades,
        expectancy_pips=judged.expectancy_pips,
        sqn100=judged.sqn,
        passed_gates=judged.passed_gates,
        seconds=round(judged.seconds, 2),
    )
    await _promote(lifecycle, storage, judged)
    return True


async def _promote(lifecycle: Lifecycle, storage: Storage, judged: ValidationReported) -> None:
    """Promote a version that passed the paper gate; otherwise serve it as unproven if no other is served."""
    version = judged.version
    move = _promote_to_paper if "paper" in judged.passed_gates else _serve_unproven
    try:
        message = await retry_until_stored(lifecycle, lambda: move(storage, version))
    except PromotionError as withheld:
        log.info("promotion_withheld", version=version, reason=str(withheld))
        return
    except CheckpointError as unusable:
        await raise_alert(lifecycle, "promotion_failed", str(unusable))
        return
    if message is not None:
        await lifecycle.bus.announce(PROMOTIONS, message)
        log.info("version_promoted", version=version, stage=message.stage)


def _promote_to_paper(storage: Storage, version: int) -> VersionPromoted:
    """Point `best` and `promoted` at a version if its report passes the paper gate now.

    A stored announcement may say that the version passed under earlier settings. If it does not pass under
    the current settings, neither pointer moves.
    """
    check_gate(storage.reports, storage.store.manifest(version), "paper")
    best = storage.store.pointers()[Pointer.BEST]
    if not isinstance(best, Pointed) or best.version != version:
        storage.store.point(Pointer.BEST, version)
    return promote(storage.store, storage.reports, version, "paper", by="validator", replace_live=False)


def _serve_unproven(storage: Storage, version: int) -> VersionPromoted | None:
    return serve_unproven(storage.store, storage.reports, version, by="validator")
