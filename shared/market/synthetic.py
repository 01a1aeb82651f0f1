"""Synthetic markets whose law is known, so that the best policy can be computed.

All laws are defined in pips per bar, on closes. A bar opens at the close of the bar before it, every
minute of the trading week has a bar, and prices are quoted in tenths of a pip, as by brokers. Highs and
lows are drawn from the exact law of the extremes of a Brownian motion between the bar's open and close.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from shared.errors import DataError
from shared.market.bar import BarSeries, Instrument
from shared.market.calendar import open_minute, open_minutes
from shared.numeric import Float64, Int8, kernel

#: Sunday 2020-01-05 17:00 New York, the default beginning of a synthetic market.
DEFAULT_START_S = 1_578_261_600

MAX_BARS = 10_000_000  # 27 years

#: Standard deviation per bar that gives a driftless Brownian motion the mean bar range of GBP/JPY, 3.87
#: pips, which is sqrt(8 / pi) standard deviations. The other laws have the same mean range.
SIGMA_PIPS = 2.425

_PIPETTES = 10  # steps of the quoted price per pip


class Market(StrEnum):
    """Which law the prices follow."""

    GBM = "gbm"
    OU = "ou"
    REGIMES = "regimes"


@dataclass(frozen=True)
class GbmLaw:
    """Geometric Brownian motion without drift: there is no edge, so the best policy does not trade.

    c[t+1] = c[t] exp(s e - s^2 / 2), with e standard normal and s such that the standard deviation of
    a bar is `sigma_pips` at the starting price.
    """

    sigma_pips: float = SIGMA_PIPS


@dataclass(frozen=True)
class OuLaw:
    """Mean reversion around a slowly moving mean, in pips from the starting price.

    x[t+1] = persistence x[t] + sigma e, m[t+1] = m[t] + mean_sigma e', c = start + m + x. The best
    policy depends only on the deviation x and the position.
    """

    sigma_pips: float = 2.415
    persistence: float = 0.985  # per bar: a deviation halves in 46 bars
    mean_sigma_pips: float = 0.2

    @property
    def deviation_pips(self) -> float:
        """Stationary standard deviation of x."""
        return float(self.sigma_pips / np.sqrt(1 - self.persistence**2))


@dataclass(frozen=True)
class RegimesLaw:
    """A Markov chain of regimes, each with its own drift and standard deviation per bar.

    c[t+1] = c[t] + drift[k] + sigma[k] e, with k the regime of bar t+1. Calibrated to GBP/JPY: mean bar
    range 3.87 pips, 99th percentile 16.47.
    """

    names: tuple[str, ...] = ("quiet", "rally", "fall", "storm")
    drift_pips: tuple[float, ...] = (0.0, 0.5, -0.5, 0.0)
    sigma_pips: tuple[float, ...] = (1.7, 2.75, 2.75, 8.47)
    #: `transition[j][k]`: probability that regime k follows regime j at the next bar.
    transition: tuple[tuple[float, ...], ...] = (
        (0.9920, 0.0032, 0.0032, 0.0016),
        (0.0088, 0.9890, 0.0011, 0.0011),
        (0.0088, 0.0011, 0.9890, 0.0011),
        (0.0160, 0.0080, 0.0080, 0.9680),
    )

    def stationary(self) -> Float64:
        """Long-run share of bars in each regime, `[K]`."""
        chain = np.array(self.transition)
        equations = np.vstack([chain.T - np.eye(len(chain)), np.ones(len(chain))])
        shares: Float64 = np.linalg.lstsq(equations, np.append(np.zeros(len(chain)), 1.0))[0]
        return shares


Law = GbmLaw | OuLaw | RegimesLaw

LAWS: dict[Market, Law] = {Market.GBM: GbmLaw(), Market.OU: OuLaw(), Market.REGIMES: RegimesLaw()}


@dataclass(frozen=True)
class SyntheticBars:
    """A synthetic market with its hidden state."""

    bars: BarSeries
    #: `[T]` governs the next move: deviation from the mean in pips (ou), regime (regimes), 0 (gbm).
    state: Float64


def synthesize(
    market: Market,
    num_bars: int,
    seed: int,
    instrument: Instrument | None = None,
    start_s: int = DEFAULT_START_S,
) -> BarSeries:
    """Bars of a synthetic market; the same arguments give the same bars.

    Args:
        market: which law the closes follow, with the parameters in `LAWS`.
        num_bars: number of bars, 1 to 10 million.
        seed: seed of the random numbers, not negative.
        instrument: instrument of the bars, by default GBP_JPY.
        start_s: start in UTC seconds; the first bar is the first open minute at or after it.
    Raises:
        DataError: an argument is out of range, or the prices fall to zero.
    """
    return synthesize_with_state(LAWS[market], num_bars, seed, instrument, start_s).bars


def synthesize_with_state(
    law: Law,
    num_bars: int,
    seed: int,
    instrument: Instrument | None = None,
    start_s: int = DEFAULT_START_S,
) -> SyntheticBars:
    """Bars that follow a law, and the state of each; see `synthesize`."""
    if not 1 <= num_bars <= MAX_BARS:
        raise DataError(f"a synthetic market of {num_bars:,} bars: expected 1 to {MAX_BARS:,}")
    if seed < 0:
        raise DataError(f"seed {seed}: expected 0 or more")
    instrument = instrument or Instrument.named("GBP_JPY")
    generator = np.random.default_rng(seed)
    start_pips = start_price(instrument) / instrument.pip
    match law:
        case GbmLaw():
            levels, sigmas, state = _gbm(law, num_bars, start_pips, generator)
        case OuLaw():
            levels, sigmas, state = _ou(law, num_bars, start_pips, generator)
        case RegimesLaw():
            levels, sigmas, state = _regimes(law, num_bars, start_pips, generator)
    first_minute = int(open_minute(np.array([start_s + 59]))[0])
    return SyntheticBars(_quote(levels, sigmas, instrument, first_minute, generator), state)


def start_price(instrument: Instrument) -> float:
    """The first price of a synthetic market: 18,500 pips for a pip of 0.01, else 11,000 pips."""
    return 185.0 if instrument.pip_location == -2 else 11_000 * instrument.pip


def _gbm(
    law: GbmLaw, num_bars: int, start_pips: float, generator: np.random.Generator
) -> tuple[Float64, Float64, Float64]:
    """Levels `[T + 1]` in pips, standard deviation per bar `[T]` in pips, state `[T]`."""
    sigma = law.sigma_pips / start_pips
    steps = sigma * generator.standard_normal(num_bars) - sigma**2 / 2
    levels = start_pips * np.exp(np.append(0.0, np.cumsum(steps)))
    return levels, sigma * levels[:-1], np.zeros(num_bars)


def _ou(
    law: OuLaw, num_bars: int, start_pips: float, generator: np.random.Generator
) -> tuple[Float64, Float64, Float64]:
    first = law.deviation_pips * generator.standard_normal()
    shocks = law.sigma_pips * generator.standard_normal(num_bars)
    deviation = _autoregress(first, shocks, law.persistence)
    mean = np.append(0.0, np.cumsum(law.mean_sigma_pips * generator.standard_normal(num_bars)))
    sigma = float(np.hypot(law.sigma_pips, law.mean_sigma_pips))
    return start_pips + mean + deviation, np.full(num_bars, sigma), deviation[1:]


def _regimes(
    law: RegimesLaw, num_bars: int, start_pips: float, generator: np.random.Generator
) -> tuple[Float64, Float64, Float64]:
    first = int(generator.choice(len(law.names), p=law.stationary()))
    regime = _walk_chain(first, generator.random(num_bars), np.cumsum(np.array(law.transition), axis=1))
    sigma = np.array(law.sigma_pips)[regime]
    steps = np.array(law.drift_pips)[regime] + sigma * generator.standard_normal(num_bars)
    return start_pips + np.append(0.0, np.cumsum(steps)), sigma, regime.astype(np.float64)


def _quote(
    levels: Float64,
    sigmas: Float64,
    instrument: Instrument,
    first_minute: int,
    generator: np.random.Generator,
) -> BarSeries:
    """Bars that open and close at successive levels in pips, rounded to tenths of a pip."""
    num_bars = len(sigmas)
    opens, closes = levels[:-1], levels[1:]
    middle, move = (opens + closes) / 2, closes - opens
    above, below = (
        np.sqrt(move**2 - 2 * sigmas**2 * np.log1p(-generator.random(num_bars))) / 2 for _ in range(2)
    )
    volume = 1 + generator.poisson(10 * (above + below))
    pipettes_per_unit = round(_PIPETTES / instrument.pip)

    def quoted(pips: Float64) -> Float64:
        prices: Float64 = np.rint(pips * _PIPETTES) / pipettes_per_unit
        return prices

    lows = quoted(middle - below)
    if lows.min() <= 0:
        raise DataError(f"prices of this law fall to zero within {num_bars:,} bars: ask for fewer")
    return BarSeries(
        instrument,
        open_minutes(first_minute, num_bars),
        quoted(opens),
        quoted(middle + above),
        lows,
        quoted(closes),
        volume.astype(np.int64),
        np.full(num_bars, np.nan),
    )


@kernel
def _autoregress(first: float, shocks: Float64, persistence: float) -> Float64:
    values = np.empty(len(shocks) + 1)
    values[0] = first
    for step in range(len(shocks)):
        values[step + 1] = persistence * values[step] + shocks[step]
    return values


@kernel
def _walk_chain(first: int, uniform: Float64, cumulative: Float64) -> Int8:
    regimes = np.empty(len(uniform), np.int8)
    current = first
    for step in range(len(uniform)):
        following = 0
        while following < cumulative.shape[1] - 1 and uniform[step] >= cumulative[current, following]:
            following += 1
        current = following
        regimes[step] = current
    return regimes
