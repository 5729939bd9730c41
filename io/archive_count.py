"""How much an archive holds, by the files' own statistics: nothing else of them is read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from velocity.io.archive_files import EVENT_TIME_KEY, ArchiveFile, open_parquet
from velocity.io.archive_read import Between, groups

_AT_A_TIME = 16


def rows_in(files: Sequence[ArchiveFile], between: tuple[int, int]) -> int:
    """The rows of files between two times (epoch milliseconds).

    Of row groups that lie within, their statistics tell; of others the event times are read. Events
    that are in two files count twice.
    """
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return sum(pool.map(lambda file: _rows(file, Between(*between)), files))


def _rows(file: ArchiveFile, between: Between) -> int:
    found = 0
    with open_parquet(file.path) as opened:
        if between.first <= file.hour and file.hour_end <= between.last:
            return int(opened.metadata.num_rows)
        column = opened.schema_arrow.metadata[EVENT_TIME_KEY].decode()
        for group in groups(opened, file.path, between):
            times = opened.read_row_group(group, [column])
            found += between.rows(times, column).num_rows
    return found
