"""The dashboard in a real browser: its contents, its updates, and its safety against hostile texts."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.api.routes.pages import ASSETS
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.manifest import Pointer
from shared.messages.schemas import AlertRaised
from shared.messages.streams import ALERTS, DECISIONS
from tests.services.api.browser import Page, browsing, find_browser
from tests.services.api.conftest import API_KEY, System
from tests.services.api.test_status import decision
from tests.shared.adapters.judgements import keep_report

FAN = {
    "resampling": "block",
    "fan_trades": [0, 20, 40],
    "fan_pips": [[0, level, 2 * level] for level in (-30, -10, 5, 20, 40)],
    "max_drawdown_pips": [10, 20, 30, 40, 50, 60],
    "probability_of_loss": 0.25,
    "probability_of_ruin": 0.0,
}
SUMMARY = {
    "trades": {"win_rate": 0.5, "profit_factor": 1.2},
    "daily": {"sharpe": 1.0},
    "honesty": {"deflated_sharpe": None},
    "sizing": {"safe_f": None},
    "monte_carlo": [FAN],
}


@pytest.fixture
def browser() -> str:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on PATH")
    return program


@pytest_asyncio.fixture
async def page(browser: str, tmp_path: Path) -> AsyncIterator[Page]:
    async with browsing(browser, tmp_path / "profile") as page:
        yield page


async def fill(system: System, bus: Bus) -> None:
    for version in (1, 2, 3):
        await system.publish(version, loss=3.0 - version, expectancy_pips=version - 2.0, win_rate=0.4)
    await system.report(2, "paper", reasons=("live: SQN 1.1, needs 2.5",))
    path = system.validation_root / "2.json"
    report = {**json.loads(path.read_text()), "summary": SUMMARY, "months": [], "realised_pips": [0, 9, 60]}
    keep_report(system.validation_root, report)  # with a matching record in the database
    for close in (187.0, 187.1, 187.2):
        await bus.append(DECISIONS, decision(close=close, action="HOLD", executed=False))
    await system.until(lambda: {1, 2, 3} <= set(system.gateway.history.checkpoints))
    await system.until(lambda: 2 in system.gateway.history.validations)


async def test_the_page_shows_the_system_and_updates_without_a_reload(
    system: System, bus: Bus, page: Page
) -> None:
    await fill(system, bus)
    await page.open(str(system.client.base_url))
    await page.until("document.querySelectorAll('canvas').length === 7")
    for text in ("passed paper", "live: SQN 1.1, needs 2.5", "chance of a loss", "validator", "HOLD"):
        await page.until(f"document.body.innerText.includes({text!r})")
    await page.until("document.querySelectorAll('#versions-table tbody tr').length === 3")
    await page.evaluate("window.loadedOnce = true")
    await bus.append(DECISIONS, decision(action="SELL", close=187.3, side=-1))
    await page.until("document.querySelector('#decision .action').textContent === 'SELL'")
    await system.publish(4, loss=0.5)
    await page.until("document.querySelector('#versions-table tbody').innerText.startsWith('4')")
    assert await page.evaluate("window.loadedOnce")
    assert page.errors == []
    origin = str(system.client.base_url)
    assert {url for url in page.requests if not url.startswith((origin, "data:"))} == set()


async def test_an_operator_needs_the_key_to_promote_a_version(system: System, bus: Bus, page: Page) -> None:
    await fill(system, bus)
    await page.open(str(system.client.base_url), dark=True)
    await page.until("document.querySelector('#versions-table button:enabled')")
    assert await page.evaluate("document.querySelectorAll('#versions-table button:enabled').length") == 1
    await page.evaluate("document.querySelector('#versions-table button:enabled').click()")
    await page.evaluate(
        "document.querySelector('#ask-key').value = 'wrong', document.querySelector('#ask-go').click()"
    )
    await page.until("document.querySelector('#ask-error').textContent.includes('API key')")
    assert system.store.pointer(Pointer.PROMOTED) is None
    await page.evaluate(
        f"document.querySelector('#ask-key').value = {json.dumps(API_KEY)},"
        "document.querySelector('#ask-go').click()"
    )
    await page.until("document.body.innerText.includes('promoted: paper')")
    system.store.point(Pointer.PROMOTED, 2, stage="unproven")
    await page.open(str(system.client.base_url), dark=True)
    await page.until("document.body.innerText.includes('unproven: no entries')")
    badge = "[...document.querySelectorAll('.tag')].find(tag => tag.textContent === 'unproven')"
    await page.until(badge)  # the table is rendered later than the line above it
    assert await page.evaluate(f"{badge}.className") == "tag"  # neither green nor red
    assert "passed no gate" in await page.evaluate(f"{badge}.title")
    system.store.point(Pointer.PROMOTED, 2, stage="paper")
    pointed = system.store.pointer(Pointer.PROMOTED)
    assert pointed is not None
    assert (pointed.version, pointed.stage) == (2, "paper")


async def test_texts_of_the_system_are_never_rendered_as_markup(system: System, bus: Bus, page: Page) -> None:
    hostile = "<img src=x onerror='window.ran = 1'><script>window.ran = 1</script>"
    await page.open(str(system.client.base_url))
    await page.until("document.documentElement.dataset.ready === 'yes'")
    await bus.append(ALERTS, AlertRaised(source=hostile, name=hostile, detail=hostile))
    await bus.append(DECISIONS, decision(reason=hostile, executed=False))
    await page.until("document.querySelector('#alert-log').innerText.includes('onerror')")
    await page.until("document.querySelector('#decision').innerText.includes('onerror')")
    assert await page.evaluate("window.ran") is None


async def test_the_reference_lists_every_route(system: System, page: Page) -> None:
    document = (await system.client.get("/openapi.json")).json()
    routes = sum(len(operations) for operations in document["paths"].values())
    await page.open(f"{system.client.base_url}/docs")
    await page.until(f"document.querySelectorAll('details').length === {routes}")
    assert page.errors == []


async def test_every_asset_is_served(system: System) -> None:
    for name, media_type in ASSETS.items():
        answer = await system.client.get(f"/assets/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(media_type)
        assert answer.content
