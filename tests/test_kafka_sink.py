"""What goes into Kafka is delivered before its bundle is done, or it is a dead letter, or it fails."""

import json
import os
import pickle
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.json_rows import JsonRows
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_producer import (
    MessagesUndelivered,
    Outbox,
    Producers,
    Record,
    open_producer,
    producing,
)
from velocity.io.kafka_sink import WriteToKafka
from velocity.io.records import MESSAGE, MESSAGES, TIMESTAMP, WithDeadLetters, messages
from velocity.runners.embedded import EmbeddedKafka

AT = datetime(2026, 1, 1, 0, 0, 0, 7_000, tzinfo=UTC)
DEADLINE = timedelta(seconds=20)
CONFIG = producing(KafkaConfig("b:1"), DEADLINE)

# -- JSON -----------------------------------------------------------------------------------------

PLAIN = st.fixed_dictionaries(
    {
        "text": st.none() | st.text(),
        "TEXT": st.none() | st.integers(-(2**63), 2**63 - 1),
        "it's": st.none() | st.booleans(),
        "double": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "list": st.none() | st.lists(st.integers(0, 9), max_size=2),
    }
)
SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "TEXT": pa.int64(),
        "it's": pa.bool_(),
        "double": pa.float64(),
        "list": pa.list_(pa.int64()),
    }
)


@given(st.lists(PLAIN, max_size=4))
def test_json_says_what_the_row_says(rows: list[dict[str, Any]]) -> None:
    values = JsonRows().values(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    assert [json.loads(value) for value in values] == rows


def test_json_has_no_words_for_what_is_no_number() -> None:
    rows = pa.RecordBatch.from_pydict({"x": [float("nan"), float("inf"), -float("inf"), None]})
    assert JsonRows().values(rows) == [b'{"x":null}'] * 4


def test_json_leaves_out_the_message_of_origin() -> None:
    batch = messages([b"{}", b"{}"])
    rows = pa.RecordBatch.from_arrays([batch.to_struct_array()], [MESSAGE])
    assert JsonRows().values(rows) == [b"{}", b"{}"]


@pytest.mark.parametrize("type", [pa.binary(), pa.list_(TIMESTAMP), pa.struct({"b": pa.binary()})])
def test_what_json_cannot_hold_names_its_column(type: pa.DataType) -> None:
    rows = pa.RecordBatch.from_arrays([pa.nulls(1, type)], ["odd"])
    with pytest.raises(ValueError, match="'odd'"):
        JsonRows().values(rows)


# -- The outbox -----------------------------------------------------------------------------------


class Broker:
    """A producer that reports when it is flushed, and whose broker answers by value."""

    def __init__(self, answers: Mapping[bytes, int] | None = None, *, full: float = 0) -> None:
        self.answers = answers or {}
        self.full = full
        self.time = 0.0
        self.sent: list[bytes] = []
        self.waiting: list[tuple[bytes, Any]] = []
        self.silent = False

    def produce(self, topic: str, *, value: bytes, on_delivery: Any, **_: Any) -> None:
        if self.time < self.full:
            raise BufferError("Local: Queue full")
        if not topic:
            raise KafkaException(KafkaError(KafkaError._INVALID_ARG))
        self.waiting.append((value, on_delivery))

    def poll(self, timeout: float) -> int:
        self.time += timeout
        return 0

    def flush(self, timeout: float) -> int:
        self.time += timeout
        if not self.silent:
            batch, self.waiting = self.waiting, []
            self.sent += [value for value, _ in batch]
            for value, on_delivery in batch:
                code = self.answers.get(value)
                on_delivery(None if code is None else KafkaError(code), None)
        return len(self.waiting)

    def clock(self) -> float:
        return self.time


def outbox(broker: Broker, producers: Producers | None = None) -> Outbox:
    return Outbox(CONFIG, DEADLINE, producers or Producers(lambda _: broker), broker.clock)


def record(value: bytes, topic: str = "orders") -> Record:
    return Record(None, value, topic=topic)


def test_a_bundle_is_settled_when_each_of_its_messages_is_delivered() -> None:
    broker = Broker()
    box = outbox(broker)
    for value in (b"1", b"22", b"333"):
        box.send(record(value))
    assert box.settle() == (3, 6, [])
    assert broker.sent == [b"1", b"22", b"333"]


def test_a_full_queue_is_waited_for() -> None:
    broker = Broker(full=10)
    box = outbox(broker)
    box.send(record(b"1"))
    assert box.settle().messages == 1
    assert broker.time >= 10


def test_a_queue_that_stays_full_fails_the_bundle() -> None:
    with pytest.raises(MessagesUndelivered, match="Queue full"):
        outbox(Broker(full=10_000)).send(record(b"1"))


def test_what_is_not_delivered_in_time_fails_the_bundle() -> None:
    broker = Broker()
    broker.silent = True
    box = outbox(broker)
    box.send(record(b"1"))
    box.send(record(b"2"))
    with pytest.raises(
        MessagesUndelivered, match="2 messages did not reach topic orders: not delivered in 0:00:20"
    ):
        box.settle()


def test_a_failed_delivery_fails_the_bundle_and_names_topic_and_cause() -> None:
    box = outbox(Broker({b"2": KafkaError.TOPIC_AUTHORIZATION_FAILED}))
    box.send(record(b"1"))
    box.send(record(b"2", "secret-orders"))
    with pytest.raises(MessagesUndelivered, match="1 messages did not reach topic secret-orders"):
        box.settle()


def test_what_the_producer_refuses_outright_fails_the_bundle() -> None:
    with pytest.raises(MessagesUndelivered, match="Invalid argument"):
        outbox(Broker()).send(record(b"1", topic=""))


def test_one_bad_message_is_refused_and_its_neighbours_are_delivered() -> None:
    box = outbox(Broker({b"bad": KafkaError.INVALID_RECORD}))
    for value in (b"1", b"bad", b"2"):
        box.send(record(value))
    settled = box.settle()
    assert (settled.messages, settled.bytes) == (2, 2)
    assert [refusal.record.value for refusal in settled.refused] == [b"bad"]


def test_after_a_failure_the_next_try_has_a_new_producer() -> None:
    opened: list[Broker] = []

    def open(_: KafkaConfig) -> Broker:
        fatal = {} if opened else {b"1": KafkaError._FATAL}
        opened.append(Broker(fatal))
        return opened[-1]

    producers = Producers(open)
    first = Outbox(CONFIG, DEADLINE, producers)
    first.send(record(b"1"))
    with pytest.raises(MessagesUndelivered):
        first.settle()
    second = Outbox(CONFIG, DEADLINE, producers)
    second.send(record(b"1"))
    assert second.settle().messages == 1
    assert len(opened) == 2


def test_a_process_has_one_producer_for_a_config_and_none_that_nobody_holds() -> None:
    opened: list[KafkaConfig] = []

    def open(config: KafkaConfig) -> Broker:
        opened.append(config)
        return Broker()

    producers = Producers(open)
    one, same = producers.take(CONFIG), producers.take(producing(KafkaConfig("b:1"), DEADLINE))
    assert one is same
    assert producers.take(producing(KafkaConfig("c:1"), DEADLINE)) is not one
    del one, same
    producers.take(CONFIG)
    assert [config.bootstrap_servers for config in opened] == ["b:1", "c:1", "b:1"]


def test_an_option_that_is_refused_is_named_and_no_value_is_shown() -> None:
    config = KafkaConfig("b:1", {"enable.idempotence": "hush"})
    with pytest.raises(ValueError, match=r"enable\.idempotence.*KafkaConfig's options") as raised:
        open_producer(config)
    assert "hush" not in str(raised.value)


def test_its_error_crosses_a_worker() -> None:
    error = MessagesUndelivered("timed out", "orders", 3)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("options", "deadline", "remedy"),
    [
        ({"acks": 1}, DEADLINE, "leave both out"),
        ({"enable.idempotence": "false"}, DEADLINE, "leave both out"),
        ({"transactional.id": "t"}, DEADLINE, "leave it out"),
        ({}, timedelta(), "more than zero"),
    ],
)
def test_a_config_that_could_lose_messages_is_refused(
    options: dict[str, Any], deadline: timedelta, remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy):
        WriteToKafka(KafkaConfig("b:1", options), "orders", deadline=deadline)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({}, "give one of"),
        ({"topic": "a", "topic_column": "b"}, "give one of"),
        ({"topic": "a", "key": "k"}, "give a serializer"),
        ({"topic": "a b"}, "use up to 249 letters"),
        ({"topic": ".."}, "use up to 249 letters"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        WriteToKafka(KafkaConfig("b:1"), **arguments)


# -- A broker -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as broker:
        yield broker


def consume(brokers: str, topic: str) -> list[Any]:
    """All messages of a topic, by value."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "test",
            "enable.partition.eof": True,
        }
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    found, ended = [], set[int | None]()
    while len(ended) < len(partitions):
        message = consumer.poll(30)
        assert message is not None, "the broker stopped answering"
        if message.error() is None:
            found.append(message)
        else:
            ended.add(message.partition())
    consumer.close()
    return sorted(found, key=lambda message: message.value() or b"")


def write(elements: list[Any], sink: WriteToKafka, dead: list[Any] | None = None) -> dict[str, int]:
    """Runs the sink; returns its counters and checks its dead letters' (cause, topic, value)."""
    pipeline = beam.Pipeline(FnApiRunner())
    letters = pipeline | beam.Create(elements, reshuffle=False) | sink
    told = letters | beam.FlatMap(
        lambda batch: [(x["cause"], x["topic"], x["value"]) for x in batch.to_pylist()]
    )
    assert_that(told, equal_to(dead or []))
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query()["counters"]
    return {counted.key.metric.name: counted.committed for counted in counters}


@pytest.mark.embedded
def test_messages_are_written_as_they_are(kafka: EmbeddedKafka) -> None:
    rows = [
        {"topic": "whole", "key": b"k", "value": b"1", "timestamp": AT}
        | {"headers": [{"name": "h", "value": b"1"}, {"name": "h", "value": None}]},
        {"topic": "whole", "key": b"k", "value": None},
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=MESSAGES)
    sink = WriteToKafka(KafkaConfig(kafka.bootstrap_servers), topic_column="topic")
    counters = write([batch], sink)
    tombstone, message = consume(kafka.bootstrap_servers, "whole")
    assert (tombstone.key(), tombstone.value()) == (b"k", None)
    assert (message.key(), message.value()) == (b"k", b"1")
    assert message.headers() == [("h", b"1"), ("h", None)]
    assert message.timestamp()[1] == AT.timestamp() * 1000
    assert tombstone.partition() == message.partition()
    assert (counters["written_messages"], counters["written_bytes"]) == (2, 1)


@pytest.mark.embedded
def test_rows_become_json_with_key_headers_and_event_id(kafka: EmbeddedKafka) -> None:
    rows = pa.RecordBatch.from_pydict(
        {
            "id": ["e1", "e2"],
            "city": ["Solo", None],
            "at": pa.array([AT, AT], TIMESTAMP),
            "to": ["rows", None],
        }
    )
    sink = WriteToKafka(
        KafkaConfig(kafka.bootstrap_servers),
        topic_column="to",
        serializer=JsonRows(),
        key="city",
        headers=["at"],
        event_id="id",
        timestamp="at",
    )
    text = b'{"id":"e2","city":null,"at":"2026-01-01T00:00:00.007Z","to":null}'
    write([rows], sink, dead=[("rejected", "", text)])
    (message,) = consume(kafka.bootstrap_servers, "rows")
    assert message.key() == b"Solo"
    assert json.loads(message.value())["at"] == "2026-01-01T00:00:00.007Z"
    assert message.headers() == [("at", b"2026-01-01T00:00:00.007Z"), ("event_id", b"e1")]
    assert message.timestamp()[1] == AT.timestamp() * 1000


@pytest.mark.embedded
def test_single_messages_are_written_too(kafka: EmbeddedKafka) -> None:
    sink = WriteToKafka(KafkaConfig(kafka.bootstrap_servers), "single")
    records = [
        Record(b"k", b"1"),
        Record(None, b"2", topic="another"),
        Record(None, b"3", topic="?"),
    ]
    write(records, sink, dead=[("rejected", "?", b"3")])
    assert [message.value() for message in consume(kafka.bootstrap_servers, "single")] == [b"1"]
    assert [message.value() for message in consume(kafka.bootstrap_servers, "another")] == [b"2"]


@pytest.mark.embedded
def test_a_message_too_large_is_a_dead_letter_and_the_others_are_written(
    kafka: EmbeddedKafka,
) -> None:
    large = b"x" * 50_000
    config = KafkaConfig(kafka.bootstrap_servers, {"message.max.bytes": 20_000})
    counters = write(
        [messages([b"1", large, b"2"])],
        WriteToKafka(config, "sizes"),
        dead=[("too_large", "sizes", large)],
    )
    assert [message.value() for message in consume(kafka.bootstrap_servers, "sizes")] == [
        b"1",
        b"2",
    ]
    assert (counters["written_messages"], counters["dead_letters_too_large"]) == (2, 1)


@pytest.mark.embedded
def test_more_than_the_queue_holds_is_written_all_the_same(kafka: EmbeddedKafka) -> None:
    config = KafkaConfig(kafka.bootstrap_servers, {"queue.buffering.max.messages": 100})
    values = [b"%04d" % number for number in range(2_000)]
    write([messages(values)], WriteToKafka(config, "pressed"))
    assert [message.value() for message in consume(kafka.bootstrap_servers, "pressed")] == values


@pytest.mark.embedded
def test_a_key_has_the_partition_that_java_gives_it(kafka: EmbeddedKafka) -> None:
    """Source of the hashes: UtilsTest.testMurmur2 of Kafka's own clients."""
    hashes = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    kafka.create_topic("keyed", 7)
    records = [Record(key, key) for key in hashes]
    write(records, WriteToKafka(KafkaConfig(kafka.bootstrap_servers), "keyed"))
    found = {m.key(): m.partition() for m in consume(kafka.bootstrap_servers, "keyed")}
    assert found == {key: (hash & 0x7FFFFFFF) % 7 for key, hash in hashes.items()}


@pytest.mark.embedded
@pytest.mark.parametrize("options", [{}, {"compression.type": "none"}], ids=str)
def test_what_is_written_is_compressed_unless_options_say_otherwise(
    kafka: EmbeddedKafka, options: dict[str, Any]
) -> None:
    """The broker keeps 5 MiB of a partition, as they come over the wire."""
    topic = f"compressed-{len(options)}"
    kafka.create_topic(topic, 1)
    sink = WriteToKafka(KafkaConfig(kafka.bootstrap_servers, options), topic)
    write([messages([b"x" * 100_000] * 80)], sink)
    assert bool(kafka.forgotten(topic)) == bool(options)


@pytest.mark.embedded
def test_dead_letters_of_earlier_steps_come_out_too(kafka: EmbeddedKafka) -> None:
    class Both(beam.PTransform):
        def expand(self, batches: Any) -> Any:
            sink = WriteToKafka(KafkaConfig(kafka.bootstrap_servers), "chained")
            return WithDeadLetters(batches, batches) | sink

    with beam.Pipeline(FnApiRunner()) as pipeline:
        letters = pipeline | beam.Create([messages([b"1"])]) | Both()
        assert_that(letters | beam.Map(lambda batch: batch.num_rows), equal_to([1]))


@pytest.mark.embedded
def test_where_nobody_listens_the_bundle_fails_and_names_topic_and_remedy() -> None:
    config = KafkaConfig("127.0.0.1:1", {"sasl.password": "hush", "delivery.timeout.ms": 100})
    with pytest.raises(
        Exception, match=r"3 messages did not reach topic orders: .*brokers are up"
    ) as raised:
        write([messages([b"1", b"2", b"3"])], WriteToKafka(config, "orders"))
    assert "hush" not in str(raised.value)


# -- A real broker --------------------------------------------------------------------------------


@pytest.mark.stack
def test_what_a_topic_does_not_admit_costs_no_other_message(real_kafka: str) -> None:
    """A broker refuses the whole batch, and an idempotent producer has to go on after it."""
    admin = AdminClient({"bootstrap.servers": real_kafka})
    topic = NewTopic("tight", 1, 1, config={"max.message.bytes": "2000"})
    admin.create_topics([topic])["tight"].result(60)
    large = os.urandom(5_000)
    small = [b"%d" % number for number in range(100)]
    sink = WriteToKafka(KafkaConfig(real_kafka), "tight")
    counters = write(
        [messages([*small, large, *small])], sink, dead=[("too_large", "tight", large)]
    )
    assert counters["written_messages"] == 200
    assert [message.value() for message in consume(real_kafka, "tight")] == sorted([*small, *small])
