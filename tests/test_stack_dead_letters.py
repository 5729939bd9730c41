"""What only a real broker keeps: of two replays one goes on, and what was given up is not seen."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from velocity.io.dead_letter_replay import replay, replaying
from velocity.io.dead_letter_store import KafkaLetters, NotSent
from velocity.io.dead_letters_kafka import kafka_records
from velocity.io.kafka_config import KafkaConfig
from velocity.io.records import Cause, Stage, dead_letters, messages
from velocity.runners.stack_state import read_state

pytestmark = pytest.mark.stack


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[str]:
    def stack(*arguments: str) -> None:
        command = [sys.executable, "-m", "velocity.runners.stack_cli", *arguments]
        environment = {**os.environ, "VELOCITY_STATE": str(tmp_path)}
        subprocess.run(command, env=environment, check=True, capture_output=True)

    try:
        stack("up", "kafka")
        address = read_state(tmp_path).address("kafka")
        assert address is not None
        yield address
    finally:
        stack("down")


def test_of_two_replays_the_later_sends_each_letter_once_and_the_earlier_none(kafka: str) -> None:
    config = KafkaConfig(kafka)
    topics = [NewTopic("orders", 1), NewTopic("dead", 1)]
    admin = AdminClient({"bootstrap.servers": kafka})
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
