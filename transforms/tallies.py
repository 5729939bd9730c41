"""How often values come: the most frequent ones, and counts between bounds."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velocity.transforms.decimals import lists_of_whole_numbers
from velocity.transforms.ordered import plain, shown
from velocity.transforms.reduction import Reduction

_TOO_MANY: Final = ()
"""The state of more different values than are told apart."""


@dataclass(frozen=True, slots=True)
class Top:
    """The ``k`` most frequent values with their counts, the least of equally frequent ones first.

    Exact up to ``exact`` different values; null beyond. A sketch of the most frequent ones
    (SpaceSaving, Misra-Gries) depends on the order in which it was merged, and the same events would
    give another document in each run.

    >>> top = Top(2)
    >>> top.result(top.merge([{"a": 1, "b": 2}, {"c": 1, "b": 1}]))
    [{'value': 'b', 'count': 3}, {'value': 'a', 'count': 1}]
    """

    k: int
    exact: int = 10_000
    time: bool = False
    """Whether the values are times."""
    scale: int | None = None
    """Of decimals."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 1_000:
            raise ValueError(f"top takes 1 to 1,000 values; not {self.k}")

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        def states(lists: pa.Array) -> list[Any]:
            decimal = pa.types.is_decimal(values.type)
            found = lists_of_whole_numbers(lists) if decimal else lists.to_pylist()
            counters = (Counter(v for v in some if v is not None) for some in found)
            return [self._bounded(dict(counter)) if counter else None for counter in counters]

        return Reduction([(plain(values), "list")], states)

    def merge(self, states: Sequence[Mapping[Any, int] | tuple[()]]) -> Any:
        merged = Counter[Any]()
        for state in states:
            if state == _TOO_MANY:
                return _TOO_MANY
            merged.update(state)
        return self._bounded(dict(merged))

    def result(self, state: Mapping[Any, int] | tuple[()] | None) -> list[dict[str, Any]] | None:
        if state is None or not isinstance(state, Mapping):
            return [] if state is None else None
        ordered = sorted(state.items(), key=lambda item: (-item[1], item[0]))
        return [
            {"value": shown(value, self.time, self.scale), "count": count}
            for value, count in ordered[: self.k]
        ]

    def _bounded(self, counts: dict[Any, int]) -> Any:
        return counts if len(counts) <= self.exact else _TOO_MANY


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values are below the first bound, from each bound to the next, and from the last on.

    >>> histogram = Histogram((10, 50))
    >>> histogram.result(histogram.merge([[1, 0, 2], [0, 3, 0]]))
    {'bounds': [10, 50], 'counts': [1, 3, 2]}
    >>> Histogram((10, 10))
    Traceback (most recent call last):
    ValueError: a histogram's bounds are 1 to 100 numbers, each greater than the one before
    """

    bounds: tuple[int | float, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.bounds, self.bounds[1:], strict=False))
        if not ascending or not 1 <= len(self.bounds) <= 100:
            raise ValueError(
                "a histogram's bounds are 1 to 100 numbers, each greater than the one before"
            )

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        present = pc.drop_null(values)
        found = [self.bucket(value) for value in present.to_pylist()]
        buckets = np.zeros(len(values), np.int64)
        missing = pc.is_null(values).to_numpy(zero_copy_only=False)
        buckets[~missing] = found

        def states(lists: pa.Array) -> list[list[int] | None]:
            groups = ([b for b in some if b is not None] for some in lists.to_pylist())
            n = len(self.bounds) + 1
            return [np.bincount(some, minlength=n).tolist() if some else None for some in groups]

        return Reduction([(pa.array(buckets, mask=missing), "list")], states)

    def bucket(self, value: Any) -> int:
        """The position of a value's count; Python compares whole numbers with doubles exactly."""
        return bisect_right(self.bounds, value)

    def merge(self, states: Sequence[Sequence[int]]) -> list[int]:
        return [sum(counts) for counts in zip(*states, strict=True)]

    def result(self, state: Sequence[int] | None) -> dict[str, Any]:
        counts = state or [0] * (len(self.bounds) + 1)
        return {"bounds": list(self.bounds), "counts": list(counts)}
