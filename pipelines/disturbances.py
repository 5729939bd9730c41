"""What upsets a simulated day: a promotion that brings a peak, and a service that is down."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from velocity.pipelines.job import parse_duration

FLUSH: Final = 20
"""How much faster than it filled a service's outbox is emptied after an outage."""

_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Peak:
    """A promotion: ``factor`` times as many transactions begin, ``after`` the scenario's start."""

    after: timedelta
    length: timedelta
    factor: float = 10.0

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"a peak's factor must be more than 0, not {self.factor}")
        _check(self.after, self.length, "a peak")


@dataclass(frozen=True, slots=True)
class Outage:
    """A domain's service can't publish: its outbox fills, and is emptied in order afterwards."""

    domain: str
    after: timedelta
    length: timedelta

    def __post_init__(self) -> None:
        _check(self.after, self.length, "an outage")


def _check(after: timedelta, length: timedelta, what: str) -> None:
    if after < timedelta(0) or length <= timedelta(0):
        raise ValueError(f"{what} must begin after the start and last some time")


def peak_of(text: str) -> Peak:
    """A peak as a command line says it.

    >>> peak_of("1h/10m/5")
    Peak(after=datetime.timedelta(seconds=3600), length=datetime.timedelta(seconds=600), factor=5.0)
    """
    match text.split("/"):
        case [after, length, *factor] if len(factor) < 2:
            return Peak(parse_duration(after), parse_duration(length), *map(float, factor))
    raise ValueError(f"a peak such as 1h/10m or 1h/10m/5 is wanted, not {text}")


def outage_of(text: str) -> Outage:
    """An outage as a command line says it.

    >>> outage_of("insurance/1h/10m").length
    datetime.timedelta(seconds=600)
    """
    match text.split("/"):
        case [domain, after, length]:
            return Outage(domain, parse_duration(after), parse_duration(length))
    raise ValueError(f"an outage such as insurance/1h/10m is wanted, not {text}")


def surge(peaks: Iterable[Peak], start: int, second: int) -> float:
    """How many times as busy that second of the epoch is; ``start`` in epoch milliseconds.

    >>> promotion = Peak(timedelta(seconds=10), timedelta(seconds=5))
    >>> [surge([promotion], 0, second) for second in (9, 10, 14, 15)]
    [1.0, 10.0, 10.0, 1.0]
    """
    factor = 1.0
    for peak in peaks:
        begin = start + peak.after // _MILLISECOND
        if begin <= second * 1000 < begin + peak.length // _MILLISECOND:
            factor *= peak.factor
    return factor


def published(outages: Sequence[Outage], start: int, domain: str, sent: int) -> int:
    """When what a service would publish at ``sent`` comes out, in epoch milliseconds.

    >>> down = Outage("insurance", timedelta(0), timedelta(seconds=10))
    >>> [published([down], 0, "insurance", sent) for sent in (2_000, 9_000, 10_000)]
    [10100, 10450, 10000]
    """
    for outage in outages:
        begin = start + outage.after // _MILLISECOND
        end = begin + outage.length // _MILLISECOND
        if outage.domain == domain and begin <= sent < end:
            return end + (sent - begin) // FLUSH
    return sent
