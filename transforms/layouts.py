"""Layouts: what a metric's partial results hold, for a later job that goes on from a savepoint.

A partial result is a tuple, its states in the order of the metric's calls. A job that is stopped, changed and
resumed finds those of the job before it in its states and on its way: other metrics, other calls, another
order. So each bears its layout, and who reads it takes what it still knows, by what was called over what.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from velocity.transforms.metric import Metric
from velocity.transforms.partials import PreAggregation

_log: Final = logging.getLogger(__name__)

_Keyed = tuple[Any, ...]
_Places = Mapping[str, Sequence[int | None]]
"""Of each metric that both layouts have, where the state of each of the later one's calls is in the earlier."""


class Layout:
    """The layout of some of a job's metrics, as bytes; it reads partial results of another.

    What both have under one name, by the same columns, goes on. A call that the other had not, or over
    values of another type, has no state yet: it counts from here. What only the other has is left out.

    >>> import pyarrow as pa
    >>> from datetime import timedelta
    >>> from velocity.io.records import TIMESTAMP
    >>> from velocity.transforms.windows import Fixed
    >>> schema = pa.schema([("at", TIMESTAMP), ("n", pa.int64())])
    >>> def layout(**values):
    ...     metric = Metric("m", values, Fixed(timedelta(minutes=1)))
    ...     return Layout(PreAggregation(schema, "at", [metric]), [metric])
    >>> before, after = layout(n="sum(n)", most="max(n)"), layout(events="count()", most="max(n)")
    >>> list(after.read(before.encoded, [(b'["m"]', (2, (5, 0), 3))]))
    [(b'["m"]', (2, None, 3))]
    """

    def __init__(self, reduction: PreAggregation, metrics: Iterable[Metric]) -> None:
        told = {
            metric.name: {"by": list(metric.by), "calls": reduction.calls_of(metric.name)}
            for metric in metrics
        }
        self.encoded = json.dumps(told, separators=(",", ":")).encode()

    def read(self, encoded: bytes, keyed: Iterable[_Keyed]) -> Iterable[_Keyed]:
        """Keys with partial results of the layout ``encoded``, as they are in this one.

        A key comes first and its partial result last; what is between goes on as it is.
        """
        return (
            keyed if encoded == self.encoded else _translated(_places(encoded, self.encoded), keyed)
        )


def _translated(places: _Places, keyed: Iterable[_Keyed]) -> Iterator[_Keyed]:
    for key, *between, (events, *states) in keyed:
        at = places.get(json.loads(key)[0])
        if at is not None:
            yield (key, *between, (events, *(None if i is None else states[i] for i in at)))


@lru_cache(maxsize=1_000)
def _places(before: bytes, after: bytes) -> _Places:
    then, now = json.loads(before), json.loads(after)
    places: dict[str, Sequence[int | None]] = {}
    for name, metric in now.items():
        other = then.get(name)
        if other is not None and other["by"] == metric["by"]:
            had = {
                json.dumps(call): place for place, call in reversed([*enumerate(other["calls"])])
            }
            places[name] = [had.get(json.dumps(call)) for call in metric["calls"]]
    for name in then.keys() - places.keys():
        _log.warning(
            "metric %s: what a savepoint has of it is left out: this job has none of this name, window and `by`",
            name,
        )
    for name, at in places.items():
        if None in at:
            _log.warning(
                "metric %s: new values count from this savepoint on in windows that were open;"
                " a replay of a greater generation makes them whole",
                name,
            )
    return places
