"""Brings up, reports on and takes down the local stack of real servers.

Servers run detached, each in a session of its own; nothing of ours runs beside them. While ``up``
is at work a janitor process watches it: if ``up`` is killed, the janitor ends what that run had
started. An interrupted ``up`` clears up by itself, and if both are killed the next command finds
what they left, by the record or by the marks that processes carry (docs/adr/0001-local-stack.md).
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from velocity.runners.stack_components import (
    NAMES,
    PORTS,
    Machine,
    Settings,
    check_kept,
    component,
)
from velocity.runners.stack_errors import ServerFailed, StackError
from velocity.runners.stack_janitor import Janitor, end_run
from velocity.runners.stack_ports import Claims, choose_ports
from velocity.runners.stack_process import Mark, find, marked, terminate
from velocity.runners.stack_server import Component, Server, members, tail
from velocity.runners.stack_state import (
    ServerRecord,
    StackState,
    keeps_port,
    locked,
    read_state,
    write_state,
)
from velocity.runners.stack_status import ComponentStatus, component_status

Report = Callable[[str, str], None]
"""Told of progress: which component, and what it does."""

LOOK_EVERY: Final = 0.25
"""Seconds between two questions to a server that is coming up."""

PATIENCE: Final = 30.0
"""Seconds that a server has to end in order, before it is killed."""


class Interrupted(BaseException):
    """``up`` was asked to end by a signal other than Ctrl-C's."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Stack:
    """The stack whose files are in one state folder."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._sleep = sleep

    def up(
        self,
        machine: Machine,
        names: Sequence[str] = NAMES,
        *,
        settings: Settings | None = None,
        asked: Collection[str] = (),
        ports: Mapping[str, int] | None = None,
        fresh: bool = False,
        wait: float = 180.0,
        report: Report = lambda name, message: None,
    ) -> StackState:
        """Starts what does not run yet, and returns once all of it is healthy.

        Of a component that runs, only servers that ended are started again, as they were; it is an
        error if it runs otherwise than ``asked``: the names of settings that must hold. With
        ``fresh``, data of former runs is deleted first. Raises ``StackError``; whatever it
        raises, nothing that this call started is left running.
        """
        names = [name for name in NAMES if name in _known(names)]
        settings = settings or Settings()
        with (
            locked(self.folder),
            Claims(machine.cache / "ports", self.folder, keeps_port) as claims,
            _signals_raise(),
        ):
            self._end_leftovers()
            machine.check(names, settings)
            run = f"{os.getpid()}-{time.time_ns()}"
            janitor = Janitor(self.folder, run)
            try:
                with marked(Mark(str(self.folder), run, "up")):
                    if fresh:
                        self._take_down(names)
                    built = self._build(
                        names, settings, asked, ports or {}, claims, machine, report
                    )
                    for part in built:
                        self._start(part, run, fresh, report)
                    for part in built:
                        self._await(part, wait, report)
            except BaseException:
                # If this is interrupted in its turn, the janitor sees us die undismissed.
                end_run(self.folder, run)
                janitor.dismiss()
                raise
            janitor.dismiss()
            return read_state(self.folder)

    def down(self, names: Sequence[str] = NAMES, *, report: Report = lambda *_: None) -> int:
        """Ends these components, and whatever a crashed command left; data is kept.

        Returns how many processes there were.
        """
        with locked(self.folder, wait=120.0):
            return self._end_leftovers() + self._take_down(_known(names), report)

    def status(self) -> list[ComponentStatus]:
        """What each component that was brought up does now."""
        records = read_state(self.folder).components.values()
        return [component_status(record, str(self.folder)) for record in records]

    def logs(self, names: Sequence[str], lines: int) -> dict[str, str]:
        """The last lines of each server's log, by the name of the server.

        ``names`` are components or servers; none means all.
        """
        found = {}
        for record in read_state(self.folder).components.values():
            for server in record.servers:
                if not names or {record.name, server.name} & set(names):
                    found[server.name] = tail(server.log, lines)
        return found

    def _alive(self, server: ServerRecord) -> bool:
        return any(p.id == server.process for p in members(server, str(self.folder)))

    def _end_leftovers(self) -> int:
        """Ends what bears our mark and is of no recorded server that still lives."""
        recorded = read_state(self.folder).components.values()
        kept = {
            (server.run, server.name)
            for record in recorded
            for server in record.servers
            if self._alive(server)
        }

        def left(mark: Mark) -> bool:
            return mark.stack == str(self.folder) and (mark.run, mark.server) not in kept

        return terminate(lambda: find([], left), patience=PATIENCE)

    def _take_down(self, names: Sequence[str], report: Report = lambda *_: None) -> int:
        state = read_state(self.folder)
        ended = 0
        # Flink first: its jobs read from Kafka and write to Elasticsearch.
        for name in reversed(NAMES):
            record = state.components.get(name)
            if record is None or name not in names:
                continue
            report(name, "stopping")
            runs = {(server.run, server.name) for server in record.servers}
            leaders = [server.process for server in record.servers]

            def ours(mark: Mark, runs: set[tuple[str, str]] = runs) -> bool:
                return mark.stack == str(self.folder) and (mark.run, mark.server) in runs

            ended += terminate(
                lambda leaders=leaders, ours=ours: find(leaders, ours),  # type: ignore[misc]
                patience=PATIENCE,
            )
            for server in record.servers:
                server.log.with_suffix(".pid").unlink(missing_ok=True)
            state = state.without(name)
            write_state(self.folder, state)
        return ended

    def _build(
        self,
        names: Sequence[str],
        settings: Settings,
        asked: Collection[str],
        given: Mapping[str, int],
        claims: Claims,
        machine: Machine,
        report: Report,
    ) -> list[Component]:
        """All components, as they run or as they shall be; fetches what the cache lacks."""
        state = read_state(self.folder)
        usual = {
            port: number
            for name in names
            if name not in state.components
            for port, number in PORTS[name].items()
        }
        running = {
            port: number
            for name in names
            if name in state.components
            for port, number in state.components[name].ports.items()
        }
        for port, number in given.items():
            if port in running and running[port] != number:
                (owner,) = (name for name in names if port in PORTS[name])
                raise StackError(
                    f"{owner} was brought up with port {port}={running[port]}, not {number}: take"
                    f" it down first, velocity stack down {owner}"
                )
            if port not in usual | running:
                raise StackError(
                    f"Port {port}={number} is for nothing that this command starts, which takes"
                    f" {', '.join(usual | running)}."
                )
        chosen = choose_ports(
            usual,
            {k: v for k, v in given.items() if k in usual},
            free=claims.take,
            any_port=claims.take_any,
        )
        built = []
        for name in names:
            old = state.components.get(name)
            if old:
                check_kept(old, settings, asked)
            part = component(
                name,
                ports=old.ports if old else {port: chosen[port] for port in PORTS[name]},
                settings=Settings(**old.settings) if old else settings,
                machine=machine,
                folder=self.folder,
                progress=lambda message, name=name: report(name, message),  # type: ignore[misc]
            )
            alive = [server for server in old.servers if self._alive(server)] if old else []
            built.append(replace(part, record=replace(part.record, servers=tuple(alive))))
        return built

    def _start(self, part: Component, run: str, fresh: bool, report: Report) -> None:
        record = part.record
        alive = {server.name for server in record.servers}
        if fresh:
            shutil.rmtree(part.data, ignore_errors=True)
        for server in part.servers:
            if server.name in alive:
                report(record.name, f"{server.name} runs already")
                continue
            report(record.name, f"starting {server.name}")
            started = server.start(Mark(str(self.folder), run, server.name))
            record = replace(record, servers=(*record.servers, started))
            write_state(self.folder, read_state(self.folder).having(record))

    def _await(self, part: Component, wait: float, report: Report) -> None:
        """Returns when every server is healthy; raises ``ServerFailed`` if one ends or is late."""
        deadline = self._clock() + wait
        waiting: list[Server] = list(part.servers)
        while waiting:
            for server in waiting:
                server.check_alive()
            waiting = [server for server in waiting if not server.healthy()]
            if waiting and self._clock() >= deadline:
                late = waiting[0]
                raise ServerFailed(
                    f"{late.name} is not healthy after {wait:.0f} s (--wait gives it more);"
                    f" the end of {late.log}:\n{tail(late.log, 20)}"
                )
            if waiting:
                self._sleep(LOOK_EVERY)
        where = ", ".join(f"{k} {v}" for k, v in part.record.addresses.items())
        report(part.record.name, f"healthy: {where}")


def _known(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in NAMES:
            raise StackError(f"{name!r} is no component: give {', '.join(NAMES)}.")
    return names or NAMES


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise ``Interrupted`` as Ctrl-C raises ``KeyboardInterrupt``."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it gets signals
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
