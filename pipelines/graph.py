"""From a job to its graph: each part of the job file becomes one PTransform, and they are chained."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import apache_beam as beam
import pyarrow as pa

from velocity.io.archive import WriteToArchive
from velocity.io.archive_files import Kind
from velocity.io.dead_letter_store import KafkaLetters, Letters, ParquetLetters
from velocity.io.dead_letters import WriteDeadLettersToParquet
from velocity.io.dead_letters_kafka import WriteDeadLettersToKafka
from velocity.io.elastic import WriteToElasticsearch
from velocity.io.elastic_bulk import Limits, Retry
from velocity.io.elastic_connection import Connection
from velocity.io.elastic_index import IndexPattern
from velocity.io.influx import Bucket, WriteToInflux
from velocity.io.kafka import ReadFromKafka
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import Offsets
from velocity.io.kafka_sink import WriteToKafka
from velocity.io.lookup import Lookup
from velocity.io.records import Document, Format, WithDeadLetters, main_of
from velocity.io.registry_formats import registry_format
from velocity.io.sqlite import WriteToSqlite
from velocity.pipelines import enrichments
from velocity.pipelines.follow import FollowError, WriteAlerts, follow
from velocity.pipelines.job import (
    VARIABLE,
    EnrichmentSpec,
    FormatSpec,
    Job,
    MetricSpec,
    RegistrySpec,
    WindowSpec,
)
from velocity.pipelines.plan import without_user
from velocity.pipelines.publish import PublishError, event_records
from velocity.transforms.decode import JsonDecoder
from velocity.transforms.deduplicate import Deduplicate
from velocity.transforms.derive import Derive, Where
from velocity.transforms.enrich import Enrich, Enrichment
from velocity.transforms.fields import Field
from velocity.transforms.metric import Metric
from velocity.transforms.metrics import WindowedMetrics
from velocity.transforms.sensitive import Mask, Protect, Sensitive
from velocity.transforms.sns import SnsEnvelope
from velocity.transforms.transactions import FollowTransactions
from velocity.transforms.windows import Days, Fixed, Global, Session, Sliding, Window

Until = Literal["latest"] | datetime | Offsets | None
"""Where reading stops, as ``ReadFromKafka`` takes it; None is never."""


class Applied(Protocol):
    """What a runner runs: a job, or a replay of one."""

    @property
    def job(self) -> Job: ...

    def apply(self, pipeline: beam.Pipeline, until: Until = None) -> None: ...


class JobError(ValueError):
    """A part of a job that can't be used: its place in the file, and what is wrong."""

    def __init__(self, error: str, *place: str | int) -> None:
        super().__init__(error, *place)
        self.error, self.place = error, place

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.place))}: {self.error}"


class UnsetVariable(JobError):
    """The job refers to an environment variable that is not set."""

    def __init__(self, variable: str, *place: str | int) -> None:
        super().__init__(f"the environment variable {variable} is not set: export it", *place)
        self.args = (variable, *place)  # what unpickling calls it with
        self.variable = variable


@dataclass(frozen=True)
class Graph:
    """The parts of a job as transforms, each usable alone; ``apply`` chains them.

    ``environment`` gives the values of ``${NAME}``; only the parts that reach outside (``read``,
    ``enrichments``, ``sinks`` and ``dead_letters``) need it. Each part raises ``JobError`` if what
    the job says of it can't be used.
    """

    job: Job
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    around_lookup: Callable[[Lookup, EnrichmentSpec], Lookup] = lambda lookup, spec: lookup
    """What stands between an enrichment and its service: a replay's budget, for one."""

    @cached_property
    def decoder(self) -> JsonDecoder:
        """Of messages into the job's fields."""
        source = self.job.source
        fields = {name: Field(spec.type, spec.required) for name, spec in self.job.fields.items()}
        with _at("source", "event_time"):
            return JsonDecoder(fields, source.event_time, max_future=source.max_future)

    @cached_property
    def format(self) -> Format | None:
        """What makes JSON of the messages; none if they are."""
        match self.job.source.format:
            case "json":
                return None
            case "sns":
                return SnsEnvelope()
            case FormatSpec(avro=RegistrySpec() as spec):
                kind: Literal["avro", "protobuf"] = "avro"
            case FormatSpec(protobuf=RegistrySpec() as spec):
                kind = "protobuf"
        place = ("source", "format", kind)
        options = {n: self._value(v, *place, "options", n) for n, v in spec.options.items()}
        url = self._text(spec.registry, *place, "registry")
        with _at(*place):
            return registry_format(kind, url, options, list(self.job.fields))

    @property
    def message_decoder(self) -> JsonDecoder:
        """Of messages as the broker has them, in the job's format."""
        return replace(self.decoder, format=self.format)

    def read(self, until: Until = None, start: datetime | None = None) -> ReadFromKafka:
        """Of the job's topics, decoded; bounded if ``until`` says where to stop. It begins where the
        job says, unless ``start`` says another time."""
        source, place = self.job.source, ("source", "kafka", "topics")
        topics = [self._text(topic, *place) for topic in source.kafka.topics]
        with _at(*place):
            return ReadFromKafka(
                self._kafka,
                topics,
                decoder=self.message_decoder,
                start=start or _start(source.kafka.start),
                stop=until,
                group=source.kafka.group,
                disorder=source.disorder,
                idle_after=source.idle_after,
                discover_every=source.kafka.discover_every,
                on_lost_offsets=source.kafka.on_lost_offsets,
            )

    @cached_property
    def deduplicate(self) -> Deduplicate | None:
        spec = self.job.source.deduplicate
        if spec is None:
            return None
        with _at("source", "deduplicate"):
            if spec.by not in self.job.fields:
                raise ValueError(f"by: {spec.by!r} is none of the declared fields")
            return Deduplicate(
                spec.by,
                event_time=self.job.source.event_time,
                horizon=spec.horizon,
                shards=spec.shards,
            )

    @cached_property
    def filter(self) -> Where | None:
        if self.job.filter is None:
            return None
        with _at("filter"):
            return Where(self.job.filter, schema=self.decoder.schema)

    @cached_property
    def enriched_schema(self) -> pa.Schema:
        """Of rows after all enrichments."""
        schema = self.decoder.schema
        for i in (i for level in self.enrichment_levels for i in level):
            with _at("enrich", i):
                schema = enrichments.enrichment(self.job.enrich[i]).schema(schema)
        return schema

    @cached_property
    def enrichment_levels(self) -> Sequence[Sequence[int]]:
        """The numbers of enrichments that are looked up at once, level by level."""
        return enrichments.levels(self.job.enrich)

    @cached_property
    def enrichments(self) -> Sequence[Enrich]:
        """A step for each level."""
        made = {i: self._enrichment(i) for level in self.enrichment_levels for i in level}
        return [Enrich(*(made[i] for i in level)) for level in self.enrichment_levels]

    @cached_property
    def sensitive(self) -> Sensitive | None:
        spec = self.job.sensitive
        if spec is None:
            return None
        with _at("sensitive", "fields"):
            if self.job.source.event_time in spec.fields:
                raise ValueError("the event time decides the windows; leave it out")
            secret = self._optional(spec.hash_with, "sensitive", "hash_with")
            return Sensitive(tuple(spec.fields), secret or "", self.decoder.fields)

    @cached_property
    def protect(self) -> Protect | None:
        """Of enriched rows, and of all that is made of them."""
        if self.sensitive is None:
            return None
        with _at("sensitive", "fields"):
            return Protect(self.sensitive, self.enriched_schema)

    @cached_property
    def protected_schema(self) -> pa.Schema:
        """Of enriched rows without what is sensitive; nothing secret is needed for it."""
        spec = self.job.sensitive
        if spec is None:
            return self.enriched_schema
        with _at("sensitive", "fields"):
            stand_in = spec.hash_with or ""
            return Sensitive(tuple(spec.fields), stand_in).schema(self.enriched_schema)

    @cached_property
    def derive(self) -> Derive | None:
        if not self.job.derive:
            return None
        with _at("derive"):
            return Derive(self.job.derive, schema=self.protected_schema)

    @cached_property
    def derived_schema(self) -> pa.Schema:
        """Of rows with all their columns."""
        return self.derive.schema if self.derive else self.protected_schema

    @cached_property
    def transactions(self) -> FollowTransactions | None:
        spec = self.job.transactions
        if spec is None:
            return None
        try:
            return follow(self.job, spec, self.derived_schema)
        except FollowError as error:
            raise JobError(error.error, "transactions", *error.place) from error

    @cached_property
    def alerts(self) -> beam.PTransform | None:
        """Of alerts' documents, to Kafka."""
        spec = self.job.transactions
        if spec is None or spec.alerts is None:
            return None
        place = ("transactions", "alerts", "kafka")
        topic = self._text(spec.alerts.kafka, *place)
        with _at(*place):
            return WriteAlerts(topic, self._kafka)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the rows that metrics are computed from."""
        return self.transactions.schema if self.transactions else self.derived_schema

    @cached_property
    def metrics(self) -> WindowedMetrics:
        metrics = []
        for i, spec in enumerate(self.job.metrics):
            with _at("metrics", i):
                metrics.append(self._metric(spec))
        return self._windowed(metrics)

    @cached_property
    def sinks(self) -> Mapping[str, beam.PTransform]:
        """By name."""
        sinks: dict[str, beam.PTransform] = {}
        if spec := self.job.sinks.elasticsearch:
            connection, pattern = self.elasticsearch, self.index
            with _at("sinks", "elasticsearch"):
                sinks["elasticsearch"] = WriteToElasticsearch(
                    connection,
                    pattern.pattern,
                    create_only=spec.data_stream,
                    limits=Limits(spec.bulk.documents, spec.bulk.bytes, spec.bulk.age),
                    retry=Retry.lasting(spec.retry_for),
                )
        if self.sqlite_path is not None:
            with _at("sinks", "sqlite"):
                sinks["sqlite"] = WriteToSqlite(self.sqlite_path)
        if influx := self.job.sinks.influx:
            bucket = self._bucket
            with _at("sinks", "influx"):
                sinks["influx"] = WriteToInflux(
                    bucket,
                    limits=Limits(influx.bulk.documents, influx.bulk.bytes, influx.bulk.age),
                    retry=Retry.lasting(influx.retry_for),
                    decimals=self.metrics.reduction.decimals,
                )
        return sinks

    @property
    def targets(self) -> Mapping[str, str]:
        """Where documents go, by the sink's name: addresses, and no secrets."""
        targets: dict[str, str] = {}
        if self.job.sinks.elasticsearch:
            connection = self.elasticsearch
            targets["elasticsearch"] = connection.cloud_id or ",".join(connection.hosts)
        if self.sqlite_path is not None:
            targets["sqlite"] = str(Path(self.sqlite_path).absolute())
        if self.job.sinks.influx:
            targets["influx"] = f"{without_user(self._bucket.url)} {self._bucket.bucket}"
        return targets

    @cached_property
    def _bucket(self) -> Bucket:
        """Of a job that has this sink."""
        spec, place = self.job.sinks.influx, ("sinks", "influx")
        assert spec is not None
        url = self._text(spec.url, *place, "url")
        bucket = self._text(spec.bucket, *place, "bucket")
        org = self._optional(spec.org, *place, "org")
        token = self._optional(spec.token, *place, "token")
        with _at(*place):
            return Bucket(url, bucket, org, token)

    @cached_property
    def publish(self) -> WriteToKafka | None:
        """Of events, with all their columns, to Kafka."""
        spec, place = self.job.sinks.kafka, ("sinks", "kafka")
        if spec is None:
            return None
        sink = spec.model_copy(
            update={
                "topic": self._optional(spec.topic, *place, "topic"),
                "topics": {
                    name: self._text(topic, *place, "topics", name)
                    for name, topic in spec.topics.items()
                },
            }
        )
        config = self._kafka
        if spec.bootstrap_servers is not None:
            servers = self._text(spec.bootstrap_servers, *place, "bootstrap_servers")
            options = {n: self._value(v, *place, "options", n) for n, v in spec.options.items()}
            with _at(*place):
                config = KafkaConfig(servers, options)
        try:
            records = event_records(sink, self.derived_schema, self.job.source.kafka.topics)
        except PublishError as error:
            raise JobError(error.error, *place, *error.place) from error
        with _at(*place):
            return WriteToKafka(config, records=records)

    @property
    def sqlite_path(self) -> str | None:
        """Of a job that has this sink."""
        spec = self.job.sinks.sqlite
        return None if spec is None else self._text(spec.path, "sinks", "sqlite", "path")

    @cached_property
    def elasticsearch(self) -> Connection:
        """Of a job that has this sink."""
        spec, place = self.job.sinks.elasticsearch, ("sinks", "elasticsearch")
        assert spec is not None
        url = self._optional(spec.url, *place, "url")
        user = self._optional(spec.username, *place, "username")
        password = self._optional(spec.password, *place, "password")
        with _at(*place):
            return Connection(
                tuple(host.strip() for host in url.split(",")) if url is not None else (),
                cloud_id=self._optional(spec.cloud_id, *place, "cloud_id"),
                api_key=self._optional(spec.api_key, *place, "api_key"),
                basic_auth=(user, password) if user and password else None,
                ca_certs=self._optional(spec.ca_certs, *place, "ca_certs"),
                fingerprint=self._optional(spec.fingerprint, *place, "fingerprint"),
            )

    @cached_property
    def index(self) -> IndexPattern:
        """Of a job that has Elasticsearch as its sink."""
        spec, place = self.job.sinks.elasticsearch, ("sinks", "elasticsearch")
        assert spec is not None
        pattern = self._text(spec.index, *place, "index")
        with _at(*place):
            return IndexPattern(pattern)

    @cached_property
    def archive_path(self) -> str | None:
        """Where the job's archive is, if it has one."""
        spec = self.job.archive
        return None if spec is None else self._text(spec.path, "archive", "path")

    @cached_property
    def archives(self) -> Mapping[Kind, WriteToArchive]:
        """What writes the archive, by what it holds."""
        spec = self.job.archive
        if spec is None:
            return {}
        path = self._text(spec.path, "archive", "path")
        schemas = {}
        if spec.raw:
            schemas[Kind.RAW] = self.decoder.schema
        if spec.enriched:
            schemas[Kind.ENRICHED] = self.derived_schema
        with _at("archive"):
            return {
                kind: WriteToArchive(
                    path,
                    job=self.job.job,
                    kind=kind,
                    schema=schema,
                    event_time=self.job.source.event_time,
                    rows_per_file=spec.rows_per_file,
                )
                for kind, schema in schemas.items()
            }

    @cached_property
    def dead_letters(self) -> beam.PTransform:
        spec, job = self.job.dead_letters, self.job.job
        with _at("dead_letters"):
            if spec.parquet is not None:
                path = self._text(spec.parquet, "dead_letters", "parquet")
                return WriteDeadLettersToParquet(path, job=job)
            topic = self._text(spec.kafka or "", "dead_letters", "kafka")
            return WriteDeadLettersToKafka(topic, self._kafka, job=job)

    @property
    def dead_letters_at(self) -> tuple[KafkaConfig | None, str]:
        """Where ``dead_letters`` writes: a cluster and its topic, or no cluster and a folder."""
        spec = self.job.dead_letters
        if spec.parquet is not None:
            return None, self._text(spec.parquet, "dead_letters", "parquet")
        return self._kafka, self._text(spec.kafka or "", "dead_letters", "kafka")

    @cached_property
    def letters(self) -> Letters:
        """What ``dead_letters`` has written, to be read and replayed."""
        config, place = self.dead_letters_at
        if config is None:
            return ParquetLetters(place, self.job.job)
        return KafkaLetters(place, config, self.job.job)

    def apply(self, pipeline: beam.Pipeline, until: Until = None) -> None:
        """Adds the whole job to a pipeline."""
        decoded = pipeline | "Read" >> self.read(until)
        if Kind.RAW in self.archives:
            _ = decoded | "Archive raw" >> self.archives[Kind.RAW]
        rows = self.rows(decoded)
        if Kind.ENRICHED in self.archives:
            _ = rows | "Archive enriched" >> self.archives[Kind.ENRICHED]
        dead = []
        if self.publish:
            dead.append(main_of(rows) | "Write events to Kafka" >> self.publish)
        if self.job.metrics:
            documents, so_far = self.documents(rows)
            dead += [so_far, *(documents | f"Write to {n}" >> s for n, s in self.sinks.items())]
        else:
            dead.append(rows.dead_letters)
        letters = dead | "All dead letters" >> beam.Flatten()
        if self.sensitive:
            letters = letters | "Mask dead letters" >> Mask(self.sensitive)
        letters | "Write dead letters" >> self.dead_letters

    def rows(self, decoded: Any) -> Any:
        """From decoded rows, wherever they come from, to those that metrics are computed from."""
        flow = decoded
        if self.deduplicate:
            flow = flow | "Deduplicate" >> self.deduplicate
        if self.filter:
            flow = flow | "Filter" >> self.filter
        for enrich in self.enrichments:
            flow = flow | enrich
        if self.protect:
            flow = flow | "Protect" >> self.protect
        if self.derive:
            flow = flow | "Derive" >> self.derive
        return flow

    def documents(self, rows: Any) -> WithDeadLetters:
        """From rows to all documents of the job, and all dead letters on the way to them."""
        documents, dead = self._documents(rows)
        if number := self.job.generation:
            step = beam.Map(replace, generation=number).with_output_types(Document)
            documents = documents | "Generation" >> step
        return WithDeadLetters(documents, dead)

    def _documents(self, rows: Any) -> WithDeadLetters:
        if self.transactions is None:
            counted: WithDeadLetters = rows | "Metrics" >> self.metrics
            return counted
        facts, alerts = rows | "Transactions" >> self.transactions
        documents, dead = facts | "Metrics" >> self.metrics
        if self.alerts:
            dead = (
                dead,
                alerts | "Write alerts" >> self.alerts,
            ) | "And of alerts" >> beam.Flatten()
        return WithDeadLetters((documents, alerts) | "And alerts" >> beam.Flatten(), dead)

    @cached_property
    def _kafka(self) -> KafkaConfig:
        spec, place = self.job.source.kafka, ("source", "kafka")
        options = {
            name: self._value(value, *place, "options", name)
            for name, value in spec.options.items()
        }
        servers = self._text(spec.bootstrap_servers, *place, "bootstrap_servers")
        with _at(*place):
            return KafkaConfig(servers, options)

    def _enrichment(self, i: int) -> Enrichment:
        spec = self.job.enrich[i]

        def text(given: str, *place: str | int) -> str:
            return self._text(given, "enrich", i, *place)

        types = {name: field.type for name, field in self.job.fields.items()}
        for other in self.job.enrich:
            types |= {column: what.type for column, what in other.add.items()}
        with _at("enrich", i):
            return enrichments.enrichment(
                spec, self.around_lookup(enrichments.lookup(spec, types, text), spec)
            )

    def _metric(self, spec: MetricSpec) -> Metric:
        metric = Metric(
            spec.name,
            spec.values,
            window_of(spec.window),
            by=spec.by,
            where=spec.where,
            early=spec.emit.early,
            lateness=spec.emit.lateness,
            id=spec.id,
        )
        self._windowed([metric])  # what is wrong with it is said with its place
        return metric

    def _windowed(self, metrics: Sequence[Metric]) -> WindowedMetrics:
        return WindowedMetrics(
            metrics, schema=self.schema, event_time=self.job.source.event_time, job=self.job.job
        )

    def _text(self, text: str, *place: str | int) -> str:
        """The text with the values of the environment in place of ``${NAME}``."""

        def value(match: re.Match[str]) -> str:
            if match[1] not in self.environment:
                raise UnsetVariable(match[1], *place)
            return self.environment[match[1]]

        return VARIABLE.sub(value, text)

    def _value(self, value: Any, *place: str | int) -> Any:
        return self._text(value, *place) if isinstance(value, str) else value

    def _optional(self, text: str | None, *place: str | int) -> str | None:
        return None if text is None else self._text(text, *place)


@contextmanager
def _at(*place: str | int) -> Iterator[None]:
    """Says of an error where in the job it is."""
    try:
        yield
    except JobError:
        raise
    except ValueError as error:
        raise JobError(str(error), *place) from error


def window_of(spec: WindowSpec) -> Window:
    """The windows that a metric's file describes."""
    if spec.fixed is not None and spec.timezone is not None:
        return Days(spec.fixed.days, spec.timezone)
    if spec.fixed is not None:
        return Fixed(spec.fixed, spec.offset) if spec.offset else Fixed(spec.fixed)
    if spec.sliding is not None and spec.every is not None:
        return Sliding(spec.sliding, spec.every)
    if spec.global_:
        return Global()
    assert spec.session is not None  # the model has made sure
    return Session(spec.session)


def _start(start: Any) -> Any:
    """As ``ReadFromKafka`` takes it: offsets by topic and partition in one."""
    if not isinstance(start, Mapping):
        return start
    return {(topic, number): at for topic, of in start.items() for number, at in of.items()}
