"""Which files are sorted, and which are left for the repair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.market.order import natural_order

#: Lengths of the blocks of a file, their order in it, and whether it runs newest first.
BLOCKS = st.lists(st.integers(10, 25), min_size=1, max_size=6).flatmap(
    lambda lengths: st.tuples(st.just(lengths), st.permutations(range(len(lengths))), st.booleans())
)


@given(BLOCKS)
def test_blocks_in_any_order_and_files_newest_first_are_sorted(
    blocks: tuple[list[int], list[int], bool],
) -> None:
    lengths, written, newest_first = blocks
    starts = np.cumsum([0, *lengths])
    order = list(reversed(range(len(lengths)))) if newest_first else written
    parts = [np.arange(starts[block], starts[block + 1]) * 60 for block in order]
    time_s = np.concatenate([part[::-1] if newest_first else part for part in parts])
    found = natural_order(time_s)
    assert time_s[found.rows].tolist() == sorted(time_s.tolist())
    assert bool(found.finding) == (time_s.tolist() != sorted(time_s.tolist()))


@pytest.mark.parametrize(
    "time_s",
    [
        [1, 2, 3, 900, 4, 5, 6],  # a stray time in the future
        [900, *range(20)],  # a stray time in the future before all others
        [*range(20), -5],  # a stray time in the past after all others
        [*range(20), *range(5, 8), *range(20, 40)],  # a short block twice
        [1, 2, 2, 3],
        [7],
        [],
    ],
)
def test_a_row_that_may_have_a_wrong_time_is_not_moved(time_s: list[int]) -> None:
    found = natural_order(np.array(time_s, dtype=np.int64))
    assert found.rows.tolist() == list(range(len(time_s)))
    assert not found.finding


def test_a_stray_row_of_a_file_newest_first_is_not_moved_among_the_others() -> None:
    time_s = np.array([9, 8, 7, 900, 6, 5, 4])
    assert time_s[natural_order(time_s).rows].tolist() == [4, 5, 6, 900, 7, 8, 9]
