"""The log of closed trades."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shared.environment.action import Side
from shared.numeric import Bool, Float64, Int8, Int64


@dataclass(frozen=True)
class Trade:
    """One closed position."""

    entry_bar: int  # the bar at whose open it was entered
    exit_bar: int  # the bar at whose open it was closed
    side: Side
    entry_price: float
    exit_price: float
    pips: float  # net of all costs
    max_drawdown_pips: float  # largest drop of the pnl from its peak, at bar closes
    bars_held: int  # bar closes between entry and exit


class TradeColumns(NamedTuple):
    """The columns of a trade log as a kernel writes them; each is `[N]`."""

    lane: Int64
    entry_bar: Int64
    exit_bar: Int64
    side: Int8  # values of `Side`
    entry_price: Float64
    exit_price: Float64
    pips: Float64
    max_drawdown_pips: Float64
    bars_held: Int64


@dataclass(frozen=True)
class TradeLog:
    """Closed trades of many lanes, a column per field of `Trade`, in the order in which they were closed."""

    columns: TradeColumns

    def __len__(self) -> int:
        return len(self.columns.lane)

    def __getitem__(self, rows: slice | Bool) -> "TradeLog":
        return TradeLog(TradeColumns._make(column[rows] for column in self.columns))

    def __iter__(self) -> Iterator[tuple[int, Trade]]:
        """Pairs of lane and trade."""
        for lane, entry_bar, exit_bar, side, *rest in zip(
            *(column.tolist() for column in self.columns), strict=True
        ):
            yield lane, Trade(entry_bar, exit_bar, Side(side), *rest)

    def of_lane(self, lane: int) -> tuple[Trade, ...]:
        """The trades of one lane."""
        return tuple(trade for _, trade in self[self.columns.lane == lane])

    @classmethod
    def blank(cls, num_trades: int) -> "TradeLog":
        """A log of uninitialised rows for a kernel to write."""
        types = (np.int64, np.int64, np.int64, np.int8, *(np.float64,) * 4, np.int64)
        return cls(TradeColumns._make(np.empty(num_trades, kind) for kind in types))

    @classmethod
    def joined(cls, logs: Iterable["TradeLog"]) -> "TradeLog":
        """The trades of several logs, one after the other."""
        parts = [cls.blank(0).columns, *(log.columns for log in logs)]
        return cls(TradeColumns._make(np.concatenate(columns) for columns in zip(*parts, strict=True)))
