"""Stores every trajectory once, synced, in segment files; the replay buffer is rebuilt from them.

A segment is a file named by the number of its first trajectory. It is a sequence of frames, one for each
`append`:

    magic 4 | size of the payload 4 | trajectories 4 | CRC-32 of the payload 4 | CRC-32 of these 16
    payload: for each trajectory  size of header 4 | size of arrays 4 | header (JSON) | arrays

All numbers are little-endian. A frame is synced before `append` returns, and opening the journal syncs what
a killed process left unsynced. So everything in the index is on the disk. A killed process or a power loss
leaves at most one unfinished frame, the last one. It was never acknowledged, and opening the journal
truncates it. A frame counts as unfinished if the file ends inside it, or if its tail is unwritten sectors
that read as zeros. Any other damage is an error, because the frame may have been acknowledged. This includes
a last frame that lost an earlier sector, but not its tail, in a power loss; the error says how to truncate
it by hand (docs/adr/0002).

The ids of trajectories in removed segments are kept in `removed.ids`, so that a late redelivery is still
recognised.
"""

import contextlib
import fcntl
import itertools
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from pydantic import ValidationError

from shared.adapters.files import sync, write_atomically
from shared.agent.trajectory import Trajectory
from shared.environment.outcome import NUM_OUTCOMES
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

#: Smallest unit that a disk writes; larger sectors are multiples of it.
_SECTOR_BYTES = 512

#: A payload ends in a row of probabilities that sum to 1, so never in this many zero bytes.
_LAST_ROW_BYTES = 4 * NUM_OUTCOMES

#: Number of removed trajectories whose ids are kept: far more than can be in flight.
REMEMBERED_IDS = 200_000


@dataclass(frozen=True)
class _Location:
    """Location of one trajectory on the disk."""

    segment: Path
    offset: int
    header_bytes: int
    array_bytes: int


class Journal:
    """The trajectories of one training run in order of arrival, numbered from 0.

    Only one process may open it. All methods are thread-safe. Appends and removals wait for each other;
    no other method waits for another thread's disk access.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = 64 << 20) -> None:
        """Open or create a journal; truncate an unfinished last frame and sync the rest.

        Raises:
            JournalError: another process has it open, a segment is missing, a segment has damage that is
                not an unfinished last frame, or the disk fails.
        """
        self.folder, self._segment_bytes = folder, segment_bytes
        self.bytes_cut = 0  # truncated when the journal was opened
        self.first = 0
        self._locations: list[_Location] = []
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._unclean: tuple[Path, int | None] | None = None  # segment, and size before a failed append
        self._writing = threading.Lock()  # one append or removal at a time
        self._index = threading.Lock()  # guards first, _locations, _known; never held during disk access
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder / _LOCK)
            try:
                self._open()
            except (OSError, JournalError):
                self.close()
                raise
        except OSError as failure:
            raise JournalError(f"{folder}: the journal cannot be opened: {failure}") from failure

    @property
    def position(self) -> int:
        """Number of trajectories ever appended, which is the number of the next one."""
        with self._index:
            return self.first + len(self._locations)

    def __contains__(self, trajectory_id: object) -> bool:
        """True when a trajectory with this id was appended before."""
        with self._index:
            return isinstance(trajectory_id, UUID) and trajectory_id.bytes in self._known

    def close(self) -> None:
        """Release the lock, so that another process can open the journal."""
        os.close(self._lock)

    def append(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Write and sync the trajectories that are new.

        Returns:
            The new ones; trajectories with a known id are left out.
        Raises:
            OSError: the disk fails; the journal is unchanged.
        """
        with self._writing:
            new = {t.trajectory_id.bytes: t for t in trajectories if t.trajectory_id.bytes not in self._known}
            if not new:
                return []
            records = [_encoded(trajectory) for trajectory in new.values()]
            segment, offset = self._append_frame(records)
            locations = []
            for header, arrays in records:
                offset += _RECORD.size
                locations.append(_Location(segment, offset, len(header), len(arrays)))
                offset += len(header) + len(arrays)
            with self._index:
                self._locations += locations
                self._known.update(dict.fromkeys(new))
            return list(new.values())

    def read(self, position: int) -> Trajectory:
        """Read the trajectory with this number.

        Raises:
            JournalError: the journal does not hold it, or it is damaged.
        """
        with self._index:
            first, end = self.first, self.first + len(self._locations)
            location = self._locations[position - first] if first <= position < end else None
        if location is None:
            raise JournalError(
                f"{self.folder}: trajectory {position} is not in the journal, "
                f"which holds {first} to {end - 1}"
            )
        try:
            with location.segment.open("rb") as file:
                file.seek(location.offset)
                data = file.read(location.header_bytes + location.array_bytes)
        except FileNotFoundError as removed:
            raise JournalError(
                f"{location.segment}: trajectory {position} is not in the journal; its segment was removed"
            ) from removed
        try:
            header = TrajectoryFinished.model_validate_json(data[: location.header_bytes])
            return decode_trajectory(header, data[location.header_bytes :])
        except (ValidationError, MessageError) as damaged:
            raise JournalError(
                f"{location.segment}: trajectory {position} at byte {location.offset}: {damaged}"
            ) from damaged

    def remove_before(self, position: int) -> int:
        """Remove the segments that hold only trajectories before a number; the last segment stays.

        Returns:
            Number of trajectories removed.
        Raises:
            OSError: the disk fails; the next call removes the remaining segments.
        """
        with self._writing:
            self._clean()  # an empty segment left behind would count as the last one
            segments = self._segments()
            old = [one for one, after in itertools.pairwise(segments) if _first_number(after) <= position]
            if not old:
                return 0
            first = max(_first_number(segments[len(old)]), self.first)  # larger after a failed removal
            count = first - self.first
            self._remember(self._locations[:count])
            with self._index:
                self._locations, self.first = self._locations[count:], first
            for segment in old:
                segment.unlink()
            sync(self.folder)
            return count

    def _open(self) -> None:
        """Index the segments, then sync: a killed process may have left data only in the page cache."""
        for left_over in self.folder.glob("*.partial"):
            left_over.unlink()
        self._known.update(dict.fromkeys(self._removed_ids()))
        segments = self._segments()
        if segments:
            self.first = _first_number(segments[0])
        for segment in segments:
            self._open_segment(segment, is_last=segment == segments[-1])
        if self._locations:
            sync(self._locations[-1].segment)  # earlier segments were synced before it was created
        sync(self.folder)
        sync(self.folder.parent)

    def _append_frame(self, records: Sequence[tuple[bytes, bytes]]) -> tuple[Path, int]:
        """Write and sync a frame, or change nothing; return the segment and the payload's offset in it."""
        payload = b"".join(
            _RECORD.pack(len(header), len(arrays)) + header + arrays for header, arrays in records
        )
        self._clean()
        segment = self._writable_segment()
        before = segment.stat().st_size if segment.exists() else None
        self._unclean = segment, before
        try:
            _append_synced(segment, _head(payload, len(records)) + payload)
        except BaseException:
            with contextlib.suppress(OSError):  # the next append tries again
                self._clean()
            raise
        self._unclean = None
        return segment, (before or 0) + _HEAD.size

    def _clean(self) -> None:
        """Remove the partial frame of a failed append, because no frame may follow it."""
        if self._unclean is None:
            return
        segment, size = self._unclean
        if size is None:
            segment.unlink(missing_ok=True)
        else:
            os.truncate(segment, size)
        self._unclean = None

    def _writable_segment(self) -> Path:
        """The last segment, or a new one when it is full."""
        if self._locations:
            last = self._locations[-1].segment
            if last.stat().st_size < self._segment_bytes:
                return last
        return self.folder / f"{self.position:012d}{_SUFFIX}"

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def _open_segment(self, segment: Path, *, is_last: bool) -> None:
        """Index a segment's trajectories."""
        if _first_number(segment) != self.position:
            raise JournalError(
                f"{segment}: begins with trajectory {_first_number(segment)}, expected {self.position}; "
                "the segment before it is missing"
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
                raise JournalError(_damaged(segment, data, offset, is_last=is_last))
            self._open_frame(segment, data[offset : offset + size], offset)
            offset += size
        if offset == 0 and self._locations:  # a sole segment stays: its name holds the position
            segment.unlink()  # its first frame was never finished

    def _open_frame(self, segment: Path, frame: bytes, start: int) -> None:
        _, _, count, _, _ = _HEAD.unpack_from(frame)
        offset = _HEAD.size
        for _ in range(count):
            header_bytes, array_bytes = _RECORD.unpack_from(frame, offset)
            offset += _RECORD.size
            try:
                header = TrajectoryFinished.model_validate_json(frame[offset : offset + header_bytes])
            except ValidationError as invalid:
                raise JournalError(
                    f"{segment}: no trajectory at byte {start + offset}: {invalid}"
                ) from invalid
            self._locations.append(_Location(segment, start + offset, header_bytes, array_bytes))
            self._known[header.trajectory_id.bytes] = None
            offset += header_bytes + array_bytes

    def _removed_ids(self) -> list[bytes]:
        path = self.folder / _REMOVED
        data = path.read_bytes() if path.exists() else b""
        complete = len(data) // _ID_BYTES * _ID_BYTES  # a killed write may have left part of an id
        ids = [data[at : at + _ID_BYTES] for at in range(0, complete, _ID_BYTES)]
        return ids[-REMEMBERED_IDS:]

    def _remember(self, locations: Sequence[_Location]) -> None:
        """Write and sync the ids of trajectories that are about to be removed."""
        ids = dict.fromkeys(self._removed_ids())
        for location in locations:
            with location.segment.open("rb") as file:
                file.seek(location.offset)
                header = TrajectoryFinished.model_validate_json(file.read(location.header_bytes))
            ids[header.trajectory_id.bytes] = None
        in_order = list(ids)
        write_atomically(self.folder / _REMOVED, b"".join(in_order[-REMEMBERED_IDS:]))
        with self._index:
            for forgotten in in_order[:-REMEMBERED_IDS]:
                self._known.pop(forgotten, None)


def _locked(path: Path) -> int:
    """Take the lock; the system releases it however the process exits."""
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
    """Bytes of the frame that begins here, or None when it is incomplete or damaged."""
    head = _head_at(data, offset)
    if head is None:
        return None
    size, checksum = head
    payload = data[offset + _HEAD.size : offset + _HEAD.size + size]
    return _HEAD.size + size if len(payload) == size and zlib.crc32(payload) == checksum else None


def _head_at(data: bytes, offset: int) -> tuple[int, int] | None:
    """Size and CRC of the payload according to the frame's head, or None when the head is damaged."""
    if len(data) - offset < _HEAD.size:
        return None
    magic, size, _, checksum, own = _HEAD.unpack_from(data, offset)
    if magic != _MAGIC or zlib.crc32(data[offset : offset + _HEAD.size - 4]) != own:
        return None
    return size, checksum


def _is_unfinished(data: bytes, offset: int) -> bool:
    """True when this may be a frame whose write was interrupted, and nothing follows it."""
    rest = len(data) - offset
    head = _head_at(data, offset)
    if head is None:
        return rest < _HEAD.size or not any(data[offset:])
    size = _HEAD.size + head[0]
    return rest < size or (rest == size and _ends_unwritten(data))


def _ends_unwritten(data: bytes) -> bool:
    """True when the file's last sectors hold only zeros, more of them than any payload ends in.

    Then the file was extended, and the power failed before the data were written. Zeros in the middle of a
    payload prove nothing: they may be a trajectory's own numbers.
    """
    written = len(data.rstrip(b"\0"))
    unwritten = -(-written // _SECTOR_BYTES) * _SECTOR_BYTES
    return len(data) - unwritten >= _LAST_ROW_BYTES


def _damaged(segment: Path, data: bytes, offset: int, *, is_last: bool) -> str:
    """Describe a segment's damage and what the operator can do."""
    text = (
        f"{segment}: damaged at byte {offset} of {len(data)}; restore the file from a copy, "
        "or begin a new journal in another folder"
    )
    if is_last and data.find(_MAGIC, offset + 1) < 0:
        text += (
            "; if the machine lost power during this last append, it was never acknowledged: "
            f"to continue without it, truncate -s {offset} {segment}"
        )
    return text


def _append_synced(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        was_empty = file.tell() == 0
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if was_empty:  # new, or created by a killed process: its name may not be on the disk yet
        sync(path.parent)


def _first_number(segment: Path) -> int:
    try:
        return int(segment.name.removesuffix(_SUFFIX))
    except ValueError as invalid:
        raise JournalError(
            f"{segment}: expected a segment named by the number of its first trajectory"
        ) from invalid
