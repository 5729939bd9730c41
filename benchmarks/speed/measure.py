"""Runs of the systems: the servers, a filled topic, and what a run took and left."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from archived import span
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from elasticsearch import Elasticsearch, helpers
from environments import environ
from machine import Look, Watch
from report import Run
from rest import RestService
from systems import Place, System
from workload import CITIES, Workload

from velocity.runners.stack_state import read_state

KEYS = ("window", "domain", "event_type", "city")


@contextmanager
def servers(state: Path | None) -> Iterator[tuple[str, str, list[int], Path]]:
    """A Kafka and an Elasticsearch; their addresses, pids and folder."""
    folder = state or Path(tempfile.mkdtemp(prefix="velocity-speed-"))
    variables = os.environ | {"VELOCITY_STATE": str(folder)}
    velocity = [str(Path(sys.executable).with_name("velocity")), "stack"]
    try:
        subprocess.run(
            [*velocity, "up", "kafka", "elasticsearch"],
            env=variables,
            check=True,
            stdout=sys.stderr,
        )
        found = read_state(folder)
        pids = [s.process.pid for c in found.components.values() for s in c.servers]
        yield str(found.address("kafka")), str(found.address("elasticsearch")), pids, folder
    finally:
        subprocess.run([*velocity, "down"], env=variables, check=False, stdout=sys.stderr)
        if state is None:
            shutil.rmtree(folder, ignore_errors=True)


def fill(kafka: str, workload: Workload) -> str:
    """The topic of the workload, filled unless it is; its name."""
    topic, partitions = workload.topic, workload.partitions
    admin = AdminClient({"bootstrap.servers": kafka})
    if topic in admin.list_topics(timeout=30).topics:
        consumer = Consumer({"bootstrap.servers": kafka, "group.id": "speed"})
        places = [TopicPartition(topic, number) for number in range(partitions)]
        there = sum(consumer.get_watermark_offsets(place, timeout=30)[1] for place in places)
        consumer.close()
        if there == workload.events + partitions:
            return topic
        raise SystemExit(f"{topic} has {there:,} messages: delete it, or take another --state")
    new_topic(admin, topic, partitions)
    settings = {"linger.ms": 50, "batch.size": 1_000_000, "compression.type": "lz4"}
    producer = Producer({"bootstrap.servers": kafka, **settings})
    print(f"filling {topic} …", file=sys.stderr)
    for partition, value in workload.messages():
        put(producer, topic, partition, value)
    if left := producer.flush(60):
        raise SystemExit(f"{left} messages were not taken by Kafka")
    return topic


def new_topic(admin: AdminClient, topic: str, partitions: int) -> None:
    unlimited = {"retention.ms": "-1"}  # the events are of another year
    admin.create_topics([NewTopic(topic, partitions, 1, config=unlimited)])[topic].result(30)


def put(producer: Producer, topic: str, partition: int, value: bytes) -> None:
    """Produces a message, when there is room for it."""
    while True:
        try:
            producer.produce(topic, value, partition=partition)
            return
        except BufferError:
            producer.poll(0.1)


def warm(elasticsearch: str) -> None:
    """Has Elasticsearch's virtual machine compile what bulks take, or the first system would pay for it."""
    elastic = Elasticsearch(elasticsearch, request_timeout=60)
    documents = [
        {"_index": "speed-warm", "_id": n, "city": CITIES[n % 20], "n": n} for n in range(50_000)
    ]
    helpers.bulk(elastic, documents, chunk_size=500)
    elastic.indices.delete(index="speed-warm")


def measure(
    system: System,
    place: Place,
    python: Path,
    workload: Workload,
    pids: Iterable[int],
    *,
    wanted: Mapping[str, Mapping[str, Any]] | None = None,
    metrics: int = 1,
    silence: float = 30,
) -> Run:
    """Starts a system, waits until its documents have all events, and stops it.

    Each document is compared with those that are ``wanted``; without, the events that each of the job's
    ``metrics`` counted are added up, and what is missing or too much is what is wrong.
    """
    place = replace(place, span=span(workload))
    with running(system, place, python) as (rest, elastic, process, log):
        began = time.monotonic()
        with Watch(process.pid, pids) as watch:
            all_counted = workload.events * metrics
            until = followed(elastic, place.index, all_counted, process, silence)
        stop(process)
        if until is None or not (system.replays or rest.calls):
            print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            first = until = time.monotonic()
        else:
            first = began if system.replays else rest.first_call
    elapsed, cores = until - first, os.cpu_count() or 1
    if wanted is None:
        bad, documents = abs(counted(elastic, place.index) - all_counted), all_counted
    else:
        bad, documents = wrong(elastic, place.index, wanted), len(wanted)

    def meanwhile(what: Callable[[Look], float]) -> float:
        return watch.at(until, what) - watch.at(first, what)

    return Run(
        system=system.name,
        events=workload.events,
        seconds=elapsed,
        started=first - began,
        cpu=meanwhile(lambda look: look.cpu),
        peak=max(look.resident for look in watch.looks if look.at <= until) / 2**20,
        calls=rest.calls,
        wrong=bad,
        documents=documents,
        others=meanwhile(lambda look: look.others) / max(elapsed * cores, 1e-9),
    )


@contextmanager
def running(
    system: System, place: Place, python: Path
) -> Iterator[tuple[RestService, Elasticsearch, "subprocess.Popen[bytes]", Path]]:
    """A system at work, with the service that it asks, its Elasticsearch and its log; afterwards it has ended."""
    elastic = Elasticsearch(place.elasticsearch, request_timeout=60)
    texts = {name: {"type": "keyword"} for name in KEYS[1:]}
    numbers = {name: {"type": "long"} for name in ("window", "n", "total", "most")}
    if system.script:
        elastic.indices.create(index=place.index, mappings={"properties": texts | numbers})
    with tempfile.TemporaryDirectory(prefix="velocity-speed-run-") as folder, RestService() as rest:
        place = replace(place, rest=rest.url, folder=Path(folder))
        if system.replays:
            job = Path(folder, "replay.yaml")
            job.write_text(place.job.read_text() + '\narchive: {path: "${ARCHIVE}"}\n')
            place = replace(place, job=job)
        log = Path(folder, "log")
        variables = environ(system.stem) | place.environment() | {"TMPDIR": folder}
        if not system.script:
            velocity = Path(sys.executable).with_name("velocity")
            command = [str(velocity), "setup", str(place.job)]
            subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
        with log.open("wb") as out:
            process = subprocess.Popen(
                system.command(place, python),
                env=variables,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            yield rest, elastic, process, log
        finally:
            stop(process)


def followed(
    elastic: Elasticsearch,
    index: str,
    events: int,
    process: subprocess.Popen[bytes],
    silence: float,
) -> float | None:
    """When the last document changed; None if none came."""
    there, changed, until, looked = 0, time.monotonic(), None, False
    while True:
        now = time.monotonic()
        # A refresh for each look would take much of a core from what is measured.
        if (written := writes(elastic, index)) != there:
            there, changed, until, looked = written, now, now, False
        elif until and not looked and now - changed > 1:
            if counted(elastic, index) == events:
                return until
            looked = True
        # Until the first document a system may take its time: it is starting.
        patience = silence if until else max(silence, 180)
        if now - changed > patience or (process.poll() is not None and now - changed > 5):
            return until
        time.sleep(max(0.0, now + 0.25 - time.monotonic()))


def writes(elastic: Elasticsearch, index: str) -> int:
    """How often a document was written."""
    if not elastic.indices.exists(index=index):
        return 0
    found = elastic.indices.stats(index=index, metric="indexing", level="indices")
    return sum(i["primaries"]["indexing"]["index_total"] for i in found["indices"].values())


def counted(elastic: Elasticsearch, index: str) -> int:
    """How many events the documents have, those of the last window aside."""
    if not elastic.indices.exists(index=index):
        return 0
    elastic.indices.refresh(index=index)
    names = ("domain", "event_type", "group")
    ends = [{"term": {f"{of}{name}": "end"}} for name in names for of in ("", "dimensions.")]
    found = elastic.search(
        index=index,
        size=0,
        query={"bool": {"must_not": ends}},
        aggs={"n": {"sum": {"field": "n"}}, "values": {"sum": {"field": "values.n"}}},
    )["aggregations"]
    return int(found["n"]["value"] + found["values"]["value"])


def wrong(elastic: Elasticsearch, index: str, wanted: Mapping[str, Mapping[str, Any]]) -> int:
    """How many documents are not as they must be, whatever ids the system gave them."""
    expected = {tuple(d[k] for k in KEYS): (d["n"], d["total"], d["most"]) for d in wanted.values()}
    found: dict[tuple[Any, ...], tuple[int, int, int]] = {}
    twice = 0
    if elastic.indices.exists(index=index):
        elastic.indices.refresh(index=index)
        for hit in helpers.scan(elastic, index=index, size=5_000):
            document = hit["_source"]
            if "dimensions" in document:  # Velocity's: docs/documents.md
                window = {"window": to_millis(document["window_start"])}
                document = document["dimensions"] | document["values"] | window
            if document["domain"] == "end":
                continue
            key = tuple(document[name] for name in KEYS)
            twice += key in found
            found[key] = (document["n"], document["total"], document["most"])
    differing = sum(found.get(key) != value for key, value in expected.items())
    return differing + twice + len(found.keys() - expected.keys())


def to_millis(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C and SIGTERM do, and then for good, with all that it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
