"""Beam's own enrichment handlers (Bigtable, BigQuery, Feast, Vertex and yours) as a lookup."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam

from velocity.io.lookup import PART, Answers, Failed, Keep
from velocity.io.lookup_cache import Cache
from velocity.io.lookup_shared import Asked, SharedLookup, shared_lookup
from velocity.io.rest_calls import imported, require


@dataclass(frozen=True)
class BeamLookup:
    """A lookup by an ``EnrichmentSourceHandler`` of ``apache_beam.transforms.enrichment``.

    ``make`` is ``MODULE:NAME`` of what makes a handler when it is called without arguments. A
    handler is asked for one key at a time, by a ``beam.Row`` with a text for each of ``columns``, by
    each of ``concurrency`` threads; what it answers, a row or a mapping, are the fields of the
    answer, and one without any says that the key is not known. What it raises is a failure of the
    service: retrying inside is up to the handler.

    Raises ``ValueError`` at construction.
    """

    make: str
    columns: tuple[str, ...]
    cache: Cache = field(default_factory=Cache)
    concurrency: int = 8

    def __post_init__(self) -> None:
        require(callable(imported(self.make, "beam")), f"beam: {self.make} can't be called")
        require(self.concurrency >= 1, "concurrency: give 1 or more")
        require(self.cache.redis is None, "cache.redis: not for handlers of Beam; leave it out")

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        """As ``velocity.io.lookup.Lookup.begin``. Counts ``handler_calls`` too."""
        found = shared_lookup(
            self, keep, lambda: SharedLookup(HandlerClient(self), keep, self.cache)
        )
        return found.begin(keys)


class HandlerClient:
    """Asks handlers (``velocity.io.lookup_shared.Source``), one for each thread."""

    max_keys = 1

    def __init__(self, config: BeamLookup) -> None:
        self._config = config
        self._make = imported(config.make, "beam")
        self._threads = threading.local()
        self._handlers: list[Any] = []

    @property
    def concurrency(self) -> int:
        return self._config.concurrency

    def can_ask(self, key: str) -> bool:
        return len(key.split(PART)) == len(self._config.columns)

    def states(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        for handler in self._handlers:
            handler.__exit__(None, None, None)

    def ask(self, keys: Sequence[str]) -> Asked:
        (key,) = keys
        row = beam.Row(**dict(zip(self._config.columns, key.split(PART), strict=True)))
        try:
            answer = self._handler()(row)
        except Exception as error:  # noqa: BLE001  what it raises is its service's affair
            name = type(error).__name__  # its text may hold the key
            return Asked({}, {key: Failed(f"{self._config.make}: {name}")}, {"handler_calls": 1})
        # A handler answers the request with the response, as Beam's Enrichment joins both.
        response = answer[1] if isinstance(answer, tuple) and len(answer) == 2 else answer
        fields = response if isinstance(response, Mapping) else _fields(response)
        return Asked({key: fields} if fields else {}, {}, {"handler_calls": 1})

    def _handler(self) -> Any:
        if not hasattr(self._threads, "handler"):
            handler = self._make()
            handler.__enter__()
            self._threads.handler = handler
            self._handlers.append(handler)
        return self._threads.handler


def _fields(response: Any) -> Mapping[str, Any]:
    if response is None:
        return {}
    as_dict = getattr(response, "as_dict", None) or getattr(response, "_asdict", None)
    fields: Mapping[str, Any] = as_dict() if as_dict else vars(response)
    return fields
