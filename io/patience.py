"""Waiting that ends with the process."""

import threading
import time
from collections.abc import Callable
from typing import Final

_SLICE: Final = 0.5


def sleep(
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    nap: Callable[[float], None] = time.sleep,
    alive: Callable[[], bool] = lambda: threading.main_thread().is_alive(),
) -> bool:
    """Waits, and says whether it has waited to the end: False once the process is ending.

    Python ends a process when its main thread has ended and all others have: a thread that only
    slept would hold it up for as long.

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
