"""Local runs: one folder per data set, and a file that describes the one that is up."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from cli.leftovers import described, leftovers
from shared.adapters.outputs import naming
from shared.adapters.versions.manifest import Pointed, Pointer
from shared.adapters.versions.store import CheckpointStore
from shared.errors import CheckpointError, ServiceError, SettingsError
from shared.runtime.settings import ServiceSettings, load

_LOCK = "up.lock"
_LOCK_SECONDS = 0.5


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
    profile: str = ""  # settings file of its services; empty where they have none

    def save(self, home: Path) -> None:
        """Write it for the other commands; the file holds a password, so only its owner may read it.

        Raises:
            OSError: the disk refuses; the file that was there is intact.
        """
        path = _state_path(home)
        aside = path.with_suffix(".tmp")
        try:
            aside.touch(mode=0o600)
            with aside.open("w", encoding="utf-8") as file:
                json.dump(asdict(self), file, indent=2)
                file.flush()
                os.fsync(file.fileno())  # or a power failure may leave an empty file under the name
            aside.rename(path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise


def last_run(home: Path) -> Run | None:
    """The run that is up or was up last, or None when there never was one.

    Raises:
        ServiceError: the file that describes it is damaged.
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
    """Hold the home for one `up`; the lock is released when the process exits, however it exits.

    Raises:
        NotUpError: another `up` holds it.
        DataError: there can be no such folder, or it cannot be written.
    """
    with naming(home, "used as home (MM_HOME)"):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / _LOCK).open("a+")
    with lock:
        if not _locked(lock):
            raise NotUpError(f"the system is up already ({_who(home)}); `micro-muzero down` stops it")
        with naming(home, "used as home (MM_HOME)"):
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), str(os.getpid()).encode())
        yield


def lock_holder(home: Path) -> int | None:
    """Process id of the `up` that holds the home now, or None.

    It may still be starting: only once `running` returns a run are its processes and addresses known.

    Raises:
        DataError: the home cannot be read.
    """
    with naming(home, "read"), contextlib.suppress(FileNotFoundError), (home / _LOCK).open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _written_holder(lock)
    return None


def running(home: Path) -> Run | None:
    """The run that is up now and has started its processes, or None."""
    holder = lock_holder(home)
    run = last_run(home) if holder is not None else None
    return run if run and run.pid == holder else None


def require_running(home: Path) -> Run:
    """The run that is up now.

    Raises:
        NotUpError: none is.
    """
    run = running(home)
    if run is not None:
        return run
    if lock_holder(home) is not None:
        raise NotUpError(f"the system is not up yet ({_who(home)})")
    left = leftovers(home)
    if left:
        raise NotUpError(
            f"nothing is up in {home}, but an `up` that was killed left processes: {described(left)}; "
            "`micro-muzero down` ends them"
        )
    raise NotUpError(f"nothing is up in {home}; start it with `micro-muzero up`")


def checkpoint_store(given: str | None) -> CheckpointStore:
    """The store that a command means.

    The one given, else the one set, else that of the run that is up here, else the one of services that were
    started here one by one, else the last run's.

    Raises:
        NotUpError: there is no store to be found.
        SettingsError: its URL is invalid, or there is no such folder.
    """
    settings = load(ServiceSettings)
    store = CheckpointStore(given or settings.checkpoints or _local_store(settings.home))
    if store.root is not None and not store.root.is_dir():
        raise SettingsError(
            f"checkpoint store {store.name}: there is no such folder; the first version makes it, or name "
            "folder or URL with --store"
        )
    return store


def chosen_version(store: CheckpointStore, checkpoint: str) -> int:
    """The version that a number or a pointer's name stands for.

    Raises:
        CheckpointError: neither a number nor a pointer that is set.
    """
    if checkpoint.isdecimal():
        return int(checkpoint)
    pointers = store.pointers()
    named = pointers[Pointer(checkpoint)] if checkpoint in list(Pointer) else None
    if isinstance(named, CheckpointError):
        raise named
    if named:
        return named.version
    names = ", ".join(f"{name} ({at.version})" for name, at in pointers.items() if isinstance(at, Pointed))
    raise CheckpointError(
        f"no version {checkpoint!r}: expected a number or a pointer that is set: {names or 'none is'}"
    )


def validation_root(store: CheckpointStore) -> Path:
    """The validator's reports on a store's versions.

    They lie in the home of the validator that judged them: that of a local run is the run's folder, that of
    services started one by one is the one that is set.
    """
    settings = load(ServiceSettings)
    if store.root and store.root.resolve().parent.parent == (settings.home / "runs").resolve():
        return store.root.resolve().parent / "validations"
    if settings.checkpoints and same_store(store, settings.checkpoints):
        run = last_run(settings.home) if not settings.validation_root.is_dir() else running(settings.home)
        if run:
            return Path(run.folder) / "validations"
    return settings.validation_root


def system_redis() -> str:
    """URL of the Redis that is set, else of the system that is up here.

    Raises:
        NotUpError: neither is there.
    """
    settings = load(ServiceSettings)
    if "redis_url" in settings.model_fields_set:
        return settings.redis_address
    home = settings.home.resolve()
    run = running(home)
    if run is None:
        raise NotUpError(
            f"nothing is up in {home}; start it with `micro-muzero up`, or name a Redis with MM_REDIS_URL"
        )
    return run.redis_url


def redis_of(store: CheckpointStore) -> str:
    """URL of the Redis of the system whose services use a store: the one that is set, or is up here.

    Raises:
        NotUpError: no such system is known here; says why.
    """
    settings = load(ServiceSettings)
    run = running(settings.home)
    known: list[tuple[str, Path | str]] = []
    if "redis_url" in settings.model_fields_set:
        known.append((settings.redis_address, settings.checkpoint_root))
    if run is not None:
        known.append((run.redis_url, settings.checkpoints or Path(run.folder) / "checkpoints"))
    for url, uses in known:
        if same_store(store, uses):
            return url
    if not known:
        raise NotUpError(f"nothing is up in {settings.home.resolve()}, and MM_REDIS_URL names no Redis")
    raise NotUpError(f"the system that is known here has its versions in {known[0][1]}, not in {store.name}")


def same_store(store: CheckpointStore, place: Path | str) -> bool:
    """Whether a store is the one in a place."""
    other = CheckpointStore(place)
    if store.root and other.root:
        return store.root.resolve() == other.root.resolve()
    return store.name == other.name


def _local_store(home: Path) -> Path:
    """The folder of versions of what runs here, or ran last.

    Raises:
        NotUpError: nothing ever did.
    """
    run = running(home)
    if run is None and (home / "checkpoints").is_dir():
        return home / "checkpoints"
    run = run or last_run(home)
    if run is None:
        raise NotUpError(
            f"no checkpoints in {home} and no local run yet; name folder or URL with --store, "
            "or start the system with `micro-muzero up`"
        )
    return Path(run.folder) / "checkpoints"


def _state_path(home: Path) -> Path:
    return home / "up.json"


def _locked(lock: IO[str]) -> bool:
    """Take the lock; other commands hold it for moments, to see whether it is held."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _written_holder(lock: IO[str]) -> int:
    """The process id in the lock file; its holder writes it right after it takes the lock."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < deadline:
        lock.seek(0)
        text = lock.read()
        if text.isdecimal():
            return int(text)
        time.sleep(0.02)
    raise ServiceError(f"{lock.name}: held by a process that did not write its id; end it and try again")


def _who(home: Path) -> str:
    run = running(home)
    return f"process {run.pid}, {run.gateway_url}" if run else f"process {lock_holder(home)} is starting"
