"""Checkpoint versions in an object store, S3 or one that speaks like it, through obstore.

An object is put whole or not at all, but a version is four. So a version exists from one put on, the last:

    v000042/manifest.sha256                       put only where there is none: one writer wins
    v000042/<SHA-256 of the manifest>/manifest.json, weights.safetensors, training.safetensors
    latest.json, best.json, promoted.json         replaced only if they are still what was read

A writer that is killed leaves files that no `manifest.sha256` names, and its next try has a folder of its
own. Credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID` ...), as other tools
of that store read them, and are never part of the URL.
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
from shared.adapters.versions.directory import MANIFEST_SHA256, MAX_SMALL_BYTES
from shared.errors import SettingsError, StoreAwayError

if TYPE_CHECKING:  # brought along only where it is used: commands start without it
    from obstore import ObjectMeta, PutMode
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

#: Kinds of stores that create-only and conditional puts are known of.
SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")

#: Of these, `container@account` is the name of a bucket.
_ACCOUNT_SCHEMES = ("abfs", "abfss")

#: A server that is down is known to be so within about two seconds; whoever asked comes again.
RETRIES = 4
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 60.0  # of one file

#: Tries at replacing a pointer that others replace meanwhile.
MAX_CONFLICTS = 20

_COMMITTED = re.compile(r"v(\d{6,})/manifest\.sha256")
_ATTEMPT = re.compile(r"v(\d{6,})/([0-9a-f]{64})/.+")

R = TypeVar("R")


@dataclass(frozen=True)
class _Found:
    """An object: its contents, None where there is none, and the mode of a put that replaces exactly it."""

    data: bytes | None  # empty where it is too large to be read
    mode: "PutMode"
    size: int


class ObjectFiles:
    """Objects below one prefix; any number of writers, of which one wins each version."""

    def __init__(self, name: str, connect: Callable[[], "ObjectStore"]) -> None:
        self.name, self._connect = name, connect

    @classmethod
    def at(cls, url: str) -> "ObjectFiles":
        """The place that a URL names; nothing is asked of it yet.

        Raises:
            SettingsError: the URL is of no object store, or holds a secret.
        """
        try:
            parts = urlsplit(url)
        except ValueError as wrong:
            raise SettingsError(f"checkpoint store: {wrong}; expected such as s3://bucket/prefix") from None
        account = "@" in parts.netloc and parts.scheme in _ACCOUNT_SCHEMES
        if ":" in parts.netloc or parts.query or parts.fragment or ("@" in url and not account):
            raise SettingsError(
                f"checkpoint store {parts.scheme}://...: expected nothing but bucket and prefix in the URL; "
                "credentials and endpoint belong into the environment (AWS_...)"
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
        """Put the files, each where nobody else's can be, and then the one that makes them a version."""
        last = _key(version, MANIFEST_SHA256)
        if self._fetch(last).data not in (None, files[MANIFEST_SHA256]):
            raise FileExistsError(f"{self.name}/{last}")
        for name, data in files.items():
            if name != MANIFEST_SHA256:  # there already: an earlier try with this manifest, cut off
                self._put(_key(version, name, manifest_sha256), data, "create")
        # Refused although it is ours: the first try's reply was lost and it was sent again.
        put = self._put(last, files[MANIFEST_SHA256], "create")
        if not put and self._fetch(last).data != files[MANIFEST_SHA256]:
            raise FileExistsError(f"{self.name}/{last}")

    def manifest_line(self, version: int) -> bytes:
        """Contents of a version's `manifest.sha256`."""
        return self._read(_key(version, MANIFEST_SHA256), MAX_SMALL_BYTES)

    def read(self, version: int, name: str, manifest_sha256: str, *, limit: int) -> bytes:
        """Contents of another file of a version."""
        return self._read(_key(version, name, manifest_sha256), limit)

    def place(self, version: int, name: str) -> str:
        """URL of a file of a version, less the folder that its manifest's hash names."""
        return f"{self.name}/{_key(version, name)}"

    def remove(self, version: int, is_held: Callable[[], bool]) -> bool:
        """Remove `manifest.sha256`, then the files; put it back where a pointer was moved here meanwhile.

        Whoever moves a pointer looks for the version afterwards, and this looks at the pointers after the
        removal, so that one of the two sees the other.
        """
        last = _key(version, MANIFEST_SHA256)
        line = self._fetch(last).data
        if line is None or is_held():
            return False
        self._delete([last])
        held = True
        try:
            held = is_held()
        finally:
            if held:
                self._put(last, line, "create")
        if held:
            return False
        self._delete(self._paths(f"v{version:06d}"))
        return True

    def tidy(self) -> None:
        """Remove files of no version, up to the newest; later ones may be about to become one."""
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
        """Read, change and replace an object, again when it was replaced meanwhile.

        Raises:
            StoreAwayError: the store does not answer or refuses, or others replace it all the time.
        """
        changed: bytes | None = None
        for _ in range(MAX_CONFLICTS):
            before = self._fetch(name)
            if changed is not None and before.data == changed:
                return  # it was replaced by this, and the reply was lost
            changed = change(before.data)
            if changed is None or self._put(name, changed, before.mode):
                return
        raise StoreAwayError(f"{self.name}/{name}: replaced by others {MAX_CONFLICTS} times in a row")

    def _paths(self, prefix: str | None = None) -> list[str]:
        def listed() -> list[str]:
            chunks: Iterable[Iterable[ObjectMeta]] = self.objects.list(prefix)
            return [meta["path"] for chunk in chunks for meta in chunk]

        return self._ask(prefix or "", listed)

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
        """What lies under a key, if it is no larger than a limit."""

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

        return self._ask(key, found)

    def _put(self, key: str, data: bytes, mode: "PutMode") -> bool:
        """Put an object; False where the mode forbids it."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> bool:
            try:
                self.objects.put(key, data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._ask(key, put)

    def _delete(self, keys: Iterable[str]) -> None:
        def delete() -> None:
            for key in keys:
                # Some stores tell so of what another removed first.
                with contextlib.suppress(FileNotFoundError):
                    self.objects.delete(key)

        self._ask("", delete)

    def _ask(self, key: str, question: Callable[[], R]) -> R:
        """The store's answer.

        Raises:
            StoreAwayError: there is none, or it is a refusal; says which and of what.
        """
        from obstore.exceptions import BaseError

        try:
            return question()
        except (BaseError, OSError, ValueError) as failure:
            raise StoreAwayError(f"{self.name}/{key}".rstrip("/") + f": {_reason(str(failure))}") from None


def _key(version: int, name: str, manifest_sha256: str | None = None) -> str:
    parts = [f"v{version:06d}", manifest_sha256, name]
    return "/".join(part for part in parts if part)


def _may_name(line: bytes | None, manifest_sha256: str) -> bool:
    """Whether a version's `manifest.sha256` names these files, or is too damaged to tell."""
    if line is None:
        return False
    return not re.match(rb"[0-9a-f]{64} ", line) or line.startswith(manifest_sha256.encode())


def _reason(text: str) -> str:
    """What went wrong, in one line; the rest holds headers and what was signed."""
    code = re.search(r"<Code>(\w+)</Code>", text)
    first = text.splitlines()[0].split("<?xml", maxsplit=1)[0].strip(" :")
    if "169.254." in first:  # where a virtual machine's own credentials would be
        return "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    first = re.sub(r"//[^/@\s]*@", "//", first)  # an endpoint may name a user and a password
    return f"{first} {code[1]}" if code else first


def _connect(url: str) -> "ObjectStore":
    from obstore.store import from_url

    endpoint = next((value for name in _ENDPOINTS if (value := os.environ.get(name))), "")
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "allow_http": endpoint.startswith("http://"),  # only where it was asked for
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
