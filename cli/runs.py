"""Local runs: one folder per data set, and a file that tells which one is up."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.adapters.checkpoints import CheckpointStore, Pointed, Pointer
from shared.errors import CheckpointError, ServiceError, SettingsError
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
    """The store that a command means.

    The one given, else the one set, else that of the run that is up here, else the one of services that were
    started here one by one, else the last run's.

    Raises:
        NotUpError: there is no store to be found.
        SettingsError: its URL is none, or there is no such folder.
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
        return settings.redis_url.get_secret_value()
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
        known.append((settings.redis_url.get_secret_value(), settings.checkpoint_root))
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
