"""The trader's state on disk: its orders, its position, its limits and an outbox of undelivered messages.

One SQLite file; every commit is fsynced. An order's intent is on disk before the order is sent. An order's
outcome, the position after it and the messages about it are one transaction, so that they agree after a crash
at any moment. The position itself always comes from the broker. The ledger adds which orders are this
trader's, which limits were reached, and which messages are undelivered.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from services.trader.orders import Holding, Intent, IntentState
from services.trader.risk import RiskBook
from shared.environment.action import Action
from shared.errors import LedgerError, ServiceError
from shared.messages.schemas import AlertRaised, DecisionMade, TradeClosed

log = structlog.get_logger()

AuditMessage = DecisionMade | TradeClosed | AlertRaised

_SCHEMA = """
CREATE TABLE IF NOT EXISTS intents (
    intent_id TEXT PRIMARY KEY, bar_time_s INTEGER NOT NULL, state TEXT NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS intents_by_state ON intents (state);
CREATE INDEX IF NOT EXISTS intents_by_time ON intents (bar_time_s);
CREATE TABLE IF NOT EXISTS memory (only INTEGER PRIMARY KEY CHECK (only = 0), body TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, body TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS deliveries (sink TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT;
"""

#: Longest wait for a lock. No other process writes to the file, but a reader may lock it for a moment.
_LOCKED_SECONDS = 0.5

_UNSETTLED = "SELECT body FROM intents WHERE state = ? ORDER BY rowid"

#: States of orders that count towards the hourly limit: they reached the broker, or may have.
_COUNTED = (IntentState.SENDING, IntentState.FILLED, IntentState.CANCELLED, IntentState.REJECTED)

_KINDS: dict[str, type[AuditMessage]] = {
    kind.__name__: kind for kind in (DecisionMade, TradeClosed, AlertRaised)
}


@dataclass(frozen=True)
class Memory:
    """State that survives a restart."""

    account: str
    holding: Holding
    risk: RiskBook = field(default_factory=RiskBook)
    decided_bar_s: int = -1  # opening time of the last bar decided on
    control: str = "running"  # running, paused or killed
    control_entry: str = "0-0"  # id of the last entry read from mm:control
    fence: int = 0  # largest fencing token under which an order was sent
    exit: str = ""  # reason why the position is being closed; kept until the broker shows the account flat


@dataclass(frozen=True)
class OutboxRow:
    """One message that was not delivered to every sink."""

    seq: int
    message: AuditMessage


_MEMORY = TypeAdapter(Memory)
_INTENT = TypeAdapter(Intent)


class Ledger:
    """One open ledger; a lock on its folder keeps a second trader out.

    Every method that writes raises LedgerError if the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the ledger of a folder.

        Raises:
            ServiceError: another process has the ledger open.
            LedgerError: the file is damaged, or the disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "ledger.sqlite"
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as held:
            os.close(self._lock)
            raise ServiceError(f"another trader uses {folder}: set another MM_HOME for this one") from held
        self._db = sqlite3.connect(self.path, isolation_level=None, timeout=_LOCKED_SECONDS)
        try:
            self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + _SCHEMA)
        except sqlite3.Error as refused:
            self.close()
            raise LedgerError(
                f"{self.path} cannot be opened: {refused}; close an open position with `micro-muzero kill`, "
                "then free the disk or move the file away"
            ) from refused

    def close(self) -> None:
        """Close the file and release the folder's lock."""
        self._db.close()
        os.close(self._lock)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, all or nothing.

        Raises:
            LedgerError: the file cannot be written.
        """
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
        except sqlite3.OperationalError as refused:
            raise LedgerError(f"{self.path} cannot be written: {refused}") from refused

    # -- memory --------------------------------------------------------------------------------------

    def memory(self) -> Memory | None:
        """The memory saved last, or None in a new ledger.

        Raises:
            ServiceError: the memory is damaged.
        """
        row = self._db.execute("SELECT body FROM memory").fetchone()
        if row is None:
            return None
        try:
            return _MEMORY.validate_json(row[0])
        except ValidationError as damaged:
            raise ServiceError(
                f"{self.path}: the trader's memory is damaged: {damaged}; close an open position with "
                "`micro-muzero kill`, then move the file away"
            ) from damaged

    def keep(
        self, memory: Memory, messages: Iterable[AuditMessage] = (), settled: Iterable[Intent] = ()
    ) -> None:
        """Save memory, messages and outcomes in one transaction.

        Args:
            memory: new memory; replaces the saved one.
            messages: messages for the outbox, in order.
            settled: intents with their outcome.
        """
        with self._writing() as db:
            _put_memory(db, memory)
            _put_messages(db, messages)
            db.executemany(
                "UPDATE intents SET state = ?, body = ? WHERE intent_id = ?",
                [
                    (intent.state.value, _INTENT.dump_json(intent).decode(), intent.intent_id)
                    for intent in settled
                ],
            )

    def add_messages(self, messages: Iterable[AuditMessage]) -> None:
        """Put messages into the outbox without changing the memory."""
        with self._writing() as db:
            _put_messages(db, messages)

    def start_over(self, memory: Memory, messages: Iterable[AuditMessage] = ()) -> None:
        """Replace the memory and delete every intent of an account that no longer exists; keep the outbox."""
        with self._writing() as db:
            db.execute("DELETE FROM intents")
            _put_memory(db, memory)
            _put_messages(db, messages)

    # -- intents -------------------------------------------------------------------------------------

    def add_intent(self, intent: Intent, memory: Memory) -> None:
        """Save an order that is about to be sent, and the memory; both are on disk when this returns.

        Raises:
            ServiceError: the order was saved before, or it is an entry and a later holder of the lease has
                sent an order.
        """
        saved = self.memory()
        if saved is not None and intent.action is not Action.CLOSE and intent.fence < saved.fence:
            raise ServiceError(
                f"order {intent.intent_id} is not sent: its lease has token {intent.fence}, but an order was "
                f"sent under the later token {saved.fence}"
            )
        with self._writing() as db:
            try:
                db.execute(
                    "INSERT INTO intents VALUES (?, ?, ?, ?)",
                    (
                        intent.intent_id,
                        intent.bar_time_s,
                        intent.state.value,
                        _INTENT.dump_json(intent).decode(),
                    ),
                )
            except sqlite3.IntegrityError as twice:
                raise ServiceError(
                    f"order {intent.intent_id} was saved before; it is not sent again"
                ) from twice
            _put_memory(db, memory)

    def intent(self, intent_id: str) -> Intent | None:
        """The intent with an id, or None."""
        row = self._db.execute("SELECT body FROM intents WHERE intent_id = ?", (intent_id,)).fetchone()
        return None if row is None else _INTENT.validate_json(row[0])

    def unsettled(self) -> list[Intent]:
        """Orders whose outcome is not known, oldest first."""
        rows = self._db.execute(_UNSETTLED, (IntentState.SENDING.value,))
        return [_INTENT.validate_json(body) for (body,) in rows]

    def num_unknown_entries(self) -> int:
        """Number of unsettled orders that may still open a position."""
        return sum(intent.action is not Action.CLOSE for intent in self.unsettled())

    def num_orders_after(self, bar_time_s: int) -> int:
        """Number of orders that were sent for later bars."""
        marks = ", ".join("?" for _ in _COUNTED)
        count = self._db.execute(
            f"SELECT count(*) FROM intents WHERE bar_time_s > ? AND state IN ({marks})",  # noqa: S608  marks only
            (bar_time_s, *(state.value for state in _COUNTED)),
        ).fetchone()
        return int(count[0])

    def num_orders(self) -> int:
        """Number of all orders that were sent."""
        return self.num_orders_after(-1)

    # -- outbox --------------------------------------------------------------------------------------

    def undelivered(self, sink: str, *, count: int) -> list[OutboxRow]:
        """The next messages that were not delivered to a sink, in order."""
        rows = self._db.execute(
            "SELECT seq, kind, body FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?",
            (self._delivered_seq(sink), count),
        )
        return [OutboxRow(seq, _KINDS[kind].model_validate_json(body)) for seq, kind, body in rows]

    def mark_delivered(self, sink: str, seq: int, sinks: Sequence[str]) -> None:
        """Note that a sink has every message up to `seq`; messages that all sinks have are deleted."""
        with self._writing() as db:
            db.execute(
                "INSERT INTO deliveries VALUES (?, ?) ON CONFLICT DO UPDATE SET seq = excluded.seq",
                (sink, seq),
            )
            in_all = min(self._delivered_seq(other) for other in sinks)
            db.execute("DELETE FROM outbox WHERE seq <= ?", (in_all,))

    def num_undelivered(self) -> int:
        """Number of messages that were not delivered to every sink."""
        return int(self._db.execute("SELECT count(*) FROM outbox").fetchone()[0])

    def _delivered_seq(self, sink: str) -> int:
        row = self._db.execute("SELECT seq FROM deliveries WHERE sink = ?", (sink,)).fetchone()
        return int(row[0]) if row else 0


def _put_memory(db: sqlite3.Connection, memory: Memory) -> None:
    db.execute(
        "INSERT INTO memory VALUES (0, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
        (_MEMORY.dump_json(memory).decode(),),
    )


def _put_messages(db: sqlite3.Connection, messages: Iterable[AuditMessage]) -> None:
    db.executemany(
        "INSERT INTO outbox (kind, body) VALUES (?, ?)",
        [(type(message).__name__, message.model_dump_json()) for message in messages],
    )


def kept_control(folder: Path) -> str:
    """The operators' last order in a folder's ledger, which is opened for reading only.

    "running" if there is no ledger, "unknown" if it cannot be read.
    """
    try:
        memory = _kept_memory(folder)
    except (sqlite3.Error, ValidationError) as damaged:
        log.warning("ledger_not_read", folder=str(folder), error=str(damaged))
        return "unknown"
    return memory.control if memory else "running"


def may_hold(folder: Path) -> bool:
    """Whether a position may be open according to a folder's ledger; true if it cannot be read.

    An order with an unknown outcome may have opened one.
    """
    path = folder / "ledger.sqlite"
    try:
        memory = _kept_memory(folder)
        if memory is None or memory.holding.trades:
            return memory is not None
        with _reading(path) as db:
            return db.execute(_UNSETTLED, (IntentState.SENDING.value,)).fetchone() is not None
    except (sqlite3.Error, ValidationError) as damaged:
        log.warning("ledger_not_read", folder=str(folder), error=str(damaged))
        return True


def _kept_memory(folder: Path) -> Memory | None:
    """The memory in a folder's ledger, which is opened for reading only.

    Raises:
        sqlite3.Error: the file cannot be read.
        ValidationError: the memory is damaged.
    """
    path = folder / "ledger.sqlite"
    if not path.is_file():
        return None
    with _reading(path) as db:
        row = db.execute("SELECT body FROM memory").fetchone()
    return _MEMORY.validate_json(row[0]) if row else None


def _reading(path: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True))
