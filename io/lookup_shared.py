"""One lookup for all of a process: its cache, its calls at a time, and no key asked for twice at once."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Final, NamedTuple, Protocol, Self, cast

from velocity.io.lookup import MISSING, Answers, Failed, Keep
from velocity.io.lookup_cache import Cache, Entry, Remembered
from velocity.io.lookup_redis import SharedAnswers


class Asked(NamedTuple):
    """What a source found out: objects by key, and errors by key; a key in neither is not known."""

    found: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, Failed]
    counts: Mapping[str, int] = {}
    samples: Mapping[str, Sequence[int]] = {}


class Source(Protocol):
    """Whoever knows. Used from ``concurrency`` threads at once."""

    @property
    def max_keys(self) -> int:
        """What is asked for at once, at most."""

    @property
    def concurrency(self) -> int: ...

    def can_ask(self, key: str) -> bool:
        """Whether there is a way to ask for the key; what there is none for is not known."""

    def ask(self, keys: Sequence[str]) -> Asked:
        """Finds out, and never raises for what a service does."""

    def states(self) -> Mapping[str, int]:
        """How things are, by the name of a gauge."""

    def close(self) -> None: ...


class _Landed(NamedTuple):
    values: Mapping[str, Any]
    asked: Asked


class SharedLookup:
    """Answers keys from what is remembered, and asks a source for those that are left.

    They are asked for in ``ceil(keys / max_keys)`` calls, ``concurrency`` at a time. A key that
    another thread is asking for is not asked for again: both wait for the one call. Safe for
    threads. Close it, or use it as a context manager, to end its threads and the source.

    Counts ``cache_hits``, ``cache_misses``, ``cache_stale`` (used though old), ``cache_shared``
    (found in Redis), ``cache_shared_errors`` and what the source counts.
    """

    def __init__(
        self,
        source: Source,
        keep: Keep,
        cache: Cache,
        *,
        shared: SharedAnswers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._keep, self._config, self._clock = source, keep, cache, clock
        self._shared = shared
        self._remembered = Remembered(cache.size)
        self._flights: dict[str, Future[_Landed]] = {}
        self._behind: list[Future[_Landed]] = []
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(source.concurrency, "lookup")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown()
        self._source.close()

    def begin(self, keys: Sequence[str]) -> Callable[[], Answers]:
        """As ``velocity.io.lookup.Lookup.begin``, what is kept being settled."""
        now = self._clock()
        with self._lock:
            columns = self._remembered.columns(keys, now)
        if columns is not None and not self._behind:
            counts = {"cache_hits": len(keys)}
            hits = Answers((), counts, states=self._source.states(), columns=columns)
            return lambda: hits
        return self._begin(keys, now)

    def _begin(self, keys: Sequence[str], now: float) -> Callable[[], Answers]:
        values: list[Any] = [None] * len(keys)
        unknown: list[int] = []
        stale: dict[int, Any] = {}
        renew: list[str] = []
        with self._lock:
            for i, key in enumerate(keys):
                entry = self._remembered.get(key)
                if entry is None:
                    unknown.append(i)
                elif now < entry.until:
                    values[i] = entry.kept
                elif now < entry.until + self._config.stale_while_revalidate:
                    values[i] = entry.kept
                    renew.append(key)
                else:
                    unknown.append(i)
                    if now < entry.until + self._config.stale_if_error:
                        stale[i] = entry.kept
        counts = {
            "cache_hits": len(keys) - len(unknown),
            "cache_misses": len(unknown),
            "cache_stale": len(renew),
        }
        if unknown and self._shared:
            unknown = self._from_shared(keys, unknown, values, counts)
        flights: dict[int, Future[_Landed]] = {}
        mine: list[Future[_Landed]] = []
        with self._lock:
            ask: list[str] = []
            for i in unknown:
                key = keys[i]
                if not self._source.can_ask(key):
                    values[i] = MISSING
                elif flight := self._flights.get(key):
                    flights[i] = flight
                elif (entry := self._remembered.get(key)) and now < entry.until:
                    values[i] = entry.kept  # it came in between
                else:
                    ask.append(key)
            mine = self._fly(ask)
            flights |= {i: self._flights[keys[i]] for i in unknown if values[i] is None}
            self._behind += self._fly([key for key in renew if key not in self._flights])

        def answers() -> Answers:
            for i, flight in flights.items():
                found = flight.result().values[keys[i]]
                if isinstance(found, Failed) and i in stale:
                    found = stale[i]
                    counts["cache_stale"] += 1
                values[i] = found
            landed = [flight.result().asked for flight in [*mine, *self._landed_behind()]]
            return Answers(
                values,
                _sum([counts, *(asked.counts for asked in landed)]),
                _joined(asked.samples for asked in landed),
                self._source.states(),
            )

        return answers

    def _fly(self, keys: Sequence[str]) -> list[Future[_Landed]]:
        """Begins the calls for keys; the lock is held."""
        ask, size = sorted(keys), self._source.max_keys  # sorted: retried bundles ask the same
        flights = []
        for start in range(0, len(ask), size):
            chunk = ask[start : start + size]
            flight = self._threads.submit(self._call, chunk)
            flights.append(flight)
            self._flights.update(dict.fromkeys(chunk, flight))
        return flights

    def _call(self, keys: Sequence[str]) -> _Landed:
        try:
            asked = self._source.ask(keys)
            values: dict[str, Any] = {}
            for key in keys:
                if (answer := asked.found.get(key)) is not None:
                    values[key] = self._keep(answer)
                else:
                    values[key] = asked.failed.get(key, MISSING)
            with self._lock:
                self._remember(values)
            self._share(asked, keys)
            return _Landed(values, asked)
        finally:
            with self._lock:
                for key in keys:
                    self._flights.pop(key, None)

    def _remember(self, values: Mapping[str, Any]) -> None:
        now, config = self._clock(), self._config
        known, missing = now + config.ttl, now + config.missing_ttl  # one object for all keys
        for key, value in values.items():
            until = missing if value is MISSING else known
            if until > now and not isinstance(value, Failed):
                self._remembered.put(key, Entry(value, until))

    def _from_shared(
        self, keys: Sequence[str], unknown: list[int], values: list[Any], counts: dict[str, int]
    ) -> list[int]:
        """Takes what all workers share; the indexes of the keys that are left."""
        shared = cast(SharedAnswers, self._shared)
        found = shared.get([keys[i] for i in unknown])
        if found is None:
            counts["cache_shared_errors"] = 1
            return unknown
        fresh = {
            key: MISSING if answer is None else self._keep(answer) for key, answer in found.items()
        }
        with self._lock:
            self._remember(fresh)
        counts["cache_shared"] = len(fresh)
        for i in unknown:
            values[i] = fresh.get(keys[i])
        return [i for i in unknown if keys[i] not in fresh]

    def _share(self, asked: Asked, keys: Sequence[str]) -> None:
        if self._shared:
            self._shared.put({k: asked.found.get(k) for k in keys if k not in asked.failed})

    def _landed_behind(self) -> list[Future[_Landed]]:
        """The calls in the background that have ended since; they count for whoever comes next."""
        with self._lock:
            landed = [flight for flight in self._behind if flight.done()]
            self._behind = [flight for flight in self._behind if not flight.done()]
        return landed


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total


def _joined(samples: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    joined: dict[str, list[int]] = {}
    for part in samples:
        for name, some in part.items():
            joined.setdefault(name, []).extend(some)
    return joined


_lookups: Final[dict[Hashable, SharedLookup]] = {}
_lock: Final = Lock()


def shared_lookup(config: Hashable, keep: Keep, make: Callable[[], SharedLookup]) -> SharedLookup:
    """This process's lookup of a configuration and what it keeps, made at first use and kept."""
    with _lock:
        if (config, keep) not in _lookups:
            _lookups[config, keep] = make()
        return _lookups[config, keep]
