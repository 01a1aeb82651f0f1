"""The audit: every decision, trade and alert goes from the ledger's outbox to Redis and to a DuckDB file.

The outbox is on disk, so that a message waits there for as long as Redis is away and outlives the trader.
Each sink keeps its own place; a message told twice after a crash has the same `seq` in DuckDB and is one
row there, and is one more entry on its stream.
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

#: Between two tries while Redis refuses, or while the ledger cannot be written.
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

#: Table of each message, and the fields that are its columns after `seq`.
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
    """The DuckDB file of one trader, its only opener once it has written to it.

    It is opened at the first insert, not before: another program that has it open must not keep the trader
    from starting, which may hold a position.
    """

    def __init__(self, path: Path) -> None:
        """Open nothing yet."""
        self._path = path
        self._using = threading.Lock()
        self._db: duckdb.DuckDBPyConnection | None = None

    def insert(self, rows: Sequence[OutboxRow]) -> None:
        """Insert messages in one transaction; one that is there already stays as it is.

        Raises:
            duckdb.Error: another process has the file open, it is damaged, or the disk is full.
            OSError: the folder refuses.
        """
        with self._using:
            self._db = self._db or self._opened()
            self._insert(self._db, rows)

    def _opened(self) -> duckdb.DuckDBPyConnection:
        begin_database(self._path, _SCHEMA)
        db = duckdb.connect(str(self._path), config={"threads": 1, "memory_limit": "256MB"})
        try:
            db.execute("ALTER TABLE trades ALTER units TYPE DOUBLE")  # earlier releases: whole units
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
        """Write everything into the file and close it; an insert that another thread is at is finished."""
        with self._using:
            if self._db is not None:
                self._db.close()


def _cell(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


class Audit:
    """Tells the outbox's messages to both sinks, each in order and at its own speed."""

    def __init__(self, ledger: Ledger, tables: AuditTables, bus: Bus) -> None:
        self._ledger, self._tables, self._bus = ledger, tables, bus
        self._written = asyncio.Event()
        self._last_word = False

    def written(self) -> None:
        """Say that the outbox has something new."""
        self._written.set()

    async def tell_streams(self) -> None:
        """Append to the streams, waiting for Redis as long as it takes; ends when the last word is said.

        A Redis that refuses, a changed password for one, is waited for too: the trader may hold a position.
        """
        while True:
            self._written.clear()
            rows = self._ledger.untold(STREAMS_SINK, count=_BATCH)
            appended = 0
            try:
                for row in rows:
                    await self._append(row)
                    appended = row.seq
            except (ServiceError, SettingsError) as refused:
                log.warning("streams_refused", error=str(refused))
                await asyncio.sleep(_REFUSED_SECONDS)
            finally:
                noted = not appended or self._note(STREAMS_SINK, appended)
            while not noted:  # else the same would be appended again
                await asyncio.sleep(_REFUSED_SECONDS)
                noted = self._note(STREAMS_SINK, appended)
            if not rows:
                if self._last_word:
                    return
                await self._written.wait()

    def say_last_word(self) -> None:
        """Nothing is written any more: what is there is told, then `tell_streams` ends."""
        self._last_word = True
        self._written.set()

    async def write_tables(self) -> None:
        """Write to DuckDB every two seconds; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_TABLES_EVERY_SECONDS)
            await self.flush_tables()

    async def flush_tables(self) -> None:
        """Write to DuckDB what is not there yet; what it refuses is tried again at the next call."""
        while rows := self._ledger.untold(TABLES_SINK, count=_BATCH):
            try:
                await asyncio.to_thread(self._tables.insert, rows)
            except (duckdb.Error, OSError) as refused:
                log.warning("tables_not_written", error=str(refused))
                return
            if not self._note(TABLES_SINK, rows[-1].seq):
                return

    def _note(self, sink: str, seq: int) -> bool:
        """Note that a sink was told; False where the ledger cannot be written."""
        try:
            self._ledger.told(sink, seq, SINKS)
        except LedgerError as refused:
            log.warning("sink_not_noted", sink=sink, error=str(refused))
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
