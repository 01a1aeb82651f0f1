"""Every trajectory once, synced, in segments; the replay is rebuilt from it.

A segment is a file named by the number of its first trajectory. It is a row of frames, one for each
`append`:

    magic 4 | size of the payload 4 | trajectories 4 | CRC-32 of the payload 4 | CRC-32 of these 16
    payload: for each trajectory  size of header 4 | size of arrays 4 | header (JSON) | arrays

little-endian all. A frame is synced before `append` returns. So a process that is killed, or a machine
that loses power, leaves at most one unfinished frame, the last one; it was never acknowledged and is
cut off when the journal is opened. Damage anywhere else is an error, since it was acknowledged.

Ids of trajectories whose segments were removed live on in `removed.ids`, so that a late second
delivery is still known.
"""

import fcntl
import itertools
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pydantic import ValidationError

from shared.adapters.files import sync
from shared.agent.trajectory import Trajectory
from shared.errors import JournalError, MessageError
from shared.messages.codec import decode_trajectory, encode_trajectory
from shared.messages.schemas import TrajectoryFinished

_MAGIC = b"MMJ1"
_HEAD = struct.Struct("<4sIIII")
_RECORD = struct.Struct("<II")
_SUFFIX = ".segment"
_REMOVED = "removed.ids"
_LOCK = "lock"
_ID_BYTES = 16

#: Removed trajectories whose ids are still known: far more than can be on their way at any time.
REMEMBERED_IDS = 200_000


@dataclass(frozen=True)
class _Place:
    """Where one trajectory lies."""

    segment: Path
    offset: int
    header_bytes: int
    array_bytes: int


class Journal:
    """The trajectories of one training run in the order in which they came, numbered from 0.

    One process writes. Reading while another thread appends is safe.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = 64 << 20) -> None:
        """Open or begin a journal; an unfinished last frame is cut off.

        Raises:
            JournalError: another process has it open, or a segment is missing or damaged elsewhere
                than at its unfinished end.
        """
        self.folder, self._segment_bytes = folder, segment_bytes
        self.bytes_cut = 0  # of an unfinished frame, when the journal was opened
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / _LOCK)
        self._known: OrderedDict[bytes, None] = OrderedDict.fromkeys(self._removed_ids())
        self._places: list[_Place] = []
        segments = self._segments()
        self.first = _first_number(segments[0]) if segments else 0
        for segment in segments:
            self._open_segment(segment, is_last=segment == segments[-1])

    @property
    def position(self) -> int:
        """Number of trajectories ever appended: the number that the next one gets."""
        return self.first + len(self._places)

    def __contains__(self, trajectory_id: object) -> bool:
        """True when a trajectory of this id was appended before."""
        return isinstance(trajectory_id, UUID) and trajectory_id.bytes in self._known

    def close(self) -> None:
        """Let another process open it."""
        os.close(self._lock)

    def append(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Write those trajectories that are new, and sync them.

        Returns:
            The new ones; one whose id is known already is left out.
        Raises:
            OSError: the disk refuses; the journal is as it was.
        """
        new = {t.trajectory_id.bytes: t for t in trajectories if t.trajectory_id.bytes not in self._known}
        if not new:
            return []
        records = [_encoded(trajectory) for trajectory in new.values()]
        payload = b"".join(
            _RECORD.pack(len(header), len(arrays)) + header + arrays for header, arrays in records
        )
        segment = self._writable_segment()
        before = segment.stat().st_size if segment.exists() else 0
        try:
            _append_synced(segment, _head(payload, len(records)) + payload)
        except OSError:
            if segment.exists():
                os.truncate(segment, before)
            raise
        offset = before + _HEAD.size
        for header, arrays in records:
            offset += _RECORD.size
            self._places.append(_Place(segment, offset, len(header), len(arrays)))
            offset += len(header) + len(arrays)
        self._known.update(dict.fromkeys(new))
        return list(new.values())

    def read(self, position: int) -> Trajectory:
        """The trajectory of a number.

        Raises:
            JournalError: the journal does not hold it, or what it holds is damaged.
        """
        if not self.first <= position < self.position:
            raise JournalError(
                f"{self.folder}: trajectory {position} is not here; "
                f"held are {self.first} to {self.position - 1}"
            )
        place = self._places[position - self.first]
        with place.segment.open("rb") as file:
            file.seek(place.offset)
            data = file.read(place.header_bytes + place.array_bytes)
        try:
            header = TrajectoryFinished.model_validate_json(data[: place.header_bytes])
            return decode_trajectory(header, data[place.header_bytes :])
        except (ValidationError, MessageError) as damaged:
            raise JournalError(
                f"{place.segment}: trajectory {position} at byte {place.offset}: {damaged}"
            ) from damaged

    def remove_before(self, position: int) -> int:
        """Remove the segments all of whose trajectories come before a number; the last one stays.

        Returns:
            How many trajectories were removed.
        """
        segments = self._segments()
        removed = 0
        for segment, following in itertools.pairwise(segments):
            upper = _first_number(following)
            if upper > position:
                break
            count = upper - self.first
            self._remember(self._places[:count])
            segment.unlink()
            self._places = self._places[count:]
            self.first = upper
            removed += count
        if removed:
            sync(self.folder)
        return removed

    def _writable_segment(self) -> Path:
        """The last segment, or a new one when it is full."""
        if self._places:
            last = self._places[-1].segment
            if last.stat().st_size < self._segment_bytes:
                return last
        return self.folder / f"{self.position:012d}{_SUFFIX}"

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def _open_segment(self, segment: Path, *, is_last: bool) -> None:
        """Take a segment's trajectories into the index."""
        if _first_number(segment) != self.position:
            raise JournalError(
                f"{segment}: begins with trajectory {_first_number(segment)}, expected {self.position}; "
                "a segment before it is missing"
            )
        data = segment.read_bytes()
        offset = 0
        while offset < len(data):
            size = _frame_size(data, offset)
            if size is None and is_last and _is_unfinished(data, offset):
                os.truncate(segment, offset)
                self.bytes_cut = len(data) - offset
                break
            if size is None:
                raise JournalError(
                    f"{segment}: damaged at byte {offset} of {len(data)}; put the file back from a copy, "
                    "or begin a new journal in another folder"
                )
            self._open_frame(segment, data[offset : offset + size], offset)
            offset += size
        if offset == 0 and segment.exists():
            segment.unlink()  # its first frame was never finished

    def _open_frame(self, segment: Path, frame: bytes, start: int) -> None:
        _, _, count, _, _ = _HEAD.unpack_from(frame)
        offset = _HEAD.size
        for _ in range(count):
            header_bytes, array_bytes = _RECORD.unpack_from(frame, offset)
            offset += _RECORD.size
            try:
                header = TrajectoryFinished.model_validate_json(frame[offset : offset + header_bytes])
            except ValidationError as other:
                raise JournalError(f"{segment}: no trajectory at byte {start + offset}: {other}") from other
            self._places.append(_Place(segment, start + offset, header_bytes, array_bytes))
            self._known[header.trajectory_id.bytes] = None
            offset += header_bytes + array_bytes

    def _removed_ids(self) -> list[bytes]:
        path = self.folder / _REMOVED
        data = path.read_bytes() if path.exists() else b""
        whole = len(data) // _ID_BYTES * _ID_BYTES  # a killed write may have left part of one
        ids = [data[at : at + _ID_BYTES] for at in range(0, whole, _ID_BYTES)]
        return ids[-REMEMBERED_IDS:]

    def _remember(self, places: Sequence[_Place]) -> None:
        """Write the ids of trajectories that are about to go; the file is replaced whole."""
        ids = self._removed_ids()
        for place in places:
            with place.segment.open("rb") as file:
                file.seek(place.offset)
                header = TrajectoryFinished.model_validate_json(file.read(place.header_bytes))
            ids.append(header.trajectory_id.bytes)
        aside = self.folder / f"{_REMOVED}.partial"
        aside.unlink(missing_ok=True)
        _append_synced(aside, b"".join(ids[-REMEMBERED_IDS:]))
        aside.replace(self.folder / _REMOVED)
        for forgotten in ids[:-REMEMBERED_IDS]:
            self._known.pop(forgotten, None)


def _locked(path: Path) -> int:
    """A descriptor that holds the lock; the system frees it when the process ends, however it does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as taken:
        os.close(descriptor)
        raise JournalError(f"{path.parent}: another trainer has this journal open; stop it first") from taken
    return descriptor


def _encoded(trajectory: Trajectory) -> tuple[bytes, bytes]:
    header, arrays = encode_trajectory(trajectory)
    return header.model_dump_json().encode(), arrays


def _head(payload: bytes, count: int) -> bytes:
    start = struct.pack("<4sIII", _MAGIC, len(payload), count, zlib.crc32(payload))
    return start + struct.pack("<I", zlib.crc32(start))


def _frame_size(data: bytes, offset: int) -> int | None:
    """Bytes of the frame that begins here, or None when there is no whole and undamaged one."""
    head = _head_at(data, offset)
    if head is None:
        return None
    size, checksum = head
    payload = data[offset + _HEAD.size : offset + _HEAD.size + size]
    return _HEAD.size + size if len(payload) == size and zlib.crc32(payload) == checksum else None


def _head_at(data: bytes, offset: int) -> tuple[int, int] | None:
    """Size and CRC of the payload that a frame's head tells, or None when the head itself is damaged."""
    if len(data) - offset < _HEAD.size:
        return None
    magic, size, _, checksum, own = _HEAD.unpack_from(data, offset)
    if magic != _MAGIC or zlib.crc32(data[offset : offset + _HEAD.size - 4]) != own:
        return None
    return size, checksum


def _is_unfinished(data: bytes, offset: int) -> bool:
    """True when what begins here may be a frame whose writing was cut short, and nothing follows it."""
    rest = len(data) - offset
    head = _head_at(data, offset)
    if head is not None:
        return rest < _HEAD.size + head[0]
    return rest < _HEAD.size or not any(data[offset:])


def _append_synced(path: Path, data: bytes) -> None:
    is_new = not path.exists()
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


def _first_number(segment: Path) -> int:
    try:
        return int(segment.name.removesuffix(_SUFFIX))
    except ValueError as other:
        raise JournalError(
            f"{segment}: expected a segment named by the number of its first trajectory"
        ) from other
