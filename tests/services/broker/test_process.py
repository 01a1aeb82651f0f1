"""The paper broker as a process: a restart after SIGKILL restores its state, and SIGTERM stops it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.adapters.oanda.client import MarketOrder, OandaClient
from shared.adapters.tables.dataset import write_dataset
from shared.errors import BrokerError
from shared.market.synthetic import Market, synthesize
from shared.runtime.ports import free_port
from tests.conftest import ROOT
from tests.services.broker.conftest import ACCOUNT


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "bars.duckdb"
    write_dataset(path, synthesize(Market.GBM, 600, 1), "synthetic")
    return path


@asynccontextmanager
async def broker(
    dataset: Path, home: Path, **settings: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, OandaClient]]:
    """Start a broker and wait until it answers; at the end of the block, kill it if it still runs."""
    port = free_port()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MM_", "OANDA_"))
    }
    environment |= {
        "MM_DATASET": str(dataset),
        "MM_HOME": str(home),
        "MM_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",  # a closed port: no Redis
        "MM_BROKER__PORT": str(port),
        "MM_BROKER__SPLIT": "all",
        "MM_BROKER__PACING": "acknowledged",
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.broker", cwd=ROOT, env=environment
    )
    url = f"http://127.0.0.1:{port}"
    client = OandaClient(
        ACCOUNT, "paper", api_url=url, stream_url=url, read_attempts=100, read_retry_seconds=180
    )
    try:
        async with client:
            await client.snapshot()  # retried until the process accepts connections
            yield process, client
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def wait_for_bars(client: OandaClient, bars: int) -> int:
    """Wait for this many complete bars, after which the replay waits; return the last opening time."""
    async with asyncio.timeout(60):
        while len(candles := await client.candles("GBP_JPY", count=10)) < bars:  # noqa: ASYNC110  HTTP offers only polling
            await asyncio.sleep(0.01)
    return candles[bars - 1].time_s


async def test_a_restarted_broker_restores_the_state_of_the_killed_one(dataset: Path, tmp_path: Path) -> None:
    async with broker(dataset, tmp_path) as (_, client):
        first_s = await wait_for_bars(client, 1)
        await client.acknowledge_bar(first_s)
        assert await wait_for_bars(client, 2) == first_s + 60
        details = await client.instrument("GBP_JPY")
        outcome = await client.market_order(MarketOrder(details, 1, client_id="kept", stop_loss=1))
        assert outcome.fill is not None
        before = await client.snapshot(), await client.candles("GBP_JPY", count=5, complete_only=False)
    async with broker(dataset, tmp_path) as (_, client):
        assert (
            await client.snapshot(),
            await client.candles("GBP_JPY", count=5, complete_only=False),
        ) == before
        assert await client.order_by_client_id("kept") is not None


async def test_sigterm_stops_the_process_while_a_stream_is_open(dataset: Path, tmp_path: Path) -> None:
    async with broker(dataset, tmp_path) as (process, client):
        stream = client.price_stream("GBP_JPY")
        await anext(stream)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(BrokerError):
            [item async for item in stream]
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_a_data_set_without_the_split_is_reported_as_a_wrong_setting(
    dataset: Path, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "MM_DATASET": str(dataset),
        "MM_HOME": str(tmp_path),
        "MM_BROKER__SPLIT": "test",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.broker", cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"MM_BROKER__SPLIT" in errors
