"""Checkpoint versions in S3 or a compatible object store, through obstore.

Putting one object is atomic, but a version has four. So a version exists once its last object is put:

    v000042/manifest.sha256                       create-only put: one writer wins
    v000042/<SHA-256 of the manifest>/manifest.json, weights.safetensors, training.safetensors
    latest.json, best.json, promoted.json         conditional put: replaced only if unchanged since the read

A killed writer leaves files that no `manifest.sha256` names; its next attempt uses a folder of its own.
Credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID` ...), as for other S3 tools,
and are never part of the URL.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from shared.adapters.files import too_large
from shared.adapters.versions.directory import MAX_SMALL_BYTES
from shared.adapters.versions.manifest import MANIFEST_SHA256
from shared.errors import SettingsError, StoreUnavailableError

if TYPE_CHECKING:  # imported when it is used, so that other commands start faster
    from obstore import ObjectMeta, PutMode
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

#: URL schemes of stores that are known to support create-only and conditional puts.
SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")

#: Schemes with `container@account` in the place of a bucket.
_ACCOUNT_SCHEMES = ("abfs", "abfss")

#: With these retries a server that is down is detected within about two seconds. Callers try again later.
RETRIES = 4
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 60.0  # per file

#: Attempts at replacing a pointer that other processes replace at the same time.
MAX_CONFLICTS = 20

_COMMITTED = re.compile(r"v(\d{6,})/manifest\.sha256")
_ATTEMPT = re.compile(r"v(\d{6,})/([0-9a-f]{64})/.+")

R = TypeVar("R")


@dataclass(frozen=True)
class _Found:
    """A fetched object, and the put mode that replaces exactly this state."""

    data: bytes | None  # None: no object; empty: too large to be read
    mode: "PutMode"
    size: int


class ObjectFiles:
    """Versions below one prefix. Any number of writers may compete for a version; one wins."""

    def __init__(self, name: str, connect: Callable[[], "ObjectStore"]) -> None:
        self.name, self._connect = name, connect

    @classmethod
    def at(cls, url: str) -> "ObjectFiles":
        """The store at a URL; it is not accessed yet.

        Raises:
            SettingsError: the URL is not that of an object store, or contains a secret.
        """
        try:
            parts = urlsplit(url)
        except ValueError as wrong:
            raise SettingsError(
                f"checkpoint store: {wrong}; expected a URL such as s3://bucket/prefix"
            ) from None
        account = "@" in parts.netloc and parts.scheme in _ACCOUNT_SCHEMES
        if ":" in parts.netloc or parts.query or parts.fragment or ("@" in url and not account):
            raise SettingsError(
                f"checkpoint store {parts.scheme}://...: expected only bucket and prefix in the URL; "
                "credentials and endpoint belong in the environment (AWS_...)"
            )
        if parts.scheme not in SCHEMES or not parts.netloc:
            raise SettingsError(
                f"checkpoint store {url}: expected a folder, or a URL such as s3://bucket/prefix "
                f"({', '.join(SCHEMES)})"
            )
        return cls(url.rstrip("/"), lambda: _connect(url))

    @cached_property
    def objects(self) -> "ObjectStore":
        """The connection, made when it is first used."""
        return self._connect()

    def versions(self) -> list[int]:
        """Versions by their `manifest.sha256`, ascending."""
        found = (_COMMITTED.fullmatch(path) for path in self._paths())
        return sorted(int(match[1]) for match in found if match)

    def add(self, version: int, files: Mapping[str, bytes], manifest_sha256: str) -> None:
        """Put the files into a folder of this writer's own, then `manifest.sha256`, which commits them."""
        last = _key(version, MANIFEST_SHA256)
        if self._fetch(last).data not in (None, files[MANIFEST_SHA256]):
            raise FileExistsError(f"{self.name}/{last}")
        for name, data in files.items():
            # An existing file is from an interrupted attempt with the same manifest.
            if name != MANIFEST_SHA256:
                self._put(_key(version, name, manifest_sha256), data, "create")
        # If a reply is lost, the client repeats the put, and the store refuses it: the first one succeeded.
        put = self._put(last, files[MANIFEST_SHA256], "create")
        if not put and self._fetch(last).data != files[MANIFEST_SHA256]:
            raise FileExistsError(f"{self.name}/{last}")

    def manifest_line(self, version: int) -> bytes:
        """Contents of a version's `manifest.sha256`."""
        return self._read(_key(version, MANIFEST_SHA256), MAX_SMALL_BYTES)

    def read(self, version: int, name: str, manifest_sha256: str, *, limit: int) -> bytes:
        """Contents of another file of a version."""
        return self._read(_key(version, name, manifest_sha256), limit)

    def location(self, version: int, name: str) -> str:
        """URL of a file of a version, without the folder named by the manifest's hash."""
        return f"{self.name}/{_key(version, name)}"

    def remove(self, version: int, is_protected: Callable[[], bool]) -> bool:
        """Delete `manifest.sha256`, then the files; restore it if a pointer was moved here in between.

        A process that moves a pointer checks afterwards that the version exists, and this method checks the
        pointers after the deletion, so at least one of the two detects the conflict.
        """
        last = _key(version, MANIFEST_SHA256)
        line = self._fetch(last).data
        if line is None or is_protected():
            return False
        self._delete([last])
        protected = True
        try:
            protected = is_protected()
        finally:
            if protected:
                self._put(last, line, "create")
        if protected:
            return False
        self._delete(self._paths(f"v{version:06d}"))
        return True

    def tidy(self) -> None:
        """Delete uncommitted files up to the newest version; a writer may still be adding later ones."""
        paths = self._paths()
        committed = {int(match[1]) for path in paths if (match := _COMMITTED.fullmatch(path))}
        newest = max(committed, default=-1)
        lines = {version: self._fetch(_key(version, MANIFEST_SHA256)).data or b"" for version in committed}
        attempts = [match for path in paths if (match := _ATTEMPT.fullmatch(path))]
        self._delete(
            match[0]
            for match in attempts
            if int(match[1]) <= newest and not _may_name(lines.get(int(match[1])), match[2])
        )

    def pointer(self, name: str) -> bytes | None:
        """Contents of an object at the root, or None."""
        return self._get(name)

    def change_pointer(self, name: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Read, change and conditionally replace an object; retry on a conflict.

        Raises:
            StoreUnavailableError: the store does not answer or refuses, or every attempt meets a conflict.
        """
        changed: bytes | None = None
        for _ in range(MAX_CONFLICTS):
            before = self._fetch(name)
            if changed is not None and before.data == changed:
                return  # the previous put succeeded, but its reply was lost
            changed = change(before.data)
            if changed is None or self._put(name, changed, before.mode):
                return
        raise StoreUnavailableError(f"{self.name}/{name}: replaced by others {MAX_CONFLICTS} times in a row")

    def _paths(self, prefix: str | None = None) -> list[str]:
        def listed() -> list[str]:
            chunks: Iterable[Iterable[ObjectMeta]] = self.objects.list(prefix)
            return [meta["path"] for chunk in chunks for meta in chunk]

        return self._request(prefix or "", listed)

    def _read(self, key: str, limit: int) -> bytes:
        data = self._get(key, limit)
        if data is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.name}/{key}")
        return data

    def _get(self, key: str, limit: int = MAX_SMALL_BYTES) -> bytes | None:
        found = self._fetch(key, limit)
        if found.size > limit:
            raise too_large(f"{self.name}/{key}", found.size, limit)
        return found.data

    def _fetch(self, key: str, limit: int = MAX_SMALL_BYTES) -> "_Found":
        """Fetch the object under a key; contents larger than the limit are left empty."""

        def found() -> _Found:
            try:
                result = self.objects.get(key)
            except FileNotFoundError as missing:
                if "NoSuchBucket" in str(missing):
                    raise
                return _Found(None, "create", 0)
            tag, size = result.meta["e_tag"], result.meta["size"]
            data = bytes(result.bytes()) if size <= limit else b""
            return _Found(data, {"e_tag": tag} if tag else "overwrite", size)

        return self._request(key, found)

    def _put(self, key: str, data: bytes, mode: "PutMode") -> bool:
        """Put an object; False if the mode forbids it."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> bool:
            try:
                self.objects.put(key, data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._request(key, put)

    def _delete(self, keys: Iterable[str]) -> None:
        def delete() -> None:
            for key in keys:
                # Some stores raise an error if another process deleted the object first.
                with contextlib.suppress(FileNotFoundError):
                    self.objects.delete(key)

        self._request("", delete)

    def _request(self, key: str, send: Callable[[], R]) -> R:
        """Run a request and translate its errors.

        Raises:
            StoreUnavailableError: there is no answer, or the store refuses; the text names object and reason.
        """
        from obstore.exceptions import BaseError

        try:
            return send()
        except (BaseError, OSError, ValueError) as failure:
            raise StoreUnavailableError(
                f"{self.name}/{key}".rstrip("/") + f": {_reason(str(failure))}"
            ) from None


def _key(version: int, name: str, manifest_sha256: str | None = None) -> str:
    parts = [f"v{version:06d}", manifest_sha256, name]
    return "/".join(part for part in parts if part)


def _may_name(line: bytes | None, manifest_sha256: str) -> bool:
    """Whether a version's `manifest.sha256` names these files, or may do so because it is damaged."""
    if line is None:
        return False
    return not re.match(rb"[0-9a-f]{64} ", line) or line.startswith(manifest_sha256.encode())


def _reason(text: str) -> str:
    """The first line of an error; the rest contains headers and signed values."""
    code = re.search(r"<Code>(\w+)</Code>", text)
    first = text.splitlines()[0].split("<?xml", maxsplit=1)[0].strip(" :")
    if "169.254." in first:  # the metadata service, which the client asks if it has no credentials
        return "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    first = re.sub(r"//[^/@\s]*@", "//", first)  # an endpoint may name a user and a password
    return f"{first} {code[1]}" if code else first


def _connect(url: str) -> "ObjectStore":
    from obstore.store import from_url

    endpoint = next((value for name in _ENDPOINTS if (value := os.environ.get(name))), "")
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "allow_http": endpoint.startswith("http://"),  # only if the operator configured it
    }
    retry: RetryConfig = {
        "max_retries": RETRIES,
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=1),
            "base": 2,
        },
        "retry_timeout": timedelta(seconds=REQUEST_SECONDS),
    }
    return from_url(url, client_options=client, retry_config=retry)


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
