"""GET /events: new events, and exactly the missed ones after a lost connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from pydantic import SecretStr

from services.api.config import GatewayConfig
from services.api.events import RESET, Events, TooManyListenersError
from shared.adapters.streams.bus import Bus
from shared.messages.schemas import AlertRaised, CheckpointPublished
from shared.messages.streams import ALERTS, CHECKPOINTS
from shared.runtime.redis_server import RedisServer
from tests.services.api.conftest import System, running_system
from tests.waiting import PATIENCE_SECONDS


class EventReader:
    """Reads the events of one response one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def opened(self) -> None:
        """Wait for the comment that the gateway sends as soon as it listens."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._lines:
                if line == ": listening":
                    return
        raise AssertionError("the stream ended")

    async def next(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._lines:
                if not line and "event" in fields:
                    return fields
                name, _, value = line.partition(": ")
                if name:
                    fields[name] = value
        raise AssertionError("the stream ended")


@asynccontextmanager
async def listening(client: httpx.AsyncClient, last: str | None = None) -> AsyncIterator[EventReader]:
    headers = {"Last-Event-ID": last} if last else {}
    async with client.stream("GET", "/events", headers=headers) as response:
        reader = EventReader(response)
        await reader.opened()
        yield reader


async def status_of_events(client: httpx.AsyncClient) -> int:
    async with client.stream("GET", "/events") as response:
        return response.status_code


def alert(name: str) -> AlertRaised:
    return AlertRaised(source="test", name=name)


async def test_a_new_entry_is_sent_at_once(system: System, bus: Bus) -> None:
    async with listening(system.client) as reader:
        assert reader.response.headers["content-type"].startswith("text/event-stream")
        await bus.append(ALERTS, alert("first"))
        event = await reader.next()
        assert event["event"] == "alert"
        assert AlertRaised.model_validate_json(event["data"]).name == "first"


async def test_a_listener_that_reconnects_gets_exactly_the_missed_events(system: System, bus: Bus) -> None:
    async with listening(system.client) as reader:
        await bus.append(ALERTS, alert("seen"))
        seen = await reader.next()
    await bus.append(ALERTS, alert("missed"))
    await system.publish(3)
    await system.until(lambda: 3 in system.gateway.history.checkpoints)
    async with listening(system.client, seen["id"]) as reader:
        events = [await reader.next(), await reader.next()]
        assert {event["event"] for event in events} == {"alert", "checkpoint"}
        missed = next(event for event in events if event["event"] == "alert")
        assert AlertRaised.model_validate_json(missed["data"]).name == "missed"


@pytest.mark.parametrize("last", ["nonsense", "1-1", ",".join(["99999999999999999999-0"] * 8), "1" * 400])
async def test_an_unusable_last_event_id_causes_a_reset(system: System, last: str) -> None:
    async with listening(system.client, last) as reader:
        assert (await reader.next())["event"] == RESET


async def test_the_number_of_listeners_is_limited_and_a_closed_one_is_replaced(
    redis_server: RedisServer, bus: Bus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = GatewayConfig(max_event_clients=1, api_key=SecretStr(""))
    folder = tmp_path_factory.mktemp("bounded")
    async with running_system(redis_server.url, bus, folder, config) as small:
        async with listening(small.client):
            full = await small.client.get("/events")
            assert full.status_code == 429
            assert full.headers["content-type"] == "application/problem+json"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await status_of_events(small.client) == 429:  # noqa: ASYNC110  until the gateway notices
                await asyncio.sleep(0.01)


def published(version: int) -> CheckpointPublished:
    return CheckpointPublished(version=version, episode=0, update=0, weights_sha256="0" * 64)


async def collected(events: Events, last: str | None) -> list[str]:
    events.close()
    with events.listen(last) as stream:
        return [event.name async for event in stream]


async def test_entries_with_the_same_id_on_two_streams_are_both_sent() -> None:
    events = Events(max_listeners=4)
    events.publish(CHECKPOINTS, "5-0", published(1))
    with events.listen(None) as first:
        events.publish(ALERTS, "5-1", alert("a"))
        last = (await anext(first)).event_id
    events.publish(CHECKPOINTS, "5-1", published(2))
    assert await collected(events, last) == ["checkpoint"]


async def test_missed_events_that_are_no_longer_kept_cause_a_reset() -> None:
    events = Events(max_listeners=4)
    with events.listen(None) as first:
        events.publish(ALERTS, "1-0", alert("a"))
        last = (await anext(first)).event_id
    for number in range(5_002):
        events.publish(ALERTS, f"2-{number}", alert("b"))
    assert await collected(events, last) == [RESET]


async def test_a_listener_that_is_too_slow_is_closed_and_frees_its_slot() -> None:
    events = Events(max_listeners=1)
    with events.listen(None) as slow:
        for number in range(1_500):
            events.publish(ALERTS, f"2-{number}", alert("b"))
        assert [event async for event in slow] == []
    with events.listen(None):
        pass


def test_a_listener_beyond_the_limit_is_refused() -> None:
    events = Events(max_listeners=1)
    with events.listen(None), pytest.raises(TooManyListenersError), events.listen(None):
        pass
