"""What spares a service: a breaker that stops calls to one that fails, and a bound on their rate."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from threading import Lock
from typing import Final

from velocity.io.budget import Budget


class State(IntEnum):
    """Of a breaker, as a gauge shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Breaking:
    """After how many failures in a row no call is made, and for how many seconds."""

    failures: int = 10
    open_for: float = 5.0

    def __post_init__(self) -> None:
        if self.failures < 1:
            raise ValueError("breaker.failures: give 1 or more")
        if not self.open_for > 0:
            raise ValueError("breaker.open_for: give seconds above 0")


class Breaker:
    """Stops the calls to a service that fails, and lets one through now and then. Safe for threads.

    Closed, all calls go through. After ``failures`` in a row it is open and none does. After
    ``open_for`` it is half open: one call, the probe, goes through, and as it ends the breaker is
    closed or open again. Who was let through says how the call ended, always.

    The library pybreaker holds its lock during a call, and so lets one through at a time.

    >>> now = [0.0]
    >>> breaker = Breaker(Breaking(failures=2, open_for=5), clock=lambda: now[0])
    >>> for _ in range(2):
    ...     assert breaker.admits()
    ...     breaker.ended(well=False)
    >>> breaker.admits(), breaker.state.name
    (False, 'OPEN')
    >>> now[0] = 5.0
    >>> breaker.admits(), breaker.admits(), breaker.state.name
    (True, False, 'HALF_OPEN')
    >>> breaker.ended(well=True)
    >>> breaker.state.name
    'CLOSED'
    """

    def __init__(self, config: Breaking, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._lock = Lock()
        self._failures = 0
        self._open_until = 0.0
        self._state = State.CLOSED

    @property
    def state(self) -> State:
        return self._state

    def admits(self) -> bool:
        """Whether a call may be made now; if so ``ended`` is owed."""
        with self._lock:
            if self._state is State.OPEN and self._clock() >= self._open_until:
                self._state = State.HALF_OPEN
                return True
            return self._state is State.CLOSED

    def ended(self, *, well: bool) -> None:
        with self._lock:
            if well:
                # Calls that began before may end after it has opened: only the probe closes it.
                if self._state is not State.OPEN:
                    self._state = State.CLOSED
                    self._failures = 0
                return
            self._failures += 1
            if self._state is State.HALF_OPEN or self._failures >= self._config.failures:
                self._state = State.OPEN
                self._open_until = self._clock() + self._config.open_for


@dataclass(frozen=True, slots=True)
class Host:
    """What all calls to a host go through."""

    breaker: Breaker
    rate: Budget | None = None


_hosts: Final[dict[tuple[str, Breaking, float | None], Host]] = {}
_lock: Final = Lock()


def host_of(name: str, breaking: Breaking, per_second: float | None) -> Host:
    """This process's way to a host, the same for all lookups that say the same of it."""
    with _lock:
        key = (name, breaking, per_second)
        if key not in _hosts:
            _hosts[key] = Host(Breaker(breaking), Budget(per_second) if per_second else None)
        return _hosts[key]
