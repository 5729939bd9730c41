"""Answers that are remembered: a bound on their number, and times after which they are old."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


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
    redis: str | None = field(default=None, repr=False)  # it may hold a password

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
        # Of a tuple that is kept: until when, and then its items. Of all else an Entry.
        self._young: dict[str, tuple[Any, ...]] = {}
        self._old: dict[str, tuple[Any, ...]] = {}
        self._young_are_tuples = True

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __iter__(self) -> Iterator[str]:
        yield from self._young
        yield from self._old

    def get(self, key: str) -> Entry | None:
        entry = self._young.get(key)
        if entry is None:
            entry = self._old.pop(key, None)
            if entry is None:
                return None
            self._put(key, entry)
        return entry if isinstance(entry, Entry) else Entry(entry[1:], entry[0])

    def put(self, key: str, entry: Entry) -> None:
        self._old.pop(key, None)
        self._put(key, (entry.until, *entry.kept) if type(entry.kept) is tuple else entry)

    def _put(self, key: str, entry: tuple[Any, ...]) -> None:
        if len(self._young) >= self._half and key not in self._young:
            self._old = self._young if self._keep_old else {}
            self._young = {}
            self._young_are_tuples = True
        self._young[key] = entry
        if isinstance(entry, Entry):
            self._young_are_tuples = False

    def columns(self, keys: Sequence[str], now: float) -> Sequence[Sequence[Any]] | None:
        """The columns of what is kept of the keys, if of each a tuple that is fresh and was used.

        >>> remembered = Remembered(9)
        >>> remembered.put("a", Entry((1, "x"), 60.0))
        >>> remembered.put("b", Entry((2, "y"), 60.0))
        >>> remembered.columns(["b", "a"], 0.0), remembered.columns(["a", "c"], 0.0)
        ([(2, 1), ('y', 'x')], None)
        """
        if not (keys and self._young_are_tuples):
            return None
        entries: list[Any] = list(map(self._young.get, keys))
        try:
            until, *columns = zip(*entries, strict=True)
        except TypeError:  # one is None: to look for it first would cost more than this
            return None
        return columns if min(until) > now else None
