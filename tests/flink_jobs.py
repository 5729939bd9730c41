"""Jobs on a Flink cluster of their own: what stack tests share."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.cluster import Cluster, Pace, until
from tests.warm_velocity import warm_velocity
from velocity.io.sqlite import StoreUnusable, read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.domains import DOMAINS
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import ExpectedDocument, differences
from velocity.pipelines.simulator import Scenario, SimulatedMessage, simulate
from velocity.runners.demo import JOB, expected
from velocity.runners.embedded import DirectoryService
from velocity.runners.produce import produce

SEED = 5
EVER = (
    "  - {name: ever, by: [event_type], window: {global: true}, emit: {early: 2s}, "
    "values: {n: count(), least: min(amount)}}\n"
)
"""A metric whose windows only a drain closes."""


@contextmanager
def flink_cluster(
    folder: Path, temporary: Path, environ: Mapping[str, str], *options: str
) -> Iterator[Cluster]:
    """A stack with Kafka and Flink, its state in ``folder``; ``options`` are of ``stack up``."""
    variables = {"VELOCITY_STATE": str(folder), "TMPDIR": str(temporary)}
    with warm_velocity(temporary / "bin") as programs:
        velocity = [str(programs / "velocity")]
        found = Cluster(folder, {**os.environ, **variables, **environ}, velocity)
        try:
            found("stack", "up", "kafka", "flink", *options)
            found.environ["KAFKA"] = found.address("kafka")
            yield found
        finally:
            found("stack", "down")


@contextmanager
def pharmacy_cluster(factory: pytest.TempPathFactory, *options: str) -> Iterator[Cluster]:
    """A stack with Kafka and Flink, and the services that the pharmacy's job asks."""
    folder = factory.mktemp("stack") / "state"
    with DirectoryService(directory(SEED).tables()) as service:
        services = {"PROVIDERS": service.url, "PATIENTS": service.url}
        with flink_cluster(folder, factory.mktemp("temporary"), services, *options) as found:
            yield found


def stored(path: Path) -> dict[str, Any]:
    """What a SQLite file has, which may still be made."""
    try:
        return dict(read_documents(str(path)))
    except (FileNotFoundError, StoreUnusable):
        return {}


def not_final(
    wanted: Mapping[str, ExpectedDocument], found: Mapping[str, Any], *, closed: bool = False
) -> list[str]:
    """What differs from the documents that are wanted, or may still change.

    The metric ``ever`` is of a global window, which stays open until all are ``closed``: by a drain,
    or the end of what is bounded.
    """
    early = [
        f"{id_}: {body['pane']}"
        for id_, body in found.items()
        if (body["pane"] == "early") != (body["metric"] == "ever" and not closed)
    ]
    return [*differences(wanted, found), *early]


def in_time(
    wrong: Callable[[], list[str]],
    seconds: float = 400,
    goes_on: Callable[[], bool] = lambda: True,
) -> list[str]:
    """What is still wrong when nothing is, the time is over, or it does not go on."""
    deadline = time.monotonic() + seconds
    while (left := wrong()) and time.monotonic() < deadline and goes_on():
        time.sleep(1)
    return left


def end_all(cluster: Cluster) -> None:
    """Cancels what runs, and ends workers that stay: one test's fault is not the next one's."""
    for job in cluster.flink.jobs():
        if not job.ended:
            cluster.flink.cancel(job.id)
    try:
        until(lambda: all(job.ended for job in cluster.flink.jobs()) and cluster.workers() == [])
    finally:
        for worker in cluster.workers():
            os.kill(worker, signal.SIGKILL)


class Case:
    """The pharmacy's job, or another, on topics of its own, and what its documents must be."""

    def __init__(
        self, cluster: Cluster, folder: Path, events: int, job: Path = JOB, rate: float = 100
    ) -> None:
        self.cluster = cluster
        self.prefix = folder.name
        self.path = folder / "job.yaml"
        read = load(job).source.kafka.topics
        text = job.read_text().replace("idle_after: 60s", "idle_after: 5s")
        for name in [*read, "velocity.alerts"]:
            text = text.replace(name, f"{self.prefix}.{name}")
        if job == JOB:
            text = text.replace("metrics:\n", f"metrics:\n{EVER}", 1)
        self.path.write_text(text)
        self.store, self.dead = folder / "documents.db", folder / "dead-letters"
        domains = tuple(name for name, domain in DOMAINS.items() if domain.topic in read)
        self.scenario = Scenario(seed=SEED, events=events, rate=rate, domains=domains)
        made = {f"{self.prefix}.{name}": 4 for name in read}
        client = AdminClient({"bootstrap.servers": self.kafka})
        for created in client.create_topics([NewTopic(*one, 1) for one in made.items()]).values():
            created.result()

        def partitions(topic: str) -> int:
            return len(client.list_topics(topic, 30).topics[topic].partitions)

        until(lambda: {topic: partitions(topic) for topic in made} == made)
        self.producer: threading.Thread | None = None
        self.pace = Pace()
        self.sent = 0

    @property
    def kafka(self) -> str:
        return self.cluster.address("kafka")

    def run(self, *options: str, code: int = 0) -> str:
        """The id of the job, which runs on Flink."""
        return self.cluster(*self.command(*options), code=code).strip()

    def command(self, *options: str) -> list[str]:
        """What ``velocity`` is given to run the job."""
        sinks = ("--sqlite", str(self.store), "--dead-letters", str(self.dead))
        return ["run", str(self.path), "--runner", "flink", "--detach", *sinks, *options]

    def committed(self, group: str) -> int:
        """How many messages the group was told of, over all partitions."""
        consumer = Consumer({"bootstrap.servers": self.kafka, "group.id": group})
        try:
            where = [TopicPartition(f"{self.prefix}.pharmacy.events", n) for n in range(4)]
            return sum(max(found.offset, 0) for found in consumer.committed(where, 30))
        finally:
            consumer.close()

    def produce(self, rate: float = 1_000) -> None:
        """Begins to send events, so many a second, until it is ended or the rest wanted at once.

        No partition must fall silent before: its watermark would follow the clock.
        """

        def send() -> None:
            self.sent = produce(
                self.scenario,
                self.kafka,
                topics_prefix=f"{self.prefix}.",
                rate=rate,
                clock=self.pace.clock,
                sleep=self.pace.sleep,
            ).messages

        # A test that fails leaves it: nobody waits for what it still has to send.
        self.producer = threading.Thread(target=send, daemon=True)
        self.producer.start()

    def messages(self) -> Iterator[SimulatedMessage]:
        """What was sent, once sending has ended."""
        return islice(simulate(self.scenario), self.sent)

    @property
    def producing(self) -> bool:
        return self.producer is not None and self.producer.is_alive()

    def documents(self) -> dict[str, Any]:
        return stored(self.store)

    def stop_producing(self) -> None:
        """Sends no more, unless it was released to send all: then it returns when all is sent."""
        self.pace.end()
        assert self.producer is not None
        self.producer.join()
        assert self.sent > 0

    def await_all(self, seconds: float = 400, *, closed: bool = False) -> None:
        """Returns when the documents of what was sent are final, and equal the recomputation.

        Sending ends here, unless it was released to send all.
        """
        self.stop_producing()
        wanted = expected(load(self.path), self.messages(), directory(SEED))
        left = in_time(lambda: not_final(wanted, self.documents(), closed=closed), seconds)
        assert left[:5] == []


def values_of(kafka: str, topic: str) -> list[bytes]:
    """The values of all messages that a topic holds."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "test"})
    values: list[bytes] = []
    try:
        for number in consumer.list_topics(topic, 30).topics[topic].partitions:
            end = consumer.get_watermark_offsets(TopicPartition(topic, number), 30)[1]
            consumer.assign([TopicPartition(topic, number, 0)])
            left = end
            while left:
                found = consumer.consume(min(left, 1000), 1)
                values += [message.value() or b"" for message in found]
                left -= len(found)
        return values
    finally:
        consumer.close()
