"""Reading an archive: a large batch an element, of the columns and row groups that are wanted."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from velocity.io.archive_copies import Copies
from velocity.io.archive_files import (
    EVENT_TIME,
    EVENT_TIME_KEY,
    ArchiveError,
    ArchiveFile,
    Kind,
    Unit,
    open_parquet,
)
from velocity.io.metrics import counter
from velocity.io.records import MESSAGE, MESSAGES

ROWS_PER_BATCH: Final = 512 * 1024
"""At least, where there are as many: the larger a batch, the fewer partial results there are of it."""
_BYTES_PER_BATCH: Final = 256 * 1024 * 1024
"""In memory, at least, where messages are so large that fewer rows make as many."""
_BYTES_PER_TASK: Final = 16 * 1024 * 1024
_UNITS_PER_TASK: Final = 500
_PLACE: Final = ("_offset", "_origin")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Between:
    """A stretch of event time, in epoch milliseconds; its end is not part of it.

    >>> from datetime import UTC
    >>> Between.times(datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, 0, 1, tzinfo=UTC))
    Between(start=0, stop=60000)
    """

    start: int
    stop: int

    @classmethod
    def times(cls, start: datetime, stop: datetime) -> "Between":
        millisecond = timedelta(milliseconds=1)
        return cls((start - _EPOCH) // millisecond, -((_EPOCH - stop) // millisecond))

    @property
    def first(self) -> datetime:
        return _EPOCH + timedelta(milliseconds=self.start)

    @property
    def last(self) -> datetime:
        """The end, as a time."""
        return _EPOCH + timedelta(milliseconds=self.stop)

    def rows(self, batch: Any, column: str) -> Any:
        """Of a batch or table those within."""
        times = batch[column].cast(pa.int64())
        if not len(times):
            return batch
        ends = pc.min_max(times)
        if ends["min"].as_py() >= self.start and ends["max"].as_py() < self.stop:
            return batch
        inside = pc.and_(pc.greater_equal(times, self.start), pc.less(times, self.stop))
        return batch.filter(inside)


def tasks(units: Iterable[Unit]) -> list[tuple[Unit, ...]]:
    """Units put together, as much as a worker reads at a time: many small ones, or a large one."""
    found: list[tuple[Unit, ...]] = []
    task: list[Unit] = []
    for unit in units:
        task.append(unit)
        if sum(u.bytes for u in task) >= _BYTES_PER_TASK or len(task) >= _UNITS_PER_TASK:
            found.append(tuple(task))
            task = []
    return [*found, tuple(task)] if task else found


class ReadFromArchive(beam.PTransform):
    """Reads ``units`` of an archive, each event once, those ``between`` two times.

    Once it is too where a replay of dead letters has sent an event's message again.

    Of raw files it gives batches of ``MESSAGES``. Of enriched files it gives rows of ``schema``,
    whose last column is ``MESSAGE``: what a message's value was is not known there, only where it
    stands. Only the columns of the schema are read, and only row groups that hold events of the
    time. A column that a file does not have, because it is older than the column, is null; one of
    another type is cast if its values can be, and is an ``ArchiveError`` if not.

    A batch bears the earliest of its event times. Counts ``archive_files`` and ``archive_rows``.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        kind: Kind,
        event_time: str,
        between: Between,
        schema: pa.Schema | None = None,
    ) -> None:
        super().__init__()
        if (schema is None) != (kind is Kind.RAW):
            raise ValueError("schema: give that of the rows for enriched files, and none for raw")
        self._units = units
        self._read = _Read(kind, EVENT_TIME if schema is None else event_time, between, schema)

    def expand(self, pbegin: Any) -> Any:
        return (
            pbegin
            | "Files" >> beam.Create(tasks(self._units), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(self._read).with_output_types(pa.RecordBatch)
        )


class _Read(beam.DoFn):
    def __init__(
        self, kind: Kind, event_time: str, between: Between, schema: pa.Schema | None
    ) -> None:
        self._kind, self._event_time, self._between = kind, event_time, between
        self._schema, self._copies = schema, Copies(kind)
        self._files, self._rows = counter("archive_files"), counter("archive_rows")

    def process(self, task: Sequence[Unit]) -> Iterator[Any]:
        held: list[pa.Table] = []
        for table in self._tables(task):
            held.append(table)
            rows, bytes_ = sum(t.num_rows for t in held), sum(t.nbytes for t in held)
            if rows >= ROWS_PER_BATCH or bytes_ >= _BYTES_PER_BATCH:
                yield from self._put_out(held)
        yield from self._put_out(held)

    def _put_out(self, held: list[pa.Table]) -> Iterator[Any]:
        """Of what is held batches, and nothing is: while they are worked on it would take as much."""
        if not held:
            return
        whole = pa.concat_tables(held).combine_chunks()
        held.clear()
        for batch in whole.to_batches(max_chunksize=2 * ROWS_PER_BATCH):
            earliest = pc.min(batch[self._event_time]).value
            self._rows.inc(batch.num_rows)
            if self._kind is Kind.RAW:
                batch = batch.select(MESSAGES.names)
            yield TimestampedValue(batch, Timestamp(micros=earliest * 1000))

    def _tables(self, task: Sequence[Unit]) -> Iterator[pa.Table]:
        for unit in task:
            self._files.inc(len(unit.files))
            if len(unit.files) == 1:
                parts: Iterable[pa.Table] = self._parts(unit.files[0])
            else:
                parts = [once(pa.concat_tables(list(self._whole(unit))), self._offset)]
            for table in parts:
                if table.num_rows:
                    yield table

    def _whole(self, unit: Unit) -> Iterator[pa.Table]:
        for file in unit.files:
            yield from self._parts(file)

    @property
    def _offset(self) -> Any:
        if self._kind is Kind.RAW:
            return lambda table: table["offset"]
        return lambda table: pc.struct_field(table[MESSAGE], "offset")

    def _parts(self, file: ArchiveFile) -> Iterator[pa.Table]:
        """A file's row groups that hold events of the time, as tables of one schema."""
        with open_parquet(file.path) as opened:
            if self._schema is None:
                names = [*MESSAGES.names, EVENT_TIME]
            else:
                there = set(opened.schema_arrow.names)
                names = [name for name in (*self._schema.names, *_PLACE) if name in there]
            for group in groups(opened, file.path, self._between):
                # One thread: each core has a worker of its own.
                table = opened.read_row_group(group, names, use_threads=False)
                table = self._between.rows(table, self._event_time)
                table = self._copies.left_out(table, file)
                yield table if self._schema is None else rows_of(table, file, self._schema)


def groups(opened: pq.ParquetFile, path: str, between: Between) -> Iterator[int]:
    """The row groups that may hold events of the time, by their statistics."""
    schema = opened.schema_arrow
    name = (schema.metadata or {}).get(EVENT_TIME_KEY, b"").decode()
    if name not in schema.names:
        raise ArchiveError(f"{path} does not say which column is the event time; remove it")
    leaves = [opened.schema.column(i).path.split(".")[0] for i in range(len(opened.schema))]
    leaf = leaves.index(name)
    for group in range(opened.num_row_groups):
        statistics = opened.metadata.row_group(group).column(leaf).statistics
        if (
            statistics is None
            or not statistics.has_min_max
            or (between.start <= _millis(statistics.max) and _millis(statistics.min) < between.stop)
        ):
            yield group


def _millis(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(milliseconds=1)


def rows_of(table: pa.Table, file: ArchiveFile, schema: pa.Schema) -> pa.Table:
    """What was read of an enriched file, as rows of a schema that may be younger or older.

    >>> file = ArchiveFile("a", "orders", 0, 5, 5)
    >>> old = pa.table({"amount": pa.array([1], pa.int32()), "_offset": [5]})
    >>> message = pa.field(MESSAGE, pa.struct(list(MESSAGES)))
    >>> schema = pa.schema([("amount", pa.float64()), ("city", pa.string()), message])
    >>> rows_of(old, file, schema).select(["amount", "city"]).to_pylist()
    [{'amount': 1.0, 'city': None}]
    """
    n, columns = table.num_rows, []
    for wanted in schema:
        if wanted.name == MESSAGE:
            columns.append(_origins(file, table["_offset"].combine_chunks(), wanted.type))
        elif wanted.name not in table.column_names:
            columns.append(pa.nulls(n, wanted.type))
        else:
            columns.append(_widened(table[wanted.name], wanted, file))
    return pa.Table.from_arrays(columns, schema=schema)


def _widened(column: Any, wanted: pa.Field, file: ArchiveFile) -> Any:
    if column.type == wanted.type:
        return column
    # As a decoder does: the double next to a whole number that has no own is what JSON gives.
    rounds = pa.types.is_integer(column.type) and pa.types.is_floating(wanted.type)
    try:
        return column.cast(wanted.type, safe=not rounds)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ArchiveError(
            f"{file.path}: column {wanted.name} is {column.type}, and the job has {wanted.type}: "
            f"{error}; give the column a new name in the job, or replay from raw events"
        ) from error


def _origins(file: ArchiveFile, offsets: pa.Array, type_: pa.StructType) -> pa.Array:
    """The messages as far as they are known: where each stood."""
    n = len(offsets)
    known = {
        "topic": pa.repeat(file.topic, n),
        "partition": pa.repeat(pa.scalar(file.partition, pa.int32()), n),
        "offset": offsets,
    }
    columns = [known.get(f.name, pa.nulls(n, f.type)) for f in type_]
    return pa.StructArray.from_arrays(columns, fields=list(type_))


def once(table: pa.Table, offset: Any) -> pa.Table:
    """Of rows of one partition the first of each offset."""
    offsets = offset(table).to_numpy()
    _, first = np.unique(offsets, return_index=True)
    return table if len(first) == len(offsets) else table.take(pa.array(np.sort(first)))
