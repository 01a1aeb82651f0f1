"""Impossible trajectories in entries that are otherwise valid: sizes and hashes match, numbers are finite."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from shared.agent.trajectory import Trajectory
from shared.environment.action import Action, Side
from shared.environment.trade import Trade
from shared.messages.codec import encode, encode_trajectory
from shared.messages.schemas import TradeRecord

#: A trajectory's arrays, in the order of the blob.
ARRAYS = ("static", "actions", "rewards", "policies", "values", "outcomes", "outcome_probabilities")

#: Array, index and new value.
Change = tuple[str, int | tuple[int, ...], float | Sequence[float]]

_LONG: Change = ("static", 3, [float(Side.LONG), 0.1, 0.1, 0.1, 0.1, 0.1])
_FLAT: Change = ("static", 3, [0.0] * 6)
_HOLDS: tuple[Change, ...] = (("actions", 3, Action.HOLD), ("policies", 3, [1.0, 0.0, 0.0, 0.0]))

#: Fault → changes to the arrays, and the expected error text.
ABSURD_ARRAYS: Mapping[str, tuple[tuple[Change, ...], str]] = {
    "rewards": (
        (("rewards", 3, 3e38), ("rewards", 4, 3e38)),
        "rewards[3] is 3e+38, expected -1e+09 to 1e+09",
    ),
    "values": ((("values", 5, -2e9),), "values[5] is -2e+09, expected -1e+09 to 1e+09"),
    "static features": ((("static", (3, 2), 1e38),), "static[3, 2] is 1e+38, expected -1 to 1"),
    "a side": ((("static", (3, 0), 0.5),), "static[3, 0] is 0.5, expected a side: -1, 0 or 1"),
    "an entry when long": (
        (_LONG, *_HOLDS, ("actions", 3, Action.BUY)),
        "actions[3] is 1, expected 0 HOLD or 3 CLOSE, which a LONG position allows",
    ),
    "an exit when flat": (
        (_FLAT, *_HOLDS, ("actions", 3, Action.CLOSE)),
        "actions[3] is 3, expected 0 HOLD or 1 BUY or 2 SELL, which a FLAT position allows",
    ),
    "a policy with illegal actions": (
        (_LONG, *_HOLDS, ("policies", 3, [0.5, 0.0, 0.25, 0.25])),
        "policies[3, 2] is 0.25, expected 0 for an action that is not 0 HOLD or 3 CLOSE",
    ),
    "a policy with a negative value": (
        (_FLAT, *_HOLDS, ("policies", 3, [1.0, -0.5, 0.5, 0.0])),
        "policies[3, 1] is -0.5, expected 0 to 1",
    ),
    "a policy with a sum below 1": (
        (_FLAT, *_HOLDS, ("policies", 3, [0.25, 0.25, 0.25, 0.0])),
        "policies[3] sums to 0.75, expected 1 within 0.001",
    ),
    "a policy with a sum above 1": (
        (_FLAT, *_HOLDS, ("policies", 3, [1.0, 1.0, 1.0, 0.0])),
        "policies[3] sums to 3, expected 1 within 0.001",
    ),
    "a negative probability": (
        (("outcome_probabilities", 7, [1.0, 0.5, -0.5]),),
        "outcome_probabilities[7, 2] is -0.5, expected 0 to 1",
    ),
    "probabilities with a sum above 1": (
        (("outcome_probabilities", 7, [0.5, 0.5, 0.5]),),
        "outcome_probabilities[7] sums to 1.5, expected 1 within 0.001",
    ),
}

#: Field of the header → impossible value.
ABSURD_HEADERS: Mapping[str, int] = {"checkpoint_version": 2**63, "start_bar": 2**63, "seed": -(2**63) - 1}

#: Field of a trade → impossible value.
ABSURD_TRADES: Mapping[str, float] = {
    "entry_bar": 2**63,
    "exit_bar": 2**63,
    "bars_held": 2**63,
    "entry_price": 1e308,
    "exit_price": 1e308,
    "pips": -1e308,
    "max_drawdown_pips": 1e308,
}


def with_changes(trajectory: Trajectory, changes: Sequence[Change]) -> dict[str, bytes]:
    """The entry of a trajectory with changed arrays and their correct hash."""
    columns: dict[str, npt.NDArray[np.generic]] = {name: getattr(trajectory, name).copy() for name in ARRAYS}
    for name, index, value in changes:
        columns[name][index] = value
    blob = b"".join(column.tobytes() for column in columns.values())
    header, _ = encode_trajectory(trajectory)
    return encode(header.model_copy(update={"arrays_sha256": hashlib.sha256(blob).hexdigest()}), blob)


def with_header(trajectory: Trajectory, name: str, value: int) -> dict[str, bytes]:
    """The entry of a trajectory with a changed field of the header."""
    header, blob = encode_trajectory(trajectory)
    return encode(header.model_copy(update={name: value}), blob)


def with_trade(trajectory: Trajectory, name: str, value: float) -> dict[str, bytes]:
    """The entry of a trajectory with two trades, of which the second has a changed field."""
    header, blob = encode_trajectory(trajectory)
    bar = trajectory.start_bar + 1
    trade = TradeRecord(**vars(Trade(bar, bar + 3, Side.LONG, 185.0, 185.1, 6.0, 0.0, 3)))
    trades = (trade, trade.model_copy(update={name: value}))
    return encode(header.model_copy(update={"trades": trades}), blob)


#: Fault → function that makes an entry with this fault from a trajectory.
ABSURD: Mapping[str, Callable[[Trajectory], dict[str, bytes]]] = {
    **{kind: partial(with_changes, changes=changes) for kind, (changes, _) in ABSURD_ARRAYS.items()},
    **{name: partial(with_header, name=name, value=value) for name, value in ABSURD_HEADERS.items()},
    **{
        f"a trade's {name}": partial(with_trade, name=name, value=value)
        for name, value in ABSURD_TRADES.items()
    },
}
