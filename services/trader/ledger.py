"""The trader's memory on disk: intents before they are sent, what is held, and messages still to tell.

One SQLite file, every commit synced. An order's intent is on disk before it is sent; what an order came
to, what is then held and the messages that tell of it are one transaction, so that a trader killed at
any moment finds them in agreement. Nothing here is needed to know the position, which the broker tells;
it says which orders are this trader's, which limits are broken, and what readers have not heard yet.
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
CREATE TABLE IF NOT EXISTS told (sink TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT;
"""

#: No other process writes here; one that looks at the file may lock it for a moment.
_LOCKED_SECONDS = 0.5

_UNSETTLED = "SELECT body FROM intents WHERE state = ? ORDER BY rowid"

#: Sent, or refused, orders count towards the hourly limit.
_COUNTED = (IntentState.SENDING, IntentState.FILLED, IntentState.CANCELLED, IntentState.REJECTED)

_KINDS: dict[str, type[AuditMessage]] = {
    kind.__name__: kind for kind in (DecisionMade, TradeClosed, AlertRaised)
}


@dataclass(frozen=True)
class Memory:
    """What the trader goes on with after a restart."""

    account: str
    holding: Holding
    risk: RiskBook = field(default_factory=RiskBook)
    decided_bar_s: int = -1  # opening time of the last bar decided on
    control: str = "running"  # running, paused or killed
    control_entry: str = "0-0"  # last entry read of mm:control
    fence: int = 0  # largest token under which an order was sent
    exit: str = ""  # why what is held is being closed; closes are repeated until the broker shows flat


@dataclass(frozen=True)
class OutboxRow:
    """One message that some reader has not been told."""

    seq: int
    message: AuditMessage


_MEMORY = TypeAdapter(Memory)
_INTENT = TypeAdapter(Intent)


class Ledger:
    """One open ledger; a lock on its folder keeps a second trader out."""

    def __init__(self, folder: Path) -> None:
        """Open, or begin, the ledger of a folder.

        Raises:
            ServiceError: another process has it open.
            LedgerError: the file is damaged, or the disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "ledger.sqlite"
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as held:
            os.close(self._lock)
            raise ServiceError(f"{folder} is in use by another trader; give each its own MM_HOME") from held
        self._db = sqlite3.connect(self.path, isolation_level=None, timeout=_LOCKED_SECONDS)
        try:
            self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;" + _SCHEMA)
        except sqlite3.Error as refused:
            self.close()
            raise LedgerError(
                f"{self.path} cannot be opened: {refused}; `kill` closes a position that is open"
            ) from refused

    def close(self) -> None:
        """Close the file and let the folder go."""
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
        """What was kept last, or None in a new ledger.

        Raises:
            ServiceError: it cannot be read.
        """
        row = self._db.execute("SELECT body FROM memory").fetchone()
        if row is None:
            return None
        try:
            return _MEMORY.validate_json(row[0])
        except ValidationError as damaged:
            raise ServiceError(f"{self.path}: the memory cannot be read: {damaged}") from damaged

    def keep(
        self, memory: Memory, messages: Iterable[AuditMessage] = (), settled: Iterable[Intent] = ()
    ) -> None:
        """Keep what is known now, and what is to be told of it, all or nothing.

        As every method that writes, it raises LedgerError where the file cannot be written.

        Args:
            memory: to go on with.
            messages: for the readers, in order.
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

    def tell(self, messages: Iterable[AuditMessage]) -> None:
        """Keep messages for the readers where there is nothing new to remember, or nothing known yet."""
        with self._writing() as db:
            _put_messages(db, messages)

    def begin_anew(self, memory: Memory, messages: Iterable[AuditMessage] = ()) -> None:
        """Forget every intent: their account is no more. What is to be told stays."""
        with self._writing() as db:
            db.execute("DELETE FROM intents")
            _put_memory(db, memory)
            _put_messages(db, messages)

    # -- intents -------------------------------------------------------------------------------------

    def intend(self, intent: Intent, memory: Memory) -> None:
        """Keep an order that is about to be sent, and the memory to go on with; on disk when this returns.

        Raises:
            ServiceError: the same order was kept before, or it is an entry and a later holder of the lease
                has sent an order.
        """
        kept = self.memory()
        if kept is not None and intent.action is not Action.CLOSE and intent.fence < kept.fence:
            raise ServiceError(
                f"order {intent.intent_id} under token {intent.fence}: {kept.fence} was used already"
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
                    f"order {intent.intent_id} was kept before; it is not sent again"
                ) from twice
            _put_memory(db, memory)

    def intent(self, intent_id: str) -> Intent | None:
        """One intent, or None."""
        row = self._db.execute("SELECT body FROM intents WHERE intent_id = ?", (intent_id,)).fetchone()
        return None if row is None else _INTENT.validate_json(row[0])

    def unsettled(self) -> list[Intent]:
        """Orders whose outcome is not known, oldest first."""
        rows = self._db.execute(_UNSETTLED, (IntentState.SENDING.value,))
        return [_INTENT.validate_json(body) for (body,) in rows]

    def num_unknown_entries(self) -> int:
        """How many of the unsettled orders may still open a position."""
        return sum(intent.action is not Action.CLOSE for intent in self.unsettled())

    def num_orders_after(self, bar_time_s: int) -> int:
        """How many orders were sent for bars later than this."""
        marks = ", ".join("?" for _ in _COUNTED)
        count = self._db.execute(
            f"SELECT count(*) FROM intents WHERE bar_time_s > ? AND state IN ({marks})",  # noqa: S608  marks only
            (bar_time_s, *(state.value for state in _COUNTED)),
        ).fetchone()
        return int(count[0])

    def num_orders(self) -> int:
        """How many orders were sent in all."""
        return self.num_orders_after(-1)

    # -- outbox --------------------------------------------------------------------------------------

    def untold(self, sink: str, *, count: int) -> list[OutboxRow]:
        """The next messages that a sink was not told, in order."""
        rows = self._db.execute(
            "SELECT seq, kind, body FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?", (self._told(sink), count)
        )
        return [OutboxRow(seq, _KINDS[kind].model_validate_json(body)) for seq, kind, body in rows]

    def told(self, sink: str, seq: int, sinks: Sequence[str]) -> None:
        """Note that a sink was told up to `seq`; what all sinks were told is removed."""
        with self._writing() as db:
            db.execute(
                "INSERT INTO told VALUES (?, ?) ON CONFLICT DO UPDATE SET seq = excluded.seq", (sink, seq)
            )
            db.execute("DELETE FROM outbox WHERE seq <= ?", (min(self._told(other) for other in sinks),))

    def num_untold(self) -> int:
        """How many messages some sink was not told."""
        return int(self._db.execute("SELECT count(*) FROM outbox").fetchone()[0])

    def _told(self, sink: str) -> int:
        row = self._db.execute("SELECT seq FROM told WHERE sink = ?", (sink,)).fetchone()
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
    """What operators ordered last as a folder's ledger knows it, without opening the ledger for writing.

    "running" where there is no ledger, and "unknown" where it cannot be read.
    """
    try:
        memory = _kept_memory(folder)
    except (sqlite3.Error, ValidationError) as damaged:
        log.warning("ledger_not_read", folder=str(folder), error=str(damaged))
        return "unknown"
    return memory.control if memory else "running"


def may_hold(folder: Path) -> bool:
    """Whether a position may be open, as a folder's ledger knows it; true where it cannot be read.

    An order whose outcome is not known may have opened one.
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
        ValidationError: the memory cannot.
    """
    path = folder / "ledger.sqlite"
    if not path.is_file():
        return None
    with _reading(path) as db:
        row = db.execute("SELECT body FROM memory").fetchone()
    return _MEMORY.validate_json(row[0]) if row else None


def _reading(path: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True))
