"""pydantic's validation errors as one short text."""

from typing import NamedTuple

from pydantic import ValidationError


class ValidationFault(NamedTuple):
    """The first fault that pydantic found."""

    where: str  # path of names and indices joined by dots; empty for the document itself
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


def first_fault(invalid: ValidationError, *, document: str = "") -> ValidationFault:
    """The first fault, without the rejected value, which may be huge or secret.

    Args:
        invalid: the error from pydantic.
        document: name to show for a fault of the document itself.
    """
    fault = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
    return ValidationFault(".".join(str(part) for part in fault["loc"]) or document, fault["msg"])
