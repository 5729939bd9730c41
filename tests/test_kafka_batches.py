"""Laws of batches of messages: the same by columns in C as by a Python object for each message."""

import itertools
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kafka_ways import WAYS, go, way
from velocity.io import kafka_batches
from velocity.io.kafka_batches import (
    Batches,
    ColumnsConsumer,
    _binary,
    _lists,
    batches_of,
    open_for_batches,
    to_arrow,
)
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import KafkaReadError, open_consumer
from velocity.io.kafka_readers import Readers
from velocity.io.records import MESSAGES
from velocity.runners.embedded import EmbeddedKafka

pytestmark = pytest.mark.embedded
_ = way  # a fixture

AT = 1_767_225_600_123


@pytest.fixture(scope="module")
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as kafka:
        yield kafka


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def topic(kafka: EmbeddedKafka, numbers: Iterator[int]) -> str:
    name = f"topic-{next(numbers)}"
    kafka.create_topic(name, 1)
    return name


def send(kafka: EmbeddedKafka, topic: str, *messages: dict[str, Any], **options: Any) -> None:
    producer = Producer(KafkaConfig(kafka.bootstrap_servers, options).client())
    for message in messages:
        producer.produce(topic, partition=0, timestamp=AT, **message)
    assert producer.flush(30) == 0


def read(
    kafka: EmbeddedKafka, topic: str, count: int, most: int = 1000, start: int = 0, **options: Any
) -> list[pa.RecordBatch]:
    """Batches with so many messages together."""
    found: list[pa.RecordBatch] = []
    config = KafkaConfig(kafka.bootstrap_servers, options)
    with closing(Readers().take(config, topic, 0, start)) as reader:
        for _ in range(100):
            if sum(batch.num_rows for batch in found) >= count:
                return found
            batch = reader.poll(most)
            batch.validate(full=True)
            assert (batch.schema, batch.num_rows <= most) == (MESSAGES, True)
            if batch.num_rows:
                found.append(batch)
                assert reader.position == batch["offset"][-1].as_py() + 1
    raise AssertionError(f"{found} came, not {count} messages")


def rows(batches: list[pa.RecordBatch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.to_pylist()]


def test_arrow_holds_all_that_a_message_has(kafka: EmbeddedKafka, topic: str, way: str) -> None:
    sent: list[dict[str, Any]] = [
        {"value": b"v", "key": b"k", "headers": [("a", b"1"), ("a", b"2"), ("b", None)]},
        {"value": None, "key": b"deleted"},
        {"value": b"", "key": b""},
        {"value": os.urandom(900_000), "headers": [("é", b"\xff")]},
    ]
    send(kafka, topic, *sent)
    assert rows(read(kafka, topic, len(sent))) == [
        {
            "topic": topic,
            "partition": 0,
            "offset": offset,
            "timestamp": datetime(2026, 1, 1, 0, 0, 0, 123_000, tzinfo=UTC),
            "key": message.get("key"),
            "value": message["value"],
            "headers": [{"name": n, "value": v} for n, v in message["headers"]]
            if "headers" in message
            else None,
        }
        for offset, message in enumerate(sent)
    ]


def test_a_time_that_no_calendar_has_is_none(kafka: EmbeddedKafka, topic: str, way: str) -> None:
    """Else the dead letter of such a message, whose time is written out, would fail for ever."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for time in (1_767_225_600_000, 1_767_225_600_000_000, 1_767_225_600_000_000_000):
        producer.produce(topic, b"v", partition=0, timestamp=time)
    assert producer.flush(30) == 0
    assert [row["timestamp"] is None for row in rows(read(kafka, topic, 3))] == [False, True, True]


BYTES = st.none() | st.binary(max_size=6) | st.integers(0, 3000).map(bytes)
SENT = st.lists(
    st.fixed_dictionaries(
        {"value": BYTES, "key": BYTES},
        optional={"headers": st.lists(st.tuples(st.text("aé€", max_size=3), BYTES), max_size=3)},
    ),
    min_size=1,
    max_size=40,
)


@settings(deadline=None, max_examples=25)
@given(sent=SENT, most=st.integers(1, 50), skipped=st.integers(0, 3))
def test_both_ways_give_the_same_messages_however_they_are_cut(
    kafka: EmbeddedKafka,
    numbers: Iterator[int],
    sent: list[dict[str, Any]],
    most: int,
    skipped: int,
) -> None:
    topic = f"cut-{next(numbers)}"
    kafka.create_topic(topic, 1)
    send(kafka, topic, *sent)
    start = min(skipped, len(sent) - 1)
    found = []
    for each in WAYS:
        with pytest.MonkeyPatch.context() as patch:
            go(each, patch)
            found.append(rows(read(kafka, topic, len(sent) - start, most, start)))
    assert found[0] == found[1]
    assert [(row["offset"], row["key"], row["value"]) for row in found[0]] == [
        (start + i, message["key"], message["value"]) for i, message in enumerate(sent[start:])
    ]


def test_a_read_goes_on_where_it_is_told_to_and_forgets_what_it_had_fetched(
    kafka: EmbeddedKafka, topic: str, way: str
) -> None:
    send(kafka, topic, *[{"value": b"%d" % i} for i in range(100)])
    reader = Readers().take(KafkaConfig(kafka.bootstrap_servers), topic, 0, 0)
    with closing(reader):
        while not (first := reader.poll(5)).num_rows:
            pass
        assert first["offset"].to_pylist() == [0, 1, 2, 3, 4]
        for offset in (90, 20):
            reader.skip_to(offset)
            while not (later := reader.poll(5)).num_rows:
                pass
            assert later["offset"].to_pylist() == [*range(offset, offset + 5)]


def test_a_batch_is_bounded_by_bytes_too_and_loses_nothing(
    kafka: EmbeddedKafka, topic: str
) -> None:
    send(kafka, topic, *[{"value": os.urandom(1000)} for _ in range(4000)])  # of 5 MB that it keeps
    with pytest.MonkeyPatch.context() as patch:
        go("columns", patch)
        found = read(kafka, topic, 4000, most=100_000)
    assert [row["offset"] for row in rows(found)] == [*range(4000)]


def test_callbacks_are_called_while_messages_are_polled(
    kafka: EmbeddedKafka, topic: str, way: str
) -> None:
    told: list[str] = []
    options = {"statistics.interval.ms": 50, "stats_cb": told.append}
    config = KafkaConfig(kafka.bootstrap_servers, options)
    with closing(Readers().take(config, topic, 0, 0)) as reader:
        for _ in range(50):
            reader.poll(1)
            if told:
                break
    assert told
    assert '"rdkafka#consumer' in told[0]


def test_the_log_of_a_client_goes_to_pythons(
    topic: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, "velocity.kafka"),
        closing(Readers().take(KafkaConfig("127.0.0.1:1"), topic, 0, 0)) as reader,
    ):
        for _ in range(20):
            reader.poll(1)
            if caplog.records:
                break
    assert "127.0.0.1:1" in caplog.text


def columns_of(config: KafkaConfig, topic: str) -> tuple[ColumnsConsumer, Batches]:
    consumer = open_for_batches(config)
    assert isinstance(consumer, ColumnsConsumer)
    batches = batches_of(consumer, topic, 0)
    batches.start_at(0)
    return consumer, batches


def test_a_consumer_that_was_closed_too_early_is_an_error_and_no_crash(
    kafka: EmbeddedKafka, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go("columns", monkeypatch)
    send(kafka, topic, {"value": b"1"})
    consumer, batches = columns_of(KafkaConfig(kafka.bootstrap_servers), topic)
    while not batches.poll(1).batch.num_rows:
        pass
    consumer.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            batches.poll(1)
    batches.close()
    batches.close()
    with pytest.raises(RuntimeError, match="closed"):
        batches.start_at(0)


def test_clients_of_several_threads_and_other_consumers_are_not_mistaken_for_one_another(
    kafka: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    go("columns", monkeypatch)
    topics = [f"thread-{number}" for number in range(6)]
    for name in topics:
        kafka.create_topic(name, 1)
        send(kafka, name, *[{"value": name.encode()}] * 50)

    def read_one(name: str) -> set[bytes]:
        with closing(open_consumer(KafkaConfig(kafka.bootstrap_servers))):
            return {row["value"] for row in rows(read(kafka, name, 50))}

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(read_one, topics)) == [{name.encode()} for name in topics]


def test_without_the_c_part_messages_come_one_by_one_and_the_log_says_why(
    kafka: EmbeddedKafka,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(kafka_batches, "kafka_native", None)
    kafka_batches.columns_unavailable.cache_clear()
    kafka_batches._tell.cache_clear()
    send(kafka, topic, {"value": b"1"})
    try:
        with caplog.at_level(logging.INFO):
            assert rows(read(kafka, topic, 1))[0]["value"] == b"1"
    finally:
        kafka_batches.columns_unavailable.cache_clear()
    assert (
        "one by one, at a higher cost: velocity was built without a C compiler or Python's headers"
        in caplog.text
    )


def test_an_option_that_librdkafka_refuses_is_told_by_both_ways(way: str) -> None:
    for options in ({"nosuch": 1}, {"plugin.library.paths": "nosuch"}):
        with pytest.raises(KafkaReadError, match=r"nosuch.*KafkaConfig's options"):
            open_for_batches(KafkaConfig("127.0.0.1:9", options))


@given(st.lists(st.binary(max_size=4)) | st.lists(st.none() | st.binary(max_size=4)))
def test_bytes_in_arrow_are_those_that_were_given(values: list[bytes | None]) -> None:
    column = _binary(values)
    column.validate(full=True)
    assert column.to_pylist() == values


def test_no_messages_make_an_empty_batch(kafka: EmbeddedKafka, topic: str, way: str) -> None:
    with closing(Readers().take(KafkaConfig(kafka.bootstrap_servers), topic, 0, 0)) as reader:
        empty = reader.poll(5)
    assert (empty.schema, empty.num_rows) == (MESSAGES, 0)
    assert to_arrow("orders", 0, []).equals(empty)


def test_a_header_whose_name_is_no_utf8_is_read_with_marks_in_its_place() -> None:
    ends, name, content = pa.array([0, 1], pa.int32()), b"na\xffme", b"\xff"

    def column(data: bytes) -> tuple[bytes, bytes, None]:
        return pa.array([0, len(data)], pa.int32()).buffers()[1].to_pybytes(), data, None

    lists = _lists(1, ends.buffers()[1].to_pybytes(), b"\x01", column(name), column(content))
    lists.validate(full=True)
    assert lists.to_pylist() == [[{"name": "na\N{REPLACEMENT CHARACTER}me", "value": b"\xff"}]]
