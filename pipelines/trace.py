"""The way of one event through a job: where it was read, how enriched, and which documents count it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from velocity.io.archive_read import Between
from velocity.io.copies import Origin, origin_of
from velocity.io.dead_letter_store import Letter
from velocity.io.find_messages import Progress, in_enriched_archive, in_kafka, in_raw_archive
from velocity.io.records import MESSAGE, Cause, Document, Stage, now, origins, rfc3339
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.transforms.enrich import enrich
from velocity.transforms.expressions import Expressions
from velocity.transforms.metrics import document_id, ids_of
from velocity.transforms.windows import Session, millis

KAFKA: Final = "kafka"
RAW: Final = "raw"
ARCHIVE: Final = "archive"

Stored = Callable[[Sequence[Document]], Mapping[str, Mapping[str, Any]]]
"""What the store has of documents, by id."""
Around = Callable[[str, Mapping[str, Any], int], Iterable[tuple[str, Mapping[str, Any]]]]
"""The documents of a metric and key whose windows hold a time, with their ids: of sessions."""


class CannotTrace(ValueError):
    """The job's events can't be told apart; the message says why and what to do."""


@dataclass(frozen=True)
class Counted:
    """What became of the event in one document."""

    metric: str
    status: str
    """``counted``; ``late``; ``open`` if its document is still to come, ``absent`` if it is not there."""
    id: str | None = None
    index: str | None = None
    window_start: str | None = None
    window_end: str | None = None
    dimensions: Mapping[str, Any] = field(default_factory=dict)
    pane: str | None = None
    events: int | None = None
    version: int | None = None
    written_at: str | None = None


@dataclass(frozen=True)
class Failed:
    """A dead letter of the event."""

    id: str
    stage: str
    cause: str
    error: str
    failed_at: str
    attempt: int
    replayed: bool


@dataclass(frozen=True)
class Reading:
    """One message that holds the event: an event that was sent twice has two."""

    topic: str
    partition: int
    offset: int
    sent_at: str | None
    """The broker's timestamp."""
    read_from: str
    """``kafka``, or the archive: ``raw`` or ``archive``."""
    status: str
    """``counted``, ``dead_letter``, ``duplicate``, ``filtered``, ``unwanted`` (by no metric),
    ``followed`` (by transactions, whose facts count), or ``waiting`` for its documents."""
    why: str
    event_time: str | None = None
    copy_of: str | None = None
    enriched: Mapping[str, Any] = field(default_factory=dict)
    enriched_by: str | None = None
    """``archive``, as it was in its day, or ``services``, as they answer now."""
    documents: Sequence[Counted] = ()
    dead_letters: Sequence[Failed] = ()

    @property
    def place(self) -> Origin:
        return Origin(self.topic, self.partition, self.offset)


@dataclass(frozen=True)
class Way:
    """All that is known of an event."""

    job: str
    event_id: str
    readings: Sequence[Reading]
    looked_in: Sequence[str]
    letters: Sequence[Failed] = ()
    """Dead letters that hold the id, of messages that are not there any more."""

    @property
    def found(self) -> bool:
        return bool(self.readings or self.letters)

    def plain(self) -> dict[str, Any]:
        """For other programs."""
        return {**asdict(self), "found": self.found}


def id_column(job: Job, given: str | None = None) -> str:
    """The field that tells a job's events apart: given, that of ``deduplicate``, or ``event_id``."""
    column = given or (job.source.deduplicate.by if job.source.deduplicate else "event_id")
    if column not in job.fields:
        raise CannotTrace(
            f"the job has no field {column!r}: name the one that holds events' ids with --by, of "
            f"{', '.join(job.fields)}"
        )
    return column


def asking_once(job: Job) -> Job:
    """The job with enrichments that don't wait for a service, so that the answer is its failure."""
    specs = [spec.model_copy(update={"on_error": "dead_letter"}) for spec in job.enrich]
    return job.model_copy(update={"enrich": specs})


class Tracer:
    """Follows events of a job through its own steps, one message at a time, and writes nothing.

    What a step with a memory decides (duplicates, transactions) is not computed again: the first
    message of an id counts, as long as it is within the horizon.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        stored: Stored,
        around: Around,
        letters: Sequence[Letter],
        ask: bool = True,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._graph = Graph(asking_once(graph.job), graph.environment, graph.around_lookup)
        self._stored, self._around = stored, around
        self._letters, self._ask, self._clock = letters, ask, clock

    def trace(
        self,
        event_id: str,
        by: str,
        *,
        sources: Sequence[str],
        since: datetime | None = None,
        progress: Progress = lambda done, of: None,
    ) -> Way:
        """Looks for the event in one source after the other, until it is found."""
        looked_in = []
        readings: list[Reading] = []
        for source in sources:
            looked_in.append(source)
            for rows in self._found(source, event_id, by, since, progress):
                readings += self._readings(source, rows, event_id, by, readings)
            if readings:
                break
        mentioned = [letter for letter in self._letters if self._mentions(letter, event_id)]
        seen = {reading.place for reading in readings}
        lost = [letter for letter in mentioned if letter.origin not in seen]
        job = self._graph.job.job
        return Way(job, event_id, readings, looked_in, [_failed(letter) for letter in lost])

    def _mentions(self, letter: Letter, event_id: str) -> bool:
        return event_id.encode() in (letter.value or b"") and letter.stage != Stage.SINK

    def _found(
        self, source: str, event_id: str, by: str, since: datetime | None, progress: Progress
    ) -> Iterator[pa.RecordBatch]:
        graph, text = self._graph, event_id.encode()
        if source == KAFKA:
            read = graph.read("latest")
            yield from in_kafka(read.config, read.topics, text, since=since, progress=progress)
        elif graph.archive_path and source == RAW:
            yield from in_raw_archive(graph.archive_path, graph.job.job, text, since=since)
        elif graph.archive_path:
            schema = graph.derived_schema
            wanted = self._protected(by, event_id)
            yield from in_enriched_archive(
                graph.archive_path, graph.job.job, schema, by, wanted, None
            )

    def _protected(self, by: str, event_id: str) -> str:
        sensitive = self._graph.sensitive
        hashed = sensitive is not None and by in sensitive.fields and sensitive.secret
        return sensitive.hashed(event_id) if sensitive and hashed else event_id

    def _readings(
        self, source: str, batch: pa.RecordBatch, event_id: str, by: str, before: Sequence[Reading]
    ) -> Iterator[Reading]:
        known = list(before)
        for i in range(batch.num_rows):
            one = batch.slice(i, 1)
            if source == ARCHIVE:
                reading = self._of_row(one, source, enriched_by=ARCHIVE)
            else:
                found = self._of_message(one, source, event_id, by, known)
                if found is None:
                    continue
                reading = found
            known.append(reading)
            yield reading

    def _of_message(
        self,
        message: pa.RecordBatch,
        source: str,
        event_id: str,
        by: str,
        before: Sequence[Reading],
    ) -> Reading | None:
        """None for a message that holds the id and is another event."""
        graph = self._graph
        rows, dead = graph.message_decoder.decode(message)
        start = _start(message, source)
        start = replace(start, dead_letters=self._letters_of(start))
        if dead.num_rows:
            cause, error = dead["cause"][0].as_py(), dead["error"][0].as_py()
            return replace(start, status="dead_letter", why=f"decode: {cause}: {error}")
        if str(rows[by][0].as_py()) != event_id:
            return None
        start = replace(start, event_time=_time(rows, graph.job.source.event_time))
        first = next((r for r in before if r.copy_of is None and r.status != "dead_letter"), None)
        if first is not None and start.copy_of is None and graph.deduplicate:
            why = f"{first.place} has the same {by} and came first"
            return replace(start, status="duplicate", why=why)
        return self._onward(rows, start)

    def _onward(self, rows: pa.RecordBatch, start: Reading) -> Reading:
        graph, job = self._graph, self._graph.job
        if job.filter is not None:
            met = Expressions(rows.schema, {"where": job.filter}).evaluate(rows)
            if met.failures:
                return _dead(start, Stage.DERIVE, Cause.EXPRESSION_FAILED, met.failures[0][1])
            if not met.columns.column(0)[0].as_py():
                return replace(start, status="filtered", why=f"it does not meet {job.filter}")
        archived = self._archived(start)
        if archived is not None:
            return self._of_row(archived, start.read_from, enriched_by=ARCHIVE, start=start)
        if not self._ask and job.enrich:
            why = "it goes on to the enrichments, which were not asked (--no-ask)"
            return replace(start, status="waiting", why=why)
        for step in graph.enrichments:
            rows, dead, _ = enrich(rows, step.enrichments, self._clock)
            if dead.num_rows:
                cause, error = dead["cause"][0].as_py(), dead["error"][0].as_py()
                found = _dead(start, Stage.ENRICH, cause, error)
                waits = cause == Cause.SERVICE_FAILED
                return replace(found, status="waiting") if waits else found
        if graph.sensitive:
            rows = graph.sensitive.rows(rows)
        if job.derive:
            derived = Expressions(rows.schema, job.derive).evaluate(rows)
            if derived.failures:
                return _dead(start, Stage.DERIVE, Cause.EXPRESSION_FAILED, derived.failures[0][1])
            rows = _widened(rows, derived.columns, graph.derived_schema)
        by = "services" if job.enrich else None
        return self._of_row(rows, start.read_from, enriched_by=by, start=start)

    def _archived(self, start: Reading) -> pa.RecordBatch | None:
        """The event as it went into the enriched archive, if that is kept and has it."""
        graph, spec = self._graph, self._graph.job.archive
        if not spec or not spec.enriched or not graph.archive_path or not start.event_time:
            return None
        at = datetime.fromisoformat(start.event_time)
        millis = Between.times(at, at).start
        column = graph.job.source.event_time
        rows = in_enriched_archive(
            graph.archive_path,
            graph.job.job,
            graph.derived_schema,
            column,
            _as_text(at, graph.derived_schema.field(column).type),
            Between(millis, millis + 1),
        )
        for batch in rows:
            for i in range(batch.num_rows):
                one = batch.slice(i, 1)
                if _start(one, ARCHIVE).place == start.place:
                    return one
        return None

    def _of_row(
        self,
        row: pa.RecordBatch,
        source: str,
        *,
        enriched_by: str | None,
        start: Reading | None = None,
    ) -> Reading:
        """Of a row with all its columns: what is left are the metrics."""
        graph, job = self._graph, self._graph.job
        if start is None:
            start = _start(row, source)
            start = replace(
                start,
                event_time=_time(row, job.source.event_time),
                dead_letters=self._letters_of(start),
            )
        added = [column for spec in job.enrich for column in spec.add]
        values = {c: row[c][0].as_py() for c in added if c in row.schema.names}
        start = replace(start, enriched=values, enriched_by=enriched_by)
        if job.transactions:
            return replace(
                start,
                status="followed",
                why="it is a step of a transaction, whose facts are counted in its place",
            )
        reduction = graph.metrics.reduction.reduce(row)
        if reduction.failures:
            error = reduction.failures[0][1]
            return _dead(start, Stage.METRICS, Cause.EXPRESSION_FAILED, error)
        wanted = [self._document(reduced) for reduced in reduction.partials if reduced.partial[0]]
        documents = [self._counted(document, start) for group in wanted for document in group]
        if not documents:
            return replace(start, status="unwanted", why="it meets the condition of no metric")
        statuses = {document.status for document in documents}
        status = "counted" if "counted" in statuses else "dead_letter" if "late" in statuses else ""
        counted = sum(document.status == "counted" for document in documents)
        why = f"{counted} of {len(documents)} documents count it"
        return replace(start, status=status or "waiting", why=why, documents=documents)

    def _document(self, reduced: Any) -> list[tuple[Document, Mapping[str, Any] | None]]:
        """The documents that a partial result counts in, with what the store has of them."""
        metric, job = reduced.metric, self._graph.job
        _, *key = json.loads(reduced.key)
        dimensions = dict(zip(metric.by, key, strict=True))
        if isinstance(metric.window, Session):
            found = self._around(metric.name, dimensions, reduced.time)
            sessions: list[tuple[Document, Mapping[str, Any] | None]] = [
                (
                    Document(
                        job.job,
                        metric.name,
                        _millis(body["window_start"]),
                        _millis(body["window_end"]),
                        dimensions,
                        {},
                        0,
                        "on_time",
                        id_,
                        slot=metric.window.slot(_millis(body["window_start"])),
                    ),
                    body,
                )
                for id_, body in found
            ]
            if sessions:
                return sessions
            end = reduced.time + millis(metric.window.gap)
            unknown = Document(job.job, metric.name, reduced.time, end, dimensions, {}, 0, "", "")
            return [(unknown, None)]
        own = ids_of(job.job, [metric]).get(metric.name)
        documents = [
            Document(
                job.job,
                metric.name,
                begin,
                metric.window.end(begin),
                dimensions,
                {},
                0,
                "on_time",
                own.of(begin, key) if own else document_id(job.job, metric.name, begin, key),
            )
            for begin in metric.window.starts(reduced.time)
        ]
        bodies = self._stored(documents)
        return [(document, bodies.get(document.id)) for document in documents]

    def _counted(self, found: tuple[Document, Mapping[str, Any] | None], start: Reading) -> Counted:
        document, body = found
        late = any(
            letter.cause == Cause.LATE and f"{document.metric} (window from" in letter.error
            for letter in start.dead_letters
        )
        is_open = document.window_end > self._clock().timestamp() * 1000
        status = "late" if late else "counted" if body else "open" if is_open else "absent"
        index = None
        if self._graph.job.sinks.elasticsearch and document.id:
            index = self._graph.index.name(document)
        more = {n: body[n] for n in ("pane", "events", "version", "written_at")} if body else {}
        return Counted(
            document.metric,
            status,
            document.id or None,
            index,
            rfc3339(document.window_start),
            rfc3339(min(document.window_end, _LAST)),
            document.dimensions,
            **more,
        )

    def _letters_of(self, start: Reading) -> list[Failed]:
        wanted = {start.place, origin_of_text(start.copy_of) or start.place}
        return [_failed(letter) for letter in self._letters if letter.origin in wanted]


_LAST: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def origin_of_text(text: str | None) -> Origin | None:
    return None if text is None else origin_of([("velocity-origin", text.encode())])


def _start(row: pa.RecordBatch, source: str) -> Reading:
    """Where a message, or the message of a row, stands; it begins to be followed."""
    origin = (row[MESSAGE] if MESSAGE in row.schema.names else origins(row))[0].as_py()
    headers = [(h["name"], h["value"]) for h in origin["headers"] or ()]
    copied = origin_of(headers)
    return Reading(
        origin["topic"],
        origin["partition"],
        origin["offset"],
        None if origin["timestamp"] is None else _iso(origin["timestamp"]),
        source,
        "waiting",
        "",
        copy_of=None if copied is None else str(copied),
    )


def _dead(start: Reading, stage: Stage, cause: str, error: str) -> Reading:
    return replace(start, status="dead_letter", why=f"{stage}: {cause}: {error}")


def _failed(letter: Letter) -> Failed:
    return Failed(
        letter.id,
        letter.stage,
        letter.cause,
        letter.error,
        _iso(letter.failed_at),
        letter.attempt,
        letter.replayed,
    )


def _widened(rows: pa.RecordBatch, more: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    columns |= dict(zip(more.schema.names, more.columns, strict=True))
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _time(rows: pa.RecordBatch, column: str) -> str | None:
    time = rows[column][0].as_py()
    return None if time is None else _iso(time)


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _as_text(at: datetime, type_: pa.DataType) -> str:
    """A time as a column of times reads as text."""
    text: str = pa.scalar(at, type_).cast(pa.string()).as_py()
    return text


def _millis(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)
