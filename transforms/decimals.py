"""Decimals: numbers of so many digits after the point, such as money, in which nothing is rounded.

A column of them is Arrow's ``decimal128``; its whole numbers are the values in units of the last
digit. Documents, keys and hashes hold a decimal as text, for most readers of JSON make doubles of
numbers.
"""

import re
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MOST: Final = 38
"""Digits that 128 bits hold."""
NO_DECIMAL: Final = (
    "a decimal has 1 to 38 digits, and no more of them after the point: "
    '"decimal(18, 2)", with quotes where braces are around'
)
"""What is wrong with a type that is none."""
_TYPE: Final = re.compile(r"decimal\(\s*(\d{1,2})\s*,\s*(\d{1,2})\s*\)")
_WRITTEN: Final = re.compile(r"[+-]?(?:(\d+)(?:\.(\d*))?|\.(\d+))(?:[eE]([+-]?\d{1,4}))?", re.ASCII)


def decimal_type(text: str) -> pa.Decimal128Type | None:
    """The column type of ``decimal(PRECISION, SCALE)``; None if the text is none.

    >>> decimal_type("decimal(18, 2)"), decimal_type("decimal(2, 3)"), decimal_type("double")
    (Decimal128Type(decimal128(18, 2)), None, None)
    """
    found = _TYPE.fullmatch(text)
    if found is None:
        return None
    precision, scale = int(found[1]), int(found[2])
    fits = 1 <= precision <= MOST and scale <= precision
    return pa.decimal128(precision, scale) if fits else None


def parsed(text: str, type_: pa.Decimal128Type) -> Decimal | None:
    """A decimal as JSON has it, in a number or a string; None for what the type does not hold.

    It is written with up to 38 digits and an exponent of -38 to 38, and nothing of it is rounded.

    >>> money = pa.decimal128(5, 2)
    >>> parsed("12.3", money), parsed("123e-1", money), parsed("12.345", money), parsed("1234", money)
    (Decimal('12.30'), Decimal('12.30'), None, None)
    """
    found = _WRITTEN.fullmatch(text)
    if found is None:
        return None
    fraction = found[2] or found[3] or ""
    digits = (found[1] or "").lstrip("0") + fraction
    exponent = int(found[4] or 0)
    if len(digits) > MOST or abs(exponent) > MOST:
        return None
    units, rest = int(digits or "0"), 0
    shift = type_.scale + exponent - len(fraction)
    if shift >= 0:
        units *= 10**shift
    else:
        units, rest = divmod(units, 10**-shift)
    if rest or units >= 10**type_.precision:
        return None
    return Decimal(written(-units if text.startswith("-") else units, type_.scale))


def written(units: int, scale: int) -> str:
    """The text of a decimal, always with all digits of its scale.

    >>> written(-1230, 2), written(5, 3), written(7, 0)
    ('-12.30', '0.005', '7')
    """
    digits = str(abs(units)).rjust(scale + 1, "0")
    whole, fraction = digits[: len(digits) - scale], digits[len(digits) - scale :]
    return ("-" if units < 0 else "") + whole + (f".{fraction}" if scale else "")


def texts(values: pa.Array) -> list[str | None]:
    """A column of decimals as text."""
    scale = values.type.scale
    return [None if units is None else written(units, scale) for units in whole_numbers(values)]


def floats(values: pa.Array) -> list[float | None]:
    """A column of decimals as doubles, each rounded once; Arrow's own cast may be off by a bit."""
    one = 10**values.type.scale
    return [None if units is None else units / one for units in whole_numbers(values)]


def halves(values: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The upper and lower 64 bits of each value's whole number; of nulls anything."""
    n, at = len(values), values.offset
    if not n:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    words = np.frombuffer(values.buffers()[1], np.int64, 2 * (at + n))[2 * at :]
    pairs = words.reshape(-1, 2)  # Arrow's are little-endian, as are all machines it runs on here
    return pairs[:, 1], pairs[:, 0].view(np.uint64)


def whole_numbers(values: pa.Array) -> list[int | None]:
    """A column's whole numbers.

    >>> whole_numbers(pa.array([Decimal("-12.30"), None], pa.decimal128(5, 2)))
    [-1230, None]
    """
    high, low = (half.tolist() for half in halves(values))
    found: list[int | None] = [(h << 64) | lo for h, lo in zip(high, low, strict=True)]
    if values.null_count:
        for row in np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist():
            found[row] = None
    return found


def lists_of_whole_numbers(lists: pa.Array) -> list[list[Any]]:
    """The same of a column of lists, none of which is null."""
    flat, lengths = whole_numbers(lists.flatten()), lists.value_lengths().to_numpy()
    ends = np.cumsum(lengths)
    return [flat[end - length : end] for end, length in zip(ends, lengths, strict=True)]
