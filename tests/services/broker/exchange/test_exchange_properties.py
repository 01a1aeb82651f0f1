"""Properties of the exchange after any sequence of requests."""

import itertools
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from services.broker.exchange.exchange import Exchange
from services.broker.exchange.planning import AccountTerms, Quote, unrealized_pl
from services.broker.exchange.transactions import TRANSACTION, MarketOrderFields
from tests.oracles.netting import NaiveAccount
from tests.services.broker.markets import RULES

UNITS = st.integers(-4, 4).filter(bool)
POINTS = st.integers(180_000, 190_000)
COURSE = st.lists(st.tuples(UNITS, POINTS, st.integers(0, 60)), min_size=1, max_size=25)
FILLS = st.sampled_from(["DEFAULT", "REDUCE_FIRST", "REDUCE_ONLY", "OPEN_ONLY"])


def quoted(points: int, half: int, time: int) -> Quote:
    return Quote(time, Decimal(points - half).scaleb(-3), Decimal(points + half).scaleb(-3), tradeable=True)


def opened() -> Exchange:
    exchange = Exchange(AccountTerms(balance=Decimal(10**9)), RULES)
    exchange.open(0)
    return exchange


@given(COURSE)
def test_positions_and_profits_equal_those_of_single_unit_trades(course: list[tuple[int, int, int]]) -> None:
    exchange, naive = opened(), NaiveAccount()
    for time, (units, points, half) in enumerate(course, 1):
        price = quoted(points, half, time)
        exchange.on_quote(price)
        exchange.market_order(MarketOrderFields(instrument="GBP_JPY", units=Decimal(units)), time)
        naive.trade(units, price.bid, price.ask)
        assert exchange.account.units == naive.units
        assert exchange.account.balance == 10**9 + naive.realized
        assert unrealized_pl(exchange.account, price) == naive.unrealized(price.bid, price.ask)


@given(
    st.lists(
        st.tuples(
            UNITS,
            POINTS,
            FILLS,
            st.sampled_from(["FOK", "IOC"]),
            st.integers(0, 6),
            st.booleans(),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_an_account_is_rebuilt_from_its_history(
    course: list[tuple[int, int, str, str, int, bool, bool]],
) -> None:
    exchange = opened()
    for time, (units, points, fill, force, liquidity, with_stop, close) in enumerate(course, 1):
        exchange.on_quote(
            Quote(time, Decimal(points).scaleb(-3), Decimal(points + 40).scaleb(-3), True, liquidity)
        )
        fields = {"instrument": "GBP_JPY", "units": str(units), "positionFill": fill, "timeInForce": force}
        if with_stop:
            fields["stopLossOnFill"] = {"distance": "1.000"}  # type: ignore[assignment]
        exchange.market_order(MarketOrderFields.model_validate(fields), time)
        if close:
            exchange.close_position(long=units > 0, units=None, extensions=None, time=time)
    history = exchange.account.transactions
    assert [item.id for item in history] == list(range(1, len(history) + 1))
    assert all(a.time <= b.time for a, b in itertools.pairwise(history))
    assert all(item.batch_id <= item.id for item in history)

    stored = [
        TRANSACTION.validate_json(item.model_dump_json(by_alias=True, exclude_none=True)) for item in history
    ]
    assert stored == history
    again = Exchange(exchange.terms, RULES, stored)
    assert again.account == exchange.account

    money_in = Decimal(10**9)
    assert exchange.account.balance == money_in + exchange.account.realized_pl
    realized = sum((trade.realized_pl for trade in exchange.account.trades.values()), Decimal(0))
    assert realized == exchange.account.realized_pl
    signs = {trade.units > 0 for trade in exchange.account.open_trades}
    assert len(signs) <= 1  # never long and short at once
    guarded = {item.trade_id for item in exchange.account.pending.values()}
    assert guarded <= set(exchange.account.open_ids)
