"""Local runs: one folder per data set, and a file that tells which one is up."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.adapters.checkpoints import CheckpointStore, Pointer
from shared.errors import CheckpointError, ServiceError
from shared.runtime.settings import ServiceSettings, load


class NotUpError(ServiceError):
    """A command needs a running system and there is none."""

    user_fault = True


@dataclass(frozen=True)
class Run:
    """The run that is up, or was up last."""

    folder: str
    dataset: str
    gateway_url: str
    redis_url: str = field(repr=False)
    pid: int
    started_at: str
    pids: dict[str, int]

    def save(self, home: Path) -> None:
        """Write it for the other commands; the file holds a password and is the owner's alone."""
        path = _state_path(home)
        aside = path.with_suffix(".tmp")
        aside.touch(mode=0o600)
        aside.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        aside.rename(path)


def last_run(home: Path) -> Run | None:
    """The run that is up or was up last, or None when there never was one.

    Raises:
        ServiceError: the file that tells is damaged.
    """
    path = _state_path(home)
    try:
        return Run(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as damaged:
        raise ServiceError(f"{path}: damaged ({damaged}); delete it and run `up` again") from damaged


@contextlib.contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Hold the home for one `up`; the lock goes with the process, however it ends.

    Raises:
        ServiceError: another `up` holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            run = last_run(home)
            who = f" (process {run.pid}, {run.gateway_url})" if run else ""
            raise NotUpError(f"the system is up already{who}; `micro-muzero down` stops it") from held
        yield


def running(home: Path) -> Run | None:
    """The run that is up now, or None."""
    run = last_run(home)
    if run is None:
        return None
    with (home / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return run
    return None


def require_running(home: Path) -> Run:
    """The run that is up now.

    Raises:
        NotUpError: none is.
    """
    run = running(home)
    if run is None:
        raise NotUpError(f"nothing is up in {home}; start it with `micro-muzero up`")
    return run


def checkpoint_store(given: str | None) -> CheckpointStore:
    """The store that a command means: the one given, else the one set, else the last local run's.

    Raises:
        NotUpError: there is no store to be found.
        SettingsError: its URL is none.
    """
    settings = load(ServiceSettings)
    return CheckpointStore(given or settings.checkpoints or _state_folder(settings, "checkpoints"))


def chosen_version(store: CheckpointStore, checkpoint: str) -> int:
    """The version that a number or a pointer's name stands for.

    Raises:
        CheckpointError: neither a number nor a pointer that is set.
    """
    if checkpoint.isdecimal():
        return int(checkpoint)
    pointers = {name: store.pointer(name) for name in Pointer}
    for name, pointed in pointers.items():
        if name == checkpoint and pointed:
            return pointed.version
    names = ", ".join(f"{name} ({pointed.version})" for name, pointed in pointers.items() if pointed)
    raise CheckpointError(
        f"no version {checkpoint!r}: expected a number or a pointer that is set: {names or 'none is'}"
    )


def validation_root(store: CheckpointStore) -> Path:
    """The validator's reports on a store's versions: beside a folder of them, else in the local state.

    Raises:
        NotUpError: there is neither.
    """
    if store.root:
        return store.root.parent / "validations"
    return _state_folder(load(ServiceSettings), "validations")


def _state_folder(settings: ServiceSettings, name: str) -> Path:
    """A folder of the state that services keep here, or of the last local run's."""
    if (settings.home / name).is_dir():
        return settings.home / name
    run = last_run(settings.home)
    if run is None:
        raise NotUpError(
            f"no {name} in {settings.home} and no local run yet; name folder or URL with --store, "
            "or start the system with `micro-muzero up`"
        )
    return Path(run.folder) / name


def _state_path(home: Path) -> Path:
    return home / "up.json"
