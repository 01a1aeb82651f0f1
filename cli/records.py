"""`runs`: list the recorded training runs, or show how one of them learned."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import duckdb
import typer

from cli.output import print_fields, print_json, print_table
from cli.runs import last_run
from shared.adapters.tables.run_record import SETTINGS
from shared.errors import DataError
from shared.runtime.settings import ServiceSettings, load

app = typer.Typer(help="Show the records of training runs.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]

#: Maximum attempts of a query. One fails if small files are compacted while it reads them.
_TRIES = 5

_SUMMARY = (
    "version",
    "episodes",
    "updates",
    "reward",
    "pips",
    "trades",
    "expectancy_pips",
    "win_rate",
    "trade_ratio",
    "learned_at",
)

#: Figure by heading. The tables fit 80 characters; --json prints all figures.
_RUN_COLUMNS = {
    "version": "version",
    "episodes": "episodes",
    "pips": "pips",
    "win rate": "win_rate",
    "trading": "trade_ratio",
}
_EPISODE_COLUMNS = {
    "episode": "episode",
    "version": "played_by",
    "reward": "reward",
    "pips": "pips",
    "trades": "trades",
    "win rate": "win_rate",
    "trading": "trade_ratio",
}
_UPDATE_COLUMNS = {
    "episode": "episode",
    "update": "update",
    "skipped": "skipped",
    "loss": "loss",
    "norm": "gradient_norm",
    "value ±": "value_error_pips",
    "reward ±": "reward_error_pips",
    "entropy": "policy_entropy",
}

_TRADING = """
    max(version) as played_by, avg(reward) as reward, avg(pips) as pips, avg(trades) as trades,
    sum(pips) / nullif(sum(trades), 0) as expectancy_pips, sum(wins) / nullif(sum(trades), 0) as win_rate,
    sum(trade_ratio * steps) / sum(steps) as trade_ratio
"""
_TRADING_BY_STRETCH = f"""
    select max(episode) as episode, {_TRADING}
    from recorded group by (episode - 1) // $stretch order by 1
"""  # noqa: S608 - our own names
_LEARNING_BY_STRETCH = """
    select max(episode) as episode, max("update") as "update", count(*) filter (skipped) as skipped,
        avg(columns(* exclude (attempt, "update", episode, "time", skipped)))
    from recorded group by (episode - 1) // $stretch order by 1
"""
_LAST_EPISODES = f"""
    select max(episode) as episodes, max("time")::varchar as learned_at, {_TRADING}
    from recorded where episode > (select max(episode) - 50 from recorded)
"""  # noqa: S608 - our own names

Row = dict[str, Any]


class NoRecordError(DataError):
    """There is no record of a run in the folder."""

    user_fault = True


@app.command("list")
def list_runs(as_json: Json = False) -> None:
    """List the recorded runs and the results of their last 50 episodes."""
    home = load(ServiceSettings).home
    runs = [_summary(folder) for folder in _records(home)]
    if as_json:
        print_json(runs)
        return
    print_table(
        f"runs in {home}: their last 50 episodes",
        ("run", *_RUN_COLUMNS),
        [
            [
                _name(Path(run["record"]), home),
                *(run[name] for name in _RUN_COLUMNS.values()),
            ]
            for run in runs
        ],
    )


@app.command()
def show(
    record: Annotated[
        Path | None, typer.Argument(help="folder of a record; default: that of the last local run")
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="number of intervals to divide the run into")] = 12,
    as_json: Json = False,
) -> None:
    """Show the settings and the learning curve of one run."""
    folder = record or _last(load(ServiceSettings).home)
    starts, summary = _starts(folder), _summary(folder)
    stretch = {"stretch": max(-(-(summary["episodes"] or 0) // points), 1)}
    trading = _query(folder, "episodes", _TRADING_BY_STRETCH, stretch)
    learning = _query(folder, "updates", _LEARNING_BY_STRETCH, stretch)
    if as_json:
        print_json({**summary, "starts": starts, "trading": trading, "learning": learning})
        return
    print_fields(str(folder), {k: v for k, v in summary.items() if k != "record"})
    for start in starts:
        print_fields(
            f"settings from episode {start['episode']} on, {start['time'][:16]}", _flat(start["settings"])
        )
    _print_intervals("means of the episodes of each interval, by its last episode", trading, _EPISODE_COLUMNS)
    _print_intervals("means of the updates of each interval, by its last episode", learning, _UPDATE_COLUMNS)


def _records(home: Path) -> list[Path]:
    """The record of the home itself, and those of local runs."""
    found = [home / "record", *sorted(home.glob("runs/*/record"))]
    return [folder for folder in found if (folder / SETTINGS).is_file()]


def _name(record: Path, home: Path) -> str:
    """Name of a run: its folder, or "." for the record of the home itself."""
    return record.parent.name if record.parent != home else "."


def _last(home: Path) -> Path:
    run = last_run(home)
    folders = [home / "record", *([Path(run.folder) / "record"] if run else [])]
    for folder in folders:
        if (folder / SETTINGS).is_file():
            return folder
    raise NoRecordError(
        f"no record in {' or '.join(map(str, folders))}; name a folder, or start a run with `up`"
    )


def _summary(folder: Path) -> Row:
    """The figures of a run; figures that were not recorded are None."""
    settings = _starts(folder)[-1]["settings"]
    data = settings.get("dataset")
    found = {
        "episodes": _query(folder, "episodes", _LAST_EPISODES),
        "updates": _query(folder, "updates", 'select max("update") as updates from recorded'),
        "versions": _query(folder, "versions", "select max(version) as version from recorded"),
    }
    figures = {name: value for rows in found.values() for row in rows for name, value in row.items()}
    return {
        "record": str(folder),
        "data": data.get("source") if isinstance(data, dict) else data,
        "seed": settings.get("seed"),
        **{name: figures.get(name) for name in _SUMMARY},
    }


def _print_intervals(title: str, rows: list[Row], columns: Mapping[str, str]) -> None:
    """Print the columns that the record has."""
    if rows:
        shown = {heading: name for heading, name in columns.items() if name in rows[0]}
        print_table(title, tuple(shown), [[row[name] for name in shown.values()] for row in rows])


def _starts(folder: Path) -> list[Row]:
    try:
        starts: list[Row] = json.loads((folder / SETTINGS).read_bytes())
    except OSError as missing:
        raise NoRecordError(f"{folder}: no record of a run ({SETTINGS}: {missing.strerror})") from missing
    except ValueError as damaged:
        raise DataError(f"{folder / SETTINGS}: damaged ({damaged})") from damaged
    return starts


def _query(folder: Path, table: str, query: str, values: Mapping[str, int] | None = None) -> list[Row]:
    """Query one table under the name `recorded`; returns no rows if the table does not exist yet."""
    files = folder / f"{table}-*.parquet"
    statement = (
        f"with recorded as (select distinct * from read_parquet($files, union_by_name = true)) {query}"  # noqa: S608 - our own queries
    )
    for tries_left in reversed(range(_TRIES)):
        if not any(folder.glob(files.name)):
            break
        try:
            with contextlib.closing(duckdb.connect()) as connection:
                answer = connection.execute(statement, {"files": str(files), **(values or {})})
                names = [column[0] for column in answer.description or ()]
                return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
        except duckdb.Error as broken:
            if not isinstance(broken, duckdb.IOException) or not tries_left:
                raise DataError(f"{files}: {str(broken).partition(chr(10))[0]}") from broken
    return []


def _flat(settings: Mapping[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= (
            {f"{name}.{k}": v for k, v in _flat(value).items()} if isinstance(value, dict) else {name: value}
        )
    return flat
