"""Sends orders on the account and follows them until their outcome is known.

An entry is never sent twice, and an order with an unknown outcome forbids the next entry. A close can only
reduce the position, so it may be sent again under another id.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import replace
from decimal import Decimal

import structlog

from services.trader.closing import close_at_broker
from services.trader.known_account import KnownAccount, risk_after
from services.trader.ledger import Memory
from services.trader.orders import (
    Intent,
    IntentState,
    entry_order,
    intent_id,
    snapshot_holding,
)
from shared.adapters.oanda.records import (
    OrderOutcome,
    Price,
)
from shared.environment.action import Action, Side
from shared.errors import BrokerError, OrderRejectedError, OutcomeUnknownError, ServiceError

log = structlog.get_logger()


class Account(KnownAccount):
    """One account and its orders. Each order is saved, sent once and settled by the account's history."""

    def num_unknown(self) -> int:
        """Number of orders that were sent and whose outcome is not known."""
        return len(self._ledger.unsettled())

    async def shown_flat(self) -> bool:
        """Whether the broker shows no position and no order of this trader can still open one.

        Raises:
            BrokerError: the account cannot be read.
        """
        await self.sync(None)
        snapshot = await self._client.snapshot()
        if snapshot_holding(snapshot, self._instrument.name, None).trades:
            await self.reconcile()
            return False
        return self.holding.side is Side.FLAT and self._ledger.num_unknown_entries() == 0

    async def close_unread(self) -> tuple[int | None, str]:
        """Close the position that the broker shows, without the ledger; see `close_at_broker`."""
        return await close_at_broker(self._client, self._instrument.name)

    def abandon_unknown(self) -> int:
        """Abandon orders with an unknown outcome, since an operator resumed trading; returns their number."""
        detail = "the account shows no trace of it, and an operator resumed trading"
        lost = [
            replace(intent, state=IntentState.ABANDONED, detail=detail) for intent in self._ledger.unsettled()
        ]
        if lost:
            self._ledger.keep(self.memory, (), lost)
            log.warning("orders_abandoned", intents=[intent.intent_id for intent in lost])
        return len(lost)

    async def enter(self, action: Action, bar_time_s: int, quote: Price, fence: int) -> Intent:
        """Send one entry and follow it until its outcome is known or `look_up_seconds` have passed.

        Args:
            action: BUY or SELL.
            bar_time_s: opening time of the bar decided on.
            quote: newest price.
            fence: fencing token of the lease held.
        Returns:
            The intent with its outcome, or still SENDING if the outcome is not known.
        Raises:
            ServiceError: this entry was sent before, or the fencing token is outdated.
            LedgerError: the intent cannot be saved, so nothing was sent.
        """
        assert self._details is not None, "no entry is sent before the account is reconciled"
        intent = self._intent(action, bar_time_s, Decimal(self._config.units), fence)
        order = entry_order(intent, quote, self._details, self._config, self._instrument.pip)
        # Saved with the intent: a trader that crashes from here on does not decide on this bar again.
        memory = replace(self.memory, fence=fence, decided_bar_s=max(bar_time_s, self.memory.decided_bar_s))
        sending = self._client.market_order(order)
        return await self._send(intent, memory, sending, quote.spread, self._config.look_up_seconds)

    async def close(
        self, bar_time_s: int, reason: str, *, look_up_seconds: float, decided: bool = False
    ) -> Intent:
        """Send one close of the position and follow it until its outcome is known or time runs out.

        A close needs no lease and no quote, and may be repeated: it can only reduce the position.

        Args:
            bar_time_s: opening time of the newest bar.
            reason: reason saved until the position is closed, so that a restarted trader goes on closing it.
            look_up_seconds: time limit for the look-up of the outcome.
            decided: also save that the bar was decided on.
        Returns:
            The intent with its outcome, or still SENDING if the outcome is not known.
        Raises:
            LedgerError: the intent cannot be saved, so nothing was sent.
        """
        intent = self._intent(Action.CLOSE, bar_time_s, abs(self.holding.units), self.memory.fence)
        memory = replace(self.memory, exit=reason[:500])
        if decided:
            memory = replace(memory, decided_bar_s=max(bar_time_s, memory.decided_bar_s))
        sending = self._client.close_position(
            intent.instrument, long=intent.side is Side.LONG, client_id=intent.intent_id
        )
        return await self._send(intent, memory, sending, None, look_up_seconds)

    def _intent(self, action: Action, bar_time_s: int, units: Decimal, fence: int) -> Intent:
        return Intent(
            intent_id=self._free_id(bar_time_s, action),
            account=self._client.account,
            instrument=self._instrument.name,
            bar_time_s=bar_time_s,
            action=action,
            side=self.holding.side,
            units=units,
            last_transaction_id=self.holding.last_transaction_id,
            fence=fence,
        )

    def _free_id(self, bar_time_s: int, action: Action) -> str:
        """The next unused id. An entry may be retried for a bar only if the earlier orders had no effect."""
        attempt = 0
        while before := self._ledger.intent(intent_id(self._client.account, bar_time_s, action, attempt)):
            if action is not Action.CLOSE and before.state in (IntentState.SENDING, IntentState.FILLED):
                raise ServiceError(
                    f"{action.name} for bar {bar_time_s} was already sent as {before.intent_id} "
                    f"({before.state}); it is not sent again"
                )
            attempt += 1
        return intent_id(self._client.account, bar_time_s, action, attempt)

    async def _send(
        self,
        intent: Intent,
        memory: Memory,
        sending: Coroutine[None, None, OrderOutcome],
        spread: Decimal | None,
        look_up_seconds: float,
    ) -> Intent:
        """Save an order, send it once, and look its outcome up."""
        try:
            self._ledger.add_intent(intent, memory)
        except BaseException:
            sending.close()
            raise
        self._memory = memory
        self._answered[intent.intent_id] = None
        log.info("order_sending", intent=intent.intent_id, action=intent.action.name, bar=intent.bar_time_s)
        try:
            await sending
        except OutcomeUnknownError as unknown:
            log.warning("order_unanswered", intent=intent.intent_id, error=str(unknown))
        except OrderRejectedError as refused:
            return self._settle(intent, IntentState.REJECTED, refused.reject_reason)
        except BrokerError as unsent:
            return self._settle(intent, IntentState.NOT_SENT, str(unsent))
        finally:
            self._answered[intent.intent_id] = self._monotonic()
        return await self._follow(intent, spread, look_up_seconds)

    async def _follow(self, intent: Intent, spread: Decimal | None, look_up_seconds: float) -> Intent:
        """Look the order's outcome up in the account's transactions."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(look_up_seconds):
                while True:
                    try:
                        await self.sync(spread)
                    except BrokerError as unreadable:
                        log.warning("look_up_failed", intent=intent.intent_id, error=str(unreadable))
                    if self._kept(intent).state is not IntentState.SENDING or self._stopping.is_set():
                        break
                    await asyncio.sleep(self._config.look_up_poll_seconds)
        found = self._kept(intent)
        if found.state is IntentState.SENDING:
            log.error("order_unknown", intent=intent.intent_id, action=intent.action.name)
        return found

    def _kept(self, intent: Intent) -> Intent:
        found = self._ledger.intent(intent.intent_id)
        assert found is not None, "intents are removed only together with their account"
        return found

    def _settle(self, intent: Intent, state: IntentState, detail: str) -> Intent:
        """Settle an order that was rejected or not sent; only a rejected one counts towards `max_rejects`."""
        kept = self._kept(intent)
        if kept.state is not IntentState.SENDING:
            return kept  # another task read the reject among the transactions and counted it
        settled = replace(intent, state=state, detail=detail[:500])
        memory = self.memory
        if state is IntentState.REJECTED:
            memory = replace(memory, risk=risk_after(memory.risk, state, detail))
        self._ledger.keep(memory, (), [settled])
        self._memory = memory
        log.warning("order_refused", intent=intent.intent_id, state=state, detail=detail)
        return settled
