"""How our processes end: without taking the interpreter apart, in which they could hang for ever."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def run_and_leave(command: Callable[[], object]) -> NoReturn:
    """Runs what a process is for, and ends the process with the exit code that ``sys.exit`` would give.

    All is done that an interpreter does at its end, up to taking its modules apart. Daemon threads, of
    which gRPC and Beam have some, are stopped there wherever they are, with a lock in hand too, and a
    finalizer that wants the lock (gRPC's streams have one) then waits without end.
    """
    code = 1
    try:
        command()
        code = 0
    except SystemExit as end:
        code = _code(end)
    except BaseException as error:  # noqa: BLE001  # the interpreter shows each, whatever it is
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for those that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


def _code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1
