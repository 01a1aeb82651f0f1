"""Entries that are not what they claim, and entries whose every claim holds but which no session gives."""

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
    """An entry that must be refused; every kind in turn.

    Args:
        number: of the entry; consecutive ones are of different kinds.
        rng: of the bytes that are no message at all.
        dataset: the reader's own, so that nothing is refused for another one.
        start_bar: one that the data set has.
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
