"""Answers that are remembered: a bound on their number, and times after which they are old."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple


@dataclass(frozen=True, slots=True)
class Cache:
    """How long (seconds) and how many answers are remembered; 0 seconds is not at all.

    An answer older than ``ttl`` is still used for ``stale_while_revalidate``, while it is asked for
    anew in the background, and for ``stale_if_error`` if asking anew fails (RFC 5861).
    ``redis`` is the address of a Redis that all workers share, behind what each remembers itself.
    """

    ttl: float = 600.0
    missing_ttl: float = 30.0
    size: int = 100_000
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    redis: str | None = None

    def __post_init__(self) -> None:
        for name in ("ttl", "missing_ttl", "stale_while_revalidate", "stale_if_error"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"cache.{name}: give seconds, 0 or more")
        if self.size < 1:
            raise ValueError("cache.size: give 1 or more; ttl 0 turns the cache off")
        if self.redis is not None and not self.redis.startswith(("redis://", "rediss://")):
            raise ValueError("cache.redis: give redis://HOST:PORT/DATABASE, or rediss:// for TLS")


class Entry(NamedTuple):
    """What is remembered of a key: what was kept of the answer, and until when it is fresh."""

    kept: Any
    until: float


_kept: Final[Callable[[Any], Any]] = itemgetter(0)
_until: Final[Callable[[Any], float]] = itemgetter(1)


class Remembered:
    """Entries by key, ``size`` at most: those not used for long go first. Not safe for threads.

    They are in two generations. What is used or new is in the young one; once that holds half of
    ``size``, it becomes the old one, and what was in the old one and has not been used since is
    forgotten. A hit so costs a look into a dict, where a list in order of use would cost ten.

    >>> remembered = Remembered(4)
    >>> for key in "abcd":
    ...     remembered.put(key, Entry(key.upper(), 60.0))
    >>> remembered.get("a"), remembered.get("z")
    (Entry(kept='A', until=60.0), None)
    >>> remembered.put("e", Entry("E", 60.0))
    >>> sorted(remembered)
    ['a', 'c', 'd', 'e']
    """

    def __init__(self, size: int) -> None:
        self._half = max(1, size // 2)
        self._keep_old = size > 1
        self._young: dict[str, Entry] = {}
        self.young_are_tuples = True
        """Whether all that is kept in the young generation is tuples."""
        self._old: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __iter__(self) -> Iterator[str]:
        yield from self._young
        yield from self._old

    def get(self, key: str) -> Entry | None:
        entry = self._young.get(key)
        if entry is None and (entry := self._old.pop(key, None)) is not None:
            self.put(key, entry)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        self._old.pop(key, None)
        if len(self._young) >= self._half and key not in self._young:
            self._old = self._young if self._keep_old else {}
            self._young = {}
            self.young_are_tuples = True
        self._young[key] = entry
        if type(entry.kept) is not tuple:
            self.young_are_tuples = False

    def all_fresh(self, keys: Sequence[str], now: float) -> list[Any] | None:
        """What is kept of the keys if each has a fresh entry in the young generation, else None."""
        entries: list[Any] = list(map(self._young.get, keys))
        try:
            if min(map(_until, entries), default=now + 1) <= now:
                return None
        except TypeError:  # one is None: to look for it first would cost more than this
            return None
        return list(map(_kept, entries))
