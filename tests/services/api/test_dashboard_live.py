"""The dashboard during failures, in a real browser: it shows only what is known."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from pydantic import SecretStr

from services.api.config import AlertConfig, GatewayConfig
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.manifest import Pointer
from shared.messages.schemas import AlertRaised, Heartbeat, VersionPromoted
from shared.messages.streams import ALERTS, CONTROL, DECISIONS, PROMOTIONS
from shared.runtime.redis_server import RedisServer
from tests.services.api.browser import Page
from tests.services.api.conftest import API_KEY, System, running_system
from tests.services.api.test_dashboard import browser, page
from tests.services.api.test_status import beat, decision

__all__ = ["browser", "page"]  # fixtures

ALERTING = AlertConfig(start_seconds=0.0, missing_seconds=0.0, end_seconds=0.0, check_seconds=0.1)
HELD = {"control": "running", "state": "active", "side": 1, "units": 1000, "pnl_pips": -3.2, "guards": ""}
KILLED = {**HELD, "control": "killed", "state": "halted", "guards": "killed"}


@pytest_asyncio.fixture
async def system(redis_server: RedisServer, bus: Bus, tmp_path: Path) -> AsyncIterator[System]:
    config = GatewayConfig(api_key=SecretStr(API_KEY), redis_timeout_seconds=5.0, max_event_clients=1)
    async with running_system(redis_server.url, bus, tmp_path, config, ALERTING) as running:
        yield running


def trader(**detail: object) -> Heartbeat:
    return beat("trader", "trader").model_copy(update={"detail": detail})


def text(selector: str) -> str:
    return f"document.querySelector({selector!r}).innerText"


async def test_an_operator_kills_from_a_phone_and_sees_the_confirmation(
    system: System, bus: Bus, page: Page
) -> None:
    await bus.beat(trader(**HELD))
    await page.open(str(system.client.base_url), width=390, height=844)
    await page.until(f"{text('#trader-state')} === 'running'")
    # The button stays visible at the end of a long page.
    await page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    box = "document.querySelector('#kill').getBoundingClientRect()"
    assert await page.evaluate("window.scrollY") > 1000
    assert await page.evaluate(f"{box}.top >= 0 && {box}.bottom < 150")
    assert await page.evaluate(f"{box}.right <= 390 && document.documentElement.scrollWidth <= 390")
    # Missing services raise alerts, so the state is not green.
    assert "pill bad" in await page.evaluate("document.querySelector('#state').className")
    await page.evaluate("document.querySelector('#kill').click()")
    assert "long 1,000 units, open pnl -3.2 pips" in await page.evaluate(text("#ask-facts"))
    key = "document.querySelector('#ask-key').value"
    await page.evaluate(f"{key} = 'wrong', document.querySelector('#ask-go').click()")
    await page.until(f"{text('#ask-error')} === 'the API key is wrong'")
    await page.evaluate(f"{key} = {API_KEY!r}, document.querySelector('#ask-go').click()")
    await page.until(f"{text('#trader-state')}.includes('kill sent at')")
    shown = await page.evaluate(text("#trader-state"))
    assert shown.endswith("by gateway, not confirmed: it reports running")
    assert await page.evaluate("document.querySelector('#trader-state').className") == "pill warn"
    assert await page.evaluate(text("#kill")) == "Kill sent"
    ordered = await bus.newest(CONTROL, name="trader")
    assert ordered is not None
    assert ordered.state == "killed"
    await bus.beat(trader(**KILLED))
    await page.until(f"{text('#trader-state')} === 'killed, but the position is still open (long)'")
    await bus.beat(trader(**{**KILLED, "side": 0}))
    await page.until(f"{text('#trader-state')}.endsWith('has not confirmed yet that no position is open')")
    await bus.beat(trader(**{**KILLED, "side": 0, "flat_at": 7}))
    await page.until(f"{text('#trader-state')}.endsWith('by gateway, no position')")
    assert await page.evaluate(text("#kill")) == "Killed"
    await bus.clear_heartbeat("trader", "trader")
    await page.until(f"{text('#trader-state')}.startsWith('unknown since')")
    tile = "[...document.querySelectorAll('.tile')].find((t) => t.innerText.startsWith('Position')).innerText"
    assert (await page.evaluate(tile)).split("\n")[1] == "?"


async def test_a_service_that_goes_missing_and_returns_is_announced_once(
    system: System, bus: Bus, page: Page
) -> None:
    missing = "document.querySelector('#alerts [data-key=\"broker: service missing\"]')"
    await page.open(str(system.client.base_url))
    await page.until(f"{missing} && {text('#announcer')}.includes('alert: broker: service missing')")
    # Unchanged elements are not rebuilt: selection, focus and the position of a screen reader survive.
    await page.evaluate(
        f"window.kept = {missing}, window.tile = document.querySelector('.tile .value').firstChild,"
        "getSelection().selectAllChildren(kept.querySelector('b')),"
        "window.spoken = 0, new MutationObserver((changes) => { window.spoken += changes.length; })"
        ".observe(document.querySelector('#announcer'), { childList: true, subtree: true })"
    )
    seen = await page.evaluate(text("#clock"))
    await page.until(f"{text('#clock')} !== {seen!r}")
    assert await page.evaluate(f"window.kept === {missing} && window.tile.isConnected")
    assert await page.evaluate("String(getSelection())") == "broker: service missing"
    assert await page.evaluate("window.spoken") == 0
    await bus.beat(beat("broker", "broker"))
    await page.until(f"!{missing} && {text('#announcer')} === 'over: broker: service missing'")
    listed = "document.querySelector('#alert-log [data-key=\"broker: service missing\"]')"
    await page.until(f"{listed}.innerText.includes('ended')")
    assert "began" in await page.evaluate(f"{listed}.innerText")


async def test_a_condition_of_a_killed_trader_has_no_known_end(system: System, bus: Bus, page: Page) -> None:
    began = AlertRaised(source="trader", name="stale_price", detail="d", phase="began")
    await bus.append(ALERTS, began)
    await bus.append(ALERTS, began.model_copy(update={"name": "trader_killed", "alert_id": uuid4()}))
    early = beat("trader", "trader").model_copy(
        update={"started_at": began.created_at - timedelta(seconds=9)}
    )
    await bus.beat(early)
    await page.open(str(system.client.base_url))
    line = "document.querySelector('#alert-log [data-key=\"trader: stale price\"]').innerText"
    killed = "document.querySelector('#alert-log [data-key=\"trader: trader killed\"]').innerText"
    await page.until(f"{line}.includes('since ')")
    await bus.clear_heartbeat("trader", "trader")
    await page.until(f"{line}.includes('its end is not known')")
    assert "since " in await page.evaluate(killed)  # announced by the gateway
    await bus.beat(beat("trader", "trader"))  # its successor
    await page.until("document.querySelector('#services').innerText.includes('trader')")
    assert "its end is not known" in await page.evaluate(line)


async def test_alerts_of_one_kind_are_grouped_and_a_zoomed_chart_stays_zoomed(
    system: System, bus: Bus, page: Page
) -> None:
    for n in range(30):
        await bus.append(ALERTS, AlertRaised(source="trader", name="old_bar", detail=f"bar {n}"))
        await bus.append(DECISIONS, decision(close=100.0 + n))
    await page.open(str(system.client.base_url))
    line = "document.querySelector('#alert-log [data-key=\"trader: old bar\"]').innerText"
    await page.until(f"{line}.includes('30 times, last') && {line}.endsWith('bar 29')")
    await page.until(f"{text('#price-note')}.startsWith('last 30 bars')")
    plot = await page.evaluate(
        "(() => { const over = document.querySelector('#chart-price .u-over');"
        "over.scrollIntoView({block: 'center'});"
        "const { left, top, width, height } = over.getBoundingClientRect();"
        "return { left, width, y: top + height / 2 }; })()"
    )

    async def mouse(kind: str, share: float) -> None:
        x = plot["left"] + share * plot["width"]
        buttons = 0 if kind == "mouseReleased" else 1
        await page.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=plot["y"],
            button="left",
            buttons=buttons,
            clickCount=1,
        )

    async def close_at_the_left() -> float:
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=plot["left"] + 40, y=plot["y"])
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=plot["left"] + 1, y=plot["y"])
        return float(await page.evaluate(text("#chart-price .legend b")))

    assert await close_at_the_left() == 100
    await mouse("mousePressed", 0.5)
    await mouse("mouseMoved", 0.7)
    await mouse("mouseMoved", 0.9)
    await mouse("mouseReleased", 0.9)
    assert await close_at_the_left() == pytest.approx(115, abs=1)
    await bus.append(DECISIONS, decision(close=130.0))
    await page.until(f"{text('#price-note')}.startsWith('last 31 bars')")
    assert await close_at_the_left() == pytest.approx(115, abs=1)


@dataclass
class Proxy:
    """A proxy of the gateway that can answer 502 for its event stream."""

    upstream: int
    bad_gateway: bool = False
    streams: list[asyncio.StreamWriter] = field(default_factory=list)
    handlers: set[asyncio.Task[None]] = field(default_factory=set)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]
        self.handlers.add(task)
        try:
            # Either side may disconnect.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self.handlers.discard(task)
            await _close(writer)

    async def stop(self) -> None:
        """Cancel unfinished answers, and wait until their connections are closed."""
        handlers = list(self.handlers)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /events ") and self.bad_gateway:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        reader_upstream, writer_upstream = await asyncio.open_connection("127.0.0.1", self.upstream)
        if head.startswith(b"GET /events "):
            self.streams += [writer, writer_upstream]
        try:
            writer_upstream.write(head.replace(b"keep-alive", b"close"))
            while data := await reader_upstream.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            await _close(writer_upstream)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, which the other side may have reset, and wait until it is closed."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_the_event_stream_reconnects_after_a_429_and_a_502(
    system: System, bus: Bus, page: Page
) -> None:
    proxy = Proxy(system.port)
    async with await asyncio.start_server(proxy.handle, "127.0.0.1", 0) as server:
        with system.gateway.events.listen(None, "another"):  # uses the only slot
            await page.open(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await page.until(f"{text('#stale')}.startsWith('Events do not arrive')")
            assert await page.evaluate("document.body.className") == "is-unheard"
        await page.until("document.querySelector('#stale').hidden")
        await bus.append(DECISIONS, decision(action="SELL"))
        await page.until(f"{text('#decision .action')} === 'SELL'")
        proxy.bad_gateway = True
        for writer in proxy.streams:
            writer.transport.abort()
        await page.until("!document.querySelector('#stale').hidden")
        proxy.bad_gateway = False
        await page.until("document.querySelector('#stale').hidden")
        await bus.append(DECISIONS, decision(action="CLOSE"))
        await page.until(f"{text('#decision .action')} === 'CLOSE'")
        server.close()
        await page.until(f"{text('#stale')}.startsWith('The gateway does not answer')")
        await page.until(f"{text('#trader-state')}.startsWith('unknown since')")
        await proxy.stop()


async def test_the_seventh_tab_works_since_hidden_tabs_close_their_stream(
    system: System, bus: Bus, page: Page
) -> None:
    """A browser opens at most six connections to one address; this gateway allows one event stream."""
    async with AsyncExitStack() as tabs:
        opened = [page]
        for _ in range(6):
            opened.append(await tabs.enter_async_context(opened[-1].tab()))
        for tab in opened:
            await tab.call("Page.bringToFront")
            await tab.open(str(system.client.base_url))
            await tab.until("document.querySelector('#stale').hidden && document.querySelector('.tile')")
        await bus.append(DECISIONS, decision(action="SELL"))
        await opened[-1].until(f"{text('#decision .action')} === 'SELL'")
        await page.call("Page.bringToFront")
        await page.until(f"{text('#decision .action')} === 'SELL'")


async def test_a_page_opened_without_redis_reads_the_rest_when_redis_returns(
    own_redis: RedisServer, tmp_path: Path, page: Page
) -> None:
    bus = Bus(own_redis.url)
    config = GatewayConfig(api_key=SecretStr(API_KEY), redis_timeout_seconds=1.0)
    alert = AlertRaised(source="trader", name="old_bar", detail="bar 7")
    async with running_system(own_redis.url, bus, tmp_path, config, ALERTING) as system:
        for _ in range(2):  # delivered twice
            await bus.append(ALERTS, alert)
        own_redis.stop()
        await page.open(str(system.client.base_url))
        await page.until(
            f"{text('#state')}.includes('Redis has not answered') && {text('#alert-log')} === 'not read yet'"
        )
        await page.until(f"{text('#decision')} === 'not read yet'")
        own_redis.start()
        await page.until(f"{text('#alert-log')}.includes('bar 7')")
        assert "times" not in await page.evaluate(text("#alert-log"))
        await page.until(f"{text('#decision')} === 'the trader has not decided yet'")
    await bus.close()


async def test_a_page_that_cannot_read_anything_makes_no_claims(system: System, page: Page) -> None:
    await page.call("Network.enable")
    read = ("status", "events", "checkpoints?*", "decisions?*", "trades?*", "alerts?*")
    await page.call("Network.setBlockedURLs", urls=[f"*/{path}" for path in read])
    await page.open(str(system.client.base_url))
    await page.until("!document.querySelector('#stale').hidden")
    shown = await page.evaluate("document.querySelector('main').innerText")
    assert shown.count("not read yet") == 15
    for claim in ("none", "no version", "no trade", "the trainer", "the trader"):
        assert claim not in shown
    assert "./run kill" in await page.evaluate(text("#kill-why"))
    await page.evaluate("document.querySelector('#kill').click()")
    assert await page.evaluate(text("#ask-facts")) == "Position: not known."


async def test_the_position_is_from_the_heartbeat_and_not_from_the_last_decision(
    system: System, bus: Bus, page: Page
) -> None:
    await bus.append(DECISIONS, decision(action="HOLD", side=0))
    await bus.beat(trader(state="connecting", control="killed", kill_file=True))
    await page.open(str(system.client.base_url))
    await page.until(f"{text('#decision')}.includes('flat')")
    tile = "[...document.querySelectorAll('.tile')].find((t) => t.innerText.startsWith('Position')).innerText"
    assert (await page.evaluate(tile)).split("\n")[1:] == [
        "?",
        "killed by its kill file, but it is not known whether a position is open",
    ]


async def test_only_the_promoted_version_is_shown_as_promoted(system: System, bus: Bus, page: Page) -> None:
    """The page does not read old versions again, so it must notice that one lost the promotion."""
    for version in range(25):
        await system.publish(version)
    system.store.point(Pointer.PROMOTED, 1, stage="paper")
    await page.open(str(system.client.base_url))
    promoted = "[...document.querySelectorAll('tr.promoted')].map((row) => row.dataset.key).join()"
    await page.until(f"{promoted} === '1'")
    system.store.point(Pointer.PROMOTED, 24, stage="paper")
    await bus.append(PROMOTIONS, VersionPromoted(version=24, stage="paper", by="t"))
    await page.until(f"{promoted} === '24'")
    system.store.point(Pointer.PROMOTED, 24, stage="live")
    await page.until("document.querySelector('tr.promoted').innerText.includes('promoted: live')")


async def test_an_unreadable_report_replaces_the_report_of_another_version(
    system: System, page: Page
) -> None:
    for version in (1, 2):
        await system.publish(version)
        await system.report(version, "paper", reasons=(f"live: reason {version}",))
    (system.validation_root / "1.json").write_text("{")
    await page.open(str(system.client.base_url))
    await page.until(f"{text('#verdict')}.includes('reason 2')")
    await page.evaluate(
        "document.querySelector('#validated').value = 1,"
        "document.querySelector('#validated').dispatchEvent(new Event('change'))"
    )
    await page.until(f"{text('#verdict')}.includes('reason 1')")
    await page.until(f"{text('#chart-fan')}.includes('the report cannot be read: the report is damaged')")


async def test_without_a_key_the_page_explains_why_the_kill_switch_is_off(
    redis_server: RedisServer, bus: Bus, tmp_path: Path, page: Page
) -> None:
    config = GatewayConfig(redis_timeout_seconds=5.0)
    async with running_system(redis_server.url, bus, tmp_path, config, ALERTING) as system:
        await page.open(str(system.client.base_url))
        await page.until("document.querySelector('#kill').disabled")
        assert "no API key is set (MM_GATEWAY__API_KEY)" in await page.evaluate(text("#kill-why"))
        assert "./run kill" in await page.evaluate(text("#kill-why"))
