"""Log lines are JSON documents without secrets."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from shared.runtime.logs import configure_logs, redact
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def restored() -> object:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.basicConfig(force=True)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_json_with_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("trainer", "trainer-1")
    structlog.get_logger().info("checkpoint_published", version=3)
    structlog.get_logger().debug("not_shown")
    (line,) = logged(capsys)
    assert line["event"] == "checkpoint_published"
    assert (line["service"], line["instance"], line["version"]) == ("trainer", "trainer-1", 3)
    assert line["level"] == "info"


def test_warnings_of_standard_library_loggers_have_the_same_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("api", "api-1")
    logging.getLogger("redis").warning("lost: redis://:hunter2@host/0")
    logging.getLogger("redis").info("not shown")
    (line,) = logged(capsys)
    assert line["event"] == "lost: redis://:***@host/0"
    assert line["service"] == "api"


def test_secrets_are_hidden_in_fields_urls_headers_and_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("trader", "trader-1")
    structlog.get_logger().warning(
        "refused",
        oanda_token="hunter2",
        url="redis://:hunter2@127.0.0.1:6379/0",
        headers={"Authorization": "Bearer hunter2", "X-Api-Key": "hunter2"},
        tried=["https://user:hunter2@host", ("Bearer hunter2",)],
    )
    failure = RuntimeError("redis://:hunter2@host/0 refused, redis://:x@hunter2@host/0 too")
    structlog.get_logger().error("crashed", exc_info=failure, error=failure)
    text = capsys.readouterr().err
    assert "hunter2" not in text
    assert text.count("***") >= 7


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_redaction_keeps_the_shape_of_a_value(value: object) -> None:
    assert type(redact(value)) is type(value)
    if isinstance(value, dict | list):
        hidden = redact(value)
        assert isinstance(hidden, dict | list)
        assert len(hidden) == len(value)


def test_text_without_secrets_is_unchanged() -> None:
    for text in ("a plain text", "http://host:80/path", "a@b.c", "10:30@noon"):
        assert redact(text) == text


def test_lines_that_cannot_be_written_are_lost_and_the_process_continues(tmp_path: Path) -> None:
    program = """
import resource, structlog, sys
from shared.runtime.logs import configure_logs
configure_logs("trader", "trader-1")
log = structlog.get_logger()
log.info("before")
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
log.info("lost")
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
log.info("after")
print("continued")
"""
    with (tmp_path / "log").open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=ROOT,
            check=True,
        )
    assert done.stdout == "continued\n"
    written = (tmp_path / "log").read_text()
    assert '"before"' in written
    assert '"after"' in written
