"""Dead letters in a Kafka topic: each the message it was, its envelope in the headers."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Final

import apache_beam as beam
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from velocity.io.dead_letters import checked_job
from velocity.io.kafka_config import KafkaConfig
from velocity.io.records import DEAD_LETTERS, TIMESTAMP, counter, rfc3339

CUT_TO: Final = 10_000
"""Bytes that are left of a value which the broker refused for its size."""

_ENVELOPE: Final = "velocity."
_SIZE: Final = f"{_ENVELOPE}value_bytes"
_OURS: Final = {_SIZE} | {
    _ENVELOPE + name
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


class DeadLettersUndelivered(RuntimeError):
    """The broker did not take dead letters, so their bundle failed and its runner tries again."""

    def __init__(self, error: str, topic: str, count: int) -> None:
        # The error comes first because Beam adds the step's name to the first argument.
        super().__init__(error, topic, count)
        self.error, self.topic, self.count = error, topic, count

    def __str__(self) -> str:
        return (
            f"{self.count} dead letters did not reach topic {self.topic}: {self.error}; check that "
            "the brokers are up, the topic exists and may be written, and for a size that its "
            "max.message.bytes (on the broker, message.max.bytes) admits it"
        )


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record: what it was, with its envelope in the headers ``velocity.*``."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


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
                *((name, value) for name, value in own if name not in _OURS),
                *((_ENVELOPE + n, str(v).encode()) for n, v in envelope.items() if v is not None),
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
    ``DeadLettersUndelivered`` if the broker does not take all within ``deadline``.
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
        options = config.options
        if str(options.get("enable.idempotence", True)).lower() != "true" or any(
            str(options.get(name, "all")) not in ("all", "-1")
            for name in ("acks", "request.required.acks")
        ):
            raise ValueError("config weakens enable.idempotence or acks: leave both out")
        if deadline <= timedelta():
            raise ValueError(f"deadline is {deadline}: give more than zero")
        timeout = {"delivery.timeout.ms": int(deadline.total_seconds() * 1000)}
        if options.keys() & {"delivery.timeout.ms", "message.timeout.ms"}:
            timeout = {}
        # Just under a broker's socket.request.max.bytes: it, not the client, judges the size.
        options = {"message.max.bytes": 100_000_000, **timeout, **options}
        options["enable.idempotence"] = True
        self._sink = _ToKafka(
            topic, KafkaConfig(config.bootstrap_servers, options), checked_job(job), deadline
        )

    def expand(self, batches: beam.PCollection) -> beam.pvalue.PDone:
        _ = batches | "Write" >> beam.ParDo(self._sink)
        return beam.pvalue.PDone(batches.pipeline)


class _ToKafka(beam.DoFn):
    def __init__(self, topic: str, config: KafkaConfig, job: str, deadline: timedelta) -> None:
        self._topic, self._config, self._job = topic, config, job
        self._deadline = deadline
        self._producer: Producer | None = None

    def setup(self) -> None:
        self._producer = Producer(self._config.client())

    def start_bundle(self) -> None:
        assert self._producer is not None
        self._outbox = Outbox(self._producer, self._topic, self._deadline)

    def process(self, batch: pa.RecordBatch) -> None:
        for record in kafka_records(batch, self._job):
            self._outbox.send(record)
        counter("dead_letters_written").inc(batch.num_rows)

    def finish_bundle(self) -> None:
        counter("dead_letters_cut").inc(self._outbox.settle())

    def teardown(self) -> None:
        self._producer = None


@dataclass
class Outbox:
    """One bundle's records on their way to a topic."""

    producer: Producer
    topic: str
    deadline: timedelta
    _too_large: list[Record] = field(default_factory=list)
    _errors: list[str] = field(default_factory=list)

    def send(self, record: Record) -> None:
        """Hands a record to the producer; waits while its queue is full."""
        report = partial(self._delivered, record)
        for wait in (self._seconds, 0):
            try:
                self.producer.produce(
                    self.topic,
                    key=record.key,
                    value=record.value,
                    headers=list(record.headers),
                    on_delivery=report,
                )
            except BufferError as full:
                if not wait:
                    raise DeadLettersUndelivered(str(full), self.topic, 1) from full
                self._flush()
            except KafkaException as refused:
                if refused.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise DeadLettersUndelivered(refused.args[0].str(), self.topic, 1) from refused
                self._too_large.append(record)
                return
            else:
                self.producer.poll(0)
                return

    def settle(self) -> int:
        """Waits until all is delivered; returns how many values had to be cut.

        Raises ``DeadLettersUndelivered``.
        """
        self._flush()
        cuts = 0
        for record in self._take_too_large():
            # The broker measures batches: among small ones it may have been refused for others.
            self._alone(record)
            if self._take_too_large():
                cuts += 1
                self._alone(_cut(record))
                if self._take_too_large():
                    raise DeadLettersUndelivered("too large even when cut", self.topic, 1)
        return cuts

    def _alone(self, record: Record) -> None:
        self.send(record)
        self._flush()

    def _take_too_large(self) -> list[Record]:
        taken, self._too_large = self._too_large, []
        return taken

    @property
    def _seconds(self) -> float:
        # librdkafka looks for timed-out messages once a second, and its report says more than ours.
        return self.deadline.total_seconds() + 5

    def _flush(self) -> None:
        left = self.producer.flush(self._seconds)
        if left:
            self.producer.purge()
            self.producer.poll(0)
            raise DeadLettersUndelivered(f"not delivered in {self.deadline}", self.topic, left)
        if self._errors:
            raise DeadLettersUndelivered(self._errors[0], self.topic, len(self._errors))

    def _delivered(self, record: Record, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            return
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._too_large.append(record)
        else:
            self._errors.append(error.str())


def _cut(record: Record) -> Record:
    value = record.value or b""
    size = (_SIZE, str(len(value)).encode())
    return replace(record, value=value[:CUT_TO], headers=(*record.headers, size))
