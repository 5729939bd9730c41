"""Windowed metrics: partial results merged to panes, and panes turned into documents."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import FastPrimitivesCoder
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
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.typehints import KV
from apache_beam.utils.timestamp import Duration, Timestamp
from apache_beam.utils.windowed_value import PaneInfoTiming

from velocity.io.records import (
    Cause,
    Document,
    Stage,
    WithDeadLetters,
    counter,
    main_of,
    now,
)
from velocity.transforms.expressions import failed_rows
from velocity.transforms.metric import Metric
from velocity.transforms.partials import Partial, PreAggregation, merge
from velocity.transforms.windows import Session

_GATHER_EVERY: Final = timedelta(seconds=10)
_LONGEST_ID: Final = 512
"""Bytes: Elasticsearch's limit."""


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
        self._windowings: dict[tuple[Any, ...], list[Metric]] = {}
        for metric in metrics:
            windowing = (metric.window, metric.early, metric.lateness)
            self._windowings.setdefault(windowing, []).append(metric)

    def expand(self, pvalueish: Any) -> Any:
        rows = main_of(pvalueish)
        tags = {w: f"windowing_{i}" for i, w in enumerate(self._windowings)}
        tag_of = {m.name: tags[w] for w, metrics in self._windowings.items() for m in metrics}
        step = beam.ParDo(_PreAggregate(self.reduction, tag_of, self._clock)).with_output_types(
            Any,
            dead_letters=pa.RecordBatch,
            **dict.fromkeys(tags.values(), KV[bytes, Any]),  # the key's coder must be exact
        )
        outputs = rows | "PreAggregate" >> step.with_outputs("dead_letters", *tags.values())
        documents = []
        for windowing, tag in tags.items():
            window, *_ = windowing
            documents.append(outputs[tag] | f"{window}, {tag}" >> self._windowed(*windowing))
        return WithDeadLetters.joining(
            pvalueish,
            documents | "Documents" >> beam.Flatten(pipeline=rows.pipeline),
            outputs.dead_letters,
        )

    def _windowed(
        self, window: Any, early: timedelta | None, lateness: timedelta
    ) -> beam.PTransform:
        document = _ToDocument(self._job, self.reduction)
        return _Windowed(window, early, lateness, document)


class _PreAggregate(beam.DoFn):
    def __init__(
        self, reduction: PreAggregation, tag_of: dict[str, str], clock: Callable[[], datetime]
    ) -> None:
        self._reduction = reduction
        self._tag_of = tag_of
        self._clock = clock
        self._partials = counter("partials")

    def process(self, rows: pa.RecordBatch) -> Iterator[Any]:
        reduced, failures, late = self._reduction.reduce(rows)
        self._partials.inc(len(reduced))
        for metric, key, time, partial in reduced:
            at = Timestamp(micros=time * 1000)
            yield TaggedOutput(self._tag_of[metric.name], TimestampedValue((key, partial), at))
        for cause, some in ((Cause.EXPRESSION_FAILED, failures), (Cause.LATE, late)):
            if some:
                at = self._clock()
                dead = failed_rows(rows, some, stage=Stage.METRICS, cause=cause, failed_at=at)
                yield TaggedOutput("dead_letters", dead)


class _Windowed(beam.PTransform):
    """KV of key and partial result to documents, for metrics of one windowing.

    A pane that comes again and again must not cost more the longer its window: it brings only what
    is new (DISCARDING), and is added to what a state keeps for its key and window. Windows that
    merge can't keep such a state and bring all each time (ACCUMULATING); so does bounded input,
    which has one pane of each window.
    """

    def __init__(
        self, window: Any, early: timedelta | None, lateness: timedelta, document: "_ToDocument"
    ) -> None:
        super().__init__()
        self._window, self._early, self._lateness = window, early, lateness
        self._document = document

    def expand(self, partials: beam.PCollection) -> beam.PCollection:
        whole = partials.is_bounded or isinstance(self._window, Session)
        # At the watermark, then for each partial result that comes late. For windows that merge
        # Prism knows no other trigger.
        trigger: TriggerFn = DefaultTrigger()
        if not partials.is_bounded and (self._early or not whole):
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
                allowed_lateness=Duration(self._lateness.total_seconds()),
            )
            | "Group" >> beam.GroupByKey()
        )
        if whole:
            to_documents: beam.DoFn = _WholePane(self._document, final=partials.is_bounded)
        else:
            to_documents = _PaneByPane(self._document, show_early=self._early is not None)
        documents = beam.ParDo(to_documents).with_output_types(Document)
        # The windows have served; documents of all metrics go on together.
        return panes | "Merge" >> documents | "Unwindow" >> beam.WindowInto(GlobalWindows())


_Pane = tuple[bytes, Iterable[Partial]]


class _WholePane(beam.DoFn):
    """Documents of panes that hold all of their window.

    ``final`` panes are on time whatever the runner says: Prism calls some of bounded input early.
    """

    def __init__(self, document: "_ToDocument", *, final: bool) -> None:
        self._document = document
        self._final = final

    def process(
        self, pane: _Pane, window: Any = beam.DoFn.WindowParam, info: Any = beam.DoFn.PaneInfoParam
    ) -> Iterator[Document]:
        key, partials = pane
        partial = self._document.merge(key, partials)
        if partial[0]:
            timing = PaneInfoTiming.ON_TIME if self._final else info.timing
            yield self._document.make(key, partial, window, timing)


class _PaneByPane(beam.DoFn):
    """Documents of panes that hold what came since the pane before.

    Where no early documents are wanted (``show_early``), early panes come all the same and are
    only added up, for else the runner would hold every partial result until the window closes.
    """

    _SO_FAR = ReadModifyWriteStateSpec("so_far", FastPrimitivesCoder())

    def __init__(self, document: "_ToDocument", *, show_early: bool) -> None:
        self._document = document
        self._show_early = show_early

    def process(
        self,
        pane: _Pane,
        window: Any = beam.DoFn.WindowParam,
        info: Any = beam.DoFn.PaneInfoParam,
        so_far: Any = beam.DoFn.StateParam(_SO_FAR),  # noqa: B008
    ) -> Iterator[Document]:
        key, partials = pane
        before, new = so_far.read(), list(partials)
        if new:
            partial = self._document.merge(key, [before, *new] if before else new)
            so_far.write(partial)
        else:
            # Flink's on-time pane comes even if nothing is new; it says that the window is complete
            partial = before or (0,)
        if partial[0] and (self._show_early or info.timing != PaneInfoTiming.EARLY):
            yield self._document.make(key, partial, window, info.timing)


class _ToDocument:
    """Merges partial results of a key, and makes documents of them."""

    def __init__(self, job: str, reduction: PreAggregation) -> None:
        self._job = job
        self._aggregates, self._values = reduction.aggregates, reduction.values
        self._metrics = {metric.name: metric for metric in reduction.metrics}

    def merge(self, key: bytes, partials: Iterable[Partial]) -> Partial:
        name, *_ = json.loads(key)
        return merge(self._aggregates[name], partials)

    def make(self, key: bytes, partial: Partial, window: Any, timing: int) -> Document:
        name, *dimensions = json.loads(key)
        metric = self._metrics[name]
        events, *states = partial
        start, end = window.start.micros // 1000, window.end.micros // 1000
        return Document(
            job=self._job,
            metric=name,
            window_start=start,
            window_end=end,
            dimensions=dict(zip(metric.by, dimensions, strict=True)),
            values=self._results(name, states),
            events=events,
            pane=_PANES.get(timing, "on_time"),
            id=document_id(self._job, name, start, dimensions),
        )

    def _results(self, metric: str, states: Sequence[Any]) -> dict[str, Any]:
        calls = zip(self._aggregates[metric], states, strict=True)
        results = iter([aggregate.result(state) for aggregate, state in calls])
        return {
            name: value.result(list(islice(results, len(value.calls))))
            for name, value in self._values[metric].items()
        }


_PANES: Final = {PaneInfoTiming.EARLY: "early", PaneInfoTiming.LATE: "late"}


def document_id(job: str, metric: str, window_start: int, dimensions: Sequence[Any]) -> str:
    """The same in every run: no two windows of a key begin at one time.

    >>> document_id("pharmacy", "orders", 60_000, ["Bandung", None])
    'pharmacy/orders/60000/["Bandung",null]'
    """
    key = json.dumps(dimensions, ensure_ascii=False, separators=(",", ":"))
    id_ = f"{job}/{metric}/{window_start}/{key}"
    if len(id_.encode()) > _LONGEST_ID:
        short = f"{job}/{metric}/{window_start}/{hashlib.sha256(key.encode()).hexdigest()}"
        fits = len(short.encode()) <= _LONGEST_ID
        return short if fits else hashlib.sha256(id_.encode()).hexdigest()
    return id_
