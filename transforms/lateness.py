"""Which events come too late for which metrics: by the watermark of their own partition.

Beam drops what is late by the watermark of all partitions, which depends on the pace of a run, and
tells nobody. That of one partition depends on its messages and their order alone.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.records import rfc3339
from velocity.transforms.metric import Metric
from velocity.transforms.windows import millis

_NO_WATERMARK: Final = np.iinfo(np.int64).min


class Lateness:
    """What is late of a batch: for each metric its rows' times are held against the watermarks.

    ``watermarks`` are those of the rows' partitions when they came, null for none; both are epoch
    milliseconds.

    >>> from datetime import timedelta
    >>> from velocity.transforms.windows import Fixed
    >>> times, watermarks = pa.array([59_999, 59_999, 60_000]), pa.array([None, 60_000, 60_000])
    >>> lateness = Lateness(times, watermarks)
    >>> lateness.admitted(Metric("m", {}, Fixed(timedelta(minutes=1))), None).to_pylist()
    [True, False, True]
    >>> print(*lateness.errors(), sep="\\n")
    (1, 'too late for m (window from 1970-01-01T00:00:00.000Z closed at 1970-01-01T00:01:00.000Z); \
the watermark of its partition was at 1970-01-01T00:01:00.000Z')
    """

    def __init__(self, times: pa.Array, watermarks: pa.Array) -> None:
        self._times: npt.NDArray[np.int64] = times.to_numpy()
        self._watermarks: npt.NDArray[np.int64] = pc.fill_null(watermarks, _NO_WATERMARK).to_numpy()
        behind = pc.max(pc.subtract(watermarks, times)).as_py()
        self._most = -1 if behind is None else behind
        """How far a row is behind the watermark, at most."""
        self._late: dict[int, list[str]] = {}

    def admitted(self, metric: Metric, counted: pa.Array | None) -> pa.Array | None:
        """Which of the rows that the metric counts are in time; None is all of them."""
        lateness = millis(metric.lateness)
        if self._most <= lateness:
            return counted
        closes = metric.window.closes(self._times) + lateness
        late = closes <= self._watermarks
        if counted is not None:
            late &= pc.fill_null(counted, False).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(late)
        begins = metric.window.begins(self._times[rows])
        for row, begin in zip(rows.tolist(), begins.tolist(), strict=True):
            closed = rfc3339(int(closes[row]))
            error = f"{metric.name} (window from {rfc3339(begin)} closed at {closed})"
            self._late.setdefault(row, []).append(error)
        in_time = pa.array(~late)
        return in_time if counted is None else pc.and_(counted, in_time)

    def errors(self) -> Iterator[tuple[int, str]]:
        """Each row that was late for some metric asked about, with all those metrics."""
        for row, metrics in sorted(self._late.items()):
            at = rfc3339(int(self._watermarks[row]))
            yield (
                row,
                f"too late for {', '.join(metrics)}; the watermark of its partition was at {at}",
            )
