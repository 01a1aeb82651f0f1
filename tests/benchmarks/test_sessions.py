from benchmarks.sessions import bench_sessions


def test_the_yardstick_finds_the_same_sessions_and_a_ratio_is_told() -> None:
    found = bench_sessions(20_000)  # raises when the two disagree
    assert found["sessions"] > 10_000
    assert found["ratio"] == found["yardstick_seconds"] / found["seconds"]
