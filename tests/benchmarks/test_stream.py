"""The stream benchmark at a small size."""

import stat
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learner import random_trajectory
from benchmarks.stream import TURNS, _minimally_decoded, bench_stream
from shared.adapters.streams.entries import READ_COUNT
from shared.errors import ServiceError
from shared.messages.codec import encode, encode_trajectory


def only_tool(monkeypatch: pytest.MonkeyPatch, path: Path | None) -> None:
    """Find only redis-benchmark on PATH, or nothing; the Redis server then comes from the wheel."""
    found = {"redis-benchmark": str(path)} if path else {}
    monkeypatch.setattr("benchmarks.stream.shutil.which", found.get)


def test_without_redis_benchmark_the_goals_are_for_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    only_tool(monkeypatch, None)
    speed = bench_stream(1)
    assert speed.tool is None
    assert speed.count == TURNS * READ_COUNT  # the smallest possible number
    assert 15_000 < speed.entry_bytes < 25_000
    appended, consumed, taken, decoded = speed.measurements
    assert taken.ratio == pytest.approx(speed.undecoded / speed.raw.consume)
    assert decoded.ratio == pytest.approx(speed.ours.consume / speed.raw_decoded)
    assert taken.goal is decoded.goal is None
    assert appended.ratio == pytest.approx(speed.ours.append / speed.raw.append)
    assert consumed.ratio == pytest.approx(speed.ours.consume / speed.raw.consume)
    assert appended.goal == consumed.goal == "ratio ≥ 0.8"
    assert all(cost > 0.0 for _, cost in speed.steps.rows)
    # Consuming includes reading and decoding, so it takes at least as long; the factor 4 allows for noise.
    assert speed.steps.read + speed.steps.decode < 4 * 1e6 / speed.ours.consume


def test_minimal_decoding_gives_the_arrays_and_detects_damage() -> None:
    trajectory = random_trajectory(np.random.default_rng(0), 0)
    entry = {name.encode(): value for name, value in encode(*encode_trajectory(trajectory)).items()}
    static, actions, *_, outcome_probabilities = _minimally_decoded(entry)
    assert np.array_equal(static, trajectory.static)
    assert np.array_equal(actions, trajectory.actions)
    assert np.array_equal(outcome_probabilities, trajectory.outcome_probabilities)
    with pytest.raises(ServiceError, match="SHA-256"):
        _minimally_decoded({**entry, b"arrays": entry[b"arrays"][:-1] + b"?"})


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'Could not connect' >&2; exit 1", "expected CSV with a rate, got: Could not connect"),
        ('echo \'"test","rps"\'; echo \'"X","9","1","1","1","1","1","1"\'', "appended 0 bytes, expected"),
    ],
)
def test_invalid_output_of_redis_benchmark_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    tool = tmp_path / "redis-benchmark"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    only_tool(monkeypatch, tool)
    with pytest.raises(ServiceError, match=reason):
        bench_stream(1)
