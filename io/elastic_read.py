"""Documents read back from Elasticsearch, by their ids."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final

from elasticsearch import Elasticsearch

from velocity.io.elastic_setup import told

_AT_ONCE: Final = 1_000


def read_by_id(client: Elasticsearch, wanted: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Documents by id, each its body and its ``version``; ``wanted`` are pairs of index and id.

    What is not there is left out, and so is an index that does not exist. Raises ``SetupError`` if
    Elasticsearch refuses.
    """
    by_index: dict[str, list[str]] = {}
    for index, id_ in wanted:
        by_index.setdefault(index, []).append(id_)
    found: dict[str, Any] = {}
    with told():
        for index, ids in by_index.items():
            client.indices.refresh(index=index, ignore_unavailable=True)
            rest = iter(ids)
            while some := list(islice(rest, _AT_ONCE)):
                answer: Mapping[str, Any] = client.search(
                    index=index,
                    query={"ids": {"values": some}},
                    size=len(some),
                    version=True,
                    ignore_unavailable=True,
                ).body
                for hit in answer["hits"]["hits"]:
                    found[hit["_id"]] = {**hit["_source"], "version": hit["_version"]}
    return found


def read_around(
    client: Elasticsearch,
    index: str,
    metric: str,
    dimensions: Mapping[str, Any],
    at: str,
    *,
    most: int,
) -> list[tuple[str, dict[str, Any]]]:
    """Ids and documents of a metric and key whose windows hold a time (RFC 3339), as ``read_by_id``."""
    must: list[dict[str, Any]] = [
        {"term": {"metric": metric}},
        {"range": {"window_start": {"lte": at}}},
        {"range": {"window_end": {"gt": at}}},
    ]
    missing = []
    for name, value in dimensions.items():
        column = f"dimensions.{name}"
        if value is None:
            missing.append({"exists": {"field": column}})
        else:
            must.append({"term": {column: value}})
    with told():
        client.indices.refresh(index=index, ignore_unavailable=True)
        answer: Mapping[str, Any] = client.search(
            index=index,
            query={"bool": {"filter": must, "must_not": missing}},
            size=most,
            version=True,
            ignore_unavailable=True,
        ).body
    return [
        (hit["_id"], {**hit["_source"], "version": hit["_version"]})
        for hit in answer["hits"]["hits"]
    ]
