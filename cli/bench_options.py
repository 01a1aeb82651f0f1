"""Options and output that the commands of `bench` share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from cli.output import figure, out, print_json, print_table

if TYPE_CHECKING:
    from benchmarks.measure import Measurement

Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Seconds = Annotated[float, typer.Option(min=0.0, help="minimum duration of the measurement")]
Profile = Annotated[Path | None, typer.Option(help="TOML file of settings, such as config/tuned.toml")]
Seed = Annotated[int, typer.Option(min=0, help="seed of all random numbers")]


def one_thread() -> None:
    """Limit torch to one thread, for which all goals are set."""
    import torch

    torch.set_num_threads(1)


def print_measurements(
    benchmark: str,
    measurements: Sequence["Measurement"],
    *,
    as_json: bool,
    rows_are: str = "measured",
    **more: object,
) -> None:
    """Print a table and a legend of its units and yardsticks, or one JSON document with `more` in it."""
    if as_json:
        rows = [measurement.document() for measurement in measurements]
        print_json({"benchmark": benchmark, "measurements": rows, **more})
        return
    out.print(measurement_table(benchmark, measurements, rows_are))
    for line in measurement_legend(measurements):
        out.print(line, markup=False, highlight=False)


def measurement_table(benchmark: str, measurements: Sequence["Measurement"], rows_are: str) -> Table:
    """The measurements as a table of 80 columns. Only the first column wraps.

    If the yardsticks differ, a letter after the yardstick's value refers to the legend.
    """
    table = Table(
        title=f"bench {benchmark}: a ratio above 1 is better than the yardstick",
        title_justify="left",
        title_style="bold",
        box=box.ROUNDED,
    )
    table.add_column(rows_are)
    for column in ("value", "yardstick", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("goal", "met"):
        table.add_column(column, no_wrap=True)
    letters = _letters(measurements)
    mixed_units = len({row.unit for row in measurements}) > 1
    for row in measurements:
        name = row.label or row.name
        table.add_row(
            escape(f"{name} ({row.unit})" if mixed_units else name),
            figure(row.value),
            f"{figure(row.yardstick_value)} {letters[row.yardstick]}".rstrip(),
            f"{row.ratio:.3g}",
            "\n".join(row.goals()) or "–",
            {None: "–", True: "yes", False: "no"}[row.met],
        )
    return table


def measurement_legend(measurements: Sequence["Measurement"]) -> list[str]:
    """Lines with the common unit, if there is one, and with each yardstick."""
    units = {row.unit for row in measurements}
    lines = [f"unit: {units.pop()}"] if len(units) == 1 else []
    for yardstick, letter in _letters(measurements).items():
        lines.append(f"{f'yardstick {letter}'.rstrip()}: {yardstick}")
    return lines


def _letters(measurements: Sequence["Measurement"]) -> dict[str, str]:
    """A letter per yardstick, or no letter if all rows have the same one."""
    yardsticks = list(dict.fromkeys(row.yardstick for row in measurements))
    letters = ascii_lowercase if len(yardsticks) > 1 else [""]
    return dict(zip(yardsticks, letters, strict=False))


def print_shares(title: str, column: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print the shares of time in %, one row per name; every row has the same parts."""
    parts = next(iter(rows.values()))
    print_table(
        f"{title}, in %",
        (column, *parts),
        [(name, *(f"{100.0 * share:.1f}" for share in shares.values())) for name, shares in rows.items()],
    )
