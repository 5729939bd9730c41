"""Objects of JSON, a batch at a time: columns, and each text that is not one object.

What is written plainly ``json_plain`` reads; the rest is read by Arrow, and diagnosed where it can't be.
"""

import functools
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from velocity.io.records import Cause, Failure
from velocity.transforms.decimals import MOST
from velocity.transforms.fields import Field
from velocity.transforms.json_diagnosis import diagnose, diagnose_decimals, diagnose_fields
from velocity.transforms.json_plain import PlainReader

_ROW: Final = f"_row_{secrets.token_hex(4)}"
"""Numbers the documents of a batch, to find each again after parsing. Random, so that no message
can carry a number of its own making."""

_ROW_OF_ERROR: Final = re.compile(r"in row (\d+)$")

_LONG_EXPONENT: Final = r"[0-9.][eE][+-]?[0-9]{2}|\\u00(?:3[0-9]|[46]5|2[bdeBDE])"
"""What a decimal with an exponent of two digits or more has in it, or one that is written by escapes."""

_BLANK: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"


class Read(NamedTuple):
    """What is in the texts of a batch: columns of those that could be read, and the others."""

    columns: list[pa.Array]
    """One for each field."""
    kept: np.ndarray
    """The position in the batch of each row of ``columns``."""
    failures: list[Failure]


@dataclass(frozen=True)
class JsonReader:
    """Reads texts of one JSON object each; fields that are not named are ignored.

    ``required`` names the field that an empty object is said to lack. Of a field that is there each
    value has the field's type, or is null; nothing else is checked.

    >>> read = JsonReader({"city": Field("string")}, "city", 1_000).read(
    ...     pa.array([b'{"city": "Solo"}', b'{"city": 7}', b'{"city": null}']))
    >>> read.columns[0].to_pylist(), read.kept.tolist()
    (['Solo', None], [0, 2])
    >>> read.failures[0].error
    'field city: expected string, found a whole number'
    """

    fields: Mapping[str, Field]
    required: str
    max_bytes: int

    def read(self, texts: pa.Array) -> Read:
        """``texts`` are binary; white space and byte order marks around them don't matter."""
        plain = self._plain.read(texts)
        if plain is None or len(plain.left) == len(texts):
            return self.read_any(texts)
        if not len(plain.left):
            return Read(plain.columns, np.arange(len(texts)), [])
        left = plain.left
        others = self.read_any(texts.take(pa.array(left)))
        kept = np.concatenate([np.delete(np.arange(len(texts)), left), left[others.kept]])
        order = np.argsort(kept)
        columns = [
            pa.concat_arrays(parts).take(pa.array(order))
            for parts in zip(plain.columns, others.columns, strict=True)
        ]
        failures = [f._replace(position=int(left[f.position])) for f in others.failures]
        return Read(columns, kept[order], failures)

    def read_any(self, texts: pa.Array) -> Read:
        """As ``read``, by Arrow alone."""
        values = _trimmed(texts)
        failures = list(self._unreadable(values))
        readable = np.setdiff1d(np.arange(len(values)), [f.position for f in failures])
        parts, positions = [], []
        for part in self._parse(values if not failures else values.take(pa.array(readable))):
            if isinstance(part, Failure):
                failures.append(part._replace(position=int(readable[part.position])))
            else:
                start, table = part
                parts.append(table)
                positions.append(readable[start : start + len(table)])
        columns = pa.concat_tables(parts) if parts else self._json_schema.empty_table()
        kept = np.concatenate(positions or [np.array([], int)])
        return Read(self._rows(columns), kept, failures)

    def _unreadable(self, values: pa.Array) -> Iterator[Failure]:
        """What must not reach Arrow's reader: it crashes on a bare ``null`` and checks no UTF-8."""
        sizes = pc.fill_null(pc.binary_length(values), 0)
        if is_all(pc.starts_with(values, b"{")) and is_all(pc.less_equal(sizes, self.max_bytes)):
            try:
                pc.cast(values, pa.string())
                yield from self._exponents(values)
                return
            except pa.ArrowInvalid:
                pass  # the loop below finds which
        for position, value in enumerate(values.to_pylist()):
            if failure := self._examine(value) or diagnose_decimals(value or b"", self.fields):
                yield Failure(position, *failure)

    def _exponents(self, values: pa.Array) -> Iterator[Failure]:
        """Arrow's reader looks powers of ten up in a table, also beyond its end: it crashes on the
        decimal ``1e-100000000``."""
        if not self._decimals:
            return
        suspect = pc.match_substring_regex(values, _LONG_EXPONENT)
        for position in np.flatnonzero(suspect.to_numpy(zero_copy_only=False)).tolist():
            if failure := diagnose_decimals(values[position].as_py(), self.fields):
                yield Failure(position, *failure)

    def _examine(self, value: bytes | None) -> tuple[Cause, str] | None:
        if value is None:
            return Cause.EMPTY, "a tombstone: the message has a key and no value"
        if len(value) > self.max_bytes:
            return Cause.TOO_LARGE, f"{len(value)} bytes; at most {self.max_bytes} are decoded"
        if not value:
            return Cause.EMPTY, "the message is empty"
        try:
            value.decode()
        except UnicodeDecodeError as error:
            return Cause.NOT_UTF8, f"not UTF-8 at byte {error.start}"
        return None if value.startswith(b"{") else diagnose(value)

    def _parse(self, values: pa.Array) -> Iterator[tuple[int, pa.Table] | Failure]:
        """Tables of consecutive messages, each with the position of its first, and what failed.

        Arrow stops at the first message that it can't read and, mostly, names its row: the batch
        is cut there, or in the middle, and both sides are tried again. What follows is halved as
        well, or a batch of bad messages would be read anew for each of them.
        """
        ranges = [(0, len(values))]
        while ranges:
            start, stop = ranges.pop()
            if start == stop:
                continue
            table, suspect = self._read(values.slice(start, stop - start))
            if table is not None:
                yield start, table
            elif stop - start == 1:
                value = values[start].as_py()
                yield Failure(start, *diagnose_fields(value, self.fields, self.required))
            else:
                cut = start + suspect if suspect is not None else (start + stop) // 2
                cuts = [start, cut, stop]
                if suspect is not None:
                    cuts = [start, cut, cut + 1, (cut + 1 + stop) // 2, stop]
                ranges += reversed(list(pairwise(cuts)))

    def _read(self, values: pa.Array) -> tuple[pa.Table | None, int | None]:
        """A table with a row for each message; or none, and which one is to blame if that is known."""
        n = len(values)
        buffer = _numbered(values)
        try:
            table = pj.read_json(
                pa.BufferReader(buffer),
                read_options=pj.ReadOptions(use_threads=False, block_size=buffer.size + 1),
                parse_options=pj.ParseOptions(
                    explicit_schema=self._json_schema.append(pa.field(_ROW, pa.int64())),
                    unexpected_field_behavior="ignore",
                ),
            )
        except pa.ArrowInvalid as error:
            row = _ROW_OF_ERROR.search(str(error))
            return None, min(int(row[1]), n - 1) if row else None
        numbers = pc.fill_null(table[_ROW], -1).to_numpy()
        wrong = np.flatnonzero(numbers[:n] != np.arange(len(numbers))[:n])
        if len(numbers) != n or len(wrong):
            # A message of two documents, or two that make one: the row before is the first suspect.
            return None, max(int(wrong[0]) - 1, 0) if len(wrong) else n - 1
        try:
            for name in self._decimals:
                at, column = table.schema.get_field_index(name), self.fields[name].arrow
                table = table.set_column(at, name, table[name].cast(column))
        except pa.ArrowInvalid:  # more digits than the type has
            return None, None
        return table, None

    @functools.cached_property
    def _plain(self) -> PlainReader:
        return PlainReader(self.fields, self.max_bytes)

    @functools.cached_property
    def _decimals(self) -> list[str]:
        return [name for name, field in self.fields.items() if pa.types.is_decimal(field.arrow)]

    @functools.cached_property
    def _json_schema(self) -> pa.Schema:
        """What Arrow's reader is told to expect of a message: not ``_ROW``, for this is pickled
        and the worker has another."""
        types = {"timestamp": pa.timestamp("ns", tz="UTC"), "timestamp_ms": pa.int64()}
        # Of 38 digits shifted by 38 places 128 bits would overflow, which Arrow does not notice.
        wide = {name: pa.decimal256(MOST, self.fields[name].arrow.scale) for name in self._decimals}
        return pa.schema(
            [
                (name, wide.get(name) or types.get(field.type, field.arrow))
                for name, field in self.fields.items()
            ]
        )

    def _rows(self, table: pa.Table) -> list[pa.Array]:
        table = table.combine_chunks()
        columns = []
        for name, field in self.fields.items():
            column = table[name].combine_chunks()
            if field.type == "timestamp":  # cut off, also before 1970, where a cast rounds up
                column = pc.floor_temporal(column, unit="millisecond")
            columns.append(pc.cast(column, field.arrow))
        return columns


def _trimmed(values: pa.Array) -> pa.Array:
    """The values without white space and byte order marks before them.

    What comes after them Arrow skips; it stays, for an error's place must not depend on the neighbours.
    """
    if is_all(pc.starts_with(values, "{")):
        return values
    return pa.array(
        [None if v is None else v.removeprefix(_BOM).lstrip(_BLANK) for v in values.to_pylist()],
        pa.binary(),
    )


def _numbered(values: pa.Array) -> pa.Buffer:
    """One JSON text of all objects, each beginning with its position under the name ``_ROW``.

    In Arrow alone: the strings are cut and joined in C++, and the joined array's own buffer is the
    text. An empty object becomes ``{"_row":1,}``, which fails and is diagnosed alone.
    """
    heads = _heads(1 << len(values).bit_length())[: len(values)]
    tails = pc.binary_slice(values, 1, 2**31 - 1)
    joined = pc.binary_join_element_wise(heads, tails, b"\n", b"")
    return joined.buffers()[2]


@functools.lru_cache(2)
def _heads(count: int) -> pa.Array:
    """What the first so many objects begin with: the same in each batch, and dear to make."""
    return pa.array([b'{"%s":%d,' % (_ROW.encode(), i) for i in range(count)], pa.binary())


def is_all(mask: pa.Array) -> bool:
    """Whether a mask has nothing but true."""
    return bool(pc.all(mask, skip_nulls=False, min_count=0).as_py())
