"""States: a worker holds a bounded number of a bundle's, writes many at once, and keeps what it knows.

Beam holds each state that a bundle has touched, some 3 KB with its key, until the bundle ends. Flink fires
all timers that a watermark has passed in one bundle, however many: 200,000 transactions that fell due
at once were a worker of a gigabyte, though Flink has their states.

And it writes one after the other, each time waiting for the runner's answer, a millisecond or more.

Its cache, which spares reading a state that this worker wrote, weighs each value by walking over all that it
refers to, with a look at the globals of every module: 3 ms a state (Beam 2.77, objsize 0.7.1).
"""

import sys
from collections.abc import Mapping
from typing import Any, Final

from apache_beam.runners.worker import bundle_processor, statecache

MOST_STATES: Final = 1_000
"""That a step holds, besides those of the key at hand."""


class _Written:
    """The answer to a write, which is waited for with those of the others."""

    def get(self, timeout: float | None = None) -> None:
        """Nothing to wait for yet."""


class Pipelined:
    """A handler of states whose writes are sent without waiting for the answers to those before.

    The runner answers in the order of the requests, which are of one stream.
    """

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self._sent: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def extend(self, *arguments: Any) -> _Written:
        return self._send(self._handler.extend(*arguments))

    def clear(self, *arguments: Any) -> _Written:
        return self._send(self._handler.clear(*arguments))

    def _send(self, answer: Any) -> _Written:
        self._sent.append(answer)
        return _Written()

    def settle(self) -> None:
        """Returns when all that was sent is written; raises what a write failed of."""
        sent, self._sent = self._sent, []
        for answer in sent:
            answer.get()


class BoundedStates(bundle_processor.FnApiUserStateContext):
    """The states of a step: when they are too many, all are written to the runner and read anew.

    It is written between two keys, for a call of a DoFn is of one key and its handles are its own.
    The runner takes a bundle's writes at any time; should the bundle fail, it has its checkpoint.
    """

    most = MOST_STATES

    def __init__(self, handler: Any, *arguments: Any, **named: Any) -> None:
        self._writes = Pipelined(handler)
        super().__init__(self._writes, *arguments, **named)
        self._at_hand: Any = None

    def commit(self) -> None:
        super().commit()
        self._writes.settle()

    def get_state(self, *args: Any) -> Any:
        """The state of (specification, key, window)."""
        at_hand = args[1:]
        if at_hand != self._at_hand and len(self._all_states) >= self.most:
            self.commit()
            self.reset()
        self._at_hand = at_hand
        return super().get_state(*args)


def weight(*values: Any) -> int:
    """Bytes of plain values (what a state's coder can write), what they share counted each time.

    >>> weight((2, [1.5, 2.0])) == sum(map(sys.getsizeof, [(1, 2), 2, [1, 2], 1.5, 2.0]))
    True
    """
    total, left = 0, list(values)
    while left:
        value = left.pop()
        total += sys.getsizeof(value)
        match value:
            case list() | tuple() | set() | frozenset():
                left += value
            case Mapping():
                left += value
                left += value.values()
            case statecache.CacheAware():
                left += value.get_referents_for_cache()
    return total


def bound_states() -> None:
    """From now on, what Beam runs in this process has bounded states, cheaply weighed."""
    bundle_processor.FnApiUserStateContext = BoundedStates
    statecache.get_deep_size = weight
