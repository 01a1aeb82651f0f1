"""`compile`: which caches of earlier sources it removes."""

from pathlib import Path

import pytest

from cli import compile as compiling
from shared.errors import ServiceError


def cache(folder: Path, owner: str | None) -> Path:
    folder.mkdir()
    (folder / "kernel.nbi").touch()
    if owner is not None:
        (folder / "complete").write_text(owner, encoding="utf-8")
    return folder


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present cache, in a folder of its own."""
    folder = cache(tmp_path / "own", None)
    monkeypatch.setattr(compiling, "KERNEL_CACHE", folder)
    monkeypatch.setattr(compiling, "COMPILED_MARK", folder / "complete")
    monkeypatch.setattr(compiling, "_steps", lambda: iter([None]))
    return folder


def test_only_earlier_caches_of_this_checkout_and_processor_are_removed(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "KERNELS", set[str]())
    earlier = cache(own.parent / "earlier", compiling._OWNER)
    others = [
        cache(own.parent / "other", "('/another/checkout', ())"),
        cache(own.parent / "incomplete", None),
    ]
    compiling.compile_all()
    assert not earlier.exists()
    assert all(other.exists() for other in others)
    assert (own / "complete").read_text(encoding="utf-8") == compiling._OWNER


def test_a_cache_without_every_kernel_is_not_complete(own: Path) -> None:
    with pytest.raises(ServiceError, match=r"never called these kernels: .*layers\.linear"):
        compiling.compile_all()
    assert not (own / "complete").exists()
