"""A source's watermark: from the beginning of time, forward only."""

from datetime import timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa
from apache_beam.io.iobase import WatermarkEstimator
from apache_beam.transforms.core import WatermarkEstimatorProvider
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from velocity.io.records import TIMESTAMP

_MILLISECOND: Final = timedelta(milliseconds=1)


def watermarks(times: pa.Array, at: Timestamp, disorder: timedelta) -> pa.Array:
    """Where a partition's watermark stands before each of some rows; ``at`` before the first.

    It depends on the rows' order in their partition, and not on how they were cut into batches.

    >>> times = pa.array([100, 700, 650, 900], TIMESTAMP)
    >>> before = watermarks(times, MIN_TIMESTAMP, timedelta(milliseconds=30))
    >>> before.view(pa.int64()).to_pylist()
    [None, 70, 670, 670]
    """
    behind = -(-disorder // _MILLISECOND)
    before = np.empty(len(times), np.int64)
    before[:1] = at.micros // 1000
    before[1:] = times.view(pa.int64()).to_numpy()[:-1] - behind
    before = np.maximum.accumulate(before)
    return pa.array(before, mask=before == MIN_TIMESTAMP.micros // 1000).view(TIMESTAMP)


class ForwardWatermark(WatermarkEstimator):
    """A watermark that its reader advances, and that never goes back.

    Beam's own manual estimator has no watermark at first. What a runner makes of that differs:
    Flink takes the time of the clock, which closes every window of a partition that was slow to
    give its first message.

    >>> watermark = ForwardWatermark(MIN_TIMESTAMP)
    >>> watermark.advance(Timestamp(20)); watermark.advance(Timestamp(10))
    >>> watermark.current_watermark()
    Timestamp(20)
    """

    def __init__(self, at: Timestamp) -> None:
        self._at = at

    def advance(self, to: Timestamp) -> None:
        """No later element is to bear a time before ``to``; without effect if it is past that."""
        self._at = max(self._at, to)

    def current_watermark(self) -> Timestamp:
        return self._at

    def get_estimator_state(self) -> Timestamp:
        return self._at

    def observe_timestamp(self, timestamp: Timestamp) -> None:
        """An element's own time says nothing of the ones to come."""


class ForwardWatermarkProvider(WatermarkEstimatorProvider):
    """Gives each restriction a ``ForwardWatermark`` of its own."""

    def initial_estimator_state(self, element: Any, restriction: Any) -> Timestamp:
        return MIN_TIMESTAMP

    def create_watermark_estimator(self, estimator_state: Timestamp) -> ForwardWatermark:
        return ForwardWatermark(estimator_state)
