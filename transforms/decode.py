"""From messages to typed rows: JSON read into columns, a batch at a time, the bad ones picked out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput

from velocity.io.metrics import counter
from velocity.io.records import (
    FIRST_MILLI,
    LAST_MILLI,
    MESSAGE,
    ORIGIN,
    TIMESTAMP,
    Cause,
    Decoded,
    Decoder,
    Failure,
    Format,
    Stage,
    Texts,
    WithDeadLetters,
    dead_letters,
    main_of,
    now,
    origins,
)
from velocity.transforms.fields import Field
from velocity.transforms.json_diagnosis import MISSING
from velocity.transforms.json_reader import JsonReader

_FIRST_EVENT: Final = int(datetime(1678, 1, 1, tzinfo=UTC).timestamp() * 1000)
_LAST_EVENT: Final = int(datetime(2262, 1, 1, tzinfo=UTC).timestamp() * 1000) - 1
"""The years that a ``timestamp`` holds. A ``timestamp_ms`` holds more, but a window around the
year 1, Go's zero time, may begin before any RFC 3339 time."""


@dataclass(frozen=True)
class JsonDecoder:
    """Decodes messages that hold one JSON object each, or of which ``format`` makes one.

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
    format: Format | None = None

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
                pa.field(MESSAGE, ORIGIN, nullable=False),
            ]
        )

    def decode(self, messages: pa.RecordBatch) -> Decoded:
        """Splits ``MESSAGES`` into rows (``schema``), in their order, and ``DEAD_LETTERS``."""
        texts, first = Texts(messages["value"], [])
        if self.format:
            texts, first = self.format.texts(messages)
        columns, kept, failures = self._reader.read(texts)
        if first:  # of those there is no text, which is not what is wrong with them
            without = {failure.position for failure in first}
            failures = [*first, *(f for f in failures if f.position not in without)]
        origin = messages if len(kept) == len(texts) else messages.take(pa.array(kept))
        for position, cause, error in self._implausible(columns, origin):
            failures.append(Failure(int(kept[position]), cause, error))
        batch = pa.RecordBatch.from_arrays([*columns, origins(origin)], schema=self.schema)
        if failures:
            failures.sort()
            failed = pa.array([f.position for f in failures], pa.int64())
            batch = batch.filter(pc.invert(pc.is_in(pa.array(kept), value_set=failed)))
            return Decoded(batch, self._dead_letters(messages.take(failed), failures))
        return Decoded(batch, self._dead_letters(messages.slice(0, 0), []))

    @cached_property
    def _reader(self) -> JsonReader:
        return JsonReader(self.fields, self.event_time, self.max_bytes)

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

    def _dead_letters(self, messages: pa.RecordBatch, failures: list[Failure]) -> pa.RecordBatch:
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
