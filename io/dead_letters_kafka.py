"""Dead letters in a Kafka topic: each the message it was, its envelope in the headers."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Final

import apache_beam as beam
import pyarrow as pa

from velocity.io.dead_letters import checked_job
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_producer import MessagesUndelivered, Outbox, Record, producing
from velocity.io.metrics import counter
from velocity.io.records import DEAD_LETTERS, TIMESTAMP, rfc3339

CUT_TO: Final = 10_000
"""Bytes that are left of a value which the broker refused for its size."""

ENVELOPE: Final = "velocity."
SIZE: Final = f"{ENVELOPE}value_bytes"
OURS: Final = {SIZE} | {
    ENVELOPE + name
    for name in [
        "job",
        "stage",
        "cause",
        "error",
        "topic",
        "partition",
        "offset",
        "timestamp",
        "failed_at",
        "attempt",
    ]
}
"""The headers of an envelope; another that begins alike is the message's own."""
_PLAIN: Final = pa.schema(
    [f.with_type(pa.int64()) if f.type == TIMESTAMP else f for f in DEAD_LETTERS]
)


def kafka_records(batch: pa.RecordBatch, job: str) -> Iterator[Record]:
    """Dead letters (``DEAD_LETTERS``) as Kafka records: key, value and headers are the originals.

    The headers added are ``velocity.job``, ``.stage``, ``.cause``, ``.error``, ``.topic``,
    ``.partition``, ``.offset``, ``.timestamp``, ``.failed_at`` (RFC 3339) and ``.attempt``; one
    without a value is left out. Of a record that failed before, they take the place of the
    earlier ones.

    >>> from datetime import UTC, datetime
    >>> from velocity.io.documents import Rejection, rejected
    >>> batch = rejected([Rejection("orders", "1", b"{}", "no")], datetime(2026, 1, 1, tzinfo=UTC))
    >>> (record,) = kafka_records(batch, "pharmacy")
    >>> record.key, record.value, record.headers[0]
    (b'1', b'{}', ('velocity.job', b'pharmacy'))
    """
    for row in batch.cast(_PLAIN).to_pylist():
        own = [(h["name"], h["value"]) for h in row["headers"] or ()]
        envelope = {
            "job": job,
            **{name: row[name] for name in ("stage", "cause", "error", "topic")},
            **{name: row[name] for name in ("partition", "offset")},
            "timestamp": None if row["timestamp"] is None else rfc3339(row["timestamp"]),
            "failed_at": rfc3339(row["failed_at"]),
            "attempt": row["attempt"],
        }
        yield Record(
            row["key"],
            row["value"],
            (
                *((name, value) for name, value in own if name not in OURS),
                *((ENVELOPE + n, str(v).encode()) for n, v in envelope.items() if v is not None),
            ),
        )


class WriteDeadLettersToKafka(beam.PTransform):
    """Writes each dead letter to a topic as the message it was, its envelope in the headers.

    Takes batches of ``DEAD_LETTERS``; the options of ``config`` are librdkafka's for a producer.
    Counts ``dead_letters_written`` and ``dead_letters_cut``. The producer is idempotent; a bundle
    that runs again still writes its dead letters again, told by ``velocity.topic``,
    ``.partition``, ``.offset`` and ``.attempt``. See ``kafka_records`` for the headers.

    A message may exceed what the topic admits, by the envelope alone, and no retry would help it.
    It is sent once more in a batch of its own, then with its value cut to ``CUT_TO`` bytes and
    ``velocity.value_bytes`` telling how many there were: the job goes on, and the original
    is still at the topic, partition and offset of its envelope. To keep such values whole
    raise ``max.message.bytes`` of the topic (and ``message.max.bytes`` here, if you set it).

    Raises ``ValueError`` at construction for a config that cannot work, and fails the bundle with
    ``MessagesUndelivered`` if the broker does not take all within ``deadline``.
    """

    def __init__(
        self,
        topic: str,
        config: KafkaConfig,
        *,
        job: str,
        deadline: timedelta = timedelta(seconds=60),
    ) -> None:
        super().__init__()
        self._sink = _ToKafka(topic, producing(config, deadline), checked_job(job), deadline)

    def expand(self, batches: beam.PCollection) -> beam.pvalue.PDone:
        _ = batches | "Write" >> beam.ParDo(self._sink)
        return beam.pvalue.PDone(batches.pipeline)


class _ToKafka(beam.DoFn):
    def __init__(self, topic: str, config: KafkaConfig, job: str, deadline: timedelta) -> None:
        self._topic, self._config, self._job = topic, config, job
        self._deadline = deadline
        self._outbox: Outbox | None = None

    def start_bundle(self) -> None:
        # The last bundle's outbox is still held here, and with it the process's producer.
        self._outbox = Outbox(self._config, self._deadline)

    def process(self, batch: pa.RecordBatch) -> None:
        assert self._outbox is not None
        for record in kafka_records(batch, self._job):
            self._outbox.send(replace(record, topic=self._topic))
        counter("dead_letters_written").inc(batch.num_rows)

    def finish_bundle(self) -> None:
        assert self._outbox is not None
        counter("dead_letters_cut").inc(settle(self._outbox))

    def teardown(self) -> None:
        self._outbox = None


def settle(outbox: Outbox) -> int:
    """Waits until all is delivered; returns how many values had to be cut for it.

    Raises ``MessagesUndelivered``, also if the broker refuses one for more than its size.
    """
    refused = outbox.settle().refused
    for refusal in refused:
        if not refusal.too_large:
            raise MessagesUndelivered(refusal.error, refusal.record.topic, 1)
        outbox.send(_cut(refusal.record))
    for refusal in outbox.settle().refused:
        raise MessagesUndelivered(f"{refusal.error} even when cut", refusal.record.topic, 1)
    return len(refused)


def _cut(record: Record) -> Record:
    value = record.value or b""
    size = (SIZE, str(len(value)).encode())
    return replace(record, value=value[:CUT_TO], headers=(*record.headers, size))
