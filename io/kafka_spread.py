"""Partitions spread evenly over workers, by a runner that hashes what it hands out.

Flink hands the elements of a splittable DoFn to its subtasks by a hash of each (Beam's
``SdfFlinkKeyKeySelector``): of four partitions one of two subtasks got three as often as not, or all,
and read at half the speed while the other's windows stayed open. So each partition carries a number with
which its hash leads where it should (``key_groups``). To other runners it is a number.

Beam puts a ``LengthPrefixCoder`` around bytes that the runner does not know.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, Final

from apache_beam.coders.coders import Coder, FastPrimitivesCoder, LengthPrefixCoder

from velocity.io import key_groups
from velocity.io.kafka_offsets import Partition
from velocity.io.key_groups import GROUPS

_AS_SENT: Final[Coder] = LengthPrefixCoder(FastPrimitivesCoder())


def spread(partitions: Iterable[Partition], before: int) -> Iterator[Partition]:
    """The partitions, each with a number for its hash; so many were given out ``before``.

    >>> four = [Partition("orders", number, 0, 100) for number in range(4)]
    >>> [group_of(partition) * 2 // GROUPS for partition in spread(four, 0)]  # of two subtasks
    [0, 1, 0, 1]
    """
    for place, partition in enumerate(partitions, before):
        wanted = _halved(place % GROUPS)
        tried = (partition._replace(spread=number) for number in count())
        yield next(one for one in tried if group_of(one) == wanted)


def group_of(element: Any) -> int:
    """The group that Flink puts an element into."""
    return key_groups.group_of(_AS_SENT.encode(element))


def _halved(place: int) -> int:
    """The groups in an order in which any number of them that follow one another are far apart.

    >>> [_halved(place) for place in range(6)]
    [0, 64, 32, 96, 16, 80]
    """
    return int(f"{place:07b}"[::-1], 2)
