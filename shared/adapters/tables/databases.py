"""A DuckDB file with its tables: there whole, or not there."""

import contextlib
import os
from pathlib import Path

import duckdb


def begin_database(path: Path, schema: str) -> None:
    """Make a database with the schema's tables where there is none yet.

    It is made aside and renamed: a process that is killed meanwhile leaves no file without tables,
    which the next one could neither use nor tell from a damaged one.

    Raises:
        duckdb.Error: the database cannot be made.
        OSError: the folder refuses.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.unlink(missing_ok=True)
    with contextlib.closing(duckdb.connect(str(aside))) as connection:
        connection.execute(schema)
    aside.replace(path)
