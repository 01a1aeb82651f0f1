"""`validate` and `backtest`: judge one version on demand, as the validator does."""

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

if TYPE_CHECKING:  # importing them takes a second, so `_judge` imports them
    from services.validator.evaluate import Progress
    from services.validator.report import ValidationReport

Checkpoint = Annotated[
    str, typer.Option("--checkpoint", help="number of a version, or latest, best, promoted")
]
Data = Annotated[Path | None, typer.Option("--data", help="data set; default: that of the last local run")]
Store = Annotated[
    str | None,
    typer.Option("--store", help="checkpoint store; `checkpoints --help` lists the defaults"),
]
Sessions = Annotated[int, typer.Option(min=0, help="number of sessions, spread over the split; 0: all")]
Runs = Annotated[int, typer.Option(min=1, help="number of Monte Carlo runs")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="folder for the report: JSON, HTML and PNG; not the folder of the validator service"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
SplitOption = Annotated[Split, typer.Option("--split", help="split of the data to trade")]


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
    """Judge one version on the validation split.

    The version is judged alone: earlier versions do not affect its deflated Sharpe ratio, and it is not
    compared with them. This report never leads to a promotion; only reports of the validator service do.
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
    """Judge one version on the test split."""
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

    from services.validator.judgement import write_all
    from services.validator.report import report_document
    from services.validator.settings import ValidatorSettings
    from services.validator.validation import Provenance, Standards, Validator
    from shared.adapters.tables.dataset import read_dataset
    from shared.adapters.versions.agents import load_agent
    from shared.adapters.versions.manifest import WEIGHTS
    from shared.adapters.versions.promotions import report_path

    settings = load(ValidatorSettings)
    run = last_run(settings.home) if store is None else None
    if run and run.profile and settings.profile is None:  # the settings of that run's validator
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
            f"note: version {version} was trained on another data set ({trained_on[:12]}…); the splits of "
            f"{dataset.fingerprint[:12]}… may overlap with its training data"
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
        SettingsError: it is the folder of the validator service, or a file.
    """
    if (folder / DATABASE).exists():
        raise SettingsError(
            f"--out {folder} holds the validator service's own reports; name another folder for this one"
        )
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out {folder} is a file, expected a folder")


def _refuse_to_replace_report(path: Path) -> None:
    """Check that a report would replace only an earlier report made on demand.

    Raises:
        SettingsError: it would replace another file.
    """
    if not any(path.with_suffix(suffix).exists() for suffix in (".json", ".html", ".png")):
        return
    try:
        existing = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        existing = None
    if not isinstance(existing, dict) or existing.get("purpose") != "on-demand":
        raise SettingsError(
            f"{path}, or the page or picture beside it, exists and is not a report made on demand; "
            "name another folder with --out"
        )


def _shown_on(bar: ProgressBar, description: str) -> "Progress":
    task = bar.add_task(description, total=None)

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    return show


def _print(report: "ValidationReport") -> None:
    trades, daily, spent = report.summary.trades, report.summary.daily, report.activity
    honesty = report.summary.honesty

    def or_reason(value: float | None, path: str) -> float | str:
        return why(report.undefined, path) if value is None else value

    print_fields(
        f"version {report.version}, {report.split} split",
        {
            "sessions": report.num_sessions,
            "from": report.first_bar_at,
            "to": report.last_bar_at,
            "trades": trades.num_trades,
            "net pips": trades.total_pips,
            "expectancy, pips": or_reason(trades.expectancy_pips, "summary.trades.expectancy_pips"),
            "win rate": or_reason(trades.win_rate, "summary.trades.win_rate"),
            "profit factor": or_reason(trades.profit_factor, "summary.trades.profit_factor"),
            "SQN, 100 trades": or_reason(trades.sqn100, "summary.trades.sqn100"),
            "daily Sharpe": or_reason(daily.sharpe, "summary.daily.sharpe"),
            "daily Sortino": or_reason(daily.sortino, "summary.daily.sortino"),
            "deflated Sharpe": or_reason(honesty.deflated_sharpe, "summary.honesty.deflated_sharpe"),
            "p-value, adjusted": or_reason(honesty.adjusted_p_value, "summary.honesty.adjusted_p_value"),
            "drawdown, pips": report.summary.max_drawdown_pips,
            "trade ratio": or_reason(spent.trade_ratio, "activity.trade_ratio"),
            "exposure": or_reason(spent.exposure, "activity.exposure"),
            "recommended fraction": f"{report.summary.sizing.fraction:.3g} ({report.summary.sizing.reason})",
            "gates passed": ", ".join(report.passed_gates) or "none",
        },
    )
    for reason in report.reasons:
        out.print(reason, highlight=False)
    print_table(
        "simple rules on the same sessions",
        ("rule", "trades", "net pips", "pips per trade", "SQN", "Sharpe", "excess pips per day", "p-value"),
        [
            (
                rule.name,
                rule.num_trades,
                rule.net_pips,
                or_reason(rule.expectancy_pips, f"baselines.{index}.expectancy_pips"),
                or_reason(rule.sqn100, f"baselines.{index}.sqn100"),
                or_reason(rule.sharpe, f"baselines.{index}.sharpe"),
                rule.rival.excess_pips_per_day,
                or_reason(rule.rival.p_value, f"baselines.{index}.rival.p_value"),
            )
            for index, rule in enumerate(report.baselines)
        ],
    )
