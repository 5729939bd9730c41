"""Copies in an archive: rows of messages that a replay of dead letters has sent again."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from cachetools import LRUCache

from velocity.io.archive_files import ArchiveFile, Kind, open_parquet
from velocity.io.copies import origin_offsets

_PLACES: Final = 16
"""Of which it is remembered at a time what they hold."""

_NEEDED: Final = ("topic", "partition", "offset", "headers", "_offset", "_origin")
"""The columns, of files of both kinds, that tell copies."""

_First = dict[int, int]
"""By the offset of an original that of its row, or of its first copy where it has none."""


class Copies:
    """Leaves of each event one row, where a run had set it aside and its dead letter was replayed.

    The original is in the archive if it failed in a step after it, and so is each copy that came as far. A
    copy has the time, the topic and the partition of its original, and so lies in the same hour's
    files. Of what they have of an event the least offset counts.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._held: LRUCache[tuple[str, str, int], _First] = LRUCache(_PLACES)

    def _origins(self, table: pa.Table) -> Any:
        """Of rows the offsets of their originals, null for what is no copy."""
        if self._kind is Kind.RAW:
            return origin_offsets(table)
        there = "_origin" in table.column_names  # files of before have no such column
        return table["_origin"] if there else pa.nulls(table.num_rows, pa.int64())

    def left_out(self, table: pa.Table, file: ArchiveFile) -> pa.Table:
        """The rows of a file, without those whose event another row says."""
        origins = self._origins(table)
        if origins.null_count == table.num_rows:
            return table
        held = self._of_place(file)
        offsets = table[self._offset].to_pylist()
        said = [
            origin is None or held.get(origin, offset) == offset
            for origin, offset in zip(origins.to_pylist(), offsets, strict=True)
        ]
        return table.filter(pa.array(said))

    @property
    def _offset(self) -> str:
        return "offset" if self._kind is Kind.RAW else "_offset"

    def _of_place(self, file: ArchiveFile) -> _First:
        place = file.folder, file.topic, file.partition
        if place not in self._held:
            self._held[place] = self._look(file)
        return self._held[place]

    def _look(self, near: ArchiveFile) -> _First:
        """Reads offsets and origins of all files beside one."""
        first: dict[int, int] = {}
        offsets: list[npt.NDArray[np.int64]] = []
        [matched] = FileSystems.match([f"{near.folder}/*"])
        for found in matched.metadata_list:
            file = ArchiveFile.of(found.path)
            if file is None or (file.topic, file.partition) != (near.topic, near.partition):
                continue
            with open_parquet(file.path) as opened:
                there = set(opened.schema_arrow.names)
                table = opened.read([n for n in _NEEDED if n in there], use_threads=False)
            offsets.append(table[self._offset].to_numpy())
            origins = self._origins(table)
            if origins.null_count == table.num_rows:
                continue
            for origin, at in zip(origins.to_pylist(), offsets[-1].tolist(), strict=True):
                if origin is not None:
                    first[origin] = min(at, first.get(origin, at))
        originals = np.array(list(first), np.int64)
        for origin in originals[np.isin(originals, np.concatenate(offsets))].tolist():
            first[origin] = origin
        return first
