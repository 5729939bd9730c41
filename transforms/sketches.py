"""Distinct counts and percentiles: exact while there are few values, then within a known error."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import chain, pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasketches import hll_sketch, hll_union, tgt_hll_type

from velocity.io.records import TIMESTAMP
from velocity.transforms.decimals import floats, texts
from velocity.transforms.reduction import Reduction


@dataclass(frozen=True, slots=True)
class Distinct:
    """How many different values there are: exact up to ``exact``, then a HyperLogLog's estimate.

    Its relative standard error is 1.04 / sqrt(2**log2_registers): 1.6 % at 12. Apache DataSketches,
    https://datasketches.apache.org/docs/HLL/HLL.html

    >>> distinct = Distinct()
    >>> distinct.result(distinct.merge([frozenset("ab"), frozenset("bc")]))
    3
    """

    exact: int = 1_000
    log2_registers: int = 12

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        if values.type == TIMESTAMP:
            values = values.view(pa.int64())
        if pa.types.is_decimal(values.type):
            values = pa.array(texts(values), pa.string())

        # Groups are made of numbers, and each value becomes an object of Python's once.
        encoded = values.dictionary_encode()
        objects = np.array([*encoded.dictionary.to_pylist(), None], object)

        def states(lists: pa.ListArray) -> list[Any]:
            found = (some.tolist() for some in _objects(lists, objects))
            return [self._state(some) if some else None for some in found]

        return Reduction([(encoded.indices, "distinct")], states)

    def merge(self, states: Sequence[frozenset[Any] | bytes]) -> frozenset[Any] | bytes:
        sets = [state for state in states if isinstance(state, frozenset)]
        merged = frozenset().union(*sets)
        sketches = [state for state in states if isinstance(state, bytes)]
        if not sketches:
            return self._state(merged)
        return bytes(self._union([*sketches, self._sketch(merged)]).serialize_compact())

    def result(self, state: frozenset[Any] | bytes | None) -> int:
        match state:
            case None:
                return 0
            case frozenset():
                return len(state)
        estimate: float = self._union([state, state]).get_estimate()
        return round(estimate)

    def _state(self, values: Iterable[Any]) -> frozenset[Any] | bytes:
        values = frozenset(values)
        return values if len(values) <= self.exact else self._sketch(values)

    def _sketch(self, values: Iterable[Any]) -> bytes:
        sketch = hll_sketch(self.log2_registers, tgt_hll_type.HLL_8)
        for value in values:
            sketch.update(int(value) if isinstance(value, bool) else value)
        return bytes(sketch.serialize_compact())

    def _union(self, sketches: Iterable[bytes]) -> hll_sketch:
        """Of two or more its estimate depends on the registers alone; that of a sketch which was
        filled value by value depends on their order too."""
        union = hll_union(self.log2_registers)
        for sketch in sketches:
            union.update(hll_sketch.deserialize(sketch))
        return union.get_result(tgt_hll_type.HLL_8)


@dataclass(frozen=True, slots=True)
class Percentile:
    """The value below or at which ``rank`` percent of the values lie (nearest rank).

    Exact up to ``exact`` values. Then they are counted in buckets whose bounds grow by a constant
    factor, and the result is off by at most ``error`` of itself (Masson, Rim, Lee 2019, DDSketch,
    https://arxiv.org/abs/1908.10693). A KLL sketch would be smaller, but it draws random numbers:
    the same events would give another document in each run.

    >>> p95 = Percentile(95)
    >>> p95.result(p95.merge([[1.0, 2.0], [3.0]]))
    3.0
    """

    rank: float
    exact: int = 256
    error: float = 0.005

    def __post_init__(self) -> None:
        if not 0 < self.rank <= 100:
            raise ValueError(f"a percentile is above 0 and at most 100; not {self.rank}")

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        if pa.types.is_decimal(values.type):
            values = pa.array(floats(values), pa.float64())

        def states(lists: pa.ListArray) -> list[Any]:
            return [self._state(array) if len(array) else None for array in _floats(lists)]

        return Reduction([(values, "list")], states)

    def merge(self, states: Sequence[list[float] | dict[int, int]]) -> Any:
        values = [*chain.from_iterable(state for state in states if isinstance(state, list))]
        histograms = [state for state in states if isinstance(state, dict)]
        if not histograms and len(values) <= self.exact:
            return values
        merged: dict[int, int] = {}
        for histogram in [*histograms, self._histogram(np.array(values, float))]:
            for bucket, count in histogram.items():
                merged[bucket] = merged.get(bucket, 0) + count
        return merged

    def result(self, state: list[float] | dict[int, int] | None) -> float | None:
        match state:
            case None:
                return None
            case list():
                return sorted(state)[self._index(len(state))] + 0.0  # never -0.0
        index = self._index(sum(state.values()))
        for bucket in sorted(state):
            index -= state[bucket]
            if index < 0:
                break
        return self._middle(bucket)

    def _index(self, n: int) -> int:
        over, under = _share(self.rank)
        return -(-over * n // under) - 1

    def _state(self, values: npt.NDArray[np.float64]) -> list[float] | dict[int, int]:
        return values.tolist() if len(values) <= self.exact else self._histogram(values)

    def _histogram(self, values: npt.NDArray[np.float64]) -> dict[int, int]:
        """Counts by bucket: 0 holds zeros, ±(k + _BIAS) what lies in (growth**(k-1), growth**k]."""
        size = np.abs(values)
        zero = size < _SMALLEST
        exponent = np.ceil(np.log(np.where(zero, 1, size)) / math.log(self._growth))
        buckets = np.where(zero, 0, np.sign(values) * (exponent + _BIAS)).astype(np.int64)
        numbers, counts = np.unique(buckets, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def _middle(self, bucket: int) -> float:
        if bucket == 0:
            return 0.0
        lower: float = self._growth ** (abs(bucket) - _BIAS - 1)  # the upper bound may overflow
        middle = min(lower * (2 * self._growth / (self._growth + 1)), sys.float_info.max)
        return math.copysign(middle, bucket)

    @property
    def _growth(self) -> float:
        return (1 + self.error) / (1 - self.error)


@cache
def _share(rank: float) -> tuple[int, int]:
    """A rank of a hundred, exact as it is written.

    >>> _share(99.9)
    (999, 1000)
    """
    return (Fraction(str(rank)) / 100).as_integer_ratio()


def _floats(lists: pa.ListArray) -> Iterator[npt.NDArray[np.float64]]:
    """What is in each list, without nulls."""
    values = lists.values.cast(pa.float64(), safe=False)  # whole numbers to the nearest
    there = values.is_valid().to_numpy(zero_copy_only=False) if values.null_count else None
    return _split(lists, values.to_numpy(zero_copy_only=False), there)


def _objects(lists: pa.ListArray, objects: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """What the numbers in each list stand for, without nulls; the last object is of null."""
    codes = lists.values
    there = codes.is_valid().to_numpy(zero_copy_only=False) if codes.null_count else None
    return _split(lists, objects[pc.fill_null(codes, len(objects) - 1).to_numpy()], there)


def _split(
    lists: pa.ListArray, array: npt.NDArray[Any], there: npt.NDArray[np.bool_] | None
) -> Iterator[npt.NDArray[Any]]:
    """An array as lists divide it; what is not ``there`` left out."""
    for start, stop in pairwise(lists.offsets.to_pylist()):
        some = array[start:stop]
        yield some if there is None else some[there[start:stop]]


_BIAS: Final = 2**20
"""Keeps the buckets of values below 1 apart from those of negative values."""
_SMALLEST: Final = 1e-300
