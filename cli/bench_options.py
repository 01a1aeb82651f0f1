"""What the commands of `bench` share: options, one thread, and the table of what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import figure, print_json, print_table

if TYPE_CHECKING:
    from benchmarks.measure import Measurement

Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Seconds = Annotated[float, typer.Option(min=0.0, help="to measure for, at least")]
Profile = Annotated[Path | None, typer.Option(help="TOML file of settings, such as config/tuned.toml")]
Seed = Annotated[int, typer.Option(min=0, help="of everything that is drawn")]


def one_thread() -> None:
    """Every goal is for one thread a worker."""
    import torch

    torch.set_num_threads(1)


def print_measurements(
    benchmark: str, measurements: Sequence["Measurement"], *, as_json: bool, **more: object
) -> None:
    """Print a table, or one document with `more` in it."""
    if as_json:
        rows = [measurement.document() for measurement in measurements]
        print_json({"benchmark": benchmark, "measurements": rows, **more})
        return
    print_table(
        f"bench {benchmark}: a ratio above 1 is better than the yardstick",
        ("measured", "value", "yardstick", "ratio", "goal", "met"),
        (
            (
                row.name,
                f"{figure(row.value)} {row.unit}",
                f"{figure(row.yardstick_value)} {row.unit}: {row.yardstick}",
                f"{row.ratio:.3g}",
                row.goal,
                row.met,
            )
            for row in measurements
        ),
    )


def print_shares(title: str, column: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print what time is spent on, in %: a row for each name, all of them with the same parts."""
    parts = next(iter(rows.values()))
    print_table(
        f"{title}, in %",
        (column, *parts),
        [(name, *(f"{100.0 * share:.1f}" for share in shares.values())) for name, shares in rows.items()],
    )
