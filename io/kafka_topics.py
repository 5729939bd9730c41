"""Which topics are read: those named, and those that a pattern stands for."""

import re
from collections.abc import Sequence

from confluent_kafka import Consumer

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import answering


def is_pattern(topic: str) -> bool:
    """Whether it stands for all topics that it matches, as in librdkafka and in Kafka's tools.

    >>> is_pattern("^orders\\\\..*"), is_pattern("orders")
    (True, False)
    """
    return topic.startswith("^")


def matching(topics: Sequence[str], name: str) -> bool:
    """Whether a topic is one of those named, or matched from its first character to its last.

    >>> matching(["^orders-.*", "claims"], "orders-1"), matching(["^orders"], "orders-1")
    (True, False)
    """
    return any(
        re.fullmatch(topic, name) is not None if is_pattern(topic) else topic == name
        for topic in topics
    )


def topics_of(
    consumer: Consumer, config: KafkaConfig, topics: Sequence[str], answer_within: float = 30.0
) -> list[str]:
    """Those that are named, and those that exist and match a pattern, each once.

    Kafka's own topics (``__consumer_offsets``) have to be named. Raises ``KafkaReadError`` if the
    brokers don't answer.
    """
    named = [topic for topic in topics if not is_pattern(topic)]
    patterns = [topic for topic in topics if is_pattern(topic)]
    if not patterns:
        return named
    with answering(config, "list the topics"):
        found = consumer.list_topics(timeout=answer_within).topics
    matched = [t for t in sorted(found) if matching(patterns, t) and not t.startswith("__")]
    return list(dict.fromkeys([*named, *matched]))
