"""What holds for all tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.cluster import Cluster
from tests.flink_jobs import end_all, pharmacy_cluster
from velocity.runners.stack_state import read_state

# A deadline would be a timed assertion: on a busy machine any example may be slow once.
settings.register_profile("velocity", deadline=None)
settings.load_profile("velocity")

# A shell that starts tests in the background has them ignore Ctrl-C, and so their children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def real_kafka(tmp_path: Path) -> Iterator[str]:
    """The address of a broker of the local stack, which ends with the test."""

    def stack(*arguments: str) -> None:
        command = [sys.executable, "-m", "velocity.runners.stack_cli", *arguments]
        environment = {**os.environ, "VELOCITY_STATE": str(tmp_path)}
        subprocess.run(command, env=environment, check=True)

    try:
        stack("up", "kafka")
        address = read_state(tmp_path).address("kafka")
        assert address is not None
        yield address
    finally:
        stack("down")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Kafka and Flink, and what the pharmacy's job asks, for the tests of a file."""
    with pharmacy_cluster(tmp_path_factory, "--prometheus") as found:
        yield found


@pytest.fixture
def no_job_is_left(cluster: Cluster) -> Iterator[None]:
    """One test's jobs are not the next one's."""
    yield
    end_all(cluster)
