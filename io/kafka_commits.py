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
_EXPIRES: Final = 600.0
"""Seconds after which a confirmation that has not come is taken for lost with a failure."""


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
    ended: int = 0
    """Where the last bundle ended."""
    asked_at: float = float("-inf")
    """When a confirmation was asked for that has not come."""
    confirmed: int | None = None
    told: int | None = None


class Commits:
    """The way of offsets to their groups, for all reads of a process; safe for threads.

    Flink confirms all bundles that have ended when a checkpoint is complete, among them some that
    ended after its barrier, and that a failure would have read again. So what is confirmed is
    committed at the next confirmation: then it is in a checkpoint. A partition waits for one
    confirmation at a time, for a runner keeps what belongs to a bundle until it has confirmed it.

    >>> told = []
    >>> commits = Commits(lambda group, offset: told.append(offset.offset))
    >>> group = Group(KafkaConfig("127.0.0.1:9092"), "velocity")
    >>> first = commits.bundle_ended(group, "orders", 0, 0, 17)
    >>> first(); told
    []
    >>> second = commits.bundle_ended(group, "orders", 0, 17, 30)
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
        self, group: Group, topic: str, partition: int, start: int, position: int
    ) -> Callable[[], None] | None:
        """What the runner is to call when it has made a bundle durable, by where it began and ended.

        None where there is nothing to tell, or an earlier confirmation has not come yet.
        """
        place, now = _Place(group, topic, partition), self._clock()
        with self._lock:
            known = self._progress.get(place, _Progress())
            if start < known.ended:
                known = _Progress()  # a failure has put the read back
            due = known.told != position and now - known.asked_at >= _EXPIRES
            asked_at = now if due else known.asked_at
            self._progress[place] = replace(known, ended=position, asked_at=asked_at)
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
            durable = known.confirmed
            self._progress[place] = replace(
                known, asked_at=float("-inf"), confirmed=position, told=durable
            )
        if durable is not None and durable != known.told:
            self._commit(place.group, TopicPartition(place.topic, place.partition, durable))

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
                extra={"topic": offset.topic, "partition": offset.partition},
            )
            place = _Place(group, offset.topic, offset.partition)
            with self._lock:
                known = self._progress.get(place, _Progress())
                self._progress[place] = replace(known, told=None)


COMMITS: Final = Commits()
"""Those of this process."""
