"""Two-hot targets: mass on two neighbours, with the value as mean."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.model.support import Support

SUPPORT = Support(601, 300.0)


def test_a_value_between_two_bins_is_split_between_them() -> None:
    target = SUPPORT.encode(torch.tensor(3.7, dtype=torch.float64))
    assert target.nonzero().flatten().tolist() == [303, 304]
    assert target[303].item() == pytest.approx(0.3, abs=1e-6)
    assert target[304].item() == pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize(("pips", "index"), [(-300.0, 0), (0.0, 300), (5.0, 305), (300.0, 600)])
def test_a_value_on_a_bin_has_all_mass_there(pips: float, index: int) -> None:
    target = SUPPORT.encode(torch.tensor(pips))
    assert target[index] == 1.0
    assert target.sum() == 1.0


@pytest.mark.parametrize(("pips", "index"), [(-1e6, 0), (300.001, 600), (4e9, 600)])
def test_a_value_beyond_the_bounds_is_clipped(pips: float, index: int) -> None:
    assert SUPPORT.encode(torch.tensor(pips))[index] == 1.0


@given(st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=20), st.sampled_from([3, 61, 601]))
def test_the_mean_of_a_target_is_its_value(values: list[float], bins: int) -> None:
    support = Support(bins, 300.0)
    targets = support.encode(torch.tensor(values))
    assert targets.shape == (len(values), bins)
    assert targets.min() >= 0.0
    assert ((targets > 0.0).sum(dim=-1) <= 2).all()
    torch.testing.assert_close(targets.sum(dim=-1), torch.ones(len(values)))
    # The logarithm of a distribution gives its logits.
    decoded = support.decode(targets.clamp_min(1e-30).log())
    torch.testing.assert_close(decoded, torch.tensor(values), atol=2e-4, rtol=1e-6)


def test_arrays_of_any_rank_keep_their_shape() -> None:
    assert SUPPORT.encode(torch.zeros(2, 3)).shape == (2, 3, 601)
    assert SUPPORT.decode(torch.zeros(2, 3, 601)).shape == (2, 3)
