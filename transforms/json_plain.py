"""Objects of JSON that are written plainly, read in C; the others are left to ``json_reader``.

Arrow's reader took a quarter of the processors' time of a whole job (docs/adr/0027-plain-json-in-c.md): it keeps
each value as text and converts it in a second pass, and its input must be copied together first.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from velocity.transforms.fields import Field

try:
    from velocity.transforms import json_native
except ImportError:  # built without a C compiler: all is Arrow's
    json_native = None  # type: ignore[assignment]


class Plain(NamedTuple):
    """What was read of a batch of texts."""

    columns: list[pa.Array]
    """One for each field, with a row for each text that was read, in their order."""
    left: np.ndarray
    """The positions in the batch of the others, which may or may not be JSON."""


@dataclass(frozen=True)
class PlainReader:
    """Reads what needs no interpretation: objects of at least one member, each declared name at most once.

    Not plain, and left, is whatever is no JSON, and of what is

    - an empty object; white space or a byte order mark before an object; values nested in more than 64 others;
    - a name with an escape, and half a surrogate pair anywhere;
    - a number of more than 64 characters, or times more than 10**300 or less than 10**-300;
    - for ``int64`` and ``timestamp_ms`` more than 18 digits, ``-0``, ``1.0`` and ``1e2``;
    - for ``double`` what is beyond its range; for a decimal more than 18 digits, an exponent, more digits
      behind the point than its scale has, or more before it than are left;
    - for ``timestamp`` all but ``2026-01-31T08:30:00``, with a fraction and an offset or without, of
      1678 to 2261;
    - any other value that has not the field's type.

    What is read is what ``JsonReader`` would read of it.

    >>> plain = PlainReader({"city": Field("string"), "n": Field("int64")}, 1_000).read(
    ...     pa.array([b'{"n": 7, "city": "Solo"}', b'{"n": "7"}', b'{"n": 8}']))
    >>> plain and ([column.to_pylist() for column in plain.columns], plain.left.tolist())
    ([['Solo', None], [7, 8]], [1])
    """

    fields: Mapping[str, Field]
    max_bytes: int

    def read(self, texts: pa.Array) -> Plain | None:
        """``texts`` are binary. None if they are not, and where the C part was not built."""
        if json_native is None or texts.type != pa.binary():
            return None
        valid, ends, data = texts.buffers()
        rows, columns, left = json_native.read(
            self._native, valid or b"", ends or bytes(4), data or b"", texts.offset, len(texts), self.max_bytes
        )  # fmt: skip
        return Plain(
            [
                pa.Array.from_buffers(
                    field.arrow,
                    rows,
                    [pa.py_buffer(bits) if nulls else None, *map(pa.py_buffer, values)],
                    null_count=nulls,
                )
                for field, (nulls, bits, *values) in zip(self.fields.values(), columns, strict=True)
            ],
            np.frombuffer(left, np.int64),
        )

    @functools.cached_property
    def _native(self) -> "tuple[json_native.Field, ...]":
        return tuple(_native(name, field) for name, field in self.fields.items())


def _native(name: str, field: Field) -> "json_native.Field":
    type_ = field.arrow
    if pa.types.is_decimal(type_):
        return name.encode(), "decimal", type_.precision, type_.scale
    return name.encode(), field.type, 0, 0
