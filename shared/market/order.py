"""Restore the order of files that were written newest first or in blocks out of order."""

from dataclasses import dataclass

import numpy as np

from shared.numeric import Int64

#: A shorter run counts as stray rows, not as a block of the file.
_MIN_BLOCK_ROWS = 10


@dataclass(frozen=True)
class Order:
    """The natural order of rows, and a description of what was out of order."""

    rows: Int64  # [T] indices of the file's rows
    finding: str  # empty if the rows stay as they are


def natural_order(time_s: Int64) -> Order:
    """The order of rows after the file is reversed or its blocks are sorted, where needed.

    The file is reversed if most times fall. The rows are then sorted by time, but only if that moves
    blocks: a row that would move alone may have a wrong time. Repeated times alone do not cause
    sorting; `first_disorder` finds them later.

    Args:
        time_s: `[T]` times in the file's order.
    """
    rows = np.arange(len(time_s))
    findings = []
    if np.sign(np.diff(time_s)).sum() < 0:
        rows = rows[::-1]
        findings.append("the file runs from the newest bar to the oldest")
    first = np.unique(time_s[rows], return_index=True)[1]  # [U] first row of each time, by time
    if (np.diff(first) < 0).any():
        repeats = np.ones(len(rows), np.int64)
        repeats[first] = 0
        rank = first - np.cumsum(repeats)[first]  # position among these first rows
        ends = np.append(np.flatnonzero(np.diff(rank) != 1), len(rank) - 1)
        lengths = np.diff(ends, prepend=-1)
        if lengths.min() >= _MIN_BLOCK_ROWS:
            rows = rows[np.argsort(time_s[rows], kind="stable")]
            findings.append(f"{len(lengths)} blocks of rows are out of order")
    return Order(rows, " and ".join(findings))
