"""Exits: repeats closes until the broker shows the account flat.

A close can only reduce the position, so it is repeated under a new id whatever the outcome of the last one.
It needs no lease, no fresh price, no decision and no Redis. It waits only while the market is known to be
closed.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar

import structlog

from services.trader.account import Account
from services.trader.config import GuardConfig, TraderConfig
from services.trader.market import Market
from services.trader.orders import Intent, IntentState
from shared.adapters.oanda.client import NOTHING_TO_CLOSE
from shared.environment.action import Side
from shared.errors import BrokerError, LedgerError

log = structlog.get_logger()

_T = TypeVar("_T")

#: Time limit for reading the account or a close's outcome, so that a kill is not delayed.
_LOOK_UP_SECONDS = 3.0


class Exits:
    """Closes one account's position, with one close in flight at a time."""

    def __init__(
        self,
        account: Account,
        market: Market,
        config: TraderConfig,
        limits: GuardConfig,
        *,
        settled: Callable[[Intent], None],
    ) -> None:
        """`settled` is called with each close once its outcome is known or its look-up has timed out."""
        self._account, self._market = account, market
        self._config, self._limits, self._settled = config, limits, settled
        self._one_at_a_time = asyncio.Lock()
        self._failures = 0  # closes in a row that left a position open
        self._next_close = 0.0  # monotonic seconds
        self._next_look = 0.0  # monotonic seconds
        self.detail = ""  # why a position that must be closed is still open
        self.flat_at: int | None = None  # transaction at which the broker showed the account flat

    def wanted(self, forced: str) -> str:
        """Reason why the position must be closed: `forced`, or that of an unfinished close; empty if none."""
        if self._account.holding.side is Side.FLAT:
            return ""
        return forced or self._account.memory.exit

    def retry_now(self) -> None:
        """Make the next close and the next check due now, since an operator's order arrived."""
        self._next_close = self._next_look = 0.0
        self._failures, self.flat_at = 0, None

    async def close_when_due(self, reason: str) -> None:
        """Send the next close if the pause after the last one is over; called between bars."""
        self.flat_at = None
        if self._market_is_closed():
            self.detail = "the market is closed; the position will be closed when it opens"
        elif self._is_due():
            last_bar_s = self._market.last_bar_s
            await self.close(reason, max(self._account.memory.decided_bar_s, last_bar_s or 0))
        else:
            await self.check_account(confirm=False)

    async def close(self, reason: str, bar_time_s: int, *, decided: bool = False) -> bool:
        """Send one close and look its outcome up for up to three seconds.

        Args:
            reason: reason of the close; saved until the position is closed.
            bar_time_s: opening time of the newest bar.
            decided: also save that the bar was decided on.
        Returns:
            True if the account is flat.
        """
        async with self._one_at_a_time:
            held = self._account.holding.side
            if held is Side.FLAT:
                return True
            pause = self._pause()
            log.warning("closing", side=held.name, reason=reason, failures=self._failures)
            try:
                intent = await self._account.close(
                    bar_time_s, reason, look_up_seconds=min(pause, _LOOK_UP_SECONDS), decided=decided
                )
            except LedgerError as refused:
                return await self._close_without_ledger(refused)
            self._settled(intent)
            if intent.state is IntentState.REJECTED and intent.detail == NOTHING_TO_CLOSE:
                reconciled = await self._look(self._reconcile())
                if not reconciled and self._account.holding.side is held:
                    await self._account.close_unread()
            return self._judge(intent)

    async def _close_without_ledger(self, refused: LedgerError) -> bool:
        """Send a close although the ledger cannot save it: a close can only reduce the position."""
        self._failures = min(self._failures + 1, 16)
        flat_at, left = await self._account.close_unread()
        self.detail = f"{refused}; " + (left or f"the account is flat at transaction {flat_at}")
        return flat_at is not None

    async def _reconcile(self) -> bool:
        await self._account.reconcile()
        return True

    async def close_unread(self) -> None:
        """Close the position that the broker shows, since the position known here may be wrong."""
        if not self._is_due():
            return
        async with self._one_at_a_time:
            self._pause()
            self._failures = min(self._failures + 1, 16)
            flat_at, self.detail = await self._account.close_unread()
            if not self._account.reconciled:
                self.flat_at = flat_at

    def _is_due(self) -> bool:
        return time.monotonic() >= self._next_close and not self._one_at_a_time.locked()

    def _pause(self) -> float:
        """Set the time of the next close and return the pause until then; it doubles with every failure."""
        pause = min(
            self._config.flatten_retry_seconds * 2.0**self._failures, self._config.flatten_retry_max_seconds
        )
        self._next_close = time.monotonic() + pause
        return pause

    def _judge(self, intent: Intent) -> bool:
        if self._account.holding.side is Side.FLAT:
            self._failures, self.detail = 0, ""
            return True
        self._failures = min(self._failures + 1, 16)
        outcome = f"{intent.state} {intent.detail}".rstrip()
        self.detail = f"the position is still open, close {self._failures} did not work: {outcome}"
        return False

    async def check_account(self, *, confirm: bool) -> None:
        """Read the account's new transactions from time to time, since a stop may have been filled.

        Args:
            confirm: also ask the broker for a snapshot, until it shows the account flat.
        """
        if self._account.holding.side is not Side.FLAT:
            self.flat_at = None
        elif not confirm:
            self._failures, self.detail = 0, ""
        if time.monotonic() < self._next_look:
            return
        confirm = confirm and self.flat_at is None
        unknown = self._account.num_unknown()
        urgent = confirm or unknown
        self._next_look = time.monotonic() + (
            self._config.look_up_poll_seconds if urgent else self._config.sync_seconds
        )
        if not confirm:
            await self._look(self._account.sync(None))
            return
        shown = await self._look(self._account.shown_flat())
        if shown:
            self.flat_at, self.detail = self._account.holding.last_transaction_id, ""
            self._failures = 0
            log.warning("flat_confirmed", transaction=self.flat_at)
        elif shown is None:
            await self.close_unread()
        elif self._account.holding.side is Side.FLAT:
            self.detail = f"the outcome of {unknown} orders is not known yet"

    @property
    def closing(self) -> bool:
        """Whether a close is in flight or being looked up."""
        return self._one_at_a_time.locked()

    @property
    def failing(self) -> bool:
        """Whether the last close failed, so that a position may still be open."""
        return self._failures > 0

    def _market_is_closed(self) -> bool:
        """Whether a live stream shows the market closed; a silent stream proves nothing."""
        quoted = self._market.quoted
        alive = time.monotonic() - self._market.heard <= self._limits.stale_seconds
        return alive and quoted is not None and not quoted.price.tradeable

    async def _look(self, reading: Coroutine[None, None, _T]) -> _T | None:
        """Result of reading the broker, or None if it fails or does not answer in time."""
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS):
                return await reading
        except (BrokerError, LedgerError, TimeoutError) as unreadable:
            log.debug("account_not_read", error=str(unreadable))
            return None
