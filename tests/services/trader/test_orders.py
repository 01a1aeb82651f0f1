"""Positions as a fold over transactions, and outcomes of orders: hand-worked examples and properties."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trader.orders import HeldTrade, Holding, IntentState, fold, intent_id, outcome_in, trade_closed
from shared.adapters.oanda.records import (
    Fill,
    OrderCancelled,
    OrderCreated,
    OrderRejected,
    TradeFill,
    Transaction,
)
from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig
from shared.market.bar import Instrument

SPREAD = Decimal("0.040")
FREE = EnvironmentConfig()
FLAT = Holding("GBP_JPY", 10)


def fill(
    number: int,
    units: int | str,
    price: str,
    *,
    opened: int | None = None,
    closed: int | None = None,
    reduced: int | None = None,
    client: str | None = None,
    instrument: str = "GBP_JPY",
) -> Fill:
    """One fill; `opened`, `closed` and `reduced` are trade ids."""

    def part(trade: int | None) -> TradeFill | None:
        return None if trade is None else TradeFill(trade, Decimal(units), Decimal(price), Decimal(0))

    closes = part(closed)
    return Fill(
        number,
        number - 1,
        number * 1_000,
        "ORDER_FILL",
        number - 1,
        client,
        instrument,
        Decimal(units),
        "MARKET_ORDER",
        Decimal(0),
        Decimal(0),
        part(opened),
        part(reduced),
        (closes,) if closes else (),
    )


def test_long_then_close_earns_the_difference_of_the_fills() -> None:
    held, closed = fold(FLAT, [fill(12, 1, "188.520", opened=12)], SPREAD)
    assert (held.side, held.units, held.last_transaction_id, closed) == (Side.LONG, Decimal(1), 12, ())
    assert held.trade == HeldTrade(12, Decimal(1), Decimal("188.520"), 12_000, SPREAD)
    flat, (trade,) = fold(held, [fill(14, -1, "188.610", closed=12)], SPREAD)
    assert flat == Holding("GBP_JPY", 14)
    assert trade.pips(0.01, FREE) == 9.0
    assert (trade.units, trade.time_ns) == (Decimal(1), 14_000)


def test_short_earns_when_the_price_falls() -> None:
    held, _ = fold(FLAT, [fill(12, -1, "188.480", opened=12)], SPREAD)
    assert held.side is Side.SHORT
    _, (trade,) = fold(held, [fill(14, 1, "188.500", closed=12)], SPREAD)
    assert trade.pips(0.01, FREE) == -2.0


def test_a_partial_close_leaves_the_rest_and_the_rest_is_foreign() -> None:
    held, _ = fold(FLAT, [fill(12, 3, "188.520", opened=12)], SPREAD)
    rest, (trade,) = fold(held, [fill(14, -2, "188.530", reduced=12)], SPREAD)
    assert (rest.units, trade.units) == (Decimal(1), Decimal(2))
    assert rest.foreign(3)
    assert not rest.foreign(1)


def test_a_flip_closes_one_trade_and_opens_another() -> None:
    held, _ = fold(FLAT, [fill(12, 1, "188.520", opened=12)], SPREAD)
    flipped, (trade,) = fold(held, [fill(14, -1, "188.500", closed=12, opened=14)], SPREAD)
    assert flipped.side is Side.SHORT
    assert trade.pips(0.01, FREE) == -2.0


def test_fractional_units_of_others_are_kept_and_reported_exactly() -> None:
    """Another program may trade a tenth of a unit on the account."""
    held, _ = fold(FLAT, [fill(12, "0.7", "188.520", opened=12)], SPREAD)
    assert (held.side, held.units) == (Side.LONG, Decimal("0.7"))
    assert held.foreign(1)
    rest, (trade,) = fold(held, [fill(14, "-0.2", "188.530", reduced=12)], SPREAD)
    assert rest.units == Decimal("0.5")
    message = trade_closed(trade, Instrument.named("GBP_JPY"), FREE)
    assert message.units == 0.2
    assert type(message).model_validate_json(message.model_dump_json()) == message
    flat, _ = fold(rest, [fill(16, "-0.5", "188.530", closed=12)], SPREAD)
    assert flat.side is Side.FLAT
    unchanged, closed = fold(held, [fill(14, 0, "188.530", reduced=12)], SPREAD)
    assert (unchanged.units, closed) == (Decimal("0.7"), ()), "nothing was closed"


#: Ten minutes before and after 17:00 New York on a Wednesday, when three nights are financed at once.
WEDNESDAY_2150 = int(datetime(2024, 1, 10, 21, 50, tzinfo=UTC).timestamp())
WEDNESDAY_2210 = WEDNESDAY_2150 + 20 * 60


@pytest.mark.parametrize(
    ("entry_s", "exit_s", "pips"),
    [
        (WEDNESDAY_2150, WEDNESDAY_2150 + 120, 9.0 - 1.5),
        (WEDNESDAY_2150, WEDNESDAY_2210, 9.0 - 1.5 - 3 * 0.5),
        (WEDNESDAY_2210, WEDNESDAY_2210 + 86_400, 9.0 - 1.5 - 0.5),
    ],
)
def test_a_closed_trade_is_charged_commission_and_financing(entry_s: int, exit_s: int, pips: float) -> None:
    """Slippage is not charged, since the fill prices contain it."""
    costs = EnvironmentConfig(commission_pips=1.5, slippage_pips=4.0, financing_pips_per_night=0.5)
    opened = replace(fill(12, 1, "188.520", opened=12), time_ns=entry_s * 1_000_000_000)
    closes = replace(fill(14, -1, "188.610", closed=12), time_ns=exit_s * 1_000_000_000)
    _, (trade,) = fold(FLAT, [opened, closes], SPREAD)
    assert trade.pips(0.01, costs) == pytest.approx(pips)
    assert trade_closed(trade, Instrument.named("GBP_JPY"), costs).pips == pytest.approx(pips)


def test_a_position_of_two_trades_is_foreign() -> None:
    held, _ = fold(FLAT, [fill(12, 1, "1.5", opened=12), fill(14, 1, "1.6", opened=14)], SPREAD)
    assert "2 units" in held.foreign(1)


def test_a_fill_of_another_instrument_changes_only_the_last_transaction() -> None:
    held, closed = fold(FLAT, [fill(12, 1, "1.1", opened=12, instrument="EUR_USD")], SPREAD)
    assert held == replace(FLAT, last_transaction_id=12)
    assert closed == ()


@given(repeats=st.lists(st.integers(0, 3), max_size=8))
def test_a_transaction_seen_again_changes_nothing(repeats: list[int]) -> None:
    """Fills that are read repeatedly, in any pattern, add up to the same position."""
    story: list[Transaction] = [
        fill(12, 1, "188.520", opened=12),
        fill(14, -1, "188.540", closed=12),
        fill(16, -1, "188.500", opened=16),
        fill(18, 1, "188.450", closed=16),
    ]
    held, closed = fold(FLAT, story, SPREAD)
    pips = [trade.pips(0.01, FREE) for trade in closed]
    assert pips == [2.0, 5.0]
    again, more = fold(held, [story[index] for index in repeats], SPREAD)
    assert (again, more) == (held, ())


def test_an_order_id_depends_on_account_bar_and_action() -> None:
    one = intent_id("101-001-1-001", 60, Action.BUY)
    assert one == intent_id("101-001-1-001", 60, Action.BUY)
    others = {
        intent_id("101-001-1-002", 60, Action.BUY),
        intent_id("101-001-1-001", 120, Action.BUY),
        intent_id("101-001-1-001", 60, Action.SELL),
        intent_id("101-001-1-001", 60, Action.BUY, 1),
    }
    assert len(others | {one}) == 5
    assert len(one) <= 128, "OANDA's limit of a client id"


MINE, OTHER = "mm-mine", "mm-other"


def created(number: int, client: str) -> OrderCreated:
    return OrderCreated(number, number, number * 1_000, "MARKET_ORDER", "GBP_JPY", Decimal(1), client)


def cancelled(number: int, order: int) -> OrderCancelled:
    return OrderCancelled(number, order, number * 1_000, "ORDER_CANCEL", order, None, "MARKET_HALTED")


def rejected(number: int, client: str) -> OrderRejected:
    return OrderRejected(number, number, number * 1_000, "MARKET_ORDER_REJECT", "UNITS_INVALID", client)


@pytest.mark.parametrize(
    ("transactions", "wanted"),
    [
        ([], None),
        ([created(11, MINE)], None),
        ([created(11, MINE), fill(12, 1, "188.5", opened=12)], IntentState.FILLED),
        ([fill(12, 1, "188.5", opened=12, client=MINE)], IntentState.FILLED),
        ([created(11, MINE), cancelled(12, 11)], IntentState.CANCELLED),
        ([rejected(11, MINE)], IntentState.REJECTED),
        ([created(11, OTHER), fill(12, 1, "188.5", opened=12, client=OTHER)], None),
        ([created(11, OTHER), cancelled(12, 11), rejected(13, OTHER)], None),
        ([created(11, MINE), fill(12, 1, "188.5", opened=12), cancelled(13, 11)], IntentState.FILLED),
    ],
)
def test_the_outcome_of_an_order_is_read_from_transactions(
    transactions: list[Transaction], wanted: IntentState | None
) -> None:
    outcome = outcome_in(MINE, transactions)
    assert (outcome[0] if outcome else None) is wanted
