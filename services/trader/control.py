"""What operators ordered: through Redis, kept in the ledger, or through the kill file, which outranks it."""

import os
from dataclasses import replace

import structlog

from services.trader.exits import Exits
from services.trader.kill_switch import KillOrder, TraderStatus
from services.trader.ledger import Memory
from services.trader.orders import plain
from services.trader.parts import Parts, Terms
from shared.errors import LedgerError
from shared.messages.schemas import ControlIssued

log = structlog.get_logger()


class Control:
    """The orders of operators to one trader, and the trader's word on them."""

    def __init__(self, parts: Parts, terms: Terms, exits: Exits) -> None:
        """The kill file is looked at now and whenever `see_kill_file` is called."""
        switch, self._status, self._account = parts.switch, parts.status, parts.account
        self._switch, self._exits = switch, exits
        self._mode, self._api_url = terms.mode, terms.api_url
        self._kill: KillOrder | None = switch.order()
        self._early: list[tuple[str, ControlIssued]] = []  # orders that came before the account was known

    @property
    def now(self) -> str:
        """What holds: running, paused or killed."""
        if self._kill is not None:
            return "killed"
        if self._account.reconciled:
            return self._account.memory.control
        ordered = [order.state for _, order in self._early if order.target == "trader"]
        return ordered[-1] if ordered else "running"

    @property
    def killed_by(self) -> str:
        """Who wrote the kill file, and how it is lifted; empty where there is none."""
        if self._kill is None:
            return ""
        return f"({self._kill.words}); `micro-muzero kill --resume` lifts it"

    @property
    def by_file(self) -> bool:
        """The kill file is there."""
        return self._kill is not None

    def forbids_entry(self) -> bool:
        """Whether a kill holds at this very moment; asked right before an entry is sent."""
        return self.now == "killed" or self._switch.order() is not None

    def see_kill_file(self) -> None:
        """Take up a kill file that came, changed or went."""
        seen = self._switch.order()
        if seen != self._kill:
            log.warning("kill_file", order=seen.words if seen else "lifted")
            self._exits.hurry()
            if seen is None and self._account.reconciled:
                self._keep(replace(self._account.memory, exit=""))
        self._kill = seen

    def take_up(self, entry_id: str, order: ControlIssued) -> None:
        """Take up one order from Redis: it holds, over restarts too, until the next one."""
        if not self._account.reconciled:
            self._early.append((entry_id, order))  # nowhere to be kept; it holds all the same
            self._exits.hurry()
            return
        memory = replace(self._account.memory, control_entry=entry_id)
        if order.target == "trader":
            log.warning("trader_control", state=order.state, by=order.by, reason=order.reason)
            if order.state == "killed" != memory.control:
                self._exits.hurry()
            memory = replace(memory, control=order.state)
            if order.state == "running":
                memory = replace(memory, risk=memory.risk.resumed(), exit="")
        self._keep(memory, resumed=order.target == "trader" and order.state == "running")

    def _keep(self, memory: Memory, *, resumed: bool = False) -> None:
        """Go on with a memory; a ledger that cannot be written keeps no order from being obeyed."""
        try:
            if resumed:
                self._account.abandon_unknown()
            self._account.keep(memory)
        except LedgerError as refused:
            log.error("order_not_kept", error=str(refused))  # noqa: TRY400  the text says it all
            self._account.remember(memory)

    def account_is_known(self) -> None:
        """Keep what was ordered before the account was read for the first time."""
        early, self._early = self._early, []
        for entry_id, order in early:
            self.take_up(entry_id, order)

    def write_status(self, state: str) -> None:
        """Write the status file, which `kill` reads, when something in it has changed."""
        known = self._account.reconciled
        self._status.write(
            TraderStatus(
                pid=os.getpid(),
                mode=self._mode.value,
                api_url=self._api_url,
                account=self._account.account_id,
                instrument=self._account.instrument,
                state=state,
                control=self.now,
                kill_id=self._kill.kill_id if self._kill else None,
                units=plain(self._account.holding.units) if known else None,
                unknown_orders=self._account.num_unknown() if known else 0,
                flat_at=self._exits.flat_at,
                detail=self._exits.detail or ("" if known else "the account was not read yet"),
            )
        )
