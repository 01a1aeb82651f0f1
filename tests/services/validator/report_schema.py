"""The JSON Schema of a validation report, made from its dataclasses.

`python -m tests.services.validator.report_schema` writes it to docs/schemas.
"""

import dataclasses
import json
import types
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from services.validator.report import SCHEMA_VERSION, ValidationReport

PATH = Path(__file__).parents[3] / "docs" / "schemas" / f"validation-report-{SCHEMA_VERSION}.json"

_PLAIN: dict[object, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    object: {},
    types.NoneType: {"type": "null"},
}


def report_schema() -> dict[str, Any]:
    """The schema as it is published."""
    definitions: dict[str, Any] = {}
    root = _schema(ValidationReport, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Validation report, schema {SCHEMA_VERSION}",
        **root,
        "$defs": definitions,
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(item, definitions) for item in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if origin is np.ndarray:  # one- or two-dimensional
        row = {"type": "array", "items": {"type": "number"}}
        return {"type": "array", "items": {"anyOf": [{"type": "number"}, row]}}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"enum": [member.value for member in kind]}
    assert dataclasses.is_dataclass(kind), kind
    assert isinstance(kind, type)
    if kind.__name__ not in definitions:
        hints = get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        definitions[kind.__name__] = {
            "type": "object",
            "description": kind.__doc__,
            "properties": {name: _schema(hints[name], definitions) for name in names},
            "required": names,
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{kind.__name__}"}


if __name__ == "__main__":
    PATH.write_text(json.dumps(report_schema(), indent=1) + "\n", encoding="utf-8")
