"""How commands print: one JSON document on stdout, or a table; everything else goes to stderr."""

import contextlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console()
err = Console(stderr=True)


def print_line(text: str) -> None:
    """Print a line on stderr; any character may be in it.

    Raises:
        OSError: stderr cannot be written to, because its terminal is closed for example.
    """
    print(text, file=sys.stderr, flush=True)  # rich would end the thread where a pipe is closed


def say(text: str) -> None:
    """Print a line on stderr if that is possible: for commands that must go on in any case."""
    with contextlib.suppress(OSError):
        print_line(text)


def print_json(document: object) -> None:
    """Print one JSON document on stdout; numbers that JSON has no word for become null."""
    print(json.dumps(_without_nan(document), indent=2, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as a table; numbers stand to the right."""
    table = _table(title, show_header=True)
    cells = [list(row) for row in rows]
    for position, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[position], int | float) for row in cells)
        table.add_column(column, justify="right" if numeric else "left")
    for row in cells:
        table.add_row(*(_cell(value) for value in row))
    out.print(table)


def print_fields(title: str, fields: Mapping[str, object]) -> None:
    """Print names and values, one a line."""
    table = _table(title, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # a hash is of no use without its end
    for name, value in fields.items():
        table.add_row(name, _cell(value))
    out.print(table)


def progress_bar() -> Progress:
    """A progress bar on stderr that counts things done, with the time that remains."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def _table(title: str, *, show_header: bool) -> Table:
    return Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        show_header=show_header,
        box=box.ROUNDED,
    )


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return figure(value)
    return escape(str(value))


def figure(value: float) -> str:
    """Four digits; large numbers whole, since 1.992e+04 reads badly beside 8,595."""
    return f"{value:,.0f}" if abs(value) >= 1_000.0 else f"{value:.4g}"


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
