"""Exits: what is held is closed, again and again, until the broker shows that it is.

A close can only reduce the position, so it is repeated under a new id whatever became of the one before.
It needs no lease, no fresh price, no decision and no Redis. Only a market that is known to be closed lets
it wait.
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

#: A look at the account must not keep the next look at the kill switch waiting.
_LOOK_SECONDS = 3.0


class Exits:
    """Closes one account's position; one close is under way at a time."""

    def __init__(
        self,
        account: Account,
        market: Market,
        config: TraderConfig,
        limits: GuardConfig,
        *,
        settled: Callable[[Intent], None],
    ) -> None:
        """`settled` is called with each close once its outcome is known, or no longer looked for."""
        self._account, self._market = account, market
        self._config, self._limits, self._settled = config, limits, settled
        self._one_at_a_time = asyncio.Lock()
        self._failures = 0  # closes in a row after which something was still held
        self._next_close = 0.0
        self._next_look = 0.0
        self.detail = ""  # why something is still held that should not be
        self.flat_at: int | None = None  # transaction at which the broker showed flat, while nothing is held

    def wanted(self, forced: str) -> str:
        """Why what is held must be closed: a guard's reason, or that of a close that has not worked yet."""
        if self._account.holding.side is Side.FLAT:
            return ""
        return forced or self._account.memory.exit

    def hurry(self) -> None:
        """Try at once: a kill has come."""
        self._next_close = self._next_look = 0.0
        self._failures, self.flat_at = 0, None

    async def close_when_due(self, reason: str) -> None:
        """Between bars: send the next close when the pause after the last one is over."""
        self.flat_at = None
        if self._market_is_closed():
            self.detail = "the market is closed; the position is closed when it opens"
        elif self._is_due():
            last_bar_s = self._market.last_bar_s
            await self.close(reason, max(self._account.memory.decided_bar_s, last_bar_s or 0))
        else:
            await self.look_around(confirm=False)

    async def close(self, reason: str, bar_time_s: int, *, decided: bool = False) -> bool:
        """Send one close and look for its outcome for a moment.

        Args:
            reason: why; kept until what is held is closed.
            bar_time_s: opening time of the newest bar.
            decided: the close is what was decided for that bar.
        Returns:
            True when nothing is held any more.
        """
        async with self._one_at_a_time:
            held = self._account.holding.side
            if held is Side.FLAT:
                return True
            pause = self._pause()
            log.warning("closing", side=held.name, reason=reason, failures=self._failures)
            try:
                intent = await self._account.close(
                    bar_time_s, reason, look_up_seconds=min(pause, _LOOK_SECONDS), decided=decided
                )
            except LedgerError as refused:
                return await self._close_without_ledger(refused)
            self._settled(intent)
            if intent.state is IntentState.REJECTED and intent.detail == NOTHING_TO_CLOSE:
                agreed = await self._look(self._agrees())
                if not agreed and self._account.holding.side is held:
                    await self._account.close_unread()
            return self._judge(intent)

    async def _close_without_ledger(self, refused: LedgerError) -> bool:
        """A close that cannot be kept is sent all the same: it can only reduce the position."""
        self._failures = min(self._failures + 1, 16)
        flat_at, left = await self._account.close_unread()
        self.detail = f"{refused}; " + (left or f"the account is flat at transaction {flat_at}")
        return flat_at is not None

    async def _agrees(self) -> bool:
        await self._account.reconcile()
        return True

    async def close_unread(self) -> None:
        """Close what is held although the account cannot be read: what is known of it may be wrong."""
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
        """Put off the next close; the pause doubles with every one that did not work."""
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
        self.detail = f"close {self._failures} did not work: {intent.state} {intent.detail}".rstrip()
        return False

    async def look_around(self, *, confirm: bool) -> None:
        """Read what the account did meanwhile, now and then; a stop may have been filled.

        Args:
            confirm: ask the broker, too, whether the account is flat, until it is.
        """
        if self._account.holding.side is not Side.FLAT:
            self.flat_at = None
        elif not confirm:
            self._failures, self.detail = 0, ""
        if time.monotonic() < self._next_look:
            return
        confirm = confirm and self.flat_at is None
        unknown = self._account.num_unknown()
        hasty = confirm or unknown
        self._next_look = time.monotonic() + (
            self._config.look_up_poll_seconds if hasty else self._config.sync_seconds
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
        """A close is on its way, or being looked up."""
        return self._one_at_a_time.locked()

    @property
    def failing(self) -> bool:
        """A close has not worked, and something is still held, or may be."""
        return self._failures > 0

    def _market_is_closed(self) -> bool:
        """The stream says so, and is alive; a stream that is silent says nothing about the market."""
        quoted = self._market.quoted
        alive = time.monotonic() - self._market.heard <= self._limits.stale_seconds
        return alive and quoted is not None and not quoted.price.tradeable

    async def _look(self, reading: Coroutine[None, None, _T]) -> _T | None:
        """The result of reading the broker, or None where it does not answer in time."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                return await reading
        except (BrokerError, LedgerError, TimeoutError) as unreadable:
            log.debug("account_not_read", error=str(unreadable))
            return None
