"""Where an archive keeps its files, and what their names say of the events in them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import Any, Final

import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from velocity.io.dead_letters import checked_job

HOUR_MS: Final = 3_600_000
EVENT_TIME: Final = "event_time"
"""The column of raw files that holds each message's event time."""
EVENT_TIME_KEY: Final = b"velocity.event_time"
"""In a file's metadata: the column that holds the event time."""

_NAME: Final = re.compile(r"(?P<topic>[A-Za-z0-9._-]+)-(?P<partition>\d+)-(\d+)-(\d+)\.parquet")
_PLACE: Final = re.compile(r"/date=(\d{4}-\d\d-\d\d)/hour=(\d\d)/([^/]+)$")
_MOST_DATES: Final = 400
"""Days that are listed each by its own; of more, all that there are are listed."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ArchiveError(Exception):
    """An archive can't be read; the message names the file and the remedy."""


class Kind(StrEnum):
    """What an archive holds of each event."""

    RAW = "raw"
    """The message as the broker had it."""
    ENRICHED = "enriched"
    """The columns that the job read, added and derived."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A file of one topic's partition and one hour of event time.

    >>> file = ArchiveFile("a/date=2026-01-05/hour=07", "orders", 3, 10, 99)
    >>> file.path
    'a/date=2026-01-05/hour=07/orders-3-10-99.parquet'
    >>> ArchiveFile.of(file.path) == file, file.hour.isoformat()
    (True, '2026-01-05T07:00:00+00:00')
    """

    folder: str
    topic: str
    partition: int
    first: int
    """The least offset in it."""
    last: int
    """The greatest."""
    bytes: int = field(default=0, compare=False)
    modified: float = field(default=0.0, compare=False)
    """When it was written, by its file system's clock."""

    @classmethod
    def of(cls, path: str, bytes: int = 0, modified: float = 0.0) -> "ArchiveFile | None":
        """By its path; None if that is no file of an archive."""
        folder, _, name = path.rpartition("/")
        match = _NAME.fullmatch(name)
        if not match or not _PLACE.search(path):
            return None
        topic, partition, first, last = match.groups()
        return cls(folder, topic, int(partition), int(first), int(last), bytes, modified)

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.partition}-{self.first}-{self.last}.parquet"

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def hour(self) -> datetime:
        """The hour of event time that it holds."""
        match = _PLACE.search(self.path)
        assert match
        return datetime.fromisoformat(f"{match[1]}T{match[2]}:00:00+00:00")

    @property
    def hour_end(self) -> datetime:
        return self.hour + timedelta(hours=1)


def folder_of(path: str, kind: Kind, job: str) -> str:
    """Of all that an archive holds of a job."""
    return f"{path.rstrip('/')}/{kind}/domain={checked_job(job)}"


def hour_folder(hour: int) -> str:
    """Below a job's folder: that of an hour, counted from the epoch.

    >>> hour_folder(490_927)
    'date=2026-01-02/hour=07'
    """
    time = _EPOCH + timedelta(hours=hour)
    return f"date={time.date().isoformat()}/hour={time.hour:02d}"


def files_of(
    path: str,
    kind: Kind,
    job: str,
    start: datetime | None = None,
    stop: datetime | None = None,
) -> list[ArchiveFile]:
    """The files of a job that may hold events between two times, in the order of their hours.

    A path with no file in it, or that does not exist, holds none.
    """
    folder = folder_of(path, kind, job)
    dates = ["*"]
    if start is not None and stop is not None and (stop - start).days < _MOST_DATES:
        first, last = start.astimezone(UTC).date(), stop.astimezone(UTC).date()
        dates = [str(first + timedelta(days=n)) for n in range((last - first).days + 1)]
    found = [
        file
        for matched in FileSystems.match([f"{folder}/date={date}/hour=*/*" for date in dates])
        for metadata in matched.metadata_list
        if (file := ArchiveFile.of(metadata.path, metadata.size_in_bytes, _modified(metadata)))
        and (start is None or file.hour_end > start)
        and (stop is None or file.hour < stop)
    ]
    return sorted(found, key=lambda f: (f.hour, f.topic, f.partition, f.first, f.last))


def _modified(metadata: Any) -> float:
    return float(metadata.last_updated_in_seconds or 0.0)


@dataclass(frozen=True, slots=True)
class Unit:
    """Files that may hold the same events: those of one hour and partition that overlap.

    The newest comes first, and its events count: of an attempt that was repeated it is the last.
    """

    files: Sequence[ArchiveFile]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def units(files: Iterable[ArchiveFile]) -> Iterator[Unit]:
    """Files put together where their offsets overlap.

    >>> folder = "date=2026-01-05/hour=07"
    >>> files = [ArchiveFile(folder, "t", 0, *ends) for ends in ((0, 9), (5, 12), (13, 20))]
    >>> [[file.first for file in unit.files] for unit in units(files)]
    [[0, 5], [13]]
    """

    def place(file: ArchiveFile) -> tuple[str, str, int]:
        return file.folder, file.topic, file.partition

    for _, group in groupby(sorted(files, key=lambda f: (*place(f), f.first, f.last)), place):
        overlapping: list[ArchiveFile] = []
        for file in group:
            if overlapping and file.first > max(other.last for other in overlapping):
                yield _unit(overlapping)
                overlapping = []
            overlapping.append(file)
        yield _unit(overlapping)


def _unit(files: Sequence[ArchiveFile]) -> Unit:
    return Unit(tuple(sorted(files, key=lambda f: (-f.modified, f.first, f.last))))


def open_parquet(path: str) -> pq.ParquetFile:
    """A file of any file system that Beam knows; a local one is read without Python between.

    Raises ``ArchiveError`` for a file that is gone, or is no Parquet file.
    """
    try:
        if FileSystems.get_scheme(path) is None:
            return pq.ParquetFile(path, memory_map=True)
        return pq.ParquetFile(FileSystems.open(path))
    except FileNotFoundError:
        raise ArchiveError(f"{path} is gone: it was compacted or expired; start again") from None
    except ValueError as error:
        raise ArchiveError(f"{path} can't be read: {error}; restore or remove it") from error
