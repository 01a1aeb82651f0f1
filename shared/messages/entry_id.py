"""Ids of stream entries."""

import re
from typing import NamedTuple, Self

_PATTERN = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")


class EntryId(NamedTuple):
    """A Redis stream entry id. Ids compare in stream order; their texts do not."""

    milliseconds: int
    sequence: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an id such as `1700000000000-0`.

        Raises:
            ValueError: the text is not an entry id.
        """
        match = _PATTERN.fullmatch(text)
        if match is None or max(int(match[1]), int(match[2])) >= 1 << 64:
            raise ValueError(
                f"{text[:64]!r} is not an entry id; expected two numbers such as 1700000000000-0"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.sequence}"
