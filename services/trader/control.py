"""Orders of operators, from Redis and from the kill file. The kill file outranks Redis."""

import asyncio
import os
from dataclasses import replace

import structlog

from services.trader.exits import Exits
from services.trader.kill_switch import KillOrder, TraderStatus
from services.trader.ledger import Memory
from services.trader.orders import plain
from services.trader.parts import Parts, Terms
from shared.errors import LedgerError, ServiceError, SettingsError
from shared.messages.entry_id import EntryId
from shared.messages.schemas import ControlIssued
from shared.messages.streams import CONTROL

log = structlog.get_logger()

#: Pause before operators' orders are read again after Redis refused.
_REFUSED_SECONDS = 1.0


class Control:
    """Obeys operators' orders: running, paused or killed. An order from Redis is saved in the ledger."""

    def __init__(self, parts: Parts, terms: Terms, exits: Exits) -> None:
        """Read the kill file; `check_kill_file` reads it again."""
        switch, self._status, self._account = parts.switch, parts.status, parts.account
        self._switch, self._exits, self._bus = switch, exits, parts.lifecycle.bus
        self._mode, self._api_url = terms.mode, terms.api_url
        self._kill: KillOrder | None = switch.order()
        self._early: list[tuple[str, ControlIssued]] = []  # orders from before the first reconciliation
        self.caught_up = asyncio.Event()  # every order given before the start was applied

    @property
    def state(self) -> str:
        """The order in force: running, paused or killed."""
        if self._kill is not None:
            return "killed"
        if self._account.reconciled:
            return self._account.memory.control
        ordered = [order.state for _, order in self._early if order.target == "trader"]
        return ordered[-1] if ordered else "running"

    @property
    def killed_by(self) -> str:
        """Author of the kill file and the command that lifts it; empty without a kill file."""
        if self._kill is None:
            return ""
        return f"({self._kill.words}); `micro-muzero kill --resume` lifts it"

    @property
    def killed_by_file(self) -> bool:
        """Whether a kill file exists."""
        return self._kill is not None

    def forbids_entry(self) -> bool:
        """Whether a kill is in force now; reads the kill file again, since an entry is about to be sent."""
        return self.state == "killed" or self._switch.order() is not None

    def check_kill_file(self) -> None:
        """Obey a kill file that was written, changed or removed."""
        seen = self._switch.order()
        if seen != self._kill:
            log.warning("kill_file", order=seen.words if seen else "lifted")
            self._exits.retry_now()
            if seen is None and self._account.reconciled:
                self._save(replace(self._account.memory, exit=""))
        self._kill = seen

    # -- orders from Redis ---------------------------------------------------------------------------

    async def follow(self) -> None:
        """Apply operators' orders as they arrive, until cancelled; retries if Redis refuses a command."""
        while True:
            try:
                await self._follow_stream()
            except (ServiceError, SettingsError) as refused:
                log.warning("control_not_read", error=str(refused))
                await asyncio.sleep(_REFUSED_SECONDS)

    async def _follow_stream(self) -> None:
        """Apply every order after the last one that the ledger knows.

        Raises:
            ServiceError: Redis refuses the command.
            SettingsError: Redis refuses the password.
        """
        until = EntryId.parse(await self._bus.last_id(CONTROL))
        after = self._account.memory.control_entry if self._account.reconciled else "0-0"
        if EntryId.parse(after) >= until:
            self.caught_up.set()
        async for entries in self._bus.follow(CONTROL, after):
            for entry in entries:
                self.apply(entry.entry_id, entry.message)
            if not entries or EntryId.parse(entries[-1].entry_id) >= until:
                self.caught_up.set()

    def apply(self, entry_id: str, order: ControlIssued) -> None:
        """Apply one order from Redis. It stays in force, across restarts too, until the next one."""
        if not self._account.reconciled:
            self._early.append((entry_id, order))  # obeyed now, saved by `apply_early_orders`
            self._exits.retry_now()
            return
        memory = replace(self._account.memory, control_entry=entry_id)
        if order.target == "trader":
            log.warning("trader_control", state=order.state, by=order.by, reason=order.reason)
            if order.state == "killed" != memory.control:
                self._exits.retry_now()
            memory = replace(memory, control=order.state)
            if order.state == "running":
                memory = replace(memory, risk=memory.risk.resumed(), exit="")
        self._save(memory, resumed=order.target == "trader" and order.state == "running")

    def apply_early_orders(self) -> None:
        """Save the orders that arrived before the account was reconciled for the first time."""
        early, self._early = self._early, []
        for entry_id, order in early:
            self.apply(entry_id, order)

    def _save(self, memory: Memory, *, resumed: bool = False) -> None:
        """Save the memory. If the ledger cannot be written, the order is obeyed until the next restart."""
        try:
            if resumed:
                self._account.abandon_unknown()
            self._account.keep(memory)
        except LedgerError as refused:
            log.error("order_not_kept", error=str(refused))  # noqa: TRY400
            self._account.remember(memory)

    def write_status(self, state: str) -> None:
        """Write the status file, which `micro-muzero kill` reads."""
        known = self._account.reconciled
        self._status.write(
            TraderStatus(
                pid=os.getpid(),
                mode=self._mode.value,
                api_url=self._api_url,
                account=self._account.account_id,
                instrument=self._account.instrument,
                state=state,
                control=self.state,
                kill_id=self._kill.kill_id if self._kill else None,
                units=plain(self._account.holding.units) if known else None,
                unknown_orders=self._account.num_unknown() if known else 0,
                flat_at=self._exits.flat_at,
                detail=self._exits.detail or ("" if known else "the account has not been read yet"),
            )
        )
