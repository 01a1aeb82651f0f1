"""Errors are problem documents, never a 5xx; no file outside the stores is read, and no secret leaks."""

import asyncio
import json
import string
from collections.abc import AsyncIterator
from itertools import product
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.api.routes import validations
from shared.adapters.streams.bus import Bus
from shared.adapters.versions.manifest import Pointer
from shared.messages.schemas import AlertRaised, DeadLettered
from shared.messages.streams import ALERTS, DEAD
from tests.services.api.conftest import API_KEY, KEY, System, write_report
from tests.shared.adapters.versions.checkpoint_versions import folder
from tests.waiting import PATIENCE_SECONDS

PROBLEM = "application/problem+json"

VERSIONS = [
    "..",
    "../..",
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "....//",
    ".",
    "%00",
    "-1",
    "1.5",
    "1e3",
    "NaN",
    "inf",
    "0x10",
    "1_000",
    "9" * 30,
    "9" * 5000,
    "1;rm",
    "v000001",
    "latest",
    "%ff%fe",
    "\u0661",
    "' or 1=1",
    "~root",
    "C:\\boot.ini",
]
VERSION_PATHS = [
    "/checkpoints/{}",
    "/checkpoints/{}/weights",
    "/validations/{}",
    "/validations/{}/picture",
    "/validations/{}/page",
]
QUERIES = [
    "limit=0",
    "limit=-1",
    "limit=501",
    "limit=1e9",
    "limit=" + "9" * 5000,
    "limit=NaN",
    "limit=%00",
    "before=-1",
    "before=x",
    "before=99999999999999999999-0",
    "before=1-99999999999999999999",
    "before=%2b",
    "before=%D9%A1-0",  # a digit, but not one that Redis accepts
    "before=(1-0",
    "before=" + "1" * 5000,
]
LISTS = ["/checkpoints", "/validations", "/trades", "/decisions", "/alerts", "/dead"]


def refused(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, (answer.request.url, answer.status_code, answer.text)
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["title"]
    assert problem["detail"]


async def test_no_path_in_place_of_a_version_reaches_the_file_system(system: System, tmp_path: Path) -> None:
    system.validation_root.mkdir(parents=True)
    (tmp_path / "secret.json").write_text('{"content": "canary"}')
    (system.validation_root / "latest.json").symlink_to(tmp_path / "secret.json")
    for pattern in VERSION_PATHS:
        for version in [*VERSIONS, "../secret", "..%2fsecret", "%2e%2e%2fsecret"]:
            # An HTTP client would normalise the path, so send it unchanged.
            target = pattern.format(quote(version, safe="%./\\"))
            head, body = await raw(system, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert head.split()[1] in (b"404", b"422"), target
            assert PROBLEM.encode() in head
            assert b"canary" not in body


async def test_no_link_in_a_store_or_among_reports_is_followed(system: System, tmp_path: Path) -> None:
    """Each link points to a valid version, weights file or report outside the store."""
    await system.publish(1)
    await system.publish(2)
    outside = tmp_path / "outside"
    outside.mkdir()
    reports = system.validation_root
    reports.mkdir(parents=True)
    write_report(outside, 1, "paper", "live", reasons=("canary",))
    for name in ("1.html", "1.png"):
        (outside / name).write_text("canary")
    for name in ("1.json", "1.html", "1.png"):
        (reports / name).symlink_to(outside / name)
    weights = folder(system.store, 1) / "weights.safetensors"
    weights.rename(outside / "weights.safetensors")
    weights.symlink_to(outside / "weights.safetensors")
    folder(system.store, 2).rename(outside / "v000002")
    folder(system.store, 2).symlink_to(outside / "v000002")
    for path, status in (
        ("/validations/1", 404),
        ("/validations/1/page", 404),
        ("/validations/1/picture", 404),
        ("/checkpoints/1/weights", 409),
        ("/checkpoints/2/weights", 404),
    ):
        answer = await system.client.get(path)
        assert answer.status_code == status, (path, answer.text)
        refused(answer)
        assert "canary" not in answer.text
    for version in (1, 2):
        refused(await system.client.post(f"/checkpoints/{version}/promote", headers=KEY))
    assert system.store.pointer(Pointer.PROMOTED) is None
    for document in ("/checkpoints", "/checkpoints/1", "/checkpoints/2"):
        answer = await system.client.get(document)
        assert answer.status_code == 200
        assert "canary" not in answer.text


async def test_reports_pages_and_pictures_are_limited_in_size(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(system.validation_root, 1, "paper")
    (system.validation_root / "1.html").write_text("<p>one")
    (system.validation_root / "2.html").mkdir()
    assert (await system.client.get("/validations/1/page")).status_code == 200
    assert (await system.client.get("/validations/2/page")).status_code == 404
    monkeypatch.setattr(validations, "MAX_REPORT_BYTES", 5)
    for path in ("/validations/1", "/validations/1/page"):
        answer = await system.client.get(path)
        assert answer.status_code == 409
        assert "bytes, expected at most 5" in answer.json()["detail"]


async def test_page_parameters_out_of_range_are_refused(system: System) -> None:
    for path in LISTS:
        for query in QUERIES:
            refused(await system.client.get(f"{path}?{query}"))
    for path in ("/trades", "/decisions", "/alerts", "/dead"):
        refused(await system.client.get(f"{path}?before=0-0"))


BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"NaN",
    b'"paper"',
    b'{"stage": NaN}',
    b'{"stage": 1e400}',
    b'{"stage": "LIVE"}',
    b'{"stage": "paper", "more": 1}',
    b'{"stage": "paper", "\\ud800": 1}',
    b'{"reason": NaN}',
    b'{"reason": 1e400}',
    b'{"reason": "\\ud800"}',
    b'{"reason": ["a"]}',
    b'{"\xff": 1}',
    b'{"reason": "' + b"a" * 2_000 + b'"}',
    b"[" * 5_000,
    b'{"reason": ' + b"9" * 5_000 + b"}",
    b"a=1&b=2",
]


@pytest.mark.parametrize("path", ["/checkpoints/1/promote", "/trader/kill"])
async def test_no_body_causes_a_server_error(system: System, path: str) -> None:
    types = ("application/json", "text/plain", "application/x-www-form-urlencoded")
    for body, content_type in product(BODIES, types):
        answer = await system.client.post(path, headers={**KEY, "Content-Type": content_type}, content=body)
        if not (answer.status_code == 200 and body in (b"", b"null")):
            refused(answer)


async def test_an_error_names_a_nan_in_a_body_without_repeating_it(system: System) -> None:
    for number in (b"NaN", b"1e400", b"-Infinity"):
        body = b'{"reason": ' + number + b"}"
        headers = {**KEY, "Content-Type": "application/json"}
        answer = await system.client.post("/trader/kill", headers=headers, content=body)
        assert answer.status_code == 422
        problem = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} in the answer"))
        assert problem["errors"][0]["where"] == "body.reason"


async def test_a_large_body_is_refused_before_it_is_read(system: System) -> None:
    refused_at_once = await system.client.post("/trader/kill", headers=KEY, content=b"a" * 100_000)
    assert refused_at_once.status_code == 413
    refused(refused_at_once)
    request = (
        b"POST /trader/kill HTTP/1.1\r\nHost: localhost\r\nX-API-Key: " + API_KEY.encode() + b"\r\n"
        b"Content-Length: 100000000000\r\n\r\n"
    )
    assert b" 413 " in (await raw(system, request))[0]


async def test_a_body_without_an_end_is_cut_off(system: System) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 65_536
            yield b"a" * 65_536

    try:
        answer = await system.client.post("/trader/kill", headers=KEY, content=endless())
    except (httpx.WriteError, httpx.ReadError):
        assert sent < 50_000_000  # the server closed the connection before the body ended
    else:
        assert answer.status_code == 413
        refused(answer)
    assert (await system.client.get("/healthz")).status_code == 200


async def test_another_method_gives_405(system: System) -> None:
    paths = ("/status", "/checkpoints", "/metrics", "/", "/events", "/checkpoints/1/weights")
    for method, path in product(("PUT", "DELETE", "PATCH", "POST", "OPTIONS", "TRACE"), paths):
        answer = await system.client.request(method, path, headers=KEY)
        assert answer.status_code == 405
        refused(answer)
        assert "GET" in answer.headers["allow"]


async def test_an_unknown_path_gives_404(system: System) -> None:
    for path in UNKNOWN_PATHS:
        head, _ = await raw(system, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert head.split()[1] == b"404", path
        assert PROBLEM.encode() in head


UNKNOWN_PATHS = [
    "/nothing",
    "/assets/",
    "/assets/..%2fapp.py",
    "/assets/../app.py",
    "/assets/uPlot.LICENSE",
    "/status/",
    "//",
    "/docs/x",
]
TEXT = st.text(st.characters(codec="utf-8") | st.sampled_from("\x00/\\.%&;=\ud7ff\uffff"), max_size=40)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([*VERSION_PATHS, *LISTS, "/events/{}", "/assets/{}", "/{}"]),
    part=TEXT,
    names=st.dictionaries(st.sampled_from(["limit", "before", "version", "x"]), TEXT, max_size=3),
    body=st.binary(max_size=64),
    post=st.booleans(),
    header=st.text(string.ascii_letters + string.digits + " ,-:;", max_size=30),
)
async def test_no_random_request_causes_a_server_error(
    system: System, path: str, part: str, names: dict[str, str], body: bytes, post: bool, header: str
) -> None:
    target = (
        path.format(quote(part, safe=""))
        + "?"
        + "&".join(f"{n}={quote(v, safe='')}" for n, v in names.items())
    )
    url = httpx.URL(str(system.client.base_url)).copy_with(raw_path=target.encode())
    headers = {"X-API-Key": header, "Accept": header, "Range": header, "If-None-Match": header}
    answer = await system.client.request("POST" if post else "GET", url, content=body, headers=headers)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        refused(answer)


async def test_every_answer_has_the_security_headers(system: System) -> None:
    for path in ("/", "/docs", "/status", "/nothing", "/checkpoints/x", "/assets/app.js", "/openapi.json"):
        headers = (await system.client.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


async def test_every_documented_route_answers_and_declares_its_errors(system: System) -> None:
    document = (await system.client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert PROBLEM in operation["responses"]["4XX"]["content"], (method, path)
            assert "422" not in operation["responses"], (method, path)
            if path != "/events":
                answer = await system.client.request(method.upper(), path.replace("{version}", "1"))
                assert answer.status_code < 500, (method, path)
                if method == "post":
                    assert answer.status_code == 401, path


async def test_no_secret_is_in_any_answer(system: System, bus: Bus, redis_server: object) -> None:
    password = getattr(redis_server, "password")  # noqa: B009
    await bus.append(ALERTS, AlertRaised(source="t", name="n"))
    await bus.append(DEAD, DeadLettered(stream="s", entry_id="1-0", reason="r"))
    paths = ["/", "/docs", "/openapi.json", "/status", "/metrics", *LISTS, "/positions", "/checkpoints/1"]
    answers = [await system.client.get(path, headers=KEY) for path in paths]
    answers.append(await system.client.post("/trader/kill", headers=KEY))
    answers.append(await system.client.post("/trader/kill", headers=KEY, content=b"{"))
    for answer in answers:
        sent = answer.text + str(answer.headers)
        assert API_KEY not in sent
        assert password not in sent


async def raw(system: System, request: bytes) -> tuple[bytes, bytes]:
    """Send bytes, and return the head and the body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
    writer.write(request)
    await writer.drain()
    async with asyncio.timeout(PATIENCE_SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length.split(b":")[1]))
    writer.close()
    await writer.wait_closed()
    return head, body
