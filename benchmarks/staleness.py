"""How old an event is when it can be read: in a document of Elasticsearch, and in the archive.

    velocity stack up
    python benchmarks/staleness.py --seconds 60 --rate 1000

Each event has a key of its own, so that its document is written once: by the early pane that shows
it. Its age is that document's ``written_at``, or its archive file's time, less the time at which it
was sent, which is its event time. A line of JSON for each path, in seconds; every event must be there.
A document can be searched for at the index's next refresh, a second later at most as it is set up.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from elasticsearch import helpers

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


def send(kafka: str, topic: str, seconds: float, rate: float) -> int:
    """Sends events at an even rate, each at once; how many."""
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5})
    began, total = time.time(), round(seconds * rate)
    for n in range(total):
        if (ahead := began + n / rate - time.time()) > 0:
            producer.flush(0)
            time.sleep(ahead)
        event = {"at": round(time.time() * 1000), "order": f"o{n}", "city": f"c{n % 12}"}
        producer.produce(topic, json.dumps(event), partition=n % PARTITIONS)
        producer.poll(0)
    producer.flush()
    return total


def ages(path: str, found: Sequence[float]) -> str:
    at = {f"p{p}": round(float(np.percentile(found, p)), 2) for p in (50, 90, 99)}
    return json.dumps({"to": path, "events": len(found), **at, "load": os.getloadavg()[0]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=1_000, help="events a second")
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
    try:
        sender = threading.Thread(
            target=lambda: sent.append(send(environment["KAFKA"], name, given.seconds, given.rate))
        )
        sender.start()
        sender.join()
        deadline = time.monotonic() + given.wait
        while not all_there(graph, sent[0]) and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        job.flink.cancel(job.id)
    whole = True
    for early in given.early:
        found = list(of_documents(graph, f"early_{early}"))
        whole &= len(found) == sent[0]
        print(ages(f"document, early: {early}s", found))
    found = list(of_archive(graph))
    whole &= len(found) == sent[0]
    print(ages(f"archive, checkpoint every {given.checkpoint:g} s", found))
    return 0 if whole else 1


def all_there(graph: Graph, events: int) -> bool:
    with graph.elasticsearch.open() as client:
        if not client.indices.exists(index=graph.job.job):
            return False
        client.indices.refresh(index=graph.job.job)
        documents = client.count(index=graph.job.job)["count"]
    return documents == events * len(graph.job.metrics) and len(list(archived(graph))) == events


def of_documents(graph: Graph, metric: str) -> Iterator[float]:
    times = {key: at for key, at, _ in archived(graph)}
    with graph.elasticsearch.open() as client:
        client.indices.refresh(index=graph.job.job)
        query = {"query": {"term": {"metric": metric}}}
        for hit in helpers.scan(client, index=graph.job.job, query=query, size=5_000):
            written = datetime.fromisoformat(hit["_source"]["written_at"])
            yield (written - times[hit["_source"]["dimensions"]["order"]]).total_seconds()


def of_archive(graph: Graph) -> Iterator[float]:
    return ((there - at).total_seconds() for _, at, there in archived(graph))


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
