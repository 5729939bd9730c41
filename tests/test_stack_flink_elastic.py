"""Every job in pipelines/ on a real Flink into a real Elasticsearch, which may die on the way."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from elasticsearch import Elasticsearch, NotFoundError, TransportError, helpers

from tests.cluster import Cluster, Pace, until
from velocity.io.elastic_connection import Connection
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.domains import DOMAINS
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import load, variables
from velocity.pipelines.produce import produce
from velocity.pipelines.recompute import ExpectedDocument, differences
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import JOB, expected
from velocity.runners.embedded import DirectoryService
from velocity.runners.stack_state import read_state

pytestmark = pytest.mark.stack

SEED = 7
JOBS = sorted(JOB.parent.glob("*.yaml"))
SERVERS = ("KAFKA", "ELASTICSEARCH")
"""Variables that stand for servers of the stack; every other one is a REST service of ours."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("stack") / "state"
    with DirectoryService(directory(SEED).tables()) as service:
        environ = {**os.environ, "VELOCITY_STATE": str(folder)}
        environ |= {n: service.url for job in JOBS for n in variables(load(job))}
        found = Cluster(folder, environ)
        try:
            found("stack", "up")
            environ |= {name: found.address(name.lower()) for name in SERVERS}
            yield found
        finally:
            found("stack", "down")


@pytest.fixture(autouse=True)
def no_job_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    for job in cluster.flink.jobs():
        if not job.ended:
            cluster.flink.cancel(job.id)
    try:
        until(lambda: all(job.ended for job in cluster.flink.jobs()) and cluster.workers() == [])
    finally:
        for worker in cluster.workers():  # one test's fault is not the next one's
            os.kill(worker, signal.SIGKILL)


class Case:
    """A job on topics with a prefix of their own, and what its documents must be."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        path: Path,
        scenario: Scenario,
        prefix: str,
        **sink: str,
    ) -> None:
        self.cluster, self.folder, self.scenario, self.prefix = cluster, folder, scenario, prefix
        self.path = folder / path.name
        text = path.read_text("utf-8")
        for topic in load(path).source.kafka.topics:
            text = re.sub(rf"\b{re.escape(topic)}\b", f"{prefix}{topic}", text)
        # A name of its own keeps the documents of two tests apart.
        name = f"{load(path).job}_{prefix.strip('.')}"
        text = re.sub(r"(?m)^job: .*$", f"job: {name}", text)
        text = re.sub(r"idle_after: \w+", "idle_after: 5s", text)
        more = "".join(f", {key}: {value}" for key, value in sink.items())
        text = re.sub(r'index: "[^"]*"', f'index: "{name}-{{window_start:%Y.%m}}"{more}', text)
        self.path.write_text(text, "utf-8")
        self.job: Job = load(self.path)
        self.topics = self.job.source.kafka.topics
        self.pace = Pace()
        self.producer = threading.Thread(target=self._produce)

    def _produce(self) -> None:
        produce(
            self.scenario,
            self.cluster.environ["KAFKA"],
            topics_prefix=self.prefix,
            rate=1_000,
            clock=self.pace.clock,
            sleep=self.pace.sleep,
        )

    def run(self, *options: str) -> str:
        """What ``velocity run`` prints."""
        dead = self.folder / "dead-letters"
        return self.cluster("run", self.path, "--dead-letters", dead, *options).strip()

    def expected(self) -> dict[str, ExpectedDocument]:
        messages = (m for m in simulate(self.scenario) if f"{self.prefix}{m.topic}" in self.topics)
        return expected(self.job, messages, directory(SEED))

    def documents(self) -> dict[str, Any]:
        """What readers see: by the job's alias."""
        with Connection((self.cluster.environ["ELASTICSEARCH"],)).open() as client:
            return documents(client, f"velocity-{self.job.job}")

    def await_all(self, seconds: float = 400) -> None:
        """Returns when the documents are final, and equal the plain recomputation."""
        wanted = self.expected()
        self.pace.release()
        if self.producer.is_alive():
            self.producer.join()

        def wrong() -> list[str]:
            found = self.documents()
            early = [f"{id_}: early" for id_, body in found.items() if body["pane"] == "early"]
            return [*differences(wanted, found), *early]

        deadline = time.monotonic() + seconds
        while (left := wrong()) and time.monotonic() < deadline:
            time.sleep(2)
        assert left[:5] == []


def documents(client: Elasticsearch, alias: str) -> dict[str, Any]:
    try:
        client.indices.refresh(index=alias)
        hits = helpers.scan(client, {"version": True}, index=alias)
        return {hit["_id"]: {**hit["_source"], "version": hit["_version"]} for hit in hits}
    except (NotFoundError, TransportError):  # it is being made, or started again
        return {}


def same(documents: Mapping[str, Any]) -> dict[str, Any]:
    """What no run may change: not when it was written, nor whether it came in time."""
    told = ("written_at", "pane")
    return {
        id_: {name: value for name, value in body.items() if name not in told}
        for id_, body in documents.items()
    }


def make_topics(cluster: Cluster, prefix: str) -> None:
    client = AdminClient({"bootstrap.servers": cluster.environ["KAFKA"]})
    topics = [NewTopic(f"{prefix}{domain.topic}", 4, 1) for domain in DOMAINS.values()]
    for made in client.create_topics(topics).values():
        made.result()


@pytest.fixture(scope="module")
def history(cluster: Cluster) -> Scenario:
    """What all jobs read, on topics that begin with ``all.``."""
    make_topics(cluster, "all.")
    scenario = Scenario(seed=SEED, events=20_000)
    produce(scenario, cluster.environ["KAFKA"], topics_prefix="all.")
    return scenario


@pytest.mark.parametrize("path", JOBS, ids=[path.stem for path in JOBS])
def test_each_jobs_documents_are_the_same_in_elasticsearch_by_flink_and_in_sqlite_by_the_direct_runner(
    cluster: Cluster, history: Scenario, tmp_path: Path, path: Path
) -> None:
    case = Case(cluster, tmp_path, path, history, "all.")
    case.run("--runner", "flink", "--detach")
    store = tmp_path / "documents.db"
    case.run("--until", "now", "--sqlite", str(store))
    case.await_all()
    assert same(case.documents()) == same(dict(read_documents(str(store))))


def test_elasticsearch_killed_in_mid_run_is_waited_for_and_no_document_is_lost(
    cluster: Cluster, tmp_path: Path
) -> None:
    make_topics(cluster, "killed.")
    scenario = Scenario(seed=SEED, events=300_000)
    case = Case(cluster, tmp_path, JOB, scenario, "killed.", retry_for="5s")
    case.producer.start()
    job = case.run("--runner", "flink", "--detach", "--checkpoint-interval", "5s")
    until(lambda: len(case.documents()) > 50)
    before = len(case.documents())
    [server] = read_state(cluster.folder).components["elasticsearch"].servers
    os.kill(server.process.pid, signal.SIGKILL)
    until(lambda: cluster.flink.restarts(job) >= 1)  # the bundle has failed
    assert case.producer.is_alive()  # it was in mid-run
    cluster("stack", "up", "elasticsearch")
    case.await_all()
    assert len(case.documents()) > before
