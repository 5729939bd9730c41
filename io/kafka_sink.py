"""Messages into Kafka: at least once, each delivered before its bundle is done."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from velocity.io.documents import write_documents
from velocity.io.json_rows import text
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_producer import Outbox, Record, Refusal, producing
from velocity.io.metrics import counter
from velocity.io.records import MESSAGES, TIMESTAMP, Cause, Stage, dead_letters, now

EVENT_ID: Final = "event_id"
"""The header by which consumers tell a message that was written twice."""

# Of what it does not admit librdkafka says no more than of a topic that is not there yet.
# Source: org.apache.kafka.common.internals.Topic
_TOPIC: Final = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")


class Serializer(Protocol):
    """Turns rows into the values of messages. It is pickled with the graph."""

    def values(self, rows: pa.RecordBatch) -> Sequence[bytes | None]:
        """One for each row, in their order; None is a tombstone."""


class Records(Protocol):
    """Makes messages of a batch. It is pickled with the graph."""

    def records(self, batch: pa.RecordBatch) -> Iterable[Record]:
        """Those without a topic of their own go where the sink says."""


@dataclass(frozen=True, slots=True)
class RowRecords:
    """Makes a record of each row; ``key`` and the others name columns, a null is left out.

    Strings are written in UTF-8, bytes as they are, times in RFC 3339, other values as text.

    >>> from velocity.io.json_rows import JsonRows
    >>> rows = pa.RecordBatch.from_pydict({"city": ["Solo"], "id": ["e1"], "n": [3]})
    >>> list(RowRecords(JsonRows(), key="city", headers=["n"], event_id="id").records(rows))
    [Record(key=b'Solo', value=b'{"city":"Solo","id":"e1","n":3}', \
headers=(('n', b'3'), ('event_id', b'e1')), timestamp=None, topic='', partition=None)]
    """

    serializer: Serializer
    key: str | None = None
    headers: Sequence[str] = ()
    event_id: str | None = None
    timestamp: str | None = None

    def records(self, rows: pa.RecordBatch) -> Iterator[Record]:
        none: list[Any] = [None] * rows.num_rows
        headers = [(name, _bytes(rows[name])) for name in self.headers]
        if self.event_id is not None:
            headers.append((EVENT_ID, _bytes(rows[self.event_id])))
        values = self.serializer.values(rows)
        keys = none if self.key is None else _bytes(rows[self.key])
        times = none if self.timestamp is None else _millis(rows[self.timestamp])
        for i, (value, key, time) in enumerate(zip(values, keys, times, strict=True)):
            own = ((name, column[i]) for name, column in headers)
            yield Record(key, value, tuple((n, v) for n, v in own if v is not None), time)


class MessageRecords:
    """Makes records of ``MESSAGES``: key, value, headers and timestamp as they are."""

    def records(self, messages: pa.RecordBatch) -> Iterator[Record]:
        for key, value, headers, time in zip(
            messages["key"].to_pylist(),
            messages["value"].to_pylist(),
            messages["headers"].to_pylist(),
            _millis(messages["timestamp"]),
            strict=True,
        ):
            yield Record(key, value, tuple((h["name"], h["value"]) for h in headers or ()), time)


class WriteToKafka(beam.PTransform):
    """Writes batches, or single ``Record``, to a topic, at least once.

    Takes a PCollection of batches or a ``WithDeadLetters`` of it: with a ``serializer`` of any rows,
    without one of ``MESSAGES``. It gives a PCollection of dead-letter batches: those that came
    with it, and the messages that the broker will never take (too large, invalid).

    ``topic`` is where all goes; or ``topic_column`` names the column that says it (``"topic"`` of
    ``MESSAGES`` itself). ``key``, ``headers``, ``event_id`` and ``timestamp`` name columns of the
    rows, see ``RowRecords``. A ``Record`` with a topic of its own goes there. In place of all these
    ``records`` may make the messages, each with its topic.

    The producer is idempotent and waits for all replicas, so no retry of its own writes twice; a
    bundle that runs again does. ``event_id`` becomes a header by which consumers can tell.
    The producer's queue is bounded: while it is full the step waits, for ``deadline`` at most.
    The other options of ``config`` are librdkafka's for a producer.

    Counts ``written_messages``, ``written_bytes`` (of values) and ``dead_letters_<cause>``.

    Raises ``ValueError`` at construction for arguments that cannot work, and fails the bundle
    with ``MessagesUndelivered`` if the broker does not take all within ``deadline``.

    >>> WriteToKafka(KafkaConfig("127.0.0.1:9092"))
    Traceback (most recent call last):
    ValueError: give one of topic, topic_column and records
    """

    def __init__(
        self,
        config: KafkaConfig,
        topic: str | None = None,
        *,
        serializer: Serializer | None = None,
        topic_column: str | None = None,
        key: str | None = None,
        headers: Sequence[str] = (),
        event_id: str | None = None,
        timestamp: str | None = None,
        records: Records | None = None,
        deadline: timedelta = timedelta(seconds=60),
    ) -> None:
        super().__init__()
        if sum(map(bool, (topic, topic_column, records))) != 1:
            raise ValueError("give one of topic, topic_column and records")
        if topic and not _TOPIC.fullmatch(topic):
            raise ValueError(f"topic {topic!r}: use up to 249 letters, digits, dots, _ and -")
        source: Records = records or MessageRecords()
        if serializer is not None:
            source = RowRecords(serializer, key, tuple(headers), event_id, timestamp)
        elif key or headers or event_id or timestamp:
            raise ValueError(
                "key, headers, event_id and timestamp are columns of rows: give a serializer too, "
                "such as JsonRows()"
            )
        self._sink = _ToKafka(
            producing(config, deadline), source, topic or "", topic_column, deadline
        )

    def expand(self, given: Any) -> beam.PCollection:
        return write_documents(given, self._sink)


class _ToKafka(beam.DoFn):
    def __init__(
        self,
        config: KafkaConfig,
        source: Records,
        topic: str,
        topic_column: str | None,
        deadline: timedelta,
    ) -> None:
        self._config, self._source = config, source
        self._topic, self._topic_column = topic, topic_column
        self._deadline = deadline
        self._outbox: Outbox | None = None

    def start_bundle(self) -> None:
        # The last bundle's outbox is still held here, and with it the process's producer.
        self._outbox = Outbox(self._config, self._deadline)
        self._timestamp = MIN_TIMESTAMP

    def process(
        self, element: pa.RecordBatch | Record, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[pa.RecordBatch]:
        assert self._outbox is not None
        self._timestamp = timestamp
        misnamed: list[Refusal] = []
        for record in self._records(element):
            if _TOPIC.fullmatch(record.topic):
                self._outbox.send(record)
            else:
                misnamed.append(Refusal(record, "its topic's name is not a legal one", False))
        if misnamed:
            yield _refused(misnamed)

    def finish_bundle(self) -> Iterator[Any]:
        assert self._outbox is not None
        settled = self._outbox.settle()
        counter("written_messages").inc(settled.messages)
        counter("written_bytes").inc(settled.bytes)
        if settled.refused:
            yield GlobalWindows.windowed_value(_refused(settled.refused), self._timestamp)

    def teardown(self) -> None:
        self._outbox = None

    def _records(self, element: pa.RecordBatch | Record) -> Iterable[Record]:
        if isinstance(element, Record):
            return [replace(element, topic=element.topic or self._topic)]
        records = self._source.records(element)
        if self._topic_column is None:
            topic = self._topic
            return (replace(record, topic=topic) if topic else record for record in records)
        topics = element[self._topic_column].to_pylist()
        return (
            replace(record, topic=topic or "")
            for record, topic in zip(records, topics, strict=True)
        )


def _refused(refusals: Sequence[Refusal]) -> pa.RecordBatch:
    records = [refusal.record for refusal in refusals]
    messages = pa.RecordBatch.from_pylist(
        [
            {
                "topic": record.topic,
                "timestamp": record.timestamp,
                "key": record.key,
                "value": record.value,
                "headers": [{"name": name, "value": value} for name, value in record.headers],
            }
            for record in records
        ],
        schema=MESSAGES,
    )
    return dead_letters(
        messages,
        stage=Stage.SINK,
        causes=[Cause.TOO_LARGE if r.too_large else Cause.REJECTED for r in refusals],
        errors=[refusal.error for refusal in refusals],
        failed_at=now(),
    )


def _bytes(column: pa.Array) -> list[bytes | None]:
    values: list[bytes | None] = text(column).cast(pa.binary()).to_pylist()
    return values


def _millis(column: pa.Array) -> list[int | None]:
    values: list[int | None] = column.cast(TIMESTAMP, safe=False).cast(pa.int64()).to_pylist()
    return values
