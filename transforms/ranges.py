"""Ranges of event time: which windows a replay of one writes, and what it must read to know them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.metrics import counter
from velocity.io.records import Document, main_of, passing_on
from velocity.transforms.days import begin_of, days_of
from velocity.transforms.windows import Days, Fixed, Global, Session, Sliding, Window, millis

Verdict = Literal["write", "elsewhere", "cut", "open"]
"""What becomes of a document: it is written; it belongs to another range, or another part of this
one; it is cut off, as its window goes on outside of what was read; or its window is not over yet."""


class Span(NamedTuple):
    """Epoch milliseconds from ``start`` to before ``stop``."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Alert:
    """The stretch of time of an alert on a transaction, as if it were a window: what became of it is
    known a ``ttl`` after it began. ``sla`` is the longest until it is due."""

    sla: timedelta
    ttl: timedelta


Stretch = Window | Alert
"""What documents are of."""


def reads(window: Stretch, wanted: Span, *, first: bool, pad: timedelta) -> Span:
    """The event times that a part of a replay must read so that all windows that begin in
    ``wanted`` are whole; of the ``first`` part also those that began before and reach into it.

    Windows of a grid are read from the start of the first to the end of the last. A session
    begins where no event of its key was for a gap: so much more is read before, and ``pad`` after
    the end, by which it should have ended (``pad`` before the first part too).

    >>> minute, hour = timedelta(minutes=1), 3_600_000
    >>> reads(Fixed(minute), Span(90_000, 100_000), first=True, pad=minute)
    Span(start=60000, stop=120000)
    >>> reads(Sliding(10 * minute, 5 * minute), Span(hour, 2 * hour), first=False, pad=minute)
    Span(start=3600000, stop=7500000)
    """
    start, stop = wanted
    match window:
        case Fixed(size, offset):
            length, step, shift = millis(size), millis(size), millis(offset)
        case Sliding(size, every):
            length, step, shift = millis(size), millis(every), 0
        case Days():
            [earliest] = window.starts(start)
            if earliest < start and not first:
                earliest = window.end(earliest)
            return Span(earliest, window.end(stop - 1)) if earliest < stop else Span(stop, stop)
        case Global():
            raise ValueError("no part of history holds all events of a global window")
        case Session(gap):
            before = millis(pad) if first else millis(gap)
            return Span(start - before, stop + millis(pad))
        case Alert(sla, ttl):
            return Span(start - millis(sla) if first else start, stop + millis(ttl) + 1)
    if first:
        start -= length - 1
    earliest = start + (shift - start) % step
    latest = (stop - 1) - (stop - 1 - shift) % step
    return Span(earliest, latest + length) if earliest <= latest else Span(stop, stop)


def hull(spans: Iterable[Span]) -> Span:
    """The least span that holds all of them that are not empty."""
    full = [span for span in spans if span.start < span.stop]
    if not full:
        return Span(0, 0)
    return Span(min(span.start for span in full), max(span.stop for span in full))


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a replay: which documents it writes, of those it makes of what it read.

    >>> from dataclasses import replace
    >>> minute = Fixed(timedelta(minutes=1))
    >>> part = Part(Span(60_000, 120_000), Span(60_000, 120_000), first=True, until=10**13)
    >>> d = Document("orders", "m", 60_000, 120_000, {}, {}, 2, "on_time", "1")
    >>> part.verdict(d, minute), part.verdict(replace(d, window_end=120_001), minute)
    ('write', 'cut')
    """

    wanted: Span
    read: Span
    first: bool
    until: int
    """What happened later is not known yet."""

    def verdict(self, document: Document, window: Stretch, settled: int | None = None) -> Verdict:
        """Of transactions ``settled`` is from when on their facts are known."""
        start, end = document.window_start, document.window_end
        if start >= self.wanted.stop or end <= self.wanted.start:
            return "elsewhere"
        if start < self.wanted.start and not self.first:
            return "elsewhere"
        if isinstance(window, Alert):
            end = start + millis(window.ttl) + 1
        if end > self.until:
            return "open"
        quiet = millis(window.gap) - 1 if isinstance(window, Session) else 0
        known = self.read.start if settled is None else max(self.read.start, settled)
        if start - quiet < known or end > self.read.stop:
            return "cut"
        return "write"


def parts(
    windows: Sequence[Stretch],
    whole: Span,
    length: timedelta | None,
    *,
    pad: timedelta,
    until: int,
    before: timedelta = timedelta(0),
) -> list[Part]:
    """A range in parts, each at most so long; each document is written by one of them.

    ``before`` is how much earlier each part reads than its windows begin. Parts begin at multiples of their length, so that they are cut alike whatever the range: those of whole days at
    midnight where the days of the windows are, or each would read two days to write one.
    """
    zone = next((window.zone for window in windows if isinstance(window, Days)), "UTC")
    found = []
    start = whole.start
    while start < whole.stop:
        stop = min(whole.stop, _next(start, length, zone)) if length else whole.stop
        first = start == whole.start
        wanted = Span(start, stop)
        found.append(part_of(windows, wanted, first=first, pad=pad, until=until, before=before))
        start = stop
    return found


def _next(time: int, length: timedelta, zone: str) -> int:
    """The first multiple of ``length`` after ``time``."""
    days, rest = divmod(length, timedelta(days=1))
    if rest:
        return time - time % millis(length) + millis(length)
    day = int(days_of(np.array([time]), zone)[0])
    return begin_of(day - day % days + days, zone)


def part_of(
    windows: Iterable[Stretch],
    wanted: Span,
    *,
    first: bool,
    pad: timedelta,
    until: int,
    before: timedelta = timedelta(0),
) -> Part:
    """The part that writes the windows which begin in ``wanted``, with what it must read."""
    start, stop = hull(reads(window, wanted, first=first, pad=pad) for window in windows)
    return Part(wanted, Span(start - millis(before), stop), first, until)


def gap_of(windows: Iterable[Stretch]) -> timedelta | None:
    """The longest gap of the sessions among them; None if there are none."""
    return max((w.gap for w in windows if isinstance(w, Session)), default=None)


class Within(beam.PTransform):
    """Of batches of rows those within a span of event time; ``WithDeadLetters`` or not."""

    def __init__(self, span: Span, event_time: str) -> None:
        super().__init__()
        self._span, self._event_time = span, event_time

    def expand(self, pvalueish: Any) -> Any:
        within = beam.FlatMap(rows_within, self._span, self._event_time)
        rows = main_of(pvalueish) | "Filter" >> within.with_output_types(pa.RecordBatch)
        return passing_on(pvalueish, rows)


def rows_within(rows: pa.RecordBatch, span: Span, event_time: str) -> Iterator[pa.RecordBatch]:
    """The rows of the span, unless there are none."""
    times = rows[event_time].view(pa.int64())
    inside = pc.and_(pc.greater_equal(times, span.start), pc.less(times, span.stop))
    kept = rows.filter(inside)
    if kept.num_rows:
        yield kept


class OnlyComplete(beam.PTransform):
    """Of a part's documents those that it is to write; counts the others by their verdict.

    ``windows`` are those of the metrics, by name. Counters: ``documents_elsewhere``,
    ``documents_cut``, ``documents_open``, and ``documents_complete``, those let through. ``settled``
    has one element, of documents on transactions: ``SettledFrom``.
    """

    def __init__(
        self,
        part: Part,
        windows: Mapping[str, Stretch],
        settled: beam.PCollection | None = None,
    ) -> None:
        super().__init__()
        known = None if settled is None else beam.pvalue.AsSingleton(settled)
        self._choose = beam.ParDo(_Choose(part, windows), known).with_output_types(Document)

    def expand(self, documents: Any) -> Any:
        return passing_on(documents, main_of(documents) | "Choose" >> self._choose)


class _Choose(beam.DoFn):
    def __init__(self, part: Part, windows: Mapping[str, Stretch]) -> None:
        self._part, self._windows = part, windows
        self._counters: Mapping[str, Any] = {
            "write": counter("documents_complete"),
            **{v: counter(f"documents_{v}") for v in ("elsewhere", "cut", "open")},
        }

    def process(self, document: Document, settled: int | None) -> Iterator[Document]:
        verdict = self._part.verdict(document, self._windows[document.metric], settled)
        self._counters[verdict].inc()
        if verdict == "write":
            yield document
