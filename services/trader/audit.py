"""The audit: delivers every decision, trade and alert from the ledger's outbox to Redis and to a DuckDB file.

The outbox is on disk, so that a message survives an outage of Redis and a crash of the trader. Each sink is
served at its own speed. After a crash a message may be delivered twice: DuckDB ignores the second delivery,
since rows are keyed by `seq`, but the stream gets a second entry.
"""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import duckdb
import structlog

from services.trader.ledger import AuditMessage, Ledger, OutboxRow
from shared.adapters.streams.bus import Bus
from shared.adapters.tables.databases import begin_database
from shared.errors import LedgerError, ServiceError, SettingsError
from shared.messages.schemas import AlertRaised, DecisionMade, TradeClosed
from shared.messages.streams import ALERTS, DECISIONS, TRADES

log = structlog.get_logger()

STREAMS_SINK, TABLES_SINK = "streams", "tables"
SINKS = (STREAMS_SINK, TABLES_SINK)

_BATCH = 256
_TABLES_EVERY_SECONDS = 2.0

#: Delay before a retry after Redis refused a command or the ledger could not be written.
_REFUSED_SECONDS = 1.0

_SCHEMA = """
CREATE TABLE decisions (
    seq BIGINT PRIMARY KEY, created_at TIMESTAMPTZ, bar_time TIMESTAMPTZ, action VARCHAR, executed BOOLEAN,
    reason VARCHAR, version INTEGER, value DOUBLE, visit_policy DOUBLE[], q_values DOUBLE[],
    outcome_probabilities DOUBLE[], side TINYINT, pnl_pips DOUBLE, close DOUBLE, latency_ms DOUBLE
);
CREATE TABLE trades (
    seq BIGINT PRIMARY KEY, created_at TIMESTAMPTZ, trade_id VARCHAR, instrument VARCHAR, side TINYINT,
    units DOUBLE, entry_time TIMESTAMPTZ, exit_time TIMESTAMPTZ, entry_price DOUBLE, exit_price DOUBLE,
    pips DOUBLE, reason VARCHAR
);
CREATE TABLE alerts (
    seq BIGINT PRIMARY KEY, created_at TIMESTAMPTZ, source VARCHAR, name VARCHAR, detail VARCHAR
);
"""

#: Table of each message type, and the message's fields that follow `seq` as columns.
_TABLES: dict[type[AuditMessage], tuple[str, str]] = {
    DecisionMade: (
        "decisions",
        "created_at bar_time action executed reason version value visit_policy q_values "
        "outcome_probabilities side pnl_pips close latency_ms",
    ),
    TradeClosed: (
        "trades",
        "created_at trade_id instrument side units entry_time exit_time entry_price exit_price pips reason",
    ),
    AlertRaised: ("alerts", "created_at source name detail"),
}


class AuditTables:
    """The DuckDB file of one trader, opened at the first insert and locked from then on.

    Another program may have the file open. That must not prevent the trader from starting, since the trader
    may hold a position.
    """

    def __init__(self, path: Path) -> None:
        """Set the path; the file is opened by the first insert."""
        self._path = path
        self._lock = threading.Lock()
        self._db: duckdb.DuckDBPyConnection | None = None

    def insert(self, rows: Sequence[OutboxRow]) -> None:
        """Insert messages in one transaction; messages that the file already contains are skipped.

        Raises:
            duckdb.Error: another process has the file open, it is damaged, or the disk is full.
            OSError: the folder cannot be written.
        """
        with self._lock:
            self._db = self._db or self._opened()
            self._insert(self._db, rows)

    def _opened(self) -> duckdb.DuckDBPyConnection:
        begin_database(self._path, _SCHEMA)
        db = duckdb.connect(str(self._path), config={"threads": 1, "memory_limit": "256MB"})
        try:
            db.execute("ALTER TABLE trades ALTER units TYPE DOUBLE")  # an integer in earlier releases
        except duckdb.Error:
            db.close()
            raise
        return db

    def _insert(self, db: duckdb.DuckDBPyConnection, rows: Sequence[OutboxRow]) -> None:
        db.begin()
        try:
            for kind, (table, fields) in _TABLES.items():
                columns = fields.split()
                values = [
                    (row.seq, *(_cell(getattr(row.message, column)) for column in columns))
                    for row in rows
                    if type(row.message) is kind
                ]
                if values:
                    marks = ", ".join("?" for _ in range(len(columns) + 1))
                    db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values)  # noqa: S608
            db.commit()
        except BaseException:
            db.rollback()
            raise

    def close(self) -> None:
        """Close the file, once any insert in another thread has finished."""
        with self._lock:
            if self._db is not None:
                self._db.close()


def _cell(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


class Audit:
    """Delivers the outbox's messages to both sinks, each in order and at its own speed."""

    def __init__(self, ledger: Ledger, tables: AuditTables, bus: Bus) -> None:
        self._ledger, self._tables, self._bus = ledger, tables, bus
        self._written = asyncio.Event()
        self._finishing = False

    def written(self) -> None:
        """Signal that the outbox has new messages."""
        self._written.set()

    async def deliver_to_streams(self) -> None:
        """Append messages to the streams; returns once the outbox is empty after `finish_streams`.

        It retries without limit, even if Redis refuses commands (after a password change, for example): the
        trader may hold a position and must not stop.
        """
        while True:
            self._written.clear()
            rows = self._ledger.undelivered(STREAMS_SINK, count=_BATCH)
            appended = 0
            try:
                for row in rows:
                    await self._append(row)
                    appended = row.seq
            except (ServiceError, SettingsError) as refused:
                log.warning("redis_refused", error=str(refused))
                await asyncio.sleep(_REFUSED_SECONDS)
            finally:
                marked = not appended or self._mark_delivered(STREAMS_SINK, appended)
            while not marked:  # otherwise the same messages would be appended again
                await asyncio.sleep(_REFUSED_SECONDS)
                marked = self._mark_delivered(STREAMS_SINK, appended)
            if not rows:
                if self._finishing:
                    return
                await self._written.wait()

    def finish_streams(self) -> None:
        """Make `deliver_to_streams` return once it has delivered what the outbox holds."""
        self._finishing = True
        self._written.set()

    async def write_tables(self) -> None:
        """Write to DuckDB every two seconds; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_TABLES_EVERY_SECONDS)
            await self.flush_tables()

    async def flush_tables(self) -> None:
        """Write undelivered messages to DuckDB; after a failure, the next call tries again."""
        while rows := self._ledger.undelivered(TABLES_SINK, count=_BATCH):
            try:
                await asyncio.to_thread(self._tables.insert, rows)
            except (duckdb.Error, OSError) as refused:
                log.warning("tables_not_written", error=str(refused))
                return
            if not self._mark_delivered(TABLES_SINK, rows[-1].seq):
                return

    def _mark_delivered(self, sink: str, seq: int) -> bool:
        """Note a delivery; False if the ledger cannot be written."""
        try:
            self._ledger.mark_delivered(sink, seq, SINKS)
        except LedgerError as refused:
            log.warning("delivery_not_noted", sink=sink, error=str(refused))
            return False
        return True

    async def _append(self, row: OutboxRow) -> None:
        match row.message:
            case DecisionMade() as decision:
                await self._bus.append(DECISIONS, decision)
            case TradeClosed() as trade:
                await self._bus.append(TRADES, trade)
            case AlertRaised() as alert:
                await self._bus.append(ALERTS, alert)
