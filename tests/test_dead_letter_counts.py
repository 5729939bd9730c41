"""Dead letters in a topic are counted once each, by job, cause and minute, as they come."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Producer

from tests.cluster import until
from velocity.io.dead_letter_counts import Failed, KafkaCounts
from velocity.io.dead_letters_kafka import kafka_records
from velocity.io.kafka_config import KafkaConfig
from velocity.io.records import Cause, Stage, dead_letters, messages
from velocity.io.totals import StoreDown
from velocity.runners.embedded import EmbeddedKafka

pytestmark = pytest.mark.embedded

MINUTE = 1_767_571_380_000
"""2026-01-05T00:03:00Z"""
AT = datetime(2026, 1, 5, 0, 3, 7, tzinfo=UTC)
TOPIC = "velocity.dead-letters"


class Broker:
    """Dead letters as jobs write them, in a topic of two partitions."""

    def __init__(self, kafka: EmbeddedKafka) -> None:
        self.config = KafkaConfig(kafka.bootstrap_servers)
        self._producer = Producer(self.config.client())

    def fail(
        self, count: int, cause: Cause, at: datetime = AT, job: str = "orders", partition: int = 0
    ) -> None:
        batch = dead_letters(
            messages([b"{}"] * count, topic="events"),
            stage=Stage.ENRICH,
            causes=[cause] * count,
            errors=["no"] * count,
            failed_at=at,
        )
        for record in kafka_records(batch, job):
            headers: list[tuple[str, str | bytes | None]] = [*record.headers]
            self._producer.produce(TOPIC, record.value, headers=headers, partition=partition)
        assert self._producer.flush(30) == 0

    def send(self, value: bytes, headers: dict[str, bytes]) -> None:
        self._producer.produce(TOPIC, value, headers=list(headers.items()), partition=0)
        assert self._producer.flush(30) == 0


@pytest.fixture
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka({TOPIC: 2}) as kafka:
        yield kafka


@pytest.fixture
def broker(kafka: EmbeddedKafka) -> Broker:
    return Broker(kafka)


def becomes(letters: KafkaCounts, wanted: dict[Failed, int]) -> None:
    """The broker answers when it does; what it has told stays told."""
    until(lambda: sum(letters.counts().values()) >= sum(wanted.values()), 60)
    assert letters.counts() == wanted


def test_letters_of_all_partitions_are_counted_and_those_that_come_added(broker: Broker) -> None:
    broker.fail(3, Cause.SERVICE_FAILED)
    broker.fail(2, Cause.SERVICE_FAILED, at=AT + timedelta(minutes=1), partition=1)
    wanted = {
        Failed("orders", "service_failed", MINUTE): 3,
        Failed("orders", "service_failed", MINUTE + 60_000): 2,
    }
    with closing(KafkaCounts(broker.config, TOPIC)) as letters:
        becomes(letters, wanted)
        broker.fail(4, Cause.SERVICE_FAILED, partition=1)
        broker.fail(1, Cause.LATE, job="visits")
        wanted[Failed("orders", "service_failed", MINUTE)] += 4
        wanted[Failed("visits", "late", MINUTE)] = 1
        becomes(letters, wanted)


def test_of_many_letters_the_newest_of_each_partition_are_looked_back_at(broker: Broker) -> None:
    for partition in (0, 1):
        broker.fail(7, Cause.LATE, partition=partition)
        broker.fail(2, Cause.SERVICE_FAILED, partition=partition)
    with closing(KafkaCounts(broker.config, TOPIC, most=3)) as letters:
        becomes(
            letters,
            {
                Failed("orders", "service_failed", MINUTE): 4,
                Failed("orders", "late", MINUTE): 2,
            },
        )


def test_records_that_are_no_letters_are_left_out(broker: Broker) -> None:
    broker.send(b"anything", {})
    broker.send(b"{}", {"velocity.job": b"orders", "velocity.cause": b"late"})
    broker.send(b"{}", {"velocity.job": b"o", "velocity.cause": b"l", "velocity.failed_at": b"?"})
    broker.fail(1, Cause.LATE)
    with closing(KafkaCounts(broker.config, TOPIC)) as letters:
        becomes(letters, {Failed("orders", "late", MINUTE): 1})


def test_a_broker_that_goes_is_named_and_left_alone_for_a_while() -> None:
    now = 0.0
    with EmbeddedKafka({TOPIC: 1}) as kafka:
        address = kafka.bootstrap_servers
        broker = Broker(kafka)
        broker.fail(1, Cause.LATE)
        letters = KafkaCounts(broker.config, TOPIC, within=3, clock=lambda: now)
        becomes(letters, {Failed("orders", "late", MINUTE): 1})
    for _ in range(2):  # the second time it is not asked: it has no consumer that could be
        with pytest.raises(StoreDown, match=f"topic {TOPIC} at {address} can't be read"):
            letters.counts()
        letters.close()
    now = 31.0
    with pytest.raises(StoreDown, match=f"topic {TOPIC} at {address} can't be read"):
        letters.counts()


def test_an_option_that_is_refused_is_told_as_a_reason() -> None:
    letters = KafkaCounts(KafkaConfig("127.0.0.1:1", {"nonsense": "s3cret"}), TOPIC)
    with pytest.raises(StoreDown, match=r"No such configuration property.*KafkaConfig") as refused:
        letters.counts()
    assert "s3cret" not in str(refused.value)
