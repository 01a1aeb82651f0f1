"""Outcomes: equal to the oracle, exact at any price level, with the known shares on real bars."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.environment.outcome import NUM_OUTCOMES, UNDEFINED, ChanceOutcome, label_outcomes
from shared.errors import DataError, ShapeError
from shared.market.bar import BarSeries
from shared.numeric import Float64
from tests.oracles import features as oracle

UP, NEUTRAL, DOWN = ChanceOutcome


def alternating(num_closes: int) -> Float64:
    """Closes whose population standard deviation is exactly 1."""
    return np.where(np.arange(num_closes) % 2 == 0, 159.0, 161.0)


class TestLabels:
    @given(st.integers(0, 2**32), st.integers(1, 120), st.sampled_from([0.0, 0.001, 0.03, 5.0]))
    def test_labels_equal_the_oracle(self, seed: int, size: int, scale: float) -> None:
        close = 160.0 + np.cumsum(np.random.default_rng(seed).normal(0.0, scale, size))
        assert label_outcomes(close).tolist() == oracle.outcomes(close).tolist()

    def test_labels_equal_the_oracle_on_real_bars(self, real_bars: BarSeries) -> None:
        close = real_bars.close[:5000]
        assert label_outcomes(close).tolist() == oracle.outcomes(close).tolist()

    def test_shares_on_real_bars_equal_the_specification(self, real_bars: BarSeries) -> None:
        labels = label_outcomes(real_bars.close)
        defined = labels[labels != UNDEFINED]
        shares = np.bincount(defined, minlength=NUM_OUTCOMES) / len(defined)
        assert shares == pytest.approx([0.28, 0.45, 0.27], abs=0.01)

    @pytest.mark.parametrize(
        ("move", "outcome"), [(0.34, UP), (0.32, NEUTRAL), (0.0, NEUTRAL), (-0.32, NEUTRAL), (-0.34, DOWN)]
    )
    def test_a_move_counts_above_a_third_of_the_deviation(self, move: float, outcome: ChanceOutcome) -> None:
        close = alternating(21)
        close[20] = close[19] + move
        assert label_outcomes(close)[19] == outcome

    def test_any_move_counts_after_constant_closes(self) -> None:
        close = np.full(22, 160.123)
        close[21] += 0.001
        assert label_outcomes(close)[19:].tolist() == [NEUTRAL, UP, UNDEFINED]

    @pytest.mark.parametrize("level", [1.0, 1e3, 1e6, 1e9])
    def test_labels_do_not_depend_on_the_price_level(self, level: float) -> None:
        """A running sum of squares would lose all its digits here."""
        steps = np.random.default_rng(5).integers(-8, 9, 500) / 64
        close = 200.0 + np.cumsum(steps)
        assert label_outcomes(close + level).tolist() == label_outcomes(close).tolist()

    def test_an_old_spike_does_not_change_later_labels(self) -> None:
        close = alternating(300)
        calm = label_outcomes(close)
        close[40] = 1e12
        assert label_outcomes(close)[60:].tolist() == calm[60:].tolist()


class TestEdges:
    def test_labels_are_undefined_before_20_closes_and_at_the_last_bar(self) -> None:
        labels = label_outcomes(alternating(50))
        assert (labels[:19] == UNDEFINED).all()
        assert (labels[19:-1] != UNDEFINED).all()
        assert labels[-1] == UNDEFINED
        assert labels.dtype == np.int8

    @pytest.mark.parametrize("size", [0, 1, 19, 20])
    def test_too_few_closes_have_no_label(self, size: int) -> None:
        assert (label_outcomes(alternating(size)) == UNDEFINED).all()

    def test_a_label_depends_on_no_close_after_the_next(self) -> None:
        close = 160.0 + np.cumsum(np.random.default_rng(3).normal(0, 0.02, 200))
        assert label_outcomes(close[:101])[:100].tolist() == label_outcomes(close)[:100].tolist()

    def test_a_close_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(DataError, match="bar 2: close nan"):
            label_outcomes(np.array([1.0, 2.0, np.nan]))

    def test_a_table_of_closes_is_refused(self) -> None:
        with pytest.raises(ShapeError, match="close"):
            label_outcomes(np.zeros((3, 2)))
