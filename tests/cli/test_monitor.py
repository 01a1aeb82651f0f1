"""The live view: content, size and errors."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Typer
from typer.testing import CliRunner

from cli.monitor import Snapshot, _versions, build_view, fetch_snapshot, live_display, monitor, summary_lines
from services.api.views import (
    ActiveAlert,
    CheckpointSummary,
    Instance,
    Order,
    Page,
    Pointers,
    Promoted,
    Service,
    Status,
    Trader,
    Training,
)
from shared.errors import ServiceError
from shared.messages.schemas import DecisionMade, ValidationReported

MOMENT = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def service(name: str, *states: str) -> Service:
    return Service(
        service=name,
        state="missing" if not states else "degraded" if "degraded" in states else "up",
        expected=True,
        instances=[
            Instance.model_validate(
                {
                    "instance": f"{name}-{n}",
                    "state": state,
                    "started_at": MOMENT,
                    "beat_at": MOMENT,
                    "detail": {},
                }
            )
            for n, state in enumerate(states)
        ],
    )


VERDICT = ValidationReported(
    version=7,
    split="validation",
    num_sessions=40,
    num_trades=123,
    expectancy_pips=1.25,
    sqn=1.5,
    net_pips=153.75,
    max_drawdown_pips=60.0,
    passed_gates=("paper",),
    seconds=4.0,
)
DECISION = DecisionMade(
    bar_time=MOMENT,
    action="SELL",
    executed=True,
    version=7,
    value=3.5,
    visit_policy=(0.1, 0.2, 0.7, 0.0),
    outcome_probabilities=(0.2, 0.3, 0.5),
    side=-1,
    pnl_pips=-6.5,
    close=187.5,
)
BUSY = Snapshot(
    Status(
        state="running",
        redis="up",
        time=MOMENT + timedelta(minutes=125),
        started_at=MOMENT,
        version="0.1.0",
        services=[
            service("trainer", "running"),
            service("selfplay", "running", "degraded"),
            service("broker"),
        ],
        streams={"mm:trajectories": 12, "mm:validations": 8, "mm:decisions": 900, "mm:trades": 31},
        dead_letters=2,
        redis_condition=None,
        pointers=Pointers(newest=8, best=7, promoted=Promoted(version=7, stage="paper")),
        training=Training(
            state="paused",
            version=8,
            episode=400,
            update=3_200,
            published_at=MOMENT,
            metrics={"loss": 2.345, "expectancy_pips": -3.25, "win_rate": 0.41},
            live={"episode": 423, "trade_ratio": 0.12},
        ),
        validation=VERDICT,
        trader=Trader(state="running", detail={"orders": 62}, last_decision=DECISION),
        alerts=[
            ActiveAlert(name="dead_letters", source="streams", detail="2 entries could not be processed")
        ],
    ),
    (
        CheckpointSummary(
            version=8,
            episode=400,
            update=3_200,
            created_at=MOMENT,
            metrics={"loss": 2.345},
            weights_sha256="0" * 64,
            stored=True,
            pointers=["latest"],
            stage=None,
            validation=None,
        ),
        CheckpointSummary(
            version=7,
            episode=350,
            update=2_800,
            created_at=MOMENT,
            metrics={},
            weights_sha256="0" * 64,
            stored=True,
            pointers=["best", "promoted"],
            stage="paper",
            validation=VERDICT,
        ),
    ),
    events=("12:00:01 trainer started",),
)
EMPTY = Snapshot(
    BUSY.status.model_copy(
        update={
            "state": "degraded",
            "redis": "unavailable",
            "services": [service("trainer").model_copy(update={"state": "unknown"})],
            "streams": {},
            "dead_letters": None,
            "pointers": Pointers(newest=None, best=None, promoted=None),
            "training": Training(
                state="running",
                version=None,
                episode=None,
                update=None,
                published_at=None,
                metrics={},
                live={},
            ),
            "validation": None,
            "trader": Trader(
                state="unknown",
                order=Order(state="killed", by="gateway", reason="", at=MOMENT),
                detail={},
                last_decision=None,
            ),
            "alerts": [],
        }
    ),
    (),
)


def drawn(snapshot: Snapshot, width: int = 80) -> str:
    console = Console(width=width, height=24, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(build_view(snapshot))
    return capture.get()


@pytest.fixture
def gateway() -> Iterator[str]:
    """A server that answers like the gateway of the snapshot BUSY."""
    page = Page[CheckpointSummary](items=list(BUSY.checkpoints))
    answers = {"/status": BUSY.status.model_dump_json(), "/checkpoints": page.model_dump_json()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers[self.path.split("?")[0]].encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    yield from serve(Handler)


def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("snapshot", [BUSY, EMPTY], ids=["busy", "empty"])
def test_the_view_fits_a_small_terminal(snapshot: Snapshot) -> None:
    lines = drawn(snapshot).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_the_view_shows_services_training_trading_versions_alerts_events() -> None:
    text = drawn(BUSY)
    assert "selfplay×2" in text
    assert "○broker" in text
    assert "423 · 3,200" in text  # the trainer reports newer figures than the last version has
    assert "41% · 12%" in text
    assert "short -6.5 pips" in text
    assert "S 70%" in text
    assert "paused" in text
    assert "promoted: paper" in text
    assert "not judged" in text
    assert "! streams: dead_letters: 2 entries" in text
    assert "trainer started" in text


def test_no_line_of_a_complete_system_wraps_or_is_cut_at_80_columns() -> None:
    """Every service, a restart, a full backlog, and the longest label of a version."""
    names = ("trainer", "selfplay", "validator", "inference", "trader", "broker", "api")
    services = [service(name, *["running"] * (16 if name == "selfplay" else 1)) for name in names]
    services[0] = services[0].model_copy(update={"restarts": 3})
    unproven = BUSY.checkpoints[1].model_copy(update={"stage": "unproven"})
    changes = {"services": services, "streams": {"mm:trajectories": 1_000}, "dead_letters": 0, "alerts": []}
    text = drawn(Snapshot(BUSY.status.model_copy(update=changes), (unproven,)))
    (line,) = [line for line in text.splitlines() if "●trainer" in line]
    assert line.split() == ["●trainer↻3", "●selfplay×16", *(f"●{name}" for name in names[2:])]
    assert "unproven: no entries" in text
    assert "+3.5 pips, version 7" in text
    assert "– · 1,000" in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "SELL  "),
        ({"executed": False, "reason": "daily loss"}, "SELL, not carried out: daily loss"),
        (
            {"executed": False, "action": "HOLD", "version": None, "reason": "warming up"},
            "nothing: warming up",
        ),
    ],
)
def test_a_decision_that_was_not_executed_is_shown_with_its_reason(
    changes: dict[str, object], shown: str
) -> None:
    decision = DECISION.model_copy(update=changes)
    trader = BUSY.status.trader.model_copy(update={"last_decision": decision})
    text = drawn(Snapshot(BUSY.status.model_copy(update={"trader": trader}), ()), width=120)
    assert re.search(rf"decided +{shown}", text)


def test_the_view_shows_that_redis_is_unavailable() -> None:
    text = drawn(EMPTY)
    assert "Redis unavailable" in text
    assert "trading unknown, killed unconfirmed" in text
    assert "?trainer" in text
    assert "no version yet" in text


def test_an_unproven_version_is_labelled_and_not_green() -> None:
    (seven,) = [checkpoint for checkpoint in BUSY.checkpoints if checkpoint.stage]
    unproven = seven.model_copy(update={"stage": "unproven"})
    table = _versions((seven, unproven))
    assert isinstance(table, Table)
    shown = [(str(cell), cell.style) for cell in table.columns[-1].cells if isinstance(cell, Text)]
    assert shown == [("promoted: paper", "bold green"), ("unproven: no entries", "bold")]


def test_the_status_line_names_missing_services() -> None:
    assert "waiting for broker" in BUSY.line
    assert "promoted 7 (paper)" in BUSY.line
    assert "episode 423" in BUSY.line


def test_the_summary_has_the_results_of_the_run() -> None:
    text = "\n".join(summary_lines(BUSY))
    assert "promoted: 7 (paper)" in text
    assert "900 decisions, 62 orders, 31 trades closed" in text
    assert "123 trades in 40 sessions" in text


async def test_a_snapshot_holds_the_answers_of_the_gateway(gateway: str) -> None:
    fetched = await fetch_snapshot(gateway, events=BUSY.events)
    assert fetched == BUSY


async def test_without_an_answer_there_is_no_snapshot() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        assert await fetch_snapshot(f"http://127.0.0.1:{silent.getsockname()[1]}") is None


async def test_an_answer_of_another_program_is_an_error() -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None: ...

    for address in serve(Other):
        with pytest.raises(ServiceError, match="not as a gateway"):
            await fetch_snapshot(address)


def test_once_and_json_print_and_exit(gateway: str) -> None:
    app = Typer()
    app.command()(monitor)
    document = json.loads(CliRunner().invoke(app, ["--url", gateway, "--json"]).stdout)
    assert document["pointers"]["promoted"] == {"version": 7, "stage": "paper"}
    assert [checkpoint["version"] for checkpoint in document["checkpoints"]] == [8, 7]
    assert "selfplay" in CliRunner().invoke(app, ["--url", gateway, "--once"]).stdout


def test_without_a_terminal_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with live_display(interactive=False) as show:
        show(build_view(BUSY))
    assert capsys.readouterr().out == ""


def test_the_view_shows_how_to_lift_a_kill_by_file() -> None:
    trader = BUSY.status.trader.model_copy(
        update={"state": "killed", "killed_by_file": True, "confirmed": True, "detail": {"side": 0}}
    )
    lines = drawn(Snapshot(BUSY.status.model_copy(update={"trader": trader}), ())).splitlines()
    assert any("trading killed" in line for line in lines)
    assert any("micro-muzero kill --resume" in line for line in lines)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_the_view_shows_what_a_starting_trader_waits_for() -> None:
    waits = "unknown: the trader says connecting"
    trader = BUSY.status.trader.model_copy(update={"state": "unknown", "summary": waits, "detail": {}})
    text = drawn(Snapshot(BUSY.status.model_copy(update={"trader": trader}), ()))
    assert "the trader says connecting" in text
    assert "position " in text


def test_the_position_of_a_silent_trader_is_unknown() -> None:
    """The last decision may be older than the last order."""
    trader = BUSY.status.trader.model_copy(update={"state": "unknown"})
    text = drawn(Snapshot(BUSY.status.model_copy(update={"trader": trader}), ()))
    assert "not known" in text
    assert "short" not in text


def test_the_reported_position_is_preferred_to_the_last_decision() -> None:
    trader = BUSY.status.trader.model_copy(update={"detail": {"side": 1, "pnl_pips": 2.04}})
    status = BUSY.status.model_copy(update={"trader": trader})
    assert "long +2.0 pips" in drawn(Snapshot(status, ()))
