"""`checkpoints`: list, show, verify, promote, roll back and tidy versions."""

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import typer

from cli.output import err, out, print_fields, print_json, print_table
from cli.runs import checkpoint_store, running, validation_root
from services.selfplay.settings import SelfPlaySettings
from shared.adapters.bus import Bus
from shared.adapters.checkpoints import CheckpointStore, Pointer
from shared.adapters.promotions import promote as promote_version
from shared.adapters.promotions import roll_back
from shared.environment.action import LEGAL
from shared.errors import CheckpointError
from shared.messages.schemas import VersionPromoted
from shared.messages.streams import PROMOTIONS
from shared.model.config import ModelConfig
from shared.model.cost import network_costs, plain_encoding, span_encoding, static_encoding
from shared.runtime.settings import ServiceSettings, load

app = typer.Typer(help="Versions that the trainer published.", no_args_is_help=True)

Store = Annotated[
    str | None,
    typer.Option("--store", help="folder or URL of versions; MM_CHECKPOINTS or the last local run's else"),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document")]
Version = Annotated[int, typer.Argument(min=0, help="a version's number")]


@app.command("list")
def list_versions(store: Store = None, as_json: Json = False) -> None:
    """List the versions, newest last, with their pointers."""
    versions = checkpoint_store(store)
    rows = [_row(versions, version) for version in versions.versions()]
    if as_json:
        print_json(rows)
        return
    columns = ("version", "episode", "update", "created (UTC)", "MB", "pointers", "fault")
    shown = [{**row, "created_at": str(row["created_at"] or "")[:16].replace("T", " ")} for row in rows]
    print_table(f"versions in {versions.name}", columns, [list(row.values()) for row in shown])


@app.command()
def show(version: Version, store: Store = None, as_json: Json = False) -> None:
    """Show one version's manifest, and what its networks cost: weights and multiply-adds."""
    from shared.adapters.agents import model_config  # brings torch along

    versions = checkpoint_store(store)
    manifest = versions.manifest(version)
    costs = _Costs.of(model_config(manifest), load(SelfPlaySettings))
    document = {**json.loads(manifest.model_dump_json()), "pointers": _pointers(versions, version)}
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
) -> None:
    """Let a version decide; only one that passed the stage's gate can be promoted."""
    versions = checkpoint_store(store)
    message = promote_version(versions, validation_root(versions), version, stage, by="command line")
    _announce(message)
    out.print(f"version {version} is promoted to {stage}")


@app.command()
def rollback(store: Store = None) -> None:
    """Let the version decide that decided before the promoted one."""
    versions = checkpoint_store(store)
    message = roll_back(versions, validation_root(versions), by="command line")
    _announce(message)
    out.print(f"version {message.version} decides again, version {message.rolled_back_from} no longer")


@app.command()
def gc(
    keep: Annotated[int, typer.Option(min=1, help="how many of the newest versions stay")] = 5,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Remove all but the newest versions and those that a pointer names."""
    removed = checkpoint_store(store).collect_garbage(keep=keep)
    if as_json:
        print_json({"removed": removed})
    else:
        out.print(f"removed {len(removed)} versions{': ' + ', '.join(map(str, removed)) if removed else ''}")


def _row(store: CheckpointStore, version: int) -> dict[str, object]:
    try:
        manifest = store.manifest(version)
    except CheckpointError as damaged:
        return {
            "version": version,
            "episode": None,
            "update": None,
            "created_at": None,
            "megabytes": None,
            "pointers": "",
            "fault": str(damaged),
        }
    return {
        "version": version,
        "episode": manifest.episode,
        "update": manifest.update,
        "created_at": manifest.created_at.isoformat(timespec="seconds"),
        "megabytes": sum(entry.bytes for entry in manifest.files.values()) / 1e6,
        "pointers": ", ".join(_pointers(store, version)),
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


def _pointers(store: CheckpointStore, version: int) -> list[str]:
    pointed = {name: store.pointer(name) for name in Pointer}
    return [name.value for name, at in pointed.items() if at and at.version == version]


def _fault(store: CheckpointStore, version: int) -> str:
    try:
        store.verify(version)
    except CheckpointError as damaged:
        return str(damaged)
    return ""


def _announce(message: VersionPromoted) -> None:
    """Tell the services that run; without any the pointer alone tells them when they start."""
    run = running(load(ServiceSettings).home)
    if run is None:
        err.print("nothing is up here: services will see it when they start")
        return

    async def announce() -> None:
        bus = Bus(run.redis_url)
        await bus.announce(PROMOTIONS, message)
        await bus.close()

    asyncio.run(announce())
