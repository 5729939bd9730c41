"""One server process of the stack: how it is started, asked for its health, and stopped."""

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from velocity.runners.stack_errors import ServerFailed
from velocity.runners.stack_process import (
    Mark,
    Process,
    Processes,
    find,
    identify,
    launch,
    living_processes,
    terminate,
)
from velocity.runners.stack_state import ComponentRecord, ServerRecord


class Server(ABC):
    """A server process, its files in a folder of its own: ``NAME.log``, ``NAME.pid``, its data.

    Subclasses say what to run. ``prepare`` runs before each start.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """Holds the pid alone, for other tools; we ourselves trust only the recorded state."""
        return self.folder / f"{self.name}.pid"

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """What to run."""

    @abstractmethod
    def healthy(self) -> bool:
        """Whether it answers now. A server that is not up yet is no error."""

    def prepare(self) -> None:  # noqa: B027 - most servers need none
        """Writes configuration, and data if there is none yet."""

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def start(self, mark: Mark, processes: Processes = living_processes) -> ServerRecord:
        """Starts the process and returns at once; see ``healthy``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        self._child = launch(
            self.command(), mark=mark, log=self.log, cwd=self.folder, environ=self.environment()
        )
        self.pid_file.write_text(f"{self._child.pid}\n")
        process = identify(self._child.pid, processes)
        if process is None:
            self.check_alive()
            raise ServerFailed(f"{self.name} ended at once: see {self.log}")
        return ServerRecord(self.name, process, self.log, mark.run)

    def check_alive(self) -> None:
        """Raises ``ServerFailed`` with the end of the log if the process that we started ended."""
        if self._child is not None and (code := self._child.poll()) is not None:
            raise ServerFailed(
                f"{self.name} ended with code {code}; the end of {self.log}:\n{tail(self.log, 20)}"
            )

    def stop(self, record: ServerRecord, stack: str) -> None:
        """Ends the process and all that it started: SIGTERM first, SIGKILL after a deadline."""
        terminate(lambda: members(record, stack))
        self.pid_file.unlink(missing_ok=True)


def members(record: ServerRecord, stack: str) -> list[Process]:
    """The living processes of one server: its own, and what it started."""

    def of_this_server(mark: Mark) -> bool:
        return (mark.stack, mark.run, mark.server) == (stack, record.run, record.name)

    return find([record.process], of_this_server)


def tail(file: Path, lines: int) -> str:
    """The last lines of a log.

    >>> tail(Path("/nowhere"), 3)
    ''
    """
    if not file.exists():
        return ""
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - lines * 400 - 4096))
        text = content.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:]) if lines else ""


@dataclass(frozen=True)
class Component:
    """Servers that make up one system, in the order of their start."""

    record: ComponentRecord
    """Its servers are those that run already."""
    servers: tuple[Server, ...]
    data: Path
    """What ``--fresh`` deletes."""
