"""The law of replays on real servers: a run, each replay of it and recomputation are the same."""

import os
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.flink_jobs import SEED
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import differences
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import JOB, expected
from velocity.runners.embedded import DirectoryService
from velocity.runners.produce import produce

pytestmark = pytest.mark.stack


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
