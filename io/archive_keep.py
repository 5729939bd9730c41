"""The upkeep of an archive: small files made into large ones, and old hours removed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final

import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from velocity.io.archive import BYTES_PER_FILE, ROWS_PER_FILE, hidden_files, write_file
from velocity.io.archive_files import (
    EVENT_TIME_KEY,
    ArchiveError,
    ArchiveFile,
    Kind,
    files_of,
    folder_of,
    open_parquet,
)
from velocity.io.archive_read import once
from velocity.io.records import now

_ABANDONED_AFTER: Final = timedelta(days=1)
"""What an attempt has not renamed by then, it never will."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did."""

    before: int
    """Files that it read."""
    after: int
    """Files that it wrote in their place."""
    rows: int
    abandoned: int
    """Files of attempts that failed, which it removed."""


def compact(
    path: str,
    kind: Kind,
    job: str,
    *,
    start: datetime | None = None,
    stop: datetime | None = None,
    rows_per_file: int = ROWS_PER_FILE,
    clock: Callable[[], datetime] = now,
) -> Compacted:
    """Makes few files of many, for each hour and partition; each event stays in one.

    A live job may go on writing, and readers reading: the new files appear before the old ones go,
    and until then readers find the same events in both, and take each once. A compaction that was
    killed leaves both, and the next one goes on. Raises ``ArchiveError`` if files of one hour have
    columns whose types exclude each other.
    """
    before = after = rows = 0
    files = files_of(path, kind, job, start, stop)
    for group in _places(files):
        if len(group) < 2:
            continue
        for part in _filled(group, rows_per_file):
            if len(part) < 2:
                continue
            table = _merged(part, kind)
            place = part[0]
            event_time = table.schema.metadata[EVENT_TIME_KEY].decode()
            hidden, new = write_file(table, place.folder, place.topic, place.partition, event_time)
            FileSystems.rename([hidden], [new])
            FileSystems.delete([file.path for file in part if file.path != new])
            before, after, rows = before + len(part), after + 1, rows + table.num_rows
    oldest = (clock() - _ABANDONED_AFTER).timestamp()
    abandoned = [name for name, at in hidden_files(folder_of(path, kind, job)) if at < oldest]
    if abandoned:
        FileSystems.delete(abandoned)
    return Compacted(before, after, rows, len(abandoned))


def _places(files: Sequence[ArchiveFile]) -> Iterator[list[ArchiveFile]]:
    """By hour and partition, each in the order of offsets."""
    for _, group in groupby(files, key=lambda f: (f.folder, f.topic, f.partition)):
        yield list(group)


def _filled(files: Sequence[ArchiveFile], rows_per_file: int) -> Iterator[list[ArchiveFile]]:
    """Consecutive files, as many as make one of so many rows, and of no more bytes than a writer
    makes; what overlaps stays together."""
    part: list[ArchiveFile] = []
    rows, bytes_, reached = 0, 0, -1
    for file in files:
        with open_parquet(file.path) as opened:
            of = opened.metadata
            more = of.num_rows
            larger = sum(of.row_group(n).total_byte_size for n in range(of.num_row_groups))
        full = rows + more > rows_per_file or bytes_ + larger > BYTES_PER_FILE
        if part and full and file.first > reached:
            yield part
            part, rows, bytes_ = [], 0, 0
        part.append(file)
        rows, bytes_, reached = rows + more, bytes_ + larger, max(reached, file.last)
    yield part


def _merged(files: Sequence[ArchiveFile], kind: Kind) -> pa.Table:
    """All events of the files, each once: of those that are in two the newer file's."""
    tables = []
    for file in sorted(files, key=lambda f: (-f.modified, f.first)):
        with open_parquet(file.path) as opened:
            tables.append(opened.read())
    metadata = tables[0].schema.metadata
    try:
        table = pa.concat_tables(
            [table.replace_schema_metadata(None) for table in tables],
            promote_options="permissive",
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        names = ", ".join(file.path for file in files)
        raise ArchiveError(f"can't compact {names}: {error}; leave this hour out") from error
    column = "offset" if kind is Kind.RAW else "_offset"
    table = once(table.combine_chunks(), lambda t: t[column])
    return table.replace_schema_metadata(metadata)


def expire(path: str, kind: Kind, job: str, before: datetime) -> list[ArchiveFile]:
    """Removes the files of hours that end at that time or earlier, and tells which they were.

    The archive remembers it (``expired_before``), so that no replay takes what is left for all.
    """
    gone = [file for file in files_of(path, kind, job) if file.hour_end <= before]
    if gone:
        marked, last = _mark(path, kind, job), max(file.hour_end for file in gone)
        known = expired_before(path, kind, job)
        with FileSystems.create(f"{marked}.tmp") as file:
            file.write(max(last, known or last).isoformat().encode())
        FileSystems.rename([f"{marked}.tmp"], [marked])
        FileSystems.delete([file.path for file in gone])
    return gone


def expired_before(path: str, kind: Kind, job: str) -> datetime | None:
    """Up to when events were removed; None if none ever were."""
    marked = _mark(path, kind, job)
    if not FileSystems.exists(marked):
        return None
    with FileSystems.open(marked) as file:
        return datetime.fromisoformat(file.read().decode())


def _mark(path: str, kind: Kind, job: str) -> str:
    return f"{folder_of(path, kind, job)}/_expired"
