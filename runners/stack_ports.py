"""Chooses the ports that servers listen on: the usual one if free, else any free one."""

import fcntl
import random
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from velocity.runners.stack_errors import PortTaken

HOST: Final = "127.0.0.1"
"""The only interface that the stack's servers listen on."""


BELOW_EPHEMERAL: Final = (15_000, 32_768)
"""Linux gives connections that go out ports from the end of this range on; others later ones."""


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections still linger counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def any_free() -> int:
    """A free port below those that systems give to connections that go out.

    One of those may be such a connection's by the time that a server listens, seconds later.
    """
    while not is_free(port := random.randrange(*BELOW_EPHEMERAL)):
        pass
    return port


class Claims:
    """The ports that one ``up`` has chosen, which no other stack takes.

    Between a look at a port and a server's listening lie seconds. Two stacks that start at once
    would choose the same one; a server of the second would fail, and that of the first answer in its
    place. A claim is a lock on a file of ``folder``, which the system frees when its holder dies.

    A stack also keeps the ports of a server of its that died, until it is taken down: its clients
    would find another stack's server there. So the file names the state folder of its last holder,
    and ``keeps(holder, port)`` says whether that one still wants the port.
    """

    def __init__(self, folder: Path, stack: Path, keeps: Callable[[Path, int], bool]) -> None:
        self._folder = folder
        self._stack = stack
        self._keeps = keeps
        self._files = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def take(self, port: int) -> bool:
        """Claims a port; False if a server listens there, or another stack has claimed it."""
        file = (self._folder / str(port)).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        file.seek(0)
        holder = Path(file.read() or self._stack)
        if not is_free(port) or (holder != self._stack and self._keeps(holder, port)):
            file.close()
            return False
        file.truncate(0)
        file.write(str(self._stack))
        file.flush()
        self._files.enter_context(file)
        return True

    def take_any(self) -> int:
        """Claims a port that the system says is free."""
        while not self.take(port := any_free()):
            pass
        return port


def choose_ports(
    usual: Mapping[str, int],
    given: Mapping[str, int],
    *,
    free: Callable[[int], bool] = is_free,
    any_port: Callable[[], int] = any_free,
) -> dict[str, int]:
    """A port for each name of ``usual``: the given one, the usual one, or any free one.

    A usual port of 0 means that any will do. Raises ``PortTaken`` if a given one is not free.

    >>> choose_ports({"kafka": 9092}, {}, free=lambda port: True)
    {'kafka': 9092}
    >>> choose_ports({"kafka": 9092}, {}, free=lambda port: False, any_port=lambda: 40001)
    {'kafka': 40001}
    """
    chosen: dict[str, int] = {}
    for name, port in usual.items():
        if name in given:
            if not free(given[name]) or given[name] in chosen.values():
                raise PortTaken(
                    f"Port {given[name]}, given for {name}, is in use on {HOST}: end the program"
                    f" that listens there, or give another one with --port {name}=PORT."
                )
            chosen[name] = given[name]
        elif port and port not in (*chosen.values(), *given.values()) and free(port):
            chosen[name] = port
        else:
            while (port := any_port()) in (*chosen.values(), *given.values()):
                pass
            chosen[name] = port
    return chosen
