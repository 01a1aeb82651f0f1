"""What an operator ordered, and what the part itself says that it does: two different things."""

from datetime import datetime
from typing import Literal

from services.api.views import Control, Detail, Order
from shared.messages.schemas import ControlIssued

#: State of a trader whose paper broker has replayed all of its bars, as its heartbeat has it.
REPLAY_FINISHED = "replay finished"

_BY_FILE = "killed by its kill file"
_LIFT_FILE = "`micro-muzero kill --resume` on the trader's host lifts it, the page does not"

_VERBS = {"running": "resume", "paused": "pause", "killed": "kill"}
_SIDES: dict[object, str] = {-1: "short", 1: "long"}

_OwnState = Literal["running", "paused", "killed"]


def trader_control(issued: ControlIssued | None, detail: Detail | None, since: datetime | None) -> Control:
    """State of trading.

    Args:
        issued: the operator's newest order.
        detail: of the trader's heartbeat; None while there is none, or while it cannot be read.
        since: when the trader was last heard; None where it never was.
    """
    if detail is None:
        return _unknown(issued, since, "trader")
    own = detail.get("control")
    if own not in _VERBS:
        says = detail.get("state") or "nothing of it"
        return _unheard(issued, f"unknown: the trader says {says}")
    held = detail.get("side")
    by_file = bool(detail.get("kill_file"))
    flat = held == 0 and detail.get("flat_at") is not None  # by the broker's word
    if own == "killed" and (by_file or not flat):
        summary = (_BY_FILE if by_file else "killed") + _left(held, flat=flat)
        return Control(
            state="killed",
            order=_order(issued),
            confirmed=flat,
            summary=f"{summary}; {_LIFT_FILE}" if by_file else summary,
        )
    summary = _stopped(str(own), issued, ", no position" if own == "killed" else "")
    state = detail.get("state")
    if own == "running" and state not in (None, "active"):
        summary = f"{state}: {detail['guards']}" if detail.get("guards") else str(state)
    return _agreed(issued, own, summary)


def _left(held: object, *, flat: bool) -> str:
    """What a killed trader still holds; `flat` where the broker showed that it is nothing."""
    if held == 0:
        return ", no position" if flat else ", but the broker has not shown yet that nothing is held"
    if held in (-1, 1):
        return f", but the position is still open ({_SIDES[held]})"
    return ", but whether a position is open is not known"


def training_control(issued: ControlIssued | None, live: Detail | None, since: datetime | None) -> Control:
    """State of learning, with the arguments of `trader_control`."""
    if live is None:
        return _unknown(issued, since, "trainer")
    paused = live.get("paused")
    if not isinstance(paused, bool):
        return _unheard(issued, "unknown: the trainer has not said whether it is paused")
    own = "paused" if paused else "running"
    return _agreed(issued, own, _stopped(own, issued, ""))


def _agreed(issued: ControlIssued | None, own: object, summary: str) -> Control:
    """What a part says of itself, beside what was ordered."""
    ordered = issued.state if issued else "running"
    if issued and ordered != own:
        summary = f"{_sent(issued)}, not confirmed; it says {own}"
    return Control.model_validate(
        {"state": own, "order": _order(issued), "confirmed": ordered == own, "summary": summary}
    )


def _stopped(own: str, issued: ControlIssued | None, more: str) -> str:
    if own == "running" or issued is None:
        return f"{own}{more}"
    return f"{own} since {_clock(issued.created_at)} by {issued.by}{more}"


def _unknown(issued: ControlIssued | None, since: datetime | None, part: str) -> Control:
    return _unheard(issued, f"unknown since {_clock(since)}" if since else f"unknown: no {part} was seen")


def _unheard(issued: ControlIssued | None, summary: str) -> Control:
    if issued and issued.state != "running":
        summary += f"; {_sent(issued)}, not confirmed"
    return Control(state="unknown", order=_order(issued), confirmed=None, summary=summary)


def _sent(issued: ControlIssued) -> str:
    return f"{_VERBS[issued.state]} sent at {_clock(issued.created_at)} by {issued.by}"


def _order(issued: ControlIssued | None) -> Order | None:
    if issued is None:
        return None
    return Order(state=issued.state, by=issued.by, reason=issued.reason, at=issued.created_at)


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S} UTC"
