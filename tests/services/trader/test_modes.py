"""The complete trader in practice and live mode, against a broker that poses as OANDA's hosts."""

import contextlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.trader.config import GuardConfig, Mode, TraderConfig
from services.trader.settings import TraderSettings
from shared.adapters.oanda.records import format_time
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.manifest import Pointed, Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.environment.action import Action
from shared.errors import BrokerError, CheckpointError, SettingsError
from shared.runtime.redis_server import RedisServer
from tests.services.trader.oanda_hosts import LIVE, PRACTICE, posing_as_oanda
from tests.services.trader.parts import (
    BARS,
    FIRST_BAR,
    NO_LIMITS,
    Broker,
    Oracle,
    Trader,
    running_broker,
    running_oracle,
    running_trader,
    trader_settings,
)
from tests.services.trader.test_service import alerts_of, decisions_of
from tests.shared.adapters.versions.checkpoint_versions import fill
from tests.waiting import until

#: The replay sends the ticks of a minute at once, so a tick may be up to a minute old when it is read.
ANY_CLOCK = replace(NO_LIMITS, max_clock_skew_seconds=math.inf)


@dataclass
class Market:
    """A broker and a trader; the test advances the replay."""

    broker: Broker
    oracle: Oracle
    trader: Trader
    connected: list[str]

    async def bars(self, num: int) -> None:
        """Advance by this many bars, each after the trader has decided on the one before."""
        for _ in range(num):
            await self._decided()

    async def _decided(self) -> None:
        venue = self.broker.venue
        newest_s = int(BARS.time_s[venue.newest_complete_bar()])
        await until(lambda: self.trader.detail.get("last_bar_s") == newest_s)
        decisions = self.trader.detail["decisions"]
        with contextlib.suppress(BrokerError):
            venue.acknowledge(newest_s)
        await until(lambda: self.trader.detail["decisions"] > decisions)


@dataclass
class Hosts:
    """A broker that poses as OANDA, and the settings of a trader that uses it."""

    broker: Broker
    oracle: Oracle
    connected: list[str]
    settings: TraderSettings
    wrong_by_seconds: float

    @asynccontextmanager
    async def trading(self) -> AsyncIterator[Market]:
        """Run one trader."""
        # The trader's clock follows the replay, as the market time does, with an error chosen by the test.
        wall = lambda: self.broker.venue.now_ns / 1e9 + self.wrong_by_seconds  # noqa: E731
        async with running_trader(self.settings, wall) as trader:
            yield Market(self.broker, self.oracle, trader, self.connected)


@asynccontextmanager
async def hosts(
    mode: Mode,
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: dict[int, Action],
    guards: GuardConfig = ANY_CLOCK,
    wrong_by_seconds: float = 0.0,
) -> AsyncIterator[Hosts]:
    async with (
        running_broker(tmp_path, heartbeat_seconds=0.2, allowed_hosts=",".join((*PRACTICE, *LIVE))) as broker,
        running_oracle(script) as oracle,
        posing_as_oanda(broker, tmp_path, monkeypatch) as connected,
    ):
        settings = oanda_settings(mode, redis_server, tmp_path, broker, oracle, guards)
        yield Hosts(broker, oracle, connected, settings, wrong_by_seconds)


@asynccontextmanager
async def trading(
    mode: Mode,
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: dict[int, Action],
    guards: GuardConfig = ANY_CLOCK,
    wrong_by_seconds: float = 0.0,
    *,
    held: bool = False,
) -> AsyncIterator[Market]:
    async with hosts(mode, redis_server, tmp_path, monkeypatch, script, guards, wrong_by_seconds) as there:
        if held:
            await there.broker.buy()
        async with there.trading() as market:
            yield market


def oanda_settings(
    mode: Mode,
    redis_server: RedisServer,
    home: Path,
    broker: Broker,
    oracle: Oracle,
    guards: GuardConfig,
) -> TraderSettings:
    account = broker.venue.config.account
    paper = trader_settings(redis_server.url, home, broker, oracle, guards=guards)
    config: dict[str, Any] = {**vars(paper.trader), "broker_url": TraderConfig().broker_url}
    config["live_confirmation"] = account if mode is Mode.LIVE else ""
    return paper.model_copy(
        update={
            "mode": mode,
            "oanda_token": SecretStr("paper"),
            "oanda_account": account,
            "trader": TraderConfig(**config),
        }
    )


def assert_hosts(market: Market, api: str, stream: str) -> None:
    """Streams used the stream's host, everything else the API's host, and no other host was used."""
    assert set(market.connected) == {api, stream}
    streams = {host for host, path in market.broker.hosts if path.endswith("/stream")}
    others = {host for host, path in market.broker.hosts if not path.endswith("/stream")}
    assert (streams, others) == ({stream}, {api})
    assert not [path for _, path in market.broker.hosts if "replay" in path], "no acknowledgement to OANDA"


async def test_practice_trades_at_the_practice_hosts(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {FIRST_BAR + 1: Action.BUY, FIRST_BAR + 3: Action.CLOSE}
    async with trading(Mode.PRACTICE, redis_server, tmp_path, monkeypatch, script) as market:
        await market.bars(6)
        assert market.broker.posts == ["POST orders", "PUT close"]
        assert market.trader.detail["state"] == "active"
        assert_hosts(market, *PRACTICE)
    assert await alerts_of(bus) == []


async def test_live_uses_the_live_hosts_and_enters_only_on_a_live_version(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TraderSettings(home=tmp_path)
    store = fill(CheckpointStore(settings.checkpoint_root), 3)
    store.move(Pointer.PROMOTED, lambda _: Pointed(3, "live", ()))
    script = dict.fromkeys(range(FIRST_BAR, FIRST_BAR + 20), Action.BUY)
    async with trading(Mode.LIVE, redis_server, tmp_path, monkeypatch, script) as market:
        await market.bars(3)
        assert market.broker.posts == []
        assert market.trader.detail["guards"] == "version_not_live"
        market.oracle.stage = "live"
        await market.bars(3)
        assert market.broker.posts == ["POST orders"]
        assert market.broker.units == 1
        assert_hosts(market, *LIVE)
    assert "version_not_live" in [alert.name for alert in await alerts_of(bus)]


@pytest.mark.parametrize("damaged", [False, True], ids=["rolled back", "damaged"])
async def test_live_closes_its_position_without_a_version_promoted_to_live(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, damaged: bool
) -> None:
    """After a restart the trader must still manage the position that it entered."""
    store = fill(CheckpointStore(TraderSettings(home=tmp_path).checkpoint_root), 3)
    store.move(Pointer.PROMOTED, lambda _: Pointed(3, "live", ()))
    script = {FIRST_BAR + 1: Action.BUY, FIRST_BAR + 5: Action.CLOSE, FIRST_BAR + 7: Action.BUY}
    async with hosts(Mode.LIVE, redis_server, tmp_path, monkeypatch, script) as there:
        there.oracle.stage = "live"
        async with there.trading() as market:
            await market.bars(3)
            assert there.broker.units == 1
        if damaged:
            (Path(there.settings.checkpoint_root) / "promoted.json").write_text("?")
        else:
            store.move(Pointer.PROMOTED, lambda _: Pointed(3, "paper", ()))
        there.oracle.stage = "paper"
        async with there.trading() as market:
            await market.bars(6)
            assert there.broker.posts == ["POST orders", "PUT close"], "it closes, and does not enter again"
            assert market.trader.detail["guards"] == "version_not_live"
        with pytest.raises(CheckpointError if damaged else SettingsError, match=r"promoted|mode live needs"):
            async with there.trading() as market:
                await market.trader.task


async def test_a_stream_without_a_usable_line_ends_the_session(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's clock is an hour slow, so that every line seems to be from the future."""
    monkeypatch.setattr("services.trader.session.UNHEARD_SECONDS", 0.5)
    async with trading(
        Mode.PRACTICE, redis_server, tmp_path, monkeypatch, {}, wrong_by_seconds=-3_600.0
    ) as market:
        await until(lambda: "mm_trader_reconnects_total 2.0" in market.trader.metrics())


@pytest.mark.parametrize(("wrong_by", "shown"), [(20.0, "+20.0 s"), (-4.5, "-4.5 s")])
async def test_a_wrong_clock_stops_entries_but_not_exits(
    bus: Bus,
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong_by: float,
    shown: str,
) -> None:
    guards = replace(NO_LIMITS, max_clock_skew_seconds=2.0)
    script = {FIRST_BAR + 1: Action.CLOSE, **dict.fromkeys(range(FIRST_BAR + 2, FIRST_BAR + 9), Action.BUY)}
    async with trading(
        Mode.PRACTICE, redis_server, tmp_path, monkeypatch, script, guards, wrong_by, held=True
    ) as market:
        await until(lambda: "clock_skew" in str(market.trader.detail.get("guards")))
        await market.bars(3)
        assert market.broker.posts == ["PUT close"], "it closes, and does not enter"
    blocked = [made.action for made in await decisions_of(bus) if "clock_skew" in made.reason]
    assert "BUY" in blocked
    (raised,) = [alert for alert in await alerts_of(bus) if alert.name == "clock_skew"]
    assert raised.detail.startswith(f"this machine's clock is {shown}")


async def test_lines_from_the_future_are_refused_and_trading_goes_on(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {FIRST_BAR + 1: Action.BUY, FIRST_BAR + 5: Action.CLOSE}
    async with trading(Mode.PRACTICE, redis_server, tmp_path, monkeypatch, script) as market:
        await market.bars(3)
        assert market.broker.units == 1
        ahead_ns = market.broker.venue.now_ns + 86_400 * 1_000_000_000
        for _ in range(5):
            market.broker.send_line({"type": "HEARTBEAT", "time": format_time(ahead_ns)})
        await until(lambda: 'mm_trader_refused_total{reason="future"} 5.0' in market.trader.metrics())
        await market.bars(5)
        assert market.broker.units == 0, "the position closes"
        assert market.trader.detail["guards"] == ""
    assert [alert.name for alert in await alerts_of(bus)] == ["refused_future"]
