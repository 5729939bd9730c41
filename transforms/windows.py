"""Windows of event time: which slice of time an event counts in, and Beam's window functions.

Each kind says of an event's time when its window begins and when it is closed, lateness aside: once
a watermark has come so far, the event is late.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
from apache_beam.transforms import window as beam_window
from apache_beam.utils.timestamp import Duration, Timestamp

from velocity.io.records import LAST_MILLI
from velocity.transforms.days import begin_of, days_of, zone_named

Millis = npt.NDArray[np.int64]
_MILLISECOND: Final = timedelta(milliseconds=1)


def millis(duration: timedelta) -> int:
    """The whole milliseconds of a duration."""
    return duration // _MILLISECOND


def _beam(duration: timedelta) -> Duration:
    return Duration(micros=millis(duration) * 1000)


def _require_positive(**durations: timedelta) -> None:
    for name, duration in durations.items():
        if duration < _MILLISECOND or duration % _MILLISECOND:
            raise ValueError(
                f"{name}: whole milliseconds, at least one, are wanted; not {duration}"
            )


@dataclass(frozen=True, slots=True)
class Fixed:
    """Windows of one size, each beginning where the one before ends.

    >>> Fixed(timedelta(minutes=1)).slices(np.array([59_999, 60_000])).tolist()
    [0, 60000]
    """

    size: timedelta
    offset: timedelta = timedelta(0)
    """From the epoch to the start of some window."""

    def __post_init__(self) -> None:
        _require_positive(size=self.size)
        if self.offset % _MILLISECOND:
            raise ValueError(f"offset: whole milliseconds are wanted; not {self.offset}")

    def slices(self, times: Millis) -> Millis:
        """The slice of each time: events of one slice share all their windows."""
        return times - (times - millis(self.offset)) % millis(self.size)

    def begins(self, times: Millis) -> Millis:
        return self.slices(times)

    def closes(self, times: Millis) -> Millis:
        return self.slices(times) + millis(self.size)

    def starts(self, time: int) -> Sequence[int]:
        """Where the windows of a time begin: there is one."""
        return [time - (time - millis(self.offset)) % millis(self.size)]

    def end(self, start: int) -> int:
        return start + millis(self.size)

    def window_fn(self) -> beam_window.WindowFn:
        return beam_window.FixedWindows(
            _beam(self.size), Timestamp(micros=millis(self.offset) * 1000)
        )

    def __str__(self) -> str:
        return f"fixed {self.size}" + (f" from {self.offset}" if self.offset else "")


@dataclass(frozen=True, slots=True)
class Days:
    """Windows of whole days of a time zone, 23 or 25 hours long where its clocks change.

    Beam has no such windows that each runner knows. So a partial result goes on with the ``stamp`` of
    its window, the last millisecond, in a window of that millisecond alone: it closes when the day
    does, and tells which day it was.

    >>> Days(1, "Asia/Jakarta").slices(np.array([0])).tolist()
    [-25200000]
    """

    count: int
    zone: str

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: at least one day is wanted; not {self.count}")
        zone_named(self.zone)

    def _begins(self, times: Millis, later: int) -> Millis:
        """Of each time's window or, that many windows later, of another."""
        numbers, which = np.unique(days_of(times, self.zone) // self.count, return_inverse=True)
        days = ((numbers + later) * self.count).tolist()
        return np.array([begin_of(day, self.zone) for day in days], np.int64)[which]

    def slices(self, times: Millis) -> Millis:
        return self._begins(times, 0)

    def begins(self, times: Millis) -> Millis:
        return self._begins(times, 0)

    def closes(self, times: Millis) -> Millis:
        return self._begins(times, 1)

    def stamps(self, times: Millis) -> Millis:
        """The last millisecond of each time's window."""
        return self.closes(times) - 1

    def starts(self, time: int) -> Sequence[int]:
        """Where the windows of a time begin: there is one."""
        return [int(self.begins(np.array([time]))[0])]

    def end(self, start: int) -> int:
        return int(self.closes(np.array([start]))[0])

    def window_fn(self) -> beam_window.WindowFn:
        """Of stamps."""
        return beam_window.FixedWindows(_beam(_MILLISECOND))

    def __str__(self) -> str:
        return f"{self.count} days in {self.zone}"


@dataclass(frozen=True, slots=True)
class Sliding:
    """Windows of one size that begin every ``every``, so that each event counts in several.

    >>> Sliding(timedelta(minutes=10), timedelta(minutes=4)).slices(np.array([119_999, 120_000]))
    array([     0, 120000])
    """

    size: timedelta
    every: timedelta

    def __post_init__(self) -> None:
        _require_positive(size=self.size, every=self.every)

    def slices(self, times: Millis) -> Millis:
        """Windows begin and end at multiples of gcd(size, every) only."""
        return times - times % math.gcd(millis(self.size), millis(self.every))

    def begins(self, times: Millis) -> Millis:
        """Of the first of each time's windows."""
        return self.closes(times) - millis(self.size)

    def closes(self, times: Millis) -> Millis:
        """As the first of each time's windows does: an event counts in all of them or in none."""
        return times + millis(self.every) - (times - millis(self.size)) % millis(self.every)

    def starts(self, time: int) -> Sequence[int]:
        """Where the windows of a time begin.

        >>> Sliding(timedelta(seconds=3), timedelta(seconds=1)).starts(4_500)
        range(4000, 1500, -1000)
        """
        return range(
            time - time % millis(self.every), time - millis(self.size), -millis(self.every)
        )

    def end(self, start: int) -> int:
        return start + millis(self.size)

    def window_fn(self) -> beam_window.WindowFn:
        return beam_window.SlidingWindows(_beam(self.size), _beam(self.every))

    def __str__(self) -> str:
        return f"sliding {self.size} every {self.every}"


@dataclass(frozen=True, slots=True)
class Session:
    """A window for each run of a key's events that are less than ``gap`` apart.

    An event is late as soon as the watermark has passed its own time: were it admitted for a gap
    longer, then it would depend on the pace of a run whether it still finds the session that it
    belongs to, or begins another.
    """

    gap: timedelta

    def __post_init__(self) -> None:
        _require_positive(gap=self.gap)

    def runs(self, keys: Millis, times: Millis) -> npt.NDArray[np.int64]:
        """The number of each event's run among events in any order; ``keys`` number their keys.

        >>> Session(timedelta(seconds=1)).runs(np.array([7, 7, 8, 7]), np.array([0, 1000, 5, 999]))
        array([0, 0, 1, 0])
        """
        order = np.lexsort((times, keys))
        key, time = keys[order], times[order]
        begins = np.empty(len(order), bool)
        begins[:1] = True
        begins[1:] = (key[1:] != key[:-1]) | (time[1:] - time[:-1] >= millis(self.gap))
        runs = np.empty(len(order), np.int64)
        runs[order] = np.cumsum(begins) - 1
        return runs

    def spanning(self, first: int, last: int) -> list[int]:
        """Times that, less than a gap apart, keep a run that begins at ``first`` in one session.

        A run goes on as one partial result at its first time. Without these Beam would end the
        session a gap later, though its last event came at ``last``.

        >>> Session(timedelta(seconds=1)).spanning(0, 2500)
        [999, 1998, 2500]
        """
        if first == last:
            return []
        step = max(millis(self.gap) - 1, 1)
        return [*range(first + step, last, step), last]

    def slot(self, time: int) -> int:
        """Where the slot of a time begins: slots are a gap long, and no two sessions of a key begin
        in one. A session that took earlier events in keeps its slot, or begins in one before.

        >>> Session(timedelta(seconds=1)).slot(2_999)
        2000
        """
        return time - time % millis(self.gap)

    def slots_after(self, first: int, last: int) -> range:
        """All slots but the first of a session with events from ``first`` to ``last``.

        None of its events, nor what would have been a session without the others, begins elsewhere;
        and never will a session begin in one of these, for events are only added.

        >>> list(Session(timedelta(seconds=1)).slots_after(900, 2_100))
        [1000, 2000]
        """
        gap = millis(self.gap)
        return range(self.slot(first) + gap, self.slot(last) + 1, gap)

    def begins(self, times: Millis) -> Millis:
        """Not before; where the session begins only its other events know."""
        return times

    def closes(self, times: Millis) -> Millis:
        return times + 1

    def window_fn(self) -> beam_window.WindowFn:
        return beam_window.Sessions(_beam(self.gap))

    def __str__(self) -> str:
        return f"session, gap {self.gap}"


@dataclass(frozen=True, slots=True)
class Global:
    """One window, of all time: what is counted in it is counted for ever, and nothing is late.

    What stores know of times does not reach so far: documents say from 1970 to the end of 9999.

    >>> Global().slices(np.array([-7, 60_000])).tolist()
    [0, 0]
    """

    def slices(self, times: Millis) -> Millis:
        return np.zeros_like(times)

    def begins(self, times: Millis) -> Millis:
        return np.zeros_like(times)

    def closes(self, times: Millis) -> Millis:
        return np.full_like(times, LAST_MILLI)

    def starts(self, time: int) -> Sequence[int]:
        return [0]

    def end(self, start: int) -> int:
        return LAST_MILLI

    def window_fn(self) -> beam_window.WindowFn:
        return beam_window.GlobalWindows()

    def __str__(self) -> str:
        return "global"


Window = Fixed | Days | Sliding | Session | Global
