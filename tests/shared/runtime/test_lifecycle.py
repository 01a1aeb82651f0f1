"""A service's life: signals, heartbeats, exit status; each in a process of its own where signals matter."""

import asyncio
import json
import math
import signal
import subprocess
import sys
import time

import pytest
import structlog
from pydantic import SecretStr
from redis.asyncio import Redis

from shared.adapters.streams.bus import Bus
from shared.errors import SettingsError
from shared.messages.codec import encode_trajectory
from shared.messages.streams import ALERTS, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle, _beat, _farewell
from shared.runtime.redis_server import RedisServer
from shared.runtime.settings import ServiceSettings, load
from tests.conftest import ROOT
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import PATIENCE_SECONDS

SERVICE = """
import asyncio, sys
from shared.errors import DataError, MuZeroError
from shared.runtime.lifecycle import run_service
from shared.runtime.settings import ServiceSettings

async def main(lifecycle):
    kind = sys.argv[2]
    if kind == "user": raise DataError("bars.duckdb: no such data set")
    if kind == "fault": raise MuZeroError("it broke")
    if kind == "crash": raise RuntimeError("unforeseen")
    lifecycle.report(episode=3)
    print("ready", flush=True)
    await lifecycle.sleep(600)
    if kind == "slow": await asyncio.sleep(600)
    if kind == "brief": await asyncio.sleep(0.3)

settings = ServiceSettings(redis_url=sys.argv[1], instance="one", heartbeat_seconds=0.05)
sys.exit(run_service("probe", settings, main))
"""


def start(url: str, kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE, url, kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, object]]]:
    """Exit status and what was logged."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, [json.loads(line) for line in errors.splitlines()]


async def test_a_signal_lets_the_service_finish_and_takes_its_heartbeat_away(
    redis_server: RedisServer, bus: Bus
) -> None:
    process = start(redis_server.url, "good")
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
    deadline = time.monotonic() + 60
    while not (beats := [b for b in await bus.heartbeats() if b.state == "running"]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert (beats[0].service, beats[0].instance, beats[0].pid) == ("probe", "one", process.pid)
    assert beats[0].detail == {"episode": 3}
    process.send_signal(signal.SIGTERM)
    status, lines = await asyncio.to_thread(ended, process)
    assert status == 0
    assert [line["event"] for line in lines] == ["service_started", "service_stopping", "service_stopped"]
    assert await bus.heartbeats() == []


@pytest.mark.parametrize(("kind", "status"), [("user", 2), ("fault", 1), ("crash", 1)])
def test_a_failure_is_told_by_the_exit_status_and_one_line(
    redis_server: RedisServer, kind: str, status: int
) -> None:
    returned, lines = ended(start(redis_server.url, kind))
    assert returned == status
    told = [line for line in lines if line["level"] == "error"]
    assert len(told) == 1
    text = json.dumps(told)
    assert {"user": "no such data set", "fault": "it broke", "crash": "unforeseen"}[kind] in text


def test_a_second_signal_stops_at_once(redis_server: RedisServer) -> None:
    process = start(redis_server.url, "slow")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    while "service_stopping" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    status, _ = ended(process)
    assert status == 130


def test_a_repeated_sigterm_does_not_cut_a_stop_off(redis_server: RedisServer) -> None:
    """The system sends one when the parent ends; whoever ends what is left sends another."""
    process = start(redis_server.url, "brief")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert process.stderr is not None
    process.send_signal(signal.SIGTERM)
    while "service_stopping" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGTERM)
    status, lines = ended(process)
    assert status == 0
    assert [line["event"] for line in lines] == ["service_stopped"]


def lifecycle_at(url: str) -> Lifecycle:
    return Lifecycle("probe", ServiceSettings(redis_url=SecretStr(url)))


async def test_waiting_ends_when_the_service_is_asked_to_stop() -> None:
    lifecycle = lifecycle_at("redis://127.0.0.1:1/0")
    given_up = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            given_up.set()

    waiting = asyncio.create_task(lifecycle.until_stopping(forever()))
    await asyncio.sleep(0)
    lifecycle.stop()
    await waiting
    assert given_up.is_set()
    await lifecycle.sleep(3600)  # returns at once from now on
    assert lifecycle.heartbeat.state == "stopping"


async def test_the_result_of_what_was_waited_for_and_its_errors_come_through() -> None:
    lifecycle = lifecycle_at("redis://127.0.0.1:1/0")

    async def fails() -> None:
        raise ValueError("told")

    assert await lifecycle.until_stopping(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="told"):
        await lifecycle.until_stopping(fails())


async def test_cancelling_the_waiter_cancels_what_it_waits_for() -> None:
    lifecycle = lifecycle_at("redis://127.0.0.1:1/0")
    inner = asyncio.ensure_future(asyncio.sleep(3600))
    waiting = asyncio.create_task(lifecycle.until_stopping(inner))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert inner.cancelled()


def state_of(lifecycle: Lifecycle) -> str:
    return lifecycle.heartbeat.state


async def test_a_service_says_how_it_is() -> None:
    lifecycle = lifecycle_at("redis://127.0.0.1:1/0")
    assert state_of(lifecycle) == "starting"
    lifecycle.report(version=1)
    lifecycle.report(episode=2)
    assert state_of(lifecycle) == "running"
    assert lifecycle.heartbeat.detail == {"version": 1, "episode": 2}
    waiting = asyncio.create_task(lifecycle.bus.length(ALERTS))  # nothing listens there
    while not lifecycle.bus.degraded:  # noqa: ASYNC110  a state, not an event
        await asyncio.sleep(0.01)
    assert state_of(lifecycle) == "degraded"
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    lifecycle.report(loss=math.nan, profit=math.inf)
    assert lifecycle.heartbeat.detail == {"version": 1, "episode": 2, "loss": None, "profit": None}
    lifecycle.stop()
    lifecycle.report(version=3)  # the last thing it was at is finished
    assert state_of(lifecycle) == "stopping"


def test_heartbeats_so_far_apart_that_one_late_ends_the_instance_are_refused() -> None:
    assert load(ServiceSettings, heartbeat_seconds=5.0).heartbeat_seconds == 5.0
    with pytest.raises(
        SettingsError, match=r"setting MM_HEARTBEAT_SECONDS is 15: .* less than or equal to 5"
    ):
        load(ServiceSettings, heartbeat_seconds=15)


async def test_a_heartbeat_that_cannot_be_said_is_told_of_and_the_next_one_is_said(
    redis_server: RedisServer, bus: Bus
) -> None:
    lifecycle = lifecycle_at(redis_server.url)
    lifecycle.report(figure=[])  # type: ignore[arg-type]  # by mistake
    settings = ServiceSettings(redis_url=SecretStr(redis_server.url), heartbeat_seconds=0.02)
    with structlog.testing.capture_logs() as told:
        beats = asyncio.create_task(_beat(lifecycle, settings))
        await asyncio.sleep(0.1)
        assert await bus.heartbeats() == []
        lifecycle.report(figure=1)
    assert {line["event"] for line in told} == {"heartbeat_failed"}
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await bus.heartbeats():  # noqa: ASYNC110  a state, not an event
            await asyncio.sleep(0.01)
    await _farewell(lifecycle, beats, in_order=True)
    assert await bus.heartbeats() == []


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("broken_connections")
async def test_a_farewell_waits_a_moment_for_a_redis_that_swallows_everything() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as silent:
        lifecycle = lifecycle_at(f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}/0")
        beats = asyncio.create_task(_beat(lifecycle, ServiceSettings()))
        await asyncio.sleep(0.05)
        lifecycle.stop()
        async with asyncio.timeout(4.0):  # a second, on a slow machine
            await _farewell(lifecycle, beats, in_order=True)
        assert beats.cancelled()


@pytest.mark.parametrize(("in_order", "deliveries"), [(True, 1), (False, 2)])
async def test_what_a_service_has_in_hand_counts_against_it_only_where_it_crashes(
    redis_server: RedisServer, bus: Bus, in_order: bool, deliveries: int
) -> None:
    await bus.append(TRAJECTORIES, *encode_trajectory(random_trajectory(1)))
    await anext(bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"))  # by a process that is no more
    lifecycle = lifecycle_at(redis_server.url)
    (entry,) = (await anext(lifecycle.bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"))).entries
    beats = asyncio.create_task(_beat(lifecycle, ServiceSettings()))
    await _farewell(lifecycle, beats, in_order=in_order)
    async with Redis.from_url(redis_server.url, protocol=2) as redis:
        (pending,) = await redis.xpending_range(TRAJECTORIES.key, TRAINER_GROUP, "-", "+", 10)
    assert pending["message_id"] == entry.entry_id.encode()
    assert pending["times_delivered"] == deliveries
