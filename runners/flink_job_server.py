"""Beam's job server as a process that lives only as long as the submission it serves."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from velocity.runners.flink_errors import FlinkError
from velocity.runners.stack_ports import HOST, any_free
from velocity.runners.stack_server import tail

PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that a process gets when its parent ends."""

PATIENCE: Final = 10.0
"""Seconds that it has to end before it is killed."""


@contextmanager
def job_server(
    command: Sequence[str],
    log: Path,
    *,
    within: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Runs a job server, gives its ``host:port`` when it listens, and ends it by its pid.

    ``--job-port`` is added to the command. Raises ``FlinkError`` with the end of its log if it
    ends, or does not listen in time. Should this process be killed, the system ends the server
    (Linux).
    """
    port = any_free()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "velocity.runners.flink_job_server", str(os.getpid())),
                *command,
                *("--job-port", str(port)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours: it ends when we are done
        )
    try:
        deadline = clock() + within
        while not _listens(port):
            if process.poll() is not None or clock() >= deadline:
                raise FlinkError(f"the Flink job server did not start:\n{tail(log, 15)}")
            sleep(0.1)
        yield f"{HOST}:{port}"
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def main() -> None:
    """Becomes the command that follows the pid of whom to die with."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        # It outlives the exec below.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before we asked
        sys.exit("the submission has ended")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
