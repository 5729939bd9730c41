"""Answered JSON values as values of the declared types, or what came in their place."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final

from velocity.transforms.fields import FIRST_MILLI, LAST_MILLI, TYPES

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


class NotOfType(Exception):
    """An answered value is not of the declared type; ``args[0]`` says what came, never the value."""


def values_at(path: str, type_: str, objects: Iterable[Mapping[str, Any] | None]) -> Iterator[Any]:
    """Of each object the field at a dotted path, as the type's Arrow array takes it.

    ``type_`` is one of ``TYPES``; a ``timestamp`` must have an offset. What is absent or null, of
    no object too, is None; what is not of the type is the ``NotOfType`` itself, not raised.

    >>> list(values_at("a.b", "int64", [{"a": {"b": 7}}, {"a": None}, None, {"a": {"b": "7"}}]))
    [7, None, None, NotOfType('a string')]
    """
    convert = _CONVERTERS[type_]
    names = path.split(".")
    for value in objects:
        try:
            field: Any = value
            for name in names:
                if field is None:
                    break
                if not isinstance(field, dict):
                    raise NotOfType(f"{_name(field)} in place of the object with {name!r}")
                field = field.get(name)
            yield None if field is None else convert(field)
        except NotOfType as error:
            yield error


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise NotOfType(_name(value))
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotOfType("a string with half a surrogate pair") from None
    return value


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
