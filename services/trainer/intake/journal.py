"""Every trajectory once, synced, in segments; the replay is rebuilt from it.

A segment is a file named by the number of its first trajectory. It is a row of frames, one for each
`append`:

    magic 4 | size of the payload 4 | trajectories 4 | CRC-32 of the payload 4 | CRC-32 of these 16
    payload: for each trajectory  size of header 4 | size of arrays 4 | header (JSON) | arrays

little-endian all. A frame is synced before `append` returns, and what a killed process left unsynced is
synced when the journal is opened. So whatever is known here is on the disk, and a process that is killed,
or a machine that loses power, leaves at most one unfinished frame, the last one; it was never acknowledged
and is cut off when the journal is opened. Unfinished is what ends before the frame does, or in sectors that
were never written and read as zeros. Any other damage is an error, since it may have been acknowledged; so
a last frame that lost power with its end written and an earlier sector not is refused too, and the error
says how to cut it off by hand (docs/adr/0002).

Ids of trajectories whose segments were removed live on in `removed.ids`, so that a late second
delivery is still known.
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

from shared.adapters.files import sync, write_whole
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

#: Disks write whole multiples of this many bytes, or of more.
_SECTOR_BYTES = 512

#: A payload's last bytes are a row of probabilities, which sum to 1; so none ends in as many zeros.
_LAST_ROW_BYTES = 4 * NUM_OUTCOMES

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

    One process writes. Any of its threads may append, read, remove and ask what is here at any time: an
    append and a removal wait for each other, all else waits for nobody's disk but its own.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = 64 << 20) -> None:
        """Open or begin a journal; an unfinished last frame is cut off, and all that is left is synced.

        Raises:
            JournalError: another process has it open, a segment is missing or damaged elsewhere than at
                its unfinished end, or the disk refuses.
        """
        self.folder, self._segment_bytes = folder, segment_bytes
        self.bytes_cut = 0  # of an unfinished frame, when the journal was opened
        self.first = 0
        self._places: list[_Place] = []
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._unclean: tuple[Path, int | None] | None = None  # what an append that failed may have left
        self._writing = threading.Lock()  # one append or removal at a time
        self._index = threading.Lock()  # of first, _places and _known; nobody who holds it waits for the disk
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder / _LOCK)
            try:
                self._open()
            except (OSError, JournalError):
                self.close()
                raise
        except OSError as refused:
            raise JournalError(f"{folder}: the disk refuses to open the journal: {refused}") from refused

    @property
    def position(self) -> int:
        """Number of trajectories ever appended: the number that the next one gets."""
        with self._index:
            return self.first + len(self._places)

    def __contains__(self, trajectory_id: object) -> bool:
        """True when a trajectory of this id was appended before."""
        with self._index:
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
        with self._writing:
            new = {t.trajectory_id.bytes: t for t in trajectories if t.trajectory_id.bytes not in self._known}
            if not new:
                return []
            records = [_encoded(trajectory) for trajectory in new.values()]
            segment, offset = self._append_frame(records)
            places = []
            for header, arrays in records:
                offset += _RECORD.size
                places.append(_Place(segment, offset, len(header), len(arrays)))
                offset += len(header) + len(arrays)
            with self._index:
                self._places += places
                self._known.update(dict.fromkeys(new))
            return list(new.values())

    def read(self, position: int) -> Trajectory:
        """The trajectory of a number.

        Raises:
            JournalError: the journal does not hold it, or what it holds is damaged.
        """
        with self._index:
            first, end = self.first, self.first + len(self._places)
            place = self._places[position - first] if first <= position < end else None
        if place is None:
            raise JournalError(
                f"{self.folder}: trajectory {position} is not here; held are {first} to {end - 1}"
            )
        try:
            with place.segment.open("rb") as file:
                file.seek(place.offset)
                data = file.read(place.header_bytes + place.array_bytes)
        except FileNotFoundError as removed:
            raise JournalError(
                f"{place.segment}: trajectory {position} is not here; the segment was removed"
            ) from removed
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
        Raises:
            OSError: the disk refuses; what could not be removed is, the next time.
        """
        with self._writing:
            self._clean()  # an empty segment would pass for the last one
            segments = self._segments()
            old = [one for one, after in itertools.pairwise(segments) if _first_number(after) <= position]
            if not old:
                return 0
            first = max(_first_number(segments[len(old)]), self.first)  # a removal that failed left some
            count = first - self.first
            self._remember(self._places[:count])
            with self._index:
                self._places, self.first = self._places[count:], first
            for segment in old:
                segment.unlink()
            sync(self.folder)
            return count

    def _open(self) -> None:
        """Take in what is there, then sync it: a process that was killed may have left it in memory alone."""
        for left_over in self.folder.glob("*.partial"):
            left_over.unlink()
        self._known.update(dict.fromkeys(self._removed_ids()))
        segments = self._segments()
        if segments:
            self.first = _first_number(segments[0])
        for segment in segments:
            self._open_segment(segment, is_last=segment == segments[-1])
        if self._places:
            sync(self._places[-1].segment)  # those before it were, when it was begun
        sync(self.folder)
        sync(self.folder.parent)

    def _append_frame(self, records: Sequence[tuple[bytes, bytes]]) -> tuple[Path, int]:
        """Write and sync a frame, or leave all as it was; the segment, and where in it the payload begins."""
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
        """Take away what an append that failed left behind: nothing may be written after it."""
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
                raise JournalError(_damaged(segment, data, offset, is_last=is_last))
            self._open_frame(segment, data[offset : offset + size], offset)
            offset += size
        if offset == 0 and self._places:  # alone, its name tells how far the journal had come
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
        """Write the ids of trajectories that are about to go, and sync them under their name."""
        ids = dict.fromkeys(self._removed_ids())
        for place in places:
            with place.segment.open("rb") as file:
                file.seek(place.offset)
                header = TrajectoryFinished.model_validate_json(file.read(place.header_bytes))
            ids[header.trajectory_id.bytes] = None
        in_order = list(ids)
        write_whole(self.folder / _REMOVED, b"".join(in_order[-REMEMBERED_IDS:]))
        with self._index:
            for forgotten in in_order[:-REMEMBERED_IDS]:
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
    if head is None:
        return rest < _HEAD.size or not any(data[offset:])
    size = _HEAD.size + head[0]
    return rest < size or (rest == size and _ends_unwritten(data))


def _ends_unwritten(data: bytes) -> bool:
    """True when the file ends in zeros from a sector's begin on, more of them than any payload ends in.

    The file was made longer and lost power before the data came. The zeros of a trajectory's own numbers,
    in the midst of a payload, prove nothing.
    """
    written = len(data.rstrip(b"\0"))
    unwritten = -(-written // _SECTOR_BYTES) * _SECTOR_BYTES
    return len(data) - unwritten >= _LAST_ROW_BYTES


def _damaged(segment: Path, data: bytes, offset: int, *, is_last: bool) -> str:
    """What is wrong with a segment, and how the operator goes on."""
    text = (
        f"{segment}: damaged at byte {offset} of {len(data)}; put the file back from a copy, "
        "or begin a new journal in another folder"
    )
    if is_last and data.find(_MAGIC, offset + 1) < 0:
        text += (
            "; if the machine lost power while it wrote, this last append was never acknowledged: "
            f"to go on without it, truncate -s {offset} {segment}"
        )
    return text


def _append_synced(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        was_empty = file.tell() == 0
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if was_empty:  # perhaps new, or made by a process that was killed: its name is not on the disk yet
        sync(path.parent)


def _first_number(segment: Path) -> int:
    try:
        return int(segment.name.removesuffix(_SUFFIX))
    except ValueError as other:
        raise JournalError(
            f"{segment}: expected a segment named by the number of its first trajectory"
        ) from other
