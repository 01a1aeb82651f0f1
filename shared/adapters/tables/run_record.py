"""The record of a training run: settings, versions, and figures of every update and episode.

One folder per run. `settings.json` is a list: with what the run was started, each time. `updates-*.parquet`,
`episodes-*.parquet` and `versions-*.parquet` are tables that DuckDB, pandas or a dashboard reads as they
grow, several runs at once by `runs/*/record/episodes-*.parquet`. Event files for TensorBoard are optional.

A run that goes on from a version says how far that had come; what was recorded beyond it is removed and
comes again. Whoever calls `flush` before a version is written therefore has every row once, however
often the process was killed. What nobody goes on from lacks the last minute before the kill.
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

from shared.adapters.files import write_whole
from shared.adapters.tables.growing_table import COUNT, FIGURE, FLAG, MOMENT, TEXT, GrowingTable, Value
from shared.adapters.tables.tensorboard import TensorBoard
from shared.agent.trajectory import Trajectory
from shared.environment.action import Action
from shared.errors import DataError
from shared.messages.schemas import now
from shared.metrics.episodes import Episode, episode_figures

#: Rows wait no longer than until the first one that comes so long after the last write.
WRITE_EVERY_SECONDS = 60.0

#: TensorBoard is shown every so many updates; the tables have them all.
TENSORBOARD_EVERY = 10

SETTINGS = "settings.json"

#: A column of whole numbers has 64 bits.
LARGEST_COUNT = 2**63 - 1

_LIBRARIES = ("micro-stochastic-muzero", "torch", "numpy", "numba", "pyarrow")

_UPDATES = {
    "attempt": COUNT,  # updates tried so far, this one included
    "update": COUNT,  # updates made so far
    "episode": COUNT,  # trajectories learned from so far
    "time": MOMENT,
    "skipped": FLAG,  # loss or gradient was not finite, so nothing changed
}
_EPISODES = {
    "episode": COUNT,  # the first learned from is 1
    "time": MOMENT,  # when it was learned from
    "trajectory_id": TEXT,
    "worker": TEXT,
    "version": COUNT,  # that played it
    "start_bar": COUNT,
    "steps": COUNT,
    "reward": FIGURE,
    "trades": COUNT,
    "wins": COUNT,
    "pips": FIGURE,  # net
    "expectancy_pips": FIGURE,  # null without trades, as the win rate
    "win_rate": FIGURE,
    "trade_ratio": FIGURE,  # of steps that are BUY, SELL or CLOSE
    **{f"share_{action.name.lower()}": FIGURE for action in Action},
}
_VERSIONS = {"version": COUNT, "episode": COUNT, "update": COUNT, "time": MOMENT}


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins or resumes: the counters of a version."""

    version: int = 0  # the next one recorded
    episode: int = 0
    attempt: int = 0
    update: int = 0


def require_no_record(folder: Path) -> None:
    """Check that a run which begins in a folder removes nothing: a record of its own would.

    Raises:
        DataError: something is in the folder, or it is a file.
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
        resume_point: ResumePoint | None = None,
        tensorboard: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin a record, or go on with one.

        Args:
            folder: of the run; made when it is not there.
            update_figures: names of the numbers that every update has.
            version_figures: names of the numbers that every version has.
            resume_point: rows recorded beyond it are removed; None for the beginning of a run.
            tensorboard: write event files too.
            clock: in seconds.
        Raises:
            DataError: what is recorded cannot be read, or the folder not be written to.
        """
        self._folder, self._resume_point, self._clock = folder, resume_point or ResumePoint(), clock
        self._update_figures, self._version_figures = tuple(update_figures), tuple(version_figures)
        self._boards: dict[str, TensorBoard] = {}
        self._starts: bytes | None = None  # contents of the settings' file that wait for the disk
        self._written_at = clock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left_over in folder.glob(".*.partial"):
                left_over.unlink()
            self._updates = self._table("updates", _UPDATES, self._update_figures, self._resume_point.attempt)
            self._episodes = self._table("episodes", _EPISODES, (), self._resume_point.episode)
            self._versions = self._table(
                "versions", _VERSIONS, self._version_figures, self._resume_point.version - 1
            )
            if tensorboard:
                steps = {"updates": self._resume_point.update, "episodes": self._resume_point.episode}
                self._boards = {
                    name: TensorBoard(folder / "tensorboard" / name, after_step=step)
                    for name, step in steps.items()
                }
        except OSError as refused:
            raise DataError(f"{folder}: the record of the run cannot be written: {refused}") from refused

    @property
    def num_lost(self) -> int:
        """Rows that were let go since too many waited for the disk."""
        return sum(table.num_lost for table in self._tables)

    def settings(self, settings: Mapping[str, JsonValue]) -> None:
        """Note with what the run starts or goes on; seed and data set belong to the settings.

        A start after which no version was made is forgotten, as its rows are. A disk that refuses is no
        error here: the settings wait, and `flush` tries again.

        Raises:
            DataError: the file that is there is damaged or cannot be read.
        """
        resume, path = self._resume_point, self._folder / SETTINGS
        earlier = [
            start
            for start in _starts(path)
            if (start["episode"], start["attempt"]) < (resume.episode, resume.attempt)
        ]
        start = {
            "time": now().isoformat(),
            "version": resume.version,
            "episode": resume.episode,
            "attempt": resume.attempt,
            "settings": dict(settings),
            "libraries": {"python": platform.python_version()}
            | {name: installed_version(name) for name in _LIBRARIES},
            "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        }
        self._starts = json.dumps([*earlier, start], indent=2).encode()
        with contextlib.suppress(OSError):  # whoever flushes is told
            self._write_starts()

    def update(
        self, attempt: int, update: int, episode: int, figures: Mapping[str, float], *, skipped: bool = False
    ) -> None:
        """Record an update that was made or skipped.

        Args:
            attempt: updates tried so far, this one included.
            update: updates made so far.
            episode: trajectories learned from so far.
            figures: by the names that were announced; one that is left out or not finite is null.
            skipped: loss or gradient was not finite.
        Raises:
            DataError: a number is too large for its column.
            OSError: the disk refuses; the rows wait.
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
        """Record a trajectory that is learned from now; `episode` counts them, the first is 1.

        Raises:
            DataError: a number is too large for its column.
            OSError: the disk refuses; the rows wait.
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
        """Record a version that was made, and write everything.

        Raises:
            DataError: a number is too large for its column.
            OSError: the disk refuses; the rows wait.
        """
        row: dict[str, Value] = {"version": version, "episode": episode, "update": update, "time": time_made}
        self._add(self._versions, row | {name: figures.get(name) for name in self._version_figures})
        self.flush()

    def flush(self) -> None:
        """Put everything on the disk.

        Raises:
            OSError: the disk refuses; settings and rows wait.
        """
        self._written_at = self._clock()
        self._write_starts()
        for table in self._tables:
            table.write()
        for board in self._boards.values():
            board.flush()

    def close(self) -> None:
        """Write what is left.

        Raises:
            OSError: the disk refuses.
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
        """Put the settings on the disk unless they are there."""
        if self._starts is not None:
            write_whole(self._folder / SETTINGS, self._starts)
            self._starts = None

    def _add(self, table: GrowingTable, row: Mapping[str, Value]) -> None:
        """Take in a row, unless it could never be written."""
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
