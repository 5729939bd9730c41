"""Events of a job on their way to Kafka: which topic, which key, which headers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa

from velocity.io.json_rows import JsonRows
from velocity.io.kafka_producer import Record
from velocity.io.kafka_sink import RowRecords
from velocity.io.records import MESSAGE
from velocity.pipelines.job import KafkaSink

_PLACE: Final = re.compile(r"\{([^{}]*)\}")
_TOPIC: Final = "topic"
"""What stands in a template for the topic of an event's message."""


class PublishError(ValueError):
    """Events that can't be published: which key of the sink is wrong, and why."""

    def __init__(self, error: str, *place: str | int) -> None:
        super().__init__(error, *place)
        self.error, self.place = error, place

    def __str__(self) -> str:
        return self.error


@dataclass(frozen=True, slots=True)
class EventRecords:
    """A source of messages for ``WriteToKafka``: a JSON object of each row's columns, nulls left out.

    The topic is that of ``topics`` for the topic of the row's message, or else what ``topic`` says,
    a template. Without a ``key`` key and partition are those of the message; its timestamp is kept
    in any case. A row whose topic needs a column that is null has none, and is refused.

    >>> from velocity.io.records import messages, origins
    >>> origin = origins(messages([b"{}"], topic="orders", partition=2))
    >>> rows = pa.RecordBatch.from_arrays(
    ...     [pa.array(["e1"]), pa.array(["Solo"]), pa.nulls(1), origin], ["id", "city", "tier", MESSAGE])
    >>> [record] = EventRecords("enriched.{topic}", event_id="id").records(rows)
    >>> record.topic, record.partition, record.value, record.headers
    ('enriched.orders', 2, b'{"id":"e1","city":"Solo"}', (('event_id', b'e1'),))
    """

    topic: str | None
    topics: Mapping[str, str] | None = None
    key: str | None = None
    headers: Sequence[str] = ()
    event_id: str | None = None

    def records(self, batch: pa.RecordBatch) -> Iterator[Record]:
        origin = batch[MESSAGE]
        rows = RowRecords(JsonRows(nulls=False), self.key, self.headers, self.event_id)
        millis = origin.field("timestamp").view(pa.int64()).to_pylist()
        topics = self._topics(batch)
        if self.key is not None:
            for record, topic, time in zip(rows.records(batch), topics, millis, strict=True):
                yield replace(record, topic=topic, timestamp=time)
            return
        keys, numbers = origin.field("key").to_pylist(), origin.field("partition").to_pylist()
        found = zip(rows.records(batch), topics, millis, keys, numbers, strict=True)
        for record, topic, time, key, number in found:
            yield replace(record, topic=topic, timestamp=time, key=key, partition=number)

    def _topics(self, batch: pa.RecordBatch) -> list[str]:
        names = list(dict.fromkeys((_TOPIC, *columns_of(self.topic or ""))))
        columns = [
            batch[MESSAGE].field("topic") if name == _TOPIC else batch[name] for name in names
        ]
        known: dict[tuple[Any, ...], str] = {}
        found = []
        for values in zip(*(column.to_pylist() for column in columns), strict=True):
            if values not in known:
                known[values] = self.topic_of(dict(zip(names, values, strict=True)))
            found.append(known[values])
        return found

    def topic_of(self, values: Mapping[str, Any]) -> str:
        """Where a row goes, by what the template names of it; empty if it says nothing."""
        if self.topics and values[_TOPIC] in self.topics:
            return self.topics[values[_TOPIC]]
        if self.topic is None or any(values[name] is None for name in columns_of(self.topic)):
            return ""
        return _PLACE.sub(lambda place: str(values[place[1]]), self.topic)


def columns_of(template: str) -> list[str]:
    """What a template names in braces.

    >>> columns_of("enriched.{topic}.{city}")
    ['topic', 'city']
    """
    return _PLACE.findall(template)


def event_records(sink: KafkaSink, schema: pa.Schema, read: Sequence[str]) -> EventRecords:
    """What makes messages of a job's rows, of ``schema``; ``read`` are the topics of its source.

    Raises ``PublishError``, also if what is written would be read again.
    """
    for key, names in (
        ("key", [sink.key] if sink.key else []),
        ("event_id", [sink.event_id] if sink.event_id else []),
        ("headers", sink.headers),
        ("topic", [name for name in columns_of(sink.topic or "") if name != _TOPIC]),
    ):
        for i, name in enumerate(names):
            place = ("headers", i) if key == "headers" else (key,)
            if name not in schema.names:
                raise PublishError(f"unknown column {name}", *place)
            if key == "topic" and schema.field(name).type not in (pa.string(), pa.int64()):
                raise PublishError(f"{name}: text is wanted for the name of a topic", *place)
    records = EventRecords(
        sink.topic, dict(sink.topics), sink.key, tuple(sink.headers), sink.event_id
    )
    if sink.bootstrap_servers is None:
        _not_read_again(records, sink, read)
    return records


def _not_read_again(records: EventRecords, sink: KafkaSink, read: Sequence[str]) -> None:
    fixed = sink.topic is not None and set(columns_of(sink.topic)) <= {_TOPIC}
    named = [topic for topic in read if not topic.startswith("^")]
    written: dict[str, tuple[str, ...]] = {
        topic: ("topics", source) for source, topic in sink.topics.items()
    }
    for topic in named:
        if topic not in sink.topics and sink.topic is None:
            raise PublishError(
                f"no topic for the events of {topic}: name it, or give `topic`", "topics"
            )
        if topic not in sink.topics and fixed:
            written.setdefault(records.topic_of({_TOPIC: topic}), ("topic",))
    for topic, place in written.items():
        for pattern in read:
            if topic == pattern or (pattern.startswith("^") and re.fullmatch(pattern, topic)):
                raise PublishError(
                    f"{topic} is read by this job: its events would come again", *place
                )
