"""Rows as JSON objects, a whole batch at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.records import MESSAGE

_RFC_3339: Final = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class JsonRows:
    """A serializer (``velocity.io.kafka_sink.Serializer``): of each row a JSON object in UTF-8.

    Its keys are the columns in their order, without ``_message``. Times are RFC 3339 in UTC with
    milliseconds; a time without a zone is taken for UTC; null, NaN and infinity are ``null``, or
    with ``nulls=False`` their keys are left out.
    DuckDB writes it, several times faster than ``json`` does from Python's objects.

    Raises ``ValueError`` for bytes, and for times within lists or structs.

    >>> rows = pa.RecordBatch.from_pydict({
    ...     "city": ["Solo"], "at": pa.array([1], pa.timestamp("ms", "UTC")), "n": [0.5]})
    >>> JsonRows().values(rows)
    [b'{"city":"Solo","at":"1970-01-01T00:00:00.001Z","n":0.5}']
    """

    nulls: bool = True

    def values(self, rows: pa.RecordBatch) -> list[bytes]:
        named = [
            (n, c) for n, c in zip(rows.schema.names, rows.columns, strict=True) if n != MESSAGE
        ]
        if not named:
            return [b"{}"] * rows.num_rows
        columns = {f"c{i}": _plain(name, column) for i, (name, column) in enumerate(named)}
        names = [name for name, _ in named]
        # The names are parameters: they may hold quotes, and differ in nothing but their case.
        pairs = ", ".join(f"?::varchar, {column}" for column in columns)
        made = f"json_object({pairs})"
        if not self.nulls:
            made = f"json_merge_patch('{{}}'::json, {made})"  # RFC 7396: a null takes a key away
        with _database().cursor() as database:
            database.register("rows", pa.table(columns))
            found = database.execute(f"SELECT {made}::blob AS j FROM rows", names)
            return [value for (value,) in found.fetchall()]


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """Of this process: opening one takes longer than writing a batch. Threads have cursors."""
    return duckdb.connect(config={"threads": 1})


def text(column: pa.Array) -> pa.Array:
    """A column of plain values as strings; times as in ``JsonRows``, bytes as they are.

    >>> text(pa.array([1, None])).to_pylist()
    ['1', None]
    """
    if _is_bytes(column.type):
        return column
    if pa.types.is_timestamp(column.type):
        millis = column.cast(pa.timestamp("ms", tz="UTC"), safe=False)
        return pc.strftime(millis, _RFC_3339)
    return column.cast(pa.string())


def _plain(name: str, column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return text(column)
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    if _holds(column.type, lambda type: _is_bytes(type) or pa.types.is_timestamp(type)):
        raise ValueError(
            f"column {name!r} ({column.type}) cannot be written as JSON: make it a string, or "
            "give a serializer of your own"
        )
    return column


def _holds(type: pa.DataType, kind: Callable[[pa.DataType], bool]) -> bool:
    return kind(type) or any(_holds(type.field(i).type, kind) for i in range(type.num_fields))


def _is_bytes(type: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(type)
        or pa.types.is_large_binary(type)
        or pa.types.is_fixed_size_binary(type)
    )
