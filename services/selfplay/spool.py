"""Keeps on disk the finished trajectories that a stopping worker could not send, one in each file.

Any worker that starts with the same home sends them, even while other workers run. A file is named after its
trajectory's id, so only the worker that played the trajectory writes the file, and does so atomically. The
worker that sends the trajectory removes the file. Two workers may send the same trajectory, since the trainer
counts each id once.
"""

import struct
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import structlog
from pydantic import ValidationError

from shared.adapters.files import write_atomically
from shared.agent.trajectory import Trajectory
from shared.errors import MessageError, SettingsError
from shared.messages.codec import decode_trajectory, encode_trajectory
from shared.messages.schemas import TrajectoryFinished

log = structlog.get_logger()

_SUFFIX = ".trajectory"
_HEADER_SIZE = struct.Struct("<I")


class Spool:
    """A folder of trajectories."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prove_writable(self) -> None:
        """Write a file and remove it, so that an unwritable disk is found while there is nothing to lose.

        Raises:
            SettingsError: the folder cannot be written.
        """
        probe = self.folder / f".{uuid4()}.probe"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(probe, b"")
            probe.unlink()
        except OSError as refused:
            raise SettingsError(
                f"setting MM_HOME: {self.folder} cannot be written: {refused.strerror}; a worker keeps "
                "trajectories there that it cannot send before it stops"
            ) from refused

    def write(self, trajectories: Iterable[Trajectory]) -> list[OSError]:
        """Keep trajectories, each in a file that is written atomically.

        Returns:
            An error for each trajectory that could not be written.
        """
        refusals = []
        for trajectory in trajectories:
            try:
                self._write(trajectory)
            except OSError as refused:
                refusals.append(refused)
        return refusals

    def _write(self, trajectory: Trajectory) -> None:
        message, arrays = encode_trajectory(trajectory)
        header = message.model_dump_json().encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{trajectory.trajectory_id}{_SUFFIX}"
        write_atomically(path, _HEADER_SIZE.pack(len(header)) + header + arrays)

    def files(self) -> list[Path]:
        """Paths of the kept files."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def read(self, path: Path) -> Trajectory | None:
        """The trajectory of a file; None if another worker sent it meanwhile, or it cannot be read.

        An unreadable file is kept, and the error is logged.
        """
        try:
            data = path.read_bytes()
            (size,) = _HEADER_SIZE.unpack_from(data)
            begin = _HEADER_SIZE.size
            header = TrajectoryFinished.model_validate_json(data[begin : begin + size])
            return decode_trajectory(header, data[begin + size :])
        except FileNotFoundError:
            return None
        except (MessageError, ValidationError, struct.error, OSError) as damaged:
            log.error("unsent_trajectory_unreadable", path=str(path), error=str(damaged))  # noqa: TRY400
            return None

    def remove(self, path: Path) -> None:
        """Remove the file of a trajectory that was sent."""
        path.unlink(missing_ok=True)
