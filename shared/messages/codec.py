"""Encoding of messages and trajectories as stream entries, and validated decoding.

An entry has the fields `type` (message name), `version` (schema), `body` (JSON) and, for a trajectory,
`arrays`: the raw little-endian bytes of its arrays, concatenated. Sizes, names, shapes and the hash are
checked before arrays are allocated, so that a hostile entry wastes no memory.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from shared.agent.trajectory import Trajectory
from shared.environment.action import NUM_ACTIONS, Side
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.environment.trade import Trade
from shared.errors import DataError, MessageError, ShapeError
from shared.messages.schemas import ArrayField, Message, TradeRecord, TrajectoryFinished
from shared.messages.streams import Stream
from shared.messages.validation import first_fault

#: A session of 360 steps has about 22 kB; these limits only exclude garbage.
MAX_ARRAYS_BYTES = 4_000_000
MAX_BODY_BYTES = 1_000_000
MAX_STEPS = 100_000

#: Name, dtype and width (0: vector) of each array, in the order of the blob.
_LAYOUT: tuple[tuple[str, str, int], ...] = (
    ("static", "<f4", NUM_STATIC),
    ("actions", "|i1", 0),
    ("rewards", "<f4", 0),
    ("policies", "<f4", NUM_ACTIONS),
    ("values", "<f4", 0),
    ("outcomes", "|i1", 0),
    ("outcome_probabilities", "<f4", NUM_OUTCOMES),
)

_STEP_BYTES = sum(np.dtype(dtype).itemsize * max(width, 1) for _, dtype, width in _LAYOUT)

_M = TypeVar("_M", bound=Message)


def encode(message: Message, arrays: bytes = b"") -> dict[str, bytes]:
    """The fields of a stream entry."""
    fields = {
        "type": type(message).__name__.encode(),
        "version": str(message.model_dump(include={"schema_version"})["schema_version"]).encode(),
        "body": message.model_dump_json(exclude={"schema_version"}).encode(),
    }
    return {**fields, "arrays": arrays} if arrays else fields


def decode(stream: Stream[_M], fields: Mapping[bytes, bytes]) -> tuple[_M, bytes]:
    """The message in an entry, and the bytes of its arrays.

    Raises:
        MessageError: the entry has the wrong type or an unknown schema version, is too large, or does not
            match the schema.
    """
    wanted = stream.message.__name__
    got = fields.get(b"type", b"").decode("ascii", "replace")[:64]
    if got != wanted:
        raise MessageError(f"{stream.key}: type is {got!r}, expected {wanted!r}")
    version = fields.get(b"version", b"").decode("ascii", "replace")[:16]
    known = [str(number) for number in get_args(stream.message.model_fields["schema_version"].annotation)]
    if version not in known:
        raise MessageError(f"{stream.key}: {wanted} of schema version {version!r}, known: {', '.join(known)}")
    body, arrays = fields.get(b"body", b""), fields.get(b"arrays", b"")
    if len(body) > MAX_BODY_BYTES or len(arrays) > MAX_ARRAYS_BYTES:
        raise MessageError(
            f"{stream.key}: {len(body)} bytes of body and {len(arrays)} of arrays, "
            f"expected at most {MAX_BODY_BYTES} and {MAX_ARRAYS_BYTES}"
        )
    try:
        return stream.message.model_validate_json(body), bytes(arrays)
    except ValidationError as invalid:
        raise MessageError(f"{stream.key}: {wanted}.{first_fault(invalid, document='body')}") from invalid


def encode_trajectory(trajectory: Trajectory) -> tuple[TrajectoryFinished, bytes]:
    """The header of a trajectory and the bytes of its arrays."""
    columns = [np.ascontiguousarray(getattr(trajectory, name), dtype) for name, dtype, _ in _LAYOUT]
    blob = b"".join(column.tobytes() for column in columns)
    header = TrajectoryFinished(
        trajectory_id=trajectory.trajectory_id,
        worker=trajectory.worker,
        checkpoint_version=trajectory.checkpoint_version,
        dataset=trajectory.dataset,
        start_bar=trajectory.start_bar,
        seed=trajectory.seed,
        trades=tuple(TradeRecord(**vars(trade)) for trade in trajectory.trades),
        arrays=_array_fields(len(trajectory)),
        arrays_sha256=hashlib.sha256(blob).hexdigest(),
    )
    return header, blob


def decode_trajectory(header: TrajectoryFinished, blob: bytes) -> Trajectory:
    """Rebuild a trajectory from its header and the bytes of its arrays.

    Raises:
        MessageError: names, shapes, sizes, hash or values are not valid.
    """
    steps = _checked_steps(header, blob)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    offset = 0
    for name, dtype, width in _LAYOUT:
        count = steps * max(width, 1)
        column = np.frombuffer(blob, dtype, count, offset).copy()
        offset += column.nbytes
        arrays[name] = column.reshape(steps, width) if width else column
    try:
        return Trajectory(  # validates shapes, codes, ranges, and the legality of each action
            trajectory_id=header.trajectory_id,
            worker=header.worker,
            checkpoint_version=header.checkpoint_version,
            dataset=header.dataset,
            start_bar=header.start_bar,
            seed=header.seed,
            trades=tuple(
                Trade(**{**trade.model_dump(), "side": Side(trade.side)}) for trade in header.trades
            ),
            **arrays,  # type: ignore[arg-type]
        )
    except (ShapeError, DataError) as wrong:
        raise MessageError(str(wrong)) from wrong


@lru_cache(maxsize=64)
def _array_fields(steps: int) -> tuple[ArrayField, ...]:
    """The header's array descriptions; cached, because nearly all sessions have equally many steps."""
    return tuple(
        ArrayField(name=name, dtype=cast("Any", dtype), shape=(steps, width) if width else (steps,))
        for name, dtype, width in _LAYOUT
    )


def _checked_steps(header: TrajectoryFinished, blob: bytes) -> int:
    where = f"trajectory {header.trajectory_id}"
    steps = header.arrays[0].shape[0] if header.arrays and header.arrays[0].shape else 0
    if not 1 <= steps <= MAX_STEPS:
        raise MessageError(f"{where}: {steps} steps, expected 1 to {MAX_STEPS}")
    declared = [(field.name, field.dtype, field.shape) for field in header.arrays]
    wanted = [(name, dtype, (steps, width) if width else (steps,)) for name, dtype, width in _LAYOUT]
    if declared != wanted:
        raise MessageError(f"{where}: arrays are {declared}, expected {wanted}")
    size = steps * _STEP_BYTES
    if len(blob) != size:
        raise MessageError(f"{where}: {len(blob)} bytes of arrays, the shapes say {size}")
    if hashlib.sha256(blob).hexdigest() != header.arrays_sha256:
        raise MessageError(f"{where}: the arrays' SHA-256 differs from the header's; they were damaged")
    return steps
