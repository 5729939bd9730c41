"""Each job of ``pipelines/`` on the real servers: every runner writes the same documents.

Documents in Elasticsearch, written by an unbounded run on Flink, in SQLite, written by the
DirectRunner and by Prism from the same topics, and the plain recomputation are equal one by one.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from elasticsearch import Elasticsearch, helpers

from tests.warm_velocity import warm_velocity
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import ExpectedDocument, differences
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import expected as recomputed
from velocity.runners.embedded import DirectoryService
from velocity.runners.produce import produce
from velocity.runners.stack_paths import cache_folder
from velocity.runners.stack_state import read_state

pytestmark = pytest.mark.stack

FOLDER = Path(__file__).parent.parent / "pipelines"
JOBS = [path for path in sorted(FOLDER.glob("*.yaml")) if load(path).metrics]
SCENARIO = Scenario(seed=11, events=10_000)
PRISM = "github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0"


@dataclass
class Servers:
    """Real Kafka, Elasticsearch and Flink, the REST service of the jobs, and ``velocity``."""

    environ: dict[str, str]
    velocity: Path

    def __call__(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            [self.velocity, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=self.environ,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("stack") / "state"
    with (
        warm_velocity(tmp_path_factory.mktemp("warm") / "bin") as programs,
        DirectoryService(directory(SCENARIO.seed).tables()) as service,
    ):
        environ = {
            **os.environ,
            "VELOCITY_STATE": str(folder),
            "PROVIDERS": service.url,
            "PATIENTS": service.url,
        }
        found = Servers(environ, programs / "velocity")
        try:
            found("stack", "up")
            for variable in ("KAFKA", "ELASTICSEARCH"):
                environ[variable] = str(read_state(folder).address(variable.lower()))
            yield found
        finally:
            found("stack", "down")


@pytest.fixture(scope="module", params=JOBS, ids=lambda path: path.stem)
def job(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A job whose topics, of its own, hold the scenario; windows close soon after the last event."""
    name = request.param.stem
    path: Path = tmp_path_factory.mktemp(name) / f"{name}.yaml"
    text = request.param.read_text().replace("idle_after: 60s", "idle_after: 5s")
    topics = load(request.param).source.kafka.topics
    for topic in topics:
        text = text.replace(topic, f"{name}.{topic}")
    path.write_text(text)
    new = [NewTopic(f"{name}.{topic}", 4, 1) for topic in topics]
    client = AdminClient({"bootstrap.servers": servers.environ["KAFKA"]})
    for made in client.create_topics(new).values():
        made.result()
    produce(SCENARIO, servers.environ["KAFKA"], topics_prefix=f"{name}.")
    return path


@pytest.fixture(scope="module")
def expected(job: Path) -> Mapping[str, ExpectedDocument]:
    topics = {topic.removeprefix(f"{job.stem}.") for topic in load(job).source.kafka.topics}
    messages = (message for message in simulate(SCENARIO) if message.topic in topics)
    documents = recomputed(load(job), messages, directory(SCENARIO.seed))
    assert len(documents) > 100
    return documents


def prism() -> str:
    """The program's path; installed into the cache where Go can."""
    folder = cache_folder() / "prism-2.77.0"
    if found := shutil.which("prism", path=f"{folder}{os.pathsep}{os.environ['PATH']}"):
        return found
    if not shutil.which("go"):
        pytest.skip("no prism, and no Go to install it with")
    subprocess.run(["go", "install", PRISM], check=True, env={**os.environ, "GOBIN": str(folder)})
    return str(folder / "prism")


@pytest.mark.parametrize("runner", ["direct", "prism"])
def test_bounded_runs_equal_the_recomputation(
    runner: str,
    servers: Servers,
    job: Path,
    expected: Mapping[str, ExpectedDocument],
    tmp_path: Path,
) -> None:
    if runner == "prism":
        servers.environ["VELOCITY_PRISM"] = prism()
    sinks = ("--sqlite", tmp_path / "documents.db", "--dead-letters", tmp_path / "dead")
    servers("run", job, "--runner", runner, "--until", "now", *sinks)
    found = read_documents(str(tmp_path / "documents.db"))
    assert list(differences(expected, found)) == []
    assert {document["pane"] for document in found.values()} == {"on_time"}


def test_an_unbounded_run_on_flink_equals_the_recomputation(
    servers: Servers, job: Path, expected: Mapping[str, ExpectedDocument]
) -> None:
    id_ = servers("run", job, "--runner", "flink", "--detach")
    deadline = time.monotonic() + 180
    while (wrong := unlike(servers, job, expected)) and time.monotonic() < deadline:
        time.sleep(2)
    servers("stop", id_, "--cancel")
    assert wrong[:5] == []


def unlike(servers: Servers, job: Path, expected: Mapping[str, ExpectedDocument]) -> list[str]:
    """What Elasticsearch's documents of the job lack to be final and right."""
    pattern = load(job).sinks.elasticsearch
    assert pattern is not None
    index = pattern.index.split("{")[0] + "*"
    found: dict[str, Any] = {}
    with Elasticsearch(servers.environ["ELASTICSEARCH"]) as client:
        client.indices.refresh(index=index)
        for hit in helpers.scan(client, index=index, query={"query": {"match_all": {}}}):
            if hit["_source"]["job"] == job.stem:
                found[hit["_id"]] = hit["_source"]
    early = [f"{id_}: early" for id_, body in found.items() if body["pane"] == "early"]
    return [*differences(expected, found), *early]
