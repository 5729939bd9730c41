"""Dead letters are kept whole: in files that appear at once, or as the messages they were."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from hypothesis import example, given
from hypothesis import strategies as st

from velocity.io.dead_letters import WriteDeadLettersToParquet, read_dead_letters
from velocity.io.dead_letters_kafka import (
    CUT_TO,
    WriteDeadLettersToKafka,
    kafka_records,
    settle,
)
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_producer import MessagesUndelivered, Outbox, Producers, Record, producing
from velocity.io.records import DEAD_LETTERS, MESSAGES, Cause, Stage, dead_letters

FAILED_AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
DEADLINE = timedelta(seconds=20)


def letters(*rows: dict[str, Any], attempt: int = 1) -> pa.RecordBatch:
    messages = [{"topic": "events", "partition": 3, "offset": i} | r for i, r in enumerate(rows)]
    return dead_letters(
        pa.RecordBatch.from_pylist(messages, schema=MESSAGES),
        stage=Stage.DECODE,
        causes=[Cause.INVALID_JSON] * len(rows),
        errors=["byte 1"] * len(rows),
        failed_at=FAILED_AT,
        attempt=attempt,
    )


# -- Parquet --------------------------------------------------------------------------------------


def write(path: Path, batches: list[pa.RecordBatch], *options: str, **arguments: Any) -> None:
    with beam.Pipeline(FnApiRunner(), options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | beam.Create(batches, reshuffle=False)
            | WriteDeadLettersToParquet(str(path), **arguments)
        )


def files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def test_dead_letters_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = letters(
        {"key": b"k", "value": b"\xff\x00", "headers": [{"name": "h", "value": None}]},
        {"value": None, "timestamp": FAILED_AT},
    )
    write(tmp_path, [rows], job="pharmacy")
    read = read_dead_letters(str(tmp_path))
    assert read["job"].to_pylist() == ["pharmacy", "pharmacy"]
    assert read.drop(["job"]).schema.equals(DEAD_LETTERS)
    assert read.drop(["job"]).to_pylist() == rows.to_pylist()


def test_a_path_without_files_has_no_dead_letters(tmp_path: Path) -> None:
    assert read_dead_letters(str(tmp_path)).num_rows == 0
    assert read_dead_letters(str(tmp_path / "missing")).schema.names[:2] == ["job", "stage"]


def test_batches_without_rows_leave_no_file(tmp_path: Path) -> None:
    write(tmp_path, [letters()], job="pharmacy")
    assert files(tmp_path) == []


def test_one_path_serves_several_jobs_and_other_readers(tmp_path: Path) -> None:
    write(tmp_path, [letters({"value": b"1"})], job="pharmacy")
    write(tmp_path, [letters({"value": b"2"})], job="insurance")
    read = read_dead_letters(str(tmp_path)).select(["job", "value"]).to_pylist()
    expected = [{"job": "insurance", "value": b"2"}, {"job": "pharmacy", "value": b"1"}]
    assert sorted(read, key=lambda row: str(row["job"])) == expected
    others = pq.read_table(tmp_path).select(["job", "value"]).to_pylist()
    assert sorted(others, key=lambda row: str(row["job"])) == expected


def test_a_file_holds_as_many_rows_as_it_may_and_the_bundles_end_writes_the_rest(
    tmp_path: Path,
) -> None:
    write(tmp_path, [letters({})] * 5, job="pharmacy", rows_per_file=2)
    sizes = [pq.read_metadata(file).num_rows for file in files(tmp_path)]
    assert sorted(sizes) == [1, 2, 2]


def test_a_file_is_compressed_and_tells_its_job_wherever_it_is(tmp_path: Path) -> None:
    write(tmp_path, [letters({})], job="pharmacy")
    (file,) = files(tmp_path)
    metadata = pq.read_metadata(file)
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert metadata.metadata[b"velocity.job"] == b"pharmacy"


def test_until_its_bundle_ends_nothing_is_seen_and_a_failed_one_leaves_nothing(
    tmp_path: Path,
) -> None:
    step = WriteDeadLettersToParquet(str(tmp_path), job="pharmacy", rows_per_file=1)._sink
    step.start_bundle()
    step.process(letters({"value": b"first try"}))
    assert files(tmp_path) != []  # written, under a name that readers skip
    assert read_dead_letters(str(tmp_path)).num_rows == 0
    assert pq.read_table(tmp_path).num_rows == 0
    step.start_bundle()
    step.process(letters({"value": b"second try"}))
    step.finish_bundle()
    assert read_dead_letters(str(tmp_path))["value"].to_pylist() == [b"second try"]


def test_a_repeated_bundle_never_overwrites_a_file(tmp_path: Path) -> None:
    rows = [letters({"value": b"1"}), letters({"value": b"2"})]
    write(tmp_path, rows, "--direct_runner_bundle_repeat=2", job="pharmacy")
    values = read_dead_letters(str(tmp_path))["value"].to_pylist()
    assert sorted(values) == [b"1"] * 3 + [b"2"] * 3


@pytest.mark.parametrize("job", ["", "a/b", "..", "a=b", "a b"])
def test_a_job_that_cannot_name_a_folder_is_refused(job: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        WriteDeadLettersToParquet("/nowhere", job=job)


def test_files_of_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        WriteDeadLettersToParquet("/nowhere", job="pharmacy", rows_per_file=0)


# -- Kafka records --------------------------------------------------------------------------------


def test_the_envelope_is_in_the_headers_and_the_message_is_as_it_was() -> None:
    (record,) = kafka_records(
        letters(
            {
                "key": b"k",
                "value": b"{",
                "timestamp": datetime(2026, 1, 1, 0, 0, 0, 7_000, tzinfo=UTC),
                "headers": [{"name": "trace", "value": b"1"}, {"name": "trace", "value": None}],
            },
            attempt=2,
        ),
        "pharmacy",
    )
    assert (record.key, record.value) == (b"k", b"{")
    assert record.headers == (
        ("trace", b"1"),
        ("trace", None),
        ("velocity.job", b"pharmacy"),
        ("velocity.stage", b"decode"),
        ("velocity.cause", b"invalid_json"),
        ("velocity.error", b"byte 1"),
        ("velocity.topic", b"events"),
        ("velocity.partition", b"3"),
        ("velocity.offset", b"0"),
        ("velocity.timestamp", b"2026-01-01T00:00:00.007Z"),
        ("velocity.failed_at", b"2026-01-02T03:04:05.678Z"),
        ("velocity.attempt", b"2"),
    )


def test_what_the_message_does_not_have_has_no_header() -> None:
    (record,) = kafka_records(letters({"partition": None, "offset": None}), "pharmacy")
    names = {name for name, _ in record.headers}
    assert not names & {"velocity.partition", "velocity.offset", "velocity.timestamp"}


ENVELOPE = {
    "velocity.job", "velocity.stage", "velocity.cause", "velocity.error", "velocity.topic",
    "velocity.partition", "velocity.offset", "velocity.timestamp", "velocity.failed_at",
    "velocity.attempt", "velocity.value_bytes",
}  # fmt: skip


@example(None, None, [("velocity.", None), ("velocity.own", b"kept")])
@given(
    st.none() | st.binary(),
    st.none() | st.binary(),
    st.lists(st.tuples(st.text(), st.none() | st.binary()), max_size=3),
)
def test_a_record_that_fails_again_keeps_one_envelope(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    own = [{"name": name, "value": v} for name, v in headers]
    (once,) = kafka_records(letters({"key": key, "value": value, "headers": own}), "pharmacy")
    replayed = [{"name": name, "value": v} for name, v in once.headers]
    (twice,) = kafka_records(
        letters({"key": once.key, "value": once.value, "headers": replayed}, attempt=2), "pharmacy"
    )
    assert (twice.key, twice.value) == (key, value)
    assert [h for h in twice.headers if h[0] not in ENVELOPE] == headers
    names = [name for name, _ in twice.headers if name in ENVELOPE]
    assert len(names) == len(set(names)) == 9
    assert dict(twice.headers)["velocity.attempt"] == b"2"


# -- Kafka ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    cluster = Producer({"bootstrap.servers": "-", "test.mock.num.brokers": 1})
    known = cluster.list_topics(timeout=10).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in known)


def consume(brokers: str, topic: str, count: int) -> list[Any]:
    """As many messages as the topic must hold, by value; fails if there are fewer or more."""
    config = {"bootstrap.servers": brokers, "group.id": "test", "enable.partition.eof": True}
    consumer = Consumer(config)
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    messages, ended = [], set[int]()
    while len(ended) < len(partitions):
        message = consumer.poll(10)
        assert message is not None, "the broker stopped answering"
        error = message.error()
        if error is None:
            messages.append(message)
        else:
            assert error.code() == KafkaError._PARTITION_EOF, error
            ended.add(message.partition() or 0)
    consumer.close()
    assert len(messages) == count
    return sorted(messages, key=lambda message: message.value() or b"")


def send(brokers: str, topic: str, *rows: dict[str, Any], **options: Any) -> None:
    config = KafkaConfig(brokers, options)
    with beam.Pipeline(FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.Create([letters(*rows)])
            | WriteDeadLettersToKafka(topic, config, job="pharmacy", deadline=DEADLINE)
        )


@pytest.mark.embedded
def test_any_kafka_tool_sees_the_messages_as_they_were(brokers: str) -> None:
    own = [{"name": "trace", "value": b"1"}]
    send(brokers, "whole", {"key": b"k", "value": b"{", "headers": own}, {"value": b"}"})
    first, second = consume(brokers, "whole", 2)
    assert (first.key(), first.value(), first.headers()[0]) == (b"k", b"{", ("trace", b"1"))
    assert (second.key(), second.value()) == (None, b"}")
    assert dict(second.headers())["velocity.offset"] == b"1"


@pytest.mark.embedded
def test_a_tombstone_stays_a_tombstone(brokers: str) -> None:
    send(brokers, "tombstones", {"key": b"k", "value": None}, {"key": b"k", "value": b""})
    values = [message.value() for message in consume(brokers, "tombstones", 2)]
    assert sorted(values, key=str) == [None, b""]


@pytest.mark.embedded
def test_a_value_too_large_is_cut_and_says_so_and_the_others_are_whole(brokers: str) -> None:
    large = b"x" * 50_000
    send(brokers, "cut", {"value": large}, {"value": b"1"}, **{"message.max.bytes": 20_000})
    small, cut = consume(brokers, "cut", 2)
    assert small.value() == b"1"
    assert "velocity.value_bytes" not in dict(small.headers())
    assert cut.value() == large[:CUT_TO]
    assert dict(cut.headers())["velocity.value_bytes"] == b"50000"
    assert dict(cut.headers())["velocity.offset"] == b"0"


@pytest.mark.embedded
def test_a_value_larger_than_a_clients_default_is_kept_whole(brokers: str) -> None:
    send(brokers, "large", {"value": b"x" * 2_000_000})
    (message,) = consume(brokers, "large", 1)
    assert len(message.value()) == 2_000_000


@pytest.mark.embedded
def test_where_nobody_listens_the_bundle_fails_and_names_topic_and_remedy() -> None:
    with pytest.raises(Exception, match=r"1 messages did not reach topic dead: .*brokers are up"):
        send("127.0.0.1:1", "dead", {"value": b"1"}, **{"delivery.timeout.ms": 100})


class Broker:
    """A producer whose broker refuses, in batches, what exceeds a size."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.taken: list[bytes | None] = []
        self.batch: list[tuple[bytes | None, Any]] = []

    def produce(self, topic: str, *, value: bytes | None, on_delivery: Any, **_: Any) -> None:
        self.batch.append((value, on_delivery))

    def poll(self, timeout: float) -> int:
        return 0

    def flush(self, timeout: float) -> int:
        batch, self.batch = self.batch, []
        small = sum(len(value or b"") for value, _ in batch) <= self.largest
        for value, on_delivery in batch:
            if small:
                self.taken.append(value)
            on_delivery(None if small else KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), None)
        return 0


def outbox(broker: Broker) -> Outbox:
    return Outbox(producing(KafkaConfig("b:1"), DEADLINE), DEADLINE, Producers(lambda _: broker))


def record(value: bytes | None) -> Record:
    return Record(None, value, topic="dead")


def test_what_was_refused_for_its_neighbours_is_sent_whole() -> None:
    broker = Broker(largest=CUT_TO)
    box = outbox(broker)
    for value in (b"a" * 10, b"b" * 50_000, b"c" * 10):
        box.send(record(value))
    assert settle(box) == 1
    assert broker.taken == [b"a" * 10, b"c" * 10, b"b" * CUT_TO]


def test_a_record_too_large_even_when_cut_names_the_setting() -> None:
    box = outbox(Broker(largest=5))
    box.send(record(b"x" * 10))
    with pytest.raises(MessagesUndelivered, match=r"even when cut.*max\.message\.bytes"):
        settle(box)


@pytest.mark.parametrize(
    ("brokers", "options", "remedy"),
    [
        ("", {}, "name the brokers"),
        ("b:1", {"bootstrap.servers": "c:1"}, "give bootstrap_servers"),
        ("b:1", {"acks": 1}, "leave both out"),
        ("b:1", {"request.required.acks": "0"}, "leave both out"),
        ("b:1", {"enable.idempotence": False}, "leave both out"),
    ],
)
def test_a_config_that_could_lose_dead_letters_is_refused(
    brokers: str, options: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy):
        WriteDeadLettersToKafka("dead", KafkaConfig(brokers, options), job="pharmacy")


def test_a_deadline_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="more than zero"):
        WriteDeadLettersToKafka("dead", KafkaConfig("b:1"), job="pharmacy", deadline=timedelta())
