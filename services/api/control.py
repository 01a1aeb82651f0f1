"""Compares an operator's orders with the states that the trader and the trainer report."""

from datetime import datetime

from services.api.views import Control, Detail, Order
from shared.messages.schemas import ControlIssued

#: The state in the heartbeat of a trader whose paper broker has replayed all of its bars.
REPLAY_FINISHED = "replay finished"

_BY_FILE = "killed by its kill file"
_LIFT_FILE = "only `micro-muzero kill --resume` on the trader's host lifts it"

_VERBS = {"running": "resume", "paused": "pause", "killed": "kill"}
_SIDES: dict[object, str] = {-1: "short", 1: "long"}


def trader_control(issued: ControlIssued | None, detail: Detail | None, since: datetime | None) -> Control:
    """The state of trading.

    Args:
        issued: the operator's newest order.
        detail: detail of the trader's heartbeat; None without a readable heartbeat.
        since: time of the trader's last heartbeat; None if there was none.
    """
    if detail is None:
        return _absent(issued, since, "trader")
    reported = detail.get("control")
    if reported not in _VERBS:
        return _unknown_state(issued, f"unknown: the trader reports {detail.get('state') or 'no state'}")
    held = detail.get("side")
    by_file = bool(detail.get("kill_file"))
    flat = held == 0 and detail.get("flat_at") is not None  # confirmed by the broker
    if reported == "killed" and (by_file or not flat):
        summary = (_BY_FILE if by_file else "killed") + _position(held, flat=flat)
        return Control(
            state="killed",
            order=_order(issued),
            confirmed=flat,
            summary=f"{summary}; {_LIFT_FILE}" if by_file else summary,
        )
    summary = _state_text(str(reported), issued, ", no position" if reported == "killed" else "")
    state = detail.get("state")
    if reported == "running" and state not in (None, "active"):
        summary = f"{state}: {detail['guards']}" if detail.get("guards") else str(state)
    return _reported_state(issued, reported, summary)


def _position(held: object, *, flat: bool) -> str:
    """The position of a killed trader; `flat`: the broker has confirmed that there is none."""
    if held == 0:
        return ", no position" if flat else ", but the broker has not confirmed yet that no position is open"
    if held in (-1, 1):
        return f", but the position is still open ({_SIDES[held]})"
    return ", but it is not known whether a position is open"


def training_control(issued: ControlIssued | None, live: Detail | None, since: datetime | None) -> Control:
    """The state of training; the arguments are those of `trader_control`."""
    if live is None:
        return _absent(issued, since, "trainer")
    paused = live.get("paused")
    if not isinstance(paused, bool):
        return _unknown_state(issued, "unknown: the trainer does not report whether it is paused")
    reported = "paused" if paused else "running"
    return _reported_state(issued, reported, _state_text(reported, issued, ""))


def _reported_state(issued: ControlIssued | None, reported: object, summary: str) -> Control:
    """The reported state, compared with the ordered one."""
    ordered = issued.state if issued else "running"
    if issued and ordered != reported:
        summary = f"{_order_text(issued)}, not confirmed: it reports {reported}"
    return Control.model_validate(
        {"state": reported, "order": _order(issued), "confirmed": ordered == reported, "summary": summary}
    )


def _state_text(reported: str, issued: ControlIssued | None, suffix: str) -> str:
    if reported == "running" or issued is None:
        return f"{reported}{suffix}"
    return f"{reported} since {_clock(issued.created_at)} by {issued.by}{suffix}"


def _absent(issued: ControlIssued | None, since: datetime | None, service: str) -> Control:
    return _unknown_state(
        issued, f"unknown since {_clock(since)}" if since else f"unknown: no {service} has been seen"
    )


def _unknown_state(issued: ControlIssued | None, summary: str) -> Control:
    if issued and issued.state != "running":
        summary += f"; {_order_text(issued)}, not confirmed"
    return Control(state="unknown", order=_order(issued), confirmed=None, summary=summary)


def _order_text(issued: ControlIssued) -> str:
    return f"{_VERBS[issued.state]} sent at {_clock(issued.created_at)} by {issued.by}"


def _order(issued: ControlIssued | None) -> Order | None:
    if issued is None:
        return None
    return Order(state=issued.state, by=issued.by, reason=issued.reason, at=issued.created_at)


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S} UTC"
