"""Answered JSON objects as values of the declared types, or what came in their place."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any, Final, NamedTuple

import jmespath
import pyarrow as pa
from jmespath.exceptions import JMESPathError

from velocity.io.records import FIRST_MILLI, LAST_MILLI
from velocity.transforms.decimals import decimal_type, parsed
from velocity.transforms.fields import TYPES, arrow_type

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


class NotOfType(Exception):
    """An answered value is not of the declared type; ``args[0]`` says what came, never the value."""


class WrongAnswer(NamedTuple):
    """In place of an answer's values: in what it is not of the declared types."""

    error: str


_DOTTED: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@dataclass(frozen=True, slots=True)
class Added:
    """A column to add: where the answer has it, a JMESPath expression, and its type.

    ``type`` is one of ``velocity.transforms.fields.TYPES``, or ``decimal(PRECISION, SCALE)``; a
    timestamp must have an offset.

    >>> Added("address.city").value({"address": {"city": "Bandung"}})
    'Bandung'
    >>> Added("length(branches)", "int64").value({"branches": [1, 2]})
    2
    """

    path: str
    type: str = "string"

    def __post_init__(self) -> None:
        try:
            jmespath.compile(self.path)
        except JMESPathError as error:
            first = str(error).splitlines()[0]
            raise ValueError(
                f"path {self.path!r}: give a JMESPath expression such as address.city: {first}"
            ) from None
        arrow_type(self.type)

    @property
    def arrow(self) -> pa.DataType:
        return arrow_type(self.type)

    def value(self, answer: Mapping[str, Any]) -> Any:
        """Of an answer, as the type's Arrow array takes it; what is absent or null is None.

        Raises ``NotOfType``; for a dotted path also where one of its names is sought in what is no
        object, which JMESPath takes for null.
        """
        if _DOTTED.fullmatch(self.path):
            found: Any = answer
            for name in self.path.split("."):
                if found is None:
                    return None
                if not isinstance(found, dict):
                    raise NotOfType(f"{_name(found)} in place of the object with {name!r}")
                found = found.get(name)
        else:
            try:
                found = jmespath.compile(self.path).search(answer)
            except JMESPathError as error:
                raise NotOfType(f"what {type(error).__name__} says of") from None
        return None if found is None else self.converted(found)

    def converted(self, value: Any) -> Any:
        """A JSON value as the type has it. Raises ``NotOfType``.

        >>> Added("x", "int64").converted("7")
        Traceback (most recent call last):
        velocity.transforms.answers.NotOfType: a string
        """
        if decimal := decimal_type(self.type):
            return _decimal(value, decimal)
        return _CONVERTERS[self.type](value)


@dataclass(frozen=True)
class Columns:
    """What is kept of an answer (``velocity.io.lookup.Keep``): the values of the columns to add.

    >>> columns = Columns((("n", Added("a.b", "int64")),))
    >>> columns({"a": {"b": 7}}), columns({"a": None})
    ((7,), (None,))
    >>> columns({"a": {"b": "7"}}).error
    'field a.b of column n: declared int64, came a string'
    """

    add: tuple[tuple[str, Added], ...]

    def __call__(self, answer: Mapping[str, Any]) -> tuple[Any, ...] | WrongAnswer:
        values = []
        for column, what in self.add:
            try:
                values.append(what.value(answer))
            except NotOfType as came:
                return WrongAnswer(
                    f"field {what.path} of column {column}: declared {what.type}, came {came}"
                )
        return tuple(values)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise NotOfType(_name(value))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotOfType("a string with half a surrogate pair") from None
    return sys.intern(value)  # of a city a cache holds one, not one for each key


def _int64(value: Any) -> int:
    if type(value) is not int:
        raise NotOfType(_name(value))
    if not -(2**63) <= value < 2**63:
        raise NotOfType("an integer of more than 64 bits")
    return value


def _double(value: Any) -> float:
    if type(value) not in (int, float):
        raise NotOfType(_name(value))
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not isfinite(number):
        raise NotOfType("a number beyond a double's range")
    return number


def _decimal(value: Any, type_: pa.Decimal128Type) -> Decimal:
    """Of text or a number. What has a fraction was read as a double, which shows 15 digits as they
    were written, and may show another 16th."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise NotOfType(_name(value))
    text = value if isinstance(value, str) else repr(value)
    if isinstance(value, float) and sum(c.isdigit() for c in text.split("e")[0].lstrip("-0.")) > 15:
        raise NotOfType("a number of more than 15 digits, which is exact as a string only")
    found = parsed(text, type_)
    if found is None:
        raise NotOfType(f"{_name(value)} that it does not hold")
    return found


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise NotOfType(_name(value))
    return value


def _timestamp(value: Any) -> int:
    """Epoch milliseconds, rounded down, of a time of RFC 3339 (leap seconds excepted)."""
    if not isinstance(value, str):
        raise NotOfType(_name(value))
    try:
        if _RFC3339.fullmatch(value):
            time = datetime.fromisoformat(value.upper())
            return (time - _EPOCH) // timedelta(milliseconds=1)
    except ValueError:
        pass  # a 31st of February: reported as any other text that is no time
    raise NotOfType("a string that is no RFC 3339 time")


def _timestamp_ms(value: Any) -> int:
    if type(value) is not int:
        raise NotOfType(_name(value))
    if not FIRST_MILLI <= value <= LAST_MILLI:
        raise NotOfType("a number of milliseconds not within the years 1 to 9999")
    return value


_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "string": _string,
    "int64": _int64,
    "double": _double,
    "bool": _bool,
    "timestamp": _timestamp,
    "timestamp_ms": _timestamp_ms,
}
assert _CONVERTERS.keys() == TYPES.keys(), "each type of a field is one of an answer too"


def _name(value: Any) -> str:
    """What JSON calls the value's type."""
    names = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")
