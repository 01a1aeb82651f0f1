"""A trader that waits for the account's lease: it does not trade, but it obeys a kill.

Redis may be down, and this may be the only trader left, restarted after a crash. A kill file in its own home,
or a kill in its own ledger, therefore makes it close the account's position without the lease. A kill in the
ledger is ignored if it has been lifted through Redis: the position belongs to the trader with the lease.
A trader in standby opens neither the ledger nor a position.
"""

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path

import structlog

from services.trader.closing import close_at_broker
from services.trader.kill_switch import KillSwitch, StatusFile, TraderStatus
from services.trader.ledger import kept_control
from services.trader.settings import TraderSettings
from services.trader.venue import Venue
from shared.adapters.oanda.client import OandaClient
from shared.adapters.streams.bus import Bus
from shared.errors import MuZeroError
from shared.messages.streams import CONTROL

log = structlog.get_logger()

_WATCH_SECONDS = 0.5

#: Time limit for asking Redis whether a kill was lifted; the close must not wait longer.
_REDIS_SECONDS = 1.0


class Standby:
    """Obeys the kill switch of one home until the lease is acquired."""

    def __init__(
        self,
        switch: KillSwitch,
        status: StatusFile,
        venue: Venue,
        account: str,
        instrument: str,
        settings: TraderSettings,
        bus: Bus,
    ) -> None:
        self._switch, self._status, self._venue, self._account = switch, status, venue, account
        self._instrument, self._settings, self._bus = instrument, settings, bus
        self._folder: Path = switch.path.parent

    async def until(self, acquired: Coroutine[None, None, None]) -> None:
        """Check the kill switch until `acquired` returns."""
        lease = asyncio.ensure_future(acquired)
        try:
            async with OandaClient(
                self._account, self._venue.token, api_url=self._venue.api_url, read_attempts=1
            ) as client:
                while not lease.done():
                    pause = await self._look(client)
                    await asyncio.wait({lease}, timeout=pause)
            lease.result()
        finally:
            lease.cancel()

    async def _look(self, client: OandaClient) -> float:
        """Check the kill switch once and obey it; returns the seconds until the next check."""
        order = self._switch.order()
        if order is None and not await self._killed_through_redis():
            self._write("running", None, None, "")
            return _WATCH_SECONDS
        flat_at, detail = await close_at_broker(client, self._instrument)
        self._write("killed", order.kill_id if order else None, flat_at, detail)
        if detail:
            log.warning("killed_in_standby", detail=detail)
        config = self._settings.trader
        return config.flatten_retry_seconds if detail else config.sync_seconds

    async def _killed_through_redis(self) -> bool:
        """Whether the ledger has a kill that was not lifted through Redis; True if Redis does not answer."""
        if kept_control(self._folder) != "killed":
            return False
        try:
            async with asyncio.timeout(_REDIS_SECONDS):
                newest = await self._bus.newest(CONTROL, name="trader")
        except (TimeoutError, MuZeroError):
            return True
        return newest is None or newest.state == "killed"

    def _write(self, control: str, kill_id: str | None, flat_at: int | None, detail: str) -> None:
        self._status.write(
            TraderStatus(
                pid=os.getpid(),
                mode=self._settings.mode.value,
                api_url=self._venue.api_url,
                account=self._account,
                instrument=self._instrument,
                state="standby",
                control=control,
                kill_id=kill_id,
                units=None if flat_at is None else 0,
                unknown_orders=0,
                flat_at=flat_at,
                detail=detail,
            )
        )
