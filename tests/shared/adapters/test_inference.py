"""The client of the inference service returns a decision in time or raises an error with the reason."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.adapters.inference import InferenceClient
from shared.environment.action import LEGAL, Action
from shared.errors import InferenceError
from shared.messages.inference import DecisionReply, DecisionRequest
from shared.numeric import Float32

WINDOW: Float32 = np.linspace(-1, 1, 32 * 9, dtype=np.float32).reshape(32, 9)
FLAT: Float32 = np.zeros(6, np.float32)
GOOD: dict[str, Any] = {
    "schema_version": 1,
    "instrument": "GBP_JPY",
    "bar_time_s": 60,
    "action": "BUY",
    "visit_policy": [0.2, 0.8, 0.0, 0.0],
    "policy": [0.25, 0.75, 0.0, 0.0],
    "value": 1.25,
    "q_values": [1.0, 2.0, -1.0, None],
    "outcome_probabilities": [0.25, 0.5, 0.25],
    "version": 4,
    "stage": "paper",
    "latency_ms": 3.0,
}

Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler, **options: float) -> InferenceClient:
    return InferenceClient("http://inference", transport=httpx.MockTransport(handler), **options)


def answering(**changes: object) -> Handler:
    text = json.dumps({**GOOD, **changes})
    return lambda request: httpx.Response(200, text=text)


async def test_a_good_answer_is_a_typed_decision() -> None:
    asked: list[DecisionRequest] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(DecisionRequest.model_validate_json(request.content))
        return httpx.Response(200, json=GOOD)

    async with client_of(handler) as client:
        decision = await client.decide("GBP_JPY", 60, WINDOW, FLAT)
    assert decision.action is Action.BUY
    assert decision.q_values == (1.0, 2.0, -1.0, None)
    assert (decision.version, decision.stage, decision.value) == (4, "paper", 1.25)
    assert np.array_equal(np.array(asked[0].features, np.float32), WINDOW), "the features arrive bit for bit"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bar_time_s": 0}, "at 0, expected GBP_JPY at 60"),
        ({"instrument": "EUR_USD"}, "decided on EUR_USD"),
        ({"action": "CLOSE"}, "does not allow"),
        ({"action": "LEVER"}, "action"),
        ({"value": float("nan")}, "value"),
        ({"q_values": [float("inf")] * 4}, "q_values"),
        ({"visit_policy": [1.0]}, "visit_policy"),
        ({"policy": [2.0, 0.0, 0.0, 0.0]}, "policy"),
        ({"schema_version": 2}, "schema_version"),
        ({"version": -1}, "version"),
        ({"extra": 1}, "extra"),
    ],
)
async def test_an_unusable_answer_is_an_error(changes: dict[str, object], says: str) -> None:
    async with client_of(answering(**changes)) as client:
        with pytest.raises(InferenceError, match=says):
            await client.decide("GBP_JPY", 60, WINDOW, FLAT)


@pytest.mark.parametrize("side", [-1, 0, 1])
@pytest.mark.parametrize("action", list(Action))
async def test_only_legal_actions_are_returned(side: int, action: Action) -> None:
    static = np.array([side, 0, 0, 0, 0, 0], np.float32)
    async with client_of(answering(action=action.name)) as client:
        if LEGAL[side + 1, action]:
            assert (await client.decide("GBP_JPY", 60, WINDOW, static)).action is action
        else:
            with pytest.raises(InferenceError, match="does not allow"):
                await client.decide("GBP_JPY", 60, WINDOW, static)


@pytest.mark.parametrize(
    "body",
    ["no version is promoted yet", '{"title": "x", "status": 503, "detail": "no version is promoted yet"}'],
)
async def test_a_refusal_is_an_error_with_its_text(body: str) -> None:
    async with client_of(lambda request: httpx.Response(503, text=body)) as client:
        with pytest.raises(InferenceError, match=r"503: no version is promoted yet$"):
            await client.decide("GBP_JPY", 60, WINDOW, FLAT)


async def test_an_unreachable_service_is_an_error() -> None:
    async with InferenceClient("http://127.0.0.1:1") as client:
        with pytest.raises(InferenceError, match="ConnectError"):
            await client.decide("GBP_JPY", 60, WINDOW, FLAT)


@given(content=st.binary(max_size=300))
async def test_any_invalid_answer_is_an_inference_error(content: bytes) -> None:
    async with client_of(lambda request: httpx.Response(200, content=content)) as client:
        with pytest.raises(InferenceError):
            await client.decide("GBP_JPY", 60, WINDOW, FLAT)


def test_parsing_a_reply_undoes_printing_it() -> None:
    reply = DecisionReply.model_validate_json(json.dumps(GOOD))
    assert DecisionReply.model_validate_json(reply.model_dump_json()) == reply
