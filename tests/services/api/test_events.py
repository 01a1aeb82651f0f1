"""GET /events: what happens, as it happens, and exactly what was missed."""

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


class Told:
    """The events of one response, read one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

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
async def listening(client: httpx.AsyncClient, last: str | None = None) -> AsyncIterator[Told]:
    headers = {"Last-Event-ID": last} if last else {}
    async with client.stream("GET", "/events", headers=headers) as response:
        yield Told(response)


def alert(name: str) -> AlertRaised:
    return AlertRaised(source="test", name=name)


async def test_an_entry_is_told_when_it_comes(system: System, bus: Bus) -> None:
    async with listening(system.client) as told:
        assert told.response.headers["content-type"].startswith("text/event-stream")
        await system.until(lambda: system.gateway.events.num_listeners == 1)
        await bus.append(ALERTS, alert("first"))
        event = await told.next()
        assert event["event"] == "alert"
        assert AlertRaised.model_validate_json(event["data"]).name == "first"
    await system.until(lambda: system.gateway.events.num_listeners == 0)


async def test_a_listener_that_comes_back_is_given_what_it_missed_and_no_more(
    system: System, bus: Bus
) -> None:
    async with listening(system.client) as told:
        await system.until(lambda: system.gateway.events.num_listeners == 1)
        await bus.append(ALERTS, alert("seen"))
        seen = await told.next()
    await bus.append(ALERTS, alert("missed"))
    await system.publish(3)
    await system.until(lambda: 3 in system.gateway.history.checkpoints)
    async with listening(system.client, seen["id"]) as told:
        events = [await told.next(), await told.next()]
        assert {event["event"] for event in events} == {"alert", "checkpoint"}
        missed = next(event for event in events if event["event"] == "alert")
        assert AlertRaised.model_validate_json(missed["data"]).name == "missed"


@pytest.mark.parametrize("last", ["nonsense", "1-1", ",".join(["99999999999999999999-0"] * 8), "1" * 400])
async def test_an_id_that_cannot_be_resumed_from_is_told_to_start_anew(system: System, last: str) -> None:
    async with listening(system.client, last) as told:
        assert (await told.next())["event"] == RESET


async def test_places_for_listeners_are_bounded(
    redis_server: RedisServer, bus: Bus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = GatewayConfig(max_event_clients=1, api_key=SecretStr(""))
    folder = tmp_path_factory.mktemp("bounded")
    async with running_system(redis_server.url, bus, folder, config) as one_place:
        async with listening(one_place.client):
            await one_place.until(lambda: one_place.gateway.events.num_listeners == 1)
            full = await one_place.client.get("/events")
            assert full.status_code == 429
            assert full.headers["content-type"] == "application/problem+json"
        await one_place.until(lambda: one_place.gateway.events.num_listeners == 0)
        async with listening(one_place.client) as told:
            assert told.response.status_code == 200


def published(version: int) -> CheckpointPublished:
    return CheckpointPublished(version=version, episode=0, update=0, weights_sha256="0" * 64)


async def collected(events: Events, last: str | None) -> list[str]:
    events.close()
    with events.listen(last) as happenings:
        return [event.name for event in [event async for event in happenings]]


async def test_entries_with_the_same_time_on_two_streams_are_both_told() -> None:
    events = Events(max_listeners=4)
    events.publish(CHECKPOINTS, "5-0", published(1))
    with events.listen(None) as first:
        events.publish(ALERTS, "5-1", alert("a"))
        last = (await anext(first)).event_id
    events.publish(CHECKPOINTS, "5-1", published(2))
    assert await collected(events, last) == ["checkpoint"]


async def test_what_is_no_longer_kept_is_a_reset() -> None:
    events = Events(max_listeners=4)
    with events.listen(None) as first:
        events.publish(ALERTS, "1-0", alert("a"))
        last = (await anext(first)).event_id
    for number in range(5_002):
        events.publish(ALERTS, f"2-{number}", alert("b"))
    assert await collected(events, last) == [RESET]


async def test_a_listener_too_slow_is_ended_and_can_come_back() -> None:
    events = Events(max_listeners=4)
    with events.listen(None) as slow:
        for number in range(1_500):
            events.publish(ALERTS, f"2-{number}", alert("b"))
        assert [event async for event in slow] == []
    assert events.num_listeners == 0


def test_a_full_house_refuses() -> None:
    events = Events(max_listeners=1)
    with events.listen(None), pytest.raises(TooManyListenersError), events.listen(None):
        pass
