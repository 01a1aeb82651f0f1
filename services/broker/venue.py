"""The running market: advances time, sends prices, executes orders and serves the streams.

Everything runs on one event loop. Each step changes the exchange, commits to the ledger and queues lines for
the streams without an await in between, so no lock is needed and no reader sees a partial step.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal

import structlog

from services.broker.config import BrokerConfig, Pacing
from services.broker.exchange.account import Order, Trade
from services.broker.exchange.exchange import Answer, Exchange
from services.broker.exchange.ledger import Ledger, ReplayProgress
from services.broker.exchange.planning import Quote
from services.broker.exchange.transactions import (
    ClientExtensions,
    MarketOrderFields,
    RejectReason,
    Transaction,
)
from services.broker.faults import Faults
from services.broker.http.views import price_json
from services.broker.market.clock import SimulatedClock
from services.broker.market.pace import Pace
from services.broker.market.tape import SECOND_NS, TICKS_PER_BAR, Tape
from services.broker.wire import Json
from shared.errors import BrokerError

log = structlog.get_logger()

#: A stream is closed when its reader is this many lines behind.
MAX_QUEUED_LINES = 10_000


@dataclass(eq=False)
class Subscription:
    """The queued lines of one stream."""

    lines: asyncio.Queue[Json] = field(default_factory=lambda: asyncio.Queue(MAX_QUEUED_LINES))
    overrun: bool = False

    def put(self, line: Json) -> None:
        """Queue a line, or mark the reader as too slow."""
        try:
            self.lines.put_nowait(line)
        except asyncio.QueueFull:
            self.overrun = True


class Venue:
    """One account trading on one tape."""

    def __init__(
        self, exchange: Exchange, tape: Tape, ledger: Ledger, config: BrokerConfig, faults: Faults
    ) -> None:
        """Continue the replay from the ledger's position.

        Raises:
            BrokerError: the ledger's position is outside the replayed bars, or the ledger cannot be written.
        """
        self.exchange, self.tape, self.ledger, self.config, self.faults = (
            exchange,
            tape,
            ledger,
            config,
            faults,
        )
        self._progress = ledger.progress() or ReplayProgress(tape.first_tick, 0)
        if not tape.first_tick <= self._progress.next_tick <= tape.stop_tick:
            raise BrokerError(
                f"ledger {ledger.path} is at tick {self._progress.next_tick}, outside the replayed bars "
                f"{tape.first} to {tape.stop}: delete the file to start over"
            )
        self._prices: set[Subscription] = set()
        self._transactions: set[Subscription] = set()
        self._client_changed = asyncio.Event()  # set when a client acknowledges a bar or closes a stream
        self._client_acknowledges = self._progress.acknowledged_s > 0  # whether it ever acknowledged a bar
        self._timed_out = False  # whether a wait timed out and no bar was acknowledged since
        self._waiting_since: float | None = None  # monotonic seconds; None: not waiting
        self.pace = Pace(config.speed)
        self.stopping = asyncio.Event()  # once set, all streams are closed
        if self._progress.next_tick == tape.first_tick:
            self.clock = SimulatedClock(tape.tick_time_ns(tape.first_tick), config.speed)
            exchange.quote = replace(tape.quote(tape.first_tick), tradeable=False)
        else:
            exchange.quote = tape.quote(self._progress.next_tick - 1)
            self.clock = SimulatedClock(exchange.quote.time, config.speed)
        self._newest_ns = exchange.quote.time
        self._commit(exchange.open(self.now_ns))

    # -- time ----------------------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """Simulated time, at or after the newest price and before the next one."""
        if self.config.pacing is Pacing.ACKNOWLEDGED or self.all_ticks_sent:
            return self._newest_ns
        upcoming = self.tape.tick_time_ns(self._progress.next_tick)
        return max(self._newest_ns, min(self.clock.now_ns(), upcoming - 1))

    @property
    def all_ticks_sent(self) -> bool:
        """Whether every tick was sent."""
        return self._progress.next_tick >= self.tape.stop_tick

    @property
    def is_finished(self) -> bool:
        """Whether the last bar is complete. The market then stays closed."""
        return self.all_ticks_sent and self._newest_ns >= self.tape.end_ns(self.tape.stop - 1)

    @property
    def waiting_seconds(self) -> float:
        """Time since the replay began to wait for its client; 0 while it does not wait."""
        return 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since

    @property
    def progress(self) -> ReplayProgress:
        """Progress of the replay."""
        return self._progress

    async def run(self) -> None:
        """Send tick after tick until the tape ends; then the market stays closed."""
        while not self.all_ticks_sent:
            bar, phase = divmod(self._progress.next_tick, TICKS_PER_BAR)
            if phase == 0 and bar > self.tape.first:
                await self._cross_gap(bar)
            await self._sleep_until(self.tape.tick_time_ns(self._progress.next_tick))
            if phase == 1 and bar > self.tape.first:
                await self._await_decision(bar - 1)
            self._step(self.tape.quote(self._progress.next_tick), self._progress.next_tick + 1)
        last = self.tape.stop - 1
        await self._sleep_until(self.tape.end_ns(last))
        self._step(self.tape.closed_quote(last), self._progress.next_tick)
        log.info(
            "replay_finished", bars=self.tape.stop - self.tape.first, last_bar_s=int(self.tape.time_s[last])
        )

    async def _cross_gap(self, bar: int) -> None:
        """Close the market and skip the gap before the bar, if the gap is longer than `jump_gap_minutes`."""
        limit = self.config.jump_gap_minutes
        if limit == 0 or self.tape.gap_minutes(bar) <= limit:
            return
        await self._sleep_until(self.tape.end_ns(bar - 1))
        self._step(self.tape.closed_quote(bar - 1), self._progress.next_tick)
        await self._await_decision(bar - 1)  # before simulated time jumps
        self.clock.set(self.tape.tick_time_ns(self._progress.next_tick))

    async def _sleep_until(self, time_ns: int) -> None:
        seconds = self.clock.seconds_until(time_ns) if self.config.pacing is Pacing.SPEED else 0.0
        await asyncio.sleep(seconds)

    async def _await_decision(self, bar: int) -> None:
        """Wait until the client has acknowledged a bar. Simulated time is paused during the wait.

        With pacing `acknowledged` the wait has no limit. With pacing `speed` the wait lasts at most
        `patience_seconds`, and the replay waits only if the client has acknowledged a bar before and reads
        the price stream. Such a client can decide on every bar, even on a slow machine.
        """
        time_s = int(self.tape.time_s[bar])
        began = self._waiting_since = time.monotonic()
        while self._progress.acknowledged_s < time_s and self._waits_for_client():
            self._client_changed.clear()
            remaining = None if self._timed_out else began + self.config.patience_seconds - time.monotonic()
            try:
                async with asyncio.timeout(remaining):
                    await self._client_changed.wait()
            except TimeoutError:
                self._timed_out = True
                log.warning(
                    "client_silent",
                    bar_time_s=time_s,
                    waited_seconds=self.config.patience_seconds,
                    replay="waits" if self.config.pacing is Pacing.ACKNOWLEDGED else "continues without it",
                )
        self._waiting_since = None
        if self.config.pacing is Pacing.SPEED:
            self._record_wait(time.monotonic() - began)

    def _record_wait(self, seconds: float) -> None:
        """Resume simulated time after a wait. Warn once if the machine cannot keep up."""
        if seconds > 0.001:
            self.clock.set(self.now_ns)
        self.pace.add_wait(seconds)
        if self.pace.became_too_slow():
            speed = round(self.pace.speed, 1)
            log.warning("machine_too_slow_for_speed", asked=self.config.speed, replayed_at=speed)

    def _waits_for_client(self) -> bool:
        if self.config.pacing is Pacing.ACKNOWLEDGED:
            return True
        return self._client_acknowledges and not self._timed_out and bool(self._prices)

    def _step(self, quote: Quote, next_tick: int) -> None:
        """Apply a new price: execute the exit orders that it triggers, commit, and send it to the streams."""
        transactions = self.exchange.on_quote(quote)
        self._progress = replace(self._progress, next_tick=next_tick)
        self._newest_ns = quote.time
        self._commit(transactions)
        line = {"type": "PRICE", **price_json(self.exchange, quote)}
        for subscription in self._prices:
            subscription.put(line)

    def newest_complete_bar(self) -> int:
        """Index of the newest complete bar; -1 if there is none."""
        bar = min(self._progress.next_tick // TICKS_PER_BAR, self.tape.stop - 1)
        while bar >= 0 and self.tape.end_ns(bar) > self.now_ns:
            bar -= 1
        return bar

    def ticks_of_bar(self, bar: int) -> int:
        """Number of a bar's ticks that were sent, 0 to 4."""
        return min(max(self._progress.next_tick - bar * TICKS_PER_BAR, 0), TICKS_PER_BAR)

    def acknowledge(self, time_s: int) -> None:
        """Record that the client has decided on the bar opened at `time_s`, so that the next bar may follow.

        Raises:
            BrokerError: the bar is not complete yet.
        """
        newest = self.newest_complete_bar()
        newest_s = int(self.tape.time_s[newest]) if newest >= 0 else 0
        if time_s > newest_s:
            raise BrokerError(f"bar {time_s} is not complete: the newest complete bar opened at {newest_s}")
        self._progress = replace(self._progress, acknowledged_s=max(self._progress.acknowledged_s, time_s))
        self._commit(())
        self._client_acknowledges, self._timed_out = True, False
        self._client_changed.set()

    # -- orders --------------------------------------------------------------------------------------

    def market_order(self, fields: MarketOrderFields) -> Answer:
        """Execute a market order now."""
        if self.faults.occurs(self.faults.config.reject_probability):
            return self._commit_answer(
                self.exchange.reject(fields, RejectReason.INTERNAL_SERVER_ERROR, self.now_ns)
            )
        quote = self.exchange.newest_price()
        if self.faults.occurs(self.faults.config.partial_fill_probability):
            self.exchange.quote = replace(quote, liquidity=int(abs(fields.units) // 2))
        try:
            answer = self.exchange.market_order(fields, self.now_ns)
        finally:
            self.exchange.quote = quote
        return self._commit_answer(answer)

    def close_position(
        self, *, long: bool, units: Decimal | None, extensions: ClientExtensions | None
    ) -> Answer:
        """Close a side of the position now."""
        return self._commit_answer(
            self.exchange.close_position(long=long, units=units, extensions=extensions, time=self.now_ns)
        )

    def close_trade(self, trade: Trade | None, units: Decimal | None) -> Answer:
        """Close a trade now."""
        return self._commit_answer(self.exchange.close_trade(trade, units, self.now_ns))

    def cancel_order(self, order: Order | None) -> Answer:
        """Cancel a pending order now."""
        return self._commit_answer(self.exchange.cancel_order(order, self.now_ns))

    def _commit_answer(self, answer: Answer) -> Answer:
        self._commit(answer.transactions)
        return answer

    def _commit(self, transactions: tuple[Transaction, ...]) -> None:
        self.ledger.commit(transactions, self._progress)
        for transaction in transactions:
            for subscription in self._transactions:
                subscription.put(transaction.json_object())

    # -- streams -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def price_lines(self) -> Iterator[Subscription]:
        """Subscribe to prices inside the block."""
        with self._subscribed(self._prices) as subscription:
            yield subscription

    @contextlib.contextmanager
    def transaction_lines(self) -> Iterator[Subscription]:
        """Subscribe to transactions inside the block."""
        with self._subscribed(self._transactions) as subscription:
            yield subscription

    @contextlib.contextmanager
    def _subscribed(self, group: set[Subscription]) -> Iterator[Subscription]:
        subscription = Subscription()
        group.add(subscription)
        try:
            yield subscription
        finally:
            group.discard(subscription)
            self._client_changed.set()

    @property
    def last_transaction(self) -> Json:
        """The field with the last transaction's id, which every answer about the account contains."""
        return {"lastTransactionID": str(self.exchange.account.last_id)}

    def status(self) -> Json:
        """Progress of the replay, for `GET /v3/replay`."""
        newest = self.newest_complete_bar()
        return {
            "bar": self._progress.next_tick // TICKS_PER_BAR,
            "first": self.tape.first,
            "stop": self.tape.stop,
            "timeSeconds": self.now_ns // SECOND_NS,
            "newestCompleteSeconds": int(self.tape.time_s[newest]) if newest >= 0 else None,
            "acknowledgedSeconds": self._progress.acknowledged_s,
            "pacing": self.config.pacing.value,
            "speed": self.config.speed,
            "waitingSeconds": round(self.waiting_seconds, 3),
            "over": self.is_finished,
        }
