"""How old an event is when it can be read: in a document of Elasticsearch, and in the archive.

    velocity stack up
    python benchmarks/staleness.py --seconds 60 --rate 5000

One event of ``--marked`` has a key of its own, so that its document is written once: by the early pane that shows
it. The others share a few hundred keys. The age of a marked event is its archive file's time, its document's ``written_at``, and the
time at which a search first found it (one is made every fifth of a second), less the time at which it was
sent, which is its event time. A line of JSON for each, in seconds, and for what lies between them; all events must be there.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from elasticsearch import ApiError, helpers

from velocity.io.archive_files import Kind, files_of
from velocity.io.elastic_setup import apply
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import parse
from velocity.pipelines.templates import setup_of
from velocity.runners.flink import FlinkOptions
from velocity.runners.flink_submit import submit
from velocity.runners.stack_paths import state_folder
from velocity.runners.stack_state import read_state

JOB = """\
job: NAME
source: {kafka: {bootstrap_servers: "${KAFKA}", topics: [NAME]}, event_time: at, disorder: 5s}
fields: {at: timestamp_ms, order: string, city: string}
metrics:
METRICS
sinks: {elasticsearch: {url: "${ELASTICSEARCH}", index: "NAME"}}
archive: {path: FOLDER}
dead_letters: {parquet: FOLDER/dead}
"""
METRIC = """\
  - name: early_EARLY
    by: [order, city]
    window: {fixed: 1d}     # it does not close meanwhile
    emit: {early: EARLYs}
    values: {n: count()}
"""
PARTITIONS = 4
KEYS = 240
"""That the events share which are not marked."""
AGAIN = timedelta(seconds=3)
"""A search finds what was written so long before the newest that one has found."""


def send(kafka: str, topic: str, seconds: float, rate: float, marked: int) -> int:
    """Sends events at an even rate, each at once; how many."""
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5})
    began, total = time.time(), round(seconds * rate)
    for n in range(total):
        if (ahead := began + n / rate - time.time()) > 0.001:
            producer.flush(0)
            time.sleep(ahead)
        order = f"marked-{n}" if n % marked == 0 else f"shared-{n % KEYS}"
        event = {"at": round(time.time() * 1000), "order": order, "city": f"c{n % 12}"}
        producer.produce(topic, json.dumps(event), partition=n % PARTITIONS)
        producer.poll(0)
    producer.flush()
    return total


class Searches(threading.Thread):
    """Searches for the marked documents of a metric, and notes when each was first found."""

    def __init__(self, graph: Graph, metric: str) -> None:
        super().__init__(daemon=True)
        self._graph, self._metric = graph, metric
        self.found: dict[str, datetime] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        newest = datetime.fromtimestamp(0, UTC)
        with self._graph.elasticsearch.open() as client:
            while not self.ended.wait(0.2):
                since = {"range": {"written_at": {"gt": (newest - AGAIN).isoformat()}}}
                query = marked_of(self._metric, since)
                try:
                    answer = client.search(
                        index=self._graph.job.job,
                        query=query,
                        size=10_000,
                        ignore_unavailable=True,
                    )
                except ApiError as error:
                    if error.status_code != 503:  # its shards are being made
                        raise
                    continue
                now = datetime.now(UTC)
                for hit in answer["hits"]["hits"]:
                    document = hit["_source"]
                    self.found.setdefault(document["dimensions"]["order"], now)
                    newest = max(newest, datetime.fromisoformat(document["written_at"]))


def marked_of(metric: str, *more: Mapping[str, Any]) -> dict[str, Any]:
    terms = [{"term": {"metric": metric}}, {"prefix": {"dimensions.order": "marked-"}}]
    return {"bool": {"filter": [*terms, *more]}}


def ages(of: str, found: Sequence[float]) -> str:
    at = {f"p{p}": round(float(np.percentile(found, p)), 2) for p in (50, 90, 99)}
    return json.dumps({"of": of, "events": len(found), **at, "load": os.getloadavg()[0]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=5_000, help="events a second")
    parser.add_argument("--marked", type=int, default=50, help="one of so many events is")
    parser.add_argument("--warm", type=float, default=20, help="first seconds that do not count")
    parser.add_argument("--early", type=int, nargs="+", default=[1, 10], help="of the metrics")
    parser.add_argument("--checkpoint", type=float, default=10, help="seconds between them")
    parser.add_argument("--wait", type=float, default=180, help="seconds at most, for the last")
    parser.add_argument(
        "--beam", nargs="*", default=[], metavar="OPTION", help="for Beam, as it is"
    )
    given = parser.parse_args()
    stack = read_state(state_folder())
    where = {name.upper(): stack.address(name) for name in ("kafka", "elasticsearch")}
    if not all(where.values()) or "flink" not in stack.components:
        print("no stack is up: velocity stack up", file=sys.stderr)
        return 1
    environment = {name: str(address) for name, address in where.items()}
    name, folder = f"staleness_{int(time.time())}", Path(tempfile.mkdtemp(prefix="staleness-"))
    metrics = "".join(METRIC.replace("EARLY", str(early)) for early in given.early)
    text = JOB.replace("METRICS\n", metrics).replace("NAME", name).replace("FOLDER", str(folder))
    graph = Graph(parse(text.encode(), "job.yaml").job, environment)
    admin = AdminClient({"bootstrap.servers": environment["KAFKA"]})
    admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result(30)
    with graph.elasticsearch.open() as client:
        list(apply(client, setup_of(graph)))
    interval = timedelta(seconds=given.checkpoint)
    job = submit(graph, FlinkOptions(name=name, checkpoint_interval=interval), given.beam)
    sent: list[int] = []
    searches = Searches(graph, f"early_{given.early[0]}")
    try:
        sender = threading.Thread(
            target=lambda: sent.append(
                send(environment["KAFKA"], name, given.seconds, given.rate, given.marked)
            )
        )
        sender.start()
        searches.start()
        sender.join()
        marked = -(-sent[0] // given.marked)
        deadline = time.monotonic() + given.wait
        while not all_there(graph, sent[0], marked) and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        job.flink.cancel(job.id)
        searches.ended.set()
        searches.join()
    everything = list(archived(graph))
    warm = min(at for _, at, _ in everything) + timedelta(seconds=given.warm)
    rows = [row for row in everything if row[1] >= warm]
    print(ages("archive: its file is there", [seconds(at, there) for _, at, there in rows]))
    whole = len(everything) == sent[0]
    kept = {key: (at, there) for key, at, there in rows if key.startswith("marked-")}
    first, *_ = written_of = [written_at(graph, f"early_{early}") for early in given.early]
    for early, written in zip(given.early, written_of, strict=True):
        whole &= len(written) == marked and written.keys() >= kept.keys()
        print(
            ages(
                f"document, early {early} s: written",
                [seconds(kept[k][0], at) for k, at in written.items() if k in kept],
            )
        )
    whole &= searches.found.keys() >= kept.keys()
    found = {key: at for key, at in searches.found.items() if key in kept}
    print(
        ages(
            f"document, early {given.early[0]} s: found by a search",
            [seconds(kept[k][0], at) for k, at in found.items()],
        )
    )
    for stage, times in (
        ("sent until read, decoded and archived", [seconds(*kept[k]) for k in found]),
        ("until the pane with it was made", [seconds(kept[k][1], first[k]) for k in found]),
        ("until a search found its document", [seconds(first[k], at) for k, at in found.items()]),
    ):
        print(ages(stage, times))
    return 0 if whole else 1


def seconds(since: datetime, until: datetime) -> float:
    return (until - since).total_seconds()


def all_there(graph: Graph, events: int, marked: int) -> bool:
    with graph.elasticsearch.open() as client:
        if not client.indices.exists(index=graph.job.job):
            return False
        client.indices.refresh(index=graph.job.job)
        documents = sum(
            client.count(index=graph.job.job, query=marked_of(metric.name))["count"]
            for metric in graph.job.metrics
        )
    return documents == marked * len(graph.job.metrics) and len(list(archived(graph))) == events


def written_at(graph: Graph, metric: str) -> Mapping[str, datetime]:
    """When each marked event's document was written."""
    with graph.elasticsearch.open() as client:
        client.indices.refresh(index=graph.job.job)
        hits = helpers.scan(
            client, index=graph.job.job, query={"query": marked_of(metric)}, size=5_000
        )
        return {
            hit["_source"]["dimensions"]["order"]: datetime.fromisoformat(
                hit["_source"]["written_at"]
            )
            for hit in hits
        }


def archived(graph: Graph) -> Iterator[tuple[str, datetime, datetime]]:
    """Each event of the archive: its key, its time, and when its file was there."""
    assert graph.archive_path
    for file in files_of(graph.archive_path, Kind.ENRICHED, graph.job.job):
        # A rename leaves the time of the last write, and sets that of the change.
        there = datetime.fromtimestamp(Path(file.path).stat().st_ctime, UTC)
        table = pq.ParquetFile(file.path).read(["order", "at"])
        for key, at in zip(table["order"].to_pylist(), table["at"].to_pylist(), strict=True):
            yield key, at, there


if __name__ == "__main__":
    sys.exit(main())
