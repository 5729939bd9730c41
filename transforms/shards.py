"""Shards: keys of metrics that go through windows together, and share each pane and its state.

A pane costs half a millisecond, in its runner and in the worker; a key in it a tenth of that, most of it for its
document. With as many panes as keys ten thousand keys were no more than 7,500 events a second.
"""

import pickle
from itertools import count
from typing import Any, Final
from zlib import crc32

import pyarrow as pa

from velocity.io.key_groups import GROUPS, group_of

SHARDS: Final = GROUPS
"""One in each of Flink's groups, so that any number of subtasks shares them evenly."""
_CODEC: Final = "lz4_raw"


def nested(name: bytes) -> bytes:
    """As Beam's coder of bytes writes a short name within something else: its length before it."""
    return bytes([len(name)]) + name


def _spread() -> tuple[bytes, ...]:
    """A name for each shard with which it falls into a group of its own."""
    found: dict[int, bytes] = {}
    for number in count():
        name = b"%d" % number
        found.setdefault(group_of(nested(name)), name)
        if len(found) == SHARDS:
            break
    return tuple(found[group] for group in range(SHARDS))


_NAMES: Final = _spread()


def shard_of(key: bytes) -> bytes:
    """The shard of a metric's key, as the runner's key: the same in every run.

    >>> shard_of(b'["orders","Solo"]') == shard_of(b'["orders","Solo"]')
    True
    """
    return _NAMES[crc32(key) % SHARDS]


def packed(value: Any) -> bytes:
    """Pickled and compressed.

    Runners only carry it, and a state of it is cheap to keep: of 8,000 keys 80 kB, and 2 ms each way.
    Beam's coders take as long for numbers alone, longer for what they do not know, and twice as long to decode.

    >>> unpacked(packed((2, (5, 0), [1.5, 2.0])))
    (2, (5, 0), [1.5, 2.0])
    """
    pickled = pickle.dumps(value)
    compressed: bytes = pa.compress(pickled, codec=_CODEC, asbytes=True)
    return b"%d " % len(pickled) + compressed


def unpacked(packed: bytes) -> Any:
    size, _, compressed = packed.partition(b" ")
    pickled = pa.decompress(compressed, int(size), codec=_CODEC, asbytes=True)
    return pickle.loads(pickled)
