"""Dead letters in Parquet files, a folder for each job."""

import re
import uuid
from typing import Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from velocity.io.metrics import counter
from velocity.io.records import DEAD_LETTERS

ROWS_PER_FILE: Final = 5_000

_JOB_KEY: Final = b"velocity.job"
_WITH_JOB: Final = pa.schema([pa.field("job", pa.string()), *DEAD_LETTERS])


def checked_job(job: str) -> str:
    """The job's name, if it can stand for its dead letters anywhere, as a folder too.

    >>> checked_job("a/b")
    Traceback (most recent call last):
    ValueError: job 'a/b' cannot name a folder: use letters, digits, '.', '_' and '-'
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", job):
        raise ValueError(f"job {job!r} cannot name a folder: use letters, digits, '.', '_' and '-'")
    return job


class WriteDeadLettersToParquet(beam.PTransform):
    """Writes dead letters to ``<path>/job=<job>/<unique>.parquet`` (zstd).

    Takes batches of ``DEAD_LETTERS``; counts ``dead_letters_written``. ``path`` is local or of any
    file system Beam knows (``gs://``, ``s3://``). A file appears, whole, when its bundle ends: it
    is written under a name that readers skip, then renamed. A bundle that failed after that and ran
    again has its dead letters in two files.

    The job is the folder's partition column and not repeated in the file: Arrow, pandas and Athena
    refuse a table with both. A file that is moved still tells it in its metadata, ``velocity.job``.

    Raises ``ValueError`` at construction if the job cannot name a folder.
    """

    def __init__(self, path: str, *, job: str, rows_per_file: int = ROWS_PER_FILE) -> None:
        super().__init__()
        if rows_per_file < 1:
            raise ValueError(f"rows_per_file is {rows_per_file}: give at least 1")
        self._sink = _ToParquet(path, checked_job(job), rows_per_file)

    def expand(self, batches: beam.PCollection) -> beam.pvalue.PDone:
        _ = batches | "Write" >> beam.ParDo(self._sink)
        return beam.pvalue.PDone(batches.pipeline)


class _ToParquet(beam.DoFn):
    def __init__(self, path: str, job: str, rows_per_file: int) -> None:
        self._folder = FileSystems.join(path, f"job={job}")
        self._schema = DEAD_LETTERS.with_metadata({_JOB_KEY: job.encode()})
        self._rows_per_file = rows_per_file
        self._batches: list[pa.RecordBatch] = []
        self._files: dict[str, str] = {}

    def start_bundle(self) -> None:
        self._batches, self._files = [], {}

    def process(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        if sum(b.num_rows for b in self._batches) >= self._rows_per_file:
            self._write()

    def finish_bundle(self) -> None:
        self._write()
        if self._files:
            FileSystems.rename(list(self._files), list(self._files.values()))

    def _write(self) -> None:
        table = pa.Table.from_batches(self._batches, DEAD_LETTERS)
        self._batches = []
        if not table.num_rows:
            return
        name = uuid.uuid4().hex
        hidden = FileSystems.join(self._folder, f".{name}.tmp")
        with FileSystems.create(hidden) as file:
            pq.write_table(table.cast(self._schema), file, compression="zstd")
        self._files[hidden] = FileSystems.join(self._folder, f"{name}.parquet")
        counter("dead_letters_written").inc(table.num_rows)


def read_dead_letters(path: str) -> pa.Table:
    """What ``WriteDeadLettersToParquet`` wrote: a column ``job``, then those of ``DEAD_LETTERS``.

    A path with no file in it, or that does not exist, has no dead letters.

    >>> read_dead_letters("/nonexistent").num_rows
    0
    """
    tables = [_WITH_JOB.empty_table()]
    (found,) = FileSystems.match([FileSystems.join(path, "job=*", "*.parquet")])
    for name in sorted(metadata.path for metadata in found.metadata_list):
        with FileSystems.open(name) as file:
            table = pq.ParquetFile(file).read()
        job = table.schema.metadata[_JOB_KEY].decode()
        column = pa.array([job] * table.num_rows, pa.string())
        tables.append(table.add_column(0, "job", column).cast(_WITH_JOB))
    return pa.concat_tables(tables)
