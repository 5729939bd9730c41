"""What steps count and measure: Beam's metrics, and the same once more for a mirror of this process.

Beam gives metrics to the runner, which shows those that it can. A mirror (``mirror``) gets them
with their labels, where who reads the process itself wants them: ``velocity.io.prometheus``.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, Final, Protocol

from apache_beam.metrics import Metrics

from velocity.io.measures import Kind, Undeclared, declared

NAMESPACE: Final = "velocity"
"""Of all of Velocity's metrics in Beam."""

Labels = tuple[tuple[str, str], ...]
"""Names and values of what divides a metric."""


class Mirror(Protocol):
    """Is told all that this process counts and measures. Used from many threads."""

    def count(self, name: str, labels: Labels, n: int) -> None: ...

    def set(self, name: str, labels: Labels, value: int) -> None: ...

    def sample(self, name: str, labels: Labels, value: int) -> None: ...

    def observe(
        self, name: str, labels: Labels, bounds: Sequence[float], seconds: Sequence[float]
    ) -> None: ...


_mirrors: Final[list[Mirror]] = []


def mirror(to: Mirror) -> None:
    """Has all metrics of this process told to ``to`` from now on too, in place of the one before."""
    _mirrors[:] = [to]


class _Metric:
    """A metric by its name and labels; to Beam, which has no labels, their values are of the name."""

    def __init__(self, name: str, labels: dict[str, object]) -> None:
        self._name = name
        self._labels: Labels = tuple((label, str(value)) for label, value in labels.items())
        self._beam = self._make("_".join([name, *(value for _, value in self._labels)]))

    def _make(self, name: str) -> Any:
        raise NotImplementedError


class Counter(_Metric):
    def _make(self, name: str) -> Any:
        return Metrics.counter(NAMESPACE, name)

    def inc(self, n: int = 1) -> None:
        self._beam.inc(n)
        for to in _mirrors:
            to.count(self._name, self._labels, n)


class Gauge(_Metric):
    def _make(self, name: str) -> Any:
        return Metrics.gauge(NAMESPACE, name)

    def set(self, value: int) -> None:
        self._beam.set(value)
        for to in _mirrors:
            to.set(self._name, self._labels, value)


class Distribution(_Metric):
    def _make(self, name: str) -> Any:
        return Metrics.distribution(NAMESPACE, name)

    def update(self, value: int) -> None:
        self._beam.update(value)
        for to in _mirrors:
            to.sample(self._name, self._labels, value)


class Histogram:
    """How many samples were no greater than each bound: a counter ``NAME_within_BOUND`` for each.

    Flink gives no distribution out as numbers, and adds counters up. How many samples there were
    in all is for a counter NAME that another counts.

    >>> Histogram("calls", (10, 50), "ms").counts([7, 10, 11, 99])
    {'calls_within_10ms': 2, 'calls_within_50ms': 3}
    """

    _SECONDS: Final = {"ms": 0.001, "s": 1.0}

    def __init__(self, name: str, bounds: Sequence[int], unit: str) -> None:
        self.name, self.bounds = name, tuple(bounds)
        self._second = self._SECONDS[unit]
        self.within = {f"{name}_within_{bound}{unit}": bound * self._second for bound in bounds}
        """The bounds in seconds, by the names of their counters."""
        self._counters = {within: Metrics.counter(NAMESPACE, within) for within in self.within}

    def counts(self, samples: Iterable[float]) -> dict[str, int]:
        """What the counters go up by, by their names; samples in the unit of the bounds."""
        found = [0] * (len(self.bounds) + 1)
        for sample in samples:
            found[bisect_left(self.bounds, sample)] += 1
        return dict(zip(self.within, accumulate(found[:-1]), strict=True))

    def add(self, samples: Sequence[float]) -> None:
        if not samples:
            return
        for name, n in self.counts(samples).items():
            self._counters[name].inc(n)
        for to in _mirrors:
            seconds = [sample * self._second for sample in samples]
            to.observe(self.name, (), list(self.within.values()), seconds)


def counter(name: str, **labels: object) -> Counter:
    """The declared counter of that name; outside a bundle Beam counts nothing."""
    declared(name, Kind.COUNTER, labels)
    return Counter(name, labels)


def gauge(name: str, **labels: object) -> Gauge:
    """The declared gauge of that name: of what is set, the latest counts."""
    declared(name, Kind.GAUGE, labels)
    return Gauge(name, labels)


def distribution(name: str, **labels: object) -> Distribution:
    """The declared distribution of that name: how many samples, their sum, the least and the greatest."""
    declared(name, Kind.DISTRIBUTION, labels)
    return Distribution(name, labels)


def histogram(name: str) -> Histogram:
    """The histogram of what the declared counter of that name counts."""
    within = declared(name, Kind.COUNTER).within
    if within is None:
        raise Undeclared(f"{name} has no bounds: declare them in velocity.io.measures")
    return Histogram(name, within.values, within.unit)
