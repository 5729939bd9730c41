"""Velocity beside its peers and beside the least that one Python process can take: one workload, one table.

    python benchmarks/speed
    python benchmarks/speed --systems floor,flink --events 1000000 --runs 3

It starts a Kafka and an Elasticsearch of its own (Java and Maven are needed), fills a topic, has each system
read it from its beginning and compares the documents with a plain recomputation: ``workload.py`` says what
all are given, ``systems/`` how each does it, in an environment of its own that is made when first
wanted.

The clock runs from a system's first call of the REST service, so that what starting takes is not in it, to
the last document that changed. In that time the processors' work for the system is counted, its workers and
virtual machines too, that of Kafka, Elasticsearch and of the REST service not. A run is void and
is repeated once if meanwhile anything else used more than 5 % of the machine. A system that loses events is
told by its wrong documents: it ends when none has changed for ``--silence`` seconds.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from elasticsearch import Elasticsearch, helpers
from environments import environ, environment
from machine import Watch
from report import Run, chart, ratios, table, worse
from rest import RestService
from systems import SYSTEMS, Place, System
from workload import CITIES, PARTITIONS, Workload

from velocity.runners.stack_state import read_state

KEYS = ("window", "domain", "event_type", "city")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="names, with commas between")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--size", type=int, default=218, help="bytes of an event")
    parser.add_argument("--runs", type=int, default=1, help="of each system; the rounds alternate")
    parser.add_argument("--workers", type=int, default=1, help="Python processes of a system")
    parser.add_argument(
        "--silence", type=float, default=30, help="seconds after which it has ended"
    )
    parser.add_argument("--state", type=Path, help="folder of the servers, kept; else a new one")
    parser.add_argument("--json", type=Path, help="file for what was measured")
    parser.add_argument("--chart", type=Path, help="SVG file")
    parser.add_argument(
        "--guard",
        type=Path,
        help="file of ratios to the floor: warns of worse ones, takes new systems",
    )
    given = parser.parse_args()
    names = given.systems.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"--systems: no {unknown[0]}; there are: {', '.join(SYSTEMS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped, as by Ctrl-C
    pythons = {name: environment(SYSTEMS[name].stem) for name in names}
    workload = Workload(given.events, given.size)
    runs: list[Run] = []
    with servers(given.state) as (kafka, elasticsearch, pids):
        topic = fill(kafka, workload)
        warm(elasticsearch)
        wanted = workload.documents()
        for number in range(given.runs):
            for name in names:
                for attempt in range(2):
                    print(f"round {number + 1}: {name} …", file=sys.stderr, flush=True)
                    index = f"speed-{name}-{number}-{attempt}-{int(time.time())}"
                    place = Place(kafka, topic, "", elasticsearch, index, Path(), given.workers)
                    run = measure(
                        SYSTEMS[name], place, pythons[name], workload, wanted, pids, given.silence
                    )
                    print(json.dumps(asdict(run) | {"rate": round(run.rate)}), file=sys.stderr)
                    if not run.void:
                        break
                    print(f"void: others used {run.others:.0%} of the machine", file=sys.stderr)
                runs.append(run)
                if given.json:
                    given.json.write_text(json.dumps([asdict(one) for one in runs], indent=1))
    print(table(runs))
    if given.chart:
        given.chart.write_text(chart(runs))
    if given.guard:
        guard(given.guard, runs)
    return 0


def guard(file: Path, runs: list[Run]) -> None:
    now, then = ratios(runs), json.loads(file.read_text()) if file.exists() else {}
    for line in worse(now, then):
        print(f"WARNING: {line} ({file}; delete it there to record anew)", file=sys.stderr)
    if any(run.void for run in runs):
        print("WARNING: the machine was busy with something else", file=sys.stderr)
    elif new := {name: values for name, values in now.items() if name not in then}:
        file.write_text(json.dumps(then | new, indent=1) + "\n")


@contextmanager
def servers(state: Path | None) -> Iterator[tuple[str, str, list[int]]]:
    """A Kafka and an Elasticsearch; their addresses and pids."""
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
        yield str(found.address("kafka")), str(found.address("elasticsearch")), pids
    finally:
        subprocess.run([*velocity, "down"], env=variables, check=False, stdout=sys.stderr)
        if state is None:
            shutil.rmtree(folder, ignore_errors=True)


def fill(kafka: str, workload: Workload) -> str:
    """The topic of the workload, filled unless it is; its name."""
    topic = f"speed-{workload.events}-{workload.size}"
    admin = AdminClient({"bootstrap.servers": kafka})
    if topic in admin.list_topics(timeout=30).topics:
        consumer = Consumer({"bootstrap.servers": kafka, "group.id": "speed"})
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        there = sum(consumer.get_watermark_offsets(place, timeout=30)[1] for place in places)
        consumer.close()
        if there == workload.events + PARTITIONS:
            return topic
        raise SystemExit(f"{topic} has {there:,} messages: delete it, or take another --state")
    unlimited = {"retention.ms": "-1"}  # the events are of another year
    admin.create_topics([NewTopic(topic, PARTITIONS, 1, config=unlimited)])[topic].result(30)
    settings = {"linger.ms": 50, "batch.size": 1_000_000, "compression.type": "lz4"}
    producer = Producer({"bootstrap.servers": kafka, **settings})
    print(f"filling {topic} …", file=sys.stderr)
    for partition, value in workload.messages():
        while True:
            try:
                producer.produce(topic, value, partition=partition)
                break
            except BufferError:
                producer.poll(0.1)
    if left := producer.flush(60):
        raise SystemExit(f"{left} messages were not taken by Kafka")
    return topic


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
    wanted: Mapping[str, Mapping[str, Any]],
    pids: Iterable[int],
    silence: float,
) -> Run:
    elastic = Elasticsearch(place.elasticsearch, request_timeout=60)
    texts = {name: {"type": "keyword"} for name in KEYS[1:]}
    numbers = {name: {"type": "long"} for name in ("window", "n", "total", "most")}
    if system.script:
        elastic.indices.create(index=place.index, mappings={"properties": texts | numbers})
    with tempfile.TemporaryDirectory(prefix="velocity-speed-run-") as folder, RestService() as rest:
        place = Place(**(vars(place) | {"rest": rest.url, "folder": Path(folder)}))
        log = Path(folder, "log")
        variables = environ(system.stem) | place.environment() | {"TMPDIR": folder}
        if not system.script:
            setup = [
                str(Path(sys.executable).with_name("velocity")),
                "setup",
                *system.command(place, python)[2:3],
            ]
            subprocess.run(setup, env=variables, check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        began = time.monotonic()
        with log.open("wb") as out:
            process = subprocess.Popen(
                system.command(place, python),
                env=variables,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            with Watch(process.pid, pids) as watch:
                until = followed(elastic, place.index, workload.events, process, rest, silence)
        finally:
            stop(process)
        if not rest.calls or until is None:
            print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
            first = until = time.monotonic()
        else:
            first = rest.first_call
    elapsed, cores = until - first, os.cpu_count() or 1
    return Run(
        system=system.name,
        events=workload.events,
        seconds=elapsed,
        started=first - began,
        cpu=watch.at(until, lambda look: look.cpu) - watch.at(first, lambda look: look.cpu),
        peak=max(look.resident for look in watch.looks if look.at <= until) / 2**20,
        calls=rest.calls,
        wrong=wrong(elastic, place.index, wanted),
        documents=len(wanted),
        others=(watch.at(until, lambda look: look.others) - watch.at(first, lambda look: look.others))
        / max(elapsed * cores, 1e-9),
    )  # fmt: skip


def followed(
    elastic: Elasticsearch,
    index: str,
    events: int,
    process: subprocess.Popen[bytes],
    rest: RestService,
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
    both = [{"term": {"domain": "end"}}, {"term": {"dimensions.domain": "end"}}]
    found = elastic.search(
        index=index,
        size=0,
        query={"bool": {"must_not": both}},
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


if __name__ == "__main__":
    sys.exit(main())
