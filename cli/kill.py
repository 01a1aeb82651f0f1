"""`kill`: stop trading now, even if Redis, the gateway or the trader does not work.

The order is a file in the trader's home, which the trader checks twice a second. The order also goes to
Redis, so that the dashboard shows it. The kill is confirmed when the trader reports that the broker shows a
flat account. If the trader does not report this in time, this command closes the position at the broker.
"""

import asyncio
import getpass
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import typer

from cli.output import err, out
from cli.runs import NotUpError, last_run, running
from services.trader.closing import close_at_broker
from services.trader.config import Mode
from services.trader.kill_switch import KillOrder, KillSwitch, StatusFile, TraderStatus
from services.trader.settings import TraderSettings
from services.trader.venue import PAPER_TOKEN, rest_url
from shared.adapters.oanda.client import OandaClient
from shared.adapters.streams.bus import Bus
from shared.errors import BrokerError, ServiceError
from shared.messages.schemas import ControlIssued
from shared.messages.streams import CONTROL
from shared.runtime.settings import load

REDIS_SECONDS = 3.0
REDIS_PORT = 6379
_POLL_SECONDS = 0.2

#: A longer reason is cut to this many characters, since it must not prevent the kill.
_MAX_REASON = 1_024

#: Minimum number of attempts to close the position, even after the timeout.
_MIN_ATTEMPTS = 3

_T = TypeVar("_T")


def kill(
    reason: Annotated[str, typer.Option(help="reason, for the record")] = "",
    timeout: Annotated[float, typer.Option(min=0.5, help="seconds to wait for the trader to confirm")] = 15.0,
    at_broker: Annotated[
        bool, typer.Option("--at-broker", help="close at the broker without waiting for the trader")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="lift the kill, so that trading continues")
    ] = False,
) -> None:
    """Close the position and stop trading until `--resume`.

    Works even if Redis, the gateway or the trader does not respond.
    """
    target = _Target.find()
    reason = reason.encode("utf-8", "replace").decode()[:_MAX_REASON]
    if resume:
        _resume(target, reason, timeout)
        return
    order = _send(target, reason)
    if order is not None and not at_broker:
        status = _confirmation(target, order, timeout)
        if status is not None:
            _print(f"confirmed: flat at transaction {status.flat_at} (trader, process {status.pid})")
            return
        err.print(f"not confirmed: {_why_not(target, order, timeout)}", highlight=False, soft_wrap=True)
    _print("closing at the broker from here ...")
    transaction, account = asyncio.run(_close(target, timeout))
    _print(f"confirmed: flat at transaction {transaction}, account {account} (by the broker)")
    status = target.status.read()
    if order is None:
        raise ServiceError(
            "the account is flat, but the kill file could not be written: stop the trader, otherwise it may "
            "trade again"
        )
    if status is not None and _alive(status.pid) and status.kill_id != order.kill_id:
        raise ServiceError(
            f"the account is flat, but the trader (process {status.pid}) has not seen the kill: stop it, "
            "otherwise it may trade again"
        )


@dataclass(frozen=True)
class _Target:
    """The trader to stop, and the settings for closing its position without it."""

    switch: KillSwitch
    status: StatusFile
    settings: TraderSettings
    token: str
    redis_url: str

    @classmethod
    def find(cls) -> "_Target":
        """The trader of the current run, or else of this home, or else of the last run."""
        settings = load(TraderSettings)
        home, token = settings.home.resolve(), settings.oanda_token.get_secret_value()
        redis_url = settings.redis_address
        run = running(home) or (None if (home / "trader").is_dir() else last_run(home))
        folder = home / "trader"
        if run is not None:
            folder, redis_url = Path(run.folder) / "trader", run.redis_url
            kept = home / "paper_token"
            token = kept.read_text(encoding="ascii").strip() if kept.is_file() else token
        if not folder.is_dir():
            raise NotUpError(f"no trader has run in {home}: set MM_HOME to the home of the trader")
        return cls(KillSwitch(folder), StatusFile(folder), settings, token or PAPER_TOKEN, redis_url)


def _send(target: _Target, reason: str) -> KillOrder | None:
    """Write the kill file and announce the kill on Redis; None if the file cannot be written."""
    try:
        order = target.switch.engage(f"{_user()} with `kill`", reason)
        _print(f"sent: {target.switch.path}")
    except OSError as refused:
        order = None
        err.print(f"not sent: {target.switch.path} cannot be written: {refused}", highlight=False)
    failure = asyncio.run(_announce(target.redis_url, "killed", reason))
    _print("sent: Redis" if failure is None else f"Redis does not answer ({failure}); the file is enough")
    return order


def _resume(target: _Target, reason: str, seconds: float) -> None:
    lifted = target.switch.lift()
    _print(f"lifted: {target.switch.path}" if lifted else f"there was no kill file at {target.switch.path}")
    failure = asyncio.run(_announce(target.redis_url, "running", reason))
    if failure is not None:
        raise ServiceError(
            f"Redis does not answer ({failure}): a kill that the trader received through Redis remains in "
            "force; repeat `kill --resume` when Redis is back"
        )
    _print("sent: Redis")

    def resumed() -> str | None:
        status = target.status.read()
        if status is None or not _alive(status.pid):
            return "no trader is running here; the next one may trade"
        if status.kill_id is not None or status.control != "running":
            return None
        return f"confirmed: the trader may trade (process {status.pid}, {status.state})"

    outcome = _poll(resumed, seconds)
    if outcome is None:
        raise ServiceError(f"not confirmed: the trader has not seen it within {seconds:g} s")
    _print(outcome)


async def _announce(url: str, state: str, reason: str) -> str | None:
    """Announce the trader's new control state on Redis; returns the failure, or None."""
    order = ControlIssued.model_validate({"target": "trader", "state": state, "by": "kill", "reason": reason})
    if failure := await _connection_failure(url):
        return failure
    bus = Bus(url)
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await bus.announce(CONTROL, order, name="trader")
    except TimeoutError:
        return f"no answer within {REDIS_SECONDS:.0f} s"
    finally:
        await bus.close()
    return None


async def _connection_failure(url: str) -> str:
    """The reason why Redis cannot be reached, or ""; a bus would retry forever."""
    parts = urlsplit(url)
    if not parts.hostname:
        return ""
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or REDIS_PORT)
    except (OSError, TimeoutError) as failed:
        return str(failed) or f"no connection within {REDIS_SECONDS:.0f} s"
    writer.close()
    return ""


def _confirmation(target: _Target, order: KillOrder, seconds: float) -> TraderStatus | None:
    """The status with which the trader confirms this kill, or None if it does not confirm in time."""

    def confirmed() -> TraderStatus | None:
        status = target.status.read()
        if status is None or status.kill_id != order.kill_id or status.flat_at is None:
            return None
        return status

    return _poll(confirmed, seconds)


def _poll(look: Callable[[], _T | None], seconds: float) -> _T | None:
    deadline = time.monotonic() + seconds
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found


def _why_not(target: _Target, order: KillOrder, seconds: float) -> str:
    status = target.status.read()
    if status is None:
        return f"no trader has written {target.status.path}"
    if not _alive(status.pid):
        return f"the trader is not running (process {status.pid} is gone); the kill applies when it restarts"
    if status.kill_id != order.kill_id:
        return f"the trader (process {status.pid}) has not seen the kill within {seconds:g} s; it hangs"
    held = "something" if status.units is None else f"{status.units} units"
    return f"the trader has seen the kill and still holds {held} after {seconds:g} s: {status.detail}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def _close(target: _Target, seconds: float) -> tuple[int, str]:
    """Close the position at the broker, retrying until the account is flat.

    Returns:
        Transaction id and account.
    Raises:
        ServiceError: the account is not flat in time, so the position may be open.
    """
    status, settings = target.status.read(), target.settings
    url = status.api_url if status else rest_url(settings.mode, settings.trader)
    account = status.account if status else settings.oanda_account
    instrument = status.instrument if status else settings.trader.instrument
    if not instrument:
        raise ServiceError("MM_TRADER__INSTRUMENT is not set and no trader reports its instrument: set it")
    detail, deadline, pause = "", time.monotonic() + seconds, 0.5
    paper = (status.mode if status else settings.mode.value) == Mode.PAPER
    async with OandaClient(account, target.token, api_url=url, read_attempts=1, read_seconds=5.0) as client:
        for attempt in itertools.count():
            if attempt >= _MIN_ATTEMPTS and time.monotonic() > deadline:
                break
            try:
                client.account = account = account or await _only_account(client)
                transaction, detail = await close_at_broker(client, instrument)
                if transaction is not None:
                    return transaction, account
            except BrokerError as failed:
                detail = str(failed)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)
    manual = "" if paper else ". Close it on OANDA's website or by telephone"
    raise ServiceError(
        f"the position may still be open, the broker at {url} did not close it: {detail}. A running trader "
        f"keeps trying{manual}"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        return f"user {os.getuid()}"


async def _only_account(client: OandaClient) -> str:
    accounts = await client.accounts()
    if len(accounts) != 1:
        raise BrokerError(f"OANDA_ACCOUNT is not set and the token has access to {len(accounts)} accounts")
    return accounts[0]


def _print(line: str) -> None:
    out.print(line, highlight=False, soft_wrap=True, markup=False)
