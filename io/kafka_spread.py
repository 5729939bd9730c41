"""Partitions spread evenly over workers, by a runner that hashes what it hands out.

Flink hands the elements of a splittable DoFn to its subtasks by a hash of each (Beam's
``SdfByteBufferKeySelector``): of four partitions one of two subtasks got three as often as not, or all,
and read at half the speed while the other's windows stayed open. So each partition carries a number with
which its hash leads where it should. To other runners it is a number.

Source of the formulas: Java's ``ByteBuffer.hashCode``; ``murmurHash`` in Flink's ``MathUtils`` and
``KeyGroupRangeAssignment.assignToKeyGroup`` (1.19); Beam's ``LengthPrefixCoder`` around bytes
that the runner does not know.
"""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, Final

from apache_beam.coders.coders import Coder, FastPrimitivesCoder, LengthPrefixCoder

from velocity.io.kafka_offsets import Partition

GROUPS: Final = 128
"""Flink's maximum of parallelism in Velocity's jobs, which is how many groups its hashes fall into. With another
the partitions are spread as well as by chance."""

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
    hashed = 1
    for byte in reversed(_AS_SENT.encode(element)):
        hashed = (31 * hashed + (byte if byte < 128 else byte - 256)) & 0xFFFFFFFF
    return _murmur(hashed) % GROUPS


def _halved(place: int) -> int:
    """The groups in an order in which any number of them that follow one another are far apart.

    >>> [_halved(place) for place in range(6)]
    [0, 64, 32, 96, 16, 80]
    """
    return int(f"{place:07b}"[::-1], 2)


def _murmur(code: int) -> int:
    """Of an unsigned hash of 32 bits.

    >>> _murmur(0), _murmur(1), _murmur(12345)
    (593689054, 68075478, 638799361)
    """
    code = _rotated(code * 0xCC9E2D51, 15) * 0x1B873593
    code = _rotated(code, 13) * 5 + 0xE6546B64 & 0xFFFFFFFF
    code ^= 4  # the length of what is hashed
    code = (code ^ code >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    code = (code ^ code >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    code ^= code >> 16
    signed = code - 2**32 if code >= 2**31 else code
    return 0 if signed == -(2**31) else abs(signed)


def _rotated(code: int, by: int) -> int:
    code &= 0xFFFFFFFF
    return (code << by | code >> 32 - by) & 0xFFFFFFFF
