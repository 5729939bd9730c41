"""One metric of many series, with late corrections, in the stores that were weighed: what each must hold.

    velocity stack up elasticsearch
    python benchmarks/alternatives.py --elasticsearch http://127.0.0.1:9200 --influx http://127.0.0.1:8086

A metric of ``--series`` keys a minute, ``--minutes`` of them, of which ``--corrected`` are written again by
late events. Elasticsearch gets it as the pipeline's sink writes it; InfluxDB (1.8, with a database
``velocity``) as ``sinks.influx`` does; Prometheus' way is a registry in this process, as an exporter has
one, and the text of a scrape. Each store is asked in the end how many documents or points it has, and
whether a corrected one is right.
"""

import argparse
import json
import random
import resource
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlencode

import requests
from elasticsearch import Elasticsearch
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from velocity.io.elastic import operation
from velocity.io.elastic_bulk import Buffer, Bulks, Limits, Operation, Retry, send
from velocity.io.elastic_index import IndexPattern
from velocity.io.influx import Bucket, line
from velocity.io.influx import send as send_points
from velocity.io.records import Document

START = 1_767_571_200_000
CITIES = ("Jakarta", "Surabaya", "Bandung", "Bekasi", "Medan", "Tangerang", "Depok", "Semarang")
NOW = datetime(2026, 1, 5, tzinfo=UTC)


def documents(series: int, minute: int, events: int, share: float = 1.0) -> Iterator[Document]:
    """The documents of a minute; of a ``share`` of the keys, always the same."""
    draw = random.Random(f"{minute} {events}")
    for n in range(int(series * share)):
        start = START + minute * 60_000
        key = {"pharmacy": f"PRV-{n // 4:06d}", "payment": f"method-{n % 4}",
               "city": CITIES[n // 4 % len(CITIES)]}  # fmt: skip
        revenue = draw.randrange(1_000_000)
        values = {"orders": events, "revenue": revenue, "p95_amount": revenue * 0.31}
        id_ = f'bench/orders/{start}/["{key["pharmacy"]}","{key["payment"]}"]'
        pane = "on_time" if events == 1 else "late"
        yield Document("bench", "orders", start, start + 60_000, key, values, events, pane, id_)


def all_documents(options: argparse.Namespace) -> Iterator[Document]:
    """Minute by minute, the corrections of each after the next."""
    for minute in range(options.minutes + 1):
        if minute < options.minutes:
            yield from documents(options.series, minute, 1)
        if minute:
            yield from documents(options.series, minute - 1, 2, options.corrected)


def write(
    made: Callable[[Document], Operation],
    call: Callable[[Sequence[Operation], float], Any],
    limit: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Writes all by the sink's own buffer and retries; how fast, in bulks that it waits for."""
    bulks = Bulks(call, Retry(), timedelta(seconds=60))
    buffer, size, written, seconds, processor = (
        Buffer(Limits(limit)),
        0,
        0,
        0.0,
        time.process_time(),
    )
    for document in all_documents(options):
        one = made(document)
        size += one.size
        if bulk := buffer.add(one):
            began = time.monotonic()
            written += bulks.write(bulk).written
            seconds += time.monotonic() - began
    began = time.monotonic()
    written += bulks.write(buffer.take()).written
    seconds += time.monotonic() - began
    return {
        "written": written,
        "per second, while waiting for answers": round(written / seconds),
        "CPU us each, of the sink": round((time.process_time() - processor) / written * 1e6, 1),
        "bytes each on the wire": round(size / written),
    }


def elasticsearch(options: argparse.Namespace) -> dict[str, Any]:
    index = "bench-alternatives"
    with Elasticsearch(options.elasticsearch, request_timeout=120) as client:
        client.indices.delete(index=index, ignore_unavailable=True)
        keyword = {"type": "keyword"}
        date = {"type": "date"}
        client.indices.create(
            index=index,
            settings={"number_of_shards": 1, "number_of_replicas": 0, "refresh_interval": "5s"},
            mappings={
                "dynamic": "false",
                "properties": {
                    "@timestamp": date, "window_start": date, "window_end": date,
                    "written_at": date, "job": keyword, "metric": keyword, "pane": keyword,
                    "events": {"type": "long"},
                    "dimensions": {"properties": dict.fromkeys(("pharmacy", "payment", "city"), keyword)},
                    "values": {"properties": {"orders": {"type": "long"}, "revenue": {"type": "long"},
                                              "p95_amount": {"type": "double"}}},
                },
            },
        )  # fmt: skip
        made = partial(operation, pattern=IndexPattern(index), written_at=NOW)
        found = write(made, partial(send, client), 1_000, options)
        client.indices.refresh(index=index)
        client.indices.forcemerge(index=index, max_num_segments=1)
        store = client.indices.stats(index=index)["_all"]["primaries"]["store"]["size_in_bytes"]
        count = client.count(index=index)["count"]
        heap = client.nodes.stats(metric="jvm")["nodes"]
        used = next(iter(heap.values()))["jvm"]["mem"]["heap_used_in_bytes"]
        one = client.get(index=index, id=next(documents(options.series, 0, 1)).id)["_source"]
        assert one["events"] == 2, one
        client.indices.delete(index=index)
    return found | {
        "documents in the end": count,
        "disk bytes each": round(store / count),
        "heap used, MB": round(used / 1e6),
    }


def influx(options: argparse.Namespace) -> dict[str, Any]:
    """InfluxDB 1.8, whose figures are its own (``/debug/vars``)."""

    def ask(path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{options.influx}{path}?{urlencode(query)}") as answer:
            return json.load(answer)

    post = requests.post(f"{options.influx}/query", params={"q": "CREATE DATABASE velocity"})
    post.raise_for_status()
    session = requests.Session()
    bucket = Bucket(options.influx, "velocity/autogen")

    def made(document: Document) -> Operation:
        return Operation("velocity", document.id, document.version, b"", line(document))

    before = ask("/debug/vars")["memstats"]["HeapInuse"]
    found = write(made, partial(send_points, session, bucket), 5_000, options)
    after = ask("/debug/vars")
    series = ask("/query", q="SHOW SERIES EXACT CARDINALITY ON velocity")
    count = ask("/query", q="SELECT count(events) FROM orders", db="velocity", epoch="ms")
    where = "SELECT events FROM orders WHERE pharmacy='PRV-000000' AND payment='method-0'"
    one = ask("/query", q=where, db="velocity", epoch="ms")
    assert one["results"][0]["series"][0]["values"][0][1] == 2, one
    disk = sum(
        size
        for name, part in after.items()
        if name.startswith(("tsm1_filestore", "tsm1_wal"))
        for figure, size in part["values"].items()
        if figure.lower().endswith("diskbytes")
    )
    points = count["results"][0]["series"][0]["values"][0][1]
    return found | {
        "points in the end": points,
        "series": series["results"][0]["series"][0]["values"][0][0],
        "disk bytes each, log included": round(disk / points) if disk else None,
        "heap grown, MB": round((after["memstats"]["HeapInuse"] - before) / 1e6),
        "from the system, MB": round(after["memstats"]["Sys"] / 1e6),
    }


def prometheus(options: argparse.Namespace) -> dict[str, Any]:
    """What an exporter holds, and what each scrape carries, for the values of the latest minute."""
    registry = CollectorRegistry()
    names = ("orders", "revenue", "p95_amount")
    gauges = [
        Gauge(f"velocity_{n}", n, ("pharmacy", "payment", "city"), registry=registry) for n in names
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    for document in documents(options.series, 0, 1):
        for name, gauge in zip(names, gauges, strict=True):
            gauge.labels(**document.dimensions).set(document.values[name])
    setting = time.process_time() - began
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    began = time.process_time()
    text = generate_latest(registry)
    scrape = time.process_time() - began
    corrected = sum(1 for _ in documents(options.series, 0, 2, options.corrected))
    return {
        "series": options.series * len(names),
        "memory of the exporter, MB": round(held / 1e3),
        "bytes of a scrape": len(text),
        "seconds of CPU for a scrape": round(scrape, 1),
        "CPU us to set one": round(setting / options.series / len(names) * 1e6, 1),
        "corrections it can say": 0,
        "corrections there are": corrected,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=200_000)
    parser.add_argument("--minutes", type=int, default=2)
    parser.add_argument("--corrected", type=float, default=0.05)
    parser.add_argument("--elasticsearch")
    parser.add_argument("--influx")
    options = parser.parse_args()
    found = {"prometheus exporter": prometheus(options)}
    if options.elasticsearch:
        found["elasticsearch"] = elasticsearch(options)
    if options.influx:
        found["influxdb"] = influx(options)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
