"""Consumers: how they are opened, and positions in a cluster."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_offsets import UNBOUNDED, Partition

Offsets = Mapping[tuple[str, int], int]
"""By topic and partition."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class KafkaReadError(Exception):
    """A partition can't be read; the message names topic, partition, offset and remedy.

    KafkaReadError
    ├── OffsetsLost     retention, or somebody, has deleted what was to be read next
    └── PartitionGone   its topic has been deleted
    """


class OffsetsLost(KafkaReadError):
    """What is wanted next has been deleted; ``earliest`` is the first offset that is left."""

    def __init__(self, told: str, earliest: int) -> None:
        super().__init__(told, earliest)  # what unpickling calls it with
        self.earliest = earliest

    def __str__(self) -> str:
        return str(self.args[0])  # a runner adds to it


def offsets_lost(topic: str, partition: int, offset: int, low: int, high: int) -> OffsetsLost:
    """Says that a partition has [low, high), and an offset before that was wanted.

    >>> str(offsets_lost("orders", 0, 17, 40, 90)).split(";")[0]
    "cannot read topic 'orders' partition 0 at offset 17: 23 offsets have been deleted"
    """
    return OffsetsLost(
        f"cannot read topic {topic!r} partition {partition} at offset {offset}: {low - offset} "
        f"offsets have been deleted; the broker has {low} to {high}. To go on with what is left, "
        "and count what is lost, set on_lost_offsets to 'earliest'",
        low,
    )


class PartitionGone(KafkaReadError):
    """The topic, or this partition of it, is not there any more."""


def open_consumer(
    config: KafkaConfig,
    group: str | None = None,
    on_commit: Callable[[Any, list[TopicPartition]], None] | None = None,
    make: Callable[[dict[str, Any]], Consumer] = Consumer,
) -> Consumer:
    """A consumer that commits nothing by itself, of a group where one is given.

    ``on_commit`` is told of commits. ``make`` opens it with librdkafka's options. Raises ``KafkaReadError`` if librdkafka refuses an option.
    """
    defaults = {
        "group.id": "velocity",
        "queued.max.messages.kbytes": 16_384,
        "fetch.queue.backoff.ms": 10,  # a queue that was full is filled on, not idle for a second
    }
    settings = defaults | config.client(
        **({} if group is None else {"group_id": group}),
        enable_auto_commit=False,
        enable_partition_eof=True,
        # an offset that the broker no longer has must not silently become another
        auto_offset_reset="error",
    )
    if on_commit is not None:
        settings["on_commit"] = on_commit
    try:
        return make(settings)
    except KafkaException as error:
        raise KafkaReadError(config.refusal(error)) from None


def offsets_to_read(
    consumer: Consumer,
    config: KafkaConfig,
    topic: str,
    start: str | datetime | Offsets,
    stop: str | datetime | Offsets | None,
    answer_within: float = 30.0,
    known: Container[tuple[str, int]] = (),
    *,
    lost_are_skipped: bool = False,
) -> Iterator[Partition]:
    """A topic's partitions that are not known, with the offsets between two positions as of now.

    A stop past the end is the end: what is bounded does not wait for messages to come. Raises
    ``KafkaReadError`` for a topic, partition or start that the brokers don't have, and if one
    doesn't answer within ``answer_within`` seconds; but a start that has been deleted is left as it
    is where ``lost_are_skipped``, for who reads to find and count.
    """
    numbers = _partitions(consumer, config, topic, answer_within)
    for where in (start, stop):
        for named, number in where if isinstance(where, Mapping) else ():
            if named == topic and number not in numbers:
                raise KafkaReadError(
                    f"topic {topic!r} has no partition {number}, which an offset is given for; "
                    f"it has {len(numbers)}, from 0"
                )
    for number in numbers:
        if (topic, number) in known:
            continue
        with answering(config, f"find the offsets of topic {topic!r} partition {number}"):
            at = TopicPartition(topic, number)
            low, high = consumer.get_watermark_offsets(at, timeout=answer_within)
            first = _offset_of(consumer, at, start, low, high, low, answer_within)
            last = UNBOUNDED
            if stop is not None:
                last = min(high, _offset_of(consumer, at, stop, low, high, high, answer_within))
        if 0 <= first < low:
            if not lost_are_skipped:
                raise offsets_lost(topic, number, first, low, high)
        elif not low <= first <= high:
            raise KafkaReadError(
                f"cannot read topic {topic!r} partition {number} at offset {first}: the broker "
                f"has {low} to {high}; choose a start that it has, such as 'earliest'"
            )
        yield Partition(topic, number, first, max(first, last), high)


def _partitions(
    consumer: Consumer, config: KafkaConfig, topic: str, answer_within: float
) -> list[int]:
    asking = f"list the partitions of topic {topic!r}"
    with answering(config, asking):
        metadata = consumer.list_topics(topic, timeout=answer_within).topics[topic]
    if metadata.error is None:
        return sorted(metadata.partitions)
    remedy = "see the broker's log"
    if metadata.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        remedy = "create the topic, or correct its name"
    elif metadata.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        remedy = "allow this user to describe and read it"
    raise KafkaReadError(
        f"cannot {asking} at {config.bootstrap_servers}: {metadata.error.str()}; {remedy}"
    )


@contextmanager
def answering(config: KafkaConfig, asking: str) -> Iterator[None]:
    """Within, an error of the brokers raises ``KafkaReadError`` that names what was asked."""
    try:
        yield
    except KafkaException as error:
        raise KafkaReadError(
            f"cannot {asking} at {config.bootstrap_servers}: {error.args[0].str()}; "
            "is the broker up, and are the address and the credentials right?"
        ) from None


def _offset_of(
    consumer: Consumer,
    at: TopicPartition,
    where: str | datetime | Offsets,
    low: int,
    high: int,
    default: int,
    answer_within: float,
) -> int:
    """The offset that a position means in a partition that holds [low, high)."""
    match where:
        case "earliest":
            return low
        case "latest":
            return high
        case "committed":
            [told] = consumer.committed([at], timeout=answer_within)
            if told.error is not None:
                raise KafkaException(told.error)
            return low if told.offset < 0 else told.offset  # the group knows nothing of it
        case datetime():
            millis = (where - _EPOCH) // timedelta(milliseconds=1)
            asked = TopicPartition(at.topic, at.partition, millis)
            [found] = consumer.offsets_for_times([asked], timeout=answer_within)
            if found.error is not None:
                raise KafkaException(found.error)
            return high if found.offset < 0 else found.offset  # no message is so late
        case Mapping():
            return where.get((at.topic, at.partition), default)
    raise ValueError(f"not a position in a topic: {where!r}")
