"""Whether Kafka still has the history that a replay wants."""

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime

from confluent_kafka import Consumer, TopicPartition

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import answering, open_consumer
from velocity.io.kafka_topics import topics_of

_WITHIN = 30.0


class HistoryGone(Exception):
    """The broker no longer has all messages since a time; the message says from when it has."""


def check_history(
    config: KafkaConfig,
    topics: Sequence[str],
    start: datetime,
    open: Callable[[KafkaConfig], Consumer] = open_consumer,
) -> None:
    """Returns if each partition has all its messages since ``start``, by the broker's timestamps.

    A partition that begins at offset 0 has all there ever were. One that begins later, with a
    message of that time or after it, may have lost others: raises ``HistoryGone``.
    """
    millis = int(start.timestamp() * 1000)
    with closing(open(config)) as consumer:
        for topic in topics_of(consumer, config, topics):
            with answering(config, f"find when topic {topic!r} begins"):
                numbers = sorted(
                    consumer.list_topics(topic, timeout=_WITHIN).topics[topic].partitions
                )
                for number in numbers:
                    at = TopicPartition(topic, number)
                    low, high = consumer.get_watermark_offsets(at, timeout=_WITHIN)
                    asked = TopicPartition(topic, number, millis)
                    [found] = consumer.offsets_for_times([asked], timeout=_WITHIN)
                    none_since = found.offset < 0  # the newest is older, so what was lost is too
                    if low == 0 or low == high or none_since or found.offset > low:
                        continue
                    consumer.assign([TopicPartition(topic, number, low)])
                    message = consumer.poll(_WITHIN)
                    began = ""
                    if message is not None and message.error() is None:
                        time = datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)
                        began = f", and begins at {time.isoformat()}"
                    raise HistoryGone(
                        f"topic {topic!r} partition {number} has lost its oldest messages{began}; "
                        f"the windows of this replay want those since {start.isoformat()}: give a "
                        "later --from, or replay from an archive"
                    )
