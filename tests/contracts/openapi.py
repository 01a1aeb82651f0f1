"""Checks JSON values against the schemas of an OpenAPI 3 description.

It supports only the keywords that the OANDA contract uses: references, types, required and unknown
properties, enums, patterns, bounds, `oneOf`, `allOf`, `not` and arrays.
A keyword that it does not know fails the test.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
_IGNORED_KEYWORDS = {
    "description",
    "example",
    "examples",
    "format",
    "title",
    "default",
    "x-line-schema",
    "deprecated",
}
_KNOWN_KEYWORDS = {
    "$ref",
    "type",
    "properties",
    "required",
    "additionalProperties",
    "minProperties",
    "items",
    "minItems",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "oneOf",
    "allOf",
    "discriminator",
    "not",
}


class Contract:
    """One OpenAPI description."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def operation(self, method: str, path: str) -> Schema:
        """The description of an operation, by method and path template."""
        found: Schema = self.document["paths"][path][method.lower()]
        return found

    def response_schema(self, method: str, path: str, status: int) -> Schema:
        """The schema of an operation's JSON response with this status."""
        response = self.resolve(self.operation(method, path)["responses"][str(status)])
        found: Schema = response["content"]["application/json"]["schema"]
        return found

    def line_schema(self, path: str) -> Schema:
        """The schema of each line of a streamed response."""
        response = self.operation("GET", path)["responses"]["200"]
        found: Schema = response.get("x-line-schema") or self.operation("GET", path)["x-line-schema"]
        return found

    def body_schema(self, method: str, path: str) -> Schema:
        """The schema of a request body."""
        found: Schema = self.operation(method, path)["requestBody"]["content"]["application/json"]["schema"]
        return found

    def resolve(self, schema: Schema) -> Schema:
        """The schema itself, after following its references."""
        while "$ref" in schema:
            target: Any = self.document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            schema = target
        return schema

    def violations(self, value: object, schema: Schema, where: str = "$") -> Iterator[str]:
        """Describe each way in which a value violates a schema; `where` is the path of the value."""
        schema = self.resolve(schema)
        unknown = set(schema) - _KNOWN_KEYWORDS - _IGNORED_KEYWORDS
        assert not unknown, f"unknown schema keywords {unknown} at {where}"
        wanted = schema.get("type")
        if wanted is not None and not _is_a(value, wanted):
            yield f"{where}: {value!r} is not of type {wanted}"
            return
        if "enum" in schema and value not in schema["enum"]:
            yield f"{where}: {value!r} is not one of {schema['enum']}"
        yield from self._composed(value, schema, where)
        if isinstance(value, str):
            yield from _string(value, schema, where)
        elif isinstance(value, dict):
            yield from self._object(value, schema, where)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.violations(item, schema.get("items", {}), f"{where}[{index}]")
        elif isinstance(value, int | float) and not (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
        ):
            yield f"{where}: {value} is below the minimum or above the maximum"

    def _composed(self, value: object, schema: Schema, where: str) -> Iterator[str]:
        for part in schema.get("allOf", ()):
            yield from self.violations(value, part, where)
        if "not" in schema and not list(self.violations(value, schema["not"], where)):
            yield f"{where}: {value!r} matches a forbidden schema"
        if "oneOf" in schema:
            failures = [list(self.violations(value, part, where)) for part in schema["oneOf"]]
            num_matches = sum(not failed for failed in failures)
            if num_matches != 1:
                yield f"{where}: matches {num_matches} schemas of oneOf, expected 1: {failures}"

    def _object(self, value: Mapping[str, object], schema: Schema, where: str) -> Iterator[str]:
        properties: Mapping[str, Schema] = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{where}: {name} is missing"
        if len(value) < schema.get("minProperties", 0):
            yield f"{where}: too few properties"
        for name, item in value.items():
            if name in properties:
                yield from self.violations(item, properties[name], f"{where}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{where}: {name} is an unknown property"


def _is_a(value: object, wanted: str) -> bool:
    if wanted in ("integer", "number") and isinstance(value, bool):
        return False
    return isinstance(value, _PYTHON_TYPES[wanted])


def _string(value: str, schema: Schema, where: str) -> Iterator[str]:
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where}: {value!r} does not match {schema['pattern']}"
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{where}: {value!r} is too short or too long"


def undescribed_fields(
    contract: Contract, value: object, schemas: Sequence[Schema], where: str = "$"
) -> Iterator[str]:
    """Paths of the fields that no schema describes. OANDA's API does not have such fields."""
    resolved = [contract.resolve(schema) for schema in schemas]
    if isinstance(value, list):
        items = [schema["items"] for schema in resolved if "items" in schema]
        for index, item in enumerate(value):
            yield from undescribed_fields(contract, item, items, f"{where}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            known = [
                schema["properties"][name] for schema in resolved if name in schema.get("properties", {})
            ]
            if known:
                yield from undescribed_fields(contract, item, known, f"{where}.{name}")
            elif any(schema.get("properties") for schema in resolved):
                yield f"{where}.{name}"
