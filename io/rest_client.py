"""The live part of a REST lookup: its connections, and what is done about a call that fails."""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import urllib3
from urllib3.exceptions import ReadTimeoutError

from velocity.io import patience
from velocity.io.lookup import PART, Failed, Keep
from velocity.io.lookup_redis import SharedAnswers
from velocity.io.lookup_shared import Asked, SharedLookup, shared_lookup
from velocity.io.rest import TOO_LARGE, UNKNOWN, RestLookup, Verdict, verdict
from velocity.io.rest_breaker import Host, host_of
from velocity.io.rest_calls import NoAnswer, Request
from velocity.io.rest_deadline import mount, within
from velocity.io.rest_tokens import NoToken, Tokens

_EXCERPT: Final = 200
_ERROR_BODY: Final = 64 * 1024
_PIECE: Final = 64 * 1024


class _Failure(Exception):
    """A call gave no answers; ``args[0]`` says why, without keys and secrets."""

    def __init__(
        self,
        error: str,
        verdict: Verdict = Verdict.FAIL,
        *,
        status: int = 0,
        retry_after: str | None = None,
        slow: bool = False,
        token: str | None = None,
    ) -> None:
        super().__init__(error)
        self.verdict, self.status, self.retry_after = verdict, status, retry_after
        self.slow, self.token = slow, token

    @property
    def is_the_hosts(self) -> bool:
        """Whether it tells of a host that is not well; 429 tells of us."""
        return self.verdict is Verdict.RETRY and self.status != HTTPStatus.TOO_MANY_REQUESTS


@dataclass
class _Tally:
    """What an ask has found and taken so far."""

    found: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[str, Failed] = field(default_factory=dict)
    splits: int = 0
    retries: int = 0
    held: int = 0
    millis: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)


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
    mount(made, connections=config.concurrency)
    return made


class RestClient:
    """Asks one service (``velocity.io.lookup_shared.Source``). Safe for threads."""

    def __init__(
        self,
        config: RestLookup,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], bool] = patience.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        sessions: Callable[[RestLookup], requests.Session] = session,
        hosts: Callable[[str], Host] | None = None,
    ) -> None:
        self._config, self._calls = config, config.made_calls()
        self._clock, self._sleep, self._uniform = clock, sleep, uniform
        self._session = sessions(config)
        self._tokens = Tokens(config.token, clock=clock) if config.token else None
        self._host_of = hosts or (lambda name: host_of(name, config.breaker, config.rate))
        self._hosts: dict[str, Host] = {}
        self._max_keys = config.max_keys
        self._last = ""

    @property
    def max_keys(self) -> int:
        return self._max_keys

    @property
    def concurrency(self) -> int:
        return self._config.concurrency

    def can_ask(self, key: str) -> bool:
        return self._calls.can_ask(key)

    def states(self) -> Mapping[str, int]:
        states = [int(host.breaker.state) for host in self._hosts.values()]
        return {f"breaker_{self._config.name}": max(states, default=0)}

    def close(self) -> None:
        self._session.close()

    def ask(self, keys: Sequence[str]) -> Asked:
        """One call for all of the keys, and as many smaller ones as it takes."""
        tally = _Tally()
        self._ask(keys, 0, tally)
        counts = {
            "rest_calls": len(tally.millis),
            "rest_retries": tally.retries,
            "rest_splits": tally.splits,
            "rest_keys": len(keys),
            "rest_held": tally.held,
        }
        samples = {"rest_call_ms": tally.millis, "rest_call_keys": tally.keys}
        return Asked(tally.found, tally.failed, counts, samples)

    def _ask(self, keys: Sequence[str], retry: int, tally: _Tally) -> None:
        """Asks until there is an answer, or all retries are used up; ``retry`` were made before."""
        retries, refused = self._config.retries, None
        while True:
            try:
                tally.found.update(self._call(keys, refused, tally))
                return
            except _Failure as failure:
                if len(keys) > 1 and (failure.verdict is Verdict.SPLIT or failure.slow):
                    if failure.status in TOO_LARGE:
                        self._max_keys = min(self._max_keys, -(-len(keys) // 2))
                    if not failure.slow or retry < retries.total:
                        tally.splits += 1
                        half = -(-len(keys) // 2)
                        for part in (keys[:half], keys[half:]):
                            self._ask(part, retry + failure.slow, tally)
                        return
                if failure.status in UNKNOWN and len(keys) == 1:
                    return
                if failure.verdict is Verdict.RENEW and failure.token and refused is None:
                    refused = failure.token
                elif (
                    failure.verdict is not Verdict.RETRY
                    or retry >= retries.total
                    or not self._sleep(retries.pause(retry, failure.retry_after, self._uniform))
                ):
                    return self._give_up(keys, failure, retry, tally)
                retry += 1
                tally.retries += 1

    def _give_up(self, keys: Sequence[str], failure: _Failure, retry: int, tally: _Tally) -> None:
        error = f"{self._config.address}: {failure} (request {retry + 1})"
        failed = Failed(error, refused=failure.verdict is Verdict.SPLIT)
        tally.failed.update(dict.fromkeys(keys, failed))

    def _call(
        self, keys: Sequence[str], refused: str | None, tally: _Tally
    ) -> Mapping[str, Mapping[str, Any]]:
        """One request, if the breaker lets it through."""
        request = self._calls.request(keys)
        host = self._host(request.url)
        if not host.breaker.admits():
            tally.held += 1
            raise _Failure(f"not asked, as calls failed several times in a row; {self._last}")
        well = False
        try:
            if host.rate and (turn := host.rate.turn()) and not self._sleep(turn):
                raise _Failure("not asked, as the process ends")
            began = self._clock()
            try:
                found = self._send(request, keys, refused)
                well = True
                return found
            except _Failure as failure:
                well = not failure.is_the_hosts
                if not well:
                    self._last = f"the last: {failure}"
                raise
            finally:
                tally.millis.append(round(1000 * (self._clock() - began)))
                tally.keys.append(len(keys))
        finally:
            host.breaker.ended(well=well)

    def _host(self, url: str) -> Host:
        name = urlsplit(url).netloc
        if name not in self._hosts:
            self._hosts[name] = self._host_of(name)
        return self._hosts[name]

    def _token(self, refused: str | None = None) -> str | None:
        try:
            return self._tokens.get(refused) if self._tokens else None
        except NoToken as error:
            raise _Failure(str(error), Verdict.RETRY) from None

    def _send(
        self, request: Request, keys: Sequence[str], refused: str | None
    ) -> Mapping[str, Mapping[str, Any]]:
        timeouts, headers = self._config.timeouts, dict(request.headers)
        token = self._token(refused)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            with within(timeouts.total, self._clock):
                begun = self._session.request(
                    request.method,
                    request.url,
                    data=request.body,
                    headers=headers,
                    stream=True,
                    timeout=(timeouts.connect, min(timeouts.read, timeouts.total)),
                    allow_redirects=False,
                )
            with begun as answer:
                ok = answer.status_code == HTTPStatus.OK
                limit = self._config.max_bytes if ok else _ERROR_BODY
                body = _read(answer, limit)
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            slow = isinstance(error, requests.ReadTimeout | ReadTimeoutError)
            raise _Failure(_describe(error), Verdict.RETRY, slow=slow) from error
        except (requests.RequestException, OSError) as error:
            raise _Failure(_describe(error), Verdict.RETRY) from error
        if ok and len(body) <= self._config.max_bytes:
            try:
                return self._calls.answers(body, keys)
            except NoAnswer as error:
                raise _Failure(f"{error}: {self._came(answer, body, keys, token)}") from None
        if ok:
            limit = self._config.max_bytes
            problem = f"more than max_bytes ({limit}); lower max_keys or raise it"
        elif answer.is_redirect:
            problem = "a redirect, which is not followed; give the final url"
        else:
            problem = "not status 200"
        raise _Failure(
            f"{problem}: {self._came(answer, body, keys, token)}",
            Verdict.SPLIT if ok else verdict(answer.status_code),
            status=answer.status_code,
            retry_after=answer.headers.get("Retry-After"),
            token=token,
        )

    def _came(
        self, answer: requests.Response, body: bytes, keys: Sequence[str], token: str | None
    ) -> str:
        """What came, in short. A service may echo what it was sent: keys and secrets are cut out."""
        kind = answer.headers.get("Content-Type", "none")[:100]
        start = body[: 4 * _EXCERPT].decode("utf-8", "replace")
        for secret in (*self._config.headers.values(), token or ""):
            for word in (secret, *(word for word in secret.split() if len(word) >= 8)):
                start = start.replace(word, "***") if word else start
        for part in sorted({part for key in keys for part in key.split(PART)}, key=len)[::-1]:
            start = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", "***", start) if part else start
        return (
            f"status {answer.status_code}, content type {kind!r}, "
            f"body starts with {start[:_EXCERPT]!r}"
        )


def _read(answer: requests.Response, limit: int) -> bytes:
    """The body, or of a longer one more than ``limit`` bytes and little more."""
    body = bytearray()
    while len(body) <= limit and (piece := answer.raw.read1(_PIECE, decode_content=True)):
        body += piece
    return bytes(body)


def _describe(error: BaseException) -> str:
    """The error's kinds only: the text of requests' errors holds the url with its keys."""
    kind = type(error).__name__
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    root = type(error).__name__ if not isinstance(error, OSError) else error.strerror
    return f"{kind} ({root})" if root and root != kind else kind


def lookup_of(config: RestLookup, keep: Keep) -> SharedLookup:
    """This process's lookup for the configuration, made at first use and kept to the end."""

    def make() -> SharedLookup:
        cache, shared = config.cache, None
        if cache.redis is not None:
            space = f"{config.calls!r} {sorted(config.headers.items())!r} {config.token!r}"
            ttl, missing_ttl = cache.ttl, cache.missing_ttl
            shared = SharedAnswers(cache.redis, space, ttl=ttl, missing_ttl=missing_ttl)
        return SharedLookup(RestClient(config), keep, cache, shared=shared)

    return shared_lookup(config, keep, make)
