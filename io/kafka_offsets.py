"""Which offsets of a partition are read: the restriction of the splittable DoFn, and its tracker."""

from typing import Final, NamedTuple

from apache_beam.coders import Coder, FastPrimitivesCoder
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.restriction_trackers import OffsetRange
from apache_beam.transforms.core import RestrictionProvider

UNBOUNDED: Final = 2**62
"""The stop of a partition that is read for ever; no partition grows so long."""


class Partition(NamedTuple):
    """A partition and the offsets of it to read: ``start`` inclusive, ``stop`` exclusive.

    ``end`` is where it ended when the read began: what comes from there on has come since. ``spread``
    means nothing: see ``kafka_spread``.
    """

    topic: str
    partition: int
    start: int
    stop: int
    end: int = 0
    spread: int = 0


class OffsetTracker(RestrictionTracker):
    """Tracks a range of offsets; claiming one claims all before it, for Kafka's offsets have gaps.

    A claim that fails changes nothing, so that a reader whose range was split under its hands can
    claim the part of its batch that it still owns.

    >>> tracker = OffsetTracker(OffsetRange(10, 20))
    >>> tracker.try_claim(14), tracker.try_split(0), tracker.try_claim(15)
    (True, (OffsetRange(start=10, stop=15), OffsetRange(start=15, stop=20)), False)
    """

    def __init__(self, offsets: OffsetRange) -> None:
        self._range = offsets
        self._claimed = offsets.start - 1

    def current_restriction(self) -> OffsetRange:
        return self._range

    def current_progress(self) -> RestrictionProgress:
        done = self._claimed + 1 - self._range.start
        return RestrictionProgress(completed=done, remaining=self._range.size() - done)

    def is_bounded(self) -> bool:
        return bool(self._range.stop < UNBOUNDED)

    def try_claim(self, position: int) -> bool:
        if position <= self._claimed:
            raise ValueError(f"offset {position} claimed after {self._claimed}")
        if position >= self._range.stop:
            return False
        self._claimed = position
        return True

    def check_done(self) -> None:
        if self._claimed < self._range.stop - 1:
            raise ValueError(f"offsets after {self._claimed} of {self._range} were not claimed")

    def try_split(self, fraction_of_remainder: float) -> tuple[OffsetRange, OffsetRange] | None:
        """Gives up all that is not claimed, for a checkpoint; never a later part alone.

        Whether an event is late depends on all that came before it in its partition.
        """
        split = self._claimed + 1
        if fraction_of_remainder or split >= self._range.stop:
            return None
        self._range, residual = self._range.split_at(split)
        return self._range, residual


class OffsetRestrictions(RestrictionProvider):
    def initial_restriction(self, element: Partition) -> OffsetRange:
        return OffsetRange(element.start, element.stop)

    def create_tracker(self, restriction: OffsetRange) -> OffsetTracker:
        return OffsetTracker(restriction)

    def restriction_size(self, element: Partition, restriction: OffsetRange) -> int:
        return 1 if restriction.stop >= UNBOUNDED else restriction.size()

    def restriction_coder(self) -> Coder:
        return FastPrimitivesCoder()

    def truncate(self, element: Partition, restriction: OffsetRange) -> OffsetRange | None:
        """On drain what is bounded is read to its end, and what is not stops where it is."""
        return None if restriction.stop >= UNBOUNDED else restriction
