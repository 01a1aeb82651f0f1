"""Plans a fill: which trades an order reduces, how much it opens, or why it is cancelled. Books nothing.

OANDA does not document the following rules; they are this exchange's own. A REDUCE_ONLY order with nothing to
reduce (FOK: too little) is cancelled with POSITION_CLOSEOUT_FAILED. An OPEN_ONLY order against an opposite
position is cancelled with FIFO_VIOLATION. Margin is checked when a trade opens; there is no margin close-out.
"""

from dataclasses import dataclass
from decimal import Decimal

from services.broker.exchange.account import Account, Trade
from services.broker.exchange.transactions import CancelReason, MarketOrderFields, StopLossDetails
from services.broker.wire import money
from shared.errors import BrokerError

ZERO = Decimal(0)
ONE = Decimal(1)


@dataclass(frozen=True)
class Quote:
    """Bid and ask at one time, with one price level on each side."""

    time: int  # nanoseconds since 1970 UTC
    bid: Decimal
    ask: Decimal
    tradeable: bool
    liquidity: int = 10_000_000  # units on each side


@dataclass(frozen=True)
class AccountTerms:
    """Identity, initial balance and margin rate of an account."""

    account_id: str = "101-001-0000001-001"
    currency: str = "JPY"
    balance: Decimal = Decimal(1_000_000)
    margin_rate: Decimal = Decimal("0.05")

    @property
    def user_id(self) -> int:
        """The user's number, the third part of the account id."""
        return int(self.account_id.split("-")[2])


@dataclass(frozen=True)
class Plan:
    """A planned fill, or the reason why the order is cancelled."""

    reductions: tuple[tuple[Trade, Decimal], ...] = ()  # trades and their closed units, without sign
    opening: Decimal = ZERO  # units to open, without sign
    refused: CancelReason | None = None


def plan_fill(
    account: Account, terms: AccountTerms, fields: MarketOrderFields, quote: Quote, only: Trade | None
) -> Plan:
    """Plan a fill that reduces opposite trades, the oldest first, and opens the remaining units.

    Args:
        account: the account, for its trades and balance.
        terms: the account's terms, for the margin rate.
        fields: a valid order.
        quote: the newest price, tradeable.
        only: the one trade that the order may reduce; None for all.
    """
    wanted = abs(fields.units)
    held = account.open_trades if only is None else (only,)
    opposite = [trade for trade in held if trade.units * fields.units < 0]
    reducible = sum((abs(trade.units) for trade in opposite), ZERO)
    all_or_nothing = fields.time_in_force == "FOK"
    if fields.position_fill == "OPEN_ONLY" and opposite:
        return Plan(refused=CancelReason.FIFO_VIOLATION)
    if fields.position_fill == "REDUCE_ONLY":
        if reducible == 0 or (all_or_nothing and wanted > reducible):
            return Plan(refused=CancelReason.POSITION_CLOSEOUT_FAILED)
        wanted = min(wanted, reducible)
    if quote.liquidity == 0 or (all_or_nothing and wanted > quote.liquidity):
        return Plan(refused=CancelReason.INSUFFICIENT_LIQUIDITY)
    left = min(wanted, Decimal(quote.liquidity))
    reductions: list[tuple[Trade, Decimal]] = []
    for trade in opposite:
        if left > 0:
            reductions.append((trade, min(left, abs(trade.units))))
            left -= reductions[-1][1]
    return Plan(tuple(reductions), left, _refusal(account, terms, fields, quote, left))


def _refusal(
    account: Account, terms: AccountTerms, fields: MarketOrderFields, quote: Quote, opening: Decimal
) -> CancelReason | None:
    """Reason why a fill that opens this many units is not allowed, or None."""
    side = ONE if fields.units > 0 else -ONE
    price, exit_price = (quote.ask, quote.bid) if side > 0 else (quote.bid, quote.ask)
    bound = fields.price_bound
    if bound is not None and (price - bound) * side > 0:
        return CancelReason.BOUNDS_VIOLATION
    if opening == 0:
        return None
    extensions = fields.trade_client_extensions
    if extensions is not None and extensions.id is not None:
        namesake = account.trade_by_client_id(extensions.id)
        if namesake is not None and namesake.is_open:
            return CancelReason.CLIENT_TRADE_ID_ALREADY_EXISTS
    stop, target = fields.stop_loss_on_fill, fields.take_profit_on_fill
    if stop is not None and (exit_price - stop_price(stop, price, side)) * side <= 0:
        return CancelReason.STOP_LOSS_ON_FILL_LOSS
    if target is not None and (target.price - exit_price) * side <= 0:
        return CancelReason.TAKE_PROFIT_ON_FILL_LOSS
    held = abs(account.units) if account.units * side > 0 else ZERO
    if margin(held + opening, quote, terms) > nav(account, quote):
        return CancelReason.INSUFFICIENT_MARGIN
    return None


def stop_price(stop: StopLossDetails, fill_price: Decimal, side: Decimal) -> Decimal:
    """Price of a stop loss, as given or calculated from its distance to the fill price."""
    if stop.price is not None:
        return stop.price
    if stop.distance is None:
        raise BrokerError("a stop loss has neither price nor distance")
    return fill_price - side * stop.distance


def margin(units: Decimal, quote: Quote, terms: AccountTerms) -> Decimal:
    """Margin for this many units at the mid price."""
    return money(abs(units) * (quote.bid + quote.ask) / 2 * terms.margin_rate)


def unrealized_pl(account: Account, quote: Quote) -> Decimal:
    """Profit of closing everything now."""
    return money(sum((trade.unrealized_pl(quote.bid, quote.ask) for trade in account.open_trades), ZERO))


def nav(account: Account, quote: Quote) -> Decimal:
    """Net asset value: balance and unrealised profit."""
    return account.balance + unrealized_pl(account, quote)


def half_spread_cost(quote: Quote, units: Decimal) -> Decimal:
    """Cost of a fill of this many units against the mid price."""
    return money((quote.ask - quote.bid) / 2 * abs(units))
