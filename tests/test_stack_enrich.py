"""A service that fails under a real Flink and Kafka: the job waits for it, and loses nothing."""

import json
import os
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.cluster import Cluster, until
from tests.flink_jobs import SEED, Case, flink_cluster
from velocity.io.dead_letters import read_dead_letters
from velocity.pipelines.directory import directory
from velocity.runners.embedded import DirectoryService

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("no_job_is_left")]

OUTAGE = float(os.environ.get("VELOCITY_TEST_OUTAGE", "20"))
"""Seconds."""


class Faulty(DirectoryService):
    """Answers 503 while it is down."""

    down = False
    refused = 0

    def answer(self, target: str) -> tuple[HTTPStatus, bytes]:
        if not self.down:
            return super().answer(target)
        self.refused += 1
        return HTTPStatus.SERVICE_UNAVAILABLE, b""


@pytest.fixture(scope="module")
def service() -> Iterator[Faulty]:
    with Faulty(directory(SEED).tables()) as found:
        yield found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, service: Faulty) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("stack") / "state"
    services = {"PROVIDERS": service.url, "PATIENTS": service.url}
    with flink_cluster(folder, tmp_path_factory.mktemp("temporary"), services) as found:
        yield found


def wait_at_most(case: Case, limit: str) -> None:
    """The job forgets fast, so that each event needs the service, and waits so long at a time."""
    text = case.path.read_text().replace("cache: {ttl: 10m,", "cache: {ttl: 1s,")
    keys = f"    max_keys: 200\n    wait_at_most: {limit}\n    cache: {{ttl: 1s}}\n"
    case.path.write_text(text.replace("    max_keys: 200\n", keys))
    assert case.path.read_text().count("ttl: 1s") == 2


def test_an_outage_ends_with_every_event_enriched_and_no_dead_letter(
    cluster: Cluster, service: Faulty, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 60_000)
    wait_at_most(case, "5m")
    case.produce(150)
    job = case.run("--checkpoint-interval", "5s")
    until(lambda: len(case.documents()) > 10)
    before = cluster.counter(job, "enriched_rows")
    service.down = True
    time.sleep(OUTAGE)
    service.down = False
    assert case.producing
    until(lambda: cluster.counter(job, "enriched_rows") > before)
    until(lambda: cluster.counter(job, "enrich_wait_ms") > 0)
    assert cluster.flink.restarts(job) == 0
    case.await_all()
    letters = read_dead_letters(str(case.dead))
    assert set(letters["stage"].to_pylist()) <= {"decode"}
    cluster("stop", job, "--cancel")


def test_a_job_that_waits_can_be_cancelled(
    cluster: Cluster, service: Faulty, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 2_000)
    wait_at_most(case, "1h")
    service.down = True
    case.pace.release()
    case.produce()
    job = case.run()
    before = service.refused
    until(lambda: service.refused > before + 3)  # a probe every 5 s: it waits
    cluster("stop", job, "--cancel")
    until(lambda: cluster.flink.find(job).ended and cluster.workers() == [])
    service.down = False


def test_events_set_aside_in_an_outage_and_replayed_count_as_if_they_had_never_failed(
    cluster: Cluster, service: Faulty, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 12_000)
    text = case.path.read_text().replace("idle_after: 5s", "idle_after: 15s")
    policy = (
        "    id: id\n    retries: 0\n    on_error: dead_letter\n    breaker: {failures: 1000}\n"
    )
    case.path.write_text(text.replace("    id: id\n", policy))
    assert case.path.read_text().count("on_error: dead_letter") == 2
    job = case.run("--checkpoint-interval", "2s")
    service.down = True
    case.produce(30)
    until(lambda: failed(case) != [])
    service.down = False
    until(lambda: cluster.counter(job, "enriched_rows") > 100)

    chosen = ("--cause", "service_failed", "--dead-letters", case.dead, "--json")
    replayed = json.loads(cluster("dead-letters", "replay", case.path, *chosen))
    assert case.producing, "no partition has fallen silent, so no session has ended"
    case.await_all()
    assert failed(case) == [1] * replayed["sent"]
    cluster("stop", job, "--cancel")


def failed(case: Case) -> list[int]:
    """The attempts of the letters of events that could not be enriched."""
    letters = read_dead_letters(str(case.dead)).to_pylist()
    return [letter["attempt"] for letter in letters if letter["cause"] == "service_failed"]
