"""Back pressure: a lookup that waits for a service which fails, so that nothing is lost meanwhile."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from velocity.io import patience
from velocity.io.lookup import Answers, Failed, Keep, Lookup
from velocity.io.metrics import counter

_BASE: Final = 0.5
_LONGEST: Final = 5.0
_TELL_EVERY: Final = 60.0

_log = logging.getLogger(__name__)


class ServiceUnavailable(Exception):
    """A service has failed for as long as a bundle may wait: the runner shall try it again."""

    def __init__(self, name: str, keys: int, seconds: float, error: str) -> None:
        super().__init__(name, keys, seconds, error)  # all of them, so that it survives pickling
        self.name, self.keys, self.seconds, self.error = name, keys, seconds, error

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.keys} keys could not be looked up in {self.seconds:.0f} s; the "
            f"first: {self.error}. None of their events is counted yet, nor lost: they are looked up"
            " again as the job goes on, or is run again"
        )


@dataclass(frozen=True)
class Waiting:
    """A lookup that looks up again what failed, until it has not, or ``limit`` seconds are over.

    Between the attempts it pauses, 5 s at most, with full jitter. Keys that the service refuses
    while it is well stay ``Failed``. Counts ``enrich_waits`` and ``enrich_wait_ms`` as it waits, and
    tells in the log when it begins, once a minute, and when it ends. Raises ``ServiceUnavailable``
    after ``limit``, and when the process ends.
    """

    lookup: Lookup
    limit: float
    name: str = "enrich"
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], bool] = patience.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        begun = self.lookup.begin(keys, keep)

        def answers() -> Answers:
            found = begun()
            return self._again(keys, keep, found) if _failing(found.values) else found

        return answers

    def _again(self, keys: Sequence[str], keep: Keep, first: Answers) -> Answers:
        values, counts = list(first.values), dict(first.counts)
        samples = {name: list(some) for name, some in first.samples.items()}
        states, began, told, attempt = first.states, self.clock(), float("-inf"), 0
        counter("enrich_waits").inc()
        while failing := _failing(values):
            now, error = self.clock(), values[failing[0]].error
            if now - told >= _TELL_EVERY:
                text = "%s: %d keys wait for the service, for %.0f s so far; the last error: %s"
                _log.warning(text, self.name, len(failing), now - began, error)
                told = now
            pause = self.uniform(0.0, min(_LONGEST, _BASE * 2**attempt))
            pause = min(pause, max(began + self.limit - now, 0.0))
            if now - began >= self.limit or not self.sleep(pause):
                raise ServiceUnavailable(self.name, len(failing), now - began, error)
            again = self.lookup.begin([keys[i] for i in failing], keep)()
            counter("enrich_wait_ms").inc(round(1000 * (self.clock() - now)))
            for i, value in zip(failing, again.in_rows(), strict=True):
                values[i] = value
            for name, count in again.counts.items():
                counts[name] = counts.get(name, 0) + count
            for name, some in again.samples.items():
                samples.setdefault(name, []).extend(some)
            states, attempt = again.states, min(attempt + 1, 10)
        _log.warning("%s: the service answers again, after %.0f s", self.name, self.clock() - began)
        return Answers(values, counts, samples, states)


def _failing(values: Sequence[Any]) -> list[int]:
    """The indexes of what may be answered later."""
    if Failed not in set(map(type, values)):
        return []
    return [i for i, value in enumerate(values) if type(value) is Failed and not value.refused]
