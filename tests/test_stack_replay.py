"""The law of replays on real servers: what ran live and crashed, and each replay of it, are the same."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, until
from tests.flink_jobs import SEED, Case, end_all, flink_cluster
from velocity.io.archive_files import Kind, files_of
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.produce import produce
from velocity.pipelines.recompute import differences
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import JOB, expected
from velocity.runners.embedded import DirectoryService

pytestmark = pytest.mark.stack


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("stack") / "state"
    with DirectoryService(directory(SEED).tables()) as service:
        services = {"PROVIDERS": service.url, "PATIENTS": service.url}
        with flink_cluster(folder, tmp_path_factory.mktemp("temporary"), services) as found:
            yield found
            end_all(found)


def test_a_live_run_that_crashed_equals_its_replays_from_kafka_and_archive_and_recomputation(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 60_000)
    archive = tmp_path / "archive"
    text = case.path.read_text()
    case.path.write_text(f"{text}\narchive: {{path: {archive}, raw: true}}\n")
    job = load(case.path)

    case.produce(rate=500)
    live = case.run("--checkpoint-interval", "5s")
    until(lambda: cluster.flink.checkpoints(live).completed > 0)
    until(lambda: files_of(str(archive), Kind.ENRICHED, job.job) != [])
    [worker] = cluster.workers()
    assert case.producing  # it is killed in mid-run
    os.kill(worker, signal.SIGKILL)
    until(lambda: cluster.flink.restarts(live) >= 1)
    case.await_all()  # the live run equals the recomputation
    cluster("stop", live, "--cancel")
    until(lambda: cluster.flink.find(live).ended)

    wanted = expected(job, simulate(case.scenario), directory(SEED))
    day = ("--from", "2026-01-05T00:00:00Z", "--to", "2026-01-06T00:00:00Z")
    # While its worker was away the job's watermark stood still, and late events were in time.
    kafka = ("--source", "kafka", "--late", "1d")
    for name, options in {
        "kafka": (*kafka, "--workers", "1"),
        "archive": ("--workers", "2"),
        "archive on Flink": ("--runner", "flink"),
        "raw as a batch of Flink": ("--source", "raw", "--runner", "flink", "--batch"),
    }.items():
        store = tmp_path / f"{name}.db"
        cluster("replay", case.path, *day, "--sqlite", store, *options)
        assert list(differences(wanted, read_documents(str(store)))) == [], name
    said = cluster("replay", case.path, *day, "--compare", "--sqlite", case.store)
    assert f"{len(wanted):,} the same" in said


def test_a_replay_from_kafka_by_times_and_from_the_archive_that_a_run_left_equal_recomputation(
    real_kafka: str, tmp_path: Path
) -> None:
    scenario = Scenario(seed=SEED, events=10_000, domains=("pharmacy_delivery",))
    produce(scenario, real_kafka)
    path, archive = tmp_path / "job.yaml", tmp_path / "archive"
    path.write_text(f"{JOB.read_text()}\narchive: {{path: {archive}, raw: true}}\n")
    wanted = expected(load(path), simulate(scenario), directory(SEED))
    with DirectoryService(directory(SEED).tables()) as service:
        environ = {**os.environ, "PROVIDERS": service.url, "PATIENTS": service.url}
        velocity = Cluster(tmp_path, {**environ, "KAFKA": real_kafka})
        live, dead = tmp_path / "live.db", tmp_path / "dead"
        velocity("run", path, "--until", "now", "--sqlite", live, "--dead-letters", dead)
        assert list(differences(wanted, read_documents(str(live)))) == []
        day = ("--from", "2026-01-05T00:00:00Z", "--to", "2026-01-06T00:00:00Z", "--workers", "1")
        for source in ("kafka", "raw", "archive"):
            store = tmp_path / f"{source}.db"
            late = ("--late", "1d") if source == "kafka" else ()
            velocity("replay", path, *day, "--source", source, "--sqlite", store, *late)
            assert list(differences(wanted, read_documents(str(store)))) == [], source
        said = velocity("replay", path, *day, "--compare", "--sqlite", live)
        assert f"{len(wanted):,} the same" in said
