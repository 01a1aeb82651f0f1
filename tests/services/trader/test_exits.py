"""Closes and entries under every kind of answer, and the state of their orders in the ledger."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.broker.exchange.transactions import ClientExtensions, MarketOrderFields
from services.broker.market.tape import TICKS_PER_BAR
from services.trader.account import Account
from services.trader.config import GuardConfig, Mode, TraderConfig
from services.trader.exits import Exits
from services.trader.ledger import Ledger
from services.trader.market import Market
from services.trader.orders import Intent, IntentState
from shared.adapters.oanda.client import MarketOrder, OandaClient
from shared.adapters.oanda.records import OrderOutcome, Transaction
from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig
from shared.errors import BrokerError
from shared.market.bar import Instrument
from shared.messages.schemas import AlertRaised
from tests.services.trader.parts import BARS, FIRST_BAR, Broker, Forged, running_broker
from tests.waiting import PATIENCE_SECONDS, until

ACCOUNT = "101-001-0000001-001"
BAR_S, NEXT_BAR = int(BARS.time_s[FIRST_BAR]), FIRST_BAR + 1


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A market that stops at the open of a bar, so that no bar closes."""
    async with running_broker(tmp_path) as running:
        await until(lambda: running.venue.progress.next_tick == NEXT_BAR * TICKS_PER_BAR + 1)
        yield running


@pytest_asyncio.fixture
async def client(broker: Broker) -> AsyncIterator[OandaClient]:
    async with OandaClient(
        ACCOUNT, "paper", api_url=broker.url, stream_url=broker.url, read_attempts=1, read_seconds=0.5
    ) as opened:
        yield opened


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "trader")
    yield opened
    opened.close()


class Trading:
    """One account with its exits, wired as in a trader."""

    def __init__(self, client: OandaClient, ledger: Ledger, **config: float) -> None:
        quick = {
            "look_up_seconds": 0.3,
            "look_up_poll_seconds": 0.05,
            "flatten_retry_seconds": 0.05,
            **config,
        }
        self.config = TraderConfig(**quick)  # type: ignore[arg-type]
        self.client, self.ledger = client, ledger
        self.now = time.monotonic()  # changes only if a test changes it
        instrument = Instrument.named("GBP_JPY")
        self.account = Account(
            client,
            ledger,
            self.config,
            instrument,
            Mode.PAPER,
            asyncio.Event(),
            EnvironmentConfig(),
            monotonic=lambda: self.now,
        )
        self.market = Market(instrument, lambda: self.now, None, max_jump_percent=100.0)
        self.sent: list[Intent] = []
        self.exits = Exits(self.account, self.market, self.config, GuardConfig(), settled=self.sent.append)

    async def enter(self, action: Action = Action.BUY, bar_time_s: int = BAR_S) -> Intent:
        (quote,) = await self.client.prices("GBP_JPY")
        return await self.account.enter(action, bar_time_s, quote, 1)

    async def sync_at(self, seconds: float) -> None:
        """Read the account after this many more seconds."""
        self.now += seconds
        await self.account.sync(None)

    async def until_flat(self) -> None:
        """Close repeatedly until the account is flat, as the trader does twice a second."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while reason := self.exits.wanted(""):
                await self.exits.close_when_due(reason)
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def trading(client: OandaClient, ledger: Ledger) -> Trading:
    opened = Trading(client, ledger)
    await opened.account.reconcile()
    return opened


@pytest.mark.parametrize("forged", list(Forged))
async def test_a_close_is_repeated_until_the_broker_shows_the_account_flat(
    broker: Broker, trading: Trading, forged: Forged
) -> None:
    assert (await trading.enter(Action.SELL)).state is IntentState.FILLED
    broker.answers = [forged] * 3
    await trading.exits.close("killed", BAR_S)
    await trading.until_flat()
    assert broker.units == 0 == trading.account.holding.units
    # On a busy machine the next close may be sent before the look-up has seen the fill of the one before.
    assert broker.posts.count("PUT close") >= (1 if forged.executed else 4)
    assert broker.posts.count("POST orders") == 1
    assert len(broker.fills()) == 2
    assert len({intent.intent_id for intent in trading.sent}) == len(trading.sent), (
        "each close has its own id"
    )
    assert trading.account.memory.exit == ""
    assert trading.exits.detail == ""


async def test_closes_are_repeated_while_the_account_cannot_be_read(broker: Broker, trading: Trading) -> None:
    await trading.enter()
    broker.faulty(read_error_probability=1.0)
    broker.answers = [Forged.TIMED_OUT_UNEXECUTED] * 2
    assert not await trading.exits.close("killed", BAR_S)
    closing = asyncio.create_task(trading.until_flat())
    await until(lambda: broker.units == 0)
    await asyncio.sleep(0.1)
    assert not closing.done(), "the broker has not shown the account flat yet"
    broker.faulty()
    await closing
    assert trading.account.holding.side is Side.FLAT


async def test_pauses_between_closes_double_up_to_a_limit(
    broker: Broker, client: OandaClient, ledger: Ledger
) -> None:
    trading = Trading(client, ledger, flatten_retry_seconds=0.1, flatten_retry_max_seconds=0.4)
    await trading.account.reconcile()
    await trading.enter()
    broker.answers = [Forged.TOO_MANY] * 5
    began = time.monotonic()
    await trading.exits.close("killed", BAR_S)
    await trading.until_flat()
    assert broker.posts.count("PUT close") == 6
    assert time.monotonic() - began >= 0.1 + 0.2 + 3 * 0.4


async def test_exits_are_failing_until_a_close_works(broker: Broker, trading: Trading) -> None:
    await trading.enter()
    failing = [trading.exits.failing]
    broker.answers = [Forged.REJECTED]
    await trading.exits.close("killed", BAR_S)
    failing.append(trading.exits.failing)
    assert "INTERNAL_SERVER_ERROR" in trading.exits.detail
    await trading.until_flat()
    assert [*failing, trading.exits.failing] == [False, True, False]


async def test_the_detail_of_a_failed_close_is_cleared_once_the_account_is_flat(
    broker: Broker, client: OandaClient, trading: Trading
) -> None:
    await trading.enter()
    broker.answers = [Forged.REJECTED]
    await trading.exits.close("the agent decided to close", BAR_S)
    assert "did not work" in trading.exits.detail
    await client.close_position("GBP_JPY", long=True)
    await trading.account.sync(None)
    await trading.exits.check_account(confirm=False)
    assert trading.exits.detail == ""


async def test_a_close_of_a_position_that_is_already_closed_counts_as_done(
    broker: Broker, client: OandaClient, trading: Trading
) -> None:
    await trading.enter()
    await client.close_position("GBP_JPY", long=True)
    assert await trading.exits.close("killed", BAR_S), "the reject shows that the account is flat"
    assert broker.posts.count("PUT close") == 2
    assert trading.account.memory.risk.rejects == 0, "such a reject does not count"


async def test_an_exit_survives_a_restart_and_ends_with_its_trade(
    broker: Broker, client: OandaClient, trading: Trading, ledger: Ledger
) -> None:
    await trading.enter()
    broker.answers = [Forged.TIMED_OUT_UNEXECUTED]
    assert not await trading.exits.close("held_long: 360 bars", BAR_S)
    again = Trading(client, ledger)
    assert again.exits.wanted("") == "held_long: 360 bars"
    await again.account.reconcile()
    await again.until_flat()
    assert broker.units == 0
    assert ledger.memory().exit == ""  # type: ignore[union-attr]
    entered = await again.enter(Action.SELL, BAR_S + 60)
    assert entered.state is IntentState.FILLED
    assert again.exits.wanted("") == "", "the exit does not apply to the next trade"


async def test_a_close_waits_for_a_closed_market_but_not_for_a_silent_stream(
    broker: Broker, client: OandaClient, trading: Trading
) -> None:
    await trading.enter()
    (quote,) = await client.prices("GBP_JPY")
    trading.now = time.monotonic()
    trading.market.on_item(replace(quote, tradeable=False))
    await trading.exits.close_when_due("killed")
    assert "PUT close" not in broker.posts
    assert "market is closed" in trading.exits.detail
    trading.market.heard -= 60.0
    await trading.exits.close_when_due("killed")
    assert broker.units == 0


def _unreadable(answer: dict[str, Any]) -> dict[str, Any]:
    answer["account"]["balance"] = None
    return answer


async def test_a_kill_closes_a_position_that_an_outdated_ledger_does_not_know(
    broker: Broker, trading: Trading
) -> None:
    """Neither snapshot nor transactions can be read, and the ledger shows a flat account."""
    broker.venue.market_order(_another())
    broker.forged["/" + ACCOUNT] = _unreadable
    broker.forged["/transactions/sinceid"] = lambda answer: {}
    assert trading.account.holding.side is Side.FLAT
    trading.exits.retry_now()
    await trading.exits.check_account(confirm=True)
    assert broker.units == 0
    failing, shown_at = [trading.exits.failing], [trading.exits.flat_at]
    assert "cannot be read" in trading.exits.detail
    broker.forged.clear()
    trading.exits.retry_now()
    await trading.exits.check_account(confirm=True)
    last = broker.venue.exchange.account.last_id
    assert [*shown_at, trading.exits.flat_at] == [None, last], "no earlier answer showed the account flat"
    assert [*failing, trading.exits.failing] == [True, False]
    assert trading.exits.detail == ""


async def test_a_close_of_the_wrong_side_is_followed_by_a_close_of_both_sides(
    broker: Broker, trading: Trading
) -> None:
    """The ledger shows long, but the account was turned short and cannot be read."""
    await trading.enter()
    broker.venue.market_order(MarketOrderFields(instrument="GBP_JPY", units=Decimal(-2)))
    assert broker.units == -1
    broker.forged["/" + ACCOUNT] = _unreadable
    broker.forged["/transactions/sinceid"] = lambda answer: {}
    assert not await trading.exits.close("killed", BAR_S)
    assert broker.units == 0


async def test_an_unreadable_transaction_is_remembered_until_a_snapshot_is_read(
    broker: Broker, trading: Trading
) -> None:
    def damaged(answer: dict[str, Any]) -> dict[str, Any]:
        for transaction in answer["transactions"]:
            if transaction["type"] == "ORDER_FILL":
                del transaction["tradeOpened"]["price"]
        return answer

    broker.venue.market_order(_another())
    broker.forged |= {"/transactions/sinceid": damaged, "/" + ACCOUNT: _unreadable}
    for _ in range(2):
        with pytest.raises(BrokerError, match="not a string"):
            await trading.account.sync(None)
    del broker.forged["/" + ACCOUNT]
    await trading.account.sync(None)
    assert trading.account.holding.units == 1


async def test_a_snapshot_older_than_the_ledger_changes_nothing(broker: Broker, trading: Trading) -> None:
    """OANDA's replicas lag by up to half a second."""
    before: list[dict[str, Any]] = []

    def kept(answer: dict[str, Any]) -> dict[str, Any]:
        before.append(answer)
        return answer

    def damaged(answer: dict[str, Any]) -> dict[str, Any]:
        for transaction in answer["transactions"]:
            if transaction["type"] == "MARKET_ORDER":
                transaction["type"] = 5
        return answer

    broker.forged["/" + ACCOUNT] = kept
    await trading.client.snapshot()
    broker.venue.market_order(_another())
    broker.forged |= {"/transactions/sinceid": damaged, "/" + ACCOUNT: lambda _: before[0]}
    for _ in range(2):
        await trading.account.sync(None)
        assert trading.account.holding.units == 1, "the fill is readable"
    del broker.forged["/" + ACCOUNT]
    await trading.account.sync(None)
    assert trading.account.holding.units == 1


async def test_an_order_with_an_unreadable_fill_is_settled_by_its_own_state(
    broker: Broker, trading: Trading, ledger: Ledger
) -> None:
    """Otherwise its outcome would stay unknown and block entries until an operator resumed trading."""

    def damaged(answer: dict[str, Any]) -> dict[str, Any]:
        for transaction in answer["transactions"]:
            if transaction["type"] == "ORDER_FILL":
                transaction["tradeOpened"] = None
        return answer

    broker.forged["/transactions/sinceid"] = damaged
    entered = await trading.enter()
    assert entered.state is IntentState.SENDING
    assert trading.account.holding.units == 1, "the snapshot shows the fill"
    await trading.sync_at(1.0)
    kept = ledger.intent(entered.intent_id)
    assert kept is not None
    assert kept.state is IntentState.FILLED


# -- entries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("forged", [forged for forged in Forged if forged.executed])
async def test_an_executed_entry_is_always_settled_as_filled(
    broker: Broker, trading: Trading, forged: Forged
) -> None:
    broker.answers = [forged]
    assert (await trading.enter()).state is IntentState.FILLED
    assert broker.posts == ["POST orders"]
    assert trading.account.holding.units == 1
    assert trading.account.memory.risk.rejects == 0


async def test_an_entry_refused_before_processing_counts_neither_as_sent_nor_as_a_reject(
    broker: Broker, trading: Trading
) -> None:
    broker.answers = [Forged.TOO_MANY]
    assert (await trading.enter()).state is IntentState.NOT_SENT
    assert trading.account.num_unknown() == 0
    assert trading.account.memory.risk.rejects == 0


async def test_a_reject_read_before_its_answer_arrives_counts_once(
    broker: Broker, trading: Trading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the order's request is in flight, another task reads the account's transactions."""
    send = trading.client.market_order

    async def send_while_another_reads(order: MarketOrder) -> OrderOutcome:
        try:
            return await send(order)
        finally:
            await trading.account.sync(None)

    monkeypatch.setattr(trading.client, "market_order", send_while_another_reads)
    broker.faulty(reject_probability=1.0)
    assert (await trading.enter()).state is IntentState.REJECTED
    assert trading.account.memory.risk.rejects == 1


@pytest.mark.parametrize(
    "forged",
    [
        Forged.TIMED_OUT_UNEXECUTED,
        Forged.WITHOUT_FILL_UNEXECUTED,
        Forged.BROKEN_OFF_UNEXECUTED,
        Forged.NOT_JSON_UNEXECUTED,
    ],
)
async def test_an_entry_without_a_transaction_is_settled_after_the_look_up_time(
    broker: Broker, trading: Trading, ledger: Ledger, forged: Forged
) -> None:
    broker.answers = [forged]
    lost = await trading.enter()
    assert lost.state is IntentState.SENDING
    await trading.sync_at(0.29)
    assert trading.account.num_unknown() == 1, "not before the look-up time is over"
    await trading.sync_at(0.02)
    assert ledger.intent(lost.intent_id).state is IntentState.NOT_EXECUTED  # type: ignore[union-attr]
    assert trading.account.num_unknown() == 0
    assert trading.account.memory.risk.rejects == 0, "it does not count as a reject"
    assert broker.posts == ["POST orders"], "an entry is never sent again"


async def test_a_new_transaction_restarts_the_look_up_time(broker: Broker, trading: Trading) -> None:
    broker.answers = [Forged.TIMED_OUT_UNEXECUTED]
    await trading.enter()
    for _ in range(3):
        broker.venue.market_order(_another())
        broker.venue.close_position(long=True, units=None, extensions=None)
        await trading.sync_at(0.2)
        assert trading.account.num_unknown() == 1
    await trading.sync_at(0.29)
    assert trading.account.num_unknown() == 1
    await trading.sync_at(0.02)
    assert trading.account.num_unknown() == 0


async def test_an_order_that_the_broker_knows_waits_for_its_transactions(
    broker: Broker, trading: Trading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lagging replica shows an old last transaction, but the look-up by client id finds the order."""
    broker.answers = [Forged.TIMED_OUT_EXECUTED]
    since = trading.client.transactions_since

    async def lagging(_transaction_id: int) -> tuple[Transaction, ...]:
        return ()

    monkeypatch.setattr(trading.client, "transactions_since", lagging)
    lost = await trading.enter()
    await trading.sync_at(60.0)
    assert trading.account.num_unknown() == 1
    monkeypatch.setattr(trading.client, "transactions_since", since)
    await trading.account.sync(None)
    assert trading.account.holding.units == 1
    assert trading.ledger.intent(lost.intent_id).state is IntentState.FILLED  # type: ignore[union-attr]


async def test_a_fill_after_an_order_was_settled_corrects_the_ledger(
    broker: Broker, trading: Trading, ledger: Ledger
) -> None:
    """The broker answers an order with 504, and executes it after the look-up time."""
    broker.answers = [Forged.TIMED_OUT_UNEXECUTED]
    lost = await trading.enter()
    await trading.sync_at(1.0)
    assert trading.account.num_unknown() == 0
    broker.venue.market_order(_another(lost.intent_id))
    await trading.account.sync(None)
    kept = ledger.intent(lost.intent_id)
    assert kept is not None
    assert kept.state is IntentState.FILLED
    assert kept.detail.endswith("after not_executed")
    assert trading.account.holding.units == 1
    await trading.account.sync(None)
    alerts = [row.message for row in ledger.undelivered("streams", count=99)]
    assert [a.name for a in alerts if isinstance(a, AlertRaised)] == ["order_filled_late"], "one alert"


async def test_an_unreadable_position_does_not_hide_the_trades(broker: Broker, trading: Trading) -> None:
    """The position is read from the trades; the snapshot's `positions` may be of another instrument."""

    def damaged(answer: dict[str, Any]) -> dict[str, Any]:
        answer["account"]["positions"].append({"instrument": "EUR_USD", "long": None})
        return answer

    broker.forged["/" + ACCOUNT] = damaged
    assert await trading.account.shown_flat()


async def test_an_account_with_an_unknown_entry_is_not_shown_flat(broker: Broker, trading: Trading) -> None:
    assert await trading.account.shown_flat()
    broker.answers = [Forged.TIMED_OUT_UNEXECUTED]
    await trading.enter()
    assert not await trading.account.shown_flat(), "it may still be executed"
    trading.now += 1.0
    assert await trading.account.shown_flat()


def _another(client_id: str | None = None) -> MarketOrderFields:
    extensions = ClientExtensions(id=client_id) if client_id else None
    return MarketOrderFields(instrument="GBP_JPY", units=Decimal(1), client_extensions=extensions)
