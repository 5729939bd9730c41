"""The Kafka source on a real Flink: nothing is late or lost, however uneven or new a partition is."""

import os
import re
import signal
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster import Cluster, until
from tests.flink_jobs import SEED, Case
from tests.test_alert_rules import expressions, names
from velocity.io.records import Cause
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import differences
from velocity.pipelines.simulator import Scenario, SimulatedMessage, simulate
from velocity.runners.demo import expected
from velocity.runners.signals import exposed

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("no_job_is_left")]


def committed(case: Case, group: str, topic: str = "") -> list[int]:
    """How many messages a group was told of, by partition."""
    topic = topic or f"{case.prefix}.pharmacy.events"
    consumer = Consumer({"bootstrap.servers": case.kafka, "group.id": group})
    try:
        partitions = consumer.list_topics(topic, 30).topics[topic].partitions
        where = [TopicPartition(topic, number) for number in sorted(partitions)]
        return [max(found.offset, 0) for found in consumer.committed(where, 30)]
    finally:
        consumer.close()


class Live:
    """A producer of events as they happen, in turn to all partitions that there are just now."""

    def __init__(self, kafka: str, where: list[tuple[str, int]]) -> None:
        self.where = where
        self.sent: list[SimulatedMessage] = []
        self._kafka = kafka
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._produce)
        self._thread.start()

    def _produce(self) -> None:
        settings = {"bootstrap.servers": self._kafka, "topic.metadata.refresh.interval.ms": 500}
        producer = Producer(settings)
        scenario = Scenario(
            seed=SEED,
            events=1_000_000,
            start=datetime.now(UTC),
            domains=("pharmacy_delivery",),
        )
        for number, message in enumerate(simulate(scenario)):
            if self._ended.wait(max(message.timestamp_ms / 1000 - time.time(), 0)):
                break
            self._send(producer, message, *self.where[number % len(self.where)])
            self.sent.append(message)
        assert producer.flush(60) == 0

    def _send(
        self, producer: Producer, message: SimulatedMessage, topic: str, partition: int
    ) -> None:
        at = message.timestamp_ms
        while True:
            producer.poll(0)
            try:
                producer.produce(topic, message.value, message.key, partition, timestamp=at)
                return
            except KafkaException as error:  # it has not heard of the partition yet
                if error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                    raise
                producer.poll(0.1)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def test_partitions_and_topics_that_come_while_a_job_runs_are_read_whatever_is_killed_then(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 0)
    topic = f"{case.prefix}.pharmacy.events"
    later = f"{case.prefix}.pharmacy.more"
    text = case.path.read_text().replace("{bootstrap", "{group: grown, bootstrap")
    # what is late is lost: the watermark has to wait for partitions that nobody has found yet
    text = re.sub(r"lateness: \w+", "lateness: 0s", text)
    case.path.write_text(text.replace(f"[{topic}]", f"['^{case.prefix}[.]pharmacy[.].*']"))
    job = case.run("--state-backend", "rocksdb", "--checkpoint-interval", "5s")
    live = Live(case.kafka, [(topic, partition) for partition in range(4)])
    try:
        until(lambda: all(committed(case, "grown")))
        client = AdminClient({"bootstrap.servers": case.kafka})
        made = client.create_partitions([NewPartitions(topic, 6)])
        made |= client.create_topics([NewTopic(later, 2, 1)])
        for done in made.values():
            done.result()
        live.where = [*((topic, partition) for partition in range(6)), (later, 0), (later, 1)]
        until(lambda: len(committed(case, "grown")) == 6)
        until(lambda: all([*committed(case, "grown"), *committed(case, "grown", later)]))
        [worker] = cluster.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: cluster.flink.restarts(job) >= 1)
        until(lambda: cluster.flink.find(job).running)
        complete = cluster.flink.checkpoints(job).completed
        until(lambda: cluster.flink.checkpoints(job).completed > complete)
    finally:
        live.end()
    until(
        lambda: sum([*committed(case, "grown"), *committed(case, "grown", later)]) == len(live.sent)
    )
    cluster("stop", job, "--drain")
    wanted = expected(load(case.path), live.sent, directory(SEED))
    assert list(differences(wanted, case.documents()))[:5] == []


def scraped(cluster: Cluster, *names: str, job: str | None = None) -> dict[str, list[float]]:
    """The values of all series that Prometheus would find at these addresses, by their names; of one
    job's alone, if it is given."""
    found: dict[str, list[float]] = defaultdict(list)
    for name in names:
        text = urllib3.request("GET", cluster.address(name)).data.decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if job is None or sample.labels.get("job_name") == job:
                    found[sample.name].append(sample.value)
    return found


FAULTS = {
    "duplicates_dropped",
    "enrich_wait_ms",
    "offsets_lost",
    "sink_retries",
    "transactions_late",
}
"""What is counted once there is some, of which this test has none; and so are dead letters, of which
it has several causes."""


def lacking(cluster: Cluster) -> set[str]:
    """What the operations dashboard and the alert rules read, and Flink's reporter does not tell."""
    told = scraped(cluster, "jobmanager-metrics", "taskmanager-1-metrics")
    causes = {exposed(f"dead_letters_{cause}") for cause in Cause}
    assert len(causes & told.keys()) >= 3
    read = {name for expression in expressions() for name in names(expression)}
    read -= causes | {exposed(name) for name in FAULTS}
    return {name for name in read if not any(re.fullmatch(name, other) for other in told)}


def test_a_week_of_four_uneven_partitions_gives_what_reading_it_in_order_gives(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 0)
    topic = f"{case.prefix}.pharmacy.events"
    job = yaml.safe_load(case.path.read_text())
    job["source"]["idle_after"] = "1h"
    rush, hourly = "pharmacy_rush", {"fixed": "1h"}
    job["metrics"] = [m for m in job["metrics"] if m["name"] in (rush, "orders_by_city")]
    for metric in job["metrics"]:
        metric["emit"] = {"lateness": "0s"}  # a window that closes early loses events
        metric["window"] = metric["window"] if metric["name"] == rush else hourly
    case.path.write_text(yaml.safe_dump(job))

    week = timedelta(days=7).total_seconds()
    scenario = Scenario(
        seed=SEED, events=40_000, rate=40_000 / week, domains=("pharmacy_delivery",)
    )
    messages = list(simulate(scenario))
    assert messages[-1].timestamp_ms - messages[0].timestamp_ms > 6 * 86_400_000
    producer = Producer({"bootstrap.servers": case.kafka})
    uneven = [0] * 25 + [1] * 5 + [2] * 2 + [3]
    where = [partition for _, partition in zip(messages, cycle(uneven), strict=False)]
    for message, partition in zip(messages, where, strict=True):
        at = message.timestamp_ms
        producer.produce(topic, message.value, message.key, partition, timestamp=at)
        producer.poll(0)
    assert producer.flush(60) == 0

    running = case.run("--checkpoint-interval", "2s")
    until(lambda: cluster.counter(running, "read_messages") == len(messages))
    most, shown = where.count(0), topic.replace(".", "_")  # as Flink names it
    until(lambda: cluster.counter(running, f"messages_{shown}_0") == most)
    until(lambda: cluster.counter(running, f"watermark_ms_{shown}_3") > 0)
    assert cluster.counter(running, f"bytes_{shown}_0") > 100 * most
    assert cluster.counter(running, f"delay_ms_{shown}_0") > 86_400_000
    until(lambda: cluster.counter(running, "document_delays") > 0)
    until(lambda: lacking(cluster) == set(), 60)
    told = scraped(cluster, "workers-metrics", job=cluster.flink.find(running).name)
    assert sum(told["velocity_read_messages_total"]) == len(messages)
    assert sum(told["velocity_document_delays_seconds_count"]) > 0
    cluster("stop", running, "--drain")
    wanted = expected(load(case.path), messages, directory(SEED))
    assert list(differences(wanted, case.documents()))[:5] == []


def read_by_subtasks(cluster: Cluster, job: str, name: str) -> list[int]:
    """How many elements each subtask got of the one vertex with such a name."""

    def told(path: str) -> Any:
        return urllib3.request("GET", f"{cluster.flink.url}/jobs/{job}{path}").json()

    [vertex] = [v["id"] for v in told("")["vertices"] if re.search(name, v["name"])]
    subtasks = told(f"/vertices/{vertex}")["subtasks"]
    return [subtask["metrics"]["read-records"] for subtask in subtasks]


def test_subtasks_have_as_many_partitions_and_shards_of_metrics_as_the_others(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 20_000)
    job = yaml.safe_load(case.path.read_text())
    metric = {"name": "ever", "by": ["event_id"], "values": {"n": "count()"}}
    job["metrics"] = [metric | {"window": {"global": True}, "emit": {"early": "1s"}}]
    job["enrich"] = []
    case.path.write_text(yaml.safe_dump(job))
    running = case.run("--parallelism", "2")
    case.pace.release()
    case.produce()
    case.await_all(120)
    until(lambda: sum(read_by_subtasks(cluster, running, "/Group$")) > 128)  # told after a while
    assert read_by_subtasks(cluster, running, r"\{Read") == [2, 2]
    # Of a bundle of many keys each shard has some.
    first, second = read_by_subtasks(cluster, running, "/Group$")
    assert abs(first - second) < 0.03 * (first + second)
