"""A replay: a job's graph over a stretch of its history, part by part, to the same documents."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa

from velocity.io.archive_files import ArchiveFile, Kind, files_of, units
from velocity.io.archive_keep import expired_before
from velocity.io.archive_read import Between, ReadFromArchive
from velocity.io.exports import ReadFromExports
from velocity.io.kafka_config import KafkaConfig
from velocity.io.lookup import Lookup
from velocity.io.pace import BudgetedLookup, CountedLookup, Limits, Pace
from velocity.io.records import MESSAGE, TIMESTAMP
from velocity.pipelines.follow import stages_of
from velocity.pipelines.graph import Graph, window_of
from velocity.pipelines.job import EnrichmentSpec, FieldSpec, Job, MetricSpec
from velocity.transforms.aggregates import Value
from velocity.transforms.decode import Decode, JsonDecoder
from velocity.transforms.expressions import columns_in
from velocity.transforms.fields import TYPES
from velocity.transforms.ranges import (
    Alert,
    OnlyComplete,
    Part,
    Span,
    Stretch,
    Within,
    gap_of,
    part_of,
    parts,
)
from velocity.transforms.settled import SettledFrom, longest_of, quiet_of
from velocity.transforms.stages import Stages
from velocity.transforms.transactions import ALERTS
from velocity.transforms.windows import millis

KAFKA: Final = "kafka"
ARCHIVE: Final = "archive"
RAW: Final = "raw"
SOURCES: Final = (KAFKA, ARCHIVE, RAW)
"""Where history is read; another word is the path of an export, or a pattern of several."""

_KINDS: Final = {ARCHIVE: Kind.ENRICHED, RAW: Kind.RAW}

_WIDEST: Final = timedelta(days=1)
"""How far around a part is read for sessions that were cut, at most; or the first padding."""

_GAPS: Final = 10
"""How many gaps before and after its range a replay reads first, for sessions to begin and end."""


_TYPES: Final = {
    arrow: name for name, arrow in TYPES.items() if name in ("string", "int64", "double", "bool")
} | {TIMESTAMP: "timestamp"}


class ReplayError(ValueError):
    """A replay that can't be made: why, and the remedy."""


@dataclass(frozen=True)
class Replay:
    """A job's replay of the windows that reach into ``start`` to ``stop``.

    ``source`` is one of ``SOURCES`` or a path. From ``archive``, whose events are enriched, no
    service is asked: events keep what was added to them in their day, while filters and derived
    columns are computed anew. The others go through all of the job's steps.

    Raises ``ReplayError`` and what ``Graph`` raises.
    """

    job: Job
    source: str
    start: datetime
    stop: datetime
    environment: Mapping[str, str] = field(repr=False)
    limits: Limits = field(default_factory=Limits)
    late: timedelta = timedelta(0)
    """How much longer than lateness and disorder Kafka is read after the end, by its timestamps."""
    dry: bool = False
    """Whether services are not asked, and only the calls counted."""

    def __post_init__(self) -> None:
        if self.start >= self.stop:
            raise ReplayError(f"--from {self.start} is not before --to {self.stop}")
        if not self.job.metrics:
            raise ReplayError(
                "the job counts nothing that could be counted anew; to write its events to Kafka once "
                "more, run it with source.kafka.start at the time from which"
            )
        archive = self.job.archive
        for source, kept in (
            (ARCHIVE, archive and archive.enriched),
            (RAW, archive and archive.raw),
        ):
            if self.source == source and not kept:
                key = "enriched" if source == ARCHIVE else "raw"
                raise ReplayError(
                    f"the job keeps no such archive: give it `archive: {{path: …, {key}: true}}`, or "
                    "choose another --source"
                )
        if not self.windowed.metrics:
            raise ReplayError(
                "all metrics of the job have global windows, which no range of history fills: run the "
                "job anew from the start of its topics instead, with another generation"
            )

    @property
    def left_out(self) -> Sequence[str]:
        """The metrics of global windows, whose documents are those of all history."""
        return [spec.name for spec in self.job.metrics if spec.window.global_]

    @cached_property
    def windowed(self) -> Job:
        """The job without the metrics that are left out."""
        kept = [spec for spec in self.job.metrics if not spec.window.global_]
        return self.job.model_copy(update={"metrics": kept})

    @cached_property
    def graph(self) -> Graph:
        """Of the replay: from an archive of enriched events one without enrichments."""
        job = enriched_already(self.windowed) if self.source == ARCHIVE else self.windowed
        if job.transactions:  # whoever reads the topic has been told once
            quiet = job.transactions.model_copy(update={"alerts": None})
            job = job.model_copy(update={"transactions": quiet})
        if self.dry:
            asking = [spec.model_copy(update={"on_missing": "null"}) for spec in job.enrich]
            job = job.model_copy(update={"enrich": asking})
        return Graph(job, self.environment, self._lookup)

    def _lookup(self, lookup: Lookup, spec: EnrichmentSpec) -> Lookup:
        if self.dry:
            return CountedLookup(spec.max_keys)
        rate = self.limits.share(self.limits.rest_calls)
        # Each has a bucket of its own, for steps of one worker share nothing once they are pickled.
        return lookup if rate is None else BudgetedLookup(lookup, rate / len(self.job.enrich))

    @cached_property
    def windows(self) -> Mapping[str, Stretch]:
        """Of the metrics, by name, and of alerts."""
        found: dict[str, Stretch] = {s.name: window_of(s.window) for s in self.windowed.metrics}
        if self.stages:
            millisecond = timedelta(milliseconds=1)
            due = [(s, t) for s, t in zip(self.stages.slas, self.stages.ttls, strict=True) if s]
            if due:
                found[ALERTS] = Alert(*(max(some) * millisecond for some in zip(*due, strict=True)))
        return found

    @cached_property
    def stages(self) -> Stages | None:
        """Of a job that follows transactions."""
        return stages_of(self.job.transactions) if self.job.transactions else None

    @property
    def pad(self) -> timedelta:
        """What is read around the range for sessions, and before it for transactions, at first; zero if
        neither can be cut."""
        gaps = _GAPS * (gap_of(self.windows.values()) or timedelta(0))
        lives = quiet_of(self.stages) + longest_of(self.stages) if self.stages else timedelta(0)
        return max(gaps, lives)

    @property
    def widest(self) -> timedelta:
        """How far around a part it is read at most, for what was cut."""
        return max(_WIDEST, 2 * self.pad if self.stages else timedelta(0))

    def check(self, part: Part) -> None:
        """Raises ``ReplayError`` if what a part reads is known to be gone from the archive."""
        if self.source not in (ARCHIVE, RAW):
            return
        path = self.graph.archive_path
        assert path is not None
        gone = expired_before(path, _KINDS[self.source], self.job.job)
        first = Between(*self._looked_at(part)).first
        if gone is not None and first < gone:
            raise ReplayError(
                f"the archive was expired up to {gone.isoformat()}, and windows from "
                f"{self.start.isoformat()} on begin {first.isoformat()}: give a later --from"
            )

    def _looked_at(self, part: Part) -> Span:
        """What a part reads, and before it what may be the first of an event's copies."""
        spec = self.graph.job.source.deduplicate
        horizon = spec.horizon // timedelta(milliseconds=1) if spec else 0
        return Span(part.read.start - horizon, part.read.stop)

    def kafka_since(self, part: Part) -> tuple[KafkaConfig, Sequence[str], datetime]:
        """What a part reads of Kafka, and since when by the broker's timestamps."""
        read = self.graph.read("latest")
        return read.config, read.topics, self._sent_since(part)

    def parts(self, length: timedelta | None, until: datetime) -> list[Part]:
        """The replay in parts of that length of event time, to be made one after the other.

        ``until`` is how far history is known, for sure: what it is not, is not complete.
        """
        whole = Between.times(self.start, self.stop)
        known = Between.times(self.start, until).stop
        return parts(
            list(self.windows.values()),
            Span(whole.start, whole.stop),
            length,
            pad=self.pad,
            until=known,
            before=self._before(self.pad),
        )

    def written(self, parts: Sequence[Part]) -> tuple[int, int, int, Mapping[str, int]]:
        """Which windows all parts write: those that reach into a range, by its start and stop, and are
        over by a time; of alerts, which are known later, those that begin before another stop."""
        whole = Between.times(self.start, self.stop)
        until, stops = parts[0].until, {}
        if isinstance(alert := self.windows.get(ALERTS), Alert):
            stops[ALERTS] = min(whole.stop, until - millis(alert.ttl))
        return whole.start, whole.stop, until, stops

    def _before(self, pad: timedelta) -> timedelta:
        return pad if self.stages else timedelta(0)

    def wider(self, part: Part, pad: timedelta) -> Part:
        """A part that reads more around it, for what was cut."""
        return part_of(
            self.windows.values(),
            part.wanted,
            first=part.first,
            pad=pad,
            until=part.until,
            before=self._before(pad),
        )

    def files(self, part: Part) -> Sequence[ArchiveFile]:
        """Of the archive those that the part reads."""
        path = self.graph.archive_path
        assert path is not None
        kind = _KINDS[self.source]
        between = Between(*self._looked_at(part))
        return files_of(path, kind, self.job.job, between.first, between.last)

    def apply(
        self,
        pipeline: beam.Pipeline,
        part: Part,
        sinks: Mapping[str, beam.PTransform],
        dead_letters: beam.PTransform | None,
        *,
        told: str | None = None,
    ) -> None:
        """Adds a part to a pipeline: its documents into ``sinks``.

        Its dead letters go where ``dead_letters`` says; without it they are counted alone, for
        what a replay reads stays where it is. ``told`` is a folder for its progress.
        """
        graph = replace(self.graph)  # anew, for a transform belongs to one pipeline
        event_time = self.job.source.event_time
        decoded = pipeline | "Read" >> self._read(part, graph)
        if self.source != ARCHIVE:
            decoded = decoded | "Within" >> Within(self._looked_at(part), event_time)
        rate = self.limits.share(self.limits.events)
        paced = decoded | "Pace" >> Pace(rate, folder=told, event_time=event_time)
        rows = graph.rows(paced)
        if graph.deduplicate:  # what was read before is there to know its copies by
            rows = rows | "Within again" >> Within(part.read, event_time)
        flow = graph.documents(rows)
        complete = OnlyComplete(part, self.windows, self._settled(rows, part))
        documents, dead = flow | "Complete" >> complete
        if self.limits.documents:
            share = self.limits.share(self.limits.documents)
            documents = documents | "Pace documents" >> Pace(share)
        written = [documents | f"Write to {name}" >> sink for name, sink in sinks.items()]
        if dead_letters:
            _ = [dead, *written] | "All dead letters" >> beam.Flatten() | "Keep" >> dead_letters

    def _settled(self, rows: Any, part: Part) -> beam.PCollection | None:
        spec = self.job.transactions
        if spec is None or self.stages is None:
            return None
        return rows | "Settled" >> SettledFrom(
            self.stages,
            key=spec.key,
            event=spec.event,
            event_time=self.job.source.event_time,
            start=part.read.start,
        )

    def _read(self, part: Part, graph: Graph) -> beam.PTransform:
        if self.source == KAFKA:
            return graph.read(Between(*part.read).last + self._late, self._sent_since(part))
        if self.source == ARCHIVE:
            return self._from_archive(part, graph.decoder.schema)
        if self.source == RAW:
            return _Decoded(self._from_archive(part, None), graph.message_decoder)
        types = {name: spec.type for name, spec in self.job.fields.items()}
        return _Decoded(ReadFromExports(self.source, types), graph.decoder)

    def _sent_since(self, part: Part) -> datetime:
        """No event is further past its message's timestamp, or its message was a dead letter."""
        return Between(*self._looked_at(part)).first - self.job.source.max_future

    def _from_archive(self, part: Part, schema: pa.Schema | None) -> ReadFromArchive:
        return ReadFromArchive(
            list(units(self.files(part))),
            kind=_KINDS[self.source],
            event_time=self.job.source.event_time,
            between=Between(*self._looked_at(part)),
            schema=schema,
        )

    @property
    def _late(self) -> timedelta:
        """After an event's own time, by when its message is in Kafka, or too late to count."""
        lateness = max(spec.emit.lateness for spec in self.windowed.metrics)
        return lateness + self.job.source.disorder + self.late


class _Decoded(beam.PTransform):
    def __init__(self, read: beam.PTransform, decoder: JsonDecoder) -> None:
        super().__init__()
        self._read, self._decoder = read, decoder

    def expand(self, pbegin: Any) -> Any:
        return pbegin | "Messages" >> self._read | "Decode" >> Decode(self._decoder)


def enriched_already(job: Job) -> Job:
    """The job for events that have what its enrichments add; of the columns those that it uses.

    >>> from velocity.pipelines.jobfile import parse
    >>> from velocity.pipelines.reference import EXAMPLE
    >>> lean = enriched_already(parse(EXAMPLE.encode(), "job.yaml").job)
    >>> sorted(lean.fields), lean.enrich
    (['amount', 'city', 'event_time', 'event_type', 'patient_id'], [])
    """
    stored = Graph(job, {}).protected_schema
    fields = {c.name: FieldSpec(type=_named(c.type)) for c in stored if c.name != MESSAGE}
    if job.transactions:  # metrics are over facts
        by_metrics = {job.transactions.key, job.transactions.event, *job.transactions.by}
    else:
        by_metrics = used(
            [e for m in job.metrics for e in (m.where, *_arguments(m)) if e],
            [*fields, *job.derive],
        ) | {column for metric in job.metrics for column in metric.by}
    derive = {name: sql for name, sql in job.derive.items() if name in by_metrics}
    hidden = job.sensitive.fields if job.sensitive else ()
    # What has passed it needs no filter by what it no longer has.
    filtered = job.filter if job.filter and not used([job.filter], list(hidden)) else None
    needed = by_metrics | {job.source.event_time}
    needed |= used([*derive.values(), *([filtered] if filtered else [])], list(fields))
    return job.model_copy(
        update={
            "source": job.source.model_copy(update={"deduplicate": None}),
            "fields": {name: spec for name, spec in fields.items() if name in needed},
            "filter": filtered,
            "enrich": [],
            "sensitive": None,
            "derive": derive,
        }
    )


def _named(type_: pa.DataType) -> Any:
    decimal = pa.types.is_decimal(type_)
    return f"decimal({type_.precision}, {type_.scale})" if decimal else _TYPES[type_]


def used(expressions: Sequence[str], columns: Sequence[str]) -> set[str]:
    """Those of the columns that the expressions need."""
    return {name for expression in expressions for name in columns_in(expression, columns)}


def _arguments(metric: MetricSpec) -> Iterator[str | None]:
    for text in metric.values.values():
        yield from (call.expression for call in Value.parse(text).calls)
