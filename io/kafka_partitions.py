"""Which partitions there are: a splittable DoFn that looks for new ones for as long as a job runs."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import apache_beam as beam
from apache_beam.coders import Coder, FastPrimitivesCoder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration, Timestamp
from confluent_kafka import Consumer, KafkaException

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import KafkaReadError
from velocity.io.kafka_offsets import Partition
from velocity.io.watermark import ForwardWatermarkProvider

_LOG: Final = logging.getLogger(__name__)

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
    try:
        found = consumer.list_topics(timeout=answer_within).topics
    except KafkaException as error:
        raise KafkaReadError(
            f"cannot list the topics at {config.bootstrap_servers}: {error.args[0].str()}; "
            "is the broker up, and are the address and the credentials right?"
        ) from None
    matched = [t for t in sorted(found) if matching(patterns, t) and not t.startswith("__")]
    return list(dict.fromkeys([*named, *matched]))


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
    ) -> Iterator[Partition]:
        yield from self.look(tracker, watermark)

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
                yield from found
                watermark.advance(asked_at - self._disorder)
        tracker.defer_remainder(self._every)

    def _note(self, unread: Mapping[str, str]) -> None:
        for topic in unread.keys() - self._unread:
            _LOG.warning("no new partitions can be found for now: %s", unread[topic])
        self._unread = set(unread)


def _joined(known: Known, found: Iterable[Partition]) -> Known:
    return tuple(sorted({*known, *((each.topic, each.partition) for each in found)}))
