"""OANDA's JSON: names in camel case, numbers and ids as strings.

Transactions are pydantic models and not dataclasses, because clients read the same JSON that the ledger
stores. The account is a fold over them (services/broker/exchange/account.py).
"""

import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel

from shared.adapters.oanda.records import format_time, parse_time

Json = dict[str, Any]

#: Smallest step of an amount of money.
MONEY_PLACES = Decimal("0.0001")

_NUMBER = re.compile(r"(?=.{1,40}\Z)-?[0-9]+(\.[0-9]+)?")

_CAPITALS = {"Id": "ID", "Ids": "IDs", "Pl": "PL"}


def wire_name(name: str) -> str:
    """OANDA's name of a field: realizedPL for `realized_pl`, tradeID for `trade_id`, id for `id`."""
    camel = to_camel(name)
    for ending, capitals in _CAPITALS.items():
        if camel.endswith(ending) and camel != ending.lower():
            return camel.removesuffix(ending) + capitals
    return camel


def money(amount: Decimal) -> Decimal:
    """An amount rounded to the account's four decimals."""
    return amount.quantize(MONEY_PLACES, ROUND_HALF_EVEN)


def _read_time(value: object) -> object:
    return parse_time(value) if isinstance(value, str) else value


#: A transaction id: an int inside, a numeric string on the wire.
Id = Annotated[int, PlainSerializer(str, return_type=str)]

#: Nanoseconds since 1970 UTC inside, RFC 3339 on the wire.
TimeNs = Annotated[int, BeforeValidator(_read_time), PlainSerializer(format_time, return_type=str)]


def _read_number(value: object) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return Decimal(value)
    raise ValueError('expected a number as a string of at most 40 characters, such as "188.123"')


#: An exact decimal. On the wire it is a string without an exponent, never a JSON number.
Number = Annotated[
    Decimal, BeforeValidator(_read_number), PlainSerializer(lambda value: f"{value:f}", return_type=str)
]


class WireModel(BaseModel):
    """Base of all models of OANDA's JSON."""

    model_config = ConfigDict(frozen=True, alias_generator=wire_name, populate_by_name=True, extra="forbid")

    def json_object(self) -> Json:
        """The JSON object. As at OANDA, fields without a value are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
