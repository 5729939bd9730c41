"""The law of replays on Flink: a run through a crash, its replays and recomputation are the same."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, until
from tests.flink_jobs import SEED, Case, end_all, flink_cluster
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import differences
from velocity.runners.demo import expected
from velocity.runners.embedded import DirectoryService

pytestmark = pytest.mark.stack


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with DirectoryService(directory(SEED).tables()) as service:
        services = {"PROVIDERS": service.url, "PATIENTS": service.url}
        with flink_cluster(tmp_path / "state", temporary, services) as found:
            yield found
            end_all(found)


def test_a_run_through_a_crash_and_its_replays_from_kafka_and_the_archives_equal_recomputation(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "replayed"
    folder.mkdir()
    case = Case(cluster, folder, 30_000)
    archive = f"\narchive: {{path: {tmp_path}/archive, raw: true}}\n"
    case.path.write_text(case.path.read_text() + archive)
    case.produce(rate=100)  # five minutes, unless it is released
    live = case.run("--checkpoint-interval", "3s")
    until(lambda: any(body["pane"] == "early" for body in case.documents().values()))
    until(lambda: cluster.flink.checkpoints(live).completed > 0)
    [worker] = cluster.workers()
    assert case.producing
    os.kill(worker, signal.SIGKILL)  # what it has archived since the checkpoint is archived again
    until(lambda: cluster.flink.restarts(live) >= 1)
    case.await_all()
    cluster("stop", live, "--cancel")

    counted = expected(load(case.path), case.messages(), directory(SEED))
    # A window of all time is no replay's.
    wanted = {id_: document for id_, document in counted.items() if "/ever/" not in id_}
    day = ("--from", "2026-01-05T00:00:00Z", "--to", "2026-01-06T00:00:00Z")
    for name, options in {
        "kafka, streamed": ("--source", "kafka", "--late", "1d", "--runner", "flink"),
        "archive, as a batch": ("--source", "archive", "--runner", "flink", "--batch"),
        "raw": ("--source", "raw", "--workers", "1"),
    }.items():
        store = folder / f"{name}.db"
        cluster("replay", case.path, *day, *options, "--sqlite", store)
        assert list(differences(wanted, read_documents(str(store)))) == [], name
        assert cluster.job_servers() == []
    assert all(job.ended for job in cluster.flink.jobs())
