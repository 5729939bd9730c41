"""Copies: messages that a replay sent to their topic again, and what their headers say of it."""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

ATTEMPT: Final = "velocity-attempt"
"""The header that says the how-manieth attempt a copy is; an original is the first and has none."""
ORIGIN: Final = "velocity-origin"
"""The header that says where a copy's first original is: ``<topic>/<partition>/<offset>``."""
MASKED: Final = "velocity-masked"
"""The header that says of a dead letter that sensitive fields were taken out of it."""

Headers = Iterable[tuple[str, bytes | None]]

_MOST: Final = 2**31 - 1


class Origin(NamedTuple):
    """Where a message was when it came for the first time.

    >>> str(Origin("orders", 3, 17))
    'orders/3/17'
    """

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


def origin_of(headers: Headers) -> Origin | None:
    """Where the first original of a copy is; None for what is no copy of ours.

    >>> origin_of([("velocity-origin", b"orders/3/17")])
    Origin(topic='orders', partition=3, offset=17)
    >>> origin_of([("trace", b"1")]), origin_of([("velocity-origin", b"orders/x/17")])
    (None, None)
    """
    match _last(headers, ORIGIN).split("/"):
        case [topic, partition, offset] if topic and is_number(partition) and is_number(offset):
            return Origin(topic, int(partition), int(offset))
    return None


def attempt_of(headers: Headers) -> int:
    """Which attempt to carry a message to its end this is; 1 where no header says it rightly.

    >>> attempt_of([("velocity-attempt", b"2")]), attempt_of([("velocity-attempt", b"-2")])
    (2, 1)
    """
    text = _last(headers, ATTEMPT)
    return min(max(int(text), 1), _MOST) if is_number(text) else 1


def attempts(headers: pa.Array) -> pa.Array:
    """As ``attempt_of``, of a column ``headers`` of ``MESSAGES``; int32.

    Headers are looked into only where a message has that one.
    """
    names = headers.flatten().field("name")
    if not pc.any(pc.equal(names, ATTEMPT), min_count=0).as_py():
        return pa.repeat(pa.scalar(1, pa.int32()), len(headers))
    return pa.array(
        [attempt_of((h["name"], h["value"]) for h in row or ()) for row in headers.to_pylist()],
        pa.int32(),
    )


def of_what_is_read(messages: pa.RecordBatch, start: int, end: int) -> list[int]:
    """Positions of copies (in ``MESSAGES`` of a partition) that say again what a read reads anyway.

    The read begins at ``start``, and when it began the partition ended at ``end``. A copy before
    that end was sent for what another run had set aside: this read meets the original itself, if
    that is not before its start. A copy that came later may be of what this run has set aside.
    """
    origins = origin_offsets(messages)
    if origins.null_count == len(origins):
        return []
    rows = zip(messages["offset"].to_pylist(), origins.to_pylist(), strict=True)
    return [
        position
        for position, (offset, origin) in enumerate(rows)
        if origin is not None and start <= origin < offset < end
    ]


def origin_offsets(messages: Any) -> pa.Array:
    """Of a batch or table with ``topic``, ``partition`` and ``headers`` of ``MESSAGES`` the offsets of
    the first originals, int64; null for what is no copy, or is one of another partition's.

    >>> from velocity.io.records import MESSAGES
    >>> copy = [{"name": "velocity-origin", "value": b"orders/3/17"}]
    >>> rows = [{"topic": "orders", "partition": n, "headers": copy} for n in (3, 4)]
    >>> origin_offsets(pa.RecordBatch.from_pylist(rows, MESSAGES)).to_pylist()
    [17, None]
    """
    headers = messages["headers"]
    if isinstance(headers, pa.ChunkedArray):
        headers = headers.combine_chunks()
    if not pc.any(pc.equal(headers.flatten().field("name"), ORIGIN), min_count=0).as_py():
        return pa.nulls(len(headers), pa.int64())
    found = (origin_of((h["name"], h["value"]) for h in row or ()) for row in headers.to_pylist())
    places = zip(messages["topic"].to_pylist(), messages["partition"].to_pylist(), strict=True)
    return pa.array(
        [o.offset if o and o[:2] == at else None for o, at in zip(found, places, strict=True)],
        pa.int64(),
    )


def copy_headers(headers: Headers, origin: Origin, attempt: int) -> list[tuple[str, bytes | None]]:
    """The headers of a message that is sent once more: its own, then which attempt of what it is.

    >>> copy_headers([("trace", b"1"), ("velocity-attempt", b"2")], Origin("orders", 3, 17), 3)
    [('trace', b'1'), ('velocity-attempt', b'3'), ('velocity-origin', b'orders/3/17')]
    """
    own = [(name, value) for name, value in headers if name not in (ATTEMPT, ORIGIN, MASKED)]
    return [*own, (ATTEMPT, b"%d" % attempt), (ORIGIN, str(origin).encode())]


def _last(headers: Headers, name: str) -> str:
    values = [value for found, value in headers if found == name]
    return values[-1].decode(errors="replace") if values and values[-1] else ""


def is_number(text: str) -> bool:
    """Whether it is a whole number that is not negative, in as many digits as an int64 may have."""
    return text.isascii() and text.isdigit() and len(text) <= 19
