"""Why a single text is not the JSON object that is declared."""

import json
from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.records import Cause
from velocity.transforms.decimals import decimal_type, parsed
from velocity.transforms.fields import Field

MISSING: Final = "required, but missing or null"
"""What is said of a field that is required."""

_TOO_LONG: Final = 1 << 400
"""In place of a whole number that no type holds."""


class _Fraction(float):
    """A number with a point or an exponent, and how it is written."""

    def __init__(self, text: str) -> None:
        self.text = text


def diagnose(text: bytes) -> tuple[Cause, str] | None:
    """What is wrong with a text (UTF-8) as JSON; nothing if it is one object.

    >>> diagnose(b'{"n": 1}{"n": 2}')
    (<Cause.SEVERAL_DOCUMENTS: 'several_documents'>, 'a second document at character 8')
    """
    try:
        document = _loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _begins_a_document(error.doc[error.pos :]):
            return Cause.SEVERAL_DOCUMENTS, f"a second document at character {error.pos}"
        return Cause.INVALID_JSON, f"{error.msg} at character {error.pos}"
    except RecursionError:
        return Cause.INVALID_JSON, "nested too deeply"
    except ValueError as error:
        return Cause.INVALID_JSON, str(error)
    if not isinstance(document, dict):
        return Cause.NOT_AN_OBJECT, f"expected an object, found {_json_name(document)}"
    return None


def diagnose_fields(
    value: bytes, fields: Mapping[str, Field], event_time: str
) -> tuple[Cause, str]:
    """Why Arrow's reader refused a text: as JSON, or in the first field that is to blame.

    ``event_time`` names the one among ``fields`` that is required in any case.

    >>> fields = {"n": Field("int64"), "at": Field("timestamp")}
    >>> diagnose_fields(b'{"n": "7"}', fields, "at")[1]
    'field n: expected int64, found a string'
    """
    if failure := diagnose(value):
        return failure
    document = _loads(value)
    if not document:  # Arrow was given {"_row":1,}
        first = next(n for n, f in fields.items() if f.required or n == event_time)
        return Cause.MISSING_FIELD, f"field {first}: {MISSING}"
    for name, field in fields.items():
        found = document.get(name)
        if found is not None and not _fits(found, field.type):
            return _wrong_type(name, field.type, found)
    for name in sorted(_repeated(value) & fields.keys()):
        return Cause.INVALID_JSON, f"field {name}: given twice"
    return Cause.INVALID_JSON, "not accepted by the JSON reader"


def diagnose_decimals(value: bytes, fields: Mapping[str, Field]) -> tuple[Cause, str] | None:
    """Why a text is not a JSON object, or what is wrong with those of its fields that are decimals.

    >>> diagnose_decimals(b'{"price": "1e-99"}', {"price": Field("decimal(5, 2)")})
    (<Cause.WRONG_TYPE: 'wrong_type'>, 'field price: expected decimal(5, 2), found a string that is none')
    """
    decimals = {name: field.type for name, field in fields.items() if decimal_type(field.type)}
    if not decimals:
        return None
    if failure := diagnose(value):
        return failure
    pairs: list[tuple[str, object]] = _loads(value, object_pairs_hook=list)  # a name may come twice
    for name, found in pairs:
        if name in decimals and found is not None and not _fits(found, decimals[name]):
            return _wrong_type(name, decimals[name], found)
    return None


def _wrong_type(name: str, type_: str, found: object) -> tuple[Cause, str]:
    came = _json_name(found)
    if decimal_type(type_) and not isinstance(found, bool | list | dict):
        came += " that is none" if isinstance(found, str) else " that it does not hold"
    return Cause.WRONG_TYPE, f"field {name}: expected {type_}, found {came}"


def _loads(text: bytes, **hooks: Any) -> Any:
    """Python's JSON of UTF-8 text; bytes it would also take for UTF-16."""
    return json.loads(text.decode(), parse_int=_int, parse_float=_Fraction, **hooks)


def _int(digits: str) -> int:
    """Python refuses to read 4,300 digits, which is no fault of the JSON."""
    return int(digits) if len(digits) <= 40 else _TOO_LONG


def _begins_a_document(text: str) -> bool:
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _json_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "a whole number" if -(2**63) <= value < 2**63 else "a number beyond 64 bits"
        case float():
            return "a fractional number" if isfinite(value) else "a number beyond a double's range"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


def _fits(value: object, type_: str) -> bool:
    """Whether a JSON value can be read as a type."""
    if decimal := decimal_type(type_):
        if isinstance(value, bool) or not isinstance(value, str | int | _Fraction):
            return False
        text = value.text if isinstance(value, _Fraction) else str(value)
        return parsed(text, decimal) is not None
    match type_, value:
        case "bool", bool():
            return True
        case _, bool():
            return False
        case (("int64" | "timestamp_ms"), int()):
            return -(2**63) <= value < 2**63
        case "double", int() | float():
            return isfinite(value)
        case "string", str():
            return True
        case "timestamp", str():
            return _is_time(value, "UTC") or _is_time(value, None)
    return False


def _is_time(value: str, zone: str | None) -> bool:
    """With an offset if there is a zone, else without: a cast takes the one or the other."""
    try:
        pc.cast(pa.scalar(value), pa.timestamp("ns", tz=zone))
    except pa.ArrowInvalid:
        return False
    return True


def _repeated(text: bytes) -> set[str]:
    """The names that any object of the text gives more than once."""
    repeated: set[str] = set()

    def note(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(name for name, _ in pairs)
        repeated.update(name for name, count in counts.items() if count > 1)
        return dict(pairs)

    _loads(text, object_pairs_hook=note)
    return repeated
