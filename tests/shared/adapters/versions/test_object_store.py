"""Faults of an object store: competing writers, interrupted puts, lost replies, refusals."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from shared.adapters.versions import object_store
from shared.adapters.versions.manifest import (
    MANIFEST_SHA256,
    WEIGHTS,
    Pointed,
    Pointer,
    PointerHistoryEntry,
    moved,
)
from shared.adapters.versions.object_store import ObjectFiles
from shared.adapters.versions.store import CheckpointStore, Collected
from shared.errors import CheckpointError, SettingsError, StoreUnavailableError
from shared.runtime.ports import free_port
from tests.conftest import ROOT
from tests.s3_server import SECRET, S3Server
from tests.shared.adapters.versions.checkpoint_versions import (
    InBucket,
    Place,
    equal,
    fill,
    manifest,
    new_place,
    tensors,
)


class Interrupted(BaseException):
    """Interrupts a writer like a kill: a BaseException, so that no `except Exception` catches it."""


@pytest.fixture(params=["memory", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    return new_place(request)


def before_each(operation: str, patched: pytest.MonkeyPatch, act: Callable[[str], None]) -> None:
    """Before each call of the operation (`_put` or `_delete`), in any store, call `act` with its keys."""
    real = getattr(ObjectFiles, operation)

    def acting(self: ObjectFiles, key: str, *rest: object) -> object:
        act(key)
        return real(self, key, *rest)

    patched.setattr(ObjectFiles, operation, acting)


@pytest.mark.parametrize("put", [1, 2, 3, 4])
def test_the_first_of_two_writers_to_commit_a_version_wins(
    place: Place, monkeypatch: pytest.MonkeyPatch, put: int
) -> None:
    """The second writer saves the version just before the n-th put of the first writer."""
    fill(place.store(), 0)
    puts: list[str] = []

    def overtake(key: str) -> None:
        puts.append(key)
        if len(puts) == put:
            place.store().save(manifest(1), tensors(2), tensors(2))

    with monkeypatch.context() as patched:
        before_each("_put", patched, overtake)
        with pytest.raises(CheckpointError, match="version 1 exists already"):
            place.store().save(manifest(1), tensors(1), tensors(1))
    assert len(puts) == 8
    store = place.store()
    assert store.verify(1).version == 1
    assert equal(store.weights(1), tensors(2))
    assert store.collect_garbage(keep=1).removed == (0,)
    assert _files(store) == 4  # the three files of the loser are deleted


def test_exactly_one_of_many_concurrent_writers_wins(place: Place) -> None:
    writers = 4
    for version in range(5):
        begin = threading.Barrier(writers)

        def write(number: int, version: int = version, begin: threading.Barrier = begin) -> int | None:
            store = place.store()
            begin.wait()
            try:
                store.save(manifest(version), tensors(number), tensors(number))
            except CheckpointError:
                return None
            return number

        with ThreadPoolExecutor(writers) as pool:
            won = [number for number in pool.map(write, range(writers)) if number is not None]
        assert len(won) == 1
        store = place.store()
        store.verify(version)
        assert equal(store.weights(version), tensors(won[0]))


def test_latest_stays_loadable_wherever_a_writer_is_interrupted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt saving, moving the pointer and garbage collection before each put and delete in turn."""
    store = fill(place.store(), 0, 1)
    store.point(Pointer.LATEST, 1)
    step, interruptions = 0, 0
    while True:
        version = place.store().versions()[-1] + 1
        left = step

        def interrupt(_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Interrupted

        with monkeypatch.context() as patched:
            before_each("_put", patched, interrupt)
            before_each("_delete", patched, interrupt)
            try:
                _publish(place.store(), version)
                was_interrupted = False
            except Interrupted:
                was_interrupted = True
        reader = place.store()
        assert all(reader.verify(held).version == held for held in reader.versions())
        pointed = reader.pointer(Pointer.LATEST)
        assert pointed is not None
        assert equal(reader.weights(pointed.version), tensors(pointed.version))
        if not was_interrupted:
            break
        interruptions, step = interruptions + 1, step + 1
    # Puts: four files and the pointer. Deletions: leftovers, a version's manifest.sha256, its other files.
    assert interruptions >= 4 + 1 + 3
    _publish(place.store(), version + 1)
    assert place.store().versions() == [version, version + 1]
    assert _files(place.store()) == 2 * 4


def _publish(store: CheckpointStore, version: int) -> None:
    store.save(manifest(version), tensors(version), tensors(version))
    store.point(Pointer.LATEST, version)
    store.collect_garbage(keep=2)


def _files(store: CheckpointStore) -> int:
    files = store._files
    assert isinstance(files, ObjectFiles)
    return sum(path.startswith("v") for path in files._paths())


def test_a_put_repeated_after_a_lost_reply_succeeds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server refuses the second put, because the first one has already written the same contents."""
    real = ObjectFiles._put

    def twice(self: ObjectFiles, key: str, data: bytes, mode: object) -> bool:
        real(self, key, data, mode)  # type: ignore[arg-type]
        return real(self, key, data, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectFiles, "_put", twice)
    store = fill(place.store(), 1, 2)
    for version in (1, 2):
        store.point(Pointer.LATEST, version)
    assert [store.verify(version).version for version in store.versions()] == [1, 2]
    assert store.pointer(Pointer.LATEST) == Pointed(2, None, (PointerHistoryEntry(1, None),))


def test_a_conflicting_move_of_a_pointer_is_retried(place: Place) -> None:
    fill(place.store(), 1, 2, 3)
    seen: list[int | None] = []

    def where(at: Pointed | None) -> Pointed:
        seen.append(at.version if at else None)
        if len(seen) <= 2:
            place.store().point(Pointer.BEST, len(seen))
        return moved(at, 3, None)

    place.store().move(Pointer.BEST, where)
    assert seen == [None, 1, 2]
    assert place.store().pointer(Pointer.BEST) == Pointed(
        3, None, (PointerHistoryEntry(1, None), PointerHistoryEntry(2, None))
    )


def test_a_move_gives_up_after_many_conflicts(place: Place) -> None:
    fill(place.store(), 1)

    def where(at: Pointed | None) -> Pointed:
        place.store().point(Pointer.BEST, 1)
        return moved(at, 1, "paper")

    with pytest.raises(StoreUnavailableError, match=r"best\.json: replaced by others 20 times"):
        place.store().move(Pointer.BEST, where)


@pytest.mark.parametrize("damage", [False, True])
def test_a_removal_is_undone_if_a_pointer_moves_to_the_version(
    place: Place, monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    store = fill(place.store(), 0, 1)

    def point(keys: object) -> None:
        if isinstance(keys, list) and keys == ["v000000/manifest.sha256"]:
            if damage:
                place.write("best.json", b"{")
            else:
                place.store().point(Pointer.BEST, 0)

    before_each("_delete", monkeypatch, point)
    collected = store.collect_garbage(keep=1)
    assert (collected.removed, bool(collected.obstacle)) == ((), damage)
    assert store.verify(0).version == 0


def test_a_version_with_a_damaged_manifest_hash_keeps_its_files(place: Place) -> None:
    """Garbage collection cannot tell which files belong to the version, so it deletes none of them."""
    store = fill(place.store(), 1, 2)
    line = place.read("v000001/manifest.sha256")
    place.write("v000001/manifest.sha256", b"\x00" + line[1:])
    store.point(Pointer.BEST, 2)
    assert store.collect_garbage(keep=2) == Collected(())
    place.write("v000001/manifest.sha256", line)
    assert store.verify(1).version == 1


def test_every_operation_raises_while_the_server_is_unavailable(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(InBucket(bucket).store(), 1)
    monkeypatch.setattr(object_store, "RETRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    store = InBucket(bucket).store()
    url = InBucket(bucket).url
    for operation in (
        store.versions,
        store.newest_valid,
        lambda: store.verify(1),
        lambda: store.pointer(Pointer.LATEST),
        lambda: store.save(manifest(2), tensors(2), {}),
        lambda: store.move(Pointer.BEST, lambda at: moved(at, 1, None)),
        lambda: store.collect_garbage(keep=1),
        store.pointers,
    ):
        with pytest.raises(StoreUnavailableError, match=rf"{url}.*127\.0\.0\.1") as failure:
            operation()
        assert "\n" not in str(failure.value)


def test_versions_do_not_count_as_damaged_while_the_store_is_unavailable(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store becomes unavailable after it has listed its versions."""
    store = fill(place.store(), 1, 2)

    def unavailable(*_: object) -> bytes:
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(ObjectFiles, "manifest_line", unavailable)
    for operation in (store.newest_valid, lambda: store.collect_garbage(keep=1)):
        with pytest.raises(StoreUnavailableError, match="no answer"):
            operation()
    assert store.versions() == [1, 2]


def test_the_error_for_a_missing_bucket_names_the_bucket(s3_server: S3Server, bucket: str) -> None:
    store = InBucket(f"{s3_server.url}/nowhere").store()
    for operation in (
        store.versions,
        lambda: store.manifest(1),
        lambda: store.pointer(Pointer.LATEST),
        lambda: store.save(manifest(0), {}, {}),
    ):
        with pytest.raises(
            StoreUnavailableError, match=r"s3://nowhere/runs/one.* 404 Not Found NoSuchBucket"
        ):
            operation()
    assert InBucket(bucket).store().versions() == []


def test_the_error_for_wrong_credentials_does_not_contain_them(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(InBucket(bucket).store(), 1)
    httpx.post(
        f"{s3_server.url}/moto-api/reset-auth", content=b"0"
    ).raise_for_status()  # the server checks credentials from now on
    try:
        with pytest.raises(StoreUnavailableError, match="403 Forbidden InvalidAccessKeyId") as refused:
            InBucket(bucket).store().versions()
    finally:
        httpx.post(f"{s3_server.url}/moto-api/reset-auth", content=b"inf").raise_for_status()
    assert SECRET not in str(refused.value)
    assert "AKID" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_url_with_a_secret_is_rejected_and_the_error_hides_the_secret() -> None:
    for url in (
        f"s3://AKID:{SECRET}@bucket/x",
        f"s3://{SECRET}@bucket/x",
        f"s3://bucket/x?secret={SECRET}",
        f"s3://bucket/x#{SECRET}",
    ):
        with pytest.raises(SettingsError, match=r"environment \(AWS_") as refused:
            CheckpointStore(url)
        assert "xxx" not in str(refused.value)


def test_the_error_hides_a_password_in_the_endpoint(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "RETRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:pass-w0rd@127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnavailableError) as failure:
        InBucket(bucket).store().versions()
    assert "pass-w0rd" not in str(failure.value)


def test_a_slash_at_the_end_of_the_url_changes_nothing(bucket: str) -> None:
    place = InBucket(bucket)
    fill(CheckpointStore(f"{place.url}/"), 1)
    assert place.store().versions() == [1]
    assert place.read(f"v000001/{MANIFEST_SHA256}")


def test_only_versions_under_the_prefix_are_listed(bucket: str) -> None:
    fill(InBucket(bucket, "runs/one").store(), 1)
    fill(InBucket(bucket, "runs/one2").store(), 2)
    fill(InBucket(bucket, "runs").store(), 3)
    assert InBucket(bucket, "runs/one").store().versions() == [1]
    assert InBucket(bucket, "runs").store().versions() == [3]
    assert InBucket(bucket, "runs/one").store().file_bytes(1, WEIGHTS)


def test_obstore_is_not_imported_before_its_first_use() -> None:
    code = """
import sys, cli.main
from shared.adapters.versions.store import CheckpointStore
CheckpointStore("s3://bucket/prefix")
print("obstore" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout == "False\n"


def test_the_error_for_missing_credentials_names_the_variables_to_set() -> None:
    text = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 2s"
    assert object_store._reason(text) == "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
