import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from shared.adapters.tables.databases import begin_database

SCHEMA = "CREATE TABLE first (x BIGINT); CREATE TABLE second (y VARCHAR);"


def _tables(path: Path) -> list[str]:
    with contextlib.closing(duckdb.connect(str(path), read_only=True)) as connection:
        return sorted(name for (name,) in connection.execute("SHOW TABLES").fetchall())


def test_an_existing_database_is_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "some.duckdb"
    begin_database(path, SCHEMA)
    with contextlib.closing(duckdb.connect(str(path))) as connection:
        connection.execute("INSERT INTO first VALUES (7)")
    begin_database(path, SCHEMA)
    with contextlib.closing(duckdb.connect(str(path))) as connection:
        assert connection.execute("SELECT x FROM first").fetchall() == [(7,)]
    assert [file.name for file in path.parent.iterdir()] == ["some.duckdb"]


def test_a_faulty_schema_leaves_no_database(tmp_path: Path) -> None:
    with pytest.raises(duckdb.Error):
        begin_database(tmp_path / "some.duckdb", "CREATE TABLE first (x BIGINT); CREATE TABLE (")
    assert not (tmp_path / "some.duckdb").exists()


def test_a_killed_process_leaves_all_tables_or_no_file(tmp_path: Path) -> None:
    program = f"""
import sys, pathlib, shared.adapters.tables.databases as d
print("ready", flush=True)
for n in range(10_000):
    d.begin_database(pathlib.Path(sys.argv[1]) / f"{{n}}.duckdb", {SCHEMA!r})
    print(n, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        made = [process.stdout.readline() for _ in range(6)]
        process.send_signal(signal.SIGKILL)
    assert len(made) == 6
    databases = list(tmp_path.glob("[0-9]*.duckdb"))
    assert len(databases) >= 5
    assert all(_tables(path) == ["first", "second"] for path in databases)
