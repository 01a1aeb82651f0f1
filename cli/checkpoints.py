"""`checkpoints`: list, show, verify, promote, roll back and tidy versions."""

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import typer

from cli.dead import answered, soon
from cli.output import err, out, print_fields, print_json, print_table
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
    help="Versions that the trainer published: those in --store, else in MM_CHECKPOINTS, else those of the "
    "system that is up here, else those in MM_HOME, else those of the last local run.",
    no_args_is_help=True,
)

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="folder or URL of versions; else MM_CHECKPOINTS, else the store of the system that is up here, "
        "else <home>/checkpoints, else the last local run's",
    ),
]

Pointers = dict[Pointer, Pointed | CheckpointError | None]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Version = Annotated[int, typer.Argument(min=0, help="a version's number")]


@app.command("list")
def list_versions(store: Store = None, as_json: Json = False) -> None:
    """List the versions, newest last, with their pointers."""
    versions = checkpoint_store(store)
    pointers = versions.pointers()
    rows = [_row(versions, version, pointers) for version in versions.versions()]
    if as_json:
        print_json(rows)
        return
    columns = ("version", "episode", "update", "created (UTC)", "MB", "pointers", "fault")
    shown = [{**row, "created_at": str(row["created_at"] or "")[:16].replace("T", " ")} for row in rows]
    print_table(f"versions in {versions.name}", columns, [list(row.values()) for row in shown])


@app.command()
def show(version: Version, store: Store = None, as_json: Json = False) -> None:
    """Show one version's manifest, and what its networks cost: weights and multiply-adds."""
    from shared.adapters.versions.agents import model_config  # brings torch along

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
    print_table("costs", ("of", "weights", "multiply-adds of a row"), costs.rows())


@app.command()
def verify(
    version: Annotated[int | None, typer.Argument(min=0, help="all versions when not given")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Check every file of a version, or of all, against its SHA-256; exit 1 when one is damaged."""
    versions = checkpoint_store(store)
    faults = {v: _fault(versions, v) for v in (versions.versions() if version is None else [version])}
    if as_json:
        print_json({"ok": not any(faults.values()), "faults": {v: f for v, f in faults.items() if f}})
    else:
        for number, fault in faults.items():
            out.print(f"version {number}: {fault or 'ok'}", highlight=False, soft_wrap=True)
    if any(faults.values()):
        raise typer.Exit(1)


@app.command()
def promote(
    version: Version,
    stage: Annotated[Literal["paper", "live"], typer.Option(help="what it may decide in")] = "paper",
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Let a version decide; only one that passed the stage's gate can be promoted.

    The validator service's own judgement counts, on the validation split of the data set that the version
    was trained on; reports of `validate` and `backtest` never promote.
    """
    versions = checkpoint_store(store)
    promotion = promote_version(versions, validation_root(versions), version, stage, by="command line")
    _tell(versions, promotion, f"version {version} is promoted to {stage}", as_json=as_json)


@app.command()
def rollback(store: Store = None, as_json: Json = False) -> None:
    """Return to the version that decided before the promoted one, or to the newest intact one before it."""
    versions = checkpoint_store(store)
    back = roll_back(versions, validation_root(versions), by="command line")
    for damaged in back.passed_over:
        err.print(f"passed over: {damaged}", highlight=False, soft_wrap=True, markup=False)
    now = back.promotion
    told = f"version {now.version} decides again ({now.stage})"
    if now.rolled_back_from != now.version:
        told += f", version {now.rolled_back_from} no longer"
    _tell(versions, now, told, as_json=as_json, passed_over=list(back.passed_over))


@app.command()
def gc(
    keep: Annotated[int, typer.Option(min=1, help="how many of the newest versions stay")] = 5,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Remove all but the newest versions, the newest intact one, and those that a pointer names."""
    done = checkpoint_store(store).collect_garbage(keep=keep)
    if as_json:
        print_json({"removed": done.removed, "obstacle": done.obstacle})
    else:
        numbers = f": {', '.join(map(str, done.removed))}" if done.removed else ""
        out.print(f"removed {len(done.removed)} versions{numbers}")
    if done.obstacle:
        raise CheckpointError(f"versions stay that could go: {done.obstacle}")


def _row(store: CheckpointStore, version: int, pointers: Pointers) -> dict[str, object]:
    named = ", ".join(_pointers(pointers, version, with_stage=True))
    try:
        manifest = store.manifest(version)
    except CheckpointError as damaged:
        return {
            "version": version,
            "episode": None,
            "update": None,
            "created_at": None,
            "megabytes": None,
            "pointers": named,
            "fault": str(damaged),
        }
    return {
        "version": version,
        "episode": manifest.episode,
        "update": manifest.update,
        "created_at": manifest.created_at.isoformat(timespec="seconds"),
        "megabytes": sum(entry.bytes for entry in manifest.files.values()) / 1e6,
        "pointers": named,
        "fault": "",
    }


@dataclass(frozen=True)
class _Costs:
    """What a version's networks cost; multiply-adds are of one row: a window, a state or an afterstate."""

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
        """As people read it: what, weights, multiply-adds."""
        session = f"a bar of {self.session_bars} in one pass"
        decision = f"decision, {self.simulations} simulations, at most"
        lines = {
            "representation": ("representation, a window", "representation"),
            "representation_plain": ("representation, a window by the plain pass", None),
            "representation_in_session": (f"representation, {session}", None),
            "afterstate": ("afterstate, outcomes and Q-value", "afterstate"),
            "dynamics": ("dynamics and reward", "dynamics"),
            "policy": ("policy", "policy"),
            "value": ("value", "value"),
            "decision": (f"{decision}, of a window", "all"),
            "decision_in_session": (f"{decision}, {session}", "all"),
        }
        return [
            (text, self.weights[part] if part else None, self.multiply_adds[name])
            for name, (text, part) in lines.items()
        ]


def _pointers(pointers: Pointers, version: int, *, with_stage: bool = False) -> list[str]:
    """The pointers that name a version, and those that are damaged, which may.

    Args:
        pointers: all pointers of the store.
        version: the version.
        with_stage: add the stage that the version is promoted to.
    """
    named = []
    for name, at in pointers.items():
        if isinstance(at, CheckpointError):
            named.append(f"{name} (damaged)")
        elif at and at.version == version:
            stage = f" ({stage_of(at)})" if with_stage and name is Pointer.PROMOTED else ""
            named.append(f"{name}{stage}")
    return named


def _fault(store: CheckpointStore, version: int) -> str:
    try:
        store.verify(version)
    except CheckpointError as damaged:
        return str(damaged)
    return ""


def _tell(
    store: CheckpointStore, promotion: VersionPromoted, told: str, *, as_json: bool, **more: object
) -> None:
    """Print what was done, and announce it to the system whose store it is.

    Raises:
        MuZeroError: there is such a system, and its Redis does not take it.
    """
    silence, failure = "", None
    try:
        _announce(redis_of(store), promotion)
    except NotUpError as nobody:
        silence = str(nobody)
    except MuZeroError as away:
        silence, failure = str(away), away
    if as_json:
        document = {**promotion.model_dump(mode="json"), **more}
        print_json({**document, "announced": not silence, "not_announced": silence})
    else:
        out.print(told)
    if failure:
        raise failure
    if silence:
        err.print(
            f"not announced: {silence}; services see it when they start, or next look",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def _announce(url: str, promotion: VersionPromoted) -> None:
    async def announce(bus: Bus) -> None:
        await soon(bus.announce(PROMOTIONS, promotion))

    otherwise = "not announced, though done: services see it when they start, or next look"
    asyncio.run(answered(url, announce, otherwise))
