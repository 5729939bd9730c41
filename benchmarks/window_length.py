"""What a window's length costs on the local stack's Flink: a day against a minute, event by event.

    velocity stack up kafka flink
    python benchmarks/window_length.py --events 2000000

Events of a hundred cities are in Kafka before any job begins, a day of event time of them. Two jobs read
them all, one after the other, without end and with early panes every 10 s: one counts in windows of
a minute, the other of a day. They differ in nothing else. Printed are the processors' time of the
TaskManager and the Python workers for an event, between the first documents and the last, and of
each checkpoint the size. All of a metric's documents must count the events that were sent. With
``--minutes`` the events are of so much of the day alone: the minute then has as few windows.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from velocity.io.sqlite import StoreUnusable, read_documents
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import parse
from velocity.runners.flink import FlinkOptions
from velocity.runners.flink_submit import Submitted, submit
from velocity.runners.stack_paths import state_folder
from velocity.runners.stack_server import members
from velocity.runners.stack_state import ServerRecord, read_state

T0 = 1_767_571_200_000  # 2026-01-05T00:00:00Z
PARTITIONS, CITIES = 4, 100
TICK = os.sysconf("SC_CLK_TCK")
JOB = """
job: window_length
source:
  kafka: {{bootstrap_servers: "{kafka}", topics: [{topic}]}}
  event_time: at
  disorder: 5s
  idle_after: 1h
fields: {{at: timestamp_ms, city: string, amount: int64, patient: string}}
metrics:
  - name: orders
    by: [city]
    window: {{fixed: {window}}}
    emit: {{early: {early}}}
    values: {values}
sinks: {{sqlite: {{path: "{folder}/documents.db"}}}}
dead_letters: {{parquet: "{folder}/dead"}}
"""
VALUES = {
    "plain": "{n: count(), total: sum(amount), most: max(amount), latest: last(amount)}",
    "sketches": '{n: count(), total: sum(amount), p95: "percentile(amount, 95)", '
    "patients: distinct(patient)}",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--minutes", type=int, default=24 * 60, help="of event time")
    parser.add_argument("--early", default="10s")
    parser.add_argument("--windows", nargs="+", default=["1m", "1d"])
    parser.add_argument("--values", choices=list(VALUES), default="plain")
    given = parser.parse_args()
    stack = read_state(state_folder())
    kafka = stack.address("kafka")
    if not kafka or "flink" not in stack.components:
        print("no stack is up: velocity stack up kafka flink", file=sys.stderr)
        return 1
    servers = {s.name: s for s in stack.components["flink"].servers}
    topic = f"window-length-{int(time.time())}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    send(kafka, topic, given.events, given.minutes)
    found = [
        measured(given, window, kafka, topic, servers) | {"window": window}
        for window in given.windows
    ]
    for one in found:
        print(json.dumps(one))
    ratio = found[-1]["cpu_us_per_event"] / found[0]["cpu_us_per_event"]
    print(f"{given.windows[-1]} costs {ratio:.2f} times {given.windows[0]}")
    admin.delete_topics([topic])
    return 0 if all(one["counted"] == given.events for one in found) else 1


def send(kafka: str, topic: str, events: int, minutes: int) -> None:
    """Events in the order of their times, spread over the partitions in turn."""
    rng = np.random.default_rng(1)
    times = T0 + np.sort(rng.integers(0, minutes * 60_000, events))
    cities, amounts = rng.integers(0, CITIES, events), rng.integers(1, 1_000_000, events)
    patients = rng.integers(0, 20_000, events)
    producer = Producer({"bootstrap.servers": kafka, "queue.buffering.max.messages": 1_000_000})
    columns = (times.tolist(), cities.tolist(), amounts.tolist(), patients.tolist())
    for i, (at, city, amount, patient) in enumerate(zip(*columns, strict=True)):
        value = f'{{"at":{at},"city":"c{city}","amount":{amount},"patient":"p{patient}"}}'
        producer.produce(topic, value, partition=i % PARTITIONS, timestamp=at)
        if i % 10_000 == 0:
            producer.poll(0)
            while len(producer) > 500_000:
                producer.poll(0.1)
    producer.flush()


def measured(
    given: Any, window: str, kafka: str, topic: str, servers: dict[str, ServerRecord]
) -> dict[str, Any]:
    """Of one job, from its first documents until all events are in documents."""
    folder = tempfile.mkdtemp(prefix="velocity-window-")
    text = JOB.format(
        kafka=kafka,
        topic=topic,
        window=window,
        early=given.early,
        folder=folder,
        values=VALUES[given.values],
    )
    graph = Graph(parse(text.encode(), "job.yaml").job)
    running = submit(graph, FlinkOptions(name=f"{topic}-{window}"), [])
    sizes: list[int] = []
    try:
        wait(lambda: counter(running, "decoded_rows") > 0)
        began, cpu, read = time.monotonic(), used(servers), counter(running, "decoded_rows")

        def done() -> bool:
            sizes.append(running.flink.checkpoints(running.id).last_size)
            return counter(running, "decoded_rows") >= given.events

        wait(done)
        seconds, spent = time.monotonic() - began, used(servers) - cpu
        wait(lambda: counted(folder) == given.events, 120)
        shown = len(read_documents(f"{folder}/documents.db"))
        written = counter(running, "documents_written")
    finally:
        running.flink.cancel(running.id)
    wait(lambda: all(job.ended for job in running.flink.jobs()))
    events = given.events - read
    return {
        "counted": counted(folder),
        "events_per_second": round(events / seconds),
        "cpu_us_per_event": round(spent / events * 1e6, 2),
        "documents": shown,
        "documents_written": written,
        "checkpoint_kib": [round(size / 1024) for size in sizes[:: max(1, len(sizes) // 10)]],
        "load": os.getloadavg()[0],
    }


def counter(job: Submitted, name: str) -> int:
    vertices = job.flink.vertices(job.id)
    return job.flink.counters(job.id, vertices, "velocity").get(name, 0)


def counted(folder: str) -> int:
    try:
        found = read_documents(f"{folder}/documents.db")
    except (FileNotFoundError, StoreUnusable):  # it is being made
        return 0
    return sum(body["events"] for body in found.values())


def used(servers: dict[str, ServerRecord]) -> float:
    """Seconds of processors' time of the TaskManager and the workers, since they began."""
    pids = [servers["taskmanager-1"].process.pid]
    pids += [p.id.pid for p in members(servers["workers"], str(state_folder()))]
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def wait(reached: Any, seconds: float = 1200) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError("the job does not come to its end")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
