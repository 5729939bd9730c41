"""The types a job may declare for a field, and the columns they become."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from velocity.io.records import TIMESTAMP
from velocity.transforms.decimals import NO_DECIMAL, decimal_type

TYPES: Final[Mapping[str, pa.DataType]] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": TIMESTAMP,
    "timestamp_ms": TIMESTAMP,
}
"""By name. In JSON a ``timestamp`` is a string of RFC 3339 (without an offset it is UTC; what is
finer than a millisecond is cut off), a ``timestamp_ms`` a whole number of epoch milliseconds. Besides
these there is ``decimal(PRECISION, SCALE)``."""


def arrow_type(name: str) -> pa.DataType:
    """The column type of a name. Raises ``ValueError``.

    >>> arrow_type("decimal(18, 2)")
    Decimal128Type(decimal128(18, 2))
    >>> arrow_type("decimal(39, 2)")
    Traceback (most recent call last):
    ValueError: type 'decimal(39, 2)': a decimal has 1 to 38 digits, and no more of them after the \
point: "decimal(18, 2)", with quotes where braces are around
    """
    found = TYPES.get(name) or decimal_type(name)
    if found is None and name.startswith("decimal"):
        raise ValueError(f"type {name!r}: {NO_DECIMAL}")
    if found is None:
        raise ValueError(f"type {name!r} is none of: {', '.join(TYPES)}, decimal(PRECISION, SCALE)")
    return found


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an event.

    >>> Field("double").arrow
    DataType(double)
    >>> Field("float")
    Traceback (most recent call last):
    ValueError: type 'float' is none of: string, int64, double, bool, timestamp, timestamp_ms, \
decimal(PRECISION, SCALE)
    """

    type: str
    required: bool = False
    """A required field that is missing or null sends the event to the dead letters."""

    def __post_init__(self) -> None:
        arrow_type(self.type)

    @property
    def arrow(self) -> pa.DataType:
        """The type of the decoded column."""
        return arrow_type(self.type)
