"""Consumers that stand at a position of a partition, kept between the bundles that read it."""

import logging
import threading
import time
from collections.abc import Callable
from typing import ClassVar, Final

import pyarrow as pa
from apache_beam.utils.timestamp import Timestamp
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from velocity.io.kafka_batches import batches_of, open_for_batches
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import KafkaReadError, PartitionGone, offsets_lost

_LOG: Final = logging.getLogger(__name__)
_END_WITHIN: Final = 1.0
"""Seconds for a broker to tell a partition's end while others wait to be read; also how long a
told end is good for."""
_ANSWERED_WITHIN: Final = 1.0
"""Seconds: a fetch that finds nothing is answered after half a second, and tells of what was written then."""
_KEEP_FOR: Final = 300.0
"""Seconds for which a reader that no bundle asks for stays open."""
_SILENCE: Final = 120.0
"""Seconds without a message after which a bounded read fails, for its messages exist."""
_ANSWER_WITHIN: Final = 10.0
"""Seconds for a broker to say what it has, where a read can't go on without."""
_GONE_FOR: Final = 10.0
"""Seconds for which the brokers must know nothing of a topic before that is believed."""
_GONE: Final = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)


class PartitionReader:
    """A consumer at a position of one partition, kept between the bundles that read it."""

    positions: ClassVar[dict[tuple[str, int], int]] = {}
    """The offset that comes next, by topic and partition, of all that this process has read; for a
    display in the same process."""

    def __init__(
        self,
        config: KafkaConfig,
        where: TopicPartition,
        open: Callable[[KafkaConfig], Consumer],
        clock: Callable[[], float],
        now: Callable[[], Timestamp],
    ) -> None:
        self._config, self._where = config, where
        self._clock, self._now = clock, now
        self._consumer = open(config)
        self._batches = batches_of(self._consumer, where.topic, where.partition)
        self._batches.start_at(where.offset)
        self._row_at = self._heard_at = clock()
        self._told_at = float("-inf")
        self._end: tuple[Timestamp, int] | None = None
        self._failure: KafkaError | None = None
        self._gone_since: float | None = None
        self.position: int = where.offset
        """The offset that comes next."""

    def stands_at(self, config: KafkaConfig, topic: str, partition: int, position: int) -> bool:
        at = (self._config, self._where.topic, self._where.partition, self.position)
        return at == (config, topic, partition, position)

    def close(self) -> None:
        self._batches.close()
        self._consumer.close()

    def poll(self, most: int) -> pa.RecordBatch:
        """The next messages (``MESSAGES``), at most so many; none where there are none for now.

        Raises ``OffsetsLost``, ``PartitionGone`` and, for all else, ``KafkaReadError``; what came
        before the failure is given first.
        """
        if self._failure is not None:
            raise self._error_of(self._failure)
        batch, position, failure, heard = self._batches.poll(most)
        self.position = max(self.position, position)
        if failure is not None and not batch.num_rows:
            raise self._error_of(failure)
        self._failure = failure
        if heard:
            self._heard_at = self._clock()
        self.positions[self._where.topic, self._where.partition] = self.position
        return batch

    def skip_to(self, offset: int) -> None:
        """Goes on at a later offset than the one that would come next."""
        self._failure = None
        self.position = offset
        self._batches.start_at(offset)

    def _note_gone(self, error: KafkaError) -> None:
        """A consumer says nothing of a topic that has been deleted: the next poll does."""
        if error.code() not in _GONE or not self.is_gone():
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = self._clock()
        elif self._clock() - self._gone_since >= _GONE_FOR:
            self._failure = error

    def is_gone(self) -> bool:
        """Whether the brokers say that there is no such topic or partition; not if they hide it."""
        topic = self._where.topic
        try:
            found = self._consumer.list_topics(topic, timeout=_ANSWER_WITHIN).topics[topic]
        except KafkaException:
            return False
        if found.error is not None:
            return found.error.code() in _GONE
        return self._where.partition not in found.partitions

    def lag(self) -> int | None:
        """How many offsets the broker was ahead when it last gave messages; None before that."""
        _, end = self._consumer.get_watermark_offsets(self._where, cached=True)
        return max(end - self.position, 0) if end >= 0 else None

    def row_seen(self) -> None:
        self._row_at = self._clock()

    def idle_as_of(self, idle_after: float) -> Timestamp | None:
        """A time before which the partition got nothing but what is read, if for ``idle_after``
        seconds that gave no row; else None.

        The broker is asked for it: a partition that only can't be reached is not idle, and one
        that gets nothing but bad messages is, though its end is always a little ahead.
        """
        clock = self._clock()
        if clock - self._row_at < idle_after:
            return None
        told = clock - self._told_at
        # an end that is not reached for long may have gone with the leader that told it
        due = self._end is None or self._is_past_end() or told >= idle_after
        if due and told >= _END_WITHIN:
            self._told_at, asked_at = clock, self._now()
            try:
                _, end = self._consumer.get_watermark_offsets(self._where, timeout=_END_WITHIN)
            except KafkaException as error:
                where = {"topic": self._where.topic, "partition": self._where.partition}
                text = "the end of %s partition %d is not known: %s"
                _LOG.warning(text, *where.values(), error.args[0].str(), extra=where)
                self._note_gone(error.args[0])
            else:
                # Asked, it tells no more than may be read: what lies behind an open transaction, of
                # other producers too, is beyond that. Fetches tell of all.
                _, written = self._consumer.get_watermark_offsets(self._where, cached=True)
                as_of = asked_at - _ANSWERED_WITHIN
                self._end, self._gone_since = (as_of, max(end, written)), None
        return self._end[0] if self._end and self._is_past_end() else None

    def expect_more(self) -> None:
        """Raises ``KafkaReadError`` if nothing has come for two minutes."""
        if self._clock() - self._heard_at > _SILENCE:
            if self.is_gone():
                raise self._error_of(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
            raise self._error(
                f"nothing has come for {_SILENCE:.0f} s",
                "is the broker up, and no transaction left open?",
            )

    def _is_past_end(self) -> bool:
        return self._end is not None and self.position >= self._end[1]

    def _error_of(self, error: KafkaError) -> KafkaReadError:
        code = error.code()
        if code == KafkaError._AUTO_OFFSET_RESET:
            return self._out_of_range(error)
        if code in _GONE:
            remedy = "create it again, or take it out of topics and start without the old positions"
            return self._error("the topic is gone", remedy, PartitionGone)
        remedy = "see the broker's log; the bundle is tried again by the runner"
        if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            remedy = "allow this user to read and describe it"
        return self._error(error.str(), remedy)

    def _out_of_range(self, error: KafkaError) -> KafkaReadError:
        where = self._where
        try:
            low, high = self._consumer.get_watermark_offsets(where, timeout=_ANSWER_WITHIN)
        except KafkaException:  # why it was asked says more
            return self._error(error.str(), "is the broker up? The runner tries again")
        if self.position < low:
            return offsets_lost(where.topic, where.partition, self.position, low, high)
        return self._error(
            f"the broker has {low} to {high}",
            "the topic was made anew, or lost messages with its leader: start without the old"
            " positions, or choose a start that it has, such as 'earliest'",
        )

    def _error(
        self, cause: str, remedy: str, kind: type[KafkaReadError] = KafkaReadError
    ) -> KafkaReadError:
        return kind(
            f"cannot read topic {self._where.topic!r} partition {self._where.partition} "
            f"at offset {self.position}: {cause}; {remedy}"
        )


class Readers:
    """The readers of a process that no bundle uses just now, for the next ones to take."""

    def __init__(
        self,
        open: Callable[[KafkaConfig], Consumer] = open_for_batches,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], Timestamp] = Timestamp.now,
        sweep_every: float | None = None,
    ) -> None:
        """``clock`` is in seconds and never goes back; ``now`` is the time of the world.

        With ``sweep_every`` (seconds) readers are closed in time though no other is given back.
        """
        self.clock, self.now = clock, now
        self._open = open
        self._sweep_every, self._sweeps = sweep_every, False
        self._kept: list[tuple[float, PartitionReader]] = []
        self._lock = threading.Lock()

    def take(self, config: KafkaConfig, topic: str, partition: int, start: int) -> PartitionReader:
        """The kept reader that stands at ``start``, or a new one."""
        with self._lock:
            for entry in self._kept:
                if entry[1].stands_at(config, topic, partition, start):
                    self._kept.remove(entry)
                    return entry[1]
        where = TopicPartition(topic, partition, start)
        return PartitionReader(config, where, self._open, self.clock, self.now)

    def give_back(self, reader: PartitionReader) -> None:
        """Keeps a reader, and closes those that no bundle has asked for lately."""
        self._close_stale()
        with self._lock:
            self._kept.append((self.clock(), reader))
            begins = self._sweep_every is not None and not self._sweeps
            self._sweeps |= begins
        if begins:
            self._sweep_later()

    def _close_stale(self) -> None:
        now = self.clock()
        with self._lock:
            stale = [entry for entry in self._kept if now - entry[0] > _KEEP_FOR]
            self._kept = [entry for entry in self._kept if entry not in stale]
        for _, old in stale:
            old.close()

    def _sweep_later(self) -> None:
        timer = threading.Timer(self._sweep_every or 0.0, self._sweep)
        timer.daemon = True
        timer.start()

    def _sweep(self) -> None:
        self._close_stale()
        with self._lock:
            self._sweeps = bool(self._kept)
        if self._sweeps:
            self._sweep_later()

    def close(self) -> None:
        """Closes what is kept; who asks for it later gets a new one."""
        with self._lock:
            kept, self._kept = self._kept, []
        for _, reader in kept:
            reader.close()


READERS: Final = Readers(sweep_every=60.0)
"""Those of this process."""
