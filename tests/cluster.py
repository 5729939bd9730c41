"""A real cluster as tests see it: ``velocity``, the servers' addresses, Flink, Python workers."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from velocity.runners.flink_rest import Flink
from velocity.runners.stack_process import find
from velocity.runners.stack_state import read_state

VELOCITY = [sys.executable, "-c", "from velocity.runners.cli import main; main()"]


@dataclass
class Cluster:
    """A stack of its own with Kafka and Flink, the REST service of the job, and ``velocity``."""

    folder: Path
    environ: dict[str, str]
    velocity: Sequence[str] = tuple(VELOCITY)

    def __call__(self, *arguments: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [*self.velocity, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=self.environ,
            check=False,
            timeout=300,
        )
        self.stderr = done.stderr
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout

    def address(self, name: str) -> str:
        found = read_state(self.folder).address(name)
        assert found is not None
        return found

    @property
    def flink(self) -> Flink:
        return Flink(self.address("flink"))

    def counter(self, job: str, name: str) -> int:
        vertices = self.flink.vertices(job)
        return self.flink.counters(job, vertices, "velocity").get(name, 0)

    def workers(self) -> list[int]:
        """The pids of the Python workers, of which each runs tasks of one job."""
        ours = find([], lambda mark: mark.stack == str(self.folder))
        return [
            process.id.pid
            for process in ours
            if b"velocity.runners.stack_worker\0" in _command_line(process.id.pid)
        ]

    def job_servers(self) -> list[bytes]:
        """The command lines of all job servers whose artifacts are in our folder."""
        folders = (path for path in Path("/proc").iterdir() if path.name.isdecimal())
        lines = [_command_line(int(path.name)) for path in folders]
        return [
            line for line in lines if b"--job-port" in line and str(self.folder).encode() in line
        ]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Pace:
    """The clock of a producer: real time, until it is released to send the rest at once.

    Or until it is to end: then a producer that waits sends no more, as if by Ctrl-C.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._released = threading.Event()
        self._ended = False

    def clock(self) -> float:
        return float("inf") if self._released.is_set() else time.monotonic() - self._began

    def sleep(self, seconds: float) -> None:
        self._released.wait(seconds)
        if self._ended:
            raise KeyboardInterrupt

    def release(self) -> None:
        self._released.set()

    def end(self) -> None:
        """What was released sends the rest all the same: it may still be about to wake up."""
        self._ended = not self._released.is_set()
        self._released.set()


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return
        asked = time.monotonic()
        assert asked < deadline
        time.sleep(max(0.1, 2 * (asked - began)))  # what is dear to ask is not asked all the time


def interrupt(run: subprocess.Popen[bytes], within: float = 120) -> int:
    """Ends a command as Ctrl-C does; its code. One that does not end is killed, and is an error."""
    run.send_signal(signal.SIGINT)
    try:
        return run.wait(within)
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        raise
