"""From messages to typed rows: JSON read by Arrow, a batch at a time, the bad ones picked out."""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from apache_beam.pvalue import TaggedOutput

from velocity.io.records import (
    MESSAGE,
    MESSAGES,
    TIMESTAMP,
    Cause,
    Decoded,
    Decoder,
    Stage,
    WithDeadLetters,
    counter,
    dead_letters,
    main_of,
    now,
)
from velocity.transforms.fields import FIRST_MILLI, LAST_MILLI, Field
from velocity.transforms.json_diagnosis import MISSING, diagnose, diagnose_fields

_ROW: Final = f"_row_{secrets.token_hex(4)}"
"""Numbers the documents of a batch, to find each again after parsing. Random, so that no message
can carry a number of its own making."""

_ROW_OF_ERROR: Final = re.compile(r"in row (\d+)$")
_FIRST_EVENT: Final = int(datetime(1678, 1, 1, tzinfo=UTC).timestamp() * 1000)
_LAST_EVENT: Final = int(datetime(2262, 1, 1, tzinfo=UTC).timestamp() * 1000) - 1
"""The years that a ``timestamp`` holds. A ``timestamp_ms`` holds more, but a window around the
year 1, Go's zero time, may begin before any RFC 3339 time."""
_BLANK: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"


class _Failure(NamedTuple):
    """Why the message at a position of the batch has no row."""

    position: int
    cause: Cause
    error: str


@dataclass(frozen=True)
class JsonDecoder:
    """Decodes messages that hold one JSON object each.

    Declared fields become columns; undeclared ones are ignored. A message that is not one JSON
    object, lacks a required field, has one of another type, or claims an event time more than
    ``max_future`` past the broker's own timestamp (past ``clock`` where there is none) becomes a
    dead letter; its neighbours don't notice. Numbers must be finite, whole ones must fit ``int64``.

    >>> from velocity.io.records import messages
    >>> decoder = JsonDecoder({"city": Field("string"), "at": Field("timestamp")}, event_time="at")
    >>> values = [b'{"city": "Bandung", "at": "2026-01-01T07:00:00+07:00"}', b'{"city": "Solo"}']
    >>> rows, dead = decoder.decode(messages(values))
    >>> rows["city"].to_pylist(), rows["at"][0].as_py().isoformat()
    (['Bandung'], '2026-01-01T00:00:00+00:00')
    >>> dead["cause"].to_pylist(), dead["error"].to_pylist()
    (['missing_field'], ['field at: required, but missing or null'])
    """

    fields: Mapping[str, Field]
    event_time: str
    max_future: timedelta = timedelta(minutes=10)
    max_bytes: int = 10 * 1024 * 1024
    clock: Callable[[], datetime] = now

    def __post_init__(self) -> None:
        if self.event_time not in self.fields:
            raise ValueError(f"event_time {self.event_time!r} is none of the declared fields")
        if not self.fields[self.event_time].type.startswith("timestamp"):
            raise ValueError(f"event_time {self.event_time!r} must be a timestamp or timestamp_ms")
        for name in self.fields:
            if name.startswith("_"):
                raise ValueError(f"field {name!r}: names that start with _ are Velocity's own")

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the decoded rows: the declared fields, then the message each row came from."""
        return pa.schema(
            [
                *(pa.field(name, field.arrow) for name, field in self.fields.items()),
                pa.field(MESSAGE, pa.struct(list(MESSAGES)), nullable=False),
            ]
        )

    def decode(self, messages: pa.RecordBatch) -> Decoded:
        """Splits ``MESSAGES`` into rows (``schema``), in their order, and ``DEAD_LETTERS``."""
        values = _trimmed(messages["value"])
        failures = list(self._unreadable(values))
        readable = np.setdiff1d(np.arange(len(values)), [f.position for f in failures])
        parts, positions = [], []
        for part in self._parse(values if not failures else values.take(pa.array(readable))):
            if isinstance(part, _Failure):
                failures.append(part._replace(position=int(readable[part.position])))
            else:
                start, table = part
                parts.append(table)
                positions.append(readable[start : start + len(table)])
        columns = pa.concat_tables(parts) if parts else self._json_schema.empty_table()
        rows, kept = self._rows(columns), np.concatenate(positions or [np.array([], int)])
        origin = messages if len(kept) == len(values) else messages.take(pa.array(kept))
        for position, cause, error in self._implausible(rows, origin):
            failures.append(_Failure(int(kept[position]), cause, error))
        batch = pa.RecordBatch.from_arrays([*rows, origin.to_struct_array()], schema=self.schema)
        if failures:
            failures.sort()
            failed = pa.array([f.position for f in failures], pa.int64())
            batch = batch.filter(pc.invert(pc.is_in(pa.array(kept), value_set=failed)))
            return Decoded(batch, self._dead_letters(messages.take(failed), failures))
        return Decoded(batch, self._dead_letters(messages.slice(0, 0), []))

    def _unreadable(self, values: pa.Array) -> Iterator[_Failure]:
        """What must not reach Arrow's reader: it crashes on a bare ``null`` and checks no UTF-8."""
        sizes = pc.fill_null(pc.binary_length(values), 0)
        if _all(pc.starts_with(values, b"{")) and _all(pc.less_equal(sizes, self.max_bytes)):
            try:
                pc.cast(values, pa.string())
                return
            except pa.ArrowInvalid:
                pass  # the loop below finds which
        for position, value in enumerate(values.to_pylist()):
            if failure := self._examine(value):
                yield _Failure(position, *failure)

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

    def _parse(self, values: pa.Array) -> Iterator[tuple[int, pa.Table] | _Failure]:
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
                yield _Failure(start, *diagnose_fields(value, self.fields, self.event_time))
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
        return table, None

    @cached_property
    def _json_schema(self) -> pa.Schema:
        """What Arrow's reader is told to expect of a message: not ``_ROW``, for this is pickled
        and the worker has another."""
        types = {"timestamp": pa.timestamp("ns", tz="UTC"), "timestamp_ms": pa.int64()}
        return pa.schema(
            [(name, types.get(field.type, field.arrow)) for name, field in self.fields.items()]
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

    def _implausible(
        self, columns: list[pa.Array], messages: pa.RecordBatch
    ) -> Iterator[tuple[int, Cause, str]]:
        """At most one failure a row: the first that its fields give."""
        seen: set[int] = set()

        def failing(mask: pa.Array, cause: Cause, error: str) -> Iterator[tuple[int, Cause, str]]:
            for position in np.flatnonzero(pc.fill_null(mask, False).to_numpy(False)).tolist():
                if position not in seen:
                    seen.add(position)
                    yield position, cause, error

        for column, (name, field) in zip(columns, self.fields.items(), strict=True):
            if (field.required or name == self.event_time) and column.null_count:
                error = f"field {name}: {MISSING}"
                yield from failing(pc.is_null(column), Cause.MISSING_FIELD, error)
            if pa.types.is_floating(column.type):
                error = f"field {name}: not a finite number"
                yield from failing(pc.invert(pc.is_finite(column)), Cause.WRONG_TYPE, error)
            if field.type == "timestamp_ms":
                millis, years = column.view(pa.int64()), "1 to 9999"
                first, last = FIRST_MILLI, LAST_MILLI
                if name == self.event_time:
                    first, last, years = _FIRST_EVENT, _LAST_EVENT, "1678 to 2261"
                error = f"field {name}: not within the years {years}"
                outside = pc.or_(pc.less(millis, first), pc.greater(millis, last))
                yield from failing(outside, Cause.WRONG_TYPE, error)
        event_time = columns[list(self.fields).index(self.event_time)].view(pa.int64())
        limit = int(self.max_future / timedelta(milliseconds=1))
        # The clock only where the broker gives no timestamp: a replay is to decode as the run did.
        clock = pa.scalar(self.clock(), TIMESTAMP).cast(pa.int64())
        sent = pc.coalesce(messages["timestamp"].view(pa.int64()), clock)
        ahead = pc.greater(pc.subtract(event_time, sent), limit)
        error = f"field {self.event_time}: more than {self.max_future} past the broker's timestamp"
        yield from failing(ahead, Cause.FUTURE_EVENT_TIME, error)

    def _dead_letters(self, messages: pa.RecordBatch, failures: list[_Failure]) -> pa.RecordBatch:
        return dead_letters(
            messages,
            stage=Stage.DECODE,
            causes=[f.cause for f in failures],
            errors=[f.error for f in failures],
            failed_at=self.clock(),
        )


class Decode(beam.PTransform):
    """``MESSAGES`` batches, or ``WithDeadLetters`` of them, to ``WithDeadLetters`` of rows."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self._decoder = decoder

    def expand(self, pvalueish: Any) -> Any:
        step = beam.ParDo(_Decode(self._decoder)).with_output_types(
            pa.RecordBatch, dead_letters=pa.RecordBatch
        )
        outputs = main_of(pvalueish) | "Decode" >> step.with_outputs("dead_letters", main="rows")
        return WithDeadLetters.joining(pvalueish, outputs.rows, outputs.dead_letters)


class _Decode(beam.DoFn):
    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._decoded = counter("decoded_rows")

    def process(self, messages: pa.RecordBatch) -> Iterator[Any]:
        rows, dead = self._decoder.decode(messages)
        self._decoded.inc(rows.num_rows)
        if rows.num_rows:
            yield rows
        if dead.num_rows:
            yield TaggedOutput("dead_letters", dead)


def _trimmed(values: pa.Array) -> pa.Array:
    """The values without white space and byte order marks around them."""
    if _all(pc.starts_with(values, "{")):
        return values
    return pa.array(
        [None if v is None else v.removeprefix(_BOM).strip(_BLANK) for v in values.to_pylist()],
        pa.binary(),
    )


def _numbered(values: pa.Array) -> pa.Buffer:
    """One JSON text of all objects, each beginning with its position under the name ``_ROW``.

    In Arrow alone: the strings are cut and joined in C++, and the joined array's own buffer is the
    text. An empty object becomes ``{"_row":1,}``, which fails and is diagnosed alone.
    """
    heads = pa.array([b'{"%s":%d,' % (_ROW.encode(), i) for i in range(len(values))], pa.binary())
    tails = pc.binary_slice(values, 1, 2**31 - 1)
    joined = pc.binary_join_element_wise(heads, tails, b"\n", b"")
    return joined.buffers()[2]


def _all(mask: pa.Array) -> bool:
    return bool(pc.all(mask, skip_nulls=False, min_count=0).as_py())
