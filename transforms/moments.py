"""Counts, sums, means and variances: nothing is rounded but the result, once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import pyarrow as pa

from velocity.transforms.decimals import lists_of_whole_numbers, written
from velocity.transforms.exact_sums import Exact, add, exact_terms, limbs, to_float
from velocity.transforms.reduction import Reduction


@dataclass(frozen=True, slots=True)
class Count:
    """How many values are not null."""

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
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
    scale: int | None = None
    """Of decimals, whose sum is one."""

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        exponents, columns = limbs(values)

        def states(*sums: pa.Array) -> list[Exact | None]:
            return [
                None if parts[0] is None else add(zip(parts, exponents, strict=True))
                for parts in zip(*(column.to_pylist() for column in sums), strict=True)
            ]

        return Reduction([(column, "sum") for column in columns], states)

    def merge(self, states: Sequence[Exact]) -> Exact:
        return add(states)

    def result(self, state: Exact | None) -> int | float | str | None:
        if state is None:
            return None
        mantissa, exponent = state
        if self.scale is not None:
            return written(mantissa << exponent, self.scale)
        return mantissa << exponent if self.integer else to_float(Fraction(mantissa), exponent)


@dataclass(frozen=True, slots=True)
class Mean:
    """The sum, exact, over the count; rounded once. Null if there is no value."""

    scale: int = 0
    """Of decimals."""
    _sum: ClassVar[Sum] = Sum()

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        total = self._sum.reduce(values, times)

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
        return to_float(Fraction(mantissa, count * 10**self.scale), exponent)


@dataclass(frozen=True, slots=True)
class Variance:
    """The sample variance, exact and then rounded once. Null if there are fewer than two values.

    >>> Variance().result((6, 0, 14, 0, 3)), Variance(root=True).result((1, 0, 1, 0, 1))
    (1.0, None)
    """

    root: bool = False
    """Whether its square root is wanted: the standard deviation."""
    scale: int = 0
    """Of decimals."""

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        def states(lists: pa.Array) -> list[tuple[int, int, int, int, int] | None]:
            decimal = pa.types.is_decimal(values.type)
            found = lists_of_whole_numbers(lists) if decimal else lists.to_pylist()
            groups = ([v for v in some if v is not None] for some in found)
            return [self._state(group) if group else None for group in groups]

        return Reduction([(values, "list")], states)

    def _state(self, values: Sequence[float]) -> tuple[int, int, int, int, int]:
        terms = exact_terms(values)
        squares = [(mantissa * mantissa, 2 * exponent) for mantissa, exponent in terms]
        return (*add(terms), *add(squares), len(values))

    def merge(
        self, states: Sequence[tuple[int, int, int, int, int]]
    ) -> tuple[int, int, int, int, int]:
        total = add((state[0], state[1]) for state in states)
        square = add((state[2], state[3]) for state in states)
        return (*total, *square, sum(state[4] for state in states))

    def result(self, state: tuple[int, int, int, int, int] | None) -> float | None:
        if state is None or state[4] < 2:
            return None
        mantissa, exponent, square_mantissa, square_exponent, n = state
        total = mantissa * Fraction(2) ** exponent
        square = square_mantissa * Fraction(2) ** square_exponent
        variance = to_float((square - total * total / n) / (n - 1) / 100**self.scale, 0)
        return math.sqrt(variance) if self.root and variance is not None else variance
