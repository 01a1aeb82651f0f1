"""The text of a validation error names the field and omits the rejected value."""

import pytest
from pydantic import BaseModel, ValidationError

from shared.messages.validation import first_fault


class _Inner(BaseModel):
    counts: list[int]


class _Outer(BaseModel):
    inner: _Inner
    name: str


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (
            '{"inner": {"counts": [1, "secret"]}, "name": "a"}',
            "inner.counts.1: Input should be",
        ),
        ('{"inner": {"counts": []}}', "name: Field required"),
        ('{"inner": ', "body: Invalid JSON"),
    ],
)
def test_the_first_fault_names_the_field_and_omits_the_value(document: str, text: str) -> None:
    with pytest.raises(ValidationError) as raised:
        _Outer.model_validate_json(document)
    fault = str(first_fault(raised.value, document="body"))
    assert fault.startswith(text)
    assert "secret" not in fault


def test_a_fault_of_an_unnamed_document_has_no_location() -> None:
    with pytest.raises(ValidationError) as raised:
        _Outer.model_validate_json("[]")
    assert first_fault(raised.value).where == ""
    assert str(first_fault(raised.value)).startswith("Input should be an object")
