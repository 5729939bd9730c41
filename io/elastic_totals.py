"""Totals of the documents in Elasticsearch, by aggregations: it is never asked for the documents.

Source: Elasticsearch's reference, "Aggregations" and "Multi search API".
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from elasticsearch import ApiError, Elasticsearch, TransportError, UnsupportedProductError

from velocity.io.elastic_answers import error_in
from velocity.io.elastic_connection import not_reached
from velocity.io.totals import (
    EARLY,
    Alert,
    Alerts,
    Ask,
    Cell,
    Latest,
    Series,
    StoreDown,
    Totals,
    Where,
    as_key,
    epoch_ms,
    instant,
)

_RECENT: Final = 60_000
"""Milliseconds that a document may be found later than one written after it: clocks of workers
differ, and so do the times at which shards refresh."""
_MOST_WINDOWS: Final = 400
"""Of a metric whose windows each stand for themselves."""
_METRICS: Final = 1_000
_TIMES: Final = ("window_start", "window_end", "written_at")
_NOTHING: Final = ""
"""Stands for a dimension without a value among the buckets; no key is told from it if it is empty."""


class ElasticTotals:
    """The documents of ``indices``, asked for totals; see ``Totalled``.

    ``types`` are those of the dimensions' fields. The client's own retries, if it has any, come
    before ``StoreDown``.
    """

    def __init__(
        self, client: Elasticsearch, indices: Sequence[str], types: Mapping[str, str]
    ) -> None:
        self._client, self._indices, self._types = client, list(indices), types
        self._latest: dict[tuple[str, str], Latest] = {}

    def latest(self) -> Mapping[tuple[str, str], Latest]:
        newest = max((found.written_at for found in self._latest.values()), default=None)
        query: dict[str, Any] = {"match_all": {}}
        if newest is not None:  # so that each look but the first is at few documents
            query = {"range": {"written_at": {"gte": newest - _RECENT}}}
        inner = {name: {"max": {"field": name}} for name in _TIMES}
        inner["events"] = {"sum": {"field": "events"}}
        by_metric = {"terms": {"field": "metric", "size": _METRICS}, "aggs": inner}
        by_job = {"terms": {"field": "job", "size": _METRICS}, "aggs": {"metrics": by_metric}}
        (answer,) = self._search([{"size": 0, "query": query, "aggs": {"jobs": by_job}}])
        for job in _buckets(answer, "jobs"):
            for metric in _buckets(job, "metrics"):
                start, end, at = (int(metric[name]["value"]) for name in _TIMES)
                key = (job["key"], metric["key"])
                before = self._latest.get(key, Latest(0, 0, 0, 0))
                mark = metric["doc_count"] + metric["events"]["value"]
                self._latest[key] = Latest(
                    max(before.window_start, start),
                    max(before.window_end, end),
                    max(before.written_at, at),
                    mark,
                )
        return dict(self._latest)

    def totals(self, asks: Sequence[Ask]) -> list[Totals]:
        first = self._search([self._first(ask) for ask in asks])
        keys = [
            _leaves(answer, ask.split)[: ask.top + 1]
            for ask, answer in zip(asks, first, strict=True)
        ]
        wanted = [(ask, found[: ask.top]) for ask, found in zip(asks, keys, strict=True)]
        second = iter(self._search([self._second(ask, found) for ask, found in wanted if found]))
        made = []
        for ask, answer, (_, shown), found in zip(asks, first, wanted, keys, strict=True):
            series: tuple[Series, ...] = ()
            if shown:
                buckets = next(second)["aggregations"]["keys"]["buckets"]
                series = tuple(
                    Series(key, _cells(buckets[str(i)], ask)) for i, key in enumerate(shown)
                )
            made.append(Totals(_cells(answer["aggregations"], ask), series, len(found) > ask.top))
        return made

    def alerts(
        self, jobs: Sequence[str], since: int, until: int, where: Where, most: int
    ) -> Alerts:
        common = [{"term": {"metric": "alerts"}}, {"terms": {"job": list(jobs)}}, *_terms(where)]
        stuck = {
            "size": most,
            "track_total_hits": True,
            "query": _all([*common, {"term": {"values.status": "stuck"}}]),
            "sort": [{"window_start": "asc"}],
            "_source": ["job", "window_start", "dimensions"],
        }
        by_status = {
            "size": 0,
            "query": _all([*common, _between("window_start", since, until)]),
            "aggs": {"status": {"terms": {"field": "values.status"}}},
        }
        found, counted = self._search([stuck, by_status])
        oldest = []
        for hit in found["hits"]["hits"]:
            by = dict(hit["_source"]["dimensions"])
            transaction, stage = by.pop("transaction"), by.pop("stage")
            start = epoch_ms(hit["_source"]["window_start"])
            oldest.append(Alert(hit["_source"]["job"], transaction, stage, start, by))
        return Alerts(
            found["hits"]["total"]["value"],
            tuple(oldest),
            {bucket["key"]: bucket["doc_count"] for bucket in _buckets(counted, "status")},
        )

    def keys(self, jobs: Sequence[str], dimension: str, begins: str, most: int) -> list[str]:
        field = f"dimensions.{dimension}"
        conditions: list[Any] = [{"terms": {"job": list(jobs)}}]
        if self._types.get(dimension) == "keyword" and begins:
            conditions.append({"prefix": {field: {"value": begins}}})
        terms = {"field": field, "size": most, "order": [{"events": "desc"}, {"_key": "asc"}]}
        events = {"events": {"sum": {"field": "events"}}}
        search = {
            "size": 0,
            "query": _all(conditions),
            "aggs": {"keys": {"terms": terms, "aggs": events}},
        }
        (answer,) = self._search([search])
        found = [_key(bucket) for bucket in _buckets(answer, "keys")]
        return [key for key in found if key is not None and key.startswith(begins)]

    def close(self) -> None:
        self._client.close()

    # -- questions --------------------------------------------------------------------------------

    def _first(self, ask: Ask) -> dict[str, Any]:
        """Cells over all keys, and which keys have the most events."""
        aggregations = dict(_by_time(ask))
        inner: dict[str, Any] = {"events": {"sum": {"field": "events"}}}
        for name in reversed(ask.split):
            terms: dict[str, Any] = {
                "field": f"dimensions.{name}",
                "size": ask.top + 1,
                "order": [{"events": "desc"}, {"_key": "asc"}],
            }
            if self._types.get(name) == "keyword":
                terms["missing"] = _NOTHING
            level = {"events": {"sum": {"field": "events"}}}
            inner = {name: {"terms": terms, "aggs": {**level, **inner}}}
        if ask.split:
            aggregations |= inner
        return {"size": 0, "query": _documents(ask), "aggs": aggregations}

    def _second(self, ask: Ask, keys: Sequence[tuple[str | None, ...]]) -> dict[str, Any]:
        """Cells of some keys."""
        filters = {
            str(i): _all([_is(name, value) for name, value in zip(ask.split, key, strict=True)])
            for i, key in enumerate(keys)
        }
        of_keys = {"filters": {"filters": filters}, "aggs": _by_time(ask)}
        return {"size": 0, "query": _documents(ask), "aggs": {"keys": of_keys}}

    def _search(self, searches: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Answers, all of one round."""
        if not searches:
            return []
        header = {"index": self._indices, "ignore_unavailable": True, "allow_no_indices": True}
        with _told():
            body = self._client.msearch(searches=[p for s in searches for p in (header, s)]).body
        for answer in body["responses"]:
            if "error" in answer:
                raise StoreDown(f"HTTP {answer['status']}: {error_in(answer)}")
            if answer["_shards"]["failed"]:
                raise StoreDown(f"{answer['_shards']['failed']} shards did not answer")
        return [_filled(answer) for answer in body["responses"]]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except UnsupportedProductError as error:
        raise StoreDown(f"this is no Elasticsearch: {error.message}") from error
    except ApiError as error:
        status = error.meta.status
        remedy = {
            401: "; check api_key, or username and password, of sinks.elasticsearch",
            403: "; the user needs the privilege read on the job's indices and alias",
        }.get(status, "")
        raise StoreDown(f"HTTP {status}: {error_in(error.body)}{remedy}") from error
    except TransportError as error:
        raise StoreDown(f"Elasticsearch: {not_reached(error)}") from error


def _documents(ask: Ask) -> dict[str, Any]:
    return _all(
        [
            {"term": {"job": ask.job}},
            {"term": {"metric": ask.metric}},
            {"range": {"window_start": {"lt": instant(ask.until)}}},
            {"range": {"window_end": {"gt": instant(ask.since)}}},
            *_terms(ask.where),
        ]
    )


def _all(conditions: Sequence[Any]) -> dict[str, Any]:
    return {"bool": {"filter": list(conditions)}}


def _between(field: str, since: int, until: int) -> dict[str, Any]:
    return {"range": {field: {"gte": instant(since), "lt": instant(until)}}}


def _terms(where: Where) -> list[dict[str, Any]]:
    return [_is(name, value) for name, value in where]


def _is(dimension: str, value: str | None) -> dict[str, Any]:
    field = f"dimensions.{dimension}"
    if value is None:
        return {"bool": {"must_not": [{"exists": {"field": field}}]}}
    return {"term": {field: value}}


def _by_time(ask: Ask) -> dict[str, Any]:
    by_time: dict[str, Any]
    if ask.every is None:
        # The newest, if there are too many.
        by_time = {
            "terms": {"field": "window_start", "size": _MOST_WINDOWS, "order": {"_key": "desc"}}
        }
    else:
        by_time = {
            "date_histogram": {
                "field": "window_start",
                "fixed_interval": f"{ask.every}ms",
                "offset": f"{ask.offset}ms",
                "min_doc_count": 1,
            }
        }
    early = {"term": {"pane": EARLY}}
    panes = {
        "filters": {
            "filters": {"final": {"bool": {"must_not": [early]}}, "early": early},
        },
        "aggs": {
            "end": {"max": {"field": "window_end"}},
            "events": {"sum": {"field": "events"}},
            # Of documents without it a sum is 0, which is no value.
            **{f"n_{name}": {"value_count": {"field": f"values.{name}"}} for name, _ in ask.values},
            **{f"v_{name}": {over: {"field": f"values.{name}"}} for name, over in ask.values},
        },
    }
    return {"time": {**by_time, "aggs": {"panes": panes}}}


# -- answers --------------------------------------------------------------------------------------


def _filled(answer: Any) -> Any:
    """With no index there are no aggregations in an answer either."""
    return answer if "aggregations" in answer else {**answer, "aggregations": {}}


def _buckets(answer: Any, name: str) -> list[Any]:
    inside = answer.get("aggregations", answer)
    found: list[Any] = inside[name]["buckets"] if name in inside else []
    return found


def _key(bucket: Any) -> str | None:
    text = as_key(bucket.get("key_as_string", bucket["key"]))
    return None if text == _NOTHING else text


def _leaves(answer: Any, split: Sequence[str]) -> list[tuple[str | None, ...]]:
    """The keys, those with the most events first."""
    found: list[tuple[float, tuple[str | None, ...]]] = []

    def walk(inside: Any, names: Sequence[str], key: tuple[str | None, ...]) -> None:
        if not names:
            found.append((inside["events"]["value"], key))
            return
        for bucket in inside.get(names[0], {"buckets": []})["buckets"]:
            walk(bucket, names[1:], (*key, _key(bucket)))

    if split:
        walk(answer["aggregations"], split, ())
    found.sort(key=lambda leaf: (-leaf[0], [text or "" for text in leaf[1]]))
    return [key for _, key in found]


def _cells(inside: Any, ask: Ask) -> tuple[Cell, ...]:
    cells = []
    for span in inside["time"]["buckets"] if "time" in inside else []:
        for pane, early in (("final", False), ("early", True)):
            bucket = span["panes"]["buckets"][pane]
            if not bucket["doc_count"]:
                continue
            values = {
                name: bucket[f"v_{name}"]["value"] if bucket[f"n_{name}"]["value"] else None
                for name, _ in ask.values
            }
            end, events = int(bucket["end"]["value"]), int(bucket["events"]["value"])
            cells.append(Cell(int(span["key"]), end, early, events, values))
    return tuple(sorted(cells, key=lambda cell: (cell.start, cell.provisional)))
