"""Answers that all workers share, in a Redis. It only helps: without it each asks the service itself."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_WITHIN: Final = 0.5
"""Seconds for Redis to answer; a service that is asked instead would take about as long."""
_AGAIN_AFTER: Final = 10.0
"""Seconds for which a Redis that failed is left alone."""

_log = logging.getLogger(__name__)


class SharedAnswers:
    """Answered objects by key, each for as long as it is fresh. Safe for threads.

    ``space`` tells lookups apart: only equal ones share answers. Keys are there as SHA-256, so that
    a list of them shows no patient; the answers are there as they came. A Redis that fails is told
    in the log, and left alone for a while.

    Raises ``ValueError`` if the package ``redis`` is not installed.
    """

    def __init__(
        self,
        url: str,
        space: str,
        *,
        ttl: float,
        missing_ttl: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            import redis
        except ImportError:
            raise ValueError(
                "cache.redis: the package redis is missing: pip install 'velocity[redis]'"
            ) from None
        self._client = redis.Redis.from_url(
            url, socket_timeout=_WITHIN, socket_connect_timeout=_WITHIN
        )
        self._errors = (redis.RedisError, OSError)
        self._space = hashlib.sha256(space.encode()).hexdigest()[:16]
        self._ttl, self._missing_ttl = round(ttl * 1000), round(missing_ttl * 1000)
        self._clock = clock
        self._alone_until = float("-inf")

    def get(self, keys: Sequence[str]) -> dict[str, Mapping[str, Any] | None] | None:
        """What is there: objects, or None for a key that is not known; None if Redis fails."""
        if self._clock() < self._alone_until:
            return None
        try:
            found = self._client.mget([self._name(key) for key in keys])
        except self._errors as error:
            self._failed(error)
            return None
        return {
            key: json.loads(text) for key, text in zip(keys, found, strict=True) if text is not None
        }

    def put(self, answers: Mapping[str, Mapping[str, Any] | None]) -> None:
        if self._clock() < self._alone_until:
            return
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for key, answer in answers.items():
                    if ttl := self._missing_ttl if answer is None else self._ttl:
                        pipeline.set(self._name(key), json.dumps(answer), px=ttl)
                pipeline.execute()
        except self._errors as error:
            self._failed(error)

    def _name(self, key: str) -> str:
        return f"velocity:{self._space}:{hashlib.sha256(key.encode()).hexdigest()}"

    def _failed(self, error: Exception) -> None:
        self._alone_until = self._clock() + _AGAIN_AFTER
        _log.warning(
            "Redis fails (%s): services are asked instead; it is tried again in %.0f s",
            type(error).__name__,
            _AGAIN_AFTER,
        )
