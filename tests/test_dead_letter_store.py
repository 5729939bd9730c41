"""Letters are read as they were written, each once, and a mark stays with its letter."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.copies import Origin
from velocity.io.dead_letter_replay import replay, replaying
from velocity.io.dead_letter_store import (
    KafkaLetters,
    Letter,
    LettersUnreadable,
    NotSent,
    ParquetLetters,
    collected,
    fetch,
    letter_of,
)
from velocity.io.dead_letters import WriteDeadLettersToParquet
from velocity.io.dead_letters_kafka import kafka_records
from velocity.io.kafka_config import KafkaConfig
from velocity.io.records import MESSAGES, Cause, Stage, dead_letters
from velocity.runners.embedded import EmbeddedKafka

FAILED_AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
ANY_BYTES = st.none() | st.binary()
NOBODY: Any = None
"""The producer, for what needs none."""


def letter(offset: int | None = 0, **changes: Any) -> Letter:
    partition = None if offset is None else 3
    given: dict[str, Any] = {
        "job": "orders",
        "stage": "enrich",
        "cause": "service_failed",
        "error": "no",
        "failed_at": FAILED_AT,
        "attempt": 1,
        "topic": "events",
        "partition": partition,
        "offset": offset,
        "timestamp": None,
        "key": None,
        "value": b"{}",
    }
    return Letter(**(given | changes))


def batch(*rows: dict[str, Any], attempt: int = 1) -> pa.RecordBatch:
    return dead_letters(
        pa.RecordBatch.from_pylist(
            [{"topic": "events", "partition": 3, "offset": i} | r for i, r in enumerate(rows)],
            schema=MESSAGES,
        ),
        stage=Stage.ENRICH,
        causes=[Cause.SERVICE_FAILED] * len(rows),
        errors=["no"] * len(rows),
        failed_at=FAILED_AT,
        attempt=attempt,
    )


def write(path: Path, *rows: dict[str, Any], job: str = "orders") -> None:
    step = WriteDeadLettersToParquet(str(path), job=job)._sink
    step.start_bundle()
    step.process(batch(*rows))
    step.finish_bundle()


@given(
    ANY_BYTES,
    ANY_BYTES,
    st.lists(st.tuples(st.text(), ANY_BYTES), max_size=3),
    st.none() | st.datetimes(timezones=st.just(UTC)),
    st.integers(1, 2**31 - 1),
)
def test_a_record_of_kafka_is_the_letter_that_was_written(
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    time: datetime | None,
    attempt: int,
) -> None:
    time = time and time.replace(microsecond=time.microsecond // 1000 * 1000)
    own = [{"name": name, "value": value} for name, value in headers]
    row = {"key": key, "value": value, "headers": own, "timestamp": time}
    (record,) = kafka_records(batch(row, attempt=attempt), "orders")
    assert letter_of(record.key, record.value, record.headers) == letter(
        key=key, value=value, headers=tuple(headers), timestamp=time, attempt=attempt
    )


@given(st.lists(st.tuples(st.text() | st.just("velocity.stage"), ANY_BYTES), max_size=5))
def test_what_is_no_letter_names_the_header_that_is_wrong(
    headers: list[tuple[str, bytes | None]],
) -> None:
    with pytest.raises(ValueError, match=r"header velocity\.\w+ is (missing|wrong)"):
        letter_of(None, b"", headers)


@pytest.mark.parametrize("name", ["stage", "cause", "failed_at", "attempt", "partition"])
def test_each_header_of_an_envelope_is_checked(name: str) -> None:
    (record,) = kafka_records(batch({}), "orders")
    spoiled = [(n, b"?" if n == f"velocity.{name}" else v) for n, v in record.headers]
    with pytest.raises(ValueError, match=f"velocity.{name} is wrong: '\\?'"):
        letter_of(None, b"", spoiled)


def test_a_cut_letter_is_not_whole() -> None:
    (record,) = kafka_records(batch({}), "orders")
    assert letter_of(None, b"", record.headers).whole
    assert not letter_of(None, b"", (*record.headers, ("velocity.value_bytes", b"9"))).whole


def test_a_letter_counts_once_however_often_its_bundle_ran() -> None:
    later = letter(failed_at=FAILED_AT + timedelta(seconds=1))
    assert collected([letter(), later, letter(1)], ()) == [letter(1), later]


def test_rejections_of_a_document_count_each() -> None:
    versions = [letter(None, key=b"id", value=b"1"), letter(None, key=b"id", value=b"2")]
    assert collected(versions, ()) == versions


def test_letters_in_parquet_are_read_as_they_failed(tmp_path: Path) -> None:
    write(tmp_path, {"key": b"k", "value": b"\xff", "headers": [{"name": "h", "value": None}]})
    write(tmp_path, {}, job="another")
    found = ParquetLetters(str(tmp_path), "orders").read()
    assert found.letters == [letter(key=b"k", value=b"\xff", headers=(("h", None),))]
    assert found.problems == []


def test_a_mark_stays_with_its_letter(tmp_path: Path) -> None:
    write(tmp_path, {}, {})
    store = ParquetLetters(str(tmp_path), "orders")
    with store.marking(["events/3/1#1"], NOBODY):
        pass
    found = store.read()
    assert [(x.offset, x.replayed) for x in found.letters] == [(0, False), (1, True)]
    assert found.problems == []


def test_what_was_not_sent_is_not_marked(tmp_path: Path) -> None:
    write(tmp_path, {})
    store = ParquetLetters(str(tmp_path), "orders")
    with pytest.raises(NotSent), store.marking(["events/3/0#1"], NOBODY):
        raise NotSent("refused")
    assert store.read() == ([letter(value=None)], [])


def test_a_crash_in_between_is_told_and_its_letters_are_not_sent_again(tmp_path: Path) -> None:
    write(tmp_path, {})
    store = ParquetLetters(str(tmp_path), "orders")
    with pytest.raises(OSError, match="power"), store.marking(["events/3/0#1"], NOBODY):
        raise OSError("power")
    found = store.read()
    assert [x.replayed for x in found.letters] == [True]
    (problem,) = found.problems
    assert ".intent: a replay of 1 dead letters was cut off" in problem
    assert "velocity-origin" in problem


def test_a_document_is_no_message_to_send(tmp_path: Path) -> None:
    store = ParquetLetters(str(tmp_path), "orders")
    documents = [letter(None, stage="sink", topic="index", key=b"id")] * 2
    assert replay(NOBODY, documents, store, KafkaConfig("b:1")) == (0, 2, [], 0)


def test_a_replay_stops_between_transactions(tmp_path: Path) -> None:
    store = ParquetLetters(str(tmp_path), "orders")
    documents = [letter(None)] * 5
    done: list[int] = []
    result = replay(
        NOBODY,
        documents,
        store,
        KafkaConfig("b:1"),
        progress=done.append,
        stopped=lambda: done == [2, 4],
        per_transaction=2,
    )
    assert (result.documents, done) == (4, [2, 4])


class Broker:
    """A producer whose broker refuses a transaction as the test says."""

    def __init__(self, refusal: Exception) -> None:
        self.refusal = refusal
        self.aborted = False

    def begin_transaction(self) -> None:
        self.produced: list[dict[str, Any]] = []

    def produce(self, **message: Any) -> None:
        self.produced.append(message)

    def commit_transaction(self, timeout: float) -> None:
        raise self.refusal

    def abort_transaction(self, timeout: float) -> None:
        self.aborted = True


def refused(retriable: bool) -> Exception:
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, "refused", False, retriable, True))


def test_a_refused_transaction_is_given_up_and_its_letters_stay(tmp_path: Path) -> None:
    write(tmp_path, {})
    store = ParquetLetters(str(tmp_path), "orders")
    broker: Any = Broker(refused(retriable=False))
    with pytest.raises(NotSent, match=r"1 dead letters were not replayed: refused; check"):
        replay(broker, store.read().letters, store, KafkaConfig("b:1"))
    assert broker.aborted
    assert store.read() == ([letter(value=None)], [])


def test_what_may_yet_commit_is_told_and_not_sent_again(tmp_path: Path) -> None:
    write(tmp_path, {})
    store = ParquetLetters(str(tmp_path), "orders")
    broker: Any = Broker(refused(retriable=True))
    with pytest.raises(Exception, match="is not known"):
        replay(broker, store.read().letters, store, KafkaConfig("b:1"))
    assert not broker.aborted
    assert [x.replayed for x in store.read().letters] == [True]
    assert len(store.read().problems) == 1


@pytest.mark.embedded
def test_of_a_letter_that_is_not_whole_the_original_is_sent(tmp_path: Path) -> None:
    store = ParquetLetters(str(tmp_path), "orders")
    with EmbeddedKafka({"events": 4}) as kafka:
        config = KafkaConfig(kafka.bootstrap_servers)
        producer = Producer(config.client())
        producer.produce("events", b"all of it", b"k", 3, timestamp=7, headers=[("h", b"1")])
        assert producer.flush(30) == 0
        cut = [letter(0, value=b"all", whole=False), letter(9, value=b"all", whole=False)]
        with replaying(config, "orders") as transactional:
            result = replay(transactional, cut, store, config)
        assert result == (1, 0, ["events/3/9#1"], 0)
        copy = fetch(config, Origin("events", 3, 1))
    assert copy is not None
    assert (copy.key(), copy.value()) == (b"k", b"all of it")
    assert copy.headers() == [
        ("h", b"1"),
        ("velocity-attempt", b"2"),
        ("velocity-origin", b"events/3/0"),
    ]


@pytest.mark.embedded
def test_where_nobody_listens_the_remedy_is_told() -> None:
    letters = KafkaLetters("dead", KafkaConfig("127.0.0.1:1"), "orders", answer_within=0.5)
    with pytest.raises(LettersUnreadable, match=r"cannot read topic dead .* brokers are up"):
        letters.read()
