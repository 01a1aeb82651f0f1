"""The kill file and the trader's status file: a kill switch that needs neither Redis nor the gateway.

Both are in the trader's folder. A kill is in force while the kill file exists, across restarts too, and even
if it cannot be read. The status file shows which kill the trader has seen and whether the broker has shown
the account flat since.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import structlog
from pydantic import TypeAdapter, ValidationError

from shared.adapters.files import write_atomically

log = structlog.get_logger()


@dataclass(frozen=True)
class KillOrder:
    """Content of a kill file."""

    kill_id: str = ""  # empty if the file cannot be read
    by: str = ""
    reason: str = ""
    at: str = ""

    @property
    def words(self) -> str:
        """Author, time and reason as text."""
        return ", ".join(filter(None, (self.by and f"by {self.by}", self.at, self.reason)))


@dataclass(frozen=True)
class TraderStatus:
    """Content of the status file: with the token, enough to close the position without the trader."""

    pid: int
    mode: str
    api_url: str
    account: str
    instrument: str
    state: str  # standby, reconnecting, active, reducing or halted
    control: str  # running, paused or killed
    kill_id: str | None  # id of the kill file in force; None without one
    units: int | float | None  # signed; None while the position is not known
    unknown_orders: int
    flat_at: int | None  # transaction at which the broker showed the account flat after the kill, or None
    detail: str  # why the account is not flat yet
    at: str = ""  # time of writing, ISO 8601


_ORDER, _STATUS = TypeAdapter(KillOrder), TypeAdapter(TraderStatus)


class KillSwitch:
    """The kill file of one trader's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "kill"

    def order(self) -> KillOrder | None:
        """The kill in force, or None."""
        try:
            return _ORDER.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            return KillOrder(reason=f"{self.path} cannot be read, but the kill is in force")

    def engage(self, by: str, reason: str = "") -> KillOrder:
        """Order a kill; it is on disk when this returns.

        On a full disk the file is left empty, which is a kill too.

        Raises:
            OSError: not even an empty file can be created.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        order = KillOrder(str(uuid4()), by, reason, at)
        try:
            write_atomically(self.path, json.dumps(asdict(order), indent=2).encode())
        except OSError as full:
            log.warning("kill_file_left_empty", path=str(self.path), error=str(full))
            self.path.touch()
        return self.order() or order

    def lift(self) -> bool:
        """Remove the kill file; False if there was none."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True


class StatusFile:
    """The status file of one trader's folder: written by the trader, read by `kill`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.json"
        self._written: TraderStatus | None = None

    def read(self) -> TraderStatus | None:
        """The last status, or None if there is no readable one."""
        try:
            return _STATUS.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as damaged:
            log.warning("trader_status_not_read", path=str(self.path), error=str(damaged))
            return None

    def write(self, status: TraderStatus) -> None:
        """Write the status if it has changed; after a failure, the next call tries again."""
        if status == self._written:
            return
        at = datetime.now(UTC).isoformat(timespec="seconds")
        temporary = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({**asdict(status), "at": at}, indent=2), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as refused:
            log.warning("trader_status_not_written", path=str(self.path), error=str(refused))
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        self._written = status
