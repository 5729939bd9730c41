"""What a REST service knows of keys: many keys in one GET, with retries and a cache of answers."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlsplit

from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from velocity.io.records import Answers

_KEYS: Final = "{keys}"
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _require(condition: bool, error: str) -> None:
    if not condition:
        raise ValueError(error)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for a connection, and for each next piece of an answer."""

    connect: float = 2.0
    read: float = 10.0

    def __post_init__(self) -> None:
        _require(self.connect > 0, "timeouts.connect: give seconds above 0")
        _require(self.read > 0, "timeouts.read: give seconds above 0")


@dataclass(frozen=True, slots=True)
class Retries:
    """When a call is made again, and after how long (seconds).

    Broken connections, timeouts and answers with one of ``statuses`` are retried. The pause is
    drawn evenly from 0 to ``base`` × 2ⁿ, at most ``longest``: "full jitter" of
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/. It is at least what
    Retry-After (RFC 9110, 10.2.3) asks for, as far as ``longest_retry_after`` allows.

    >>> greatest = lambda low, high: high
    >>> [Retries().pause(n, uniform=greatest) for n in (0, 1, 2, 9)]
    [0.2, 0.4, 0.8, 10.0]
    >>> Retries().pause(0, retry_after="7", uniform=greatest)
    7.0
    """

    total: int = 5
    base: float = 0.2
    longest: float = 10.0
    longest_retry_after: int = 60
    statuses: frozenset[int] = frozenset({429, 500, 502, 503, 504})

    def __post_init__(self) -> None:
        _require(0 <= self.total <= 100, "retries.total: give 0 to 100")
        _require(self.base >= 0, "retries.base: give seconds, 0 or more")
        _require(self.longest >= self.base, "retries.longest: give at least retries.base")
        _require(self.longest_retry_after >= 0, "retries.longest_retry_after: give 0 or more")

    def pause(
        self,
        retry: int,
        retry_after: str | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> float:
        """Seconds before retry number ``retry`` (from 0). An unreadable Retry-After is ignored."""
        asked = 0.0
        if retry_after is not None:
            try:
                parser = Retry(retry_after_max=self.longest_retry_after)
                asked = float(parser.parse_retry_after(retry_after))
            except (InvalidHeader, ValueError, OverflowError):
                asked = 0.0
        return max(asked, uniform(0.0, min(self.longest, self.base * 2**retry)))


@dataclass(frozen=True, slots=True)
class Cache:
    """How long (seconds) and how many answers are remembered; 0 seconds is not at all."""

    ttl: float = 600.0
    missing_ttl: float = 30.0
    size: int = 100_000

    def __post_init__(self) -> None:
        _require(self.ttl >= 0, "cache.ttl: give seconds, 0 or more")
        _require(self.missing_ttl >= 0, "cache.missing_ttl: give seconds, 0 or more")
        _require(self.size >= 1, "cache.size: give 1 or more; ttl 0 turns the cache off")


@dataclass(frozen=True, repr=False)
class RestLookup:
    """A lookup (``velocity.io.records.Lookup``) by GET, many keys in one call.

    In ``url`` the placeholder ``{keys}`` becomes up to ``max_keys`` keys, each percent-encoded,
    with commas between. The answer is status 200 and a JSON list of objects, at the dotted path
    ``items`` or, without one, the whole body; the field ``id`` of each, a string or an integer,
    names its key. Of several objects with one id the last counts; ids that were not asked for are
    ignored. A key that the list leaves out is missing, as is a key asked for alone that is
    answered with 404. The empty key, and in a path ``.`` and ``..``, cannot be asked for and are
    missing. Redirects are not followed: keys go to the configured service only.

    Within one process all equal lookups share one cache, one connection pool and ``concurrency``
    threads. Secrets belong into ``headers``, whose values are never shown; neither is the query of
    ``url``, nor a key.

    Raises ``ValueError`` at construction, naming the key and the remedy.

    >>> lookup = RestLookup("http://127.0.0.1:1/providers?ids={keys}", id="id", max_keys=2)
    >>> lookup.url_of(["P/1", "P,2"])
    'http://127.0.0.1:1/providers?ids=P%2F1,P%2C2'
    >>> lookup
    RestLookup('http://127.0.0.1:1/providers', id='id', max_keys=2, headers=[])
    """

    url: str
    id: str
    max_keys: int = 100
    items: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    cache: Cache = Cache()
    concurrency: int = 8
    max_bytes: int = 10_000_000
    """Of one answer, unpacked."""

    def __post_init__(self) -> None:
        # A copy: who made the mapping must not change the configuration afterwards.
        object.__setattr__(self, "headers", dict(self.headers))
        _require(self.url.count(_KEYS) == 1, "url: write {keys} once, where the keys go")
        parts = urlsplit(self.url)
        _require(
            parts.scheme in ("http", "https") and bool(parts.hostname),
            "url: start with http://HOST or https://HOST",
        )
        _require("@" not in parts.netloc, "url: move the credentials into headers")
        _require(_KEYS in parts.path + parts.query, "url: {keys} goes into the path or the query")
        _require(bool(self.id), "id: name the field of an answered object that holds its key")
        _require(
            self.items is None or all(self.items.split(".")),
            "items: give a dotted path such as data.items, or leave it out",
        )
        _require(self.max_keys >= 1, "max_keys: give 1 or more")
        _require(self.concurrency >= 1, "concurrency: give 1 or more")
        _require(self.max_bytes >= 1, "max_bytes: give 1 or more")
        for name, value in self.headers.items():
            _require(
                _HEADER_NAME.fullmatch(name) is not None
                and value.isascii()
                and value.isprintable()
                and value == value.strip(),
                f"headers: {name!r} needs the name of an HTTP header, and a value of printable "
                "ASCII without blanks around it",
            )

    def __repr__(self) -> str:
        return (
            f"RestLookup({self.address!r}, id={self.id!r}, max_keys={self.max_keys}, "
            f"headers={sorted(self.headers)})"
        )

    @property
    def address(self) -> str:
        """Where the calls go, for messages: without the query and without any key."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    def url_of(self, keys: Sequence[str]) -> str:
        """The address of one call."""
        return self.url.replace(_KEYS, ",".join(quote(key, safe="") for key in keys))

    def can_ask(self, key: str) -> bool:
        """Whether ``url`` can hold the key. An empty one could stand for "all", and URL
        libraries resolve dots in a path (RFC 3986, 5.2.4), which asks another resource."""
        return key != "" and (key not in (".", "..") or _KEYS not in urlsplit(self.url).path)

    def lookup(self, keys: Sequence[str]) -> Answers:
        """Answers for keys, each given once, from the cache or the service.

        Blocks until all calls have ended. A call that fails after its retries fails its own keys
        only. Counts: ``rest_calls`` (requests sent, retries among them), ``rest_retries``,
        ``rest_keys`` (keys asked of the service), ``cache_hits`` and ``cache_misses``.
        """
        # Here, since the client imports this module; and only a worker that asks needs it.
        from velocity.io.rest_client import client_of

        return client_of(self).lookup(keys)
