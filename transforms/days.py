"""Days of a time zone as instants: when they begin, and which of them a time is in.

A day begins as soon as the zone's clocks show midnight or later, and ends where the next begins: it
has 23 or 25 hours where clocks change, and none if the zone leaves it out, as Samoa did in 2011.
"""

from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

_EPOCH: Final = datetime(1970, 1, 1)
_DAY: Final = 86_400_000
_AROUND: Final = np.arange(-2, 3)
"""No zone was ever two days from UTC."""


class UnknownZone(ValueError):
    """No time zone has that name here."""


def zone_named(name: str) -> ZoneInfo:
    """The zone of a name of the IANA database.

    >>> zone_named("Asia/Jakarta")
    zoneinfo.ZoneInfo(key='Asia/Jakarta')

    Raises ``UnknownZone``.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: "Asia" is a folder
        raise UnknownZone(
            f"unknown time zone {name}: give a name of the IANA database, such as Asia/Jakarta"
        ) from None


@lru_cache(maxsize=10_000)
def begin_of(day: int, zone: str) -> int:
    """Epoch milliseconds of a day's begin; days are counted from 1970-01-01.

    >>> begin_of(0, "Asia/Jakarta"), begin_of(1, "UTC")
    (-25200000, 86400000)
    """
    tz, midnight = zone_named(zone), _EPOCH + timedelta(days=day)
    at = _seconds(midnight.replace(tzinfo=tz))
    if _shown(at, tz) != midnight:  # left out, and ``at`` is by how clocks went before
        earliest = _seconds(midnight.replace(tzinfo=tz, fold=1))
        instants = range(earliest, at + 1)
        at = instants[bisect_left(instants, True, key=lambda t: _shown(t, tz) >= midnight)]
    return at * 1000


def _seconds(time: datetime) -> int:
    return (time.astimezone(UTC).replace(tzinfo=None) - _EPOCH) // timedelta(seconds=1)


def _shown(seconds: int, tz: ZoneInfo) -> datetime:
    """What clocks show then."""
    utc = (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=UTC)
    return utc.astimezone(tz).replace(tzinfo=None)


def days_of(times: npt.NDArray[np.int64], zone: str) -> npt.NDArray[np.int64]:
    """The day of each time in epoch milliseconds.

    >>> days_of(np.array([-25_200_001, -25_200_000]), "Asia/Jakarta").tolist()
    [-1, 0]
    """
    possible = np.unique(np.unique(times // _DAY)[:, None] + _AROUND)
    begins = np.array([begin_of(day, zone) for day in possible.tolist()], np.int64)
    return possible[np.searchsorted(begins, times, side="right") - 1]
