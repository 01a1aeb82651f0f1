"""The data set: one DuckDB file with bars, features, sessions and their provenance.

DuckDB locks a file that is being written against readers in other processes. So a data set is written to a
temporary file, synced and renamed, and never changed afterwards. Readers open it read-only, copy its contents
into arrays, and close it.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from shared.adapters.outputs import atomic_output, check_output, naming
from shared.environment.outcome import label_outcomes
from shared.errors import DataError
from shared.features.window import FEATURE_NAMES, temporal_features
from shared.market.bar import BarSeries, Instrument
from shared.market.session import (
    NO_SPLIT,
    SESSION_BARS,
    SessionConfig,
    SessionIndex,
    Split,
    SplitConfig,
    index_sessions,
)
from shared.numeric import Float32, Int8

_arrow: Any = pa  # pyarrow has no type hints

#: Increased whenever tables, fingerprint, or the formulas of features and outcomes change.
SCHEMA_VERSION = 1

_DUCKDB_MAGIC_AT, _DUCKDB_MAGIC = slice(8, 12), b"DUCK"

_FEATURE_COLUMNS = ", ".join(f"{name} FLOAT" for name in FEATURE_NAMES)
_SCHEMA = f"""
    CREATE TABLE bars (
        bar_index BIGINT PRIMARY KEY, time TIMESTAMP NOT NULL,
        open DOUBLE NOT NULL, high DOUBLE NOT NULL, low DOUBLE NOT NULL, close DOUBLE NOT NULL,
        volume BIGINT NOT NULL, spread_pips DOUBLE
    );
    CREATE TABLE features_micro (bar_index BIGINT PRIMARY KEY, {_FEATURE_COLUMNS}, outcome TINYINT NOT NULL);
    CREATE TABLE sessions (start_index BIGINT PRIMARY KEY, split VARCHAR);
    CREATE TABLE dataset (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);
"""

#: Statements that insert arrays as the rows of each table; NaN in an array is NULL in the database.
_INSERTS = {
    "bars": """
        INSERT INTO bars SELECT bar_index, make_timestamp(time_s * 1000000), open, high, low, close, volume,
            nullif(spread_pips, 'NaN'::DOUBLE) FROM arrays
    """,
    "features_micro": f"""
        INSERT INTO features_micro SELECT bar_index,
            {", ".join(f"nullif({name}, 'NaN'::FLOAT)" for name in FEATURE_NAMES)}, outcome FROM arrays
    """,  # noqa: S608 - our own names
    "sessions": "INSERT INTO sessions SELECT start_index, split FROM arrays",
    "dataset": "INSERT INTO dataset SELECT key, value FROM arrays",
}

Columns = dict[str, npt.NDArray[Any]]

_Config = TypeVar("_Config", SessionConfig, SplitConfig)

#: Called with the number of tables written so far and the total number.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Dataset:
    """A data set in memory; all arrays except `sessions` have one row per bar."""

    bars: BarSeries
    features: Float32  # [T, 9] NaN before the first valid bar
    outcomes: Int8  # [T] ChanceOutcome, or UNDEFINED
    sessions: SessionIndex
    session_config: SessionConfig
    split_config: SplitConfig
    source: str  # origin of the bars, in words
    fingerprint: str  # SHA-256 of the bars; trajectories and checkpoints carry it

    @property
    def trained_until(self) -> datetime | None:
        """Opening time of the last bar of the training sessions; None if there are none."""
        starts = self.sessions.every(Split.TRAIN)
        if len(starts) == 0:
            return None
        return datetime.fromtimestamp(int(self.bars.time_s[starts.max() + SESSION_BARS]), UTC)


def build_dataset(
    bars: BarSeries,
    source: str,
    session_config: SessionConfig | None = None,
    split_config: SplitConfig | None = None,
) -> Dataset:
    """Compute everything that a data set stores about its bars.

    Raises:
        DataError: there are no bars.
    """
    if len(bars) == 0:
        raise DataError(f"{source}: no bars, so no data set can be made")
    sessions, splits = session_config or SessionConfig(), split_config or SplitConfig()
    return Dataset(
        bars=bars,
        features=temporal_features(bars),
        outcomes=label_outcomes(bars.close),
        sessions=index_sessions(bars, sessions, splits),
        session_config=sessions,
        split_config=splits,
        source=source,
        fingerprint=bars.fingerprint,
    )


def write_dataset(
    path: Path,
    bars: BarSeries,
    source: str,
    session_config: SessionConfig | None = None,
    split_config: SplitConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Dataset:
    """Write a data set atomically; an older one at the same path is replaced at the end.

    Returns:
        The data set that was written.
    Raises:
        DataError: there are no bars, or a file of another kind is at `path`.
    """
    target = check_dataset_output(Path(path))
    dataset = build_dataset(bars, source, session_config, split_config)
    tables = {
        "bars": _bar_columns(bars),
        "features_micro": _feature_columns(dataset.features, dataset.outcomes),
        "sessions": _session_columns(dataset.sessions),
        "dataset": _key_columns(dataset),
    }
    with _written(target) as connection:
        _execute(connection, _SCHEMA)
        for done, (name, columns) in enumerate(tables.items()):
            if progress:
                progress(done, len(tables))
            connection.register("arrays", columns)
            _execute(connection, _INSERTS[name])
            connection.unregister("arrays")
    if progress:
        progress(len(tables), len(tables))
    return dataset


def read_dataset(path: Path) -> Dataset:
    """Copy a data set into memory and close its file.

    Raises:
        DataError: the file is missing, is not a data set, has another schema version, or has bars or features
            that do not match their fingerprints.
    """
    path = Path(path)
    with _naming_errors(path, "read as a data set"):
        if not path.is_file():
            raise DataError(f"{path}: no such data set; make one with `data import` or `data synth`")
        if not is_duckdb(path):
            raise DataError(f"{path}: not a data set (not a DuckDB file); use `data import` for a bar file")
        with contextlib.closing(duckdb.connect(str(path), read_only=True)) as connection:
            return _read(path, connection)


def read_instrument(path: Path) -> Instrument:
    """The instrument of a data set, without reading its bars.

    Raises:
        DataError: the file is missing, or not a data set.
    """
    with _naming_errors(path, "read as a data set"):
        if not path.is_file() or not _is_dataset(path):
            raise DataError(f"{path}: not a data set; make one with `data import` or `data synth`")
        with contextlib.closing(duckdb.connect(str(path), read_only=True)) as connection:
            values = dict(connection.execute("SELECT key, value FROM dataset").fetchall())
    try:
        return Instrument(values["instrument"], int(values["pip_location"]))
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: table `dataset` has a missing or invalid {error}") from error


def export_features(dataset: Dataset, path: Path) -> None:
    """Write a Parquet file of bar_index, time (UTC), the nine features (null where undefined) and outcome.

    Raises:
        DataError: a file of another kind is at `path`, or the export cannot be written.
    """
    target = check_features_output(path)
    columns = _feature_columns(dataset.features, dataset.outcomes)
    table = {
        "bar_index": columns.pop("bar_index"),
        "time": _arrow.array(dataset.bars.time_s * 1_000_000, _arrow.timestamp("us", "UTC")),
        **{name: _arrow.array(column, from_pandas=True) for name, column in columns.items()},
    }
    with atomic_output(target) as temporary:
        _arrow.parquet.write_table(_arrow.table(table), temporary)


def check_dataset_output(path: Path, *inputs: Path) -> Path:
    """The file to write for a data set at `path`; see `check_output`.

    Raises:
        DataError: a file of another kind would be overwritten, or writing is not possible.
    """
    return check_output(path, "data set", _is_dataset, *inputs, may_lack_folder=True)


def is_duckdb(path: Path) -> bool:
    """Whether a file is a DuckDB database, as every data set is.

    Raises:
        DataError: the file cannot be read.
    """
    with naming(path, "read"), path.open("rb") as file:
        return file.read(_DUCKDB_MAGIC_AT.stop)[_DUCKDB_MAGIC_AT] == _DUCKDB_MAGIC


def check_features_output(path: Path, *inputs: Path) -> Path:
    """The file to write for exported features at `path`; see `check_output`.

    Raises:
        DataError: a file of another kind would be overwritten, or writing is not possible.
    """
    return check_output(path, "export of features", _is_export, *inputs, may_lack_folder=True)


@contextlib.contextmanager
def _written(target: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A new database that replaces `target` when the block succeeds."""
    with (
        _naming_errors(target, "written"),
        atomic_output(target) as temporary,
        contextlib.closing(duckdb.connect(str(temporary))) as connection,
    ):
        yield connection


@contextlib.contextmanager
def _naming_errors(path: Path, what: str) -> Iterator[None]:
    """Translate errors of the file system and of DuckDB into a DataError that names the file."""
    with naming(path, what):
        try:
            yield
        except duckdb.Error as error:
            raise DataError(f"{path}: cannot be {what}: {str(error).partition(chr(10))[0]}") from error


def _is_dataset(path: Path) -> bool:
    """Whether a file is a data set of any release: a DuckDB file that records its schema version."""
    if not is_duckdb(path):
        return False
    query = "SELECT count(*) FROM dataset WHERE key = 'schema_version'"
    try:
        with contextlib.closing(duckdb.connect(str(path), read_only=True)) as connection:
            return connection.execute(query).fetchall() == [(1,)]
    except duckdb.Error:  # damaged, in use by a writer, or another schema
        return False


def _is_export(path: Path) -> bool:
    try:
        names = _arrow.parquet.read_schema(path).names
    except _arrow.ArrowException:
        return False
    return bool(names == ["bar_index", "time", *FEATURE_NAMES, "outcome"])


def _bar_columns(bars: BarSeries) -> Columns:
    names = ("time_s", "open", "high", "low", "close", "volume", "spread_pips")
    return {"bar_index": np.arange(len(bars)), **{name: getattr(bars, name) for name in names}}


def _feature_columns(features: Float32, outcomes: Int8) -> Columns:
    columns = {name: np.ascontiguousarray(features[:, n]) for n, name in enumerate(FEATURE_NAMES)}
    return {"bar_index": np.arange(len(outcomes)), **columns, "outcome": outcomes}


def _session_columns(sessions: SessionIndex) -> Columns:
    names = np.array([*(split.value for split in Split), None], dtype=object)  # NO_SPLIT (-1): the last
    return {"start_index": sessions.starts, "split": names[sessions.split]}


def _key_columns(dataset: Dataset) -> Columns:
    values: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "instrument": dataset.bars.instrument.name,
        "pip_location": dataset.bars.instrument.pip_location,
        "source": dataset.source,
        "fingerprint": dataset.fingerprint,
        "features_fingerprint": _features_fingerprint(dataset.features, dataset.outcomes),
        **{f"sessions.{key}": value for key, value in asdict(dataset.session_config).items()},
        **{f"splits.{key}": value for key, value in asdict(dataset.split_config).items()},
    }
    texts = [str(value) for value in values.values()]
    return {"key": np.array(list(values), dtype=object), "value": np.array(texts, dtype=object)}


def _features_fingerprint(features: Float32, outcomes: Int8) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(features, "<f4").data)
    digest.update(np.ascontiguousarray(outcomes, np.int8).data)
    return digest.hexdigest()


def _read(path: Path, connection: duckdb.DuckDBPyConnection) -> Dataset:
    values: dict[str, str] = dict(connection.execute("SELECT key, value FROM dataset").fetchall())
    version = values.get("schema_version")
    if version != str(SCHEMA_VERSION):
        raise DataError(
            f"{path}: schema version {version}, expected {SCHEMA_VERSION}; import its source again"
        )
    try:
        instrument = Instrument(values["instrument"], int(values["pip_location"]))
        sessions = _read_config(SessionConfig(), "sessions", values)
        splits = _read_config(SplitConfig(), "splits", values)
        fingerprint, features_fingerprint = values["fingerprint"], values["features_fingerprint"]
        source = values["source"]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path}: table `dataset` has a missing or invalid {error}; import its source again"
        ) from error

    bars = _read_bars(connection, instrument)
    if bars.fingerprint != fingerprint:
        raise DataError(
            f"{path}: the bars have fingerprint {bars.fingerprint[:12]}…, expected {fingerprint[:12]}…; "
            "the file is damaged or was edited, import its source again"
        )
    features, outcomes = _read_features(connection)
    if _features_fingerprint(features, outcomes) != features_fingerprint:
        raise DataError(
            f"{path}: features or outcomes do not match their fingerprint; import its source again"
        )
    return Dataset(
        bars, features, outcomes, _read_sessions(connection), sessions, splits, source, fingerprint
    )


def _read_config(defaults: _Config, group: str, values: dict[str, str]) -> _Config:
    return type(defaults)(
        **{key: type(default)(values[f"{group}.{key}"]) for key, default in asdict(defaults).items()}
    )


def _read_bars(connection: duckdb.DuckDBPyConnection, instrument: Instrument) -> BarSeries:
    query = """
        SELECT epoch_us(time) // 1000000 AS time_s, open, high, low, close, volume,
            coalesce(spread_pips, 'NaN'::DOUBLE) AS spread_pips
        FROM bars ORDER BY bar_index
    """
    return BarSeries(instrument, **_fetch(connection, query))


def _read_features(connection: duckdb.DuckDBPyConnection) -> tuple[Float32, Int8]:
    values = ", ".join(f"coalesce({name}, 'NaN'::FLOAT) AS {name}" for name in FEATURE_NAMES)
    query = f"SELECT {values}, outcome FROM features_micro ORDER BY bar_index"  # noqa: S608 - our own names
    columns = _fetch(connection, query)
    features = np.empty((len(columns["outcome"]), len(FEATURE_NAMES)), np.float32)
    for n, name in enumerate(FEATURE_NAMES):
        features[:, n] = columns[name]
    return features, columns["outcome"]


def _read_sessions(connection: duckdb.DuckDBPyConnection) -> SessionIndex:
    codes = " ".join(f"WHEN '{split.value}' THEN {split.code}" for split in Split)
    query = f"""
        SELECT start_index, CAST(CASE split {codes} ELSE {NO_SPLIT} END AS TINYINT) AS code
        FROM sessions ORDER BY start_index
    """  # noqa: S608 - our own names
    columns = _fetch(connection, query)
    return SessionIndex.of(columns["start_index"], columns["code"])


def _fetch(connection: duckdb.DuckDBPyConnection, query: str) -> Columns:
    return cast("Columns", _execute(connection, query).fetchnumpy())


def _execute(connection: duckdb.DuckDBPyConnection, query: str) -> duckdb.DuckDBPyConnection:
    try:
        return connection.execute(query)
    except RuntimeError as error:  # DuckDB raises this after Ctrl-C
        if str(error) == "Query interrupted":
            raise KeyboardInterrupt from error
        raise
