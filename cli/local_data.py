"""The data set that `up` runs on: given, imported from a file of bars, or synthetic."""

import hashlib
from pathlib import Path

from cli.data import import_file
from cli.output import err
from cli.settings import UpSettings
from shared.adapters.dataset import read_dataset, write_dataset
from shared.errors import DataError
from shared.market.synthetic import synthesize


def prepare_dataset(home: Path, given: Path | None, settings: UpSettings) -> Path:
    """Path of a data set that is there and whole; made in `<home>/data` when it is not there yet.

    Args:
        home: folder of all local state.
        given: a data set, a file of bars, or None for a synthetic market.
        settings: market, length and seed of the synthetic bars, and the instrument of imported ones.
    Raises:
        DataError: the file is not there, or not what an importer can read.
    """
    if given is None:
        path = (
            home
            / "data"
            / f"synthetic-{settings.market}-{settings.market_bars}-{settings.market_seed}.duckdb"
        )
        if not path.is_file():
            err.print(f"making a synthetic market ({settings.market}, {settings.market_bars:,} bars) ...")
            bars = synthesize(settings.market, settings.market_bars, settings.market_seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_dataset(path, bars, f"synthetic {settings.market}", settings.sessions, settings.splits)
        return path
    if not given.is_file():
        raise DataError(f"{given}: no such file; --data takes a file of bars or a data set")
    if given.suffix == ".duckdb":
        read_dataset(given)
        return given.resolve()
    path = home / "data" / f"{given.name.split('.')[0]}-{_identity(given)}.duckdb"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        import_file(given, path)
    return path


def _identity(path: Path) -> str:
    """Eight digits that change when the file does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
