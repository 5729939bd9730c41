"""Which partitions there are: listed once for a read that ends, again and again for one that does not."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import apache_beam as beam
from apache_beam.coders import Coder, FastPrimitivesCoder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import KafkaReadError, Offsets, offsets_to_read, open_consumer
from velocity.io.kafka_offsets import Partition
from velocity.io.kafka_spread import spread
from velocity.io.kafka_topics import topics_of
from velocity.io.watermark import ForwardWatermarkProvider

_LOG: Final = logging.getLogger(__name__)

_LATER_WITHIN: Final = 5.0
"""Seconds for a broker to answer a listing that nobody waits for, but a checkpoint might."""

PIECE: Final = 1_000_000
"""Offsets of a bounded read that one worker reads at a time."""

Known = tuple[tuple[str, int], ...]
"""Topics and numbers of partitions, in order."""

Listed = tuple[Known | None]
"""The restriction: what is known, None before the first listing. In a tuple of its own, for Beam
loses a residual that is false, and nothing known would be."""


class Listing(NamedTuple):
    """Partitions that were not known, with the offsets to read; and why topics could not be listed."""

    found: list[Partition]
    unread: Mapping[str, str]


Lister = Callable[[Known | None], Listing]
"""Lists what is not known; None asks for the first listing, of which all must be found."""


@dataclass(frozen=True)
class Wanted:
    """What is to be read: the arguments of ``ReadFromKafka``, which explains them."""

    config: KafkaConfig
    topics: Sequence[str]
    start: str | datetime | Offsets
    stop: str | datetime | Offsets | None
    group: str | None
    lost_are_skipped: bool

    def first(self) -> list[Partition]:
        """All partitions, from start to stop as they are now; raises ``KafkaReadError``."""
        consumer = open_consumer(self.config, self.group)
        try:
            return [
                partition
                for topic in topics_of(consumer, self.config, self.topics)
                for partition in offsets_to_read(
                    consumer,
                    self.config,
                    topic,
                    self.start,
                    self.stop,
                    lost_are_skipped=self.lost_are_skipped,
                )
            ]
        finally:
            consumer.close()

    def list_new(self, known: Known | None) -> Listing:
        """What has come since is to be read whole. One topic that can't be read hides no other."""
        if known is None:
            return Listing(self.first(), {})
        found: list[Partition] = []
        unread: dict[str, str] = {}
        consumer = open_consumer(self.config, self.group)
        try:
            for topic in topics_of(consumer, self.config, self.topics, _LATER_WITHIN):
                try:
                    found += offsets_to_read(
                        consumer, self.config, topic, "earliest", None, _LATER_WITHIN, known
                    )
                except KafkaReadError as error:
                    unread[topic] = str(error)
        finally:
            consumer.close()
        return Listing(found, unread)


class ListPartitions(beam.DoFn):
    """Fixes start and stop once, before anything is read, so that a retry can't move them.

    Of a partition that has more offsets to read than a ``piece`` several are made, for workers to
    share. None makes one of each: whether an event is late depends on all before it in its partition.
    """

    def __init__(self, wanted: Wanted, piece: int | None = PIECE) -> None:
        self._wanted, self._piece = wanted, piece

    def process(self, _: None) -> Iterator[Partition]:
        yield from spread(self._pieces(), 0)

    def _pieces(self) -> Iterator[Partition]:
        for partition in self._wanted.first():
            _, _, start, stop, *_ = partition
            size = self._piece or max(stop - start, 1)
            for piece in range(start, stop, size):
                yield partition._replace(start=piece, stop=min(piece + size, stop))


class KnownTracker(RestrictionTracker):
    """Tracks what has been given out: claiming a listing adds it, a checkpoint keeps it.

    >>> tracker = KnownTracker((None,))
    >>> tracker.try_claim((("orders", 0),)), tracker.try_split(0)
    (True, ((None,), ((('orders', 0),),)))
    """

    def __init__(self, listed: Listed) -> None:
        self._given = self._left = listed
        self._split = False

    def current_restriction(self) -> Listed:
        return self._given

    def current_progress(self) -> RestrictionProgress:
        return RestrictionProgress(completed=0, remaining=1)

    def is_bounded(self) -> bool:
        return False

    def try_claim(self, position: Known) -> bool:
        if self._split:
            return False
        self._left = (position,)
        return True

    def check_done(self) -> None:
        if not self._split:
            raise ValueError("looking for partitions never ends, and was not deferred")

    def try_split(self, fraction_of_remainder: float) -> tuple[Listed, Listed] | None:
        if fraction_of_remainder or self._split:
            return None  # there is nothing to share
        self._split = True
        return self._given, self._left


class KnownRestrictions(RestrictionProvider):
    def initial_restriction(self, element: Any) -> Listed:
        return (None,)

    def create_tracker(self, restriction: Listed) -> KnownTracker:
        return KnownTracker(restriction)

    def restriction_size(self, element: Any, restriction: Listed) -> int:
        return 1

    def restriction_coder(self) -> Coder:
        return FastPrimitivesCoder()

    def truncate(self, element: Any, restriction: Listed) -> None:
        """On drain nothing new is looked for."""
        return


_TRACKER: Final = beam.DoFn.RestrictionParam(KnownRestrictions())
_WATERMARK: Final = beam.DoFn.WatermarkEstimatorParam(ForwardWatermarkProvider())


class WatchPartitions(beam.DoFn):
    """Gives out each partition once, those that come later as they come.

    Its watermark is the time of the last listing less ``disorder`` (seconds): what happens in a
    partition is taken to happen after the partition was made. A topic that can't be listed, perhaps
    because it is gone, is logged once, and holds nothing back.
    """

    def __init__(
        self,
        list_new: Lister,
        every: float,
        disorder: float,
        now: Callable[[], Timestamp] = Timestamp.now,
    ) -> None:
        self._list_new = list_new
        self._every, self._disorder = Duration(every), Duration(disorder)
        self._now = now
        self._unread: set[str] = set()

    @beam.DoFn.unbounded_per_element()
    def process(
        self, _: Any, tracker: Any = _TRACKER, watermark: Any = _WATERMARK
    ) -> Iterator[Any]:
        # Where a partition's own watermark begins: others may have come so far without it.
        at = watermark.current_watermark()
        for partition in self.look(tracker, watermark):
            yield TimestampedValue(partition, at)

    def look(self, tracker: Any, watermark: Any) -> Iterator[Partition]:
        """One listing; what it finds is part of the restriction from then on."""
        known: Known | None
        [known] = tracker.current_restriction()
        asked_at = self._now()
        try:
            found, unread = self._list_new(known)
        except KafkaReadError as error:
            if known is None:
                raise
            self._note({"": str(error)})
        else:
            self._note(unread)
            if tracker.try_claim(_joined(known or (), found)):
                for topic, number, *_ in found if known is not None else ():
                    place = {"topic": topic, "partition": number}
                    text = "%s partition %d is new, and read from now on"
                    _LOG.info(text, topic, number, extra=place)
                yield from spread(found, len(known or ()))
                watermark.advance(asked_at - self._disorder)
        tracker.defer_remainder(self._every)

    def _note(self, unread: Mapping[str, str]) -> None:
        for topic in unread.keys() - self._unread:
            _LOG.warning("no new partitions can be found for now: %s", unread[topic])
        self._unread = set(unread)


def _joined(known: Known, found: Iterable[Partition]) -> Known:
    return tuple(sorted({*known, *((each.topic, each.partition) for each in found)}))
