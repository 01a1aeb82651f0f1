"""The order of an operator is compared with the state that the trader or trainer reports."""

from datetime import UTC, datetime
from typing import Literal

import pytest

from services.api.control import trader_control, training_control
from services.api.views import Detail
from shared.messages.schemas import ControlIssued

AT = datetime(2026, 3, 2, 11, 53, 2, tzinfo=UTC)
SEEN = datetime(2026, 3, 2, 11, 50, tzinfo=UTC)

State = Literal["running", "paused", "killed"]


def order(state: State) -> ControlIssued:
    return ControlIssued(target="trader", state=state, by="gateway", created_at=AT)


KILL, RESUME = order("killed"), order("running")
FLAT: Detail = {"control": "killed", "side": 0, "flat_at": 7, "state": "halted", "guards": "killed"}
ACTIVE: Detail = {"control": "running", "side": 1, "state": "active", "guards": ""}

LIFT = "only `micro-muzero kill --resume` on the trader's host lifts it"
BY_FILE = "killed by its kill file"
UNCONFIRMED = ", but the broker has not confirmed yet that no position is open"
UNKNOWN = ", but it is not known whether a position is open"
OPEN = f"{BY_FILE}, but the position is still open"

TRADER = [
    (None, ACTIVE, "running", True, "running"),
    (RESUME, ACTIVE, "running", True, "running"),
    (None, {**ACTIVE, "state": "halted", "guards": "old_bar"}, "running", True, "halted: old_bar"),
    (None, {**ACTIVE, "state": "reconnecting"}, "running", True, "reconnecting"),
    (
        KILL,
        ACTIVE,
        "running",
        False,
        "kill sent at 11:53:02 UTC by gateway, not confirmed: it reports running",
    ),
    (KILL, {**FLAT, "flat_at": None}, "killed", False, f"killed{UNCONFIRMED}"),
    (None, {**FLAT, "kill_file": True, "flat_at": None}, "killed", False, f"{BY_FILE}{UNCONFIRMED}; {LIFT}"),
    (KILL, {**FLAT, "side": -1}, "killed", False, "killed, but the position is still open (short)"),
    (KILL, {"control": "killed"}, "killed", False, f"killed{UNKNOWN}"),
    (KILL, FLAT, "killed", True, "killed since 11:53:02 UTC by gateway, no position"),
    (None, FLAT, "killed", False, "killed, no position"),
    (
        RESUME,
        FLAT,
        "killed",
        False,
        "resume sent at 11:53:02 UTC by gateway, not confirmed: it reports killed",
    ),
    (RESUME, {**FLAT, "kill_file": True}, "killed", True, f"killed by its kill file, no position; {LIFT}"),
    (None, {**FLAT, "kill_file": True, "side": 1}, "killed", False, f"{OPEN} (long); {LIFT}"),
    (
        None,
        {"control": "killed", "kill_file": True, "state": "connecting"},
        "killed",
        False,
        f"{BY_FILE}{UNKNOWN}; {LIFT}",
    ),
    (KILL, {**FLAT, "kill_file": False}, "killed", True, "killed since 11:53:02 UTC by gateway, no position"),
    (
        None,
        {"state": "connecting", "control": None},
        "unknown",
        None,
        "unknown: the trader reports connecting",
    ),
    (None, {"state": "standby"}, "unknown", None, "unknown: the trader reports standby"),
    (None, {}, "unknown", None, "unknown: the trader reports no state"),
    (None, None, "unknown", None, "unknown since 11:50:00 UTC"),
    (
        KILL,
        None,
        "unknown",
        None,
        "unknown since 11:50:00 UTC; kill sent at 11:53:02 UTC by gateway, not confirmed",
    ),
]


@pytest.mark.parametrize(("ordered", "detail", "state", "confirmed", "summary"), TRADER)
def test_the_state_of_trading_is_the_one_that_the_trader_reports(
    ordered: ControlIssued | None, detail: Detail | None, state: str, confirmed: bool | None, summary: str
) -> None:
    control = trader_control(ordered, detail, SEEN)
    assert (control.state, control.confirmed, control.summary) == (state, confirmed, summary)


def test_a_trader_that_was_never_seen_is_unknown() -> None:
    assert trader_control(None, None, None).summary == "unknown: no trader has been seen"


@pytest.mark.parametrize(
    ("ordered", "live", "state", "confirmed"),
    [
        (None, {"paused": False}, "running", True),
        (order("paused"), {"paused": False}, "running", False),
        (order("paused"), {"paused": True}, "paused", True),
        (order("running"), {"paused": True}, "paused", False),
        (order("paused"), {}, "unknown", None),
        (order("paused"), None, "unknown", None),
    ],
)
def test_the_state_of_training_is_the_one_that_the_trainer_reports(
    ordered: ControlIssued | None, live: Detail | None, state: str, confirmed: bool | None
) -> None:
    control = training_control(ordered, live, SEEN)
    assert (control.state, control.confirmed) == (state, confirmed)
