"""A paper broker and a scripted inference over real HTTP, and the complete trader."""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import SecretStr
from starlette.responses import JSONResponse, Response

from services.broker.config import BrokerConfig, FaultConfig, Pacing
from services.broker.exchange.checks import InstrumentRules
from services.broker.exchange.exchange import Exchange
from services.broker.exchange.ledger import Ledger as BrokerLedger
from services.broker.exchange.planning import AccountTerms
from services.broker.exchange.transactions import MarketOrderFields
from services.broker.faults import Faults
from services.broker.http.app import create_app
from services.broker.market.tape import Tape
from services.broker.settings import BrokerSettings
from services.broker.venue import Venue
from services.trader.__main__ import compose
from services.trader.config import GuardConfig, TraderConfig
from services.trader.settings import TraderSettings
from shared.environment.action import LEGAL, Action
from shared.market.bar import BarSeries
from shared.market.synthetic import Market, synthesize
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.ports import free_port
from shared.runtime.server import serve_app
from tests.services.broker.replay import running
from tests.waiting import listening, until

#: Bars 0..399 are history; the replay begins at bar 400, on a Monday.
BARS = synthesize(Market.OU, 2_000, seed=3)
FIRST_BAR = 400

#: Limits that no test reaches by accident.
NO_LIMITS = GuardConfig(
    daily_loss_pips=1e9, weekly_loss_pips=1e9, max_drawdown_pips=1e9, max_orders_per_hour=1e9
)


class Forged(StrEnum):
    """Whether a write is executed, and how it is answered."""

    TIMED_OUT_UNEXECUTED = "504, not executed"
    TIMED_OUT_EXECUTED = "504, executed"
    OK_EXECUTED = "200 instead of 201, executed"
    MOVED_EXECUTED = "302, executed"
    PLAIN_400_EXECUTED = "400 without a reject, executed"
    CREATED_FOR_OK_EXECUTED = "201 instead of 200, executed"
    WITHOUT_FILL_UNEXECUTED = "the expected status without a fill, not executed"
    WITHOUT_FILL_EXECUTED = "the expected status without a fill, executed"
    BROKEN_OFF_UNEXECUTED = "half an answer, not executed"
    BROKEN_OFF_EXECUTED = "half an answer, executed"
    NOT_JSON_UNEXECUTED = "the expected status and HTML, not executed"
    HALTED = "accepted and cancelled: the market is halted"
    REJECTED = "400 with a reject transaction"
    TOO_MANY = "429"

    @property
    def executed(self) -> bool:
        """The broker executed the request."""
        return self.value.endswith(" executed") and not self.value.endswith("not executed")


@dataclass
class Broker:
    """A running paper broker; `posts` are the orders and close-outs that it received."""

    venue: Venue
    url: str
    posts: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    num_requests: int = 0
    hosts: set[tuple[str, str]] = field(default_factory=set)  # Host header and path of every request
    forged: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)  # by path suffix
    refusal: int | None = None  # status of every answer
    answers: list[Forged] = field(default_factory=list)  # answers to the next writes, in order

    @property
    def units(self) -> Decimal:
        """Net units held."""
        return Decimal(self.venue.exchange.account.units)

    def fills(self) -> list[Any]:
        """The transactions that filled an order."""
        return [t for t in self.venue.ledger.transactions() if t.type == "ORDER_FILL"]

    def faulty(self, **faults: float) -> None:
        """Inject these faults from now on."""
        self.venue.faults.change(FaultConfig(**faults))  # type: ignore[arg-type]

    def send_line(self, line: dict[str, Any]) -> None:
        """Send an extra line on every price stream."""
        for subscription in self.venue._prices:
            subscription.put(line)

    async def buy(self) -> None:
        """Buy one unit once the market is open, as an earlier trader would have."""
        await until(lambda: self.venue.progress.next_tick > self.venue.tape.first_tick)
        self.venue.market_order(MarketOrderFields(instrument="GBP_JPY", units=Decimal(1)))

    async def decided(self, bar: int) -> None:
        """Wait until the trader has acknowledged a bar."""
        await until(lambda: self.venue.progress.acknowledged_s >= BARS.time_s[bar])


class _Recorder:
    """Records writes and reads of transactions on their way to the broker, and forges answers."""

    def __init__(self, app: FastAPI, broker: Broker) -> None:
        self._app, self._broker = app, broker

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self._broker.num_requests += 1
            host = dict(scope["headers"])[b"host"].decode()
            self._broker.hosts.add((host, scope["path"].removeprefix("/v3/accounts").removeprefix("/v3")))
            if self._broker.refusal:
                answer = JSONResponse({"errorMessage": "forbidden"}, self._broker.refusal)
                await answer(scope, receive, send)
                return
            if scope["method"] in ("POST", "PUT") and scope["path"].startswith("/v3/accounts"):
                self._broker.posts.append(f"{scope['method']} {scope['path'].rsplit('/', 1)[-1]}")
                if self._broker.answers:
                    await self._forge(self._broker.answers.pop(0), scope, receive, send)
                    return
            elif "transactions" in scope["path"]:
                self._broker.reads.append(scope["path"])
            for end, forge in self._broker.forged.items():
                if scope["path"].endswith(end):
                    send = _Forging(forge, send)
        await self._app(scope, receive, send)

    async def _forge(self, forged: Forged, scope: Any, receive: Any, send: Any) -> None:
        exchange = self._broker.venue.exchange
        if forged is Forged.HALTED:
            quote = exchange.newest_price()
            exchange.quote = replace(quote, tradeable=False)
            await self._app(scope, receive, send)
            exchange.quote = quote
            return
        if forged.executed:
            await self._app(scope, receive, _nowhere)
        expected = 201 if scope["method"] == "POST" else 200
        reject = (
            b'{"orderRejectTransaction": {"rejectReason": "INTERNAL_SERVER_ERROR"}, "errorMessage": "no"}'
        )
        status, body = {
            Forged.TIMED_OUT_UNEXECUTED: (504, b'{"errorMessage": "Timeout waiting for response."}'),
            Forged.TIMED_OUT_EXECUTED: (504, b"<html>"),
            Forged.OK_EXECUTED: (200, b"{}"),
            Forged.MOVED_EXECUTED: (302, b""),
            Forged.PLAIN_400_EXECUTED: (400, b'{"errorMessage": "Invalid value", "errorCode": "X"}'),
            Forged.CREATED_FOR_OK_EXECUTED: (201, b"{}"),
            Forged.NOT_JSON_UNEXECUTED: (expected, b"<html>"),
            Forged.REJECTED: (400, reject),
            Forged.TOO_MANY: (429, b'{"errorMessage": "Rate limit exceeded"}'),
        }.get(forged, (expected, b'{"lastTransactionID": "1"}'))
        missing = 10 if "half an answer" in forged.value else 0
        length = str(len(body) + missing).encode()
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]}
        )
        await send({"type": "http.response.body", "body": body, "more_body": bool(missing)})


async def _nowhere(_message: Any) -> None:
    """Drop a part of an answer."""


class _Forging:
    """Changes the JSON of one answer on its way out."""

    def __init__(self, forge: Callable[[dict[str, Any]], Any], send: Any) -> None:
        self._forge, self._send = forge, send
        self._start: Any = None
        self._body = b""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = json.dumps(self._forge(json.loads(self._body))).encode()
        headers = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
        await self._send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def running_broker(
    folder: Path,
    *,
    bars: BarSeries = BARS,
    first: int = FIRST_BAR,
    stop: int | None = None,
    pacing: Pacing = Pacing.ACKNOWLEDGED,
    speed: float = 60.0,
    port: int | None = None,
    heartbeat_seconds: float = 5.0,
    allowed_hosts: str = "",
) -> AsyncIterator[Broker]:
    config = BrokerConfig(pacing=pacing, speed=speed, heartbeat_seconds=heartbeat_seconds)
    terms = AccountTerms(config.account)
    ledger = BrokerLedger(folder / "broker.sqlite", account=config.account, dataset=bars.fingerprint)
    exchange = Exchange(terms, InstrumentRules.of(bars.instrument, Decimal("0.05")), ledger.transactions())
    tape = Tape.of(bars, spread_pips=4.0, first=first, stop=stop)
    venue = Venue(exchange, tape, ledger, config, Faults(FaultConfig()))
    port = port or free_port()
    broker = Broker(venue, f"http://127.0.0.1:{port}")
    lifecycle = Lifecycle("broker", BrokerSettings(home=folder))
    app = _Recorder(create_app(venue, "paper"), broker)
    serving = asyncio.create_task(
        serve_app(app, lifecycle, host="127.0.0.1", port=port, allowed_hosts=allowed_hosts)
    )
    try:
        async with running(venue):
            await listening(port)
            yield broker
    finally:
        lifecycle.stop()
        await serving
        ledger.close()
        await lifecycle.bus.close()


@dataclass
class Oracle:
    """An inference service with scripted actions; HOLD where the script has none."""

    script: Mapping[int, Action]  # bar index -> action
    url: str = ""
    asked: list[int] = field(default_factory=list)  # bar indices
    static: list[list[float]] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], Response] | None = None  # replaces the scripted answer
    delay_seconds: float = 0.0
    stage: str = "paper"

    def reply(self, request: dict[str, Any]) -> Response:
        bar = int(np.searchsorted(BARS.time_s, request["bar_time_s"]))
        self.asked.append(bar)
        self.static.append(request["static"])
        if self.answer:
            return self.answer(request)
        action = self.script.get(bar, Action.HOLD)
        if not LEGAL[int(request["static"][0]) + 1, action]:
            action = Action.HOLD
        return JSONResponse(decision(request, action, stage=self.stage))


def decision(request: dict[str, Any], action: Action, **changes: object) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "instrument": request["instrument"],
        "bar_time_s": request["bar_time_s"],
        "action": action.name,
        "visit_policy": [1.0, 0.0, 0.0, 0.0],
        "policy": [1.0, 0.0, 0.0, 0.0],
        "value": 1.5,
        "q_values": [1.0, 0.5, 0.25, None],
        "outcome_probabilities": [0.25, 0.5, 0.25],
        "version": 3,
        "stage": "paper",
        "latency_ms": 1.0,
        **changes,
    }


@asynccontextmanager
async def running_oracle(script: Mapping[int, Action] | None = None) -> AsyncIterator[Oracle]:
    oracle = Oracle(script or {})
    app = FastAPI()

    @app.post("/inference")
    async def inference(request: Request) -> Response:
        await asyncio.sleep(oracle.delay_seconds)
        return oracle.reply(await request.json())

    port = free_port()
    oracle.url = f"http://127.0.0.1:{port}"
    lifecycle = Lifecycle("inference", BrokerSettings())
    serving = asyncio.create_task(serve_app(app, lifecycle, host="127.0.0.1", port=port))
    try:
        await listening(port)
        yield oracle
    finally:
        lifecycle.stop()
        await serving
        await lifecycle.bus.close()


@dataclass
class Trader:
    """A trader running in this process."""

    lifecycle: Lifecycle
    task: asyncio.Task[None]
    registry: CollectorRegistry

    @property
    def detail(self) -> dict[str, Any]:
        """Detail of its heartbeat."""
        return dict(self.lifecycle.heartbeat.detail)

    def metrics(self) -> str:
        """Its metrics page."""
        return generate_latest(self.registry).decode()


def trader_settings(
    redis_url: str,
    home: Path,
    broker: Broker,
    oracle: Oracle,
    guards: GuardConfig = NO_LIMITS,
    instance: str = "trader-1",
    **config: object,
) -> TraderSettings:
    quick: dict[str, Any] = {
        "broker_url": broker.url,
        "inference_url": oracle.url,
        "look_up_seconds": 1.0,
        "look_up_poll_seconds": 0.1,
        "lease_seconds": 4.0,
        "reconnect_max_seconds": 0.5,
        "flatten_retry_seconds": 0.2,
        # Long, since a busy test machine may answer late.
        "inference_deadline_ms": 5_000.0,
        **config,
    }
    return TraderSettings(
        redis_url=SecretStr(redis_url),
        home=home,
        instance=instance,
        trader=TraderConfig(**quick),
        guards=guards,
    )


@asynccontextmanager
async def running_trader(
    settings: TraderSettings, wall: Callable[[], float] = time.time
) -> AsyncIterator[Trader]:
    registry = CollectorRegistry()
    lifecycle = Lifecycle("trader", settings)
    task: asyncio.Task[None] = asyncio.ensure_future(compose(settings, registry, wall)(lifecycle))
    try:
        yield Trader(lifecycle, task, registry)
    finally:
        lifecycle.stop()
        await task
        await lifecycle.bus.close()


@contextmanager
def unwritable(home: Path) -> Iterator[None]:
    """The trader's ledger refuses every write inside the block, as on a full disk."""
    with closing(sqlite3.connect(home / "trader" / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
