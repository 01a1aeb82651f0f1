"""Runs commands of `bench` in this process."""

import json
from typing import Any

from typer.testing import CliRunner

from cli.bench import app


def bench(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def document(*arguments: str) -> dict[str, Any]:
    told = json.loads(bench(*arguments, "--json"))
    assert isinstance(told, dict)
    return told
