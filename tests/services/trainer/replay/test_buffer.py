"""The replay against a slow version that selects from the full history; draws; memory per step."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.config import ReplayConfig
from services.trainer.replay.buffer import Replay
from services.trainer.replay.steps import COLUMNS, Steps, StoredSteps
from shared.environment.action import Action
from shared.errors import SettingsError

K = 2


def steps_of(trades: list[bool], rewards: list[float] | None = None, first: int = 0) -> Steps:
    """Steps whose bar and trajectory are their number."""
    steps = Steps.allocate(len(trades), K)
    steps.bars[:] = first + np.arange(len(trades))
    steps.positions[:] = steps.bars
    steps.actions[:, 0] = np.where(trades, Action.BUY, Action.HOLD)
    steps.unshaped_rewards[:] = rewards if rewards is not None else 0.0
    steps.lengths[:] = K + 1
    return steps


def kept(trades: list[bool], capacity: int, quota: int) -> list[int]:
    """Numbers of the steps that must be stored, selected from the full history by definition."""
    numbers = range(len(trades))
    protected = [n for n in numbers if trades[n]][-quota:] if quota else []
    others = [n for n in numbers if n not in protected][-(capacity - len(protected)) :]
    return sorted(protected + others)


CONFIG = ReplayConfig(capacity_steps=10, trade_quota=0.3, success_capacity=4, success_reward_pips=5.0)

histories = st.lists(st.lists(st.booleans(), max_size=25), max_size=8)


@given(parts=histories, quota=st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]), capacity=st.integers(1, 12))
def test_the_replay_holds_the_quotas_last_trade_steps_and_the_newest_others(
    parts: list[list[bool]], quota: float, capacity: int
) -> None:
    replay = Replay(ReplayConfig(capacity_steps=capacity, trade_quota=quota), K)
    history: list[bool] = []
    for part in parts:
        replay.extend(steps_of(part, first=len(history)))
        history += part
    stored, _ = replay.contents()
    protected = min(int(np.ceil(quota * capacity)), capacity - 1)
    assert sorted(stored.bars.tolist()) == kept(history, capacity, protected)
    assert len(replay) == min(capacity, len(history))
    # The quota is full once that many trade steps were inserted.
    assert stored.is_trade.sum() >= min(sum(history), protected)


def test_a_success_memory_that_is_not_drawn_from_keeps_no_old_trajectory_alive() -> None:
    replay = Replay(replace(CONFIG, success_share=0.0), K)
    replay.extend(steps_of([False] * 6, [0.0, 9.0, 9.0, 0.0, 0.0, 0.0]))
    replay.extend(steps_of([False] * 50, first=6))
    assert replay.statistics.num_success_steps == 2
    assert replay.oldest_position == 46


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), seed=st.integers(0, 999))
def test_a_replay_refilled_from_its_oldest_trajectory_draws_the_same_stretches(
    lengths: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    journal = []
    for position, length in enumerate(lengths):
        steps = steps_of((rng.random(length) < 0.2).tolist())
        steps.positions[:], steps.decisions[:] = position, np.arange(length)
        steps.bars[:] = 1_000 * position + steps.decisions
        journal.append(steps)
    original, refilled = Replay(CONFIG, K), Replay(CONFIG, K)
    for steps in journal:
        original.extend(steps)
    for steps in journal[original.oldest_position :]:
        refilled.extend(steps)
    draws = [replay.sample(np.random.default_rng(5), 40, 4).bars.tolist() for replay in (original, refilled)]
    assert draws[0] == draws[1]


@given(parts=histories)
def test_a_replay_refilled_from_its_oldest_trajectory_has_the_same_contents(parts: list[list[bool]]) -> None:
    """This is why the journal's old segments can be deleted."""
    history = [trade for part in parts for trade in part]
    rewards = [9.0 if n % 7 == 3 else 0.0 for n in range(len(history))]
    original = Replay(CONFIG, K)
    original.extend(steps_of(history, rewards))
    first = original.oldest_position
    if first is None:
        return
    refilled = Replay(CONFIG, K)
    refilled.extend(steps_of(history[first:], rewards[first:], first))
    for one, other in zip(original.contents(), refilled.contents(), strict=True):
        for column in COLUMNS:
            assert np.array_equal(getattr(one, column), getattr(other, column))
    draws = [replay.sample(np.random.default_rng(5), 32).bars.tolist() for replay in (original, refilled)]
    assert draws[0] == draws[1]


def test_the_success_memory_keeps_the_last_large_rewards_after_the_steps_are_gone() -> None:
    replay = Replay(CONFIG, K)
    replay.extend(steps_of([False] * 6, [5.0, 5.1, 6.0, 7.0, 8.0, 9.0]))
    replay.extend(steps_of([False] * 50, first=6))
    _, successes = replay.contents()
    assert successes.bars.tolist() == [2, 3, 4, 5]  # 5.0 is not above the limit, and the capacity is four
    assert replay.oldest_position == 2
    drawn = replay.sample(np.random.default_rng(0), 64)
    assert set(drawn.bars[-6:].tolist()) <= {2, 3, 4, 5}  # a tenth of the batch, rounded
    assert set(drawn.bars[:-6].tolist()) <= set(range(46, 56))


def test_draws_are_uniform_over_all_stored_steps() -> None:
    replay = Replay(ReplayConfig(capacity_steps=10, trade_quota=0.3), K)
    replay.extend(steps_of([n % 4 == 0 for n in range(40)]))
    drawn = replay.sample(np.random.default_rng(3), 20_000).bars
    bars, counts = np.unique(drawn, return_counts=True)
    assert len(bars) == 10
    expected = 2_000
    # Five standard deviations of a binomial count.
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected * 0.9)


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    trade_odds=st.floats(0.0, 1.0),
    capacity=st.integers(1, 60),
    stretch=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_stretches_contain_all_stored_neighbours_of_one_trajectory(
    lengths: list[int], trade_odds: float, capacity: int, stretch: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    replay = Replay(ReplayConfig(capacity_steps=capacity, trade_quota=0.3), K)
    for position, length in enumerate(lengths):
        steps = steps_of((rng.random(length) < trade_odds).tolist())
        steps.positions[:], steps.decisions[:] = position, np.arange(length)
        steps.bars[:] = 1_000 * position + steps.decisions
        replay.extend(steps)
    stored = set(replay.contents()[0].bars.tolist())
    drawn = replay.sample(np.random.default_rng(seed), 3 * stretch, stretch)
    assert 3 <= len(drawn) <= 3 * stretch
    groups = np.split(drawn.bars, np.flatnonzero(np.diff(drawn.bars) != 1) + 1)
    for bars in groups:
        # Groups of a trajectory may follow each other without a gap; each of their stretches is complete.
        for key in np.unique((bars % 1_000) // stretch):
            mine = bars[(bars % 1_000) // stretch == key].tolist()
            before, after = mine[0] - 1, mine[-1] + 1
            assert mine[0] % 1_000 % stretch == 0 or before not in stored
            assert after % 1_000 % stretch == 0 or after not in stored
    assert set(drawn.bars.tolist()) <= stored


def test_a_row_reused_by_another_trajectory_is_not_a_neighbour() -> None:
    """Its decision has the evicted neighbour's number, so only the trajectory distinguishes them."""
    replay = Replay(ReplayConfig(capacity_steps=3, trade_quota=0.0), K)
    first, second = steps_of([False] * 3), steps_of([False], first=100)
    first.positions[:], first.decisions[:] = 0, np.arange(3)
    second.positions[:], second.decisions[:] = 1, 0
    replay.extend(first)
    replay.extend(second)  # into the row of decision 0
    rng = np.random.default_rng(0)
    drawn = {tuple(replay.sample(rng, 3, 3).bars.tolist()) for _ in range(50)}
    assert drawn == {(1, 2), (100,)}


def test_every_stored_step_is_equally_likely_in_stretches() -> None:
    replay = Replay(ReplayConfig(capacity_steps=100, trade_quota=0.0), K)
    for position in range(4):
        steps = steps_of([False] * 24, first=24 * position)
        steps.positions[:], steps.decisions[:] = position, np.arange(24)
        replay.extend(steps)
    draws = 4_000
    drawn = replay.sample(np.random.default_rng(1), draws * 6, 6).bars
    bars, counts = np.unique(drawn, return_counts=True)
    assert len(bars) == 96
    expected = draws * 6 / 96
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@given(unroll_steps=st.integers(1, 7), count=st.integers(1, 30), seed=st.integers(0, 999))
def test_a_stored_step_is_drawn_unchanged(unroll_steps: int, count: int, seed: int) -> None:
    """Every column, for several row lengths, from the replay and from the success memory."""
    rng = np.random.default_rng(seed)
    steps = Steps.allocate(count, unroll_steps)
    for name in COLUMNS:
        array = getattr(steps, name)
        array[:] = rng.integers(-100, 100, array.shape)
    steps.bars[:] = np.arange(count)
    replay = Replay(ReplayConfig(capacity_steps=30, success_share=0.5), unroll_steps)
    replay.extend(steps)
    for drawn in (replay.sample(rng, 50), replay.sample(rng, 50, 4), *replay.contents()):
        for name in COLUMNS:
            column = getattr(drawn, name)
            assert np.array_equal(column, getattr(steps, name)[drawn.bars])
            assert column.dtype == getattr(steps, name).dtype
            assert column.flags.c_contiguous  # as kernels and torch expect


def test_drawn_steps_are_copies() -> None:
    replay = Replay(CONFIG, K)
    replay.extend(steps_of([False]))
    drawn = replay.sample(np.random.default_rng(0), 1)
    drawn.returns[:] = 7.0
    assert not replay.contents()[0].returns.any()


def test_a_seed_draws_the_same_batches_as_in_earlier_releases() -> None:
    """The expected draws were recorded in a release whose replay stored columns."""
    replay = Replay(CONFIG, K)
    history = [n % 5 == 0 for n in range(64)]
    steps = steps_of(history, [9.0 if n % 7 == 3 else 0.0 for n in range(64)])
    steps.positions[:], steps.decisions[:] = np.arange(64) // 16, np.arange(64) % 16
    replay.extend(steps)
    assert replay.sample(np.random.default_rng(5), 12).bars.tolist() == [
        *(59, 62, 50, 62, 57, 58, 59, 60, 63, 50, 60),
        45,  # a success
    ]
    assert replay.sample(np.random.default_rng(5), 12, 4).bars.tolist() == [
        *(56, 57, 58, 59, 60, 61, 62, 63, 50),
        59,
    ]


def test_drawing_from_an_empty_replay_is_an_error() -> None:
    replay = Replay(CONFIG, K)
    assert replay.oldest_position is None
    with pytest.raises(ValueError, match="high"):
        replay.sample(np.random.default_rng(0), 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("capacity_steps", 0), ("trade_quota", 1.5), ("success_share", float("nan")), ("success_capacity", -1)],
)
def test_numbers_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"replay.{field} is {value}"):
        ReplayConfig(**{field: value})  # type: ignore[arg-type]


def stored_bytes(replay: object) -> int:
    """Bytes of all arrays of a replay."""
    held = vars(replay).values()
    return sum(value.nbytes for value in held if isinstance(value, np.ndarray)) + sum(
        stored_bytes(value) for value in held if isinstance(value, StoredSteps)
    )


def filled(num_steps: int, sessions: int, length: int = 360) -> Replay:
    """A replay filled with sessions; a twentieth of the steps are trades."""
    replay = Replay(ReplayConfig(capacity_steps=num_steps), unroll_steps=5)
    steps = Steps.allocate(length, 5)
    steps.decisions[:] = np.arange(length)
    steps.actions[::20, 0] = Action.BUY
    for position in range(sessions):
        steps.positions[:], steps.bars[:] = position, 1_000 * position + np.arange(length)
        replay.extend(steps)
    return replay


@pytest.mark.parametrize("num_steps", [1, 300_000, pytest.param(10_000_000, marks=pytest.mark.soak)])
def test_a_full_replay_takes_264_bytes_a_step_and_loses_no_count(num_steps: int) -> None:
    sessions = num_steps // 360 + 100
    replay = filled(num_steps, sessions)
    assert stored_bytes(replay) == 264 * num_steps + 224 * 1_000 + 5 * 8  # success memory; five counters
    assert len(replay) == num_steps
    assert replay.statistics.num_seen == 360 * sessions
    drawn = replay.sample(np.random.default_rng(0), 64, 16)
    assert np.array_equal(drawn.bars, 1_000 * drawn.positions + drawn.decisions)


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    trade_odds=st.floats(0.0, 1.0),
    success_odds=st.floats(0.0, 1.0),
    capacity=st.integers(1, 60),
    quota=st.floats(0.0, 1.0),
    share=st.floats(0.0, 1.0),
    stretch=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_no_drawn_step_reaches_past_its_trajectorys_end(
    lengths: list[int],
    trade_odds: float,
    success_odds: float,
    capacity: int,
    quota: float,
    share: float,
    stretch: int,
    seed: int,
) -> None:
    """Every row has the states of its own trajectory, in order, up to the trajectory's end."""
    rng = np.random.default_rng(seed)
    config = ReplayConfig(capacity_steps=capacity, trade_quota=quota, success_capacity=7, success_share=share)
    replay = Replay(config, K)
    for position, length in enumerate(lengths):
        steps = steps_of((rng.random(length) < trade_odds).tolist())
        steps.positions[:], steps.decisions[:] = position, np.arange(length)
        steps.bars[:] = 1_000 * position + steps.decisions
        steps.unshaped_rewards[:] = np.where(rng.random(length) < success_odds, 9.0, 0.0)
        steps.lengths[:] = np.minimum(K + 1, length - steps.decisions)
        # The return identifies trajectory and decision of a state; past the end it is NaN.
        for k in range(K + 1):
            steps.returns[:, k] = np.where(k < steps.lengths, steps.bars + k, np.nan)
        replay.extend(steps)
    drawn = replay.sample(rng, 40, stretch)
    ends = np.array(lengths)[drawn.positions]
    assert np.array_equal(drawn.lengths, np.minimum(K + 1, ends - drawn.decisions))
    for k in range(K + 1):
        exists = k < drawn.lengths
        assert np.array_equal(drawn.returns[exists, k], drawn.bars[exists] + k)
        assert np.isnan(drawn.returns[~exists, k]).all()
    assert (drawn.decisions < ends).all()
    remembered = round(40 * share) if replay.statistics.num_success_steps else 0
    assert (drawn.unshaped_rewards[len(drawn) - remembered :] == 9.0).all()
