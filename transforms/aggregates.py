"""Aggregates: how values become a partial result, partial results one, and that one a number.

Every state depends on nothing but the multiset of the values behind it: neither their order nor
how batches were cut shows in a result. A state is made of what ``FastPrimitivesCoder`` encodes;
None is the state of no value.
"""

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasketches import hll_sketch, hll_union, tgt_hll_type

from velocity.io.records import TIMESTAMP, rfc3339
from velocity.transforms.exact_sums import Exact, add, limbs, to_float


class Reduction(NamedTuple):
    """What Arrow's group-by is to reduce, and how its results, one a group, become states."""

    columns: Sequence[tuple[pa.Array, str]]
    """Arrays, each with the name of one of Arrow's hash aggregations."""
    states: Callable[..., list[Any]]
    """Takes the reduced array of each column."""


class Aggregate(Protocol):
    """A function from many values to one, in three mergeable steps."""

    def reduce(self, values: pa.Array) -> Reduction: ...

    def merge(self, states: Sequence[Any]) -> Any:
        """One state for several, none of which is None."""

    def result(self, state: Any) -> Any:
        """What a document shows; a JSON value."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many values are not null."""

    def reduce(self, values: pa.Array) -> Reduction:
        return Reduction([(values, "count")], lambda counts: counts.to_pylist())

    def merge(self, states: Sequence[int]) -> int:
        return sum(states)

    def result(self, state: int | None) -> int:
        return state or 0


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum, exact: only the result is rounded, once. Null if there is no value.

    >>> total = Sum()
    >>> state = total.merge([(1, 0), (1, -60), (-1, 0)])
    >>> total.result(state) == 2.0**-60
    True
    """

    integer: bool = False
    """Whether the values are whole numbers, so that the result is one."""

    def reduce(self, values: pa.Array) -> Reduction:
        exponents, columns = limbs(values)

        def states(*sums: pa.Array) -> list[Exact | None]:
            return [
                None if parts[0] is None else add(zip(parts, exponents, strict=True))
                for parts in zip(*(column.to_pylist() for column in sums), strict=True)
            ]

        return Reduction([(column, "sum") for column in columns], states)

    def merge(self, states: Sequence[Exact]) -> Exact:
        return add(states)

    def result(self, state: Exact | None) -> int | float | None:
        if state is None:
            return None
        mantissa, exponent = state
        return mantissa << exponent if self.integer else to_float(Fraction(mantissa), exponent)


@dataclass(frozen=True, slots=True)
class Mean:
    """The sum, exact, over the count; rounded once. Null if there is no value."""

    _sum: ClassVar[Sum] = Sum()

    def reduce(self, values: pa.Array) -> Reduction:
        total = self._sum.reduce(values)

        def states(*columns: pa.Array) -> list[tuple[int, int, int] | None]:
            *sums, counts = columns
            return [
                None if state is None else (*state, count)
                for state, count in zip(total.states(*sums), counts.to_pylist(), strict=True)
            ]

        return Reduction([*total.columns, (values, "count")], states)

    def merge(self, states: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
        total = self._sum.merge([(mantissa, exponent) for mantissa, exponent, _ in states])
        return (*total, sum(count for _, _, count in states))

    def result(self, state: tuple[int, int, int] | None) -> float | None:
        if state is None:
            return None
        mantissa, exponent, count = state
        return to_float(Fraction(mantissa, count), exponent)


@dataclass(frozen=True, slots=True)
class Extreme:
    """The least or greatest value. Null if there is no value."""

    which: str
    """``min`` or ``max``."""
    time: bool = False
    """Whether the values are times, so that the result is one."""

    def reduce(self, values: pa.Array) -> Reduction:
        if self.time:
            values = values.view(pa.int64())
        elif pa.types.is_floating(values.type):
            values = pc.add(values, 0.0)  # or the order would decide between 0.0 and -0.0
        return Reduction([(values, self.which)], lambda extremes: extremes.to_pylist())

    def merge(self, states: Sequence[Any]) -> Any:
        return min(states) if self.which == "min" else max(states)

    def result(self, state: Any) -> Any:
        return rfc3339(state) if self.time and state is not None else state


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

    def reduce(self, values: pa.Array) -> Reduction:
        if values.type == TIMESTAMP:
            values = values.view(pa.int64())

        def states(lists: pa.Array) -> list[Any]:
            found = ([v for v in values if v is not None] for values in lists.to_pylist())
            return [self._state(values) if values else None for values in found]

        return Reduction([(values, "distinct")], states)

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

    def reduce(self, values: pa.Array) -> Reduction:
        def states(lists: pa.Array) -> list[Any]:
            arrays = (np.array([v for v in vs if v is not None], float) for vs in lists.to_pylist())
            return [self._state(array) if len(array) else None for array in arrays]

        return Reduction([(values, "list")], states)

    def merge(self, states: Sequence[list[float] | dict[int, int]]) -> Any:
        values = np.array([v for state in states if isinstance(state, list) for v in state], float)
        histograms = [state for state in states if isinstance(state, dict)]
        if not histograms:
            return self._state(values)
        merged: dict[int, int] = {}
        for histogram in [*histograms, self._histogram(values)]:
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
        return math.ceil(Fraction(str(self.rank)) * n / 100) - 1

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


_BIAS: Final = 2**20
"""Keeps the buckets of values below 1 apart from those of negative values."""
_SMALLEST: Final = 1e-300


class Call(NamedTuple):
    """An aggregate as a job writes it."""

    function: str
    expression: str | None
    """A SQL scalar expression; None in ``count()``."""
    parameter: float | None

    @classmethod
    def parse(cls, text: str) -> "Call":
        """Reads ``function(expression)`` or ``percentile(expression, rank)``.

        >>> Call.parse("percentile(amount / 1000, 99.9)")
        Call(function='percentile', expression='amount / 1000', parameter=99.9)
        >>> Call.parse("count()")
        Call(function='count', expression=None, parameter=None)
        >>> Call.parse("total(amount)")
        Traceback (most recent call last):
        ValueError: unknown aggregate total; there are: count, distinct, max, mean, min, percentile, sum
        """
        call = _CALL.fullmatch(text)
        if not call:
            raise ValueError(f"an aggregate such as sum(amount) is wanted, not: {text}")
        function, expression, parameter = call[1], call[2].strip(), None
        if function not in FUNCTIONS:
            near = difflib.get_close_matches(function, FUNCTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(FUNCTIONS)}"
            raise ValueError(f"unknown aggregate {function}; {hint}")
        if function == "percentile":
            expression, _, rank = expression.rpartition(",")
            try:
                parameter = float(rank)
            except ValueError:
                raise ValueError(f"percentile(EXPRESSION, RANK) is wanted, not: {text}") from None
        if not expression and function != "count":
            raise ValueError(f"{function}() needs an expression: {function}(amount), for instance")
        return cls(function, expression.strip() or None, parameter)

    def aggregate(self, type_: pa.DataType) -> Aggregate:
        """The aggregate over values of a column type.

        >>> Call.parse("sum(city)").aggregate(pa.string())
        Traceback (most recent call last):
        ValueError: sum(city) needs numbers; city is of type string
        """
        types = pa.types
        number = types.is_integer(type_) or types.is_floating(type_)
        ordered = number or types.is_timestamp(type_) or types.is_string(type_)
        if self.function in ("sum", "mean", "percentile") and not number:
            raise ValueError(
                f"{self.function}({self.expression}) needs numbers; "
                f"{self.expression} is of type {type_}"
            )
        match self.function:
            case "count":
                return Count()
            case "sum":
                return Sum(integer=types.is_integer(type_))
            case "mean":
                return Mean()
            case ("min" | "max") as which if ordered:
                return Extreme(which, time=types.is_timestamp(type_))
            case "distinct":
                return Distinct()
            case "percentile" if self.parameter is not None:
                return Percentile(self.parameter)
        raise ValueError(f"{self.function}({self.expression}) does not take type {type_}")


FUNCTIONS: Final = ("count", "distinct", "max", "mean", "min", "percentile", "sum")
_CALL: Final = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)
