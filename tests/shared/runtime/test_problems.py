"""Errors of an application become problem documents: 422 names the field, 500 hides the error's text."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from shared.runtime.problems import MEDIA_TYPE, PROBLEM_RESPONSES, Problem, install_problem_handlers


class Numbers(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")

    values: list[float]


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI(responses=PROBLEM_RESPONSES)
    install_problem_handlers(app, max_body_bytes=1_000)

    @app.post("/sum")
    async def add(numbers: Numbers) -> float:
        return sum(numbers.values)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("canary")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def problem(answer: httpx.Response, status: int) -> Problem:
    assert answer.status_code == status
    assert answer.headers["content-type"] == MEDIA_TYPE
    document = Problem.model_validate_json(answer.content)
    assert document.status == status
    return document


async def post(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    return await client.post("/sum", content=body, headers={"Content-Type": "application/json"})


async def test_a_valid_request_is_answered(client: httpx.AsyncClient) -> None:
    assert (await post(client, b'{"values": [1, 2.5]}')).json() == 3.5


@pytest.mark.parametrize("number", [b"NaN", b"1e400", b"-Infinity", b'"nan"'])
async def test_the_response_to_a_number_that_is_not_finite_is_422_and_names_the_field(
    client: httpx.AsyncClient, number: bytes
) -> None:
    document = problem(await post(client, b'{"values": [1, ' + number + b"]}"), 422)
    assert document.errors[0].where == "body.values.1"
    assert "finite" in document.errors[0].problem


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 400, b'{"values": [' + b"9" * 900 + b"]}"])
async def test_an_invalid_body_gets_400_or_422(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await post(client, body)
    problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)


async def test_a_field_name_that_is_not_valid_unicode_gets_422(client: httpx.AsyncClient) -> None:
    problem(await post(client, b'{"values": [], "\\ud800": 1}'), 422)


async def test_a_body_above_the_limit_gets_413_declared_or_not(client: httpx.AsyncClient) -> None:
    problem(await post(client, b" " * 1_001), 413)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    problem(await client.post("/sum", content=chunks()), 413)


async def test_unknown_paths_and_methods_get_problem_documents(client: httpx.AsyncClient) -> None:
    problem(await client.get("/nothing"), 404)
    answer = await client.get("/sum")
    problem(answer, 405)
    assert answer.headers["allow"] == "POST"


async def test_an_unexpected_error_gets_500_without_its_text(client: httpx.AsyncClient) -> None:
    answer = await client.get("/broken")
    problem(answer, 500)
    assert "canary" not in answer.text
