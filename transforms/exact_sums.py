"""Sums in which nothing is rounded: columns cut into whole numbers that Arrow adds without error.

A plain sum of floats depends on the order of its terms, and so on how batches were cut. The idea
is that of long accumulators (Kulisch 1971), here as wide as a batch needs.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from velocity.transforms.decimals import halves

Exact = tuple[int, int]
"""The number m · 2**e as (m, e): a sum in which nothing was rounded."""


def limbs(values: pa.Array) -> tuple[list[int], list[pa.Array]]:
    """Whole numbers whose sum, each times two to its exponent, is the value; exact when added up.

    Sums of a column don't overflow: a limb is short enough for as many values as there are. Of
    decimals they are those of their whole numbers.
    """
    n = len(values)
    nulls = pc.is_null(values).to_numpy(zero_copy_only=False)
    headroom = 62 - n.bit_length()  # bits for one value, so that n of them fit an int64

    def column(limb: npt.NDArray[np.int64]) -> pa.Array:
        return pa.array(limb, pa.int64(), mask=nulls if values.null_count else None)

    if pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
        whole = pc.fill_null(pc.cast(values, pa.int64()), 0).to_numpy()
        if not n or (-(1 << headroom) < whole.min() and whole.max() < 1 << headroom):
            return [0], [column(whole)]
        return [32, 0], [column(whole >> 32), column(whole & 0xFFFF_FFFF)]
    if pa.types.is_decimal(values.type):
        upper, lower = (np.where(nulls, 0, half) for half in halves(values))
        units = lower.view(np.int64)
        if not n or (
            np.array_equal(upper, units >> 63)
            and -(1 << headroom) < units.min()
            and units.max() < 1 << headroom
        ):
            return [0], [column(units)]
        # The lowest bits of a shifted number are the same, whether it had a sign or not.
        parts = (upper >> 32, upper & 0xFFFF_FFFF, units >> 32 & 0xFFFF_FFFF, units & 0xFFFF_FFFF)
        return [96, 64, 32, 0], [column(part) for part in parts]
    rest = pc.fill_null(values, 0.0).to_numpy()
    mantissas, exponents = np.frexp(rest)
    exponents = exponents[mantissas != 0]
    if not len(exponents):
        return [0], [column(np.zeros(n, np.int64))]
    high = int(exponents.max())
    if high <= headroom and np.array_equal(rest, np.trunc(rest)):
        return [0], [column(rest.astype(np.int64))]
    low, width = int(exponents.min()) - 53, min(40, headroom)
    shifts, columns = list[int](), list[pa.Array]()
    for shift in reversed(range(low, high, width)):
        limb = np.trunc(np.ldexp(rest, -shift))
        rest = rest - np.ldexp(limb, shift)  # exact: it takes the leading bits away
        shifts.append(shift)
        columns.append(column(limb.astype(np.int64)))
    return shifts, columns


def exact_terms(values: Sequence[float]) -> list[Exact]:
    """Numbers, whole or not, as exact pairs.

    >>> exact_terms([3, 0.75])
    [(3, 0), (3, -2)]
    """
    pairs = (value.as_integer_ratio() for value in values)
    return [(over, 1 - under.bit_length()) for over, under in pairs]  # under is a power of two


def add(terms: Iterable[Exact]) -> Exact:
    """The sum of exact terms, with an odd mantissa or (0, 0): equal sums are equal pairs.

    >>> add([(3, 0), (1, -60), (-3, 0)])
    (1, -60)
    """
    terms = [(mantissa, exponent) for mantissa, exponent in terms if mantissa]
    low = min((exponent for _, exponent in terms), default=0)
    total = sum(mantissa << (exponent - low) for mantissa, exponent in terms)
    if not total:
        return 0, 0
    zeros = (total & -total).bit_length() - 1
    return total >> zeros, low + zeros


def to_float(mantissa: Fraction, exponent: int) -> float | None:
    """mantissa · 2**exponent, rounded once; None where it is beyond what a float can hold.

    >>> to_float(Fraction(1, 3), 0), to_float(Fraction(1), 5000)
    (0.3333333333333333, None)
    """
    try:
        return float(mantissa * Fraction(2) ** exponent)
    except OverflowError:
        return None
