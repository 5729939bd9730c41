"""Units of values, as people read them beside the number."""

from collections.abc import Mapping
from typing import Final

_UNITS: Final = {
    "seconds": "s",
    "minutes": "min",
    "hours": "h",
    "days": "d",
    "ms": "ms",
    "km": "km",
    "kg": "kg",
    "bytes": "B",
    "percent": "%",
}
"""By the last word of a value's name, where the job names no unit."""


def unit_of(name: str, units: Mapping[str, str]) -> str:
    """A value's unit: the job's own word for it, or the last word of the value's name.

    >>> unit_of("revenue", {"revenue": "IDR"}), unit_of("p95_minutes", {}), unit_of("orders", {})
    ('IDR', 'min', '')
    """
    return units.get(name) or _UNITS.get(name.rpartition("_")[2], "")
