"""Restore the order of files that were written newest first or in blocks out of order."""

from dataclasses import dataclass

import numpy as np

from shared.numeric import Int64

#: A shorter run counts as stray rows, not as a block of the file.
_MIN_BLOCK_ROWS = 10


@dataclass(frozen=True)
class Order:
    """The natural order of rows, and what was out of order, in words; empty if nothing was."""

    rows: Int64  # [T] indices of the file's rows
    finding: str


def natural_order(time_s: Int64) -> Order:
    """The order in which times rise, found without deciding whether a single row is wrong.

    If most times fall, the file is reversed. The rows are then sorted by time if that moves only
    blocks of rows; a row that would move alone may have a wrong time. Rows that repeat an earlier time
    are no reason to sort; `first_disorder` finds them afterwards.

    Args:
        time_s: `[T]` in the file's order.
    """
    rows = np.arange(len(time_s))
    findings = []
    if np.sign(np.diff(time_s)).sum() < 0:
        rows = rows[::-1]
        findings.append("the file runs from the newest bar to the oldest")
    first = np.unique(time_s[rows], return_index=True)[1]  # [U] first row of each time, in rising time
    if (np.diff(first) < 0).any():
        repeats = np.ones(len(rows), np.int64)
        repeats[first] = 0
        rank = first - np.cumsum(repeats)[first]  # position among the rows that repeat no other
        ends = np.append(np.flatnonzero(np.diff(rank) != 1), len(rank) - 1)
        lengths = np.diff(ends, prepend=-1)
        if lengths.min() >= _MIN_BLOCK_ROWS:
            rows = rows[np.argsort(time_s[rows], kind="stable")]
            findings.append(f"{len(lengths)} blocks of rows are out of order")
    return Order(rows, " and ".join(findings))
