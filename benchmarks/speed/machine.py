"""What processes use of the machine, by Linux's ``/proc``."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple, Self

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    parent: int
    cpu: float
    """Seconds of processors, those of its ended children too."""
    resident: int
    """Bytes."""


def processes() -> dict[int, Process]:
    """All that run now, by their pid."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            cpu = sum(map(int, fields[11:15])) / TICKS
            found[int(folder.name)] = Process(int(fields[1]), cpu, int(fields[21]) * PAGE)
    return found


def tree(roots: Iterable[int], among: dict[int, Process]) -> set[int]:
    """These processes and all that descend from them."""
    children = defaultdict(list)
    for pid, process in among.items():
        children[process.parent].append(pid)
    found: set[int] = set()
    waiting = [pid for pid in roots if pid in among]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children[pid]
    return found


def busy() -> float:
    """Seconds for which this machine's processors have worked since it was started."""
    first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS


class Look(NamedTuple):
    """At one moment."""

    at: float
    """Of ``time.monotonic``."""
    cpu: float
    """Seconds of processors, of a system since it was started."""
    resident: int
    """Bytes of all its processes, shared pages counted in each."""
    others: float
    """Seconds of processors for all but the system, the servers and this process."""


class Watch:
    """Looks at a system's processes five times a second for as long as it is entered."""

    def __init__(self, root: int, servers: Iterable[int]) -> None:
        self._root, self._servers = root, list(servers)
        self._ended = Event()
        self.looks: list[Look] = []

    def look(self) -> Look:
        every = processes()
        ours = tree([self._root], every)
        aside = tree([*self._servers, os.getpid()], every) - ours
        cpu = sum(every[pid].cpu for pid in ours)
        return Look(
            time.monotonic(),
            cpu,
            sum(every[pid].resident for pid in ours),
            busy() - cpu - sum(every[pid].cpu for pid in aside),
        )

    def at(self, moment: float, value: Callable[[Look], float]) -> float:
        """As of the last look before a moment, or of the first."""
        return value(
            max(
                (k for k in self.looks if k.at <= moment), key=lambda k: k.at, default=self.looks[0]
            )
        )

    def __enter__(self) -> Self:
        def run() -> None:
            while not self._ended.wait(0.2):
                self.looks.append(self.look())

        self.looks.append(self.look())
        self._thread = Thread(target=run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
