"""A market that runs over real HTTP: hand-made bars, a real ledger file, the real client."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
import uvicorn

from services.broker.config import BrokerConfig, FaultConfig, Pacing
from services.broker.exchange.exchange import Exchange
from services.broker.exchange.ledger import Ledger
from services.broker.exchange.planning import AccountTerms
from services.broker.faults import Faults
from services.broker.http.app import create_app
from services.broker.market.tape import Tape
from services.broker.venue import Venue
from shared.adapters.oanda.client import OandaClient
from shared.market.bar import BarSeries
from shared.runtime.ports import free_port
from tests.services.broker.markets import RULES, bars_of
from tests.services.broker.replay import running

TOKEN = "canary-token-8d1f"
ACCOUNT = "101-001-0000001-001"


@dataclass
class Running:
    """A served broker and a client of it."""

    venue: Venue
    client: OandaClient
    http: httpx.AsyncClient  # sends the token; its paths are relative to the account
    url: str


def venue_of(
    folder: Path, bars: BarSeries, config: BrokerConfig, faults: FaultConfig | None = None, *, first: int = 0
) -> Venue:
    """A venue on bars, with its ledger in a folder."""
    ledger = Ledger(folder / "ledger.sqlite", account=config.account, dataset=bars.fingerprint)
    tape = Tape.of(bars, spread_pips=config.spread_pips, first=first)
    exchange = Exchange(AccountTerms(), RULES, ledger.transactions())
    return Venue(exchange, tape, ledger, config, Faults(faults or FaultConfig()))


@asynccontextmanager
async def serving(venue: Venue, **client_options: float) -> AsyncIterator[Running]:
    """Serve a venue on a free port; its replay runs only inside `running`."""
    port = free_port()
    config = uvicorn.Config(create_app(venue, TOKEN), port=port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
        await asyncio.sleep(0.005)
    url = f"http://127.0.0.1:{port}"
    options = {"read_seconds": 5.0, **client_options}
    client = OandaClient(ACCOUNT, TOKEN, api_url=url, stream_url=url, **options)  # type: ignore[arg-type]
    http = httpx.AsyncClient(
        base_url=f"{url}/v3/accounts/{ACCOUNT}", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    try:
        async with client, http:
            yield Running(venue, client, http, url)
    finally:
        venue.stopping.set()
        server.should_exit = True
        await task
        venue.ledger.close()


Market = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def market(tmp_path: Path) -> Market:
    """Serves a venue whose bar 0 is complete and whose bar 1 has its first price."""

    @asynccontextmanager
    async def opened(
        closes: Sequence[float] = (188.0, 188.1, 188.2, 188.3),
        *,
        faults: FaultConfig | None = None,
        heartbeat_seconds: float = 5.0,
        **client_options: float,
    ) -> AsyncIterator[Running]:
        config = BrokerConfig(pacing=Pacing.ACKNOWLEDGED, heartbeat_seconds=heartbeat_seconds)
        venue = venue_of(tmp_path, bars_of(closes), config, faults)
        async with serving(venue, **client_options) as served, running(venue):
            while venue.newest_complete_bar() < 0:  # noqa: ASYNC110  the replay reaches its first stop by itself
                await asyncio.sleep(0)
            yield served

    return opened


@pytest.fixture
def exchange() -> Exchange:
    """An opened account without a price."""
    made = Exchange(AccountTerms(balance=Decimal(1_000_000)), RULES)
    made.open(0)
    return made
