"""The order of a file's rows: newest first and blocks out of order lose nothing when they are sorted."""

from dataclasses import dataclass

import numpy as np

from shared.numeric import Int64

#: A shorter run of rows is stray rows, not a block of the file.
_MIN_BLOCK_ROWS = 10


@dataclass(frozen=True)
class Order:
    """Which row comes when, and what was found, in words; empty where the file is in order."""

    rows: Int64  # [T] indices of the file's rows
    finding: str


def natural_order(time_s: Int64) -> Order:
    """The order that restores rising times without judging a single row.

    A file whose times mostly fall is reversed. Then the rows are sorted by time if that only moves
    blocks of rows: if a single row would move alone, it may have a wrong time. Rows that repeat the
    time of an earlier one are no reason to sort; they are found afterwards.

    Args:
        time_s: `[T]` in the file's order.
    """
    rows = np.arange(len(time_s))
    findings = []
    if np.sign(np.diff(time_s)).sum() < 0:
        rows = rows[::-1]
        findings.append("the file runs from the newest bar to the oldest")
    first = np.unique(time_s[rows], return_index=True)[1]  # [U] where each time comes first, in rising time
    if (np.diff(first) < 0).any():
        repeats = np.ones(len(rows), np.int64)
        repeats[first] = 0
        place = first - np.cumsum(repeats)[first]  # among the rows that repeat none
        ends = np.append(np.flatnonzero(np.diff(place) != 1), len(place) - 1)
        lengths = np.diff(ends, prepend=-1)
        if lengths.min() >= _MIN_BLOCK_ROWS:
            rows = rows[np.argsort(time_s[rows], kind="stable")]
            findings.append(f"{len(lengths)} blocks of rows are not in order of time")
    return Order(rows, " and ".join(findings))
