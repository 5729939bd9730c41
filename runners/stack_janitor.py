"""Clears up after an ``up`` that was killed: it waits for the end of a pipe.

``up`` holds the other end. It writes one byte once all is well; if it dies before, however it
dies, the system closes the pipe, and what that run had started is ended here.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from velocity.runners.stack_process import Mark, find, terminate
from velocity.runners.stack_state import locked, read_state, write_state


def end_run(folder: Path, run: str) -> int:
    """Ends all processes that one run of ``up`` started, and forgets what it recorded.

    Returns how many processes there were.
    """
    state = read_state(folder)
    begun = [
        server
        for component in state.components.values()
        for server in component.servers
        if server.run == run
    ]

    def of_this_run(mark: Mark) -> bool:
        return (mark.stack, mark.run) == (str(folder), run)

    ended = terminate(lambda: find([server.process for server in begun], of_this_run))
    for component in state.components.values():
        servers = tuple(server for server in component.servers if server.run != run)
        state = (
            state.having(replace(component, servers=servers))
            if servers
            else state.without(component.name)
        )
    write_state(folder, state)
    return ended


class Janitor:
    """The waiting process, seen from ``up``."""

    def __init__(self, folder: Path, run: str) -> None:
        with (folder / "janitor.log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "velocity.runners.stack_janitor", str(folder), run],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def dismiss(self) -> None:
        """All is well, or cleared up already: the janitor ends without touching anything."""
        self._child.communicate(b".")


def main(folder: Path, run: str) -> None:
    if not sys.stdin.buffer.read(1):
        with locked(folder, wait=120.0):
            end_run(folder, run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
