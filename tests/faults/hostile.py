"""Hostile entries: malformed ones, and well-formed ones that no real session produces."""

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np

from shared.messages.codec import encode, encode_trajectory
from tests.shared.messages.absurd import ABSURD
from tests.shared.messages.trajectories import FINGERPRINT, random_trajectory


def hostile(
    number: int, rng: np.random.Generator, *, dataset: str = FINGERPRINT, start_bar: int = 200
) -> dict[str, bytes]:
    """An entry that must be refused; consecutive numbers give different kinds.

    Args:
        number: number of the entry.
        rng: random generator for random bytes.
        dataset: data set of the reader, so that entries are not refused because of another data set.
        start_bar: a start bar that exists in the data set.
    """
    trajectory = random_trajectory(1_000_000 + number, dataset=dataset, start_bar=start_bar)
    header, arrays = encode_trajectory(trajectory)
    good = encode(header, arrays)
    not_finite = arrays[:-4] + np.float32("nan").tobytes()
    digest = header.arrays_sha256.encode()
    kinds: tuple[Callable[[], dict[str, bytes]], ...] = (
        lambda: {rng.bytes(4).hex(): rng.bytes(200) for _ in range(3)},
        lambda: {**good, "body": rng.bytes(300)},
        lambda: {**good, "body": good["body"].replace(b'"shape":[12', b'"shape":[268435456', 1)},
        lambda: {
            **good,
            "body": good["body"].replace(digest, hashlib.sha256(not_finite).hexdigest().encode()),
            "arrays": not_finite,
        },
        lambda: {**good, "arrays": arrays[: len(arrays) // 2]},
        lambda: {**good, "arrays": arrays + bytes(4_000_001)},
        lambda: {**good, "version": b"0"},
        lambda: {**good, "version": b"2"},
        lambda: {**good, "body": b"[" * 100_000},
        lambda: {**good, "type": b"ControlIssued"},
        lambda: {"type": good["type"], "version": good["version"]},
        *(partial(make, trajectory) for make in ABSURD.values()),
    )
    return kinds[number % len(kinds)]()
