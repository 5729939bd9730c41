"""The live part of a REST lookup: its connections, threads and cache, one client a process."""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from threading import Lock
from typing import Any, Final, NamedTuple, Self

import requests
from cachetools import TLRUCache
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError

from velocity.io.records import Answers
from velocity.io.rest import RestLookup

_EXCERPT: Final = 200
_ERROR_BODY: Final = 64 * 1024


class _Failure(Exception):
    """A call gave no answers; ``args[0]`` says why, without secrets."""


class _Transient(_Failure):
    """It may do so when made again: the connection broke, or the service asked for patience."""

    def __init__(self, error: str, retry_after: str | None = None) -> None:
        super().__init__(error)
        self.retry_after = retry_after


_Objects = Mapping[str, Mapping[str, Any]]


class _Called(NamedTuple):
    found: _Objects
    error: str | None
    requests: int


class _Session(requests.Session):
    """A session that carries nothing from one call to the next, and never goes elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # Without this requests would replace an Authorization header by what ~/.netrc says.
        self.auth = lambda request: request

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        # Even with allow_redirects=False requests prepares the next request, and for that reads
        # the body of this answer, however long.
        return None


def session(config: RestLookup) -> requests.Session:
    """A session for the service, usable from ``config.concurrency`` threads at once."""
    made = _Session()
    made.headers["Accept"] = "application/json"
    made.headers.update(config.headers)
    adapter = HTTPAdapter(pool_connections=1, pool_maxsize=config.concurrency)
    made.mount("http://", adapter)
    made.mount("https://", adapter)
    return made


class RestClient:
    """The live part of a ``RestLookup``: its cache, threads and connections; safe for threads.

    Close it, or use it as a context manager, to end both threads and connections.
    """

    def __init__(
        self,
        config: RestLookup,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        sessions: Callable[[RestLookup], requests.Session] = session,
    ) -> None:
        self._config = config
        self._sleep = sleep
        self._uniform = uniform
        self._session = sessions(config)
        self._threads = ThreadPoolExecutor(config.concurrency, "rest")
        self._lock = Lock()
        self._cache: TLRUCache[str, Mapping[str, Any] | None, float] = TLRUCache(
            config.cache.size, self._expiry, clock
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown()
        self._session.close()

    def lookup(self, keys: Sequence[str]) -> Answers:
        """As ``RestLookup.lookup``."""
        found: dict[str, Mapping[str, Any]] = {}
        missing: set[str] = set()
        unknown: list[str] = []
        with self._lock, self._cache.timer:
            for key in keys:
                try:
                    known = self._cache[key]
                except KeyError:
                    unknown.append(key)
                    continue
                if known is None:
                    missing.add(key)
                else:
                    found[key] = known
        hits = len(keys) - len(unknown)
        ask = sorted(filter(self._config.can_ask, unknown))  # sorted: retried bundles ask the same
        missing.update(set(unknown).difference(ask))
        size = self._config.max_keys
        chunks = [ask[start : start + size] for start in range(0, len(ask), size)]
        failed: dict[str, str] = {}
        requests_sent = 0
        for chunk, called in zip(chunks, self._threads.map(self._call, chunks), strict=True):
            requests_sent += called.requests
            if called.error is not None:
                failed.update(dict.fromkeys(chunk, called.error))
                continue
            with self._lock:
                for key in chunk:
                    known = self._cache[key] = called.found.get(key)
                    if known is None:
                        missing.add(key)
                    else:
                        found[key] = known
        counts = {
            "rest_calls": requests_sent,
            "rest_retries": requests_sent - len(chunks),
            "rest_keys": len(ask),
            "cache_hits": hits,
            "cache_misses": len(unknown),
        }
        return Answers(found, frozenset(missing), failed, counts)

    def _expiry(self, key: str, known: Mapping[str, Any] | None, now: float) -> float:
        cache = self._config.cache
        return now + (cache.missing_ttl if known is None else cache.ttl)

    def _call(self, keys: Sequence[str]) -> _Called:
        retry = 0
        while True:
            try:
                return _Called(self._get(keys), None, retry + 1)
            except _Failure as failure:
                error = f"GET {self._config.address}: {failure} (request {retry + 1})"
                if not isinstance(failure, _Transient) or retry == self._config.retries.total:
                    return _Called({}, error, retry + 1)
                self._sleep(self._config.retries.pause(retry, failure.retry_after, self._uniform))
            retry += 1

    def _get(self, keys: Sequence[str]) -> _Objects:
        timeouts = self._config.timeouts
        try:
            with self._session.get(
                self._config.url_of(keys),
                stream=True,
                timeout=(timeouts.connect, timeouts.read),
                allow_redirects=False,
            ) as answer:
                ok = answer.status_code == HTTPStatus.OK
                body = _read(answer, self._config.max_bytes if ok else _ERROR_BODY)
        except (requests.ConnectionError, requests.Timeout, ChunkedEncodingError) as error:
            raise _Transient(_describe(error)) from error
        except requests.RequestException as error:
            raise _Failure(_describe(error)) from error
        if answer.status_code == HTTPStatus.NOT_FOUND and len(keys) == 1:
            return {}
        if ok and len(body) <= self._config.max_bytes:
            try:
                return self._objects(body)
            except _Failure as failure:
                problem = str(failure)
        elif ok:
            problem = f"more than max_bytes ({self._config.max_bytes}); lower max_keys or raise it"
        elif answer.is_redirect:
            problem = "a redirect, which is not followed; give the final url"
        else:
            problem = "not status 200"
        came = self._came(answer, body)
        if answer.status_code in self._config.retries.statuses:
            raise _Transient(f"{problem}: {came}", answer.headers.get("Retry-After"))
        raise _Failure(f"{problem}: {came}")

    def _objects(self, body: bytes) -> _Objects:
        """The answered objects by key; ``_Failure`` says in what the body is no such answer."""
        try:
            # Python's own reader takes NaN and Infinity, which are no JSON (RFC 8259).
            answer = json.loads(body, parse_constant=_refuse)
        except (ValueError, RecursionError):
            raise _Failure("not JSON") from None
        where = "the answer"
        for name in self._config.items.split(".") if self._config.items else ():
            if not isinstance(answer, dict) or name not in answer:
                raise _Failure(f"{where} has no field {name!r}")
            answer = answer[name]
            where = self._config.items or where
        if not isinstance(answer, list):
            raise _Failure(f"{where} is not a list")
        objects: dict[str, Mapping[str, Any]] = {}
        for item in answer:
            key = item.get(self._config.id) if isinstance(item, dict) else None
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise _Failure(f"an item has no string or integer {self._config.id!r}")
            objects[str(key)] = item
        return objects

    def _came(self, answer: requests.Response, body: bytes) -> str:
        """What came, in short. A service may echo what it was sent, so secrets are cut out."""
        for value in self._config.headers.values():
            for secret in (value, *(word for word in value.split() if len(word) >= 8)):
                body = body.replace(secret.encode(), b"***") if secret else body
        kind = answer.headers.get("Content-Type", "none")[:100]
        start = body[:_EXCERPT].decode("utf-8", "replace")
        return f"status {answer.status_code}, content type {kind!r}, body starts with {start!r}"


def _read(answer: requests.Response, limit: int) -> bytes:
    """The body, or of a longer one more than ``limit`` bytes and little more."""
    body = bytearray()
    for piece in answer.iter_content(64 * 1024):
        body += piece
        if len(body) > limit:
            break
    return bytes(body)


def _describe(error: BaseException) -> str:
    """The error's kinds only: the text of requests' errors holds the url with its keys."""
    kind = type(error).__name__
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    root = type(error).__name__ if not isinstance(error, OSError) else error.strerror
    return f"{kind} ({root})" if root and root != kind else kind


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_clients: Final[dict[RestLookup, RestClient]] = {}
_clients_lock: Final = Lock()


def client_of(config: RestLookup) -> RestClient:
    """This process's client for the configuration, made at first use and kept to the end."""
    with _clients_lock:
        if config not in _clients:
            _clients[config] = RestClient(config)
        return _clients[config]
