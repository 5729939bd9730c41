"""What a REST service knows of keys: many keys in one call, retries, a breaker, a cache of answers."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from velocity.io.lookup import Answers, Keep
from velocity.io.lookup_cache import Cache
from velocity.io.rest_breaker import Breaking
from velocity.io.rest_calls import Calls, Template, check_headers, imported, require
from velocity.io.rest_tokens import Token


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for a connection, for each next piece of an answer, and for all of a call."""

    connect: float = 2.0
    read: float = 10.0
    total: float = 30.0

    def __post_init__(self) -> None:
        for name in ("connect", "read", "total"):
            require(getattr(self, name) > 0, f"timeouts.{name}: give seconds above 0")


class Verdict(Enum):
    """What to do about an answer that is no answer."""

    RETRY = "retry"
    """The service asks for patience, or is failing: once more, later."""
    SPLIT = "split"
    """Too much at once, or one key spoils the call: its halves, each alone."""
    RENEW = "renew"
    """The token is not taken: once more with a new one."""
    FAIL = "fail"
    """Neither would help until somebody mends the service or the job."""


_VERDICTS: Final = {
    **dict.fromkeys((408, 425, 429, 500, 502, 503, 504), Verdict.RETRY),
    **dict.fromkeys((400, 404, 410, 413, 414, 422, 431), Verdict.SPLIT),
    401: Verdict.RENEW,
}
UNKNOWN: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
"""The statuses that say of a key asked for alone that it is not known."""
TOO_LARGE: Final = frozenset({413, 414, 431})
"""The statuses that say of a request that it has too many keys."""


def verdict(status: int) -> Verdict:
    """By the status of an answer.

    >>> verdict(503), verdict(413), verdict(403), verdict(302)
    (<Verdict.RETRY: 'retry'>, <Verdict.SPLIT: 'split'>, <Verdict.FAIL: 'fail'>, <Verdict.FAIL: 'fail'>)
    """
    return _VERDICTS.get(status, Verdict.FAIL)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is made again, and after how long (seconds).

    The pause is drawn evenly from 0 to ``base`` × 2ⁿ, at most ``longest``: "full jitter" of
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

    def __post_init__(self) -> None:
        require(0 <= self.total <= 100, "retries.total: give 0 to 100")
        require(self.base >= 0, "retries.base: give seconds, 0 or more")
        require(self.longest >= self.base, "retries.longest: give at least retries.base")
        require(self.longest_retry_after >= 0, "retries.longest_retry_after: give 0 or more")

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


@dataclass(frozen=True, repr=False)
class RestLookup:
    """A lookup (``velocity.io.lookup.Lookup``) by HTTP: up to ``max_keys`` keys in one call.

    ``calls`` makes requests of keys and reads the answers: a ``Template``, or ``MODULE:NAME`` of a
    class of yours that is a ``velocity.io.rest_calls.Calls``, made without arguments. A key that the
    answer leaves out is not known, as is one that is asked for alone and answered with 404 or 410.
    Redirects are not followed: keys go to the configured service only. ``name`` stands in gauges.

    What fails (``velocity.io.rest.verdict``): broken connections, timeouts, 408, 425, 429 and 5xx
    are tried again, ``retries``. A call that is too large (413, 414, 431, a body of more than
    ``max_bytes``), takes too long, or is refused for what is in it (400, 404, 410, 422) is split, down
    to the single key that is to blame; after 413, 414 and 431 calls stay that small. A token is
    renewed once after 401. After ``breaker.failures`` failures in a row no call is made to the host
    for a while, and ``rate`` bounds its calls a second; both hold for all lookups of the process
    that say the same of the host.

    Within one process all equal lookups share connections, ``concurrency`` threads and a cache.
    Secrets belong into ``headers`` and ``token``, whose values are never shown; neither is the query
    of the address, nor a key.

    Raises ``ValueError`` at construction, naming the key and the remedy.

    >>> lookup = RestLookup(Template("http://127.0.0.1:1/providers?ids={keys}", id=("id",)))
    >>> lookup
    RestLookup('http://127.0.0.1:1/providers', max_keys=100, headers=[])
    """

    calls: Template | str
    max_keys: int = 100
    name: str = "rest"
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    token: Token | None = None
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    breaker: Breaking = field(default_factory=Breaking)
    rate: float | None = None
    """Calls a second, at most."""
    cache: Cache = field(default_factory=Cache)
    concurrency: int = 8
    max_bytes: int = 10_000_000
    """Of one answer, unpacked."""

    def __post_init__(self) -> None:
        # A copy: who made the mapping must not change the configuration afterwards.
        object.__setattr__(self, "headers", dict(self.headers))
        require(self.max_keys >= 1, "max_keys: give 1 or more")
        require(self.concurrency >= 1, "concurrency: give 1 or more")
        require(self.max_bytes >= 1, "max_bytes: give 1 or more")
        require(self.rate is None or self.rate > 0, "rate: give calls a second, above 0")
        check_headers(self.headers)
        if isinstance(self.calls, str):
            made = imported(self.calls, "python")
            lacks = [n for n in ("request", "answers", "can_ask") if not hasattr(made, n)]
            require(
                not lacks,
                f"python: {self.calls} has no {''.join(lacks[:1])}; write a class with the methods "
                "of velocity.io.rest_calls.Calls",
            )
        elif not self.calls.many:
            object.__setattr__(self, "max_keys", 1)

    def __repr__(self) -> str:
        return (
            f"RestLookup({self.address!r}, max_keys={self.max_keys}, "
            f"headers={sorted(self.headers)})"
        )

    @property
    def address(self) -> str:
        """Where the calls go, for messages: without the query and without any key."""
        if isinstance(self.calls, str):
            return self.calls
        url = urlsplit(self.calls.url)
        return f"{url.scheme}://{url.netloc}{url.path}"

    def made_calls(self) -> Calls:
        """What makes requests and reads answers."""
        if isinstance(self.calls, str):
            made: Any = imported(self.calls, "python")()
            return made  # type: ignore[no-any-return]
        return self.calls

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        """As ``velocity.io.lookup.Lookup.begin``; never raises for what the service does.

        Counts what ``SharedLookup`` does, and ``rest_calls`` (requests sent, retries among them),
        ``rest_retries``, ``rest_splits``, ``rest_keys`` (keys asked of the service) and
        ``rest_held`` (calls that the breaker held back). Measures ``rest_call_ms`` and
        ``rest_call_keys``; the gauge ``breaker_<name>`` is 0 closed, 1 half open, 2 open.
        """
        # Here, since the client imports this module; and only a worker that asks needs it.
        from velocity.io.rest_client import lookup_of

        return lookup_of(self, keep).begin(keys)
