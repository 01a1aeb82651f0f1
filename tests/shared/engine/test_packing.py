"""Packing: errors name the weight that does not fit."""

from collections.abc import Mapping

import numpy as np
import pytest

from shared.engine.packing import packed
from shared.errors import DataError, ShapeError
from shared.numeric import Float32
from tests.shared.model.networks import SMALL, randomized_network


@pytest.fixture(name="weights")
def weights_of_a_network() -> dict[str, Float32]:
    return randomized_network(SMALL).arrays()


def test_a_tape_is_aligned_to_a_cache_line(weights: Mapping[str, Float32]) -> None:
    tapes = packed(weights, SMALL, paired=False)
    for tape in vars(tapes).values():
        assert tape.ctypes.data % 64 == 0


def test_bfloat16_halves_the_weights(weights: Mapping[str, Float32]) -> None:
    wide, narrow = (packed(weights, SMALL, paired=paired) for paired in (False, True))
    # Two layers of 32 x 32 in each of two blocks, and 61 bins padded to 64. Biases stay float32.
    saved = len(wide.value) - len(narrow.value)
    assert saved == (4 * 32 * 32 + 64 * 32) // 2


def test_the_error_names_a_missing_weight(weights: dict[str, Float32]) -> None:
    del weights["q_head.last.bias"]
    with pytest.raises(DataError, match=r"weight q_head\.last\.bias is missing"):
        packed(weights, SMALL, paired=False)


def test_the_error_names_an_unknown_weight(weights: dict[str, Float32]) -> None:
    weights["policy_head.blocks.2.norm.weight"] = np.ones(32, np.float32)
    with pytest.raises(DataError, match=r"weight policy_head\.blocks\.2\.norm\.weight belongs to no network"):
        packed(weights, SMALL, paired=False)


def test_the_error_names_a_weight_of_another_shape(weights: dict[str, Float32]) -> None:
    weights["value_head.last.weight"] = np.ones((61, 31), np.float32)
    with pytest.raises(ShapeError, match=r"value_head\.last\.weight is \(61, 31\), expected \(61, 32\)"):
        packed(weights, SMALL, paired=False)


def test_the_error_names_a_weight_that_is_not_finite(weights: dict[str, Float32]) -> None:
    weights["encoder.blocks.1.conv2.weight"][3, 2, 1] = np.inf
    with pytest.raises(DataError, match=r"weight encoder\.blocks\.1\.conv2\.weight holds a number"):
        packed(weights, SMALL, paired=False)
