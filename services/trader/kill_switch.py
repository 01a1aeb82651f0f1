"""The kill file and the trader's status file: a kill switch that needs neither Redis nor the gateway.

Both lie in the trader's folder. The kill file holds while it is there, over every restart, and only its
removal lifts it; what it says is for people, and a file that cannot be read holds all the same. The status
file tells which kill the trader has seen and whether the broker has shown flat since.
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

from shared.adapters.files import write_whole

log = structlog.get_logger()


@dataclass(frozen=True)
class KillOrder:
    """One kill, as its file says."""

    kill_id: str = ""  # empty where the file holds no readable order
    by: str = ""
    reason: str = ""
    at: str = ""

    @property
    def words(self) -> str:
        """Who ordered it, when and why."""
        return ", ".join(filter(None, (self.by and f"by {self.by}", self.at, self.reason)))


@dataclass(frozen=True)
class TraderStatus:
    """What the trader last said of itself; enough to close its position without it, but for the token."""

    pid: int
    mode: str
    api_url: str
    account: str
    instrument: str
    state: str  # standby, reconnecting, active, reducing or halted
    control: str  # running, paused or killed
    kill_id: str | None  # of the kill file that was seen last; None while there is none
    units: int | float | None  # held, signed; None while that is not known
    unknown_orders: int
    flat_at: int | None  # transaction at which the broker showed flat after the kill; None until it did
    detail: str  # why it is not flat yet
    at: str = ""  # when this was written


_ORDER, _STATUS = TypeAdapter(KillOrder), TypeAdapter(TraderStatus)


class KillSwitch:
    """The kill file of one trader's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "kill"

    def order(self) -> KillOrder | None:
        """The kill that holds, or None."""
        try:
            return _ORDER.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            return KillOrder(reason=f"{self.path} cannot be read as an order; it holds all the same")

    def engage(self, by: str, reason: str = "") -> KillOrder:
        """Order a kill; on disk when this returns.

        Where the disk has no room for the order, an empty file is left, which holds as well.

        Raises:
            OSError: not even that is possible.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        order = KillOrder(str(uuid4()), by, reason, at)
        try:
            write_whole(self.path, json.dumps(asdict(order), indent=2).encode())
        except OSError as full:
            log.warning("kill_file_left_empty", path=str(self.path), error=str(full))
            self.path.touch()
        return self.order() or order

    def lift(self) -> bool:
        """Remove the kill file; False when there was none."""
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
        """The last status, or None where no trader has written one."""
        try:
            return _STATUS.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as damaged:
            log.warning("trader_status_not_read", path=str(self.path), error=str(damaged))
            return None

    def write(self, status: TraderStatus) -> None:
        """Write the status when it has changed; a disk that refuses is tried again at the next call."""
        if status == self._written:
            return
        at = datetime.now(UTC).isoformat(timespec="seconds")
        aside = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps({**asdict(status), "at": at}, indent=2), encoding="utf-8")
            aside.replace(self.path)
        except OSError as refused:
            log.warning("trader_status_not_written", path=str(self.path), error=str(refused))
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            return
        self._written = status
