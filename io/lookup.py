"""The contract of lookups: what is known of keys, found out by whoever knows."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

PART: Final = "\x1f"
"""What stands between the parts of a key of several columns: U+001F, the unit separator."""

Keep = Callable[[Mapping[str, Any]], Any]
"""Makes of an answered object what is kept of it; equal ones keep the same. Pickled with the graph."""


class Unknown(Enum):
    """In place of an answer: the service does not know the key."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return self.name


MISSING: Final = Unknown.MISSING


class Failed(NamedTuple):
    """In place of an answer: the key could not be looked up. ``error`` holds no key and no secret."""

    error: str
    refused: bool = False
    """Whether the service is well, and refuses this key: to wait would not help."""


class Answers(NamedTuple):
    """What a lookup found out."""

    values: Sequence[Any]
    """For each key asked for, in its place: what was kept of the answer, ``MISSING`` or ``Failed``."""
    counts: Mapping[str, int] = {}
    """What it took, by counter name: ``rest_calls``, ``cache_hits`` and the like."""
    samples: Mapping[str, Sequence[int]] = {}
    """What was measured, by the name of a distribution."""
    states: Mapping[str, int] = {}
    """How things are now, by the name of a gauge."""
    columns: Sequence[Sequence[Any]] | None = None
    """In place of ``values``, if every key has an answer of which a tuple was kept: the columns of
    these tuples. So what a warm cache gives need not be taken apart and put together again."""

    def in_rows(self) -> Sequence[Any]:
        """``values``, also where there are columns.

        >>> Answers((), columns=[(1, 2), ("x", "y")]).in_rows()
        [(1, 'x'), (2, 'y')]
        """
        return self.values if self.columns is None else list(zip(*self.columns, strict=True))


class Lookup(Protocol):
    """Finds what is known of keys. It is pickled with the graph, and opens nothing until asked."""

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        """Begins to look up keys, each given once; what it returns waits for the answers.

        So several lookups are at work at once. A key of several columns has ``PART`` between.
        """
