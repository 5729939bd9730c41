"""Offsets told to a consumer group, once the runner has made durable what was read up to them."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import open_consumer

_LOG: Final = logging.getLogger(__name__)
_EVERY: Final = 1.0
"""Seconds from one callback of a partition to the next: a runner keeps what belongs to a bundle
until it is confirmed, and an idle partition has five bundles a second."""


class Group(NamedTuple):
    """A consumer group of a cluster."""

    config: KafkaConfig
    name: str


class _Place(NamedTuple):
    group: Group
    topic: str
    partition: int


@dataclass(frozen=True)
class _Progress:
    asked_at: float = float("-inf")
    confirmed: int | None = None
    """By the round of confirmations that is going on."""
    durable: int | None = None
    """By a round before it."""
    told: int | None = None


class Commits:
    """The way of offsets to their groups, for all reads of a process; safe for threads.

    A runner confirms bundles in rounds: Flink all that have ended when a checkpoint is complete,
    among them some that ended after its barrier, and that a failure would have read again. So what
    a round confirms is committed in the next one: then it is in a checkpoint, whatever happens.

    >>> told = []
    >>> commits = Commits(lambda group, offset: told.append(offset.offset), clock=iter(range(9)).__next__)
    >>> group = Group(KafkaConfig("127.0.0.1:9092"), "velocity")
    >>> first = commits.bundle_ended(group, "orders", 0, 17)
    >>> first(); told
    []
    >>> second = commits.bundle_ended(group, "orders", 0, 30)
    >>> second(); told
    [17]
    """

    def __init__(
        self,
        commit: Callable[[Group, TopicPartition], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` is in seconds and never goes back."""
        self._commit = commit or self._send
        self._clock = clock
        self._progress: dict[_Place, _Progress] = {}
        self._committers: dict[Group, Consumer] = {}
        self._lock = threading.Lock()

    def bundle_ended(
        self, group: Group, topic: str, partition: int, position: int, *, at_once: bool = False
    ) -> Callable[[], None] | None:
        """What the runner is to call when it has made the bundle durable, that ends at a position.

        None where there is nothing to tell, or a callback was given less than a second ago.
        ``at_once`` commits with the first confirmation, for reads that have no second one.
        """
        place = _Place(group, topic, partition)
        with self._lock:
            known = self._progress.get(place, _Progress())
            if position < max(known.confirmed or 0, known.durable or 0):
                known = _Progress()  # a failure has put the read back
            if known.confirmed is not None:  # that round is over
                known = replace(known, confirmed=None, durable=known.confirmed)
            now = self._clock()
            due = known.told != position and now - known.asked_at >= _EVERY
            self._progress[place] = replace(known, asked_at=now) if due else known
        if at_once:
            return partial(self._tell, place, position)
        return partial(self._confirmed, place, position) if due else None

    def close(self) -> None:
        """Ends the connections; who commits later gets new ones."""
        with self._lock:
            committers, self._committers = self._committers, {}
            self._progress.clear()
        for consumer in committers.values():
            consumer.close()

    def _confirmed(self, place: _Place, position: int) -> None:
        with self._lock:
            known = self._progress.get(place, _Progress())
            durable = known.durable if known.confirmed is None else None
            confirmed = position if known.confirmed is None else max(known.confirmed, position)
            self._progress[place] = replace(known, confirmed=confirmed, durable=None)
        if durable is not None and durable != known.told:
            self._tell(place, durable)

    def _tell(self, place: _Place, position: int) -> None:
        with self._lock:
            known = self._progress.get(place, _Progress())
            self._progress[place] = replace(known, told=position)
        self._commit(place.group, TopicPartition(place.topic, place.partition, position))

    def _send(self, group: Group, offset: TopicPartition) -> None:
        try:
            with self._lock:
                if group not in self._committers:
                    answered = partial(self._answered, group)
                    self._committers[group] = open_consumer(group.config, group.name, answered)
                consumer = self._committers[group]
                consumer.commit(offsets=[offset], asynchronous=True)
            consumer.poll(0)  # calls _answered for earlier ones
        except KafkaException as error:
            self._answered(group, error.args[0], [offset])

    def _answered(
        self, group: Group, error: KafkaError | None, offsets: list[TopicPartition]
    ) -> None:
        """Logs what was refused, and forgets that it was told: it is tried again."""
        for offset in offsets:
            failed: Any = error or offset.error
            if failed is None:
                continue
            _LOG.warning(
                "group %r was not told of %s partition %d at offset %d: %s; reading goes on."
                " Other consumers must not use this group, and the user must be allowed to",
                *(group.name, offset.topic, offset.partition, offset.offset, failed.str()),
            )
            place = _Place(group, offset.topic, offset.partition)
            with self._lock:
                known = self._progress.get(place, _Progress())
                self._progress[place] = replace(known, told=None)


COMMITS: Final = Commits()
"""Those of this process."""
