"""The record of a training run: settings, versions, and figures of every update and episode.

There is one folder per run. `settings.json` lists the settings of every start of the run. The tables
`updates-*.parquet`, `episodes-*.parquet` and `versions-*.parquet` can be read while they grow with DuckDB,
pandas or a dashboard, and for several runs at once as `runs/*/record/episodes-*.parquet`. Event files for
TensorBoard are optional.

A run that resumes from a version removes all rows after that version, because training produces them again.
If the caller flushes before it writes a version, every row is recorded exactly once, however often the
process is killed. A run that is killed and never resumed lacks its last minute.
"""

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path

from pydantic import JsonValue

from shared.adapters.files import write_atomically
from shared.adapters.tables.growing_table import COUNT, FIGURE, FLAG, TEXT, TIMESTAMP, GrowingTable, Value
from shared.adapters.tables.tensorboard import TensorBoard
from shared.agent.trajectory import Trajectory
from shared.environment.action import Action
from shared.errors import DataError
from shared.messages.schemas import now
from shared.metrics.episodes import Episode, episode_figures

#: Once this long has passed since the last write, the next row triggers a write.
WRITE_EVERY_SECONDS = 60.0

#: TensorBoard receives every n-th update; the tables have all of them.
TENSORBOARD_EVERY = 10

SETTINGS = "settings.json"

#: Integer columns have 64 bits.
LARGEST_COUNT = 2**63 - 1

_LIBRARIES = ("micro-stochastic-muzero", "torch", "numpy", "numba", "pyarrow")

_UPDATES = {
    "attempt": COUNT,  # updates attempted so far, including this one
    "update": COUNT,  # updates applied so far
    "episode": COUNT,  # trajectories learned from so far
    "time": TIMESTAMP,
    "skipped": FLAG,  # not applied, because loss or gradient was not finite
}
_EPISODES = {
    "episode": COUNT,  # number of the trajectory, beginning at 1
    "time": TIMESTAMP,  # when it was added to the replay
    "trajectory_id": TEXT,
    "worker": TEXT,
    "version": COUNT,  # version of the acting weights
    "start_bar": COUNT,
    "steps": COUNT,
    "reward": FIGURE,
    "trades": COUNT,
    "wins": COUNT,
    "pips": FIGURE,  # net
    "expectancy_pips": FIGURE,  # null without trades
    "win_rate": FIGURE,  # null without trades
    "trade_ratio": FIGURE,  # fraction of steps that are BUY, SELL or CLOSE
    **{f"share_{action.name.lower()}": FIGURE for action in Action},
}
_VERSIONS = {"version": COUNT, "episode": COUNT, "update": COUNT, "time": TIMESTAMP}


@dataclass(frozen=True)
class ResumePoint:
    """Progress of a run at the version from which it starts or resumes."""

    version: int = 0  # the next version to record
    episode: int = 0
    attempt: int = 0
    update: int = 0


def require_no_record(folder: Path) -> None:
    """Check that the folder is empty, because a new record deletes an older one in its folder.

    Raises:
        DataError: the folder is not empty, or is a file.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty: choose another folder for the record, nothing was changed")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: expected a folder for the record")


class RunRecord:
    """Writes the record of one run."""

    def __init__(
        self,
        folder: Path,
        *,
        update_figures: Sequence[str],
        version_figures: Sequence[str] = (),
        resume_at: ResumePoint | None = None,
        tensorboard: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start or resume a record.

        Args:
            folder: folder of the run; created if needed.
            update_figures: names of the figures of every update.
            version_figures: names of the figures of every version.
            resume_at: where the run resumes; later rows in the folder are removed. None: at its beginning.
            tensorboard: write event files too.
            clock: returns seconds.
        Raises:
            DataError: the existing record cannot be read, or the folder cannot be written.
        """
        self._folder, self._resume_at, self._clock = folder, resume_at or ResumePoint(), clock
        self._update_figures, self._version_figures = tuple(update_figures), tuple(version_figures)
        self._boards: dict[str, TensorBoard] = {}
        self._starts: bytes | None = None  # contents of the settings file that are not written yet
        self._written_at = clock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left_over in folder.glob(".*.partial"):
                left_over.unlink()
            self._updates = self._table("updates", _UPDATES, self._update_figures, self._resume_at.attempt)
            self._episodes = self._table("episodes", _EPISODES, (), self._resume_at.episode)
            self._versions = self._table(
                "versions", _VERSIONS, self._version_figures, self._resume_at.version - 1
            )
            if tensorboard:
                steps = {"updates": self._resume_at.update, "episodes": self._resume_at.episode}
                self._boards = {
                    name: TensorBoard(folder / "tensorboard" / name, after_step=step)
                    for name, step in steps.items()
                }
        except OSError as refused:
            raise DataError(f"{folder}: the record of the run cannot be written: {refused}") from refused

    @property
    def num_lost(self) -> int:
        """Rows that were dropped because too many waited for the disk."""
        return sum(table.num_lost for table in self._tables)

    def settings(self, settings: Mapping[str, JsonValue]) -> None:
        """Record the settings of this start; they should include seed and data set.

        Earlier starts that produced no version are removed, as their rows were. If the disk rejects the
        write, the settings wait for `flush`.

        Raises:
            DataError: the existing file is damaged or cannot be read.
        """
        resume_at, path = self._resume_at, self._folder / SETTINGS
        earlier = [
            start
            for start in _starts(path)
            if (start["episode"], start["attempt"]) < (resume_at.episode, resume_at.attempt)
        ]
        start = {
            "time": now().isoformat(),
            "version": resume_at.version,
            "episode": resume_at.episode,
            "attempt": resume_at.attempt,
            "settings": dict(settings),
            "libraries": {"python": platform.python_version()}
            | {name: installed_version(name) for name in _LIBRARIES},
            "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        }
        self._starts = json.dumps([*earlier, start], indent=2).encode()
        with contextlib.suppress(OSError):  # `flush` tries again and raises
            self._write_starts()

    def update(
        self, attempt: int, update: int, episode: int, figures: Mapping[str, float], *, skipped: bool = False
    ) -> None:
        """Record an update that was applied or skipped.

        Args:
            attempt: updates attempted so far, including this one.
            update: updates applied so far.
            episode: trajectories added to the replay so far.
            figures: values by name, as in `update_figures`; a missing or non-finite value becomes null.
            skipped: whether the update was skipped because loss or gradient was not finite.
        Raises:
            DataError: a number is too large for its column.
            OSError: the write failed; the rows wait.
        """
        row: dict[str, Value] = {
            "attempt": attempt,
            "update": update,
            "episode": episode,
            "time": now(),
            "skipped": skipped,
        }
        self._add(self._updates, row | {name: figures.get(name) for name in self._update_figures})
        if update % TENSORBOARD_EVERY == 0 and not skipped:
            self._draw("updates", update, figures)
        self._write_when_due()

    def episode(self, episode: int, trajectory: Trajectory) -> None:
        """Record a trajectory that was added to the replay; `episode` is its number, beginning at 1.

        Raises:
            DataError: a number is too large for its column.
            OSError: the write failed; the rows wait.
        """
        pips = [trade.pips for trade in trajectory.trades]
        figures = episode_figures(Episode.of(pips, trajectory.actions, trajectory.rewards))
        row: dict[str, Value] = {
            "episode": episode,
            "time": now(),
            "trajectory_id": str(trajectory.trajectory_id),
            "worker": trajectory.worker,
            "version": trajectory.checkpoint_version,
            "start_bar": trajectory.start_bar,
            "steps": len(trajectory),
        }
        self._add(self._episodes, row | figures)
        self._draw("episodes", episode, {name: value for name, value in figures.items() if value is not None})
        self._write_when_due()

    def version(
        self, version: int, episode: int, update: int, time_made: datetime, figures: Mapping[str, float]
    ) -> None:
        """Record a version, and flush.

        Raises:
            DataError: a number is too large for its column.
            OSError: the write failed; the rows wait.
        """
        row: dict[str, Value] = {"version": version, "episode": episode, "update": update, "time": time_made}
        self._add(self._versions, row | {name: figures.get(name) for name in self._version_figures})
        self.flush()

    def flush(self) -> None:
        """Write everything to the disk.

        Raises:
            OSError: the write failed; settings and rows wait.
        """
        self._written_at = self._clock()
        self._write_starts()
        for table in self._tables:
            table.write()
        for board in self._boards.values():
            board.flush()

    def close(self) -> None:
        """Flush and close.

        Raises:
            OSError: the write failed.
        """
        self.flush()
        for board in self._boards.values():
            board.close()

    @property
    def _tables(self) -> tuple[GrowingTable, ...]:
        return self._updates, self._episodes, self._versions

    def _table(
        self, name: str, columns: Mapping[str, object], figures: Sequence[str], last: int
    ) -> GrowingTable:
        return GrowingTable(self._folder, name, {**columns, **dict.fromkeys(figures, FIGURE)}, last=last)

    def _write_starts(self) -> None:
        """Write the settings file if it is not up to date."""
        if self._starts is not None:
            write_atomically(self._folder / SETTINGS, self._starts)
            self._starts = None

    def _add(self, table: GrowingTable, row: Mapping[str, Value]) -> None:
        """Add a row; raise DataError if a number is too large for its column."""
        for column, value in row.items():
            if isinstance(value, int) and abs(value) > LARGEST_COUNT:
                raise DataError(
                    f"{self._folder}: {column} is {value}, the record holds at most {LARGEST_COUNT}"
                )
        table.add(row)

    def _draw(self, board: str, step: int, figures: Mapping[str, float]) -> None:
        if board in self._boards:
            self._boards[board].write(step, figures)

    def _write_when_due(self) -> None:
        if self._clock() - self._written_at >= WRITE_EVERY_SECONDS:
            self.flush()


def _starts(path: Path) -> list[dict[str, JsonValue]]:
    try:
        starts = json.loads(path.read_bytes())
        return [start for start in starts if start["episode"] >= 0 and start["attempt"] >= 0]
    except FileNotFoundError:
        return []
    except OSError as refused:
        raise DataError(f"{path}: cannot be read: {refused}") from refused
    except (ValueError, TypeError, KeyError) as damaged:
        raise DataError(f"{path}: damaged ({damaged!r}); move it away and start again") from damaged
