"""Which of Flink's key groups a key falls into, so that what is handed out can be spread evenly.

Flink hands keyed elements to subtasks by a hash of the key, a range of ``GROUPS`` to each. Other runners
have other ways; to them what is chosen by these is as good as any.

Source of the formulas: ``FlinkKey.hashCode`` in Beam's Flink runner (2.70), a 128-bit MurmurHash3 of
which the first four bytes count; ``murmurHash`` in Flink's ``MathUtils`` and
``KeyGroupRangeAssignment.assignToKeyGroup`` (1.19).
"""

from typing import Final

import mmh3

GROUPS: Final = 128
"""Flink's maximum of parallelism in Velocity's jobs, which is how many groups its hashes fall into. With another
what is spread by them is spread as well as by chance."""


def group_of(encoded: bytes) -> int:
    """The group of a key, as Beam's coder writes it (in its nested form).

    >>> group_of(bytes([3]) + b"abc")
    22
    """
    return _murmur(mmh3.hash128(encoded) & 0xFFFFFFFF) % GROUPS


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
