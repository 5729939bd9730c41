"""Exported events, JSON lines or CSV, as batches of messages: the history that no archive holds."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from velocity.io.metrics import counter
from velocity.io.records import MESSAGES

_RANGE: Final = 16 * 1024 * 1024
"""Bytes of a file of JSON lines that are read at a time, and by one worker."""
_ROWS: Final = 20_000
_NUMBER: Final = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_FORMATS: Final = (".jsonl", ".ndjson", ".json", ".csv")


class ExportError(Exception):
    """An export can't be read; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Export:
    """A stretch of bytes of a file; all of it if ``stop`` is None."""

    path: str
    start: int = 0
    stop: int | None = None

    @property
    def is_csv(self) -> bool:
        return _plain(self.path).endswith(".csv")


def exports(pattern: str) -> list[Export]:
    """What is to be read of the files of a path or pattern, of any file system Beam knows.

    JSON lines are divided, unless they are compressed. Raises ``ExportError`` if there is no such
    file, or one of another format.
    """
    (found,) = FileSystems.match([pattern])
    if not found.metadata_list:
        raise ExportError(f"no file matches {pattern}: correct the path")
    ranges = []
    for metadata in sorted(found.metadata_list, key=lambda m: m.path):
        path, size = metadata.path, metadata.size_in_bytes
        if not _plain(path).endswith(_FORMATS):
            raise ExportError(f"{path}: the name is to end with {', '.join(_FORMATS)}, or with .gz")
        whole = Export(path)
        if whole.is_csv or _plain(path) != path.lower():
            ranges.append(whole)
        else:
            ranges += [Export(path, at, min(at + _RANGE, size)) for at in range(0, size, _RANGE)]
    return ranges


def _plain(path: str) -> str:
    return re.sub(r"\.(gz|bz2|zst)$", "", path.lower())


class ReadFromExports(beam.PTransform):
    """Reads files as batches of ``MESSAGES``: a line of JSON, or a row of CSV, is a message.

    ``topic`` is the file's name, ``partition`` 0, ``offset`` the place of the line in bytes (of a
    row of CSV, and in a compressed file, its number); there is no broker's timestamp. A row of CSV
    becomes a JSON object of its cells, by the names in the first row: an empty cell is no field,
    and ``types`` (of a job's fields) say which cells are numbers or booleans. A row with more or
    fewer cells becomes a JSON array, which no decoder takes: so it becomes a dead letter.
    """

    def __init__(self, pattern: str, types: Mapping[str, str]) -> None:
        super().__init__()
        self._exports, self._types = exports(pattern), types

    def expand(self, pbegin: Any) -> Any:
        return (
            pbegin
            | "Files" >> beam.Create(self._exports, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(_Read(self._types)).with_output_types(pa.RecordBatch)
        )


class _Read(beam.DoFn):
    def __init__(self, types: Mapping[str, str]) -> None:
        self._types, self._messages = types, counter("read_messages")

    def process(self, export: Export) -> Iterator[pa.RecordBatch]:
        batches = rows_of(export, self._types) if export.is_csv else lines_of(export)
        for batch in batches:
            self._messages.inc(batch.num_rows)
            yield batch


def lines_of(export: Export) -> Iterator[pa.RecordBatch]:
    """The lines that begin within a range, as messages; blank ones are none."""
    name = export.path.rpartition("/")[2]
    whole = export.stop is None
    mode = CompressionTypes.AUTO if whole else CompressionTypes.UNCOMPRESSED
    with FileSystems.open(export.path, compression_type=mode) as file:
        if export.start:
            file.seek(export.start - 1)
            at = export.start - 1 + len(file.readline())
        else:
            at = 0
        number = 0
        while whole or at < (export.stop or 0):
            wanted = _RANGE if whole else (export.stop or 0) - at
            data = file.read(wanted)
            if not data:
                return
            if not data.endswith(b"\n"):
                data += file.readline()
            lines = data.split(b"\n")
            sizes = np.array([len(line) + 1 for line in lines])
            places = at + np.concatenate([[0], np.cumsum(sizes)[:-1]])
            if whole:
                places = number + np.arange(len(lines))
                number += len(lines) - 1
            kept = [i for i, line in enumerate(lines) if line.strip()]
            for begin in range(0, len(kept), _ROWS):
                part = kept[begin : begin + _ROWS]
                yield _messages(name, [int(places[i]) for i in part], [lines[i] for i in part])
            at += len(data)


class _Raw(io.RawIOBase):
    """A file of Beam as one of Python's own: one that is compressed lacks half of the methods."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def rows_of(export: Export, types: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """The rows of a CSV file, as messages."""
    name = export.path.rpartition("/")[2]
    with FileSystems.open(export.path) as file:
        raw = io.BufferedReader(_Raw(file))
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text)
        try:
            header = next(reader, [])
            numbered = ((reader.line_num, row) for row in reader if row)
            while rows := list(islice(numbered, _ROWS)):
                values = [_json(header, row, types) for _, row in rows]
                yield _messages(name, [number for number, _ in rows], values)
        except csv.Error as error:
            raise ExportError(
                f"{export.path}, line {reader.line_num}: {error}; is a quote open? Correct the file, "
                "or give it as JSON lines"
            ) from None


def _json(header: list[str], row: list[str], types: Mapping[str, str]) -> bytes:
    """A row as JSON. What is not UTF-8 stays so, for the decoder to see.

    >>> _json(["city", "n"], ["Solo", "7"], {"n": "int64"})
    b'{"city": "Solo", "n": 7}'
    >>> _json(["city", "n"], ["Solo"], {})
    b'["Solo"]'
    """
    if len(row) != len(header):
        return _encoded(json.dumps(row, ensure_ascii=False))
    cells = (
        f"{json.dumps(name, ensure_ascii=False)}: {_cell(cell, types.get(name, 'string'))}"
        for name, cell in zip(header, row, strict=True)
        if cell
    )
    return _encoded("{" + ", ".join(cells) + "}")


def _cell(cell: str, type_: str) -> str:
    plain = cell.strip()
    if type_ in ("int64", "double", "timestamp_ms") and _NUMBER.fullmatch(plain):
        return plain
    if type_.startswith("decimal"):
        return json.dumps(plain)
    if type_ == "bool" and plain.lower() in ("true", "false"):
        return plain.lower()
    return json.dumps(cell, ensure_ascii=False)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _messages(topic: str, offsets: list[int], values: list[bytes]) -> pa.RecordBatch:
    n = len(values)
    known = {
        "topic": pa.repeat(topic, n),
        "partition": pa.repeat(pa.scalar(0, pa.int32()), n),
        "offset": pa.array(offsets, pa.int64()),
        "value": pa.array(values, pa.binary()),
    }
    columns = [known.get(f.name, pa.nulls(n, f.type)) for f in MESSAGES]
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGES)
