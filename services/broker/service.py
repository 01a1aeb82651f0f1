"""Replays the market of a data set and serves it over HTTP until the service is asked to stop."""

import asyncio
import contextlib
from decimal import Decimal

import structlog

from services.broker.config import BrokerConfig
from services.broker.exchange.checks import InstrumentRules
from services.broker.exchange.exchange import Exchange
from services.broker.exchange.ledger import Ledger
from services.broker.exchange.planning import AccountTerms
from services.broker.faults import Faults
from services.broker.http.app import create_app
from services.broker.market.tape import Tape
from services.broker.settings import BrokerSettings
from services.broker.venue import Venue
from shared.adapters.tables.dataset import Dataset, read_dataset
from shared.errors import DataError
from shared.market.session import SESSION_BARS, Split
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.server import serve_app
from shared.runtime.tasks import service_tasks

log = structlog.get_logger()

REPORT_SECONDS = 1.0


def replayed_bars(dataset: Dataset, split: str) -> tuple[int, int]:
    """Index of the first bar to replay and of the bar after the last one.

    A split is replayed from its first session to its last; `all` replays every bar.

    Raises:
        DataError: the split has no session.
    """
    if split == "all":
        return 0, len(dataset.bars)
    starts = dataset.sessions.every(Split(split))
    if not len(starts):
        raise DataError(
            f"the data set has no session in its {split} split: set MM_BROKER__SPLIT to another split or all"
        )
    return int(starts[0]), int(starts[-1]) + SESSION_BARS + 1


def open_venue(dataset: Dataset, settings: BrokerSettings) -> Venue:
    """Continue the account and the replay of a data set from its ledger. Each data set has its own ledger.

    Raises:
        DataError: there is nothing to replay.
        BrokerError: the ledger is damaged, or belongs to another account.
    """
    config = settings.broker
    first, stop = replayed_bars(dataset, config.split)
    tape = Tape.of(
        dataset.bars,
        spread_pips=config.spread_pips,
        spread_from_data=config.spread_from_data,
        first=first,
        stop=stop,
    )
    path = settings.broker_root / f"{dataset.fingerprint[:16]}.sqlite"
    ledger = Ledger(path, account=config.account, dataset=dataset.fingerprint)
    rules = InstrumentRules.of(dataset.bars.instrument, Decimal(str(config.margin_rate)))
    exchange = Exchange(_terms(config, dataset), rules, ledger.transactions())
    return Venue(exchange, tape, ledger, config, Faults(settings.faults))


def _terms(config: BrokerConfig, dataset: Dataset) -> AccountTerms:
    _, _, quote_currency = dataset.bars.instrument.name.partition("_")
    return AccountTerms(
        config.account, quote_currency, Decimal(config.balance), Decimal(str(config.margin_rate))
    )


class BrokerService:
    """Replays one data set as a market with OANDA's interface."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings

    async def run(self, lifecycle: Lifecycle) -> None:
        """Serve until asked to stop."""
        dataset = await asyncio.to_thread(read_dataset, self._settings.dataset)
        venue = open_venue(dataset, self._settings)
        config = self._settings.broker
        log.info(
            "market_opened",
            instrument=dataset.bars.instrument.name,
            bars=venue.tape.stop - venue.tape.first,
            next_tick=venue.progress.next_tick,
            pacing=config.pacing.value,
            last_transaction=venue.exchange.account.last_id,
        )
        app = create_app(venue, self._settings.token.get_secret_value())
        with contextlib.closing(venue.ledger):
            async with service_tasks() as tasks:
                replay = tasks.create_task(venue.run())  # the closed market is served after its end
                tasks.create_task(_report(venue, lifecycle))
                tasks.create_task(_close_streams(venue, lifecycle))
                await serve_app(
                    app, lifecycle, host=config.host, port=config.port, allowed_hosts=config.allowed_hosts
                )
                lifecycle.stop()  # stops the other tasks if the server exits by itself
                replay.cancel()


async def _close_streams(venue: Venue, lifecycle: Lifecycle) -> None:
    """Close open streams on a stop, since the server waits for them."""
    try:
        await lifecycle.stopping.wait()
    finally:
        venue.stopping.set()


async def _report(venue: Venue, lifecycle: Lifecycle) -> None:
    while not lifecycle.stopping.is_set():
        account = venue.exchange.account
        lifecycle.report(
            bar=venue.newest_complete_bar(),
            time_s=venue.now_ns // 1_000_000_000,
            transactions=account.last_id,
            units=float(account.units),
            balance=float(account.balance),
            over=venue.is_finished,
            speed=round(venue.pace.speed, 1),
            waiting_seconds=round(venue.waiting_seconds, 1),
        )
        await lifecycle.sleep(REPORT_SECONDS)
