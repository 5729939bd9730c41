"""Starts processes of their own session, knows them again, and stops them by pid.

A pid alone says little: the process may be gone and its number given to another. So a process is
its pid and the time it began. Each process we start also carries a mark in its environment, which
its own children inherit: by it we find those that no record names, because whoever started them
died first.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from velocity.runners.stack_errors import ServerFailed

MARK: Final = "VELOCITY_STACK_PROCESS"
"""The variable that carries a mark: state folder, run and server, divided by bars."""

TICK: Final = 0.05
"""Seconds between two looks at a process that shall end."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that can be told from a later one of the same pid."""

    pid: int
    started: str
    """When it began, as the system says it; only equality has a meaning."""


@dataclass(frozen=True, slots=True)
class Process:
    """A living process."""

    id: ProcessId
    group: int
    rss: int
    """Resident memory in bytes."""
    mark: str
    """Empty where there is none, or where we may not read it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose a process is: of which stack, started by which run of ``up``, as which server.

    >>> Mark.parse(str(Mark("/state", "812-x", "kafka")))
    Mark(stack='/state', run='812-x', server='kafka')
    """

    stack: str
    run: str
    server: str

    def __str__(self) -> str:
        return f"{self.stack}|{self.run}|{self.server}"

    @classmethod
    def parse(cls, text: str) -> "Mark | None":
        parts = text.rsplit("|", 2)
        return cls(*parts) if len(parts) == 3 else None


Processes = Callable[[], list[Process]]
"""Reads all living processes of this user's."""


def living_processes() -> list[Process]:
    """All living processes; with marks, where the system shows environments (Linux)."""
    if sys.platform == "linux":
        return read_proc(Path("/proc"))
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,pgid=,rss=,stat=,lstart="],
        capture_output=True,
        text=True,
        check=True,
    )
    return parse_ps(listed.stdout)


def read_proc(proc: Path) -> list[Process]:
    """The processes of a Linux ``/proc``, without zombies.

    Source: proc_pid_stat(5): state, pgrp, starttime and rss are fields 3, 5, 22 and 24, counted
    past the name in brackets, which may itself hold spaces and brackets.
    """
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    page = os.sysconf("SC_PAGE_SIZE")
    found = []
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if fields[0] in "ZX":
            continue
        found.append(
            Process(
                ProcessId(int(folder.name), f"{boot}+{fields[19]}"),
                group=int(fields[2]),
                rss=int(fields[21]) * page,
                mark=_mark(folder / "environ"),
            )
        )
    return found


def _mark(environ: Path) -> str:
    try:
        content = environ.read_bytes()
    except OSError:  # another user's, or gone
        return ""
    prefix = f"{MARK}=".encode()
    marks = (entry for entry in content.split(b"\0") if entry.startswith(prefix))
    return next(marks, b"").removeprefix(prefix).decode(errors="replace")


def parse_ps(text: str) -> list[Process]:
    """The processes that ``ps -A -o pid=,pgid=,rss=,stat=,lstart=`` lists, without zombies.

    >>> parse_ps("  812   812  2048 Ss   Mon Nov 23 03:16:05 2026")[0].id
    ProcessId(pid=812, started='Mon Nov 23 03:16:05 2026')
    """
    found = []
    for line in text.splitlines():
        entry = re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)\s+(\S+)\s+(.+?)\s*$", line)
        if entry and not entry[4].startswith("Z"):
            pid, group, kilobytes = (int(entry[i]) for i in (1, 2, 3))
            found.append(Process(ProcessId(pid, entry[5]), group, kilobytes * 1024, mark=""))
    return found


def belongs(process: Process, leader: ProcessId | None, living: Mapping[int, ProcessId]) -> bool:
    """Whether a process is a recorded one, or of the session it leads.

    While the leader lives, or its number is free, its group is its own. If its number has gone to
    another process, the group that we knew has ended: the system gives no number away that a
    group still bears.
    """
    if leader is None:
        return False
    if process.id == leader:
        return True
    return process.group == leader.pid and living.get(leader.pid) == leader


def find(
    leaders: Iterable[ProcessId],
    marked: Callable[[Mark], bool],
    processes: Processes = living_processes,
) -> list[Process]:
    """The living processes that lead or are in a session we recorded, or bear a fitting mark."""
    alive = processes()
    living = {process.id.pid: process.id for process in alive}
    known = list(leaders)
    found = []
    for process in alive:
        mark = Mark.parse(process.mark)
        if (mark is not None and marked(mark)) or any(
            belongs(process, leader, living) for leader in known
        ):
            found.append(process)
    return found


def identify(pid: int, processes: Processes = living_processes) -> ProcessId | None:
    """The living process of that pid."""
    return next((process.id for process in processes() if process.id.pid == pid), None)


def launch(
    command: Sequence[str | Path], *, mark: Mark, log: Path, cwd: Path, environ: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Starts a process in a session of its own, its output in ``log`` (the last one is kept)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**environ, MARK: str(mark)},
            start_new_session=True,
        )


@contextmanager
def marked(mark: Mark) -> Iterator[None]:
    """Within, tools that are run to their end bear this mark too, as they inherit our variables."""
    before = os.environ.get(MARK)
    os.environ[MARK] = str(mark)
    try:
        yield
    finally:
        if before is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = before


def send(process: ProcessId, signum: signal.Signals, processes: Processes) -> None:
    """Signals a process if it is still the same one."""
    if sys.platform == "linux":
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        try:
            # The handle holds on to one process: what is true of it now stays true.
            if identify(process.pid, processes) == process:
                signal.pidfd_send_signal(handle, signum)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)
    elif identify(process.pid, processes) == process:
        os.kill(process.pid, signum)


def terminate(
    look: Callable[[], list[Process]],
    *,
    patience: float = 20.0,
    processes: Processes = living_processes,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Ends all processes that ``look`` finds: SIGTERM, and SIGKILL after ``patience`` seconds.

    Returns how many there were. Raises ``ServerFailed`` if some outlive even that.
    """
    first = look()
    for process in first:
        send(process.id, signal.SIGTERM, processes)
    deadline = clock() + patience
    while (left := look()) and clock() < deadline:
        sleep(TICK)
    for process in left:
        send(process.id, signal.SIGKILL, processes)
    deadline = clock() + 10.0
    while left := look():
        if clock() >= deadline:
            pids = ", ".join(str(process.id.pid) for process in left)
            raise ServerFailed(f"Processes {pids} do not end, even by SIGKILL. Is a disk hanging?")
        # A process may have started another between two looks.
        for process in left:
            send(process.id, signal.SIGKILL, processes)
        sleep(TICK)
    return len(first)
