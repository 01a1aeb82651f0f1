"""A service's signals, heartbeats and exit status. Most tests run a service in a process of its own."""

import asyncio
import json
import math
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from shared.adapters.streams.bus import Bus
from shared.errors import SettingsError
from shared.messages.codec import encode_trajectory
from shared.messages.streams import ALERTS, TRAINER_GROUP, TRAJECTORIES
from shared.runtime.lifecycle import Lifecycle
from shared.runtime.redis_server import RedisServer
from shared.runtime.settings import ServiceSettings, load
from tests.conftest import ROOT
from tests.shared.messages.trajectories import random_trajectory
from tests.waiting import PATIENCE_SECONDS

SERVICE = """
import asyncio, sys
from shared.errors import DataError, MuZeroError
from shared.messages.streams import TRAINER_GROUP, TRAJECTORIES
from shared.runtime.lifecycle import run_service
from shared.runtime.settings import ServiceSettings

async def main(lifecycle):
    kind = sys.argv[2]
    if kind == "user": raise DataError("bars.duckdb: no such data set")
    if kind == "fault": raise MuZeroError("it broke")
    if kind == "crash": raise RuntimeError("unforeseen")
    if kind.startswith("consume"):
        await anext(lifecycle.bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"))
        if kind == "consume and crash": raise RuntimeError("unforeseen")
        return
    if kind == "invalid heartbeat":
        lifecycle.report(figure=[])
        await asyncio.to_thread(sys.stdin.readline)
        lifecycle.report(figure=1)
    else:
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
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def until_ready(process: subprocess.Popen[str]) -> None:
    """Wait until the service's work has begun."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def until_logged(process: subprocess.Popen[str], event: str) -> None:
    assert process.stderr is not None
    while event not in process.stderr.readline():
        assert process.poll() is None


def outcome(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, str]]]:
    """Wait until a process exits; return its exit status and the log lines that were not read yet."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, [json.loads(line) for line in errors.splitlines()]


async def test_a_signal_shuts_the_service_down_and_deletes_its_heartbeat(
    redis_server: RedisServer, bus: Bus
) -> None:
    process = start(redis_server.url, "good")
    await asyncio.to_thread(until_ready, process)
    deadline = time.monotonic() + 60
    while not (beats := [b for b in await bus.heartbeats() if b.state == "running"]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert (beats[0].service, beats[0].instance, beats[0].pid) == ("probe", "one", process.pid)
    assert beats[0].detail == {"episode": 3}
    process.send_signal(signal.SIGTERM)
    status, lines = await asyncio.to_thread(outcome, process)
    assert status == 0
    assert [line["event"] for line in lines] == ["service_started", "service_stopping", "service_stopped"]
    assert await bus.heartbeats() == []


@pytest.mark.parametrize(("kind", "status"), [("user", 2), ("fault", 1), ("crash", 1)])
def test_a_failure_gives_an_exit_status_and_one_log_line(
    redis_server: RedisServer, kind: str, status: int
) -> None:
    returned, lines = outcome(start(redis_server.url, kind))
    assert returned == status
    errors = [line for line in lines if line["level"] == "error"]
    assert len(errors) == 1
    text = json.dumps(errors)
    assert {"user": "no such data set", "fault": "it broke", "crash": "unforeseen"}[kind] in text


def test_a_second_sigint_exits_at_once(redis_server: RedisServer) -> None:
    process = start(redis_server.url, "slow")
    until_ready(process)
    process.send_signal(signal.SIGINT)
    until_logged(process, "service_stopping")
    process.send_signal(signal.SIGINT)
    status, _ = outcome(process)
    assert status == 130


def test_a_repeated_sigterm_does_not_interrupt_a_graceful_shutdown(redis_server: RedisServer) -> None:
    """The system sends one when the parent exits, and `down` sends another."""
    process = start(redis_server.url, "brief")
    until_ready(process)
    process.send_signal(signal.SIGTERM)
    until_logged(process, "service_stopping")
    process.send_signal(signal.SIGTERM)
    status, lines = outcome(process)
    assert status == 0
    assert [line["event"] for line in lines] == ["service_stopped"]


def lifecycle_at(url: str) -> Lifecycle:
    return Lifecycle("probe", ServiceSettings(redis_url=SecretStr(url)))


async def test_a_stop_request_cancels_a_wait() -> None:
    lifecycle = lifecycle_at("redis://127.0.0.1:1/0")
    cancelled = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    waiting = asyncio.create_task(lifecycle.until_stopping(forever()))
    await asyncio.sleep(0)
    lifecycle.stop()
    await waiting
    assert cancelled.is_set()
    await lifecycle.sleep(3600)  # returns at once
    assert lifecycle.heartbeat.state == "stopping"


async def test_a_wait_returns_the_result_of_its_awaitable_or_raises_its_error() -> None:
    lifecycle = lifecycle_at("redis://127.0.0.1:1/0")

    async def fails() -> None:
        raise ValueError("failed")

    assert await lifecycle.until_stopping(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="failed"):
        await lifecycle.until_stopping(fails())


async def test_cancelling_a_wait_cancels_its_awaitable() -> None:
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


async def test_a_heartbeat_has_the_state_and_details_of_its_service() -> None:
    lifecycle = lifecycle_at("redis://127.0.0.1:1/0")
    assert state_of(lifecycle) == "starting"
    lifecycle.report(version=1)
    lifecycle.report(episode=2)
    assert state_of(lifecycle) == "running"
    assert lifecycle.heartbeat.detail == {"version": 1, "episode": 2}
    waiting = asyncio.create_task(lifecycle.bus.length(ALERTS))  # no server listens there
    while not lifecycle.bus.degraded:  # noqa: ASYNC110  a state, not an event
        await asyncio.sleep(0.01)
    assert state_of(lifecycle) == "degraded"
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    lifecycle.report(loss=math.nan, profit=math.inf)
    assert lifecycle.heartbeat.detail == {"version": 1, "episode": 2, "loss": None, "profit": None}
    lifecycle.stop()
    lifecycle.report(version=3)  # work that finishes after the stop
    assert state_of(lifecycle) == "stopping"


def test_a_heartbeat_interval_above_a_third_of_its_lifetime_is_refused() -> None:
    assert load(ServiceSettings, heartbeat_seconds=5.0).heartbeat_seconds == 5.0
    with pytest.raises(
        SettingsError, match=r"setting MM_HEARTBEAT_SECONDS is 15: .* less than or equal to 5"
    ):
        load(ServiceSettings, heartbeat_seconds=15)


async def test_an_invalid_heartbeat_is_logged_and_the_next_valid_one_is_sent(
    redis_server: RedisServer, bus: Bus
) -> None:
    process = start(redis_server.url, "invalid heartbeat")
    await asyncio.to_thread(until_logged, process, "heartbeat_failed")
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    await asyncio.to_thread(until_ready, process)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (beats := await bus.heartbeats()):  # noqa: ASYNC110  Redis has no event for it
            await asyncio.sleep(0.01)
    assert beats[0].detail == {"figure": 1}
    process.send_signal(signal.SIGTERM)
    status, _ = await asyncio.to_thread(outcome, process)
    assert status == 0
    assert await bus.heartbeats() == []


async def test_shutdown_waits_only_briefly_for_a_redis_that_never_answers() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as silent:
        process = start(f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}/0", "good")
        await asyncio.to_thread(until_ready, process)
        process.send_signal(signal.SIGTERM)
        status, lines = await asyncio.to_thread(outcome, process)
    assert status == 0
    *_, stopping, stopped = lines
    assert (stopping["event"], stopped["event"]) == ("service_stopping", "service_stopped")
    begin, end = (datetime.fromisoformat(line["timestamp"]) for line in (stopping, stopped))
    assert end - begin < timedelta(seconds=4)  # three steps of up to 1 s, and 1 s to spare


@pytest.mark.parametrize(("kind", "status", "deliveries"), [("consume", 0, 1), ("consume and crash", 1, 2)])
async def test_a_delivery_counts_against_an_entry_only_if_the_service_crashes(
    redis_server: RedisServer, bus: Bus, kind: str, status: int, deliveries: int
) -> None:
    entry_id = await bus.append(TRAJECTORIES, *encode_trajectory(random_trajectory(1)))
    await anext(bus.consume(TRAJECTORIES, TRAINER_GROUP, "trainer"))  # the delivery of a process that crashed
    process = start(redis_server.url, kind)
    returned, _ = await asyncio.to_thread(outcome, process)
    assert returned == status
    async with Redis.from_url(redis_server.url, protocol=2) as redis:
        (pending,) = await redis.xpending_range(TRAJECTORIES.key, TRAINER_GROUP, "-", "+", 10)
    assert pending["message_id"] == entry_id.encode()
    assert pending["times_delivered"] == deliveries
