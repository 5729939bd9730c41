"""The archive: events as Parquet files by the hour of their event time, for replays and queries."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from velocity.io.archive_files import (
    EVENT_TIME,
    EVENT_TIME_KEY,
    HOUR_MS,
    ArchiveFile,
    Kind,
    folder_of,
    hour_folder,
)
from velocity.io.copies import origin_offsets
from velocity.io.metrics import counter
from velocity.io.records import MESSAGE, MESSAGES, TIMESTAMP, main_of, messages_of

ROWS_PER_FILE: Final = 500_000
ROWS_PER_GROUP: Final = 64 * 1024
BYTES_PER_FILE: Final = 128 * 1024 * 1024
"""In memory; in the file they are a fraction."""
BYTES_PER_BUNDLE: Final = 256 * 1024 * 1024
"""What is held back of a bundle, in memory, at most."""

PLACE: Final = pa.schema(
    [
        *(pa.field(f"_{name}", MESSAGES.field(name).type) for name in MESSAGES.names[:4]),
        pa.field("_origin", pa.int64()),
    ]
)
"""What stands of a row's message in enriched files: topic, partition, offset and the broker's
timestamp; of what a replay of dead letters sent again the offset of its original, else null."""

PARTITIONS: Final = ("domain", "date", "hour")
"""The columns that folders stand for: no file has them too."""


class WriteToArchive(beam.PTransform):
    """Writes rows to ``PATH/KIND/domain=JOB/date=…/hour=…/TOPIC-PARTITION-FIRST-LAST.parquet``.

    Takes batches of rows with ``MESSAGE``, or ``WithDeadLetters`` of them, and counts
    ``archived_rows``. ``path`` is local or of any file system Beam knows (``s3://``, ``gs://``).
    ``event_time`` is the column that decides on the hour, which is one of UTC. Rows are sorted by
    it, so that the statistics of row groups tell a reader which to skip.

    Files appear, whole, when their bundle ends: each is written under a name that readers skip,
    then renamed. A bundle that ran again writes the same events under the same names or, where it
    was cut elsewhere, under names whose offsets overlap: readers take each event once, by topic,
    partition and offset.

    Raises ``ValueError`` at construction for what can't be archived.
    """

    def __init__(
        self,
        path: str,
        *,
        job: str,
        kind: Kind,
        schema: pa.Schema,
        event_time: str,
        rows_per_file: int = ROWS_PER_FILE,
    ) -> None:
        super().__init__()
        if rows_per_file < 1:
            raise ValueError(f"rows_per_file is {rows_per_file}: give at least 1")
        if kind is Kind.ENRICHED:
            for name in schema.names:
                if name.lower() in PARTITIONS:
                    raise ValueError(
                        f"column {name} has the name of a partition of the archive, and readers "
                        "refuse a table with both: rename it, or archive raw events only"
                    )
        self._sink = _ToArchive(folder_of(path, kind, job), kind, event_time, rows_per_file)

    def expand(self, pvalueish: Any) -> Any:
        rows = main_of(pvalueish)
        _ = rows | "Write" >> beam.ParDo(self._sink)
        return beam.pvalue.PDone(rows.pipeline)


def archived(rows: pa.RecordBatch, kind: Kind, event_time: str) -> pa.RecordBatch:
    """Rows as a file of that kind holds them."""
    messages = messages_of(rows)
    if kind is Kind.RAW:
        return messages.append_column(pa.field(EVENT_TIME, TIMESTAMP), rows[event_time])
    own = [(c, rows[c.name]) for c in rows.schema if c.name != MESSAGE]
    fields = [*(field for field, _ in own), *PLACE]
    place = [*messages.columns[: len(PLACE) - 1], origin_offsets(messages)]
    columns = [*(column for _, column in own), *place]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


class _Place(NamedTuple):
    topic: str
    partition: int
    hour: int


@dataclass
class _Buffer:
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self.batches.append(batch)
        self.rows += batch.num_rows
        self.bytes += batch.nbytes


class _ToArchive(beam.DoFn):
    def __init__(self, folder: str, kind: Kind, event_time: str, rows_per_file: int) -> None:
        self._folder, self._kind, self._event_time = folder, kind, event_time
        self._rows_per_file = rows_per_file
        self._written = counter("archived_rows")
        self._buffers: dict[_Place, _Buffer] = {}
        self._files: dict[str, str] = {}

    def start_bundle(self) -> None:
        self._buffers, self._files = {}, {}

    def process(self, rows: pa.RecordBatch) -> None:
        batch = archived(rows, self._kind, self._event_time)
        for place, part in self._parts(rows, batch):
            buffer = self._buffers.setdefault(place, _Buffer())
            buffer.add(part)
            if buffer.rows >= self._rows_per_file or buffer.bytes >= BYTES_PER_FILE:
                self._write(place)
        while sum(buffer.bytes for buffer in self._buffers.values()) > BYTES_PER_BUNDLE:
            self._write(max(self._buffers, key=lambda place: self._buffers[place].bytes))

    def finish_bundle(self) -> None:
        for place in list(self._buffers):
            self._write(place)
        if self._files:
            FileSystems.rename(list(self._files), list(self._files.values()))

    def _parts(
        self, rows: pa.RecordBatch, batch: pa.RecordBatch
    ) -> Iterator[tuple[_Place, pa.RecordBatch]]:
        """The batch by topic, partition and hour; it mostly has one of each."""
        topics, partitions, offsets = rows[MESSAGE].flatten()[:3]
        if partitions.null_count or offsets.null_count:
            raise ValueError("rows without partition and offset can't be archived: who wrote them?")
        topics = topics.dictionary_encode()
        hours = rows[self._event_time].view(pa.int64()).to_numpy() // HOUR_MS
        places, which = np.unique(
            np.stack([topics.indices.to_numpy(), partitions.to_numpy(), hours]),
            axis=1,
            return_inverse=True,
        )
        for n, (topic, partition, hour) in enumerate(places.T.tolist()):
            place = _Place(topics.dictionary[topic].as_py(), partition, hour)
            alone = places.shape[1] == 1
            yield place, batch if alone else batch.filter(pa.array(which.ravel() == n))

    def _write(self, place: _Place) -> None:
        table = pa.Table.from_batches(self._buffers.pop(place).batches)
        folder = f"{self._folder}/{hour_folder(place.hour)}"
        event_time = EVENT_TIME if self._kind is Kind.RAW else self._event_time
        hidden, path = write_file(table, folder, place.topic, place.partition, event_time)
        self._files[hidden] = path
        self._written.inc(table.num_rows)


def write_file(
    table: pa.Table, folder: str, topic: str, partition: int, event_time: str
) -> tuple[str, str]:
    """Writes a file under a name that readers skip; gives that name and the one it is to have."""
    offsets = pc.min_max(table["offset" if "offset" in table.column_names else "_offset"])
    name = ArchiveFile(folder, topic, partition, offsets["min"].as_py(), offsets["max"].as_py())
    hidden = f"{folder}/.{name.name}.{uuid.uuid4().hex}.tmp"
    table = table.sort_by(event_time).replace_schema_metadata({EVENT_TIME_KEY: event_time.encode()})
    with FileSystems.create(hidden) as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            row_group_size=ROWS_PER_GROUP,
            sorting_columns=[pq.SortingColumn(table.column_names.index(event_time))],
        )
    return hidden, name.path


def hidden_files(folder: str) -> Sequence[tuple[str, float]]:
    """What attempts that failed have left below a job's folder, and when each was written."""
    (found,) = FileSystems.match([f"{folder}/date=*/hour=*/.*.tmp"])
    return [(m.path, float(m.last_updated_in_seconds or 0)) for m in found.metadata_list]
