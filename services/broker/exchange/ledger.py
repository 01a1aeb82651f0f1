"""The broker's state on disk: the account's transactions and the replay's progress, in one SQLite file.

Each step of the exchange is one SQLite transaction, so that a crash at any moment leaves account and replay
as they were before the step or after it. With WAL and synchronous NORMAL, a loss of power may undo the last
steps, but never a part of one.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from services.broker.exchange.transactions import TRANSACTION, Transaction
from shared.errors import BrokerError
from shared.messages.validation import first_fault

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS transactions (id INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS replay (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class ReplayProgress:
    """Progress of the replay."""

    next_tick: int  # index on the tape
    acknowledged_s: int  # opening time of the newest bar that the client acknowledged; 0 before the first


class Ledger:
    """The file of one account on one data set."""

    def __init__(self, path: Path, *, account: str, dataset: str) -> None:
        """Open or create the file.

        Raises:
            BrokerError: the file belongs to another account or data set, or cannot be read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = sqlite3.connect(path, isolation_level=None)
        try:
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.executescript(_SCHEMA)
            self._claim({"schema": str(SCHEMA_VERSION), "account": account, "dataset": dataset})
        except sqlite3.Error as damaged:
            self._file.close()
            raise BrokerError(f"ledger {path}: {damaged}") from damaged
        except BrokerError:
            self._file.close()
            raise

    def _claim(self, wanted: dict[str, str]) -> None:
        for key, value in wanted.items():
            found = self._file.execute("SELECT value FROM replay WHERE key = ?", (key,)).fetchone()
            if found is None:
                self._file.execute("INSERT INTO replay VALUES (?, ?)", (key, value))
            elif found[0] != value:
                raise BrokerError(
                    f"ledger {self.path} has {key} {found[0]}, but the settings have {value}: "
                    "delete the file to start over"
                )

    def transactions(self) -> list[Transaction]:
        """All transactions in order.

        Raises:
            BrokerError: a transaction cannot be read.
        """
        rows = self._file.execute("SELECT id, body FROM transactions ORDER BY id")
        found = []
        for number, body in rows:
            try:
                found.append(TRANSACTION.validate_json(body))
            except ValidationError as broken:
                raise BrokerError(
                    f"ledger {self.path}: transaction {number} cannot be read: {first_fault(broken)}"
                ) from broken
        return found

    def progress(self) -> ReplayProgress | None:
        """The replay's progress, or None before its first step."""
        rows = dict(self._file.execute("SELECT key, value FROM replay").fetchall())
        if "next_tick" not in rows:
            return None
        return ReplayProgress(int(rows["next_tick"]), int(rows["acknowledged_s"]))

    def commit(self, transactions: Iterable[Transaction], progress: ReplayProgress) -> None:
        """Store one step atomically.

        Raises:
            BrokerError: the file cannot be written.
        """
        try:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany(
                "INSERT INTO transactions VALUES (?, ?)",
                [(item.id, item.model_dump_json(by_alias=True, exclude_none=True)) for item in transactions],
            )
            self._file.executemany(
                "INSERT INTO replay VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                [("next_tick", str(progress.next_tick)), ("acknowledged_s", str(progress.acknowledged_s))],
            )
            self._file.execute("COMMIT")
        except sqlite3.Error as failed:
            if self._file.in_transaction:
                self._file.rollback()
            raise BrokerError(f"ledger {self.path} cannot be written: {failed}") from failed

    def close(self) -> None:
        """Close the file."""
        self._file.close()
