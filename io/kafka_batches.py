"""A partition's messages as Arrow batches: by columns in C where that was built, else one by one.

What confluent-kafka gives is a Python object for each message, and most of a read's cost. By columns
there is none: ``kafka_native`` copies the messages from librdkafka into Arrow's buffers. The consumer
stays confluent-kafka's own, with all its options and callbacks.
"""

import functools
import logging
import os
from typing import Any, Final, NamedTuple, Protocol

import confluent_kafka.cimpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import open_consumer
from velocity.io.records import FIRST_MILLI, LAST_MILLI, MESSAGES, TIMESTAMP

try:
    from velocity.io import kafka_native
except ImportError:  # built without a C compiler
    kafka_native = None  # type: ignore[assignment]

_LOG: Final = logging.getLogger(__name__)
_SWITCH: Final = "VELOCITY_KAFKA_COLUMNS"
_PLUGINS: Final = "plugin.library.paths"
_WAIT: Final = 0.2
"""Seconds for which a poll waits to be full."""
_EVENTS: Final = 100
"""Of those that concern the whole consumer, how many are taken at a poll."""
_HEADERS: Final = MESSAGES.field("headers").type
_PAIR: Final = _HEADERS.value_type
_MOST_BYTES: Final = 2**31 - 1
"""Of the values in one array."""

Messages = list[Any]
"""Of ``confluent_kafka.Message``, whose stubs allow None where a consumed message has a value."""


class Polled(NamedTuple):
    """What a poll gave, in the partition's order."""

    batch: pa.RecordBatch
    """Of ``MESSAGES``; without rows if none came."""
    position: int
    """What comes next as far as this poll tells; -1 if it does not."""
    failure: KafkaError | None
    """What came after the batch."""
    heard: bool
    """Whether anything came: messages, the partition's end, or an error."""


class Batches(Protocol):
    """The messages of one partition, from where ``start_at`` says."""

    def start_at(self, offset: int) -> None: ...

    def poll(self, most: int) -> Polled:
        """Waits for so many messages, or for a fifth of a second."""

    def close(self) -> None:
        """Gives up what it holds of its consumer, which is closed after it."""


class ColumnsConsumer(Consumer):
    """A consumer whose client ``kafka_native`` knows."""

    def __init__(self, settings: dict[str, Any]) -> None:
        others = settings.get(_PLUGINS)
        plugins = f"{others};{kafka_native.__file__}" if others else kafka_native.__file__
        super().__init__({**settings, _PLUGINS: plugins})
        self.client = kafka_native.made()


def open_for_batches(config: KafkaConfig) -> Consumer:
    """A consumer to read with; ``ColumnsConsumer`` where that works, and the log says why if not."""
    off = os.environ.get(_SWITCH) == "off"
    why_not = f"{_SWITCH} is off" if off else columns_unavailable()
    if why_not is None:
        try:
            return open_consumer(config, make=ColumnsConsumer)
        except (KafkaException, RuntimeError) as error:
            why_not = str(error)
    consumer = open_consumer(config)  # fails where it is not the plugin that librdkafka refuses
    _tell(why_not)
    return consumer


@functools.cache
def columns_unavailable() -> str | None:
    """Why messages can't be read by columns in this process; None if they can."""
    if kafka_native is None:
        return "velocity was built without a C compiler or Python's headers"
    try:
        kafka_native.bind(confluent_kafka.cimpl.__file__)
    except ImportError as error:
        return str(error)
    return None


@functools.cache
def _tell(why_not: str) -> None:
    _LOG.info("Kafka's messages are read one by one, at a higher cost: %s", why_not)


def batches_of(consumer: Consumer, topic: str, partition: int) -> Batches:
    if isinstance(consumer, ColumnsConsumer):
        return ByColumns(consumer, topic, partition)
    return ByMessages(consumer, topic, partition)


class ByMessages:
    """By a Python object for each message: wherever confluent-kafka runs."""

    def __init__(self, consumer: Consumer, topic: str, partition: int) -> None:
        self._consumer, self._topic, self._partition = consumer, topic, partition

    def start_at(self, offset: int) -> None:
        self._consumer.assign([TopicPartition(self._topic, self._partition, offset)])

    def poll(self, most: int) -> Polled:
        messages: Messages = []
        position, failure = -1, None
        consumed: Messages = self._consumer.consume(most, timeout=_WAIT)
        for message in consumed:
            error = message.error()
            if error is None:
                messages.append(message)
                position = message.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                position = max(position, message.offset())
            else:
                failure = error
                break
        batch = to_arrow(self._topic, self._partition, messages)
        return Polled(batch, position, failure, bool(consumed))

    def close(self) -> None:
        pass


class ByColumns:
    """By the partition's own queue in librdkafka, which ``kafka_native`` empties.

    The consumer's queue has what is not one partition's, and is served too: callbacks, the log, and
    errors such as of a topic that may not be read.
    """

    def __init__(self, consumer: ColumnsConsumer, topic: str, partition: int) -> None:
        self._consumer, self._topic, self._partition = consumer, topic, partition
        self._queue: kafka_native.Queue | None = None

    def start_at(self, offset: int) -> None:
        self.close()
        # before it is assigned: what comes earlier would go to the consumer
        self._queue = kafka_native.Queue(self._consumer.client, self._topic, self._partition)
        self._consumer.assign([TopicPartition(self._topic, self._partition, offset)])

    def poll(self, most: int) -> Polled:
        if self._queue is None:
            raise ValueError("start_at has not been called")
        events, count, position, columns, failed = self._queue.poll(most, round(_WAIT * 1000))
        failure = KafkaError(*failed) if failed else None
        for event in self._consumer.consume(_EVENTS, timeout=0):
            if event.error() is None:  # no version of librdkafka does that; it would be lost
                raise KafkaException(
                    KafkaError(KafkaError._FAIL, "a message came by the consumer's own queue")
                )
            failure = failure or event.error()
            events += 1
        batch = _batch(self._topic, self._partition, count, columns)
        return Polled(batch, position, failure, events > 0)

    def close(self) -> None:
        if self._queue is not None:
            self._queue.close()
            self._queue = None


def _batch(topic: str, partition: int, count: int, columns: Any) -> pa.RecordBatch:
    if columns is None:
        return to_arrow(topic, partition, [])
    offsets, times, timed, keys, values, headers = columns
    return _of(
        topic,
        partition,
        pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(offsets)]),
        pa.Array.from_buffers(TIMESTAMP, count, [_buffer(timed), pa.py_buffer(times)]),
        pa.nulls(count, pa.binary()) if keys is None else _column(pa.binary(), count, keys),
        _column(pa.binary(), count, values),
        pa.nulls(count, _HEADERS) if headers is None else _lists(count, *headers),
    )


def _of(
    topic: str, partition: int, offsets: pa.Array, times: pa.Array, *columns: pa.Array
) -> pa.RecordBatch:
    count = len(offsets)
    names = pa.repeat(pa.scalar(topic), count)
    numbers = pa.repeat(pa.scalar(partition, pa.int32()), count)
    arrays = [names, numbers, offsets, _of_calendars(times), *columns]
    return pa.RecordBatch.from_arrays(arrays, schema=MESSAGES)


def _of_calendars(times: pa.Array) -> pa.Array:
    """Null where no calendar has them: a producer may send microseconds, which nothing later could tell.

    >>> _of_calendars(pa.array([0, 1_767_225_600_000_000], TIMESTAMP)).is_null().to_pylist()
    [False, True]
    """
    millis = times.view(pa.int64())
    ends = pc.min_max(millis)
    if not len(times) or not ends["min"].is_valid:
        return times
    if ends["min"].as_py() >= FIRST_MILLI and ends["max"].as_py() <= LAST_MILLI:
        return times
    within = pc.and_(pc.greater_equal(millis, FIRST_MILLI), pc.less_equal(millis, LAST_MILLI))
    return pc.if_else(within, times, None)


def _buffer(given: bytes | None) -> pa.Buffer | None:
    return None if given is None else pa.py_buffer(given)


def _column(kind: pa.DataType, count: int, column: "kafka_native.Binary") -> pa.Array:
    ends, data, valid = column
    return pa.Array.from_buffers(
        kind, count, [_buffer(valid), pa.py_buffer(ends), pa.py_buffer(data)]
    )


def _lists(
    count: int,
    ends: bytes,
    valid: bytes,
    names: "kafka_native.Binary",
    contents: "kafka_native.Binary",
) -> pa.Array:
    pairs = len(names[0]) // 4 - 1
    texts = _column(pa.string(), pairs, names)
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:  # Kafka's names are UTF-8 by agreement alone
        given = _column(pa.binary(), pairs, names).to_pylist()
        texts = pa.array([name.decode(errors="replace") for name in given], pa.string())
    both = [texts, _column(pa.binary(), pairs, contents)]
    structs = pa.StructArray.from_arrays(both, fields=list(_PAIR))
    buffers = [pa.py_buffer(valid), pa.py_buffer(ends)]
    return pa.Array.from_buffers(_HEADERS, count, buffers, children=[structs])


def to_arrow(topic: str, partition: int, messages: Messages) -> pa.RecordBatch:
    """Messages of one partition as a batch of ``MESSAGES``."""
    return _of(
        topic,
        partition,
        pa.array([message.offset() for message in messages], pa.int64()),
        _timestamps([message.timestamp() for message in messages]),
        _binary([message.key() for message in messages]),
        _binary([message.value() for message in messages]),
        _headers([message.headers() for message in messages]),
    )


def _timestamps(given: list[tuple[int, int]]) -> pa.Array:
    millis = [None if kind == TIMESTAMP_NOT_AVAILABLE else time for kind, time in given]
    return pa.array(millis, pa.int64()).view(TIMESTAMP)


def _binary(values: list[bytes | None]) -> pa.Array:
    """In one copy where none is null: what grows in Arrow's builder is copied again and again."""
    try:
        joined = b"".join(values)  # type: ignore[arg-type]
    except TypeError:
        return pa.array(values, pa.binary())
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=ends[1:])  # type: ignore[arg-type]
    if len(joined) > _MOST_BYTES:
        return pa.array(values, pa.binary())
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(joined)]
    return pa.Array.from_buffers(pa.binary(), len(values), buffers)


def _headers(headers: list[list[tuple[str, bytes | None]] | None]) -> pa.Array:
    """Built column by column: dictionaries would take longer than all other columns together."""
    if not any(headers):
        return pa.nulls(len(headers), _HEADERS)
    ends, names, values = [0], [], []
    for pairs in headers:
        for name, value in pairs or ():
            names.append(name)
            values.append(value)
        ends.append(len(names))
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()),
        pa.StructArray.from_arrays(
            [pa.array(names, pa.string()), pa.array(values, pa.binary())],
            fields=list(_PAIR),
        ),
        type=_HEADERS,
        mask=pa.array([pairs is None for pairs in headers]),
    )
