"""Client of the inference service: a timely decision at a bar's close, or an InferenceError."""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from pydantic import BaseModel, ValidationError

from shared.environment.action import LEGAL, Action
from shared.errors import InferenceError
from shared.messages.inference import DecisionReply, DecisionRequest
from shared.messages.validation import first_fault
from shared.numeric import Float32

#: A later decision is useless.
DEADLINE_SECONDS = 0.1

#: An error text includes at most this many characters of the service's reason.
MAX_REASON = 300


@dataclass(frozen=True)
class Decision:
    """Decision of the promoted version for the next bar's open; tuples are in the order of the enums."""

    action: Action
    visit_policy: tuple[float, ...]
    policy: tuple[float, ...]
    value: float  # pips
    q_values: tuple[float | None, ...]  # pips; None where illegal
    outcome_probabilities: tuple[float, ...]
    version: int
    stage: str | None
    latency_ms: float  # of the complete call, measured by the client


class _Problem(BaseModel):
    """The part of a problem document (RFC 9457) that the client reads."""

    detail: str


class InferenceClient:
    """Asynchronous client; `async with` opens and closes its connection."""

    def __init__(
        self,
        url: str,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Create a client; it does not connect yet.

        Args:
            url: scheme, host and port of the service.
            deadline_seconds: limit of one complete call.
            transport: httpx transport for tests; None uses the network.
        """
        self._deadline_seconds = deadline_seconds
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Content-Type": "application/json"},
            timeout=None,  # noqa: S113  the deadline bounds the call
            trust_env=False,  # a service of this system, never behind a proxy
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def decide(self, instrument: str, bar_time_s: int, window: Float32, static: Float32) -> Decision:
        """Request one decision, without retries.

        Args:
            instrument: name such as GBP_JPY.
            bar_time_s: opening time of the bar that has just closed.
            window: `[32, 9]` temporal features; the last row is that of the bar.
            static: `[6]` static features of the position.
        Raises:
            InferenceError: the service did not answer in time, refused, or sent an unusable answer: not
                finite, for another bar or instrument, or with an action that the position does not allow.
        """
        request = DecisionRequest.model_construct(
            instrument=instrument, bar_time_s=bar_time_s, features=window.tolist(), static=static.tolist()
        )
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                answer = await self._http.post(
                    "/inference", content=request.model_dump_json(exclude_none=True)
                )
        except TimeoutError as late:
            raise InferenceError(
                f"no decision for bar {bar_time_s} within {self._deadline_seconds * 1e3:.0f} ms"
            ) from late
        except httpx.HTTPError as broken:
            raise InferenceError(
                f"inference at {self._http.base_url}: {type(broken).__name__} {broken}"
            ) from broken
        latency_ms = (loop.time() - started) * 1e3
        if answer.status_code != httpx.codes.OK:
            raise InferenceError(f"inference answered {answer.status_code}: {_detail(answer)}")
        return _checked(answer.content, instrument, bar_time_s, int(static[0]), latency_ms)


def _detail(answer: httpx.Response) -> str:
    """The detail of a problem document, or the beginning of any other body."""
    try:
        return _Problem.model_validate_json(answer.content).detail[:MAX_REASON]
    except ValidationError:
        return answer.text[:MAX_REASON]


def _checked(content: bytes, instrument: str, bar_time_s: int, side: int, latency_ms: float) -> Decision:
    try:
        reply = DecisionReply.model_validate_json(content)
    except ValidationError as invalid:
        raise InferenceError(f"inference's answer: {first_fault(invalid, document='body')}") from invalid
    if (reply.instrument, reply.bar_time_s) != (instrument, bar_time_s):
        raise InferenceError(
            f"inference decided on {reply.instrument} at {reply.bar_time_s}, "
            f"expected {instrument} at {bar_time_s}"
        )
    action = Action[reply.action]
    if not LEGAL[side + 1, action]:
        raise InferenceError(
            f"inference decided {reply.action}, which a position of side {side} does not allow"
        )
    return Decision(
        action,
        tuple(reply.visit_policy),
        tuple(reply.policy),
        reply.value,
        tuple(reply.q_values),
        tuple(reply.outcome_probabilities),
        reply.version,
        reply.stage,
        latency_ms,
    )
