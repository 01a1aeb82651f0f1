"""Local runs of `up`: one folder per data set, and a file that describes the current or last run."""

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
    """A command needs a running system, and none is running."""

    user_fault = True


@dataclass(frozen=True)
class Run:
    """The current run, or the last one."""

    folder: str
    dataset: str
    gateway_url: str
    redis_url: str = field(repr=False)
    pid: int
    started_at: str
    pids: dict[str, int]
    profile: str = ""  # settings file of its services; empty if there is none

    def save(self, home: Path) -> None:
        """Write the description for other commands; it holds a password, so only its owner may read it.

        Raises:
            OSError: the disk refused the write; the previous file is intact.
        """
        path = _state_path(home)
        temporary = path.with_suffix(".tmp")
        try:
            temporary.touch(mode=0o600)
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(asdict(self), file, indent=2)
                file.flush()
                os.fsync(file.fileno())  # without it a power failure may leave an empty file
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def last_run(home: Path) -> Run | None:
    """The current run or the last one; None if there never was one.

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
    """Lock the home for one `up`; the operating system releases the lock when the process exits.

    Raises:
        NotUpError: another `up` holds the lock.
        DataError: the folder cannot be created or written.
    """
    with naming(home, "used as home (MM_HOME)"):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / _LOCK).open("a+")
    with lock:
        if not _locked(lock):
            raise NotUpError(f"the system is already running ({_holder(home)}); `micro-muzero down` stops it")
        with naming(home, "used as home (MM_HOME)"):
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), str(os.getpid()).encode())
        yield


def lock_holder(home: Path) -> int | None:
    """Process id of the `up` that holds the lock now, or None.

    It may still be starting. Its processes and addresses are known once `running` returns a run.

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
    """The current run if it has started its processes, otherwise None."""
    holder = lock_holder(home)
    run = last_run(home) if holder is not None else None
    return run if run and run.pid == holder else None


def require_running(home: Path) -> Run:
    """The current run.

    Raises:
        NotUpError: no system is running, or it has not started its processes yet.
    """
    run = running(home)
    if run is not None:
        return run
    if lock_holder(home) is not None:
        raise NotUpError(f"the system is still starting ({_holder(home)})")
    left = leftovers(home)
    if left:
        raise NotUpError(
            f"no system is running in {home}, but an `up` that was killed left processes: {described(left)}; "
            "`micro-muzero down` stops them"
        )
    raise NotUpError(f"no system is running in {home}; start it with `micro-muzero up`")


def checkpoint_store(given: str | None) -> CheckpointStore:
    """The checkpoint store that a command works on.

    The first of these that applies: the given one, MM_CHECKPOINTS, the store of the current run,
    `<home>/checkpoints` if services were started one by one, the store of the last run.

    Raises:
        NotUpError: none of these exists.
        SettingsError: the URL is invalid, or the folder does not exist.
    """
    settings = load(ServiceSettings)
    store = CheckpointStore(given or settings.checkpoints or _local_store(settings.home))
    if store.root is not None and not store.root.is_dir():
        raise SettingsError(
            f"checkpoint store {store.name}: there is no such folder; the trainer creates it with its first "
            "version, or name a folder or URL with --store"
        )
    return store


def chosen_version(store: CheckpointStore, checkpoint: str) -> int:
    """The version with the given number, or the target of the given pointer.

    Raises:
        CheckpointError: `checkpoint` is neither a number nor a pointer that is set.
    """
    if checkpoint.isdecimal():
        return int(checkpoint)
    pointers = store.pointers()
    target = pointers[Pointer(checkpoint)] if checkpoint in list(Pointer) else None
    if isinstance(target, CheckpointError):
        raise target
    if target:
        return target.version
    names = ", ".join(f"{name} ({to.version})" for name, to in pointers.items() if isinstance(to, Pointed))
    raise CheckpointError(
        f"no version {checkpoint!r}: expected a number or a pointer that is set: {names or 'none'}"
    )


def validation_root(store: CheckpointStore) -> Path:
    """The folder with the validator's reports on the versions of a store.

    It is in the home of the validator. For a local run this is the run's folder; for services that were
    started one by one it is MM_HOME.
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
    """URL of the configured Redis, or else of the current run's.

    Raises:
        NotUpError: no Redis is configured and no system is running here.
    """
    settings = load(ServiceSettings)
    if "redis_url" in settings.model_fields_set:
        return settings.redis_address
    home = settings.home.resolve()
    run = running(home)
    if run is None:
        raise NotUpError(
            f"no system is running in {home}; start it with `micro-muzero up`, or set MM_REDIS_URL"
        )
    return run.redis_url


def redis_of(store: CheckpointStore) -> str:
    """URL of the Redis of the configured or current system, if its services use this store.

    Raises:
        NotUpError: no system is known here, or it uses another store.
    """
    settings = load(ServiceSettings)
    run = running(settings.home)
    known: list[tuple[str, Path | str]] = []
    if "redis_url" in settings.model_fields_set:
        known.append((settings.redis_address, settings.checkpoint_root))
    if run is not None:
        known.append((run.redis_url, settings.checkpoints or Path(run.folder) / "checkpoints"))
    for url, location in known:
        if same_store(store, location):
            return url
    if not known:
        raise NotUpError(f"no system is running in {settings.home.resolve()}, and MM_REDIS_URL is not set")
    raise NotUpError(f"the system known here keeps its versions in {known[0][1]}, not in {store.name}")


def same_store(store: CheckpointStore, location: Path | str) -> bool:
    """Whether a store is the one at a path or URL."""
    other = CheckpointStore(location)
    if store.root and other.root:
        return store.root.resolve() == other.root.resolve()
    return store.name == other.name


def _local_store(home: Path) -> Path:
    """The checkpoint folder of the current or last system in this home.

    Raises:
        NotUpError: no system ever ran here.
    """
    run = running(home)
    if run is None and (home / "checkpoints").is_dir():
        return home / "checkpoints"
    run = run or last_run(home)
    if run is None:
        raise NotUpError(
            f"no checkpoints in {home} and no local run yet; name a folder or URL with --store, "
            "or start the system with `micro-muzero up`"
        )
    return Path(run.folder) / "checkpoints"


def _state_path(home: Path) -> Path:
    return home / "up.json"


def _locked(lock: IO[str]) -> bool:
    """Take the lock. Retry briefly, since other commands hold it for a moment to see whether it is free."""
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
    """The process id in the lock file; the holder writes it right after taking the lock."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < deadline:
        lock.seek(0)
        text = lock.read()
        if text.isdecimal():
            return int(text)
        time.sleep(0.02)
    raise ServiceError(
        f"{lock.name}: held by a process that did not write its id; stop that process and try again"
    )


def _holder(home: Path) -> str:
    run = running(home)
    return f"process {run.pid}, {run.gateway_url}" if run else f"process {lock_holder(home)} is starting"
