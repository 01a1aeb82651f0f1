"""A close at the broker without the ledger: what it reports about the account."""

from dataclasses import replace
from pathlib import Path

from services.trader.closing import close_at_broker
from shared.adapters.oanda.client import OandaClient
from tests.services.trader.parts import FIRST_BAR, running_broker

ACCOUNT = "101-001-0000001-001"


async def test_each_result_of_a_close_is_reported(tmp_path: Path) -> None:
    async with (
        running_broker(tmp_path, stop=FIRST_BAR + 2) as broker,
        OandaClient(ACCOUNT, "paper", api_url=broker.url, read_attempts=1) as client,
    ):
        await broker.buy()
        exchange = broker.venue.exchange
        open_quote = exchange.newest_price()

        exchange.quote = replace(open_quote, tradeable=False)
        halted = await close_at_broker(client, "GBP_JPY")
        assert halted == (None, "the broker cancelled the close: MARKET_HALTED")
        assert broker.units == 1

        exchange.quote = open_quote
        sent = await close_at_broker(client, "GBP_JPY")
        assert sent == (None, "the account held 1 units of GBP_JPY; a close was sent")
        assert broker.units == 0

        assert await close_at_broker(client, "GBP_JPY") == (exchange.account.last_id, "")
