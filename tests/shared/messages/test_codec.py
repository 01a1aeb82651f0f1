"""Round trips of every message, and rejection of every kind of invalid entry."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.agent.trajectory import MAX_PIPS
from shared.environment.action import Side
from shared.errors import MessageError
from shared.messages import schemas
from shared.messages.codec import MAX_ARRAYS_BYTES, decode, decode_trajectory, encode, encode_trajectory
from shared.messages.schemas import MAX_TEXT, DecisionMade, Heartbeat, Message, TrajectoryFinished
from shared.messages.streams import CHECKPOINTS, CONTROL, DECISIONS, STREAMS, TRAJECTORIES
from tests.shared.messages.absurd import (
    ABSURD_ARRAYS,
    ABSURD_HEADERS,
    ABSURD_TRADES,
    with_changes,
    with_header,
    with_trade,
)
from tests.shared.messages.trajectories import random_trajectory, same

EXAMPLES: dict[type[Message], Message] = {
    type(example): example
    for example in (
        encode_trajectory(random_trajectory(0))[0],
        schemas.CheckpointPublished(
            version=3, episode=150, update=900, weights_sha256="0" * 64, metrics={"loss": 1.5}
        ),
        schemas.ValidationReported(
            version=3,
            split="validation",
            num_sessions=10,
            num_trades=0,
            expectancy_pips=None,
            sqn=None,
            net_pips=0.0,
            max_drawdown_pips=0.0,
            passed_gates=("paper",),
            reasons=("no trade",),
            seconds=1.0,
        ),
        schemas.VersionPromoted(version=3, stage="paper", by="validator"),
        schemas.TradeClosed(
            trade_id="7",
            instrument="GBP_JPY",
            side=-1,
            units=1,
            entry_time=datetime(2024, 1, 1, tzinfo=UTC),
            exit_time=datetime(2024, 1, 2, tzinfo=UTC),
            entry_price=185.0,
            exit_price=184.0,
            pips=96.0,
        ),
        schemas.DecisionMade(
            bar_time=datetime(2024, 1, 1, tzinfo=UTC),
            action="HOLD",
            executed=False,
            q_values=(0.0, None, 1.0, None),
            side=0,
            pnl_pips=0.0,
            close=185.0,
        ),
        schemas.ControlIssued(target="trader", state="killed", by="operator"),
        schemas.AlertRaised(source="trainer", name="training_rolled_back"),
        schemas.DeadLettered(stream="mm:trajectories", entry_id="1-0", reason="test"),
    )
}


def raw(fields: dict[str, bytes]) -> dict[bytes, bytes]:
    """Fields as Redis returns them."""
    return {name.encode(): value for name, value in fields.items()}


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.key)
def test_decoding_a_message_undoes_encoding(stream) -> None:  # type: ignore[no-untyped-def]
    message = EXAMPLES[stream.message]
    assert decode(stream, raw(encode(message))) == (message, b"")


@given(seed=st.integers(0, 1_000), num_steps=st.integers(1, 400))
def test_decoding_a_trajectory_undoes_encoding_bit_for_bit(seed: int, num_steps: int) -> None:
    trajectory = random_trajectory(seed, num_steps)
    header, arrays = decode(TRAJECTORIES, raw(encode(*encode_trajectory(trajectory))))
    decoded = decode_trajectory(header, arrays)
    assert same(trajectory, decoded)
    assert all(isinstance(trade.side, Side) for trade in decoded.trades)


def test_an_episode_has_about_22_kilobytes() -> None:
    fields = encode(*encode_trajectory(random_trajectory(0, 360)))
    assert 15_000 < sum(len(value) for value in fields.values()) < 25_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": b"AlertRaised"}, "type is 'AlertRaised', expected 'CheckpointPublished'"),
        ({"type": b"\xff\xfe"}, "expected 'CheckpointPublished'"),
        ({"version": b"2"}, "schema version '2', known: 1"),
        ({"version": b""}, "schema version '', known: 1"),
        ({"body": b"{"}, "CheckpointPublished.body"),
        ({"body": b'{"version": 1}'}, "episode: Field required"),
        ({"body": b" " * 1_000_001}, "at most 1000000"),
        ({"arrays": bytes(MAX_ARRAYS_BYTES + 1)}, f"and {MAX_ARRAYS_BYTES + 1} of arrays"),
    ],
)
def test_an_invalid_entry_is_refused(change: dict[str, bytes], reason: str) -> None:
    fields = {**encode(EXAMPLES[schemas.CheckpointPublished]), **change}
    with pytest.raises(MessageError, match="mm:checkpoints: ") as refused:
        decode(CHECKPOINTS, raw(fields))
    assert reason in str(refused.value)


def test_an_empty_entry_is_refused() -> None:
    with pytest.raises(MessageError, match="type is ''"):
        decode(CONTROL, {})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    body = json.loads(encode(EXAMPLES[schemas.CheckpointPublished])["body"])
    text = json.dumps({**body, "metrics": {"loss": 12345}}).replace("12345", number)
    fields = {**encode(EXAMPLES[schemas.CheckpointPublished]), "body": text.encode()}
    with pytest.raises(MessageError, match=r"metrics\.loss"):
        decode(CHECKPOINTS, raw(fields))


@pytest.mark.parametrize("number", [10**400, 2**63, -1], ids=["1e400", "2^63", "-1"])
def test_an_integer_over_64_bits_is_refused(number: int) -> None:
    fields = encode(EXAMPLES[schemas.CheckpointPublished])
    body = json.dumps({**json.loads(fields["body"]), "episode": number}).encode()
    with pytest.raises(MessageError, match=r"CheckpointPublished\.episode"):
        decode(CHECKPOINTS, raw({**fields, "body": body}))


def test_a_heartbeat_rejects_numbers_that_a_metric_cannot_hold() -> None:
    beat = {"service": "s", "instance": "1", "state": "running", "pid": 1, "started_at": "2024-01-01T00:00Z"}
    smallest = json.dumps({**beat, "detail": {"n": -(2**63)}})
    assert Heartbeat.model_validate_json(smallest).detail == {"n": -(2**63)}
    with pytest.raises(ValidationError):
        Heartbeat.model_validate_json(json.dumps({**beat, "detail": {"n": 10**400}}))


@given(st.dictionaries(st.sampled_from([b"type", b"version", b"body", b"arrays"]), st.binary(max_size=200)))
def test_random_bytes_are_refused(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(MessageError):
        decode(TRAJECTORIES, fields)


@given(body=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_other_json_is_refused(body: object) -> None:
    fields = {b"type": b"TrajectoryFinished", b"version": b"1", b"body": json.dumps(body).encode()}
    with pytest.raises(MessageError):
        decode(TRAJECTORIES, fields)


def refusal_of_changed(
    change: Callable[[TrajectoryFinished], TrajectoryFinished], arrays: bytes | None = None
) -> str:
    """The error for a trajectory with a changed header or changed arrays."""
    header, blob = encode_trajectory(random_trajectory(1))
    with pytest.raises(MessageError, match=str(header.trajectory_id)) as refused:
        decode_trajectory(change(header), blob if arrays is None else arrays)
    return str(refused.value)


def with_arrays(header: TrajectoryFinished, **shapes: tuple[int, ...]) -> TrajectoryFinished:
    fields = tuple(
        field.model_copy(update={"shape": shapes.get(field.name, field.shape)}) for field in header.arrays
    )
    return header.model_copy(update={"arrays": fields})


def test_inconsistent_shapes_are_refused() -> None:
    assert "arrays are" in refusal_of_changed(lambda h: with_arrays(h, actions=(13,)))
    assert "arrays are" in refusal_of_changed(lambda h: with_arrays(h, static=(12, 7)))
    assert "arrays are" in refusal_of_changed(lambda h: h.model_copy(update={"arrays": h.arrays[:-1]}))


def test_an_absurd_declared_size_is_refused_before_allocation() -> None:
    assert "steps, expected 1 to" in refusal_of_changed(lambda h: with_arrays(h, static=(40_000_000, 6)))
    assert "steps, expected 1 to" in refusal_of_changed(lambda h: with_arrays(h, static=(-1, 6)))
    assert "0 steps" in refusal_of_changed(lambda h: h.model_copy(update={"arrays": ()}))


def test_damaged_arrays_are_refused() -> None:
    _, blob = encode_trajectory(random_trajectory(1))
    assert "bytes of arrays, the shapes say" in refusal_of_changed(lambda h: h, blob[:-1])
    flipped = bytes([blob[0] ^ 1]) + blob[1:]
    assert "they were damaged" in refusal_of_changed(lambda h: h, flipped)


def refusal(fields: dict[str, bytes]) -> str:
    """The error for an entry of a trajectory."""
    with pytest.raises(MessageError) as refused:
        decode_trajectory(*decode(TRAJECTORIES, raw(fields)))
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "index", "value", "reason"),
    [
        ("rewards", 3, np.nan, "rewards[3] is nan, expected -1e+09 to 1e+09"),
        ("values", 3, np.inf, "values[3] is inf, expected -1e+09 to 1e+09"),
        ("static", (3, 0), np.nan, "static[3, 0] is nan, expected -1 to 1"),
        ("actions", 0, 4, "actions[0] is 4, expected 0 to 3"),
        ("outcomes", 0, -1, "outcomes[0] is -1, expected 0 to 2"),
        ("policies", (2, 1), np.nan, "policies[2, 1] is nan, expected 0 to 1"),
        ("policies", (2, 1), 3e38, "policies[2, 1] is 3e+38, expected 0 to 1"),
    ],
)
def test_impossible_values_are_refused(
    name: str, index: int | tuple[int, ...], value: float, reason: str
) -> None:
    assert reason in refusal(with_changes(random_trajectory(1), [(name, index, value)]))


@pytest.mark.parametrize("kind", ABSURD_ARRAYS)
def test_impossible_arrays_are_refused_with_name_index_and_expectation(kind: str) -> None:
    changes, reason = ABSURD_ARRAYS[kind]
    for num_steps in (8, 360):
        trajectory = random_trajectory(1, num_steps)
        message = refusal(with_changes(trajectory, changes))
        assert message.startswith(f"trajectory {trajectory.trajectory_id}: {reason}")


@pytest.mark.parametrize("name", ABSURD_HEADERS)
def test_header_integers_over_64_bits_are_refused_by_name(name: str) -> None:
    value = ABSURD_HEADERS[name]
    message = refusal(with_header(random_trajectory(1), name, value))
    assert message.startswith(f"mm:trajectories: TrajectoryFinished.{name}: Input should be ")
    nearest = value - 1 if value > 0 else value + 1
    assert message.endswith(f"equal to {nearest}")
    header, _ = decode(TRAJECTORIES, raw(with_header(random_trajectory(1), name, nearest)))
    assert getattr(header, name) == nearest


@pytest.mark.parametrize("name", ABSURD_TRADES)
def test_impossible_trades_are_refused_by_name(name: str) -> None:
    message = refusal(with_trade(random_trajectory(1), name, ABSURD_TRADES[name]))
    assert message.startswith(f"mm:trajectories: TrajectoryFinished.trades.1.{name}: Input should be ")


@pytest.mark.parametrize("value", [MAX_PIPS, -MAX_PIPS])
def test_the_largest_allowed_pips_are_accepted(value: float) -> None:
    trajectory = random_trajectory(1)
    for fields in (
        with_changes(trajectory, [("rewards", 3, value), ("values", 3, value)]),
        with_trade(trajectory, "pips", value),
    ):
        decode_trajectory(*decode(TRAJECTORIES, raw(fields)))


def test_equal_trajectories_have_equal_bytes() -> None:
    trajectory = random_trajectory(5)
    one, other = encode_trajectory(trajectory), encode_trajectory(replace(trajectory))
    assert one[1] == other[1]
    assert one[0].arrays_sha256 == other[0].arrays_sha256


def test_an_unpaired_surrogate_in_a_text_is_replaced() -> None:
    raised = schemas.AlertRaised(source="trader", name="order_not_filled", detail="no \ud800")
    assert encode(raised)["body"].count(b"no ?") == 1


def test_a_too_long_text_is_cut_and_its_message_accepted() -> None:
    made = DecisionMade(
        bar_time=datetime.now(UTC),
        action="HOLD",
        executed=False,
        reason="é" * 9_000,
        side=0,
        pnl_pips=0,
        close=1,
    )
    assert (len(made.reason), made.reason[-2:]) == (MAX_TEXT, "é…")
    fields = encode(made)
    fields["body"] = fields["body"].replace(
        made.reason.encode(), ("é" * 90_000).encode()
    )  # as from a release with a higher limit
    read, _ = decode(DECISIONS, {name.encode(): value for name, value in fields.items()})
    assert read == made


@pytest.mark.parametrize("value", ["5", "5.5", "true", "", 5, 5.5, True, None])
def test_a_heartbeat_keeps_the_type_of_each_detail(value: object) -> None:
    beat = Heartbeat.model_validate(
        {
            "service": "trader",
            "instance": "one",
            "state": "running",
            "pid": 1,
            "started_at": datetime.now(UTC),
            "detail": {"value": value, "long": "l" * 9_000},
        }
    )
    for read in (beat, Heartbeat.model_validate_json(beat.model_dump_json())):
        assert (type(read.detail["value"]), read.detail["value"]) == (type(value), value)
        assert len(str(read.detail["long"])) == MAX_TEXT
