"""Entry point: composes and runs the trader."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar
from uuid import uuid4

import structlog
from prometheus_client import REGISTRY, CollectorRegistry

from services.trader.account import Account
from services.trader.audit import Audit, AuditTables
from services.trader.config import Mode
from services.trader.kill_switch import KillSwitch, StatusFile
from services.trader.ledger import Ledger, may_hold
from services.trader.metrics import TraderMetrics
from services.trader.parts import Parts, Terms
from services.trader.service import TraderService
from services.trader.settings import TraderSettings
from services.trader.standby import Standby
from services.trader.venue import Venue, choose_venue, chosen_instrument, require_trained_on
from services.trader.waiting import announced
from shared.adapters.inference import InferenceClient
from shared.adapters.oanda.client import OandaClient
from shared.adapters.streams.lease import Lease
from shared.adapters.versions.manifest import Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.errors import BrokerError, SettingsError
from shared.market.bar import Instrument
from shared.runtime.entry import service_main
from shared.runtime.lifecycle import Lifecycle, Main

log = structlog.get_logger()

_T = TypeVar("_T")

#: A stopping trader delivers messages for this long; the rest stays on disk until its next start.
FINISH_SECONDS = 2.0

#: Shorter waits for the broker, or for a lease that should have expired, raise no alert.
UNAVAILABLE_SECONDS = 10.0


def compose(
    settings: TraderSettings,
    registry: CollectorRegistry = REGISTRY,
    wall: Callable[[], float] = time.time,
) -> Main:
    """Wire the service.

    Args:
        settings: settings of the trader.
        registry: registry for the metrics.
        wall: clock of this machine, in seconds since 1970 UTC.

    Raises:
        SettingsError: a setting that the mode requires is missing or wrong.
    """
    store = CheckpointStore(settings.checkpoint_root)
    held = may_hold(settings.home / "trader")
    promoted = store.pointer(Pointer.PROMOTED) if settings.mode is Mode.LIVE and not held else None
    venue = choose_venue(
        settings.mode,
        settings.trader,
        token=settings.oanda_token.get_secret_value(),
        account=settings.oanda_account,
        promoted=promoted,
        may_hold=held,
    )

    async def main(lifecycle: Lifecycle) -> None:
        async with AsyncExitStack() as stack:
            account, instrument = settings.oanda_account, None
            detail = (
                f"the broker at {venue.api_url} does not answer or refuses requests; the trader cannot "
                "start: check the broker and OANDA_TOKEN"
            )
            async with announced(lifecycle, "waiting_for_broker", detail, begin_seconds=UNAVAILABLE_SECONDS):
                account = account or await _only_account(venue, lifecycle)
                if account:
                    name = settings.trader.instrument
                    instrument = await _traded_instrument(venue, account, name, lifecycle)
            if instrument is None:
                return
            if promoted is not None:
                require_trained_on(store.manifest(promoted.version), instrument)
            metrics = TraderMetrics(registry)
            service = await _assemble(settings, venue, account, instrument, lifecycle, stack, metrics, wall)
            if service is not None:
                await service.run()

    return main


async def _only_account(venue: Venue, lifecycle: Lifecycle) -> str:
    """The token's only account, as soon as the broker answers; empty if the service is stopped first.

    Raises:
        SettingsError: the token has no account, or several.
    """
    accounts = await _answer(venue, "", lifecycle, OandaClient.accounts)
    if accounts is None:
        return ""
    if len(accounts) != 1:
        raise SettingsError(
            f"OANDA_ACCOUNT is not set, and the token has {len(accounts)} accounts: set it to one of "
            f"[{', '.join(accounts)}]"
        )
    return accounts[0]


async def _traded_instrument(
    venue: Venue, account: str, name: str, lifecycle: Lifecycle
) -> Instrument | None:
    """The instrument to trade, with the broker's pip, as soon as the broker answers; None if stopped first.

    Args:
        venue: the broker.
        account: account id.
        name: value of the setting; empty selects the only instrument that the account can trade.
        lifecycle: lifecycle of the service.
    Raises:
        SettingsError: the account cannot trade the instrument, or can trade several and none is named.
    """

    async def ask(client: OandaClient) -> Instrument:
        return chosen_instrument(await client.instruments(), name, venue.api_url)

    return await _answer(venue, account, lifecycle, ask)


async def _answer(
    venue: Venue, account: str, lifecycle: Lifecycle, ask: Callable[[OandaClient], Awaitable[_T]]
) -> _T | None:
    """The broker's answer, requested every second until it arrives; None if the service is stopped first.

    A refused token (401, 403) does not end the wait: it may be temporary, and a position may be open.
    """
    while not lifecycle.stopping.is_set():
        async with OandaClient(account, venue.token, api_url=venue.api_url) as client:
            try:
                return await ask(client)
            except BrokerError as failure:
                log.warning("broker_unavailable", error=str(failure))
                lifecycle.report(state="waiting for the broker")
                await lifecycle.sleep(1.0)
    return None


async def _assemble(
    settings: TraderSettings,
    venue: Venue,
    account: str,
    instrument: Instrument,
    lifecycle: Lifecycle,
    stack: AsyncExitStack,
    metrics: TraderMetrics,
    wall: Callable[[], float],
) -> TraderService | None:
    """Build the service once the account's lease is acquired; None if stopped first."""
    config = settings.trader
    lease = Lease(
        settings.redis_address,
        f"trader:{account}",
        # Unique, so that two processes with the same instance name do not share the lease.
        f"{lifecycle.instance} {uuid4()}",
        seconds=config.lease_seconds,
    )
    stack.push_async_callback(lease.release)
    _in_background(lease.keep(), lifecycle, stack)
    lifecycle.report(state="standby", mode=settings.mode.value)
    folder = settings.home / "trader"
    switch, status = KillSwitch(folder), StatusFile(folder)
    standby = Standby(switch, status, venue, account, instrument.name, settings, lifecycle.bus)
    detail = f"another trader holds the lease of account {account}: this one waits and sends no order"
    # A crashed trader's lease lasts until it expires.
    async with announced(
        lifecycle, "standby", detail, begin_seconds=config.lease_seconds + UNAVAILABLE_SECONDS
    ):
        await lifecycle.until_stopping(standby.until(lease.acquired()))
    if lifecycle.stopping.is_set():
        return None
    ledger = Ledger(folder)
    stack.callback(ledger.close)
    tables = AuditTables(folder / "trader.duckdb")
    stack.callback(tables.close)
    client = await stack.enter_async_context(
        OandaClient(account, venue.token, api_url=venue.api_url, stream_url=venue.stream_url)
    )
    inference = await stack.enter_async_context(
        InferenceClient(config.inference_url, deadline_seconds=config.inference_deadline_ms / 1e3)
    )
    audit = Audit(ledger, tables, lifecycle.bus)
    stack.push_async_callback(audit.flush_tables)
    _in_background(audit.deliver_to_streams(), lifecycle, stack, finish=audit.finish_streams)
    _in_background(audit.write_tables(), lifecycle, stack)
    orders = Account(
        client, ledger, config, instrument, settings.mode, lifecycle.stopping, settings.environment
    )
    parts = Parts(client, inference, orders, ledger, audit, lease, lifecycle, metrics, switch, status)
    terms = Terms(
        instrument, settings.mode, config, settings.guards, settings.environment, venue.api_url, wall
    )
    return TraderService(parts, terms)


def _in_background(
    work: Coroutine[None, None, None],
    lifecycle: Lifecycle,
    stack: AsyncExitStack,
    *,
    finish: Callable[[], None] | None = None,
) -> None:
    """Run work concurrently with the service. If it fails, stop the service and raise its error.

    Args:
        work: coroutine that runs until it is cancelled.
        lifecycle: lifecycle of the service; stopped when the work ends.
        stack: exit stack that cancels the work.
        finish: asks the work to return; the work is cancelled if it takes longer than `FINISH_SECONDS`.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(lambda _: lifecycle.stop())

    async def end() -> None:
        if finish:
            finish()
            await asyncio.wait({task}, timeout=FINISH_SECONDS)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until asked to stop; returns the exit status."""
    return service_main("trader", TraderSettings, compose, arguments)


if __name__ == "__main__":
    sys.exit(main())
