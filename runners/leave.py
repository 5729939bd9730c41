"""How our processes end: without taking the interpreter apart, in which they could hang for ever."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, TextIO


def run_and_leave(command: Callable[[], object]) -> NoReturn:
    """Runs what a process is for, and ends the process with the exit code that Python would give.

    All is done that an interpreter does at its end, up to taking its modules apart. Daemon threads, of
    which gRPC and Beam have some, are stopped there wherever they are, with a lock in hand too, and a
    finalizer that wants the lock (gRPC's streams have one) then waits without end. Output that can't be
    written makes of the code 0 a 1.
    """
    code = 1
    try:
        code = _run(command)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for those that are no daemons
        atexit._run_exitfuncs()
    except KeyboardInterrupt:
        code = 130
    finally:
        written = [_written(stream) for stream in (sys.stdout, sys.stderr)]
        os._exit(code or (0 if all(written) else 1))


def _run(command: Callable[[], object]) -> int:
    try:
        command()
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001  # the interpreter shows each, whatever it is
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _written(stream: TextIO | None) -> bool:
    """Whether all that was printed is written; there is no stream where its file was closed at the start."""
    try:
        if stream is not None and not stream.closed:
            stream.flush()
    except BrokenPipeError:  # nobody reads it any more, and wants to hear of it
        return False
    except OSError as error:
        os.write(2, f"{stream.name if stream else ''} can't be written: {error}\n".encode())
        return False
    return True
