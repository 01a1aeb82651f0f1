"""The data set for `up`: a given one, one imported from a file of bars, or a synthetic one."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cli.data import import_file, instrument_of
from cli.output import err
from cli.settings import UpSettings
from shared.adapters.tables.dataset import is_duckdb, read_dataset, read_instrument, write_dataset
from shared.errors import DataError, SettingsError
from shared.market.bar import Instrument, normalized_name
from shared.market.formats import ImportOptions
from shared.market.summary import plausibility_warnings, summarize
from shared.market.synthetic import synthesize
from shared.runtime.settings import load


@dataclass(frozen=True)
class FileOptions:
    """Options for importing a file of bars, as in `data import`."""

    instrument: str | None = None
    timezone: str | None = None
    repair: bool = False

    @property
    def are_given(self) -> bool:
        """Whether any option differs from its default."""
        return self != FileOptions()


def check_data(given: Path | None, file_options: FileOptions) -> None:
    """Check what can be checked before any work: `given` is a file, and the options apply to it.

    Raises:
        DataError: the file does not exist.
        SettingsError: import options were given without a file of bars.
    """
    if given is not None and not given.is_file():
        raise DataError(f"{given}: no such file; --data takes a file of bars or a data set")
    if file_options.are_given and (given is None or is_duckdb(given)):
        raise SettingsError(
            "--instrument, --timezone and --repair apply to a file of bars: expected one with --data"
        )


def prepare_dataset(
    home: Path, given: Path | None, settings: UpSettings, file_options: FileOptions | None = None
) -> Path:
    """Path of a readable data set; created in `<home>/data` if it does not exist yet.

    Args:
        home: folder of all local state.
        given: a data set, a file of bars, or None for a synthetic market.
        settings: market, length and seed of the synthetic bars.
        file_options: import options, for a file of bars only.
    Raises:
        DataError: the file does not exist, or cannot be imported.
        SettingsError: import options were given without a file of bars.
    """
    file_options = file_options or FileOptions()
    check_data(given, file_options)
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
    if is_duckdb(given):
        bars = read_dataset(given).bars
        for warning in plausibility_warnings(summarize(bars), bars.instrument):
            err.print(f"[yellow]warning:[/] {warning}", soft_wrap=True, highlight=False)
        return given.resolve()
    instrument = instrument_of(given, file_options.instrument, pip=None)
    options = ImportOptions(file_options.timezone, file_options.repair)
    path = home / "data" / f"{given.name.split('.')[0]}-{_identity(given, instrument, options)}.duckdb"
    if not path.is_file():
        import_file(given, path, instrument, options)
    return path


def require_one_instrument(dataset: Path, **configured: str) -> str:
    """Check that all settings agree on the data set's instrument, and return its name.

    Args:
        dataset: path of the data set.
        configured: instrument by name of the setting; empty means that of the data set.
    Raises:
        SettingsError: a setting names another instrument.
    """
    name = read_instrument(dataset).name
    for setting, other in configured.items():
        if other and normalized_name(other) != name:
            raise SettingsError(
                f"{setting} is {other}, but the bars of {dataset.name} are of {name}: "
                f"unset {setting}, or provide bars of {other}"
            )
    return name


def configured_instruments(profile: Path | None) -> dict[str, str]:
    """The configured instruments, by name of the setting."""
    from services.inference.settings import InferenceSettings
    from services.trader.settings import TraderSettings

    return {
        "MM_TRADER__INSTRUMENT": load(TraderSettings, profile=profile).trader.instrument,
        "MM_INFERENCE__INSTRUMENT": load(InferenceSettings, profile=profile).inference.instrument,
    }


def _identity(path: Path, instrument: Instrument, options: ImportOptions) -> str:
    """Eight hex digits that change with the content of the file and with the import options."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(f"{instrument} {options}".encode())
    return digest.hexdigest()[:8]
