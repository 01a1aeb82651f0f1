"""The broker's candles: the market's past, each new bar once complete, and the position marked at them."""

import asyncio
import time
from collections.abc import Callable
from decimal import Decimal

from services.trader.config import TraderConfig
from services.trader.market import Market
from services.trader.orders import HeldTrade
from shared.adapters.oanda import MAX_CANDLES, OandaClient
from shared.adapters.oanda_records import NANOSECONDS, Candle
from shared.environment.position import Position
from shared.market.bar import BAR_SECONDS, Instrument


class History:
    """Fills a market with candles and marks the trade that is held at every close since its entry."""

    def __init__(
        self,
        client: OandaClient,
        market: Market,
        instrument: Instrument,
        config: TraderConfig,
        *,
        usual_spread_pips: float,
    ) -> None:
        """Nothing is read yet; `usual_spread_pips` stands for a trade's spread that is not known."""
        self._client, self._market, self._instrument, self._config = client, market, instrument, config
        self._usual_spread = Decimal(str(usual_spread_pips)) * Decimal(str(instrument.pip))
        self._held: HeldTrade | None = None
        self.position = Position(instrument.pip)

    async def warm_up(self, held: HeldTrade | None) -> None:
        """Begin anew: the market's past, and the trade that is held, marked since its entry.

        Raises:
            BrokerError: the candles cannot be read.
        """
        candles = await self._client.candles(
            self._instrument.name, price="M", count=self._config.history_bars
        )
        self._market.warm_up(candles)
        self._held, self.position = None, Position(self._instrument.pip)
        await self.follow(held)

    async def catch_up(self, bar_time_s: int, given_up: Callable[[], bool]) -> bool:
        """Take the complete candles up to a bar; a candle not complete yet is waited for.

        Args:
            bar_time_s: opening time of the bar that closed.
            given_up: asked between two looks.
        Returns:
            False when the bar's own candle did not come in time.
        Raises:
            BrokerError: the candles cannot be read.
        """
        deadline = time.monotonic() + self._config.candle_wait_seconds
        while not self._has(bar_time_s):
            await self.refresh()
            if self._has(bar_time_s):
                break
            if given_up() or time.monotonic() >= deadline:
                return False
            await asyncio.sleep(self._config.candle_poll_seconds)
        return True

    async def refresh(self) -> None:
        """Take the candles that have become complete.

        Raises:
            BrokerError: they cannot be read.
        """
        for candle in await self._newer():
            self._take(candle)

    async def follow(self, held: HeldTrade | None) -> None:
        """Make the marked position that of the trade that is held: another one is marked from its entry on.

        Raises:
            BrokerError: the candles since its entry cannot be read.
        """
        if held == self._held:
            return
        position = Position(self._instrument.pip)
        if held is not None:
            # Entered at the mid and charged the whole spread, as in the environment; the fill has half of it.
            spread = self._usual_spread if held.spread is None else held.spread
            mid = held.price - int(held.side) * spread / 2
            charged_pips = float(spread / Decimal(str(self._instrument.pip)))
            position = position.after_entry(held.side, float(mid), charged_pips)
            entry_s = _entry_bar_s(held)
            for candle in await self._older(entry_s):
                assert candle.mid is not None, "mids were asked for"
                position = position.at_close(candle.mid.close)
            position = self._market.marked(position, entry_s)
        self._held, self.position = held, position

    def _has(self, bar_time_s: int) -> bool:
        last = self._market.last_bar_s
        return last is not None and last >= bar_time_s

    async def _newer(self) -> tuple[Candle, ...]:
        """Complete candles after the newest one kept."""
        last = self._market.last_bar_s
        if last is None:
            return await self._client.candles(self._instrument.name, price="M", count=1)
        return await self._client.candles(
            self._instrument.name, price="M", start_s=last, include_first=False, count=MAX_CANDLES
        )

    def _take(self, candle: Candle) -> None:
        if self._has(candle.time_s):
            return
        self._market.append(candle)
        if self._held is not None and candle.time_s >= _entry_bar_s(self._held):
            self.position = self.position.at_close(self._market.last_close)

    async def _older(self, entry_s: int) -> list[Candle]:
        """Candles from an entry to the oldest one kept."""
        found: list[Candle] = []
        stop = self._market.first_bar_s
        while stop is not None and entry_s < stop:
            batch = await self._client.candles(
                self._instrument.name, price="M", start_s=entry_s, count=MAX_CANDLES
            )
            found += [candle for candle in batch if candle.time_s < stop]
            if not batch or batch[-1].time_s + BAR_SECONDS >= stop:
                break
            entry_s = batch[-1].time_s + BAR_SECONDS
        return found


def _entry_bar_s(trade: HeldTrade) -> int:
    """Opening time of the bar in which a trade was filled: its close is the first that marks it."""
    return trade.time_ns // NANOSECONDS // BAR_SECONDS * BAR_SECONDS
