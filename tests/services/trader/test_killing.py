"""The kill switch end to end: the trader, its kill file and `kill`, while each other part fails in turn."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cli.kill import kill
from services.trader.kill_switch import KillSwitch, StatusFile, TraderStatus
from shared.adapters.streams.bus import Bus
from shared.environment.action import Action
from shared.errors import ServiceError
from shared.messages.schemas import ControlIssued
from shared.messages.streams import CONTROL
from shared.runtime.ports import free_port
from shared.runtime.redis_server import RedisServer
from tests.services.trader.parts import (
    BARS,
    FIRST_BAR,
    Broker,
    Forged,
    Oracle,
    running_broker,
    running_oracle,
    running_trader,
    trader_settings,
    unwritable,
)
from tests.waiting import PATIENCE_SECONDS, until

ENTRY_BAR = FIRST_BAR + 1

#: Last status of a trader that has exited.
_DEAD = TraderStatus(
    pid=2**31 - 1,  # larger than any process id
    mode="paper",
    api_url="",
    account="101-001-0000001-001",
    instrument="GBP_JPY",
    state="active",
    control="killed",
    kill_id="k",
    units=0,
    unknown_orders=0,
    flat_at=7,
    detail="",
)


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A replay that stops after the entry, so that a close that waited for a new bar would never be sent."""
    async with running_broker(tmp_path, stop=FIRST_BAR + 50) as running:
        acknowledge = running.venue.acknowledge

        def until_entry(time_s: int) -> None:
            if time_s < BARS.time_s[ENTRY_BAR]:
                acknowledge(time_s)

        running.venue.acknowledge = until_entry  # type: ignore[method-assign]
        yield running


@pytest_asyncio.fixture
async def oracle() -> AsyncIterator[Oracle]:
    """Decides to buy at every bar from `ENTRY_BAR` on."""
    async with running_oracle(dict.fromkeys(range(ENTRY_BAR, FIRST_BAR + 50), Action.BUY)) as running:
        yield running


@pytest.fixture
def kill_it(
    tmp_path: Path,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> "Kill":
    monkeypatch.setenv("MM_HOME", str(tmp_path))
    monkeypatch.setenv("MM_REDIS_URL", redis_server.url)
    monkeypatch.setenv("OANDA_TOKEN", "paper")
    return Kill(capsys)


class Kill:
    """Runs `micro-muzero kill` in its own thread."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(
        self, *, reason: str = "test", seconds: float = 20.0, at_broker: bool = False, resume: bool = False
    ) -> str:
        """Run it; returns its output."""
        self._capsys.readouterr()
        await asyncio.to_thread(kill, reason=reason, timeout=seconds, at_broker=at_broker, resume=resume)
        return self._capsys.readouterr().out


async def control(bus: Bus, state: str) -> None:
    order = ControlIssued.model_validate({"target": "trader", "state": state, "by": "test"})
    await bus.announce(CONTROL, order, name="trader")


def status(home: Path) -> dict[str, object]:
    return dict(json.loads((home / "trader" / "state.json").read_text()))


async def test_a_kill_through_redis_repeats_closes_that_fail(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, broker: Broker, oracle: Oracle
) -> None:
    """No bar closes, so every close is sent for the same bar."""
    settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
    async with running_trader(settings) as trader:
        await until(lambda: trader.detail.get("side") == 1)
        broker.answers = [Forged.TIMED_OUT_UNEXECUTED, Forged.BROKEN_OFF_UNEXECUTED, Forged.HALTED]
        await control(bus, "killed")
        await until(lambda: broker.units == 0)
        await until(lambda: status(tmp_path)["flat_at"] is not None)
        assert not trader.task.done()
        assert status(tmp_path)["units"] == 0
        last = broker.venue.exchange.account.last_id
        await until(lambda: trader.detail["flat_at"] == last == status(tmp_path)["flat_at"])
    assert broker.posts == ["POST orders", *["PUT close"] * 4]


async def test_kill_prints_the_traders_confirmation_and_resume_lifts_the_kill(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, broker: Broker, oracle: Oracle, kill_it: Kill
) -> None:
    async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader:
        await until(lambda: trader.detail.get("side") == 1)
        output = await kill_it()
        assert broker.units == 0
        transaction = broker.venue.exchange.account.last_id
        assert f"confirmed: flat at transaction {transaction} (trader" in output
        assert output.index("sent: ") < output.index("confirmed: ")
        newest = await bus.newest(CONTROL, name="trader")
        assert newest is not None
        assert newest.state == "killed"
        assert trader.detail["control"] == "killed"
        output = await kill_it(resume=True)
        assert output.index("lifted") < output.index("confirmed: the trader may trade")
        assert status(tmp_path)["control"] == "running"
        await until(lambda: trader.detail["control"] == "running")


async def test_a_resume_that_no_trader_confirms_fails(bus: Bus, tmp_path: Path, kill_it: Kill) -> None:
    StatusFile(tmp_path / "trader").write(_DEAD)
    assert "no trader is running here" in await kill_it(resume=True)
    for kill_id in ("k", None):  # the trader still sees the kill file, or the kill through Redis
        StatusFile(tmp_path / "trader").write(replace(_DEAD, pid=os.getpid(), kill_id=kill_id))
        with pytest.raises(ServiceError, match=r"not confirmed: the trader .* within 0\.5 s"):
            await kill_it(seconds=0.5, resume=True)


@pytest.mark.parametrize("reason", ["x" * 3_000, "\udcff"], ids=["long", "not UTF-8"])
async def test_a_kill_is_carried_out_whatever_its_reason_text(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, broker: Broker, kill_it: Kill, reason: str
) -> None:
    await broker.buy()
    StatusFile(tmp_path / "trader").write(replace(_DEAD, api_url=broker.url))
    assert "confirmed: flat" in await kill_it(reason=reason, seconds=0.5)
    assert broker.units == 0
    newest = await bus.newest(CONTROL, name="trader")
    assert newest is not None
    assert newest.state == "killed"


async def test_a_kill_on_a_full_disk_closes_without_waiting_for_the_trader(
    tmp_path: Path, broker: Broker, kill_it: Kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    await broker.buy()
    monkeypatch.setattr(KillSwitch, "engage", full)
    StatusFile(tmp_path / "trader").write(replace(_DEAD, api_url=broker.url))
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(ServiceError, match="flat, but the kill file could not be written"):
            await kill_it(seconds=600.0)
    assert broker.units == 0


async def test_a_standby_obeys_the_resume_that_it_missed_and_leaves_the_position(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, broker: Broker, oracle: Oracle
) -> None:
    """Its ledger has the kill, but not the resume, which was ordered while it was down."""
    await control(bus, "killed")
    second = trader_settings(redis_server.url, tmp_path / "two", broker, oracle, sync_seconds=0.1)
    async with running_trader(second) as trader:
        await until(lambda: trader.detail.get("flat_at") is not None)
    await control(bus, "running")
    first = trader_settings(redis_server.url, tmp_path, broker, oracle)
    async with running_trader(first) as trader:
        await until(lambda: broker.units == 1)
        async with running_trader(second) as waiting:
            await until(lambda: waiting.detail.get("state") == "standby")
            await until(lambda: (tmp_path / "two" / "trader" / "state.json").is_file())
            await until(lambda: status(tmp_path / "two")["state"] == "standby")
            assert status(tmp_path / "two")["control"] == "running"
        assert broker.units == 1
    assert broker.posts == ["POST orders"]


async def test_kill_works_without_redis_during_a_look_up(
    tmp_path: Path, broker: Broker, oracle: Oracle, kill_it: Kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is executed and answered with 504; Redis is killed during the look-up."""
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    monkeypatch.setenv("MM_REDIS_URL", server.url)
    try:
        settings = trader_settings(server.url, tmp_path, broker, oracle, look_up_seconds=600.0)
        async with running_trader(settings) as trader:
            await until(lambda: trader.detail.get("state") == "active")
            broker.answers = [Forged.TIMED_OUT_EXECUTED]
            await until(lambda: len(broker.posts) == 1)
            server.stop(kill=True)
            output = await kill_it()
            assert "Redis does not answer" in output
            assert "confirmed: flat at transaction" in output
            assert broker.units == 0
            assert not trader.task.done()
    finally:
        server.stop()


@pytest.mark.parametrize("known", [True, False], ids=["known", "not in the ledger"])
async def test_a_kill_closes_while_the_ledger_cannot_be_written(
    redis_server: RedisServer, bus: Bus, tmp_path: Path, broker: Broker, oracle: Oracle, *, known: bool
) -> None:
    async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader:
        await until(lambda: broker.units == 1)
        if known:
            await until(lambda: trader.detail["side"] == 1)
        with unwritable(tmp_path):
            KillSwitch(tmp_path / "trader").engage("test")
            await until(lambda: broker.units == 0)
            assert not trader.task.done()
        await until(lambda: trader.detail["flat_at"] is not None)


async def test_kill_closes_at_the_broker_after_the_trader_crashed(
    redis_server: RedisServer, bus: Bus, tmp_path: Path, broker: Broker, oracle: Oracle, kill_it: Kill
) -> None:
    """SIGKILL between the unanswered close and the next one; `kill` then closes at the broker itself."""
    async with trader_process(
        redis_server.url, tmp_path, broker, oracle, MM_TRADER__FLATTEN_RETRY_SECONDS="9"
    ) as trader:
        await until(lambda: broker.units == 1, seconds=60)
        broker.answers = [Forged.TIMED_OUT_UNEXECUTED] * 2
        KillSwitch(tmp_path / "trader").engage("test")
        await until(lambda: "PUT close" in broker.posts)
        trader.send_signal(signal.SIGKILL)
        await trader.wait()
    assert broker.units == 1
    output = await kill_it(seconds=1.0)
    assert "closing at the broker" in output
    assert f"flat at transaction {broker.venue.exchange.account.last_id}, account" in output
    assert broker.units == 0


async def test_a_killed_trader_closes_without_redis_and_lease_after_a_restart(
    tmp_path: Path, redis_server: RedisServer, bus: Bus, broker: Broker, oracle: Oracle, kill_it: Kill
) -> None:
    """The kill came through Redis and is recorded in the ledger only; the restarted trader has no Redis."""
    settings = trader_settings(redis_server.url, tmp_path, broker, oracle, flatten_retry_seconds=5.0)
    async with running_trader(settings) as trader:
        await until(lambda: trader.detail.get("side") == 1)
        broker.answers = [Forged.TIMED_OUT_UNEXECUTED]
        await control(bus, "killed")
        await until(lambda: "PUT close" in broker.posts)
    assert broker.units == 1
    nowhere = trader_settings(f"redis://127.0.0.1:{free_port()}", tmp_path, broker, oracle)
    async with running_trader(nowhere) as trader:
        await until(lambda: broker.units == 0)
        assert trader.detail["state"] == "standby"
        output = await kill_it()
        assert f"confirmed: flat at transaction {broker.venue.exchange.account.last_id} (trader" in output
    async with running_trader(settings) as trader:
        await until(lambda: trader.detail.get("control") == "killed")
        await until(lambda: trader.detail.get("flat_at") is not None)
        assert trader.detail["side"] == 0
    assert broker.posts.count("POST orders") == 1, "no entry while it is killed"


@pytest.mark.parametrize("through", ["file", "redis"])
async def test_a_kill_is_carried_out_before_the_account_was_ever_read(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, broker: Broker, oracle: Oracle, through: str
) -> None:
    """With a new home and an unreadable snapshot no session begins, but the position is closed."""
    await broker.buy()

    def damaged(answer: dict[str, Any]) -> dict[str, Any]:
        answer["account"]["trades"].append({"id": "x"})
        return answer

    account = broker.venue.config.account
    broker.forged["/" + account] = damaged
    settings = trader_settings(redis_server.url, tmp_path, broker, oracle)
    async with running_trader(settings.model_copy(update={"oanda_account": account})) as trader:
        await until(lambda: trader.detail.get("state") == "reconnecting")
        if through == "file":
            KillSwitch(tmp_path / "trader").engage("test")
        else:
            await control(bus, "killed")
        await until(lambda: broker.units == 0)
        assert status(tmp_path)["flat_at"] is None, "the broker has not shown the account flat"
        broker.forged.clear()
        await until(lambda: trader.detail.get("control") == "killed")
        await until(lambda: status(tmp_path)["flat_at"] == broker.venue.exchange.account.last_id)
        assert not trader.task.done()
    assert "POST orders" not in broker.posts


async def test_an_entry_filled_long_after_the_kill_is_closed(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, broker: Broker, oracle: Oracle
) -> None:
    """The broker loses the answer to an entry, and fills the entry after it has shown the account flat."""
    broker.answers = [Forged.TIMED_OUT_UNEXECUTED]
    settings = trader_settings(
        redis_server.url, tmp_path, broker, oracle, look_up_seconds=2.0, sync_seconds=0.2
    )
    async with running_trader(settings) as trader:
        await until(lambda: broker.posts == ["POST orders"])
        KillSwitch(tmp_path / "trader").engage("test")
        await until(lambda: status(tmp_path)["control"] == "killed")
        assert status(tmp_path)["flat_at"] is None, "the entry may still be filled"
        await until(lambda: status(tmp_path)["flat_at"] is not None)
        await broker.buy()
        await until(lambda: broker.units == 0)
        last = broker.venue.exchange.account.last_id
        await until(lambda: status(tmp_path)["flat_at"] == last)
        assert not trader.task.done()
    assert broker.posts == ["POST orders", "PUT close"]


async def test_a_kill_is_retried_while_the_broker_refuses_the_token(
    bus: Bus, redis_server: RedisServer, tmp_path: Path, broker: Broker, oracle: Oracle
) -> None:
    async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)) as trader:
        await until(lambda: trader.detail.get("side") == 1)
        broker.refusal = 401
        KillSwitch(tmp_path / "trader").engage("test")
        await until(lambda: "401" in str(status(tmp_path)["detail"]))
        assert status(tmp_path)["flat_at"] is None
        broker.refusal = None
        await until(lambda: broker.units == 0)
        await until(lambda: status(tmp_path)["flat_at"] is not None)
        assert not trader.task.done()


async def test_an_entry_of_a_crashed_trader_is_closed_at_a_restart_with_a_kill_file(
    redis_server: RedisServer, bus: Bus, tmp_path: Path, broker: Broker, oracle: Oracle
) -> None:
    broker.answers = [Forged.TIMED_OUT_EXECUTED]
    async with trader_process(
        redis_server.url, tmp_path, broker, oracle, MM_TRADER__LEASE_SECONDS="4"
    ) as trader:
        await until(lambda: broker.units == 1, seconds=60)
        trader.send_signal(signal.SIGKILL)
        await trader.wait()
    KillSwitch(tmp_path / "trader").engage("test")
    async with running_trader(trader_settings(redis_server.url, tmp_path, broker, oracle)):
        await until(lambda: broker.units == 0)  # in standby, while the dead trader's lease lasts
        last = broker.venue.exchange.account.last_id
        await until(lambda: status(tmp_path)["flat_at"] == last)
        await until(lambda: status(tmp_path)["state"] != "standby")
        await until(lambda: status(tmp_path)["unknown_orders"] == 0)
    assert broker.posts.count("POST orders") == 1
    assert len(broker.fills()) == 2


async def test_a_kill_that_cannot_be_carried_out_fails(
    tmp_path: Path, kill_it: Kill, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    with pytest.raises(ServiceError, match="set MM_HOME"):
        await kill_it(seconds=0.5)
    (tmp_path / "trader").mkdir()
    monkeypatch.setenv("MM_TRADER__BROKER_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MM_TRADER__INSTRUMENT", "GBP_JPY")
    with pytest.raises(ServiceError, match=r"may still be open.*ConnectError"):
        await kill_it(seconds=0.5)
    assert KillSwitch(tmp_path / "trader").order() is not None, "in force when the trader starts"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"kill_id": 3}'])
def test_a_kill_file_of_any_content_is_a_kill_until_it_is_removed(tmp_path: Path, content: bytes) -> None:
    switch = KillSwitch(tmp_path)
    assert switch.order() is None
    switch.path.write_bytes(content)
    assert switch.order() is not None
    assert switch.lift()
    assert switch.order() is None
    assert not switch.lift()


@asynccontextmanager
async def trader_process(
    redis_url: str, home: Path, broker: Broker, oracle: Oracle, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A trader in its own process, which a test can kill."""
    variables = {
        "MM_REDIS_URL": redis_url,
        "MM_HOME": str(home),
        "MM_TRADER__BROKER_URL": broker.url,
        "MM_TRADER__INFERENCE_URL": oracle.url,
        "MM_TRADER__INFERENCE_DEADLINE_MS": "5000",
        "MM_TRADER__FLATTEN_RETRY_MAX_SECONDS": "9",
        **environment,
    }
    with (home / "trader.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.trader"),
            env={**os.environ, "PYTHONPATH": str(Path.cwd()), **variables},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
