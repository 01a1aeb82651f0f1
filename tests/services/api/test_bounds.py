"""Keys are checked before bodies, wrong keys are limited, pages are bounded, weights are revalidated."""

import asyncio
import json
from pathlib import Path
from threading import Event

import pytest
from pydantic import SecretStr

from services.api import state
from services.api.config import AlertConfig, GatewayConfig
from services.api.events import Events, TooManyListenersError
from services.api.keys import MAX_WRONG_KEYS, WINDOW_SECONDS, WrongKeys
from services.api.routes.journal import MAX_PAGE_BYTES
from services.api.state import MAX_INSTANCES
from shared.adapters.streams.bus import Bus
from shared.errors import SettingsError
from shared.messages.schemas import AlertRaised, DeadLettered, Heartbeat, now
from shared.messages.streams import ALERTS, DEAD
from shared.runtime.redis_server import RedisServer
from tests.services.api.conftest import API_KEY, KEY, System, running_system
from tests.waiting import PATIENCE_SECONDS

PROBLEM = "application/problem+json"


async def test_a_post_without_the_key_is_refused_before_its_body_arrives(system: System) -> None:
    for key in ("", "X-API-Key: wrong\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
        head = f"POST /trader/kill HTTP/1.1\r\nHost: localhost\r\n{key}Content-Length: 9000\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(PATIENCE_SECONDS):
            # If the gateway awaited the body first, its deadline would answer 408.
            assert (await reader.readline()).split()[1] == b"401"
        writer.transport.abort()


async def test_wrong_keys_are_limited_logged_and_counted_and_the_right_one_passes(
    system: System, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(MAX_WRONG_KEYS):
        wrong = await system.client.post("/trader/kill", headers={"X-API-Key": "canary-guess"})
        assert wrong.status_code == 401
        assert "wrong" in wrong.json()["detail"]
    over = await system.client.post("/trader/kill", headers={"X-API-Key": "canary-guess"})
    assert over.status_code == 429
    assert over.headers["content-type"] == PROBLEM
    assert 1 <= int(over.headers["retry-after"]) <= WINDOW_SECONDS
    assert (await system.client.post("/trader/kill")).status_code == 401  # a missing key is not a wrong key
    assert (await system.client.post("/trader/kill", headers=KEY)).status_code == 200
    page = (await system.client.get("/metrics")).text
    counted = next(line for line in page.splitlines() if line.startswith("mm_gateway_wrong_keys_total"))
    assert float(counted.split()[1]) >= MAX_WRONG_KEYS + 1
    logged = "".join(capfd.readouterr())
    assert logged.count("wrong_api_key") == MAX_WRONG_KEYS
    assert "canary-guess" not in logged


def test_a_limit_on_wrong_keys_lasts_for_its_window_and_for_one_address() -> None:
    now = 0.0
    wrong = WrongKeys(lambda: now)
    for _ in range(MAX_WRONG_KEYS):
        assert wrong.note("a") == 0.0
        now += 1.0
    assert wrong.note("a") == WINDOW_SECONDS - MAX_WRONG_KEYS
    assert wrong.note("b") == 0.0
    now = WINDOW_SECONDS  # the first wrong key has left the window, the second has not
    assert [wrong.note("a"), wrong.note("a")] == [0.0, 1.0]


def test_remembered_addresses_are_bounded() -> None:
    wrong = WrongKeys(lambda: 0.0)
    for _ in range(MAX_WRONG_KEYS):
        wrong.note("first")
    assert wrong.note("first") > 0
    for number in range(1_001):
        wrong.note(str(number))
    assert wrong.note("first") == 0.0


@pytest.mark.parametrize("length", [1, 15])
def test_a_short_api_key_is_refused(length: int) -> None:
    with pytest.raises(SettingsError, match=f"gateway.api_key has {length} characters, expected 16 or more"):
        GatewayConfig(api_key=SecretStr("k" * length))
    GatewayConfig(api_key=SecretStr("k" * 16))
    GatewayConfig(api_key=SecretStr(""))


async def test_the_listeners_of_one_address_are_limited() -> None:
    events = Events(max_listeners=4, max_per_peer=2)
    with events.listen(None, "a"), events.listen(None, "a"):
        with pytest.raises(TooManyListenersError), events.listen(None, "a"):
            pass
        with events.listen(None, "b"), events.listen(None, "b"):
            pass
    with events.listen(None, "a"), events.listen(None, "a"):
        pass


async def test_kept_events_are_bounded_by_bytes() -> None:
    events = Events(max_listeners=1)
    for number in range(20_000):
        events.publish(ALERTS, f"1-{number}", AlertRaised(source="s", name="n", detail="d" * 2_000))
        if number == 100:
            early = events._id()
    with events.listen(early) as happenings:
        assert (await anext(happenings)).name == "reset"
    assert sum(len(event.data) for _, _, event in events._kept) <= 16_000_000


async def test_pages_are_bounded_by_bytes_and_continue_without_a_gap(system: System, bus: Bus) -> None:
    ids = []
    for number in range(240):
        size = 1 if number % 10 == 0 else 2_000
        letter = DeadLettered(stream="s", entry_id="1-0", reason="r" * size, excerpt="e" * 2 * size)
        ids.append(await bus.append(DEAD, letter))
    seen: list[str] = []
    before = ""
    num_pages = 0
    while num_pages < 20:
        num_pages += 1
        page = await system.client.get(f"/dead?limit=500{before}")
        assert len(page.content) < MAX_PAGE_BYTES + 200_000
        items = page.json()["items"]
        seen += [item["entry_id"] for item in items]
        if page.json()["next"] is None:
            break
        assert page.json()["next"] == items[-1]["entry_id"]
        before = f"&before={page.json()['next']}"
    assert num_pages == 2
    assert seen == ids[::-1]


async def test_a_page_of_small_entries_has_the_requested_number(system: System, bus: Bus) -> None:
    ids = [await bus.append(ALERTS, AlertRaised(source="s", name=str(number))) for number in range(40)]
    for limit in (1, 15, 16, 17, 39, 40, 41):
        page = (await system.client.get(f"/alerts?limit={limit}")).json()
        assert [item["entry_id"] for item in page["items"]] == ids[::-1][:limit]
        assert page["next"] == (ids[-limit] if limit < 40 else None)


async def test_weights_that_the_client_already_has_are_not_sent(system: System, tmp_path: Path) -> None:
    await system.publish(1)
    first = await system.client.get("/checkpoints/1/weights")
    assert first.headers["cache-control"] == "no-cache"
    again = {"If-None-Match": f'"other", {first.headers["etag"]}'}
    unchanged = await system.client.get("/checkpoints/1/weights", headers=again)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == first.headers["etag"]
    changed = await system.client.get("/checkpoints/1/weights", headers={"If-None-Match": '"other"'})
    assert changed.content == first.content


async def test_the_api_document_marks_the_routes_that_need_the_key(system: System) -> None:
    document = (await system.client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert ("security" in operation) == (method == "post"), path
    assert API_KEY not in json.dumps(document)


async def test_a_long_service_name_in_a_heartbeat_causes_no_server_error(
    redis_server: RedisServer, bus: Bus, tmp_path: Path
) -> None:
    alerts, config = AlertConfig(missing_seconds=0.0), GatewayConfig(redis_timeout_seconds=5.0)
    beat = Heartbeat(service="s" * 256, instance="1", state="degraded", pid=1, started_at=now())
    async with running_system(redis_server.url, bus, tmp_path, config, alerts) as system:
        await bus.beat(beat)
        status = await system.client.get("/status")
        assert status.status_code == 200
        assert [a["source"] for a in status.json()["alerts"]] == [beat.service]
        assert (await system.client.get("/metrics")).status_code == 200


async def test_a_store_that_hangs_delays_the_status_briefly_and_blocks_one_thread(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STORE_SECONDS", 0.1)
    num_reads, answer = 0, Event()

    def hang() -> list[int]:
        nonlocal num_reads
        num_reads += 1
        answer.wait()
        return [7]

    monkeypatch.setattr(system.gateway.store, "versions", hang)
    for _ in range(20):
        status = (await system.client.get("/status")).json()
        assert (status["state"], status["store"]) == ("degraded", "unavailable")
    assert num_reads <= 2  # one may belong to the gateway's periodic check
    answer.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        # The read that hung now ends in its thread.
        while (status := (await system.client.get("/status")).json())["store"] == "unavailable":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert status["pointers"]["newest"] == 7


async def test_the_number_of_instances_in_the_status_is_limited(system: System, bus: Bus) -> None:
    for number in range(300):
        state = "degraded" if number == 299 else "running"
        beat = {
            "service": "selfplay",
            "instance": f"w{number:03}",
            "state": state,
            "pid": 1,
            "started_at": now(),
        }
        await bus.beat(Heartbeat.model_validate(beat))
    status = (await system.client.get("/status")).json()
    selfplay = next(service for service in status["services"] if service["service"] == "selfplay")
    assert selfplay["num_instances"] == 300
    shown = [instance["instance"] for instance in selfplay["instances"]]
    assert shown == ["w299", *(f"w{number:03}" for number in range(MAX_INSTANCES - 1))]
    page = (await system.client.get("/metrics")).text
    assert 'mm_service_instances{service="selfplay"} 300.0' in page


async def test_the_end_of_a_replay_is_reported_and_raises_no_alert(system: System, bus: Bus) -> None:
    detail = {"state": "replay finished", "guards": "", "last_bar": "2024-05-15T12:56:00+00:00"}
    beat = {"service": "trader", "instance": "one", "state": "running", "pid": 1, "started_at": now()}
    await bus.beat(Heartbeat.model_validate({**beat, "detail": {**detail, "decisions": 912, "trades": 14}}))
    status = (await system.client.get("/status")).json()
    assert "2024-05-15 12:56:00 UTC: 912 decisions" in status["trader"]["replay_end"]
    assert "14 trades" in status["trader"]["replay_end"]
    assert not [alert for alert in status["alerts"] if alert["source"] == "trader"]
    await bus.beat(Heartbeat.model_validate({**beat, "detail": {**detail, "state": "active"}}))
    assert (await system.client.get("/status")).json()["trader"]["replay_end"] == ""
