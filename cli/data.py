"""`data`: import, download or synthesise a data set, describe it, list sessions, export features."""

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field, SecretStr
from rich.markup import escape

from cli.output import err, print_fields, print_json, print_table, progress_bar
from cli.settings import UpSettings
from shared.adapters.oanda.client import PRACTICE_API, OandaClient
from shared.adapters.oanda.download import discard_pages, download_bars
from shared.adapters.tables.dataset import (
    Dataset,
    check_dataset_output,
    check_features_output,
    export_features,
    read_dataset,
    write_dataset,
)
from shared.environment.outcome import UNDEFINED, ChanceOutcome
from shared.errors import DataError, SettingsError
from shared.market.bar import BarSeries, Instrument, normalized_name, pip_location_of
from shared.market.calendar import is_open
from shared.market.clock import utc_text
from shared.market.formats import MAX_DROPPED, ImportOptions, ImportResult, read_bars
from shared.market.session import NO_SPLIT, Split
from shared.market.spread import SpreadUnit
from shared.market.summary import plausibility_warnings, summarize
from shared.market.synthetic import DEFAULT_START_S, Market, synthesize
from shared.runtime.settings import ServiceSettings, load, with_environment_name

app = typer.Typer(help="Create and inspect data sets of one-minute bars.", no_args_is_help=True)

DEFAULT_INSTRUMENT = "GBP_JPY"

_BASES = "AUD|BTC|CAD|CHF|CNH|CZK|DKK|ETH|EUR|GBP|HKD|HUF|JPY|MXN|NOK|NZD|PLN|SEK|SGD|THB|TRY|USD|XAG|XAU|ZAR"
_PAIR = re.compile(rf"(?<![A-Z])({_BASES})[_-]?({_BASES})(?![A-Z])")

Data = Annotated[
    Path, typer.Option("--data", help="data set, made by `data import`, `data synth` or `data download`")
]
Out = Annotated[Path, typer.Option("--out", help="data set to write; an existing one is replaced")]
InstrumentName = Annotated[str, typer.Option("--instrument", help="currency pair of the bars")]
OptionalInstrumentName = Annotated[
    str | None,
    typer.Option("--instrument", help=f"currency pair of the bars; default: {DEFAULT_INSTRUMENT}"),
]
Pip = Annotated[
    float | None,
    typer.Option("--pip", help="size of a pip in units of price; needed only for unknown pairs"),
]
Timezone = Annotated[
    str | None,
    typer.Option(
        "--timezone",
        help="time zone of the file: Europe/London, +03:00, NY+7; default: detected",
    ),
]
Repair = Annotated[bool, typer.Option("--repair", help="drop invalid rows instead of rejecting the file")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]


class DownloadSettings(ServiceSettings):
    """Credentials for OANDA."""

    oanda_token: SecretStr = Field(SecretStr(""), validation_alias=with_environment_name("OANDA_TOKEN"))


@app.command("import")
def import_command(
    file: Annotated[
        Path, typer.Argument(help="CSV, HistData, MetaTrader, Dukascopy or Parquet file, may be gzipped")
    ],
    out: Out,
    instrument: OptionalInstrumentName = None,
    pip: Pip = None,
    timezone: Timezone = None,
    repair: Repair = False,
    max_dropped: Annotated[
        float, typer.Option(help="largest share of rows that --repair may drop")
    ] = MAX_DROPPED,
    spread_unit: Annotated[
        SpreadUnit | None, typer.Option(help="unit of the column `spread`, if the file does not state it")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a file of one-minute bars into a data set."""
    options = ImportOptions(timezone, repair, max_dropped, spread_unit)
    result, dataset = import_file(file, out, instrument_of(file, instrument, pip), options)
    found = {
        "file": str(file),
        "format": result.format,
        "timezone": result.timezone,
        "dropped": result.num_dropped,
        "left_out_outside_week": result.num_outside,
    }
    _print_written(out, found, dataset, as_json)


def instrument_of(file: Path, name: str | None, pip: float | None) -> Instrument:
    """The instrument of a file of bars: the given name, else the default pair.

    Raises:
        DataError: no name is given and the file name contains a pair that is not the default one, or the
            pip size of the pair is unknown.
    """
    pair = _PAIR.search(file.name.upper())
    named = f"{pair[1]}_{pair[2]}" if pair else None
    location = pip_location_of(pip) if pip is not None else None
    if name is not None:
        instrument = Instrument.named(name, location)
        if named not in (None, instrument.name):
            _warn(f"{escape(file.name)} is imported as {instrument.name} because of --instrument")
        return instrument
    if named not in (None, DEFAULT_INSTRUMENT):
        raise DataError(
            f"the file name {file.name} contains {named}: state the pair of the bars with "
            f"--instrument {named} or --instrument {DEFAULT_INSTRUMENT}"
        )
    return Instrument.named(DEFAULT_INSTRUMENT, location)


def import_file(
    file: Path, out: Path, instrument: Instrument, options: ImportOptions
) -> tuple[ImportResult, Dataset]:
    """Convert a file of bars into a data set, with progress bars; `out` is replaced atomically.

    Raises:
        DataError: the file cannot be imported, or `out` is a file that is not a data set.
    """
    check_dataset_output(out, file)
    with progress_bar() as bars:
        task = bars.add_task(f"reading {escape(file.name)}", total=None)
        result = read_bars(
            file,
            instrument,
            options,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    for finding in result.findings:
        _warn(escape(finding))
    if result.num_dropped:
        rows = "1 invalid row was" if result.num_dropped == 1 else f"{result.num_dropped:,} invalid rows were"
        _warn(f"{rows} dropped, for the reasons above")
    return result, _write(out, result.bars, file.name)


@app.command()
def synth(
    out: Out,
    market: Annotated[Market, typer.Option(help="price process")] = Market.REGIMES,
    bars: Annotated[int, typer.Option(help="number of bars")] = 100_000,
    seed: Annotated[int, typer.Option(help="random seed; the same seed gives the same bars")] = 1,
    instrument: InstrumentName = DEFAULT_INSTRUMENT,
    pip: Pip = None,
    start: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="time of the first bar, UTC")
    ] = datetime.fromtimestamp(DEFAULT_START_S, UTC).replace(tzinfo=None),
    as_json: Json = False,
) -> None:
    """Generate a data set of a synthetic market."""
    pair = Instrument.named(instrument, pip_location_of(pip) if pip is not None else None)
    check_dataset_output(out)
    synthetic_bars = synthesize(market, bars, seed, pair, _seconds(start))
    source = f"synthetic {market}, seed {seed}"
    _print_written(out, {"source": source}, _write(out, synthetic_bars, source), as_json)


@app.command()
def download(
    out: Out,
    start: Annotated[
        datetime, typer.Option("--from", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="start time, UTC")
    ],
    stop: Annotated[
        datetime | None,
        typer.Option(
            "--to", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="end time, UTC, exclusive; default: now"
        ),
    ] = None,
    instrument: InstrumentName = DEFAULT_INSTRUMENT,
    api_url: Annotated[str, typer.Option(help="address of OANDA's API, or of a paper broker")] = PRACTICE_API,
    as_json: Json = False,
) -> None:
    """Download a data set from OANDA.

    After an interruption, the same command continues where it stopped. Needs OANDA_TOKEN in the environment
    or in `.env`.
    """
    name = normalized_name(instrument)
    check_dataset_output(out)
    token = load(DownloadSettings).oanda_token.get_secret_value()
    if not token:
        raise SettingsError("OANDA_TOKEN is not set: downloading candles needs a personal access token")
    from_s = _seconds(start)
    to_s = _seconds(stop) if stop else int(datetime.now(UTC).timestamp())
    if from_s >= to_s:
        raise DataError(f"--from {utc_text(from_s)} is not before --to {utc_text(to_s)}")
    pages = out.with_name(f"{out.name}.pages")
    bars = asyncio.run(_download(api_url, token, name, from_s, to_s, pages))
    inside = is_open(bars.time_s)
    if not inside.all():
        _warn(f"{int((~inside).sum()):,} candles outside the trading week were left out")
    dataset = _write(out, bars[inside], f"OANDA candles of {name}")
    discard_pages(pages)
    _print_written(out, {"source": dataset.source}, dataset, as_json)


async def _download(api_url: str, token: str, name: str, from_s: int, to_s: int, pages: Path) -> BarSeries:
    async with OandaClient("", token, api_url=api_url) as client:
        accounts = await client.accounts()
    if not accounts:
        raise SettingsError("OANDA_TOKEN has no access to an account, which is needed to read the pip size")
    async with OandaClient(accounts[0], token, api_url=api_url) as client:
        details = await client.instrument(name)
        instrument = Instrument.named(name, details.pip_location)
        with progress_bar() as progress:
            task = progress.add_task(f"minutes of {instrument.name}", total=(to_s - from_s) // 60)
            return await download_bars(
                client,
                instrument,
                from_s,
                to_s,
                pages,
                lambda time_s: progress.update(task, completed=(time_s - from_s) // 60),
            )


@app.command()
def describe(data: Data, as_json: Json = False) -> None:
    """Describe a data set: bars, gaps, sessions and outcomes."""
    document = describe_dataset(read_dataset(data))
    if as_json:
        print_json(document)
        return
    gaps, sessions, outcomes = (document.pop(name) for name in ("longest_gaps", "sessions", "outcomes"))
    print_fields(str(data), document)
    rows = [[gap["from"], gap["to"], gap["missing_minutes"]] for gap in gaps]
    print_table("longest gaps in trading hours", ("from", "to", "missing minutes"), rows)
    rows = [[split, counts["every"], counts["non_overlapping"]] for split, counts in sessions.items()]
    print_table("sessions", ("split", "every start", "non-overlapping"), rows)
    print_table(
        "chance outcomes", ("outcome", "share"), [[name, f"{share:.1%}"] for name, share in outcomes.items()]
    )


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """The document that `data describe` prints."""
    summary = summarize(dataset.bars)
    labels = dataset.outcomes[dataset.outcomes != UNDEFINED]
    gaps = [
        {"from": utc_text(gap.from_s), "to": utc_text(gap.to_s), "missing_minutes": gap.missing_minutes}
        for gap in summary.longest_gaps
    ]
    return {
        "instrument": dataset.bars.instrument.name,
        "pip": dataset.bars.instrument.pip,
        "source": dataset.source,
        "fingerprint": dataset.fingerprint,
        "bars": summary.num_bars,
        "first": utc_text(summary.first_s),
        "last": utc_text(summary.last_s),
        "coverage": summary.coverage,
        "missing_minutes": summary.missing_minutes,
        "bars_outside_week": summary.num_outside,
        "mean_range_pips": summary.mean_range_pips,
        "p99_range_pips": summary.p99_range_pips,
        "mean_spread_pips": summary.mean_spread_pips,
        "flat_bars": summary.num_flat,
        "gaps": summary.num_gaps,
        "longest_gaps": gaps,
        "sessions": _session_counts(dataset),
        "outcomes": {
            outcome.name.lower(): float((labels == outcome).mean()) if len(labels) else float("nan")
            for outcome in ChanceOutcome
        },
    }


@app.command()
def sessions(
    data: Data,
    split: Annotated[
        Split | None, typer.Option(help="list the non-overlapping sessions of this split")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the valid sessions per split, or list those of one split.

    With --json, list the start bars of all sessions.
    """
    dataset = read_dataset(data)
    index, times = dataset.sessions, dataset.bars.time_s
    chosen = [split] if split else list(Split)
    if as_json:
        print_json(
            {
                name.value: {
                    "every": index.every(name).tolist(),
                    "non_overlapping": index.non_overlapping(name).tolist(),
                }
                for name in chosen
            }
        )
        return
    if split:
        rows: list[list[object]] = [
            [str(start), utc_text(int(times[start]))] for start in index.non_overlapping(split).tolist()
        ]
        print_table(f"non-overlapping {split} sessions", ("start bar", "time of the first decision"), rows)
        return
    rows = []
    for name, counts in _session_counts(dataset).items():
        starts = index.starts[index.split == (NO_SPLIT if name == "none" else Split(name).code)]
        span = (
            [utc_text(int(times[start])) for start in starts[[0, -1]].tolist()]
            if len(starts)
            else [None, None]
        )
        rows.append([name, counts["every"], counts["non_overlapping"], *span])
    print_table("sessions", ("split", "every start", "non-overlapping", "first", "last"), rows)


@app.command()
def features(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write")],
    as_json: Json = False,
) -> None:
    """Export the features of every bar to a Parquet file.

    Columns: bar_index, time, the nine features by name, and outcome (-1 if undefined).
    """
    check_features_output(out, data)
    dataset = read_dataset(data)
    export_features(dataset, out)
    document = {"out": str(out), "rows": len(dataset.bars), "fingerprint": dataset.fingerprint}
    print_json(document) if as_json else print_fields("features written", document)


def _write(out: Path, bars: BarSeries, source: str) -> Dataset:
    settings = load(UpSettings)
    with progress_bar() as progress:
        task = progress.add_task("writing tables", total=None)
        dataset = write_dataset(
            out,
            bars,
            source,
            settings.sessions,
            settings.splits,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for warning in plausibility_warnings(summarize(bars), bars.instrument):
        _warn(warning)
    if len(dataset.sessions.starts) == 0:
        _warn("the data set has no valid session; `data describe` shows the number, gaps and ranges of bars")
    elif empty := [split.value for split in Split if not len(dataset.sessions.non_overlapping(split))]:
        _warn(
            f"there is no session in the {' and '.join(empty)} split: use more bars (the validator needs "
            "sessions in the validation split)"
        )
    return dataset


def _session_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    index = dataset.sessions
    counts = {
        split.value: {"every": len(index.every(split)), "non_overlapping": len(index.non_overlapping(split))}
        for split in Split
    }
    return counts | {"none": {"every": int((index.split == NO_SPLIT).sum()), "non_overlapping": 0}}


def _print_written(out: Path, found: dict[str, object], dataset: Dataset, as_json: bool) -> None:
    summary = summarize(dataset.bars)
    document = found | {
        "out": str(out),
        "instrument": dataset.bars.instrument.name,
        "pip": dataset.bars.instrument.pip,
        "bars": summary.num_bars,
        "first": utc_text(summary.first_s),
        "last": utc_text(summary.last_s),
        "coverage": summary.coverage,
        "gaps": summary.num_gaps,
        "mean_range_pips": summary.mean_range_pips,
        "mean_spread_pips": summary.mean_spread_pips,
        "sessions": _session_counts(dataset),
        "fingerprint": dataset.fingerprint,
    }
    if as_json:
        print_json(document)
        return
    counts = ", ".join(f"{counts['every']:,} {split}" for split, counts in _session_counts(dataset).items())
    print_fields("data set written", document | {"sessions": counts})


def _warn(text: str) -> None:
    err.print(f"[yellow]warning:[/] {text}", soft_wrap=True, highlight=False)


def _seconds(moment: datetime) -> int:
    return int(moment.replace(tzinfo=UTC).timestamp())
