"""What the scripts of all systems share: their arguments, the look-up of cities and the bulk write.

It needs orjson, requests and elasticsearch alone, which each system's requirements name.
"""

import argparse
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import orjson
import requests
from elasticsearch import Elasticsearch, helpers

MINUTE_MS = 60_000
MAX_LATENESS_S = 20
MAX_IDS = 100
CACHE_SECONDS = 600.0


class Arguments(NamedTuple):
    """Where a system reads, asks and writes, and on how many cores it may."""

    kafka: str
    topic: str
    rest: str
    elasticsearch: str
    index: str
    workers: int


def arguments() -> Arguments:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kafka", required=True, metavar="HOST:PORT")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rest", required=True, metavar="URL")
    parser.add_argument("--elasticsearch", required=True, metavar="URL")
    parser.add_argument("--index", required=True)
    parser.add_argument("--workers", type=int, default=2)
    return Arguments(**vars(parser.parse_args()))


class Cities:
    """The cities of providers by REST, as many as may be in each call, kept for ten minutes."""

    def __init__(self, rest: str) -> None:
        self._url = f"{rest}/providers?ids="
        self._session = requests.Session()
        self._known: dict[str, str] = {}
        self._asked: deque[tuple[float, list[str]]] = deque()
        """What was asked together, the oldest first."""

    def of(self, ids: Collection[str]) -> dict[str, str]:
        """The cities of at least these providers. The dictionary is the cache: read it at once."""
        now = time.monotonic()
        while self._asked and self._asked[0][0] < now - CACHE_SECONDS:
            for old in self._asked.popleft()[1]:
                del self._known[old]
        if missing := [one for one in dict.fromkeys(ids) if one not in self._known]:
            for first in range(0, len(missing), MAX_IDS):
                self._ask(missing[first : first + MAX_IDS])
            self._asked.append((now, missing))
        return self._known

    def _ask(self, ids: list[str]) -> None:
        answer = self._session.get(self._url + ",".join(ids), timeout=30)
        answer.raise_for_status()
        for provider in orjson.loads(answer.content)["providers"]:
            self._known[provider["id"]] = provider["city"]


def document(
    window: int, domain: str, event_type: str, city: str, n: int, total: int, most: int
) -> dict[str, Any]:
    return {
        "window": window,
        "domain": domain,
        "event_type": event_type,
        "city": city,
        "n": n,
        "total": total,
        "most": most,
    }


def document_id(document: dict[str, Any]) -> str:
    return "{window}|{domain}|{event_type}|{city}".format_map(document)


class Documents:
    """Writes documents to an index, whole, each under its own id."""

    def __init__(self, url: str, index: str) -> None:
        self._client = Elasticsearch(url, request_timeout=60, retry_on_timeout=True)
        self._index = index

    def write(self, documents: Iterable[dict[str, Any]]) -> None:
        helpers.bulk(self._client, self._actions(documents), max_retries=5)

    def _actions(self, documents: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for one in documents:
            yield {"_index": self._index, "_id": document_id(one), "_source": one}
