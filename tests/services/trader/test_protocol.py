"""The order protocol: an order is sent once, whatever happens to its answer."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.broker.market.tape import TICKS_PER_BAR
from services.trader.account import Account
from services.trader.config import Mode, TraderConfig
from services.trader.ledger import Ledger, Memory
from services.trader.orders import Holding, IntentState, intent_id
from shared.adapters.oanda.client import OandaClient
from shared.adapters.oanda.records import Price
from shared.environment.action import Action, Side
from shared.environment.environment import EnvironmentConfig
from shared.errors import ServiceError
from shared.messages.schemas import AlertRaised
from tests.services.trader.parts import BARS, FIRST_BAR, Broker, running_broker
from tests.waiting import until

ACCOUNT = "101-001-0000001-001"
#: Opening time of the bar decided on, and index of the next one, at whose open the replay stops.
BAR_S, NEXT_BAR = int(BARS.time_s[FIRST_BAR]), FIRST_BAR + 1


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A replay that stops at the open of a bar until the bar before is acknowledged."""
    async with running_broker(tmp_path) as running:
        await until(lambda: running.venue.progress.next_tick == NEXT_BAR * TICKS_PER_BAR + 1)
        yield running


@pytest_asyncio.fixture
async def client(broker: Broker) -> AsyncIterator[OandaClient]:
    async with OandaClient(
        ACCOUNT, "paper", api_url=broker.url, stream_url=broker.url, read_attempts=2, read_retry_seconds=1.0
    ) as opened:
        yield opened


def open_account(client: OandaClient, ledger: Ledger, **config: object) -> Account:
    quick: dict[str, object] = {"look_up_seconds": 1.0, "look_up_poll_seconds": 0.05, **config}
    return Account(
        client,
        ledger,
        TraderConfig(**quick),  # type: ignore[arg-type]
        BARS.instrument,
        Mode.PAPER,
        asyncio.Event(),
        EnvironmentConfig(),
    )


async def order(
    account: Account, client: OandaClient, action: Action, bar_time_s: int = BAR_S
) -> IntentState:
    if action is Action.CLOSE:
        return (await account.close(bar_time_s, "test", look_up_seconds=1.0)).state
    (quote,) = await client.prices("GBP_JPY")
    return (await account.enter(action, bar_time_s, quote, 1)).state


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "trader")
    yield opened
    opened.close()


async def test_entry_and_exit_are_read_from_the_account(
    broker: Broker, client: OandaClient, ledger: Ledger
) -> None:
    account = open_account(client, ledger)
    await account.reconcile()
    assert await order(account, client, Action.SELL) is IntentState.FILLED
    assert account.holding.side is Side.SHORT
    assert account.holding.trade is not None
    assert float(account.holding.trade.price) == round(BARS.open[NEXT_BAR] - 0.02, 3)
    assert str(account.holding.trade.spread) == "0.040"
    assert await order(account, client, Action.CLOSE) is IntentState.FILLED
    assert account.holding.trades == ()
    assert account.memory.risk.realised == pytest.approx(-4.0)
    assert broker.posts == ["POST orders", "PUT close"]


@pytest.mark.parametrize("fault", ["drop_answer_probability", "gateway_timeout_probability"])
async def test_an_executed_order_without_an_answer_is_looked_up_and_not_repeated(
    broker: Broker, client: OandaClient, ledger: Ledger, fault: str
) -> None:
    account = open_account(client, ledger)
    await account.reconcile()
    broker.faulty(**{fault: 1.0})
    assert await order(account, client, Action.BUY) is IntentState.FILLED
    assert broker.posts == ["POST orders"], "one POST"
    assert len(broker.fills()) == 1, "one fill"
    assert broker.units == 1
    assert account.holding.units == 1
    assert broker.reads, "it was looked up"


async def test_an_accepted_order_that_is_cancelled_leaves_the_position_flat(
    broker: Broker, client: OandaClient, ledger: Ledger
) -> None:
    account = open_account(client, ledger)
    await account.reconcile()
    broker.faulty(
        partial_fill_probability=1.0
    )  # a FOK order finds half of its units: 201 with a cancellation
    assert await order(account, client, Action.BUY) is IntentState.CANCELLED
    assert account.holding.side is Side.FLAT
    assert broker.units == 0
    assert account.memory.risk.rejects == 1
    kept = ledger.intent(intent_id(ACCOUNT, BAR_S, Action.BUY))
    assert kept is not None
    assert kept.detail == "INSUFFICIENT_LIQUIDITY"


async def test_a_refused_order_is_counted_and_not_repeated(
    broker: Broker, client: OandaClient, ledger: Ledger
) -> None:
    account = open_account(client, ledger)
    await account.reconcile()
    broker.faulty(reject_probability=1.0)
    assert await order(account, client, Action.BUY) is IntentState.REJECTED
    assert broker.posts == ["POST orders"]
    assert account.memory.risk.rejects == 1
    broker.faulty()
    assert await order(account, client, Action.BUY) is IntentState.FILLED, "a refusal permits a new order"
    assert account.memory.risk.rejects == 0


async def test_the_same_order_is_never_sent_twice(
    broker: Broker, client: OandaClient, ledger: Ledger
) -> None:
    account = open_account(client, ledger)
    await account.reconcile()
    assert await order(account, client, Action.BUY) is IntentState.FILLED
    assert await order(account, client, Action.CLOSE) is IntentState.FILLED
    with pytest.raises(ServiceError, match="BUY for bar"):
        await order(account, client, Action.BUY)
    assert broker.posts == ["POST orders", "PUT close"]


async def test_an_entry_under_an_outdated_lease_token_is_not_sent(
    broker: Broker, client: OandaClient, ledger: Ledger
) -> None:
    account = open_account(client, ledger)
    await account.reconcile()
    (quote,) = await client.prices("GBP_JPY")
    await account.enter(Action.BUY, BAR_S, quote, 7)
    assert await order(account, client, Action.CLOSE) is IntentState.FILLED, "a close needs no token"
    with pytest.raises(ServiceError, match="sent under the later token 7"):
        await account.enter(Action.BUY, BAR_S + 60, quote, 6)
    assert broker.posts == ["POST orders", "PUT close"]


async def test_an_order_stays_unknown_until_its_transaction_is_found(
    broker: Broker, client: OandaClient, ledger: Ledger
) -> None:
    account = open_account(client, ledger, look_up_seconds=0.2)
    await account.reconcile()
    broker.faulty(
        gateway_timeout_probability=1.0, read_error_probability=1.0
    )  # executed, and nothing can be read
    intent = await account.enter(Action.BUY, BAR_S, await _quote(broker, client), 1)
    assert intent.state is IntentState.SENDING
    assert account.num_unknown() == 1
    broker.faulty()
    await account.sync(None)
    assert account.num_unknown() == 0
    assert account.holding.units == 1
    assert broker.posts == ["POST orders"]


async def _quote(broker: Broker, client: OandaClient) -> Price:
    kept = broker.venue.faults.config
    broker.faulty()
    (quote,) = await client.prices("GBP_JPY")
    broker.venue.faults.change(kept)
    return quote


_KILLED_BEFORE_SENDING = """
import asyncio, os, signal, sys
from pathlib import Path
from services.trader.account import Account
from services.trader.config import Mode, TraderConfig
from services.trader.ledger import Ledger
from shared.adapters.oanda.client import OandaClient
from shared.environment.action import Action
from shared.environment.environment import EnvironmentConfig
from shared.market.bar import Instrument

async def main(url, folder, step, bar_time_s):
    async with OandaClient("101-001-0000001-001", "paper", api_url=url, stream_url=url) as client:
        account = Account(
            client,
            Ledger(Path(folder)),
            TraderConfig(),
            Instrument.named("GBP_JPY"),
            Mode.PAPER,
            asyncio.Event(),
            EnvironmentConfig(),
        )
        await account.reconcile()
        (quote,) = await client.prices("GBP_JPY")
        send, apply = client.market_order, account._apply

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        async def never_sent(order):
            die()

        if step == "kept":
            client.market_order = never_sent
        elif step == "sent":
            async def sent(order):
                await send(order)
                die()
            client.market_order = sent
        else:
            account._apply = lambda transactions, spread: (
                die() if any(t.kind == "ORDER_FILL" for t in transactions)
                else apply(transactions, spread)
            )
        await account.enter(Action.BUY, bar_time_s, quote, 1)

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
"""


@pytest.mark.parametrize(("step", "units"), [("kept", 0), ("sent", 1), ("read", 1)])
async def test_after_a_crash_at_any_step_of_an_order_the_account_is_reconciled(
    broker: Broker, client: OandaClient, tmp_path: Path, step: str, units: int
) -> None:
    folder = tmp_path / "trader"
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _KILLED_BEFORE_SENDING, broker.url, str(folder), step, str(BAR_S)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    ledger = Ledger(folder)
    account = open_account(client, ledger)
    assert [intent.state for intent in ledger.unsettled()] == [IntentState.SENDING]
    await account.reconcile()
    assert account.holding.units == units == broker.units
    # Without a transaction the outcome stays unknown, and no entry is sent before an operator resumes.
    assert account.num_unknown() == (0 if units else 1)
    assert account.memory.decided_bar_s == BAR_S, "its bar is not decided on again"
    with pytest.raises(ServiceError, match="BUY for bar"):
        await order(account, client, Action.BUY)
    assert broker.posts == (["POST orders"] if units else [])
    ledger.close()


async def test_trades_closed_by_others_at_the_broker_are_recorded(
    broker: Broker, client: OandaClient, ledger: Ledger
) -> None:
    account = open_account(client, ledger)
    await account.reconcile()
    await order(account, client, Action.BUY)
    await client.close_position("GBP_JPY", long=True)  # a person, at the broker's own page
    await account.sync(None)
    assert account.holding.side is Side.FLAT
    assert account.memory.risk.realised == pytest.approx(-4.0)


async def test_a_replaced_paper_account_starts_over(
    client: OandaClient, ledger: Ledger, broker: Broker
) -> None:
    account = open_account(client, ledger)
    await account.reconcile()
    known = account.memory
    account.keep(Memory(known.account, Holding("GBP_JPY", 10_000), decided_bar_s=BAR_S))
    await account.reconcile()
    assert account.holding.last_transaction_id == broker.venue.exchange.account.last_id
    assert account.memory.decided_bar_s == -1
    (row,) = ledger.undelivered("streams", count=9)
    assert isinstance(row.message, AlertRaised)
    assert row.message.name == "account_replaced"


async def test_the_ledger_of_another_account_is_refused(client: OandaClient, ledger: Ledger) -> None:
    await open_account(client, ledger).reconcile()
    other = OandaClient("101-001-0000001-002", "paper")
    with pytest.raises(ServiceError, match="MM_HOME"):
        open_account(other, ledger)
    await other.close()


async def test_stop_and_target_are_sent_with_the_entry(
    broker: Broker, client: OandaClient, ledger: Ledger
) -> None:
    account = open_account(client, ledger, stop_loss_pips=25.0, take_profit_pips=40.0)
    await account.reconcile()
    assert await order(account, client, Action.BUY) is IntentState.FILLED
    ask = BARS.open[NEXT_BAR] + 0.02
    booked = [t.json_object() for t in broker.venue.ledger.transactions()]
    prices = {
        t["type"]: float(t["price"]) for t in booked if t["type"] in ("STOP_LOSS_ORDER", "TAKE_PROFIT_ORDER")
    }
    assert prices == {
        "STOP_LOSS_ORDER": pytest.approx(ask - 0.25, abs=1e-9),
        "TAKE_PROFIT_ORDER": pytest.approx(ask + 0.40, abs=1e-9),
    }
    await account.reconcile()
    alerts = [row.message for row in ledger.undelivered("streams", count=9)]
    assert alerts == [], "orders that belong to the trade are not foreign"
