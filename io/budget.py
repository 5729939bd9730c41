"""A budget: so much a second, over time."""

import threading
import time
from collections.abc import Callable


class Budget:
    """So many tokens a second; none are saved up while nothing is taken. Safe for threads.

    >>> now, slept = [0.0], []
    >>> budget = Budget(10, clock=lambda: now[0], sleep=slept.append)
    >>> budget.turn(), budget.turn(), round(budget.turn(), 3)
    (0.0, 0.1, 0.2)
    """

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._paid = float("-inf")
        self._lock = threading.Lock()

    def turn(self, tokens: float = 1.0) -> float:
        """Takes the next tokens: the seconds until those before them are paid for."""
        with self._lock:
            now = self._clock()
            begins = max(self._paid, now)
            self._paid = begins + tokens / self._rate
            return begins - now

    def take(self, tokens: float) -> None:
        """Takes tokens, and returns when they are paid for: no taking is too large.

        >>> slept = []
        >>> budget = Budget(10, clock=lambda: 0.0, sleep=slept.append)
        >>> budget.take(5), budget.take(10), slept
        (None, None, [0.5, 1.5])
        """
        wait = self.turn(tokens) + tokens / self._rate
        if wait > 0:
            self._sleep(wait)
