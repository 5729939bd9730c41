"""The law of replays on Flink: a run through crashes, its replays and recomputation are the same."""

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
from velocity.runners.stack_state import read_state

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(
        "VELOCITY_REPLAY_ON_FLINK" not in os.environ,
        reason="takes up to ten minutes, and is not seen to pass yet: VELOCITY_REPLAY_ON_FLINK=1",
    ),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with DirectoryService(directory(SEED).tables()) as service:
        services = {"PROVIDERS": service.url, "PATIENTS": service.url}
        with flink_cluster(tmp_path / "state", temporary, services) as found:
            yield found
            end_all(found)


def test_a_run_through_crashes_and_its_replays_from_kafka_and_the_archive_equal_recomputation(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "replayed"
    folder.mkdir()
    case = Case(cluster, folder, 200_000)
    archive = f"\narchive: {{path: {tmp_path}/archive, raw: true}}\n"
    case.path.write_text(case.path.read_text() + archive)
    case.produce()
    live = case.run("--checkpoint-interval", "3s")
    until(lambda: any(body["pane"] == "early" for body in case.documents().values()))
    until(lambda: cluster.flink.checkpoints(live).completed > 0)
    [worker] = cluster.workers()
    assert case.producing
    os.kill(worker, signal.SIGKILL)
    until(lambda: cluster.flink.restarts(live) >= 1)
    until(lambda: cluster.flink.find(live).running)
    done = cluster.flink.checkpoints(live).completed
    until(lambda: cluster.flink.checkpoints(live).completed > done)
    servers = read_state(cluster.folder).components["flink"].servers
    [manager] = [server for server in servers if server.name == "taskmanager-1"]
    assert case.producing
    os.kill(manager.process.pid, signal.SIGKILL)
    cluster("stack", "up", "flink")
    until(lambda: cluster.flink.restarts(live) >= 2)
    case.await_all()
    cluster("stop", live, "--cancel")

    counted = expected(load(case.path), case.messages(), directory(SEED))
    # A window of all time is no replay's.
    wanted = {id_: document for id_, document in counted.items() if "/ever/" not in id_}
    day = ("--from", "2026-01-05T00:00:00Z", "--to", "2026-01-06T00:00:00Z")
    flink = ("--runner", "flink")
    for name, options in {
        "archive, streamed": ("--source", "archive", *flink),
        "kafka, as a batch": ("--source", "kafka", "--late", "1d", *flink, "--batch"),
        "kafka, streamed": ("--source", "kafka", "--late", "1d", *flink),
        "raw": ("--source", "raw", "--workers", "1"),
    }.items():
        store = folder / f"{name}.db"
        cluster("replay", case.path, *day, *options, "--sqlite", store)
        assert list(differences(wanted, read_documents(str(store)))) == [], name
        assert cluster.job_servers() == []
    assert all(job.ended for job in cluster.flink.jobs())
