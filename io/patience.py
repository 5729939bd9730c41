"""Waiting that ends with the process."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

_SLICE: Final = 0.5
_probe: Final = ThreadPoolExecutor(1, "probe")


def alive() -> bool:
    """Whether the process goes on: executors take nothing more once the interpreter is ending.

    It then waits for all threads to end, and its main thread still counts as alive.
    """
    try:
        _probe.submit(int)
    except RuntimeError:
        return False
    return True


def sleep(
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    nap: Callable[[float], None] = time.sleep,
    alive: Callable[[], bool] = alive,
) -> bool:
    """Waits, and says whether it has waited to the end: False once the process is ending.

    A thread that only slept would hold up the end of its process for as long.

    >>> sleep(0.01), sleep(3600, alive=lambda: False)
    (True, False)
    """
    end = clock() + seconds
    while alive():
        left = end - clock()
        if left <= 0:
            return True
        nap(min(left, _SLICE))
    return False
