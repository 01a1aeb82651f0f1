"""Profit and drawdown of a position, and the six static features that describe it to the network.

The environment's lanes and the live trader's `Position` run the same kernels.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from shared.environment.action import Side
from shared.numeric import Float32, Float64, Int8, Int64, kernel

NUM_STATIC = 6

STATIC_NAMES: tuple[str, ...] = (
    "position_side",
    "position_pips",
    "bars_since_entry",
    "pips_from_peak",
    "max_drawdown_pips",
    "accumulated_dd",
)

#: Pips and numbers of bars are divided by this before tanh.
STATIC_SCALE = 100.0


@kernel
def unrealised_pips(side: int, entry_price: float, charged_pips: float, price: float, pip: float) -> float:
    """Net profit of closing a position at a price: side x (price - entry) / pip - charges, in pips."""
    return side * (price - entry_price) / pip - charged_pips


@kernel
def mark(
    pnl: float, peak: float, max_drawdown: float, accumulated_drawdown: float
) -> tuple[float, float, float]:
    """Peak, largest drawdown and accumulated drawdown after a bar's close, in pips.

    Args:
        pnl: unrealised profit at this close.
        peak: highest pnl at the closes before, at least 0.
        max_drawdown: largest drop from the peak at the closes before.
        accumulated_drawdown: sum of the drops at the closes before.
    """
    peak = max(peak, pnl)
    drawdown = peak - pnl
    return peak, max(max_drawdown, drawdown), accumulated_drawdown + drawdown


@kernel
def _write_static(
    side: Int8,
    pnl: Float64,
    bars_held: Int64,
    peak: Float64,
    max_drawdown: Float64,
    accumulated_drawdown: Float64,
    static: Float32,
) -> None:
    for lane in range(len(side)):
        static[lane, 0] = side[lane]
        if side[lane] == 0:
            static[lane, 1:] = 0.0
            continue
        static[lane, 1] = math.tanh(pnl[lane] / STATIC_SCALE)
        static[lane, 2] = math.tanh(bars_held[lane] / STATIC_SCALE)
        static[lane, 3] = math.tanh((peak[lane] - pnl[lane]) / STATIC_SCALE)
        static[lane, 4] = math.tanh(max_drawdown[lane] / STATIC_SCALE)
        static[lane, 5] = math.tanh(accumulated_drawdown[lane] / STATIC_SCALE)


def pips_of_static(static: Float32) -> Float64:
    """The unrealised pips that static features encode, `[..., 6]` -> `[...]`, limited to -866 to 866."""
    limit = np.nextafter(np.float32(1.0), np.float32(0.0))  # beyond it tanh rounds to 1
    pips: Float64 = STATIC_SCALE * np.arctanh(np.clip(static[..., 1], -limit, limit).astype(np.float64))
    return pips


def static_features(
    side: Int8,
    pnl: Float64,
    bars_held: Int64,
    peak: Float64,
    max_drawdown: Float64,
    accumulated_drawdown: Float64,
) -> Float32:
    """The six static features of B positions.

    Args:
        side: `[B]` values of `Side`.
        pnl: `[B]` unrealised pips at the last close, net of charges.
        bars_held: `[B]` closes since the entry.
        peak: `[B]` highest pnl at a close since the entry, at least 0, in pips.
        max_drawdown: `[B]` largest drop from the peak, in pips.
        accumulated_drawdown: `[B]` sum over closes of the drop from the peak, in pips.
    Returns:
        `[B, 6]`, columns as in `STATIC_NAMES`; all zero where flat.
    Source: docs/algorithm.md, Features. Oracle: tests/oracles/environment.py.
    """
    static = np.empty((len(side), NUM_STATIC), np.float32)
    _write_static(side, pnl, bars_held, peak, max_drawdown, accumulated_drawdown, static)
    return static


@dataclass(frozen=True)
class Position:
    """One net position, marked at each close like a lane of the environment; all amounts in pips."""

    pip: float  # in units of price
    side: Side = Side.FLAT
    entry_price: float = 0.0
    charged_pips: float = 0.0  # spread and other costs of the round trip, and financing so far
    pnl: float = 0.0  # at the last close
    peak: float = 0.0
    max_drawdown: float = 0.0
    accumulated_drawdown: float = 0.0
    bars_held: int = 0

    def after_entry(self, side: Side, price: float, charged_pips: float) -> "Position":
        """A position just entered at a price; the costs of the round trip are charged at once."""
        return Position(self.pip, side, price, charged_pips)

    def charge(self, pips: float) -> "Position":
        """The position after a holding cost, such as financing, is charged."""
        return replace(self, charged_pips=self.charged_pips + pips)

    def at_close(self, close: float) -> "Position":
        """The position after the next bar closed; a flat position does not change."""
        if self.side is Side.FLAT:
            return self
        pnl = unrealised_pips(int(self.side), self.entry_price, self.charged_pips, close, self.pip)
        peak, max_drawdown, accumulated = mark(pnl, self.peak, self.max_drawdown, self.accumulated_drawdown)
        return replace(
            self,
            pnl=pnl,
            peak=peak,
            max_drawdown=max_drawdown,
            accumulated_drawdown=accumulated,
            bars_held=self.bars_held + 1,
        )

    def static(self) -> Float32:
        """The six static features, `[6]`, as in `STATIC_NAMES`."""
        features: Float32 = static_features(
            np.array([self.side], np.int8),
            np.array([self.pnl]),
            np.array([self.bars_held], np.int64),
            np.array([self.peak]),
            np.array([self.max_drawdown]),
            np.array([self.accumulated_drawdown]),
        )[0]
        return features
