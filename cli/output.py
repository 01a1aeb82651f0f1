"""Output of commands: results go to stdout as a table or one JSON document, everything else to stderr."""

import contextlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

out = Console()
err = Console(stderr=True)


def print_line(text: str) -> None:
    """Print a line on stderr, without interpreting markup.

    Raises:
        OSError: stderr cannot be written to, for example because its terminal is closed.
    """
    print(text, file=sys.stderr, flush=True)  # rich would exit the thread on a closed pipe


def say(text: str) -> None:
    """Print a line on stderr; a failure to write is ignored, so that the command continues."""
    with contextlib.suppress(OSError):
        print_line(text)


def print_json(document: object) -> None:
    """Print one JSON document on stdout; NaN and infinities become null."""
    print(json.dumps(_without_nan(document), indent=2, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as a table; numbers are right-aligned, and long texts wrap between words."""
    table = _table(title, show_header=True)
    cells = [list(row) for row in rows]
    texts = [[_cell(value) for value in row] for row in cells]
    widths = _column_widths([columns, *texts], out.width)
    for position, (column, width) in enumerate(zip(columns, widths, strict=True)):
        numeric = bool(cells) and all(isinstance(row[position], int | float) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", width=width, overflow="fold")
    for row in texts:
        table.add_row(*(escape(text) for text in row))
    out.print(table)


def _column_widths(rows: Sequence[Sequence[str]], line_width: int) -> list[int]:
    """Widths with which a table fits the line; words are only broken if there is no other way."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    words = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in columns]
    excess = sum(widths) - (line_width - 3 * len(columns) - 1)  # borders and padding
    for least in (words, [1] * len(columns)):
        while excess > 0 and any(width > minimum for width, minimum in zip(widths, least, strict=True)):
            widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__)
            widths[widest] -= 1
            excess -= 1
    return widths


def print_fields(title: str, fields: Mapping[str, object]) -> None:
    """Print one name and value per line."""
    table = _table(title, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")  # a truncated hash is useless
    for name, value in fields.items():
        table.add_row(name, escape(_cell(value)))
    out.print(table)


def progress_bar() -> Progress:
    """A progress bar on stderr with a count and the remaining time; hidden if stderr is no terminal."""
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
    return str(value)


def figure(value: float) -> str:
    """Format with four digits; from 1,000 on as a whole number, since 1.992e+04 reads badly beside 8,595."""
    return f"{value:,.0f}" if abs(value) >= 1_000.0 else f"{value:.4g}"


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
