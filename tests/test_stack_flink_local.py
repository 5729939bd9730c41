"""A stream on the Flink inside the job server: no cluster, one worker in the command's own process, or several."""

import os
import subprocess
from collections import Counter
from http import HTTPStatus
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.cluster import VELOCITY, interrupt
from tests.flink_jobs import in_time, not_final, stored
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import JOB, expected
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.produce import produce

pytestmark = pytest.mark.stack

SEED = 11


class Asked(DirectoryService):
    """Knows how often it was asked for each provider."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.providers: Counter[str] = Counter()

    def answer(self, target: str) -> tuple[HTTPStatus, bytes]:
        call = urlsplit(target)
        if call.path == "/providers":
            self.providers.update(parse_qs(call.query)["ids"][0].split(","))
        return super().answer(target)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stream_without_a_cluster_gives_the_documents_of_the_recomputation_until_ctrl_c(
    workers: str, tmp_path: Path
) -> None:
    job, store = tmp_path / "job.yaml", tmp_path / "documents.db"
    job.write_text(JOB.read_text().replace("idle_after: 60s", "idle_after: 5s"))
    scenario = Scenario(seed=SEED, events=20_000, domains=("pharmacy_delivery",))
    wanted = expected(load(job), simulate(scenario), directory(SEED))

    command = ["run", job, "--runner", "flink", "--flink-master", "local", "--sqlite", store]
    command += ["--dead-letters", tmp_path / "dead-letters", "--sdk-worker-parallelism", workers]
    with (
        EmbeddedKafka({"pharmacy.events": 4}) as kafka,
        Asked(directory(SEED).tables()) as service,
    ):
        produce(scenario, kafka.bootstrap_servers)
        environ = {"KAFKA": kafka.bootstrap_servers, "PROVIDERS": service.url}
        environ |= {"PATIENTS": service.url, "VELOCITY_STATE": str(tmp_path / "state")}
        with (tmp_path / "stderr").open("wb") as told:
            run = subprocess.Popen(
                [*VELOCITY, *map(str, command)], env={**os.environ, **environ}, stderr=told
            )
        try:
            left = in_time(
                lambda: not_final(wanted, stored(store)), goes_on=lambda: run.poll() is None
            )
            assert left[:5] == [], (tmp_path / "stderr").read_text()
            assert run.poll() is None  # a stream has no end
        finally:
            code = interrupt(run)
    assert code == 130
    # Each process remembers whom it has asked for: so many have read partitions.
    assert median(service.providers.values()) == int(workers)
    children = Path("/proc").glob("[0-9]*/environ")
    assert [child for child in children if str(tmp_path).encode() in _read(child)] == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
