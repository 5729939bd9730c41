"""What is asked of a store of documents to show them: values put together by time and key.

A store answers in sums over documents, never with the documents of a metric, so that what is asked
of it, and what it answers, stays small whatever it holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, Protocol

Over = Literal["sum", "min", "max"]
"""How one number is made of those of several documents."""

Where = tuple[tuple[str, str], ...]
"""Dimensions, each with the value that its documents must have, as text."""

EARLY: Final = "early"
"""The pane of a document whose window is still open."""


class StoreDown(RuntimeError):
    """A store gave no answer, or none of its documents: why, and the remedy. It may be asked again."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be known of the documents of a metric whose windows overlap ``since`` to ``until``.

    Times are epoch milliseconds. ``every`` is the span whose windows are put together, counted from
    the epoch; None: each window's start stands for itself.
    """

    job: str
    metric: str
    values: tuple[tuple[str, Over], ...]
    since: int
    until: int
    every: int | None = None
    offset: int = 0
    """Of the spans, from the epoch."""
    where: Where = ()
    split: tuple[str, ...] = ()
    """The dimensions that make the keys of ``Totals.series``; none: there is no series."""
    top: int = 6
    """Series: the keys with the most events."""


class Cell(NamedTuple):
    """The documents of a span, early ones apart from the others."""

    start: int
    """Of the span, in epoch milliseconds."""
    end: int
    """The greatest end of their windows."""
    provisional: bool
    events: int
    values: Mapping[str, float | None]


class Series(NamedTuple):
    """The cells of a key; a dimension without a value is None."""

    key: tuple[str | None, ...]
    cells: tuple[Cell, ...]


class Totals(NamedTuple):
    """Cells over all keys, and those of the keys with the most events, both by time."""

    over_all: tuple[Cell, ...]
    series: tuple[Series, ...]
    more: bool
    """Whether there are more keys than series."""


class Latest(NamedTuple):
    """How far the documents of a metric have come."""

    window_start: int
    window_end: int
    written_at: int
    mark: float
    """Another one as soon as one of its documents is another, though none of the times is."""


class Alert(NamedTuple):
    """A transaction that is stuck."""

    job: str
    transaction: str
    stage: str
    since: int
    by: Mapping[str, str | None]


class Alerts(NamedTuple):
    """Alerts of some jobs: those that have not ended, the oldest of them, and all by how they stand."""

    stuck: int
    oldest: tuple[Alert, ...]
    by_status: Mapping[str, int]
    """Of those that began between the times asked for."""


class Totalled(Protocol):
    """A store of documents, asked for totals. Each method raises ``StoreDown``."""

    def latest(self) -> Mapping[tuple[str, str], Latest]:
        """How far each metric (job, metric) has come. Cheap: it is asked again and again."""

    def totals(self, asks: Sequence[Ask]) -> list[Totals]:
        """An answer for each."""

    def alerts(
        self, jobs: Sequence[str], since: int, until: int, where: Where, most: int
    ) -> Alerts:
        """Of the jobs given; ``most`` bounds the oldest."""

    def keys(self, jobs: Sequence[str], dimension: str, begins: str, most: int) -> list[str]:
        """Values of a dimension, those with the most events first."""

    def close(self) -> None:
        """Ends what is held open."""


def epoch_ms(time: str) -> int:
    """The milliseconds of a time as documents have it.

    >>> epoch_ms("2026-01-05T00:03:00.250Z")
    1767571380250
    """
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def instant(time: int) -> str:
    """As documents write times.

    >>> instant(1767571380250)
    '2026-01-05T00:03:00.250Z'
    """
    text = datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def as_key(value: Any) -> str | None:
    """A dimension's value as text, the same from each store.

    >>> as_key(True), as_key(7), as_key(None)
    ('true', '7', None)
    """
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
