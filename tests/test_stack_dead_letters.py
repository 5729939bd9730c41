"""What only a real broker keeps: of two replays one goes on, and what was given up is not seen."""

from datetime import UTC, datetime

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from velocity.io.dead_letter_replay import replay, replaying
from velocity.io.dead_letter_store import KafkaLetters, NotSent
from velocity.io.dead_letters_kafka import kafka_records
from velocity.io.kafka_config import KafkaConfig
from velocity.io.records import Cause, Stage, dead_letters, messages

pytestmark = pytest.mark.stack


def test_of_two_replays_the_later_sends_each_letter_once_and_the_earlier_none(
    real_kafka: str,
) -> None:
    config = KafkaConfig(real_kafka)
    topics = [NewTopic("orders", 1), NewTopic("dead", 1)]
    admin = AdminClient({"bootstrap.servers": real_kafka})
    for created in admin.create_topics(topics).values():
        created.result(30)
    failed = dead_letters(
        messages([b"1", b"2", b"3"], topic="orders"),
        stage=Stage.ENRICH,
        causes=[Cause.SERVICE_FAILED] * 3,
        errors=["no"] * 3,
        failed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    producer = Producer(config.client())
    for record in kafka_records(failed, "job"):
        producer.produce("dead", record.value, record.key, headers=list(record.headers))
    assert producer.flush(30) == 0

    store = KafkaLetters("dead", config, "job")
    with replaying(config, "job") as earlier:
        seen = store.read().letters
        with replaying(config, "job") as later:
            assert replay(later, store.read().letters, store, config).sent == 3
        with pytest.raises(NotSent, match="no other replay of this job"):
            replay(earlier, seen, store, config)
    letters, problems = store.read()
    assert [letter.replayed for letter in letters] == [True] * 3
    assert problems == []
    copies = KafkaLetters("orders", config, "job").read()
    assert len(copies.problems) == 3  # each copy once: they are no letters
