"""Laws of the history that a replay finds in Kafka: what may have been lost is told."""

from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_END, TopicPartition

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_history import HistoryGone, check_history

CONFIG = KafkaConfig("127.0.0.1:9")
START = datetime(2026, 1, 5, tzinfo=UTC)
MILLIS = round(START.timestamp() * 1000)


class FakeConsumer:
    """One partition that holds messages of these times (milliseconds from the start), from ``low``."""

    def __init__(self, low: int, *times: int) -> None:
        self._low = low
        self._times = [MILLIS + time for time in times]
        self.closed = False

    def list_topics(self, topic: str, timeout: float) -> Any:
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions={0: None})})

    def get_watermark_offsets(self, at: TopicPartition, timeout: float) -> tuple[int, int]:
        return self._low, self._low + len(self._times)

    def offsets_for_times(self, asked: Sequence[Any], timeout: float) -> list[TopicPartition]:
        [wanted] = asked
        since = (n for n, time in enumerate(self._times, self._low) if time >= wanted.offset)
        return [TopicPartition(wanted.topic, wanted.partition, next(since, OFFSET_END))]

    def assign(self, places: Sequence[TopicPartition]) -> None:
        [place] = places
        self._at = place.offset - self._low

    def poll(self, timeout: float) -> Any:
        time = self._times[self._at]
        return SimpleNamespace(error=lambda: None, timestamp=lambda: (1, time))

    def close(self) -> None:
        self.closed = True


def check(consumer: Any) -> None:
    try:
        check_history(CONFIG, ["orders"], START, lambda config: consumer)
    finally:
        assert consumer.closed


@pytest.mark.parametrize(
    "consumer",
    [
        FakeConsumer(0, 5, 6),
        FakeConsumer(0, -5, 6),
        FakeConsumer(7),
        FakeConsumer(7, -5, 6),
        FakeConsumer(7, -6, -5),
    ],
    ids=["never cut", "never cut, older", "empty", "cut before", "nothing so late"],
)
def test_a_partition_that_has_lost_nothing_since_the_start_is_taken(consumer: FakeConsumer) -> None:
    check(consumer)


def test_a_partition_that_begins_later_may_have_lost_some_and_says_when_it_begins() -> None:
    with pytest.raises(HistoryGone, match=r"partition 0 .*begins at 2026-01-05T00:00:00\.005"):
        check(FakeConsumer(7, 5, 6))
