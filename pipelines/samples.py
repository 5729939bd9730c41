"""Distributions as tables of samples, from which a draw costs one random number and one look-up."""

from bisect import bisect
from collections.abc import Mapping
from itertools import accumulate
from math import exp, log
from statistics import NormalDist
from typing import Final

SAMPLES: Final = 1024
"""In each table: a power of two, so that ten random bits make a draw."""


def lognormal(median: float, sigma: float, longest: float, unit: int = 1) -> tuple[int, ...]:
    """Samples of a log-normal distribution, as far apart in probability as each other.

    ``sigma`` is of the value's logarithm; what is longer than ``longest`` is cut to it, and all
    are whole multiples of ``unit``.

    >>> amounts = lognormal(85_000, 0.7, 2_500_000, unit=500)
    >>> amounts[0], amounts[SAMPLES // 2], amounts[-1]
    (8000, 85000, 854500)
    """
    if not median:
        return (0,) * SAMPLES
    normal = NormalDist(log(median), sigma)
    quantiles = (exp(normal.inv_cdf((i + 0.5) / SAMPLES)) for i in range(SAMPLES))
    return tuple(int(min(q, longest) // unit) * unit for q in quantiles)


def spread(weights: Mapping[str, int]) -> tuple[str, ...]:
    """Samples of weighted names.

    >>> spread({"chat": 3, "voice": 1}).count("chat") / SAMPLES
    0.75
    """
    names, cumulative = list(weights), list(accumulate(weights.values()))
    return tuple(
        names[bisect(cumulative, (i + 0.5) / SAMPLES * cumulative[-1])] for i in range(SAMPLES)
    )
