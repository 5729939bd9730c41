"""The least and the greatest value, and the first and the last by event time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.records import rfc3339
from velocity.transforms.decimals import whole_numbers, written
from velocity.transforms.reduction import Reduction


@dataclass(frozen=True, slots=True)
class Extreme:
    """The least or greatest value. Null if there is no value."""

    which: str
    """``min`` or ``max``."""
    time: bool = False
    """Whether the values are times, so that the result is one."""
    scale: int | None = None
    """Of decimals, of which the result is one."""

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        values = plain(values)
        return Reduction([(values, self.which)], listed)

    def merge(self, states: Sequence[Any]) -> Any:
        return min(states) if self.which == "min" else max(states)

    def result(self, state: Any) -> Any:
        return None if state is None else shown(state, self.time, self.scale)


@dataclass(frozen=True, slots=True)
class Edge:
    """The value of the first or last event that has one, by event time. Null if none has.

    Of events of one time the first has the least value, and the last the greatest.

    >>> Edge("first").merge([(7, "b"), (7, "a"), (9, "c")])
    (7, 'a')
    """

    which: str
    """``first`` or ``last``."""
    time: bool = False
    """Whether the values are times, so that the result is one."""
    scale: int | None = None
    """Of decimals, of which the result is one."""

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        values = plain(values)
        table = pa.table({"t": times, "v": values})
        order = pc.sort_indices(table, sort_keys=[("t", "ascending"), ("v", "ascending")])
        ranks = np.empty(len(values), np.int64)
        ranks[order.to_numpy()] = np.arange(len(values))
        missing = pc.is_null(values).to_numpy(zero_copy_only=False)

        def states(edges: pa.Array) -> list[tuple[int, Any] | None]:
            rows = order.take(edges)
            pairs = zip(times.take(rows).to_pylist(), listed(values.take(rows)), strict=True)
            return [None if time is None else (time, value) for time, value in pairs]

        function = "min" if self.which == "first" else "max"
        return Reduction([(pa.array(ranks, mask=missing), function)], states)

    def merge(self, states: Sequence[tuple[int, Any]]) -> tuple[int, Any]:
        return min(states) if self.which == "first" else max(states)

    def result(self, state: tuple[int, Any] | None) -> Any:
        return None if state is None else shown(state[1], self.time, self.scale)


def listed(values: pa.Array) -> list[Any]:
    """Values as states hold them: decimals as whole numbers."""
    return whole_numbers(values) if pa.types.is_decimal(values.type) else values.to_pylist()


def shown(value: Any, time: bool, scale: int | None) -> Any:
    """A value of a state as a document has it."""
    if scale is not None:
        return written(value, scale)
    return rfc3339(value) if time else value


def plain(values: pa.Array) -> pa.Array:
    """Times as epoch milliseconds, and no negative zero: equal values are one value."""
    if pa.types.is_timestamp(values.type):
        return values.view(pa.int64())
    return pc.add(values, 0.0) if pa.types.is_floating(values.type) else values
