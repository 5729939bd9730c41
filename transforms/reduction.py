"""What an aggregate is: a function from many values to one, in three mergeable steps.

Every state depends on nothing but the multiset of the values behind it (and of their times, where
it asks for them): neither their order nor how batches were cut shows in a result. A state is made of
what ``FastPrimitivesCoder`` encodes; None is the state of no value.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa


class Reduction(NamedTuple):
    """What Arrow's group-by is to reduce, and how its results, one a group, become states."""

    columns: Sequence[tuple[pa.Array, str]]
    """Arrays, each with the name of one of Arrow's hash aggregations."""
    states: Callable[..., list[Any]]
    """Takes the reduced array of each column."""


class Aggregate(Protocol):
    """A function from many values to one, in three mergeable steps."""

    def reduce(self, values: pa.Array, times: pa.Array) -> Reduction:
        """Of a batch; ``times`` are the values' event times, int64 without nulls."""

    def merge(self, states: Sequence[Any]) -> Any:
        """One state for several, none of which is None."""

    def result(self, state: Any) -> Any:
        """What a document shows; a JSON value."""
