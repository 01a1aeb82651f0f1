"""`monitor`: a live view in the terminal, built from answers of the gateway. `up` shows the same view."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

import httpx
import typer
from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cli.output import out, print_json
from cli.runs import require_running
from cli.settings import UpSettings
from services.api.views import ActiveAlert, CheckpointSummary, Control, Detail, Page, Service, Status
from shared.environment.action import Action
from shared.environment.outcome import ChanceOutcome
from shared.errors import ServiceError
from shared.messages.schemas import DecisionMade
from shared.runtime.settings import load

REFRESH_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
_NUM_VERSIONS = 4
_NUM_EVENTS = 3
_BAR_CELLS = 8
_PANEL_ROWS = 5

_STATE_STYLE = {"running": "green", "starting": "yellow", "degraded": "yellow", "stopping": "yellow"}
_SIDE = {-1: "short", 0: "flat", 1: "long"}


@dataclass(frozen=True)
class Snapshot:
    """The state of the system at one moment: answers of the gateway, and process events from `up`."""

    status: Status
    checkpoints: tuple[CheckpointSummary, ...]
    events: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, object]:
        """The document that `--json` prints."""
        return {
            **self.status.model_dump(mode="json"),
            "checkpoints": [checkpoint.model_dump(mode="json") for checkpoint in self.checkpoints],
        }

    @property
    def line(self) -> str:
        """The most important figures in one line, for logs and pipes."""
        status = self.status
        promoted = status.pointers.promoted
        parts = [
            f"episode {_number(_episode(status))}",
            f"version {_number(status.pointers.newest)}",
            f"promoted {f'{promoted.version} ({promoted.stage})' if promoted else '–'}",
            f"validated {_number(status.streams.get('mm:validations'))}",
            f"decisions {_number(status.streams.get('mm:decisions'))}",
            f"trades {_number(status.streams.get('mm:trades'))}",
        ]
        missing = [service.service for service in status.services if service.state == "missing"]
        if missing:
            parts.append(f"waiting for {', '.join(missing)}")
        if status.alerts:
            parts.append(f"alerts {', '.join(alert.name for alert in status.alerts)}")
        return "  ".join(parts)


async def fetch_snapshot(gateway_url: str, *, events: tuple[str, ...] = ()) -> Snapshot | None:
    """Fetch the current state from the gateway; None if it does not answer.

    Raises:
        ServiceError: the address is invalid, or another program answers.
    """
    async with httpx.AsyncClient(base_url=gateway_url, timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
        try:
            status = await client.get("/status")
            checkpoints = await client.get("/checkpoints", params={"limit": 20})
        except httpx.TransportError:
            return None
        except httpx.InvalidURL as invalid:
            raise ServiceError(f"{gateway_url!r} is not a valid address: {invalid}") from invalid
    try:
        return Snapshot(
            Status.model_validate_json(status.content),
            tuple(Page[CheckpointSummary].model_validate_json(checkpoints.content).items),
            events,
        )
    except ValidationError as invalid:
        raise ServiceError(
            f"{gateway_url} answered {status.status_code}, but not as a gateway; is it another program?"
        ) from invalid


def monitor(
    url: Annotated[
        str | None, typer.Option(help="address of a gateway; default: that of the local `up`")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="show the state once and exit")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document and exit")] = False,
) -> None:
    """Show a live view of the running system until Ctrl-C."""
    address = url or require_running(load(UpSettings).home.resolve()).gateway_url
    if once or as_json:
        snapshot = asyncio.run(fetch_snapshot(address))
        if snapshot is None:
            raise ServiceError(f"no gateway answers at {address}")
        if as_json:
            print_json(snapshot.document)
        else:
            out.print(build_view(snapshot))
        return
    asyncio.run(_watch(address))


async def _watch(address: str) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    last: Snapshot | None = None
    with live_display(out.is_terminal) as show:
        while not stop.is_set():
            now = await fetch_snapshot(address)
            if now is None and last is None:
                raise ServiceError(f"no gateway answers at {address}")
            if now is not None:
                show(build_view(now))
            elif last is not None:
                show(Group(build_view(last), Text(f"no answer from {address}; retrying", "bold red")))
            last = now or last
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), REFRESH_SECONDS)


@contextlib.contextmanager
def live_display(interactive: bool) -> Iterator[Callable[[RenderableType], None]]:
    """Yield a function that redraws the screen; without a terminal it does nothing."""
    if not interactive:
        yield lambda _: None
        return
    # The alternate screen restores the terminal's content afterwards.
    with Live(console=out, screen=True, auto_refresh=False) as live:
        yield lambda picture: live.update(picture, refresh=True)


def summary_lines(snapshot: Snapshot) -> list[str]:
    """The final summary of a run."""
    status = snapshot.status
    promoted, verdict = status.pointers.promoted, status.validation
    lines = [
        f"episodes learned from: {_number(_episode(status))}, updates {_number(_update(status))}",
        f"versions published: {_number(status.streams.get('mm:checkpoints'))}, "
        f"newest {_number(status.pointers.newest)}",
        f"validated: {_number(status.streams.get('mm:validations'))}, promoted: "
        + (f"{promoted.version} ({promoted.stage})" if promoted else "none yet"),
    ]
    if verdict:
        lines.append(
            f"last validation: version {verdict.version}, {verdict.num_trades} trades in "
            f"{verdict.num_sessions} sessions, {_pips(verdict.expectancy_pips)} pips a trade, "
            f"{_pips(verdict.net_pips)} net"
        )
    lines.append(
        f"trader: {_number(status.streams.get('mm:decisions'))} decisions, "
        f"{_number(_integer(status.trader.detail, 'orders', None))} orders, "
        f"{_number(status.streams.get('mm:trades'))} trades closed, {_position(status)}"
    )
    if status.dead_letters:
        lines.append(f"dead letters: {_number(status.dead_letters)}")
    return lines


def build_view(snapshot: Snapshot) -> RenderableType:
    """The live view of one snapshot; fits 80 columns and 24 lines."""
    status = snapshot.status
    parts: list[RenderableType] = [_heading(status), _services(status)]
    panels = Table.grid(expand=True)
    panels.add_column(ratio=1)
    panels.add_column(ratio=1)
    panels.add_row(_training(status), _trading(status))
    parts += [panels, _versions(snapshot.checkpoints)]
    parts += [
        Text(f"! {_alert(alert)}", "bold red", no_wrap=True, overflow="ellipsis")
        for alert in status.alerts[:_NUM_EVENTS]
    ]
    parts += [
        Text(event, "dim", no_wrap=True, overflow="ellipsis") for event in snapshot.events[-_NUM_EVENTS:]
    ]
    return Group(*parts)


def _alert(alert: ActiveAlert) -> str:
    since = f" (since {_local_time(alert.since)})" if alert.since else ""
    return f"{alert.source}: {alert.name}{since}: {alert.detail}"


def _heading(status: Status) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("Micro Stochastic MuZero  ", "bold")
    healthy = status.state == "running" and not status.alerts
    line.append(f"● {status.state}", "green" if healthy else "bold yellow")
    if status.alerts:
        line.append(f"  {len(status.alerts)} alert{'s' if len(status.alerts) > 1 else ''}", "bold red")
    if status.redis == "unavailable":
        line.append("  Redis unavailable", "bold red")
    line.append(f"  {_local_time(status.time)}  up {_duration(status.time - status.started_at)}", "dim")
    return line


def _services(status: Status) -> RenderableType:
    line = Text(no_wrap=True, overflow="ellipsis")
    if status.dead_letters:
        line.append(f"dead {status.dead_letters:,}  ", "bold red")
    return line.append_text(Text("  ").join(_service(service) for service in status.services))


def _service(service: Service) -> Text:
    states = [instance.state for instance in service.instances]
    worst = next((state for state in ("stopping", "degraded", "starting") if state in states), "running")
    style = _STATE_STYLE[worst] if states else "dim" if service.state == "unknown" else "red"
    mark = "●" if states else "?" if service.state == "unknown" else "○"
    count = f"×{len(states)}" if len(states) > 1 else ""
    restarts = (f"↻{service.restarts}", "bold red") if service.restarts else ""
    return Text.assemble((mark, style), f"{service.service}{count}", restarts)


def _training(status: Status) -> Panel:
    training = status.training
    numbers = {**training.metrics, **{k: v for k, v in training.live.items() if isinstance(v, int | float)}}
    rows = [
        ("episode · update", f"{_number(_episode(status))} · {_number(_update(status))}"),
        ("loss", _figure(numbers.get("loss"), ".3f")),
        ("expectancy", f"{_pips(numbers.get('expectancy_pips'))} pips"),
        ("wins · trade ratio", f"{_share(numbers.get('win_rate'))} · {_share(numbers.get('trade_ratio'))}"),
        (
            "updates/s · backlog",
            f"{_figure(numbers.get('updates_per_second'), '.1f')} · "
            f"{_number(status.streams.get('mm:trajectories'))}",
        ),
    ]
    return _panel("training", training, rows)


def _trading(status: Status) -> Panel:
    decision = status.trader.last_decision
    note = "" if status.pointers.promoted else ", none promoted"
    rows = [("position", f"{_position(status)}{note}")]
    if status.trader.state == "unknown":
        rows.append(("state", status.trader.summary.removeprefix("unknown: ")))
    if status.trader.killed_by_file:
        rows.append(("lift with", "micro-muzero kill --resume"))
    if decision:
        rows += [
            ("decided", _outcome(decision)),
            ("policy", _bars(decision.visit_policy, tuple(action.name[0] for action in Action))),
            ("outcomes", _bars(decision.outcome_probabilities, tuple(o.name[0] for o in ChanceOutcome))),
            ("value", f"{_pips(decision.value)} pips, version {_number(decision.version)}"),
        ]
    return _panel("trading", status.trader, rows[:_PANEL_ROWS])


def _outcome(decision: DecisionMade) -> str:
    """The decision at the newest bar, and the reason if it was not executed."""
    if decision.executed:
        return decision.action
    result = "nothing" if decision.version is None else f"{decision.action}, not carried out"
    return f"{result}: {decision.reason}" if decision.reason else result


def _panel(title: str, control: Control, rows: list[tuple[str, str]]) -> Panel:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True, min_width=max(len(name) for name, _ in rows))
    grid.add_column(no_wrap=True, overflow="ellipsis")
    for name, value in rows:
        grid.add_row(name, value)
    heading = Text(title)
    if control.state != "running":
        heading.append(f" {control.state}", "bold red")
    if control.order and not control.confirmed:
        heading.append(f", {control.order.state} unconfirmed", "bold red")
    return Panel(grid, title=heading, title_align="left", height=_PANEL_ROWS + 2, padding=(0, 1))


def _versions(checkpoints: tuple[CheckpointSummary, ...]) -> RenderableType:
    table = Table(expand=True, box=None, header_style="dim", padding=(0, 0, 0, 1))
    for name in ("version", "episode", "loss", "trades", "pips/trade", "SQN", "net pips"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("gates", no_wrap=True)
    for checkpoint in checkpoints[:_NUM_VERSIONS]:
        verdict = checkpoint.validation
        table.add_row(
            Text(str(checkpoint.version), _stage_style(checkpoint)),
            _number(checkpoint.episode),
            _figure(checkpoint.metrics.get("loss"), ".3f"),
            _number(verdict.num_trades) if verdict else "–",
            _pips(verdict.expectancy_pips) if verdict else "–",
            _figure(verdict.sqn, ".2f") if verdict else "–",
            _pips(verdict.net_pips) if verdict else "–",
            Text(_verdict(checkpoint), _stage_style(checkpoint) or "dim"),
        )
    if not checkpoints:
        return Text(" no version yet: the trainer publishes the first when it starts", "dim")
    return table


def _verdict(checkpoint: CheckpointSummary) -> str:
    """The stage that a version is promoted to, or else its verdict."""
    verdict = checkpoint.validation
    match checkpoint.stage:
        case "unproven":
            return "unproven: no entries"
        case "paper" | "live":
            return f"promoted: {checkpoint.stage}"
        case None:
            return (", ".join(verdict.passed_gates) or "none passed") if verdict else "not judged"


def _stage_style(checkpoint: CheckpointSummary) -> str:
    """Green for a promoted version that passed its gate; no colour for an unproven one."""
    return "bold green" if checkpoint.stage in ("paper", "live") else "bold" if checkpoint.stage else ""


def _position(status: Status) -> str:
    """Position as the trader reports it, or else from its last decision; unknown without a trader."""
    detail, decision = status.trader.detail, status.trader.last_decision
    if status.trader.state == "unknown" and "side" not in detail:
        return "not known"
    side = detail.get("side", decision.side if decision else None)
    pnl = detail.get("pnl_pips", decision.pnl_pips if decision else None)
    if side not in _SIDE:
        return "not known"
    held = _SIDE[int(side)]
    return f"{held} {_pips(float(pnl))} pips" if side and isinstance(pnl, int | float) else held


def _bars(shares: tuple[float, ...], names: tuple[str, ...]) -> str:
    """A bar of eight heights for each share, and the largest share as a number."""
    if not shares:
        return "–"
    blocks = " ▁▂▃▄▅▆▇█"
    cells = [
        f"{name}{blocks[min(round(share * _BAR_CELLS), _BAR_CELLS)]}"
        for name, share in zip(names, shares, strict=False)
    ]
    return f"{' '.join(cells)}  {names[shares.index(max(shares))]} {max(shares):.0%}"


def _episode(status: Status) -> int | None:
    return _integer(status.training.live, "episode", status.training.episode)


def _update(status: Status) -> int | None:
    return _integer(status.training.live, "update", status.training.update)


def _integer(live: Detail, name: str, default: int | None) -> int | None:
    value = live.get(name)
    return value if isinstance(value, int) else default


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _pips(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 1) + 0.0:+,.1f}"  # avoids -0.0


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _local_time(moment: datetime) -> str:
    return f"{moment.astimezone():%H:%M:%S}"


def _duration(span: timedelta) -> str:
    minutes = max(0, int(span.total_seconds())) // 60  # a clock may have been set back
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
