"""Requests and replies of the inference service over HTTP.

Service and client use the same models. Every number is finite. A float32 survives the round trip through a
JSON number unchanged.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.environment.action import NUM_ACTIONS
from shared.environment.outcome import NUM_OUTCOMES
from shared.environment.position import NUM_STATIC
from shared.features.kernels import NUM_FEATURES
from shared.features.window import FIRST_WINDOW_BAR, WINDOW_BARS

#: Fewest bars for which the window of the last bar is complete.
MIN_BARS = FIRST_WINDOW_BAR + 1
MAX_BARS = 1_000

#: Larger counts are rejected as damaged.
MAX_BARS_HELD = 10_000_000

#: Version columns in the audit tables have 32 bits.
MAX_VERSION = 2**31 - 1

#: Limit for pnl and drawdown of one position.
MAX_PIPS = 1e6

Pips = Annotated[float, Field(ge=-MAX_PIPS, le=MAX_PIPS)]
Feature = Annotated[float, Field(ge=-1.0, le=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
ActionName = Literal["HOLD", "BUY", "SELL", "CLOSE"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BarColumns(_Model):
    """Closed bars, oldest first; the last one is the bar to decide on."""

    time_s: Annotated[list[int], Field(min_length=MIN_BARS, max_length=MAX_BARS)]  # UTC at the bar's open
    close: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=MIN_BARS, max_length=MAX_BARS)]

    @model_validator(mode="after")
    def _equally_long(self) -> Self:
        if len(self.time_s) != len(self.close):
            raise ValueError(f"{len(self.time_s)} times and {len(self.close)} closes, expected equal numbers")
        return self


class PositionNumbers(_Model):
    """A position in pips, as at the last close."""

    side: Literal[-1, 0, 1]
    pnl_pips: Pips = 0.0  # net of spread
    bars_held: Annotated[int, Field(ge=0, le=MAX_BARS_HELD)] = 0
    peak_pips: Annotated[Pips, Field(ge=0)] = 0.0
    max_drawdown_pips: Annotated[Pips, Field(ge=0)] = 0.0
    accumulated_drawdown_pips: Annotated[float, Field(ge=0, le=MAX_PIPS * MAX_BARS_HELD)] = 0.0


class DecisionRequest(_Model):
    """A bar close and the position held at it.

    The market is given by either `features` or `bars`, the position by either `static` or `position`.
    """

    schema_version: Literal[1] = 1
    instrument: Annotated[str, Field(max_length=16)]
    bar_time_s: int | None = None  # opening time of the decided bar; returned in the reply
    features: (
        Annotated[
            list[
                Annotated[
                    list[Annotated[float, Field(ge=-1.0, le=1.0)]],
                    Field(min_length=NUM_FEATURES, max_length=NUM_FEATURES),
                ]
            ],
            Field(min_length=WINDOW_BARS, max_length=WINDOW_BARS),
        ]
        | None
    ) = None
    bars: BarColumns | None = None
    static: Annotated[list[Feature], Field(min_length=NUM_STATIC, max_length=NUM_STATIC)] | None = None
    position: PositionNumbers | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.features is None) == (self.bars is None):
            raise ValueError("expected either features or bars")
        if (self.static is None) == (self.position is None):
            raise ValueError("expected either static or position")
        if self.static is not None:
            _check_static(self.static)
        if self.bars is not None and self.bar_time_s not in (None, self.bars.time_s[-1]):
            raise ValueError(
                f"bar_time_s is {self.bar_time_s}, the last bar's time is {self.bars.time_s[-1]}"
            )
        return self


def _check_static(static: list[float]) -> None:
    if static[0] not in (-1.0, 0.0, 1.0):
        raise ValueError(f"static[0] is {static[0]}, expected the side: -1, 0 or 1")
    if static[0] == 0.0 and any(static):
        raise ValueError("static has other values than 0, expected all zero when the side is 0")


class DecisionReply(_Model):
    """The action for the next bar's open, with the search results."""

    schema_version: Literal[1] = 1
    instrument: str
    bar_time_s: int | None
    action: ActionName
    visit_policy: Annotated[list[Probability], Field(min_length=NUM_ACTIONS, max_length=NUM_ACTIONS)]
    policy: Annotated[list[Probability], Field(min_length=NUM_ACTIONS, max_length=NUM_ACTIONS)]
    value: float  # root value in pips
    q_values: Annotated[list[float | None], Field(min_length=NUM_ACTIONS, max_length=NUM_ACTIONS)]
    outcome_probabilities: Annotated[
        list[Probability], Field(min_length=NUM_OUTCOMES, max_length=NUM_OUTCOMES)
    ]
    version: Annotated[int, Field(ge=0, le=MAX_VERSION)]
    stage: str | None  # stage of the promoted version: unproven, paper or live
    latency_ms: Annotated[float, Field(ge=0)]  # from the parsed request to the reply
