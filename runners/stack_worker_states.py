"""States of a bundle, of which a worker holds a bounded number instead of all until the bundle ends.

Beam holds each state that a bundle has touched, some 3 KB with its key, until the bundle ends. Flink fires
all timers that a watermark has passed in one bundle, however many: 200,000 transactions that fell due
at once were a worker of a gigabyte, though Flink has their states.
"""

from typing import Any, Final

from apache_beam.runners.worker import bundle_processor

MOST_STATES: Final = 1_000
"""That a step holds, besides those of the key at hand."""


class BoundedStates(bundle_processor.FnApiUserStateContext):
    """The states of a step: when they are too many, all are written to the runner and read anew.

    It is written between two keys, for a call of a DoFn is of one key and its handles are its own.
    The runner takes a bundle's writes at any time; should the bundle fail, it has its checkpoint.
    """

    most = MOST_STATES

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._at_hand: Any = None

    def get_state(self, *args: Any) -> Any:
        """The state of (specification, key, window)."""
        at_hand = args[1:]
        if at_hand != self._at_hand and len(self._all_states) >= self.most:
            self.commit()
            self.reset()
        self._at_hand = at_hand
        return super().get_state(*args)


def bound_states() -> None:
    """From now on, what Beam runs in this process has bounded states."""
    bundle_processor.FnApiUserStateContext = BoundedStates
