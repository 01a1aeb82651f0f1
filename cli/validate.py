"""`validate` and `backtest`: the validator's judgement of one version, on demand."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress as ProgressBar

from cli.output import err, out, print_fields, print_json, print_table, progress_bar
from cli.runs import checkpoint_store, chosen_version, last_run
from shared.adapters.tables.validations import DATABASE
from shared.adapters.versions.manifest import Pointer
from shared.errors import SettingsError
from shared.market.session import Split
from shared.metrics.undefined import why
from shared.runtime.settings import load

if TYPE_CHECKING:  # importing them takes a second, so that `_judge` does it
    from services.validator.evaluate import Progress
    from services.validator.report import ValidationReport

Checkpoint = Annotated[
    str, typer.Option("--checkpoint", help="a version's number, or latest, best, promoted")
]
Data = Annotated[Path | None, typer.Option("--data", help="a data set; default: the last local run's")]
Store = Annotated[
    str | None,
    typer.Option("--store", help="folder or URL of versions; default: MM_CHECKPOINTS, else the last run's"),
]
Sessions = Annotated[int, typer.Option(min=0, help="number of sessions, spread over the split; 0 walks all")]
Runs = Annotated[int, typer.Option(min=1, help="Monte Carlo runs")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="folder for the report as JSON, page and picture; not the validator's own"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
SplitOption = Annotated[Split, typer.Option("--split", help="the sessions to walk")]


def validate(
    checkpoint: Checkpoint = Pointer.LATEST.value,
    split: SplitOption = Split.VALIDATION,
    data: Data = None,
    store: Store = None,
    sessions: Sessions = 0,
    runs: Runs = 200,
    out_folder: Out = None,
    as_json: Json = False,
) -> None:
    """Judge one version as the validator does, alone: no earlier version deflates or is beaten.

    Such a report never promotes: only the validator service's own does.
    """
    _judge(checkpoint, split, data, store, sessions, runs, out_folder, as_json=as_json)


def backtest(
    checkpoint: Checkpoint = Pointer.PROMOTED.value,
    split: SplitOption = Split.TEST,
    data: Data = None,
    store: Store = None,
    sessions: Sessions = 0,
    runs: Runs = 200,
    out_folder: Out = None,
    as_json: Json = False,
) -> None:
    """Walk one version through a split, by default the test split, and judge its trades."""
    _judge(checkpoint, split, data, store, sessions, runs, out_folder, as_json=as_json)


def _judge(
    checkpoint: str,
    split: Split,
    data: Path | None,
    store: str | None,
    sessions: int,
    runs: int,
    out_folder: Path | None,
    *,
    as_json: bool,
) -> None:
    from dataclasses import replace

    from services.validator.report import report_document
    from services.validator.service import write_all
    from services.validator.settings import ValidatorSettings
    from services.validator.validation import Provenance, Standards, Validator
    from shared.adapters.tables.dataset import read_dataset
    from shared.adapters.versions.agents import load_agent
    from shared.adapters.versions.manifest import WEIGHTS
    from shared.adapters.versions.promotions import report_path

    settings = load(ValidatorSettings)
    run = last_run(settings.home) if store is None else None
    if run and run.profile and settings.profile is None:  # as the validator of that run was started
        settings = load(ValidatorSettings, profile=Path(run.profile))
    if out_folder:
        _refuse_to_replace(out_folder)
    versions = checkpoint_store(store)
    version = chosen_version(versions, checkpoint)
    manifest = versions.manifest(version)
    if out_folder:
        _refuse_to_replace_report(report_path(out_folder, version))
    agent = load_agent(versions, version, settings.precision)
    dataset = read_dataset(data or (Path(run.dataset) if run else settings.dataset))
    trained_on = manifest.dataset
    if trained_on != dataset.fingerprint:
        err.print(
            f"note: version {version} was trained on other bars ({trained_on[:12]}…); these are "
            f"{dataset.fingerprint[:12]}…, whose splits may overlap with its training"
        )
    validator = Validator(
        dataset,
        split,
        Standards(
            environment=settings.environment,
            search=settings.search,
            validation=replace(settings.validation, max_sessions=sessions),
            monte_carlo=replace(settings.monte_carlo, runs=runs),
            sizing=settings.sizing,
            gate=settings.gate,
        ),
    )
    with progress_bar() as bar:
        report = validator.validate(
            agent,
            Provenance(manifest.files[WEIGHTS].sha256),
            progress=_shown_on(bar, f"version {version}, {split}"),
        )
    if out_folder:
        write_all(report, report_path(out_folder, version), with_page=settings.validation.page)
    if as_json:
        print_json(report_document(report))
        return
    _print(report)
    if out_folder:
        out.print(f"report: {report_path(out_folder, version).with_suffix('.html')}")


def _refuse_to_replace(folder: Path) -> None:
    """Check that a folder may be written to.

    Raises:
        SettingsError: it is the validator service's own, or no folder.
    """
    if (folder / DATABASE).exists():
        raise SettingsError(
            f"--out {folder} holds the validator service's own reports; name another folder for this one"
        )
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is a file, expected a folder")


def _refuse_to_replace_report(path: Path) -> None:
    """Check that a report may be written: nothing is there, or an earlier report made on demand.

    Raises:
        SettingsError: something else is there; says what.
    """
    if not any(path.with_suffix(suffix).exists() for suffix in (".json", ".html", ".png")):
        return
    try:
        there = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        there = None
    if not isinstance(there, dict) or there.get("purpose") != "on-demand":
        raise SettingsError(
            f"{path} or the page or picture beside it exists and is not a report made on demand; "
            "name another folder with --out"
        )


def _shown_on(bar: ProgressBar, what: str) -> "Progress":
    task = bar.add_task(what, total=None)

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    return show


def _print(report: "ValidationReport") -> None:
    trades, daily, spent = report.summary.trades, report.summary.daily, report.activity
    honesty = report.summary.honesty

    def told(value: float | None, path: str) -> float | str:
        return why(report.undefined, path) if value is None else value

    print_fields(
        f"version {report.version}, {report.split} split",
        {
            "sessions": report.num_sessions,
            "from": report.first_bar_at,
            "to": report.last_bar_at,
            "trades": trades.num_trades,
            "net pips": trades.total_pips,
            "expectancy, pips": told(trades.expectancy_pips, "summary.trades.expectancy_pips"),
            "win rate": told(trades.win_rate, "summary.trades.win_rate"),
            "profit factor": told(trades.profit_factor, "summary.trades.profit_factor"),
            "SQN, 100 trades": told(trades.sqn100, "summary.trades.sqn100"),
            "daily Sharpe": told(daily.sharpe, "summary.daily.sharpe"),
            "daily Sortino": told(daily.sortino, "summary.daily.sortino"),
            "deflated Sharpe": told(honesty.deflated_sharpe, "summary.honesty.deflated_sharpe"),
            "p-value, adjusted": told(honesty.adjusted_p_value, "summary.honesty.adjusted_p_value"),
            "drawdown, pips": report.summary.max_drawdown_pips,
            "trade ratio": told(spent.trade_ratio, "activity.trade_ratio"),
            "exposure": told(spent.exposure, "activity.exposure"),
            "recommended fraction": f"{report.summary.sizing.fraction:.3g} ({report.summary.sizing.reason})",
            "gates passed": ", ".join(report.passed_gates) or "none",
        },
    )
    for reason in report.reasons:
        out.print(reason, highlight=False)
    print_table(
        "simple rules on the same sessions",
        ("rule", "trades", "net pips", "expectancy", "SQN", "Sharpe", "version a day", "p-value"),
        [
            (
                rule.name,
                rule.num_trades,
                rule.net_pips,
                told(rule.expectancy_pips, f"baselines.{index}.expectancy_pips"),
                told(rule.sqn100, f"baselines.{index}.sqn100"),
                told(rule.sharpe, f"baselines.{index}.sharpe"),
                rule.rival.excess_pips_per_day,
                told(rule.rival.p_value, f"baselines.{index}.rival.p_value"),
            )
            for index, rule in enumerate(report.baselines)
        ],
    )
