"""Laws of the archive: each event is in it once for its readers, whatever was tried again."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from velocity.io.archive import WriteToArchive, hidden_files
from velocity.io.archive_count import rows_in
from velocity.io.archive_files import (
    ArchiveError,
    Kind,
    files_of,
    folder_of,
    open_parquet,
    units,
)
from velocity.io.archive_read import Between, ReadFromArchive, groups
from velocity.io.records import MESSAGE, MESSAGES, TIMESTAMP

HOUR = 3_600_000
START = datetime(2026, 1, 5, tzinfo=UTC)
MS = int(START.timestamp() * 1000)
ALWAYS = Between.times(START - timedelta(days=1), START + timedelta(days=9))
ROWS = pa.schema(
    [
        pa.field("city", pa.string()),
        pa.field("amount", pa.int64()),
        pa.field("at", TIMESTAMP),
        pa.field(MESSAGE, pa.struct(list(MESSAGES)), nullable=False),
    ]
)


def rows(
    offsets: Sequence[int],
    times: Mapping[int, int] | None = None,
    *,
    partition: int = 0,
    amount: int = 0,
) -> pa.RecordBatch:
    """Events whose content follows from their offset; ``times`` are theirs, after ``START``."""
    n = len(offsets)
    known = {
        "topic": pa.repeat("orders-eu.v1", n),
        "partition": pa.repeat(pa.scalar(partition, pa.int32()), n),
        "offset": pa.array(offsets, pa.int64()),
        "timestamp": pa.array([MS + o for o in offsets], TIMESTAMP),
        "value": pa.array([b'{"n": %d}' % o for o in offsets], pa.binary()),
    }
    columns = [known.get(f.name, pa.nulls(n, f.type)) for f in MESSAGES]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([f"city {o % 3}" for o in offsets], pa.string()),
            pa.array([o + amount for o in offsets], pa.int64()),
            pa.array([MS + (times or {}).get(o, o) for o in offsets], TIMESTAMP),
            pa.StructArray.from_arrays(columns, fields=list(MESSAGES)),
        ],
        schema=ROWS,
    )


def writer(
    path: Path | str, kind: Kind = Kind.ENRICHED, rows_per_file: int = 1_000, schema: Any = ROWS
) -> Any:
    """The DoFn of the sink: a test ends its bundles itself, or lets them fail."""
    write: Any = WriteToArchive(
        str(path),
        job="orders",
        kind=kind,
        schema=schema,
        event_time="at",
        rows_per_file=rows_per_file,
    )
    return write._sink


def write(path: Path | str, *batches: pa.RecordBatch, **options: Any) -> None:
    """One bundle."""
    sink = writer(path, **options)
    sink.start_bundle()
    for batch in batches:
        sink.process(batch)
    sink.finish_bundle()


def read(
    path: Path | str, kind: Kind = Kind.ENRICHED, between: Between = ALWAYS, schema: Any = ROWS
) -> pa.Table:
    """All that a reader finds, in the order of partitions and offsets."""
    reader: Any = ReadFromArchive(
        list(units(files_of(str(path), kind, "orders"))),
        kind=kind,
        event_time="at",
        between=between,
        schema=schema if kind is Kind.ENRICHED else None,
    )
    found = [v.value for unit in reader._units for v in reader._read.process((unit,))]
    empty = schema.empty_table() if kind is Kind.ENRICHED else MESSAGES.empty_table()
    return pa.concat_tables([empty, *(pa.Table.from_batches([batch]) for batch in found)])


def offsets_of(table: pa.Table) -> list[int]:
    return sorted(row["offset"] for row in table[MESSAGE].to_pylist())


class Attempts(list[tuple[int, int, bool]]):
    """Bundles as (first, last, whether it failed at its end), each starting at the last success."""


@st.composite
def attempts(draw: st.DrawFn) -> Attempts:
    found, start = Attempts(), 0
    for _ in range(draw(st.integers(1, 6))):
        stop = start + draw(st.integers(1, 20))
        outcome = draw(st.sampled_from(["done", "failed", "files renamed, then failed"]))
        found.append((start, stop, outcome == "failed"))
        if outcome == "done":
            start = stop
    found.append((start, start + 5, False))
    return found


@given(attempts(), st.dictionaries(st.integers(0, 130), st.integers(0, 3 * HOUR)), st.data())
@settings(max_examples=40)
def test_readers_find_each_event_once_whatever_bundles_failed_and_were_cut_elsewhere(
    tmp_path_factory: pytest.TempPathFactory,
    tried: Attempts,
    times: dict[int, int],
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("archive")
    for kind in Kind:
        for start, stop, failed in tried:
            sink = writer(path, kind, rows_per_file=7)
            sink.start_bundle()
            cut = data.draw(st.integers(start, stop))
            for part in (range(start, cut), range(cut, stop)):
                if part:
                    sink.process(rows(part, times))
            if not failed:
                sink.finish_bundle()
    end = tried[-1][1]
    reached = max(stop for _, stop, failed in tried if not failed)
    wanted = range(max(end, reached))
    table = read(path)
    assert offsets_of(table) == list(wanted)
    expected = dict(zip(wanted, rows(wanted, times).to_pylist(), strict=True))
    for row in table.to_pylist():
        assert row["amount"] == expected[row[MESSAGE]["offset"]]["amount"]
        assert row["at"] == expected[row[MESSAGE]["offset"]]["at"]
    raw = read(path, Kind.RAW).sort_by("offset")
    assert raw.to_pylist() == [r[MESSAGE] for r in expected.values()]


def test_a_bundle_that_is_not_over_shows_nothing_and_one_that_ran_again_shows_no_more(
    tmp_path: Path,
) -> None:
    sink = writer(tmp_path, rows_per_file=2)
    sink.start_bundle()
    sink.process(rows(range(10)))
    assert files_of(str(tmp_path), Kind.ENRICHED, "orders") == []
    assert len(hidden_files(folder_of(str(tmp_path), Kind.ENRICHED, "orders"))) == 1
    for _ in range(2):
        write(tmp_path, rows(range(10)))
        [file] = files_of(str(tmp_path), Kind.ENRICHED, "orders")
        assert file.name == "orders-eu.v1-0-0-9.parquet"


def test_of_an_event_in_two_files_the_one_of_the_newer_counts(tmp_path: Path) -> None:
    write(tmp_path, rows(range(10), amount=1_000))
    [old] = files_of(str(tmp_path), Kind.ENRICHED, "orders")
    write(tmp_path, rows(range(5, 15), amount=2_000))
    past = START.timestamp()
    os.utime(old.path, (past, past))
    amounts = {r[MESSAGE]["offset"]: r["amount"] for r in read(tmp_path).to_pylist()}
    assert amounts == {o: o + (1_000 if o < 5 else 2_000) for o in range(15)}


def test_a_file_holds_events_of_one_hour_and_partition_and_no_more_rows_than_it_may(
    tmp_path: Path,
) -> None:
    times = {o: (o % 3) * HOUR + o for o in range(60)}
    write(tmp_path, rows(range(30), times), rows(range(30, 60), times), rows_per_file=8)
    write(tmp_path, rows(range(5), times, partition=1))
    files = files_of(str(tmp_path), Kind.ENRICHED, "orders")
    for file in files:
        table = pq.read_table(file.path, partitioning=None)
        assert {t.replace(minute=0, second=0, microsecond=0) for t in table["at"].to_pylist()} == {
            file.hour
        }
        assert set(table["_partition"].to_pylist()) == {file.partition}
        assert table.num_rows <= 8 + 10  # a batch is not divided once more within its hour
        assert table["at"].to_pylist() == sorted(table["at"].to_pylist())
    assert len(offsets_of(read(tmp_path))) == 65
    hour = START + timedelta(hours=1)
    some = files_of(str(tmp_path), Kind.ENRICHED, "orders", hour, hour + timedelta(minutes=1))
    assert {file.hour for file in some} == {hour}


def test_only_row_groups_of_the_time_are_read(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("velocity.io.archive.ROWS_PER_GROUP", 10)
    write(tmp_path, rows(range(100)))
    [file] = files_of(str(tmp_path), Kind.ENRICHED, "orders")
    between = Between(MS + 15, MS + 30)
    with open_parquet(file.path) as opened:
        assert opened.num_row_groups == 10
        assert opened.metadata.row_group(0).column(0).compression == "ZSTD"
        assert list(groups(opened, file.path, between)) == [1, 2]
    assert offsets_of(read(tmp_path, between=between)) == list(range(15, 30))
    assert rows_in([file], (between.start, between.stop)) == 15
    assert rows_in([file], (ALWAYS.start, ALWAYS.stop)) == 100


def with_columns(*columns: pa.Field) -> pa.Schema:
    return pa.schema([*columns, ROWS.field("at"), ROWS.field(MESSAGE)])


def test_a_column_that_came_later_is_null_one_dropped_is_not_read_and_one_widened_is_cast(
    tmp_path: Path,
) -> None:
    write(tmp_path, rows(range(3)))
    younger = with_columns(pa.field("amount", pa.float64()), pa.field("tier", pa.string()))
    table = read(tmp_path, schema=younger)
    assert table.schema == younger
    assert table["amount"].to_pylist() == [0.0, 1.0, 2.0]
    assert table["tier"].to_pylist() == [None] * 3


def test_a_type_that_holds_not_all_values_is_refused_with_the_file_and_the_remedy(
    tmp_path: Path,
) -> None:
    write(tmp_path, rows(range(3)))
    with pytest.raises(ArchiveError, match=r"v1-0-0-2.parquet: column city is string.*int64.*raw"):
        read(tmp_path, schema=with_columns(pa.field("city", pa.int64())))


def test_a_column_that_a_folder_stands_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="column Date has the name of a partition"):
        writer(tmp_path, schema=with_columns(pa.field("Date", pa.string())))
    writer(tmp_path, Kind.RAW, schema=with_columns(pa.field("Date", pa.string())))


def test_a_file_that_is_gone_or_broken_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"nosuch.parquet is gone.*start again"):
        open_parquet(str(tmp_path / "nosuch.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"no")
    with pytest.raises(ArchiveError, match=r"broken.parquet can't be read"):
        open_parquet(str(tmp_path / "broken.parquet"))


def test_an_archive_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert files_of(str(tmp_path / "nosuch"), Kind.RAW, "orders") == []


def test_duckdb_reads_it_and_knows_the_folders_as_columns(tmp_path: Path) -> None:
    times = {o: o * HOUR for o in range(30)}
    write(tmp_path, rows(range(30), times))
    pattern = f"{tmp_path}/enriched/*/*/*/*.parquet"
    found = duckdb.execute(
        f"SELECT domain, date::VARCHAR, hour::INTEGER, count(*), sum(amount) "
        f"FROM read_parquet('{pattern}', hive_partitioning = true) "
        "GROUP BY ALL ORDER BY ALL LIMIT 2"
    ).fetchall()
    assert found == [("orders", "2026-01-05", 0, 1, 0), ("orders", "2026-01-05", 1, 1, 1)]


def test_a_pipeline_writes_and_another_reads_what_it_wrote(tmp_path: Path) -> None:
    options = {"job": "orders", "schema": ROWS, "event_time": "at"}
    with beam.Pipeline() as p:
        batches = p | beam.Create([rows(range(100)), rows(range(50), partition=1)])
        for kind in Kind:
            sink = WriteToArchive(str(tmp_path), kind=kind, **options)
            _ = batches | f"Archive {kind}" >> sink
    with beam.Pipeline() as p:
        found = p | ReadFromArchive(
            list(units(files_of(str(tmp_path), Kind.ENRICHED, "orders"))),
            kind=Kind.ENRICHED,
            event_time="at",
            between=Between(MS, MS + 10),
            schema=ROWS,
        )

        def right(batches: Any) -> None:
            assert sorted(a for b in batches for a in b["amount"].to_pylist()) == sorted(
                [*range(10), *range(10)]
            )

        assert_that(found, right)
