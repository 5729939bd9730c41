"""Transactions of a job as transforms: the graph of its stages, and alerts on their way to Kafka."""

import json
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_producer import Record
from velocity.io.kafka_sink import EVENT_ID, WriteToKafka
from velocity.io.records import Document, rfc3339
from velocity.pipelines.job import Job, TransactionSpec
from velocity.transforms.stages import Stage, StageError, Stages
from velocity.transforms.transactions import FollowTransactions, TransactionError


class FollowError(ValueError):
    """Transactions of a job that can't be followed: where in the job, and what is wrong."""

    def __init__(self, error: str, *place: str | int) -> None:
        super().__init__(error, *place)
        self.error, self.place = error, place


def stages_of(spec: TransactionSpec) -> Stages:
    """The graph of a job's stages. Raises ``FollowError``."""
    try:
        return Stages(
            [
                Stage(name, tuple(s.events), tuple(s.next), s.sla, s.ttl or spec.ttl)
                for name, s in spec.stages.items()
            ]
        )
    except StageError as error:
        place = [part for part in (error.stage, error.key) if part]
        raise FollowError(error.error, "stages", *place) from error


def follow(job: Job, spec: TransactionSpec, schema: pa.Schema) -> FollowTransactions:
    """The step that follows a job's transactions, over rows of ``schema``. Raises ``FollowError``."""
    stages = stages_of(spec)
    try:
        return FollowTransactions(
            stages,
            key=spec.key,
            event=spec.event,
            by=spec.by,
            lateness=spec.lateness,
            schema=schema,
            event_time=job.source.event_time,
            job=job.job,
        )
    except TransactionError as error:
        raise FollowError(error.error, *error.place) from error


class WriteAlerts(beam.PTransform):
    """Documents of alerts to a topic; gives the dead letters of ``WriteToKafka``.

    The key is the transaction, the value the document without the time of its writing. The header
    ``event_id`` is the same however often a bundle is run: the document's id and version.
    """

    def __init__(self, topic: str, config: KafkaConfig) -> None:
        super().__init__()
        self._write = WriteToKafka(config, topic)

    def expand(self, alerts: beam.PCollection) -> beam.PCollection:
        records = alerts | "Record" >> beam.FlatMap(record).with_output_types(Record)
        return records | self._write


def record(document: Document) -> Iterator[Record]:
    """The message of an alert.

    >>> where = {"transaction": "trx-1", "stage": "order"}
    >>> alert = Document("j", "alerts", 0, 60_000, where, {"status": "stuck"}, 1, "on_time", "a")
    >>> [message] = record(alert)
    >>> message.key, message.headers, message.timestamp
    (b'trx-1', (('event_id', b'a#3'),), 60000)
    """
    since = rfc3339(document.window_start)
    body: dict[str, Any] = {
        "id": document.id,
        "job": document.job,
        **document.dimensions,
        "since": since,
        "due": rfc3339(document.window_end),
        **document.values,
    }
    event_id = f"{document.id}#{document.version}"
    yield Record(
        str(document.dimensions["transaction"]).encode(),
        json.dumps(body, ensure_ascii=False).encode(),
        ((EVENT_ID, event_id.encode()),),
        document.window_end,
    )
