"""Sensitive fields: hashed or dropped before anything is stored, in rows and in dead letters."""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.copies import MASKED
from velocity.io.records import DEAD_LETTERS, MESSAGE, Stage, main_of, passing_on
from velocity.transforms.decimals import texts
from velocity.transforms.fields import Field
from velocity.transforms.json_reader import JsonReader

_DIGITS = 32
_NO_LIMIT = 2**31


@dataclass(frozen=True)
class Sensitive:
    """What of the fields is kept: with a ``secret`` a hash, the same for the same value; else nothing.

    The hash is the first 128 bits of HMAC-SHA256 with the secret as its key, of the value's text (of
    times that of their epoch milliseconds, of decimals with all digits of their scale): who does not
    have the secret can't try all numbers of patients. ``types`` are those of the events' fields, so
    that a dead letter's value has the hash that it would have in a row. Raises ``ValueError``.

    >>> Sensitive(("patient_id",), "s3cret").hashed("PAT-1")
    '4726ff5bbcc4fbc482d9a69aa2b236cc'
    """

    fields: tuple[str, ...]
    secret: str = field(default="", repr=False)
    types: Mapping[str, Field] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if MESSAGE in self.fields:
            raise ValueError(f"sensitive: {MESSAGE} is reserved")

    def hashed(self, text: str) -> str:
        return hmac.digest(self.secret.encode(), text.encode(), "sha256").hex()[:_DIGITS]

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """Of the rows that are left: hashed columns are text, dropped ones are gone.

        Raises ``ValueError`` for a field that is no column, or whose text nothing says.
        """
        fields = []
        for name in self.fields:
            if name not in schema.names:
                raise ValueError(f"the rows have no column {name!r}")
            if pa.types.is_floating(schema.field(name).type) and self.secret:
                raise ValueError(
                    f"{name!r} is a fraction, which is not hashed: leave hash_with out"
                )
        for column in schema:
            if column.name not in self.fields:
                fields.append(column)
            elif self.secret:
                fields.append(pa.field(column.name, pa.string()))
        return pa.schema(fields, metadata=schema.metadata)

    def rows(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Rows without what is sensitive, except in their message of origin."""
        schema = self.schema(rows.schema)
        columns = [
            self._column(rows[name]) if name in self.fields else rows[name] for name in schema.names
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _column(self, column: pa.Array) -> pa.Array:
        encoded = pc.dictionary_encode(_text(column))
        hashes = [self.hashed(text) for text in encoded.dictionary.to_pylist()]
        return pa.array(hashes, pa.string()).take(encoded.indices)

    def letters(self, letters: pa.RecordBatch) -> pa.RecordBatch:
        """Dead letters (``DEAD_LETTERS``) without what is sensitive.

        Of a message that is a JSON object the fields are hashed or dropped, at its top; of any other
        nothing is kept. Keys are hashed or dropped, as they may be a field's value; of the values
        nothing is left in errors. Headers stay, and one more, ``MASKED``, says that the whole
        original is in its topic alone. Rejected documents have been made of such rows already.
        """
        masked = [
            row if row["stage"] == Stage.SINK.value else self._letter(row)
            for row in letters.to_pylist()
        ]
        return pa.RecordBatch.from_pylist(masked, schema=DEAD_LETTERS)

    def _letter(self, row: dict[str, Any]) -> dict[str, Any]:
        event = _object(row["value"])
        if event is not None and "TopicArn" in event:  # the event is text within SNS's envelope
            event = None
        error, value = row["error"], None
        if event is not None:
            for name in self.fields:
                found = event.pop(name, None)
                if found is None:
                    continue
                text = found if isinstance(found, str) else json.dumps(found)
                error = error.replace(text, "***") if text else error
                if self.secret:
                    event[name] = self._of_letter(name, row["value"]) or self.hashed(text)
            value = json.dumps(event, ensure_ascii=False).encode("utf-8", "replace")
        key = row["key"]
        if key is not None:
            key = self.hashed(key.decode("utf-8", "replace")).encode() if self.secret else None
        headers = [*(row["headers"] or ()), {"name": MASKED, "value": b"1"}]
        return {**row, "error": error, "key": key, "value": value, "headers": headers}

    def _of_letter(self, name: str, value: bytes) -> str | None:
        """The hash of a field as a row has it; None where it is not of its type."""
        declared = self.types.get(name)
        if declared is None:
            return None
        read = JsonReader({name: declared}, name, _NO_LIMIT).read(pa.array([value], pa.binary()))
        hashes: list[str | None] = self._column(read.columns[0]).to_pylist()
        return hashes[0] if hashes else None


def _text(column: pa.Array) -> pa.Array:
    if pa.types.is_decimal(column.type):
        return pa.array(texts(column), pa.string())
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return column.cast(pa.string())


def _object(value: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(value or b"")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Protect(beam.PTransform):
    """Hashes or drops the sensitive columns of batches: ``Sensitive.rows`` as a step.

    Takes batches of rows, or a ``WithDeadLetters``, and gives a ``WithDeadLetters`` if it was given
    one; dead letters are masked at the end, with ``Mask``.
    """

    def __init__(self, sensitive: Sensitive, schema: pa.Schema) -> None:
        super().__init__()
        self._sensitive = sensitive
        self.schema = sensitive.schema(schema)

    def expand(self, input_or_inputs: Any) -> Any:
        step = beam.Map(self._sensitive.rows).with_output_types(pa.RecordBatch)
        rows = main_of(input_or_inputs) | "Hash or drop" >> step
        return passing_on(input_or_inputs, rows)


class Mask(beam.PTransform):
    """Takes what is sensitive out of dead letters: ``Sensitive.letters`` as a step."""

    def __init__(self, sensitive: Sensitive) -> None:
        super().__init__()
        self._sensitive = sensitive

    def expand(self, letters: beam.PCollection) -> beam.PCollection:
        step = beam.Map(self._sensitive.letters).with_output_types(pa.RecordBatch)
        return letters | "Mask" >> step
