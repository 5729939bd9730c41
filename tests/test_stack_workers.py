"""A Flink task asks the pool for a worker; the worker gets what the job was staged with."""

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import urllib3
from apache_beam.portability.api import (
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
)
from google.protobuf import struct_pb2

from velocity.runners.stack_process import identify
from velocity.runners.stack_worker import (
    STAGING,
    environment,
    packages,
    provision,
    retrieve,
    staged_names,
)
from velocity.runners.stack_workers import WorkerPool, serve

pytestmark = pytest.mark.embedded


class FakeWorker:
    """As a process that obeys; notes what it was asked for."""

    pid = 7

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.ended = False
        self.returncode: int | None = None

    def terminate(self) -> None:
        self.ended = True

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        assert self.ended
        return 0


class Pool(types.SimpleNamespace):
    stub: Any
    pool: WorkerPool
    workers: list[FakeWorker]


@pytest.fixture
def pool() -> Iterator[Pool]:
    workers: list[FakeWorker] = []

    def start(command: Sequence[str]) -> Any:
        workers.append(FakeWorker(command))
        return workers[-1]

    served = WorkerPool(start)
    server, port = serve(0, served)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
        yield Pool(stub=stub, pool=served, workers=workers)
    server.stop(None).wait()


def start_request(worker: str) -> Any:
    request = beam_fn_api_pb2.StartWorkerRequest(worker_id=worker)
    request.control_endpoint.url = "localhost:1"
    request.provision_endpoint.url = "localhost:4"
    return request


def test_a_worker_is_this_python_with_the_endpoints_it_was_given(pool: Pool) -> None:
    assert not pool.stub.StartWorker(start_request("1-1")).error
    (worker,) = pool.workers
    assert worker.command[0] == sys.executable
    options = dict(zip(worker.command[3::2], worker.command[4::2], strict=True))
    assert options["--id"] == "1-1"
    assert options["--control"] == "localhost:1"
    assert options["--provision"] == "localhost:4"


def test_only_the_worker_that_is_named_is_stopped(pool: Pool) -> None:
    for worker in ("1-1", "1-2"):
        pool.stub.StartWorker(start_request(worker))
    pool.stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-2"))
    pool.stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="unknown"))
    assert [worker.ended for worker in pool.workers] == [False, True]


def test_a_worker_that_has_ended_by_itself_is_reaped_and_told(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    for worker in ("1-1", "1-2"):
        pool.stub.StartWorker(start_request(worker))
    pool.workers[0].returncode = -9
    with caplog.at_level(logging.INFO):
        pool.pool.reap()
        pool.pool.reap()
    assert [r.message for r in caplog.records if "ended" in r.message] == [
        "worker 1-1 has ended by itself, pid 7, signal 9"
    ]
    pool.pool.close()
    assert [worker.ended for worker in pool.workers] == [False, True]


def test_no_worker_outlives_the_pool(pool: Pool) -> None:
    for worker in ("1-1", "1-2"):
        pool.stub.StartWorker(start_request(worker))
    pool.pool.close()
    assert all(worker.ended for worker in pool.workers)


def test_a_worker_that_cannot_start_is_an_answer_not_a_silence() -> None:
    def fail(command: Sequence[str]) -> Any:
        raise FileNotFoundError("python")

    answer = WorkerPool(fail).StartWorker(start_request("1-1"), None)
    assert "cannot start Python: python" in answer.error


def test_a_worker_without_its_pool_ends_at_once() -> None:
    command = [sys.executable, "-m", "velocity.runners.stack_worker", "--pool", "1"]
    for option in ("--id", "--control", "--logging", "--artifacts", "--provision"):
        command += [option, "127.0.0.1:9"]
    worker = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert worker.returncode == 1
    assert worker.stderr == "the pool that started this worker has ended\n"


WORKER = """
import os, signal, sys
from velocity.runners.stack_worker import die_with
die_with(int(sys.argv[1]))
print(os.getpid(), flush=True)
signal.signal(signal.SIGALRM, lambda *_: (print("outlived its pool", flush=True), os._exit(1)))
signal.alarm(30)
signal.pause()
"""

POOL = """
import os, signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends orphans on Linux only")
def test_a_worker_dies_with_a_killed_pool() -> None:
    command = [sys.executable, "-c", POOL, WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as pool:
        assert pool.stdout is not None
        worker = int(pool.stdout.readline())
        assert identify(worker) is not None
        pool.kill()
        # The worker holds the other end of this pipe: it closes when the worker ends, and the
        # system takes the process away a moment after it has closed its files.
        assert pool.stdout.read() == b""
    deadline = time.monotonic() + 60
    while identify(worker) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def artifact(name: str, content: bytes = b"") -> Any:
    payload = beam_runner_api_pb2.ArtifactStagingToRolePayload(staged_name=name)
    return beam_runner_api_pb2.ArtifactInformation(
        type_payload=content, role_urn=STAGING, role_payload=payload.SerializeToString()
    )


class Runner(
    beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceServicer,
    beam_provision_api_pb2_grpc.ProvisionServiceServicer,
):
    """Serves the files of a job in pieces of two bytes, and its options, to one worker."""

    def __init__(self, info: Any) -> None:
        self.info = info
        self.asked_by: set[str] = set()

    def _note(self, context: Any) -> None:
        self.asked_by.add(dict(context.invocation_metadata())["worker_id"])

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:
        self._note(context)
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=self.info)

    def ResolveArtifacts(self, request: Any, context: Any) -> Any:
        self._note(context)
        return beam_artifact_api_pb2.ResolveArtifactsResponse(replacements=request.artifacts)

    def GetArtifact(self, request: Any, context: Any) -> Iterator[Any]:
        self._note(context)
        content = request.artifact.type_payload
        for start in range(0, len(content), 2):
            yield beam_artifact_api_pb2.GetArtifactResponse(data=content[start : start + 2])


def test_a_worker_gets_the_jobs_options_and_files(tmp_path: Path) -> None:
    options = struct_pb2.Struct()
    options["beam:option:streaming:v1"] = True
    info = beam_provision_api_pb2.ProvisionInfo(
        pipeline_options=options, runner_capabilities=["one", "two"]
    )
    runner = Runner(info)
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(runner, server)
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(runner, server)
    endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    got = provision(endpoint, "1-1")
    files = retrieve(endpoint, "1-1", [artifact("workflow.tar.gz", b"12345")], tmp_path)
    server.stop(None).wait()
    variables = environment(
        worker="1-1",
        control="c:1",
        logging="l:2",
        info=got,
        staged=tmp_path / "staged",
        site=tmp_path / "site",
    )
    assert files["workflow.tar.gz"].read_bytes() == b"12345"
    assert runner.asked_by == {"1-1"}
    assert '"beam:option:streaming:v1": true' in variables["PIPELINE_OPTIONS"]
    assert variables["RUNNER_CAPABILITIES"] == "one two"
    assert variables["CONTROL_API_SERVICE_DESCRIPTOR"].strip() == 'url: "c:1"'
    assert variables["PYTHONPATH"].split(":")[0] == str(tmp_path / "site")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", ".."])
def test_a_job_stages_no_file_outside_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="may not stage"):
        staged_names([artifact(name)])


def test_extra_packages_are_installed_before_the_workflow(tmp_path: Path) -> None:
    (tmp_path / "extra_packages.txt").write_text("b.whl\na.tar.gz\n")
    names = ("workflow.tar.gz", "extra_packages.txt", "a.tar.gz", "b.whl", "pickled_main_session")
    staged = {name: tmp_path / name for name in names}
    assert [file.name for file in packages(staged)] == ["b.whl", "a.tar.gz", "workflow.tar.gz"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_flink_and_prometheus_until_it_is_told_to_stop(signum: int) -> None:
    command = [sys.executable, "-m", "velocity.runners.workers_cli"]
    served = subprocess.Popen(
        [*command, "--port", "0", "--metrics-port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert served.stdout is not None
        assert served.stderr is not None
        told = json.loads(served.stdout.readline())
        assert urllib3.request("GET", told["metrics"]).status == 200
        with grpc.insecure_channel(told["workers"]) as channel:
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            assert not stub.StartWorker(start_request("1-1"), wait_for_ready=True).error
        lines = [served.stderr.readline() for _ in range(3)]
        [pid] = re.findall(r"pid (\d+)", lines[-1])
        served.send_signal(signum)
        assert served.wait(60) == 0
        assert identify(int(pid)) is None
    finally:
        served.kill()
        served.wait()


def test_a_port_that_is_taken_is_named_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port} is taken.*--port"):
            serve(port, WorkerPool())
