"""Atomic creation of a DuckDB file with its tables."""

import contextlib
import os
from pathlib import Path

import duckdb


def begin_database(path: Path, schema: str) -> None:
    """Create a database with the schema's tables, unless the file exists.

    The database is created under a temporary name and renamed, because a killed process must not leave a file
    without tables: the next process could not use it, or distinguish it from a damaged one.

    Raises:
        duckdb.Error: the database cannot be created.
        OSError: the folder cannot be used.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    with contextlib.closing(duckdb.connect(str(temporary))) as connection:
        connection.execute(schema)
    temporary.replace(path)
