"""Transactions: events of one key joined across domains, in event time, to facts and alerts."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import FastPrimitivesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.typehints import KV
from apache_beam.utils.timestamp import Timestamp

from velocity.io.json_rows import JsonRows
from velocity.io.metrics import counter
from velocity.io.records import (
    MESSAGE,
    ORIGIN,
    TIMESTAMP,
    Cause,
    Document,
    Stage,
    WithDeadLetters,
    dead_letters,
    main_of,
    messages_of,
    now,
    rfc3339,
    watermarks_of,
)
from velocity.transforms.metrics import document_id
from velocity.transforms.stages import Arrival, Fact, Stages, Transaction

ALERTS: Final = "alerts"
"""The metric that alert documents bear as theirs."""

FACTS: Final = pa.schema(
    [
        pa.field("transaction", pa.string()),
        pa.field("what", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("next", pa.string()),
        pa.field("since", TIMESTAMP),
        pa.field("seconds", pa.float64()),
    ]
)
"""The columns of a fact; then come its event time and the columns of ``by``."""

MOST_FACTS: Final = 5_000
"""In a batch."""

_MILLISECOND: Final = timedelta(milliseconds=1)


class TransactionError(ValueError):
    """Transactions that can't be followed: which key of the job is wrong, and why."""

    def __init__(self, error: str, *place: str | int) -> None:
        super().__init__(error, *place)
        self.error, self.place = error, place

    def __str__(self) -> str:
        return self.error


class Followed(NamedTuple):
    """Facts, in batches like events, with all dead letters so far; and the alerts' documents."""

    facts: WithDeadLetters
    alerts: beam.PCollection


class FollowTransactions(beam.PTransform):
    """Batches of rows, or ``WithDeadLetters`` of them, to ``Followed``.

    Rows of one ``key`` are a transaction; the column ``event`` names what happened, and so which
    of the ``stages`` is entered; ``by`` are columns that the facts keep, from the first event of
    the transaction. Events wait until the watermark has passed them by ``lateness``, and are then
    taken in event time: the facts of a transaction don't depend on the order of arrival. One that
    comes later counts all the same, and its facts say in their ``ORIGIN`` where the watermark of its
    partition stood: ``WindowedMetrics`` makes dead letters of those that are too late for a metric.
    A row without a key becomes a dead letter; one of no stage's event is left out.

    ``schema`` is that of the rows given, ``self.schema`` that of the facts. Counts
    ``transactions_events``, ``transactions_late`` (events that came too late to be waited for; they
    count all the same) and ``transactions_facts``. Raises ``TransactionError`` at construction.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        key: str,
        event: str,
        by: Sequence[str] = (),
        lateness: timedelta = timedelta(0),
        schema: pa.Schema,
        event_time: str,
        job: str = "job",
        clock: Callable[[], datetime] = now,
    ) -> None:
        super().__init__()
        for name, column in (("key", key), ("event", event)):
            _need(schema, column, name)
            if schema.field(column).type != pa.string():
                raise TransactionError(f"text is wanted; {column} is another type", name)
        for i, column in enumerate(by):
            _need(schema, column, "by", i)
            if schema.field(column).type not in (pa.string(), pa.int64(), pa.bool_()):
                raise TransactionError(
                    f"{column} makes no key; derive a column of text from it", "by", i
                )
            if column in (*FACTS.names, event_time) or column in by[:i]:
                raise TransactionError(f"facts have a column {column} already", "by", i)
        if event_time in FACTS.names:
            raise TransactionError(f"facts have a column {event_time} of their own; rename yours")
        columns = [pa.field(event_time, TIMESTAMP), *(schema.field(column) for column in by)]
        self.schema = pa.schema([*FACTS, *columns, pa.field(MESSAGE, ORIGIN)])
        self._arrivals = _Arrivals(stages, key, event, by, event_time, lateness, clock)
        self._follow = _Follow(stages, lateness)
        self._to_rows = _ToRows(stages, self.schema, len(by))
        self._to_alerts = _ToAlerts(stages, by, job)

    def expand(self, pvalueish: Any) -> Followed:
        outputs = main_of(pvalueish) | "ByTransaction" >> beam.ParDo(
            self._arrivals
        ).with_output_types(Any, dead_letters=pa.RecordBatch, arrivals=KV[bytes, Any]).with_outputs(
            "dead_letters", "arrivals"
        )
        facts = outputs.arrivals | "Follow" >> beam.ParDo(self._follow).with_output_types(Any)
        rows = facts | "FactRows" >> beam.ParDo(self._to_rows).with_output_types(pa.RecordBatch)
        alerts = facts | "Alerts" >> beam.ParDo(self._to_alerts).with_output_types(Document)
        return Followed(
            WithDeadLetters.joining(pvalueish, rows, outputs.dead_letters),
            alerts,
        )


def _need(schema: pa.Schema, column: str, *place: str | int) -> None:
    if column not in schema.names:
        raise TransactionError(f"unknown column {column}", *place)


class _Arrivals(beam.DoFn):
    """Rows to (key, events): those of one transaction in one batch go together."""

    def __init__(
        self,
        stages: Stages,
        key: str,
        event: str,
        by: Sequence[str],
        event_time: str,
        lateness: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._stages = stages
        self._key, self._event, self._by = key, event, by
        self._event_time = event_time
        self._wait = _wait(lateness)
        self._clock = clock
        self._events = counter("transactions_events")

    def process(self, rows: pa.RecordBatch) -> Iterator[Any]:
        names = pa.array(self._stages.of_event, pa.string())
        rows = rows.filter(pc.is_in(rows[self._event], names))
        keyless = pc.is_null(rows[self._key])
        if pc.any(keyless, min_count=0).as_py():
            yield TaggedOutput("dead_letters", self._without_key(rows.filter(keyless)))
            rows = rows.filter(pc.invert(keyless))
        self._events.inc(rows.num_rows)
        found: defaultdict[str, list[Arrival]] = defaultdict(list)
        times = rows[self._event_time].view(pa.int64()).to_pylist()
        events = (self._stages.of_event[event] for event in rows[self._event].to_pylist())
        columns = [rows[column].to_pylist() for column in self._by]
        bys = zip(*columns, strict=True) if columns else iter([()] * len(times))
        watermarks = [
            None if watermark is None or watermark < time + self._wait else watermark
            for watermark, time in zip(
                watermarks_of(rows).view(pa.int64()).to_pylist(), times, strict=True
            )
        ]
        for key, *arrival in zip(
            rows[self._key].to_pylist(), times, events, bys, watermarks, strict=True
        ):
            found[key].append(Arrival(*arrival))
        for key, arrivals in found.items():
            at = Timestamp(micros=min(arrivals)[0] * 1000)
            plain = tuple(tuple(arrival) for arrival in arrivals)
            yield TaggedOutput("arrivals", TimestampedValue((key.encode(), plain), at))

    def _without_key(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return dead_letters(
            messages_of(rows),
            stage=Stage.TRANSACTIONS,
            causes=[Cause.MISSING_FIELD] * rows.num_rows,
            errors=[f"{self._key}: an event that belongs to no transaction"] * rows.num_rows,
            failed_at=self._clock(),
        )


class _Follow(beam.DoFn):
    """(key, events) to (key, fact), by a state for each transaction and a timer at its next time."""

    _KEPT = ReadModifyWriteStateSpec("transaction", FastPrimitivesCoder())
    _DUE = TimerSpec("due", TimeDomain.WATERMARK)

    def __init__(self, stages: Stages, lateness: timedelta) -> None:
        self._stages = stages
        self._wait = _wait(lateness)
        self._late = counter("transactions_late")

    def process(
        self,
        element: Any,
        kept: Any = beam.DoFn.StateParam(_KEPT),  # noqa: B008
        timer: Any = beam.DoFn.TimerParam(_DUE),  # noqa: B008
    ) -> None:
        _, arrivals = element
        before = kept.read()
        transaction = Transaction(self._stages, before)
        known = transaction.due
        self._late.inc(transaction.arrive(Arrival(*arrival) for arrival in arrivals))
        kept.write(transaction.keep())
        if (due := transaction.due) is not None and due != known:
            timer.set(Timestamp(micros=(due + self._wait) * 1000))

    @on_timer(_DUE)
    def fire(
        self,
        key: Any = beam.DoFn.KeyParam,
        kept: Any = beam.DoFn.StateParam(_KEPT),  # noqa: B008
        timer: Any = beam.DoFn.TimerParam(_DUE),  # noqa: B008
    ) -> Iterator[tuple[bytes, Fact]]:
        transaction = Transaction(self._stages, kept.read())
        due = transaction.due
        if due is None:
            return
        for fact in transaction.advance(due):
            yield key, fact
        if (due := transaction.due) is None:
            kept.clear()
            return
        kept.write(transaction.keep())
        timer.set(Timestamp(micros=(due + self._wait) * 1000))


def _wait(lateness: timedelta) -> int:
    """Milliseconds after its time that an event is taken.

    The watermark says that no event before it will come: of its own millisecond one may.
    """
    return lateness // _MILLISECOND + 1


class _ToRows(beam.DoFn):
    """(key, fact) to batches of facts, of one bundle at most."""

    def __init__(self, stages: Stages, schema: pa.Schema, by: int) -> None:
        self._names = stages.names
        self._schema = schema
        self._by = by
        self._facts: list[tuple[bytes, Fact]] = []
        self._counted = counter("transactions_facts")

    def start_bundle(self) -> None:
        self._facts = []

    def process(self, element: tuple[bytes, Fact]) -> Iterator[TimestampedValue]:
        self._facts.append(element)
        if len(self._facts) >= MOST_FACTS:
            first, rows = self._take()
            yield TimestampedValue(rows, first)

    def finish_bundle(self) -> Iterator[Any]:
        if self._facts:
            first, rows = self._take()
            yield GlobalWindows.windowed_value(rows, first)

    def _take(self) -> tuple[Timestamp, pa.RecordBatch]:
        taken, self._facts = self._facts, []
        self._counted.inc(len(taken))
        keys = [key.decode() for key, _ in taken]
        facts = [fact for _, fact in taken]
        stages = [self._names[fact.stage] for fact in facts]
        values: list[list[Any]] = [
            keys,
            [fact.what for fact in facts],
            stages,
            [None if fact.next is None else self._names[fact.next] for fact in facts],
            [fact.since for fact in facts],
            [(fact.time - fact.since) / 1000 for fact in facts],
            [fact.time for fact in facts],
            *([fact.by[i] for fact in facts] for i in range(self._by)),
        ]
        columns = [
            pa.array(column, pa.int64()).view(TIMESTAMP)
            if field.type == TIMESTAMP
            else pa.array(column, field.type)
            for column, field in zip(values, self._schema, strict=False)
        ]
        # This is what its dead letter says of a fact that an expression fails for, or that is late.
        told = pa.RecordBatch.from_arrays(columns, schema=pa.schema(list(self._schema)[:-1]))
        origins = [
            {"topic": "", "key": key, "value": value, "watermark": fact.watermark}
            for (key, fact), value in zip(taken, JsonRows(nulls=False).values(told), strict=True)
        ]
        columns.append(pa.array(origins, ORIGIN))
        rows = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        return Timestamp(micros=min(fact.time for fact in facts) * 1000), rows


class _ToAlerts(beam.DoFn):
    """(key, fact) to the document of an alert, where the fact is one or ends one."""

    def __init__(self, stages: Stages, by: Sequence[str], job: str) -> None:
        self._stages, self._by, self._job = stages, by, job

    def process(self, element: tuple[bytes, Fact]) -> Iterator[Document]:
        key, fact = element
        if fact.what in ("stuck", "resolved") or (fact.what == "dropped" and fact.overdue):
            yield alert(self._stages, self._by, self._job, key.decode(), fact)


def alert(stages: Stages, by: Sequence[str], job: str, key: str, fact: Fact) -> Document:
    """The document of an alert: ``stuck`` when it begins, ``resolved`` or ``dropped`` when it ends.

    Its id is that of the transaction in its stage, and the end has the greater version.

    >>> from velocity.transforms.stages import Stage as Of
    >>> stages = Stages([Of("order", ["created"], ["sent"], timedelta(seconds=60)), Of("sent", ["s"])])
    >>> stuck = alert(stages, ["city"], "j", "trx-1", Fact("stuck", 0, None, 60_000, 0, ("Solo",)))
    >>> stuck.id, stuck.version, stuck.values["status"], stuck.dimensions
    ('j/alerts/0/["trx-1","order"]', 3, 'stuck', {'transaction': 'trx-1', 'stage': 'order', 'city': 'Solo'})
    """
    stage, sla = stages.stages[fact.stage].name, stages.slas[fact.stage]
    assert sla is not None  # nothing else gets stuck
    begins = fact.what == "stuck"
    return Document(
        job=job,
        metric=ALERTS,
        window_start=fact.since,
        window_end=fact.since + sla,
        dimensions={"transaction": key, "stage": stage, **dict(zip(by, fact.by, strict=True))},
        values={
            "status": fact.what,
            "next": None if fact.next is None else stages.stages[fact.next].name,
            "ended_at": None if begins else rfc3339(fact.time),
            "seconds": (fact.time - fact.since) / 1000,
        },
        events=1 if begins else 2,
        pane="on_time",
        id=document_id(job, ALERTS, fact.since, [key, stage]),
    )
