"""Windowed metrics: partial results merged to panes, and panes turned into documents."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.trigger import (
    AccumulationMode,
    AfterCount,
    AfterProcessingTime,
    AfterWatermark,
    DefaultTrigger,
    TriggerFn,
)
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.typehints import KV
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp
from apache_beam.utils.windowed_value import PaneInfoTiming, WindowedValue

from velocity.io.metrics import counter
from velocity.io.records import (
    MERGED,
    Cause,
    Document,
    Stage,
    WithDeadLetters,
    main_of,
    now,
    one_batch,
)
from velocity.transforms.expressions import failed_rows
from velocity.transforms.ids import LONGEST, IdTemplate
from velocity.transforms.layouts import Layout
from velocity.transforms.metric import Metric
from velocity.transforms.panes import PANES_TOLD
from velocity.transforms.partials import (
    MetricError,
    Partial,
    PreAggregation,
    Reduced,
    merge,
)
from velocity.transforms.shards import packed, shard_of, unpacked
from velocity.transforms.windows import Days, Fixed, Global, Session, Sliding, Window, millis

_GATHER_EVERY: Final = timedelta(seconds=10)
_GATHER_ROWS: Final = 250_000
_GATHER_PARTIALS: Final = 1_000_000
_GATHER_BYTES: Final = 64 * 2**20
_MOST_EARLY: Final = 100


_Timed = tuple[int, Partial]
"""A partial result, and the mean time of its events."""
_Laid = tuple[bytes, int, Partial]
"""The same, and its layout."""


class WindowedMetrics(beam.PTransform):
    """Batches of rows, or ``WithDeadLetters`` of them, to ``WithDeadLetters`` of ``Document``.

    ``schema`` is that of the rows, ``event_time`` the column that decides which windows a row
    counts in. A row for which an expression fails becomes a dead letter and counts in no metric. One
    that came too late for some metrics is a dead letter that names them, and counts in the others;
    which do is known by its partition's watermark (``ORIGIN``). Rows without it are late by the
    runner's watermark, and it drops them.
    """

    def __init__(
        self,
        metrics: Sequence[Metric],
        *,
        schema: pa.Schema,
        event_time: str,
        job: str = "job",
        clock: Callable[[], datetime] = now,
    ) -> None:
        super().__init__()
        self._job = job
        self._clock = clock
        self.reduction = PreAggregation(schema, event_time, metrics)
        ids_of(job, metrics)  # what is wrong with them is said at once
        self._windowings: dict[tuple[Any, ...], list[Metric]] = {}
        for metric in metrics:
            windowing = (metric.window, metric.early, metric.lateness)
            self._windowings.setdefault(windowing, []).append(metric)

    def expand(self, pvalueish: Any) -> Any:
        rows = main_of(pvalueish)
        tags = {w: f"windowing_{i}" for i, w in enumerate(self._windowings)}
        tag_of = {m.name: tags[w] for w, metrics in self._windowings.items() for m in metrics}
        layouts = {tags[w]: Layout(self.reduction, ms) for w, ms in self._windowings.items()}
        reduce = _PreAggregate(
            self.reduction, tag_of, layouts, self._clock, bounded=rows.is_bounded
        )
        step = beam.ParDo(reduce).with_output_types(
            Any,
            dead_letters=pa.RecordBatch,
            **dict.fromkeys(tags.values(), KV[bytes, Any]),  # the key's coder must be exact
        )
        outputs = rows | "PreAggregate" >> step.with_outputs("dead_letters", *tags.values())
        documents = []
        for windowing, tag in tags.items():
            document = _ToDocument(self._job, self.reduction, layouts[tag])
            window, early, lateness = windowing
            windowed = _Windowed(window, early, lateness, document)
            documents.append(outputs[tag] | self._label(windowing) >> windowed)
        return WithDeadLetters.joining(
            pvalueish,
            documents | "Documents" >> beam.Flatten(pipeline=rows.pipeline),
            outputs.dead_letters,
        )

    def _label(self, windowing: tuple[Any, ...]) -> str:
        """By what it is and not by its place: a runner finds the states of a savepoint by it.

        ``emit`` may change where it makes no difference to others of the same window.
        """
        window, early, lateness = windowing
        alone = [other for other, *_ in self._windowings].count(window) == 1
        return str(window) if alone else f"{window}, early {early}, lateness {lateness}"


class _PreAggregate(beam.DoFn):
    """Rows to partial results, one for each key and stretch of time of a bundle.

    What a runner groups costs it many times what a row costs here. So batches are gathered until
    the bundle ends, or they are ``_GATHER_ROWS`` or ``_GATHER_BYTES``, or may give ``_GATHER_PARTIALS``:
    portable runners hold the watermark back for that long. The first rows may each have a key of its own in
    each metric; those after them may give twice as many partial results a row as the ones before.
    """

    def __init__(
        self,
        reduction: PreAggregation,
        tag_of: dict[str, str],
        layouts: dict[str, Layout],
        clock: Callable[[], datetime],
        *,
        bounded: bool,
    ) -> None:
        self._reduction = reduction
        self._tag_of, self._layouts = tag_of, layouts
        self._clock = clock
        self._bounded = bounded
        self._partials = counter("partials")
        self._a_row: float = len(tag_of)

    def start_bundle(self) -> None:
        self._gathered: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0
        self._at = MAX_TIMESTAMP

    def process(
        self, rows: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[Any]:
        self._gathered.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        self._at = min(self._at, timestamp)
        most = min(_GATHER_ROWS, _GATHER_PARTIALS / self._a_row)
        if self._rows >= most or self._bytes >= _GATHER_BYTES:
            yield from self.finish_bundle()

    def finish_bundle(self) -> Iterator[Any]:
        if not self._gathered:
            return
        rows, at = one_batch(self._gathered), self._at
        self.start_bundle()
        reduced, failures, late = self._reduction.reduce(rows, spanning=not self._bounded)
        self._partials.inc(len(reduced))
        self._a_row = min(max(2 * len(reduced), 1) / max(rows.num_rows, 1), len(self._tag_of))
        yield from self._by_key(one for one in reduced if _is_session(one))
        yield from self._by_shard(one for one in reduced if not _is_session(one))
        for cause, some in ((Cause.EXPRESSION_FAILED, failures), (Cause.LATE, late)):
            if some:
                failed_at = self._clock()
                dead = failed_rows(
                    rows, some, stage=Stage.METRICS, cause=cause, failed_at=failed_at
                )
                yield _output("dead_letters", dead, at)

    def _by_key(self, sessions: Iterable[Reduced]) -> Iterator[TaggedOutput]:
        for one in sessions:
            value: Any
            if self._bounded:
                value = one.last, packed(one.partial)
            else:
                layout = self._layouts[self._tag_of[one.metric.name]]
                value = layout.encoded, one.mean, one.partial
            yield self._put_out(one, one.key, value, one.time)

    def _by_shard(self, reduced: Iterable[Reduced]) -> Iterator[TaggedOutput]:
        """What has the same windows and goes to one shard goes together."""
        together: dict[tuple[str, bytes, int], list[Reduced]] = {}
        for one in reduced:
            place = self._tag_of[one.metric.name], shard_of(one.key), one.slice
            together.setdefault(place, []).append(one)
        for (tag, shard, _), some in together.items():
            values: _Some = [(one.key, one.mean, one.partial) for one in some]
            pack = packed((self._layouts[tag].encoded, values))
            yield self._put_out(some[0], shard, pack, min(one.time for one in some))

    def _put_out(self, one: Reduced, key: bytes, value: Any, time: int) -> TaggedOutput:
        return _output(self._tag_of[one.metric.name], (key, value), Timestamp(micros=time * 1000))


_Some = list[tuple[bytes, int, Partial]]
"""Partial results that go together: of each its key, the mean time of its events, and itself."""


def _is_session(one: Reduced) -> bool:
    return isinstance(one.metric.window, Session)


def _output(tag: str, value: Any, at: Timestamp) -> TaggedOutput:
    return TaggedOutput(tag, WindowedValue(value, at, (GlobalWindow(),)))


class _Windowed(beam.PTransform):
    """KV of shard and partial results, of sessions of key and partial result, to documents; for
    metrics of one windowing.

    A pane that comes again and again must not cost more the longer its window: it brings only what
    is new (DISCARDING), and is added to what a state keeps for its shard and window. Windows that
    merge are each key's own, can't keep such a state and bring all each time (ACCUMULATING). Bounded
    input has one pane of each window, and goes its own way: ``_Bounded``.
    """

    def __init__(
        self, window: Any, early: timedelta | None, lateness: timedelta, document: "_ToDocument"
    ) -> None:
        super().__init__()
        self._window, self._early, self._lateness = window, early, lateness
        self._document = document

    def expand(self, partials: beam.PCollection) -> beam.PCollection:
        if partials.is_bounded:
            return partials | "Bounded" >> _Bounded(self._window, self._document)
        session = self._window if isinstance(self._window, Session) else None
        whole = session is not None
        # At the watermark, then for each partial result that comes late. For windows that merge
        # Prism knows no other trigger.
        trigger: TriggerFn = DefaultTrigger()
        if self._early or not whole:
            early = AfterProcessingTime(int((self._early or _GATHER_EVERY).total_seconds()))
            trigger = AfterWatermark(early=early, late=AfterCount(1))
        mode = AccumulationMode.ACCUMULATING if whole else AccumulationMode.DISCARDING
        panes = (
            partials
            | "Window"
            >> beam.WindowInto(
                self._window.window_fn(),
                trigger=trigger,
                accumulation_mode=mode,
                allowed_lateness=Duration(micros=millis(self._lateness) * 1000),
            )
            | "Group" >> beam.GroupByKey()
        )
        if session:
            # Else a session has its first document when no event can join it any more.
            may_grow = bool(self._early or self._lateness)
            to_documents: beam.DoFn = _WholePane(self._document, session, may_grow=may_grow)
        else:
            options = partials.pipeline.options.view_as(DebugOptions)
            told = bool(options.lookup_experiment(PANES_TOLD, False))
            to_documents = _PaneByPane(
                self._document, show_early=self._early is not None, told=told
            )
        documents = beam.ParDo(to_documents).with_output_types(Document)
        # The windows have served; documents of all metrics go on together.
        return panes | "Merge" >> documents | "Unwindow" >> beam.WindowInto(GlobalWindows())


_Packed = tuple[int, bytes]
"""The time of the last event of a partial result, and the partial result, ``packed``."""
_Run = tuple[int, int, bytes]
"""The times of the first and the last event of a partial result, and the partial result."""


class _Bounded(beam.PTransform):
    """The documents of bounded partial results, which are on time.

    The windows are part of the key: a runner's own, in Python, would take most of a replay's time,
    and for sessions the square of a key's. Partial results come ``packed``, those of sessions each
    with the time of its last event.
    """

    def __init__(self, window: Window, document: "_ToDocument") -> None:
        super().__init__()
        self._window, self._document = window, document

    def expand(self, partials: beam.PCollection) -> beam.PCollection:
        if isinstance(self._window, Session):
            by_window: beam.DoFn = _WithTime()
            merge: beam.DoFn = _Sessions(self._window.gap, self._document)
        else:
            by_window = _WithWindow(self._window)
            merge = _OfWindow(self._window, self._document)
        return (
            partials
            | "Window" >> beam.ParDo(by_window).with_output_types(KV[bytes, Any])
            | "Group" >> beam.GroupByKey()
            | "Merge" >> beam.ParDo(merge).with_output_types(Document)
        )


class _WithWindow(beam.DoFn):
    def __init__(self, window: Fixed | Days | Sliding | Global) -> None:
        self._window = window

    def process(
        self, element: tuple[bytes, bytes], timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[tuple[bytes, bytes]]:
        shard, some = element
        for start in self._window.starts(timestamp.micros // 1000):
            yield b"%d %b" % (start, shard), some


class _OfWindow(beam.DoFn):
    def __init__(self, window: Fixed | Days | Sliding | Global, document: "_ToDocument") -> None:
        self._window, self._document = window, document

    def process(self, element: tuple[bytes, Iterable[bytes]]) -> Iterator[Document]:
        place, packs = element
        start = int(place.partition(b" ")[0])
        window = start, self._window.end(start)
        for key, timed in self._document.gathered(packs).items():
            partial = self._document.merge(key, (partial for _, partial in timed))
            yield self._document.make(key, partial, window, PaneInfoTiming.ON_TIME)


class _WithTime(beam.DoFn):
    def process(
        self, element: tuple[bytes, _Packed], timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[tuple[bytes, _Run]]:
        key, (last, pack) = element
        yield key, (timestamp.micros // 1000, last, pack)


class _Sessions(beam.DoFn):
    """Documents of all sessions of a key, which are known at once where input is bounded.

    Beam merges windows one by one, and looks at all others of the key each time: a busy key's
    history would cost the square of its sessions.
    """

    def __init__(self, gap: timedelta, document: "_ToDocument") -> None:
        self._gap, self._document = gap // timedelta(milliseconds=1), document

    def process(self, element: tuple[bytes, Iterable[_Run]]) -> Iterator[Document]:
        key, runs = element
        session: list[Partial] = []
        start = last = 0
        for first, until, pack in sorted(runs, key=itemgetter(0)):
            if session and first - last >= self._gap:
                yield from self._made(key, session, start, last)
                session = []
            start, last = (start, max(last, until)) if session else (first, until)
            session.append(unpacked(pack))
        yield from self._made(key, session, start, last)

    def _made(
        self, key: bytes, session: Sequence[Partial], start: int, last: int
    ) -> Iterator[Document]:
        partial = self._document.merge(key, session)
        if partial[0]:
            window = start, last + self._gap
            yield self._document.make(key, partial, window, PaneInfoTiming.ON_TIME)


_Pane = tuple[bytes, Iterable[_Laid]]
_Ends = tuple[int, int]
"""Of a window: epoch milliseconds."""


def _ends(window: Any) -> _Ends:
    return window.start.micros // 1000, window.end.micros // 1000


class _WholePane(beam.DoFn):
    """Documents of panes that hold all of their session.

    Where a session may grow after its first document (``may_grow``), others that have merged with it
    may have documents, under the slots in which they began. Which have, only the runs before this
    one may know, so each pane takes all of them away; an early one the last hundred, for a session
    without end would pay for all its past.
    """

    def __init__(self, document: "_ToDocument", session: Session, *, may_grow: bool) -> None:
        self._document, self._session, self._may_grow = document, session, may_grow

    def process(
        self, pane: _Pane, window: Any = beam.DoFn.WindowParam, info: Any = beam.DoFn.PaneInfoParam
    ) -> Iterator[Document]:
        key, laid = pane
        known = self._document.known(key, laid)
        if not known:  # of a metric that the job no longer has
            return
        partial = self._document.merge(key, known)
        if partial[0]:
            made = self._document.make(key, partial, _ends(window), info.timing)
            # Which of its events are new only the pane at the end of the session tells: all.
            on_time = info.timing == PaneInfoTiming.ON_TIME
            yield replace(made, due=made.window_end) if on_time else made
            if self._may_grow:
                last = window.end.micros // 1000 - millis(self._session.gap)
                slots = self._session.slots_after(window.start.micros // 1000, last)
                if info.timing == PaneInfoTiming.EARLY:
                    slots = slots[-_MOST_EARLY:]
                for slot in slots:
                    yield self._document.merged(key, slot)


class _PaneByPane(beam.DoFn):
    """Documents of panes that hold what came since the pane before, for the keys of a shard.

    Where no early documents are wanted (``show_early``), early panes come all the same and are
    only added up, for else the runner would hold every partial result until the window closes.
    """

    _SO_FAR = ReadModifyWriteStateSpec("so_far", BytesCoder())

    def __init__(self, document: "_ToDocument", *, show_early: bool, told: bool = False) -> None:
        self._document = document
        self._show_early, self._told = show_early, told

    def process(
        self,
        pane: tuple[bytes, Iterable[bytes]],
        window: Any = beam.DoFn.WindowParam,
        info: Any = beam.DoFn.PaneInfoParam,
        so_far: Any = beam.DoFn.StateParam(_SO_FAR),  # noqa: B008
    ) -> Iterator[Document]:
        _, packs = pane
        # Each way to the runner's states and back takes a millisecond, as much as a thousand rows
        # do; most windows of a backlog have one pane.
        kept = None if self._told and info.is_first else so_far.read()
        before = self._document.remembered(kept) if kept else {}
        new = self._document.gathered(packs)
        changed = {key: self._merged(key, before.get(key), timed) for key, timed in new.items()}
        if changed and not (self._told and info.is_last):
            so_far.write(self._document.to_remember(before | changed))
        if info.timing == PaneInfoTiming.EARLY and not self._show_early:
            return
        on_time = info.timing == PaneInfoTiming.ON_TIME
        ends = _ends(window)
        # The on-time pane says of each key that its window is complete, whatever is new.
        for key, partial in (before | changed if on_time else changed).items():
            made = self._document.make(key, partial, ends, info.timing)
            if on_time and not self._show_early:
                yield replace(made, due=made.window_end)
            else:
                yield replace(made, due=_mean_time(new.get(key, ())))

    def _merged(self, key: bytes, before: Partial | None, timed: Sequence[_Timed]) -> Partial:
        partials = [partial for _, partial in timed]
        return self._document.merge(key, [before, *partials] if before else partials)


def _mean_time(new: Sequence[_Timed]) -> int | None:
    """Of the events of partial results; None without any.

    >>> _mean_time([(1_000, (3,)), (5_000, (1,))])
    2000
    """
    events = sum(partial[0] for _, partial in new)
    return sum(mean * partial[0] for mean, partial in new) // events if events else None


@lru_cache(maxsize=10_000)
def _of_key(key: bytes) -> tuple[str, Sequence[Any]]:
    """The metric and the dimensions."""
    name, *dimensions = json.loads(key)
    return name, dimensions


class _ToDocument:
    """Merges partial results of a key, and makes documents of them.

    What it reads may be of the job that was before this one: ``layout`` is that of what it knows.
    """

    def __init__(self, job: str, reduction: PreAggregation, layout: Layout) -> None:
        self._job, self._layout = job, layout
        self._aggregates, self._values = reduction.aggregates, reduction.values
        self._metrics = {metric.name: metric for metric in reduction.metrics}
        self._ids = ids_of(job, reduction.metrics)

    def gathered(self, packs: Iterable[bytes]) -> dict[bytes, list[_Timed]]:
        """The partial results of each key of a shard."""
        gathered: dict[bytes, list[_Timed]] = {}
        for pack in packs:
            layout, some = unpacked(pack)
            for key, mean, partial in self._layout.read(layout, some):
                gathered.setdefault(key, []).append((mean, partial))
        return gathered

    def known(self, key: bytes, laid: Iterable[_Laid]) -> list[Partial]:
        """The partial results of a session."""
        found = []
        for layout, mean, partial in laid:
            found += [partial for *_, partial in self._layout.read(layout, [(key, mean, partial)])]
        return found

    def to_remember(self, partials: Mapping[bytes, Partial]) -> bytes:
        return packed((self._layout.encoded, partials))

    def remembered(self, kept: bytes) -> dict[bytes, Partial]:
        layout, partials = unpacked(kept)
        if layout != self._layout.encoded:
            partials = dict(self._layout.read(layout, partials.items()))
        found: dict[bytes, Partial] = partials
        return found

    def merge(self, key: bytes, partials: Iterable[Partial]) -> Partial:
        name, _ = _of_key(key)
        return merge(self._aggregates[name], partials)

    def make(self, key: bytes, partial: Partial, window: _Ends, timing: int) -> Document:
        name, dimensions = _of_key(key)
        metric = self._metrics[name]
        events, *states = partial
        start, end = window
        if isinstance(metric.window, Days):  # Beam's window is that of the stamp
            [start] = metric.window.starts(end - 1)
        elif isinstance(metric.window, Global):  # Beam's goes beyond what can be written
            start, end = 0, metric.window.end(0)
        slot = metric.window.slot(start) if isinstance(metric.window, Session) else start
        return Document(
            job=self._job,
            metric=name,
            window_start=start,
            window_end=end,
            dimensions=dict(zip(metric.by, dimensions, strict=True)),
            values=self._results(name, states),
            events=events,
            pane=_PANES.get(timing, "on_time"),
            id=self._id(name, slot, dimensions),
            slot=slot,
        )

    def merged(self, key: bytes, slot: int) -> Document:
        """Takes away the document of a session that began in a slot."""
        name, dimensions = _of_key(key)
        by = dict(zip(self._metrics[name].by, dimensions, strict=True))
        id_ = self._id(name, slot, dimensions)
        return Document(self._job, name, slot, slot, by, {}, 0, MERGED, id_, slot=slot)

    def _id(self, metric: str, slot: int, dimensions: Sequence[Any]) -> str:
        if own := self._ids.get(metric):
            return own.of(slot, dimensions)
        return document_id(self._job, metric, slot, dimensions)

    def _results(self, metric: str, states: Sequence[Any]) -> dict[str, Any]:
        calls = zip(self._aggregates[metric], states, strict=True)
        results = iter([aggregate.result(state) for aggregate, state in calls])
        return {
            name: value.result(list(islice(results, len(value.calls))))
            for name, value in self._values[metric].items()
        }


def ids_of(job: str, metrics: Iterable[Metric]) -> dict[str, IdTemplate]:
    """The templates of those metrics that have ids of their own. Raises ``MetricError``."""
    found = {}
    for metric in metrics:
        if metric.id is not None:
            try:
                found[metric.name] = IdTemplate(
                    metric.id, job, metric.name, metric.by, metric.window
                )
            except ValueError as error:
                raise MetricError(f"metric {metric.name}: {error}") from None
    return found


_PANES: Final = {PaneInfoTiming.EARLY: "early", PaneInfoTiming.LATE: "late"}


def document_id(job: str, metric: str, start: int, dimensions: Sequence[Any]) -> str:
    """The same in every run: no two windows of a key begin at one time, nor two sessions in one slot.

    ``start`` is that of the window, of a session that of its slot (``Session.slot``).

    >>> document_id("pharmacy", "orders", 60_000, ["Bandung", None])
    'pharmacy/orders/60000/["Bandung",null]'
    """
    key = json.dumps(dimensions, ensure_ascii=False, separators=(",", ":"))
    id_ = f"{job}/{metric}/{start}/{key}"
    if len(id_.encode()) > LONGEST:
        short = f"{job}/{metric}/{start}/{hashlib.sha256(key.encode()).hexdigest()}"
        fits = len(short.encode()) <= LONGEST
        return short if fits else hashlib.sha256(id_.encode()).hexdigest()
    return id_
