"""The pool that starts Python workers for Flink's tasks (environment type ``EXTERNAL``).

Beam has such a pool too. This one listens on 127.0.0.1 unless told otherwise, gives workers the job's own pipeline
options (Beam's drops them: no state cache, no log level), installs the files that a job was staged
with, sends workers' output to the log where Beam's lets it fill a pipe that nobody reads, and
takes its workers with it however it ends (Linux).

Protocol: ``BeamFnExternalWorkerPool`` in Beam's ``beam_fn_api.proto``; what a worker gets is what
Beam's container gives it (``sdks/python/container/boot.go``).
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from velocity.runners.stack_ports import HOST

PATIENCE: Final = 10.0
"""Seconds that a worker has to end before it is killed."""

_log = logging.getLogger(__name__)

Spawn = Callable[[Sequence[str]], "subprocess.Popen[bytes]"]


def spawn(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Starts a worker, its output in our own log."""
    # Beam's own code calls `python` too.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
    # Ctrl-C is its pool's: a worker ends when the job has.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
    )


def boot_command(request: Any, metrics: Path | None = None, *, quiet: bool = False) -> list[str]:
    """What starts the worker that a ``StartWorkerRequest`` asks for; it counts into a folder.

    A ``quiet`` one writes its warnings and errors, as the command does in whose terminal it is.
    """
    return [
        sys.executable,
        "-m",
        "velocity.runners.stack_worker",
        "--pool",
        str(os.getpid()),
        "--id",
        request.worker_id,
        "--control",
        request.control_endpoint.url,
        "--logging",
        request.logging_endpoint.url,
        "--artifacts",
        request.artifact_endpoint.url,
        "--provision",
        request.provision_endpoint.url,
        *([] if metrics is None else ["--metrics", str(metrics)]),
        *(["--quiet"] if quiet else []),
    ]


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts and stops one process for each worker id."""

    def __init__(
        self, start: Spawn = spawn, *, metrics: Path | None = None, quiet: bool = False
    ) -> None:
        self._start, self._metrics, self._quiet = start, metrics, quiet
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def StartWorker(self, request: Any, context: object) -> Any:
        with self._lock:
            try:
                worker = self._start(boot_command(request, self._metrics, quiet=self._quiet))
            except OSError as error:
                return beam_fn_api_pb2.StartWorkerResponse(error=f"cannot start Python: {error}")
            self._workers[request.worker_id] = worker
        _log.info("worker %s started, pid %d", request.worker_id, worker.pid)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: object) -> Any:
        with self._lock:
            worker = self._workers.pop(request.worker_id, None)
        if worker is not None:
            _log.info("worker %s ends, pid %d", request.worker_id, worker.pid)
            _end(worker)
        return beam_fn_api_pb2.StopWorkerResponse()

    def alive(self) -> list[int]:
        """The pids of the workers that run."""
        with self._lock:
            workers = list(self._workers.values())
        return [worker.pid for worker in workers if worker.poll() is None]

    def reap(self) -> None:
        """Forgets the workers that have ended by themselves, and says how: else each stays a zombie."""
        with self._lock:
            ended = {i: w for i, w in self._workers.items() if w.poll() is not None}
            for worker_id in ended:
                del self._workers[worker_id]
        for worker_id, worker in ended.items():
            code = worker.returncode
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            _log.info("worker %s has ended by itself, pid %d, %s", worker_id, worker.pid, how)

    def close(self) -> None:
        """Ends all workers."""
        with self._lock:
            workers, self._workers = self._workers, {}
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            _end(worker)


def _end(worker: "subprocess.Popen[bytes]") -> None:
    worker.terminate()
    try:
        worker.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def serve(port: int, pool: WorkerPool, host: str = HOST) -> tuple[grpc.Server, int]:
    """Serves the pool; port 0 takes any. Returns the server and its port.

    Raises ``OSError`` if it can't listen there.
    """
    server = grpc.server(ThreadPoolExecutor(max_workers=16))
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise OSError(
            f"{host}:{port} is taken, or no address of this machine: give another --port"
        ) from None
    server.start()
    return server, bound


@contextmanager
def workers() -> Iterator[str]:
    """A pool of this process's own, at ``host:port``; afterwards its workers have ended."""
    pool = WorkerPool(quiet=True)
    server, port = serve(0, pool)
    try:
        yield f"{HOST}:{port}"
    finally:
        pool.close()
        server.stop(1.0)
