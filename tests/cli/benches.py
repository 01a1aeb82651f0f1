"""Run the commands of `bench` and the studies in this process."""

import json
from typing import Any

from typer.testing import CliRunner

from cli.main import app


def bench(*arguments: str) -> str:
    return study("bench", *arguments)


def bench_document(*arguments: str) -> dict[str, Any]:
    return study_document("bench", *arguments)


def study(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def study_document(*arguments: str) -> dict[str, Any]:
    printed = json.loads(study(*arguments, "--json"))
    assert isinstance(printed, dict)
    return printed
