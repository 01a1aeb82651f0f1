"""`checkpoints`: list, show, verify, promote, roll back and remove versions."""

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import typer

from cli.output import err, out, print_fields, print_json, print_table
from cli.redis_query import in_time, query_redis
from cli.runs import NotUpError, checkpoint_store, redis_of, validation_root
from services.selfplay.settings import SelfPlaySettings
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.manifest import Pointed, Pointer, stage_of
from shared.adapters.versions.promotions import promote as promote_version
from shared.adapters.versions.promotions import roll_back
from shared.adapters.versions.store import CheckpointStore
from shared.environment.action import LEGAL
from shared.errors import CheckpointError, MuZeroError
from shared.messages.schemas import VersionPromoted
from shared.messages.streams import PROMOTIONS
from shared.model.config import ModelConfig
from shared.model.cost import network_costs, plain_encoding, span_encoding, static_encoding
from shared.runtime.settings import load

app = typer.Typer(
    help="List, check, promote and remove published versions.\n\n"
    "The store is the first of these that applies: --store, MM_CHECKPOINTS, the store of the system that is "
    "running here, MM_HOME/checkpoints, the store of the last local run.",
    no_args_is_help=True,
)

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="folder or URL of the checkpoint store; `checkpoints --help` lists the defaults",
    ),
]

Pointers = dict[Pointer, Pointed | CheckpointError | None]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Version = Annotated[int, typer.Argument(min=0, help="number of a version")]


@app.command("list")
def list_versions(store: Store = None, as_json: Json = False) -> None:
    """List all versions, oldest first, and the pointers to them."""
    versions = checkpoint_store(store)
    pointers = versions.pointers()
    rows = [_row(versions, version, pointers) for version in versions.versions()]
    if as_json:
        print_json(rows)
        return
    columns = ("version", "episode", "update", "created (UTC)", "MB", "pointers")
    shown = [{**row, "created_at": str(row["created_at"] or "–")[:16].replace("T", " ")} for row in rows]
    print_table(f"versions in {versions.name}", columns, [list(row.values())[:-1] for row in shown])
    for row in rows:
        if row["fault"]:
            _print_line(f"version {row['version']} is damaged: {row['fault']}")


@app.command()
def show(version: Version, store: Store = None, as_json: Json = False) -> None:
    """Show the manifest of a version and the size of its networks."""
    from shared.adapters.versions.agents import model_config  # imports torch

    versions = checkpoint_store(store)
    manifest = versions.manifest(version)
    costs = _Costs.of(model_config(manifest), load(SelfPlaySettings))
    document = {**json.loads(manifest.model_dump_json()), "pointers": _pointers(versions.pointers(), version)}
    if as_json:
        print_json({**document, "costs": asdict(costs)})
        return
    print_fields(f"version {version}", {k: v for k, v in document.items() if not isinstance(v, dict)})
    for group in ("model", "settings", "metrics", "files"):
        if document[group]:
            print_fields(group, document[group])
    print_table("costs", ("part", "weights", "multiply-adds per row"), costs.rows())


@app.command()
def verify(
    version: Annotated[
        int | None, typer.Argument(min=0, help="number of a version; default: all versions")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Check the files of one or all versions against their SHA-256.

    The exit status is 1 if a version is damaged.
    """
    versions = checkpoint_store(store)
    faults = {v: _fault(versions, v) for v in (versions.versions() if version is None else [version])}
    if as_json:
        print_json({"ok": not any(faults.values()), "faults": {v: f for v, f in faults.items() if f}})
    else:
        for number, fault in faults.items():
            _print_line(f"version {number}: {fault or 'ok'}")
    if any(faults.values()):
        raise typer.Exit(1)


@app.command()
def promote(
    version: Version,
    stage: Annotated[Literal["paper", "live"], typer.Option(help="stage to promote it to")] = "paper",
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Promote a version that passed the gate of the stage.

    The trader then uses its decisions. Only reports of the validator service count. They judge a version on
    the validation split of the data set that it was trained on. Reports of `validate` and `backtest` do not
    count.
    """
    versions = checkpoint_store(store)
    promotion = promote_version(versions, validation_root(versions), version, stage, by="command line")
    _report(versions, promotion, f"version {version} is promoted to {stage}", as_json=as_json)


@app.command()
def rollback(store: Store = None, as_json: Json = False) -> None:
    """Return to the version that was promoted before the current one.

    Damaged versions are skipped.
    """
    versions = checkpoint_store(store)
    back = roll_back(versions, validation_root(versions), by="command line")
    for damaged in back.passed_over:
        err.print(f"skipped: {damaged}", highlight=False, soft_wrap=True, markup=False)
    promotion = back.promotion
    result = f"version {promotion.version} is promoted again ({promotion.stage})"
    if promotion.rolled_back_from != promotion.version:
        result += f"; version {promotion.rolled_back_from} is no longer promoted"
    _report(versions, promotion, result, as_json=as_json, passed_over=list(back.passed_over))


@app.command()
def gc(
    keep: Annotated[int, typer.Option(min=1, help="number of newest versions to keep")] = 5,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Remove old versions.

    The newest versions, the newest intact version, and versions with a pointer are kept.
    """
    done = checkpoint_store(store).collect_garbage(keep=keep)
    if as_json:
        print_json({"removed": done.removed, "obstacle": done.obstacle})
    else:
        numbers = f": {', '.join(map(str, done.removed))}" if done.removed else ""
        out.print(f"removed {len(done.removed)} versions{numbers}")
    if done.obstacle:
        raise CheckpointError(f"not all old versions could be removed: {done.obstacle}")


def _row(store: CheckpointStore, version: int, pointers: Pointers) -> dict[str, object]:
    """One row of `list`; the last value is the fault of a damaged version."""
    names = ", ".join(_pointers(pointers, version, with_stage=True))
    try:
        manifest = store.manifest(version)
    except CheckpointError as damaged:
        return {
            "version": version,
            "episode": None,
            "update": None,
            "created_at": None,
            "megabytes": None,
            "pointers": names,
            "fault": str(damaged),
        }
    return {
        "version": version,
        "episode": manifest.episode,
        "update": manifest.update,
        "created_at": manifest.created_at.isoformat(timespec="seconds"),
        "megabytes": sum(entry.bytes for entry in manifest.files.values()) / 1e6,
        "pointers": names,
        "fault": "",
    }


@dataclass(frozen=True)
class _Costs:
    """Size of a version's networks; multiply-adds are per row: per window, state or afterstate."""

    session_bars: int
    simulations: int
    weights: dict[str, int]
    multiply_adds: dict[str, int]

    @classmethod
    def of(cls, model: ModelConfig, settings: SelfPlaySettings) -> "_Costs":
        costs = network_costs(model)
        bars, simulations = settings.environment.session_bars, settings.search.simulations
        networks = {
            "representation": costs.representation,
            "afterstate": costs.afterstate,
            "dynamics": costs.dynamics,
            "policy": costs.policy,
            "value": costs.value,
        }
        static = static_encoding(model)
        window = costs.representation.multiply_adds
        session = round(span_encoding(model, bars) / bars) + static
        search = costs.decision(simulations, int(LEGAL.sum(axis=1).max()))
        return cls(
            bars,
            simulations,
            {**{name: cost.weights for name, cost in networks.items()}, "all": costs.weights},
            {
                **{name: cost.multiply_adds for name, cost in networks.items()},
                "representation_plain": plain_encoding(model) + static,
                "representation_in_session": session,
                "decision": window + search,
                "decision_in_session": session + search,
            },
        )

    def rows(self) -> list[tuple[str, int | None, int | None]]:
        """Rows of the printed table: part, weights, multiply-adds."""
        session = f"per bar of a {self.session_bars}-bar session encoded in one pass"
        decision = f"decision with {self.simulations} simulations, at most"
        lines = {
            "representation": ("representation of a window", "representation"),
            "representation_plain": ("representation of a window by the plain pass", None),
            "representation_in_session": (f"representation, {session}", None),
            "afterstate": ("afterstate, chance outcomes and Q-value", "afterstate"),
            "dynamics": ("dynamics and reward", "dynamics"),
            "policy": ("policy", "policy"),
            "value": ("value", "value"),
            "decision": (f"{decision}, for a window", "all"),
            "decision_in_session": (f"{decision}, {session}", "all"),
        }
        return [
            (text, self.weights[part] if part else None, self.multiply_adds[name])
            for name, (text, part) in lines.items()
        ]


def _pointers(pointers: Pointers, version: int, *, with_stage: bool = False) -> list[str]:
    """Names of the pointers to a version, and of damaged pointers, since each may point to it.

    Args:
        pointers: all pointers of the store.
        version: number of the version.
        with_stage: add the stage that the version is promoted to.
    """
    names = []
    for name, target in pointers.items():
        if isinstance(target, CheckpointError):
            names.append(f"{name} (damaged)")
        elif target and target.version == version:
            stage = f" ({stage_of(target)})" if with_stage and name is Pointer.PROMOTED else ""
            names.append(f"{name}{stage}")
    return names


def _fault(store: CheckpointStore, version: int) -> str:
    try:
        store.verify(version)
    except CheckpointError as damaged:
        return str(damaged)
    return ""


def _report(
    store: CheckpointStore, promotion: VersionPromoted, result: str, *, as_json: bool, **more: object
) -> None:
    """Announce a promotion to the system that uses the store, and print the result.

    Raises:
        MuZeroError: the Redis of that system did not accept the announcement.
    """
    not_announced, failure = "", None
    try:
        _announce(redis_of(store), promotion)
    except NotUpError as not_up:
        not_announced = str(not_up)
    except MuZeroError as error:
        not_announced, failure = str(error), error
    if as_json:
        document = {**promotion.model_dump(mode="json"), **more}
        print_json({**document, "announced": not not_announced, "not_announced": not_announced})
    else:
        out.print(result)
    if failure:
        raise failure
    if not_announced:
        err.print(
            f"not announced: {not_announced}; services read the pointer when they start or poll next",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def _announce(url: str, promotion: VersionPromoted) -> None:
    async def announce(bus: Bus) -> None:
        await in_time(bus.announce(PROMOTIONS, promotion))

    advice = "done but not announced: services read the pointer when they start or poll next"
    asyncio.run(query_redis(url, announce, advice))


def _print_line(line: str) -> None:
    out.print(line, highlight=False, soft_wrap=True, markup=False)
