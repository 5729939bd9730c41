"""``velocity stack demo`` on real Kafka, Flink and Elasticsearch: right in the end, clean on Ctrl-C."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster import VELOCITY, Cluster, interrupt, until

pytestmark = pytest.mark.stack

QUICK = ["--rate", "100", "--idle-after", "20s"]


def test_the_whole_system_is_right_live_and_ctrl_c_leaves_no_job(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    environ = {**os.environ, "VELOCITY_STATE": str(folder), "TMPDIR": str(tmp_path)}
    cluster = Cluster(folder, environ)
    try:
        command = [*VELOCITY, "stack", "demo", *QUICK, "--events", "100000", "--job", "insurance"]
        told = tmp_path / "told"
        with told.open("wb") as file:
            run = subprocess.Popen(command, env=environ, stderr=file)
        until(lambda: "demo_enrichment runs" in told.read_text() or run.poll() is not None, 400)
        assert interrupt(run) == 130, told.read_text()
        assert [job.name for job in cluster.flink.jobs() if not job.ended] == []
        assert "1 jobs cancelled" in told.read_text()

        # Again, on the stack that is up: what the first left behind is in no document.
        jobs = ["--job", "transactions", "--job", "pharmacy_delivery"]
        with told.open("wb") as file:
            code = subprocess.run(
                [*VELOCITY, "stack", "demo", *QUICK, "--events", "4000", *jobs],
                env=environ, stderr=file, timeout=900, check=False,
            ).returncode  # fmt: skip
        assert code == 0, told.read_text()
        assert "documents of 2 jobs equal a plain recomputation" in told.read_text()
        until(lambda: cluster.workers() == [])
    finally:
        cluster("stack", "down")
