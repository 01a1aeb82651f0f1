"""Reads the broker's candles into the market and marks the open position at each close."""

import asyncio
import time
from collections.abc import Callable, Iterable
from decimal import Decimal

import numpy as np

from services.trader.config import TraderConfig
from services.trader.market import Market
from services.trader.orders import HeldTrade, bar_of
from services.trader.refusals import Refusal, fault_of
from shared.adapters.oanda.client import MAX_CANDLES, OandaClient
from shared.adapters.oanda.records import Candle
from shared.environment.environment import EnvironmentConfig
from shared.environment.position import Position
from shared.errors import UnreadableAnswerError
from shared.market.bar import BAR_SECONDS, Instrument
from shared.market.calendar import rollover_nights


class History:
    """Fills a market with candles and marks the open trade at every close since its entry."""

    def __init__(
        self,
        client: OandaClient,
        market: Market,
        instrument: Instrument,
        config: TraderConfig,
        costs: EnvironmentConfig,
    ) -> None:
        """Begin without candles; `warm_up` reads them.

        Args:
            client: client of the account.
            market: market that receives the candles.
            instrument: traded instrument.
            config: settings of the trader.
            costs: costs charged to the position as in the environment; their spread is used for a trade
                whose own spread is not known.
        """
        self._client, self._market, self._instrument, self._config = client, market, instrument, config
        self._costs = costs
        self._usual_spread = Decimal(str(costs.spread_pips)) * Decimal(str(instrument.pip))
        self._held: HeldTrade | None = None
        self._marked_s = 0  # opening time of the bar at which the position was last marked
        self.position = Position(instrument.pip)

    async def warm_up(self, held: HeldTrade | None) -> None:
        """Start over: read the history, and mark the open trade since its entry.

        Raises:
            BrokerError: the candles cannot be read.
        """
        self._market.warm_up(await self._candles(count=self._config.history_bars))
        self._held, self.position = None, Position(self._instrument.pip)
        await self.follow(held)

    async def catch_up(self, bar_time_s: int, given_up: Callable[[], bool]) -> bool:
        """Read the complete candles up to a bar, waiting for the bar's own candle.

        In thin hours OANDA completes a minute's candle 1 to 45 s late. The wait ends when the bar is too old
        to be decided on.

        Args:
            bar_time_s: opening time of the bar that closed.
            given_up: called between two reads; true ends the wait.
        Returns:
            False if the bar's own candle did not arrive in time.
        Raises:
            BrokerError: the candles cannot be read.
        """
        deadline = time.monotonic() + self._config.candle_wait_seconds
        while not self._has(bar_time_s):
            await self.refresh()
            if self._has(bar_time_s):
                break
            too_old = self._market.bar_age_seconds(bar_time_s) > self._config.decision_age_seconds
            if too_old or given_up() or time.monotonic() >= deadline:
                return False
            await asyncio.sleep(self._config.candle_poll_seconds)
        return True

    async def refresh(self) -> None:
        """Read the candles that have become complete.

        Raises:
            BrokerError: they cannot be read.
        """
        self._mark(self._market.take(await self._newer()))

    async def follow(self, held: HeldTrade | None) -> None:
        """Set `position` to that of the open trade; a new trade is marked at every close since its entry.

        Raises:
            BrokerError: the candles since its entry cannot be read.
        """
        if held == self._held:
            return
        older = [] if held is None else await self._older(bar_of(held.time_ns))
        self._held, self.position = held, Position(self._instrument.pip)
        if held is not None:
            # As in the environment: enter at the mid, charge the full spread. The fill price includes half.
            spread = self._usual_spread if held.spread is None else held.spread
            mid = held.price - int(held.side) * spread / 2
            charged_pips = self._costs.round_trip_at(float(spread / Decimal(str(self._instrument.pip))))
            self.position = self.position.after_entry(held.side, float(mid), charged_pips)
            self._marked_s = bar_of(held.time_ns)  # the entry's own bar is the first to mark the position
            self._mark([*older, *self._market.closes_from(self._marked_s)])

    def _mark(self, closes: Iterable[tuple[int, float]]) -> None:
        """Mark the position at the closes of successive bars, as the environment does.

        At each bar, financing is charged for the nights since the previous bar's open.
        """
        if self._held is None:
            return
        for time_s, close in closes:
            if time_s < self._marked_s:
                continue
            nights = int(rollover_nights(np.array([self._marked_s, time_s], np.int64))[0])
            financed = self.position.charge(self._costs.financing_pips_per_night * nights)
            self.position, self._marked_s = financed.at_close(close), time_s

    def _has(self, bar_time_s: int) -> bool:
        last = self._market.last_bar_s
        return last is not None and last >= bar_time_s

    async def _newer(self) -> tuple[Candle, ...]:
        """Complete candles after the newest one in the history."""
        last = self._market.last_bar_s
        if last is None:
            return await self._candles(count=self._config.history_bars)
        return await self._candles(start_s=last, include_first=False, count=MAX_CANDLES)

    async def _candles(
        self, *, count: int, start_s: int | None = None, include_first: bool = True
    ) -> tuple[Candle, ...]:
        """Complete candles of mid prices; unreadable ones are refused and left out.

        Raises:
            BrokerError: the broker does not answer, or refuses.
        """
        try:
            return await self._client.candles(
                self._instrument.name,
                price="M",
                count=count,
                start_s=start_s,
                include_first=include_first,
                unreadable=lambda reason: self._market.refuse(Refusal.CANDLE, reason),
            )
        except UnreadableAnswerError as unreadable:
            self._market.refuse(Refusal.CANDLE, str(unreadable))
            return ()

    async def _older(self, entry_s: int) -> list[tuple[int, float]]:
        """Opening time and close of each bar since an entry that is older than the history."""
        found: list[tuple[int, float]] = []
        stop = self._market.first_bar_s
        while stop is not None and entry_s < stop:
            batch = await self._candles(start_s=entry_s, count=MAX_CANDLES)
            found += [
                (candle.time_s, candle.mid.close)
                for candle in batch
                if candle.mid and entry_s <= candle.time_s < stop and not fault_of(candle, stop)
            ]
            if not batch or batch[-1].time_s < entry_s or batch[-1].time_s + BAR_SECONDS >= stop:
                break
            entry_s = batch[-1].time_s + BAR_SECONDS
        return found
