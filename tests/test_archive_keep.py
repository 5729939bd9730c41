"""Laws of an archive's upkeep: readers find the same events before, meanwhile and after."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlglot
from apache_beam.io.filesystems import FileSystems
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import exp
from typer.testing import CliRunner

from velocity.io.archive import WriteToArchive, hidden_files
from velocity.io.archive_ddl import athena, copy_manifest, redshift
from velocity.io.archive_files import Kind, files_of, folder_of, open_parquet, units
from velocity.io.archive_keep import compact, expire, expired_before
from velocity.io.archive_read import Between, ReadFromArchive
from velocity.io.copies import Origin, copy_headers
from velocity.io.records import MESSAGE, MESSAGES, TIMESTAMP, messages_of
from velocity.pipelines.reference import EXAMPLE
from velocity.runners.cli import app

START = datetime(2026, 1, 5, tzinfo=UTC)
MS, HOUR = int(START.timestamp() * 1000), 3_600_000
SCHEMA = pa.schema(
    [
        pa.field("amount", pa.int64()),
        pa.field("at", TIMESTAMP),
        pa.field(MESSAGE, pa.struct(list(MESSAGES)), nullable=False),
    ]
)


def rows(first: int, last: int, partition: int = 0, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """Three hours of events in turn."""
    n, offsets = last - first, range(first, last)
    known = {
        "topic": pa.repeat("orders", n),
        "partition": pa.repeat(pa.scalar(partition, pa.int32()), n),
        "offset": pa.array(offsets, pa.int64()),
    }
    messages = pa.StructArray.from_arrays(
        [known.get(f.name, pa.nulls(n, f.type)) for f in MESSAGES], fields=list(MESSAGES)
    )
    times = pa.array([MS + o % 3 * HOUR + o for o in offsets], TIMESTAMP)
    columns = {"at": times, MESSAGE: messages}
    return pa.RecordBatch.from_arrays(
        [columns[f.name] if f.name in columns else pa.array(offsets, f.type) for f in schema],
        schema=schema,
    )


def write(path: Path, *batches: pa.RecordBatch) -> None:
    for kind in Kind:
        transform: Any = WriteToArchive(
            str(path), job="deliveries", kind=kind, schema=batches[0].schema, event_time="at"
        )
        sink = transform._sink
        sink.start_bundle()
        for batch in batches:
            sink.process(batch)
        sink.finish_bundle()


def files(path: Path, kind: Kind = Kind.ENRICHED) -> list[Any]:
    return files_of(str(path), kind, "deliveries")


def events(path: Path, schema: pa.Schema = SCHEMA) -> list[tuple[int, int, Any]]:
    """Partition, offset and amount of all that a reader finds in the enriched archive."""
    reader: Any = ReadFromArchive(
        list(units(files(path))),
        kind=Kind.ENRICHED,
        event_time="at",
        between=Between(MS, MS + 24 * HOUR),
        schema=schema,
    )
    batches = [v.value for unit in reader._units for v in reader._read.process((unit,))]
    found = [row for batch in batches for row in batch.to_pylist()]
    return sorted((r[MESSAGE]["partition"], r[MESSAGE]["offset"], r["amount"]) for r in found)


Bundles = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20), st.integers(0, 1)), min_size=1)


@given(Bundles, st.integers(1, 30))
@settings(max_examples=25)
def test_a_compaction_keeps_each_event_once_in_fewer_files_and_again_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, bundles: list[tuple[int, int, int]], most: int
) -> None:
    path = tmp_path_factory.mktemp("archive")
    for first, n, partition in bundles:
        write(path, rows(first, first + n, partition))
    before, count = events(path), len(files(path))
    done = compact(str(path), Kind.ENRICHED, "deliveries", rows_per_file=most)
    assert events(path) == before
    assert len(files(path)) == count - done.before + done.after <= count
    for file in files(path):
        alone = pq.read_table(file.path, partitioning=None)["_offset"].to_pylist()
        assert len(set(alone)) == len(alone)
    compact(str(path), Kind.ENRICHED, "deliveries", rows_per_file=most)
    assert events(path) == before


def test_a_compaction_that_was_killed_before_it_removed_anything_doubles_nothing(
    tmp_path: Path, monkeypatch: Any
) -> None:
    for first in range(0, 60, 20):
        write(tmp_path, rows(first, first + 20))
    before = events(tmp_path)

    class Killed(Exception):
        pass

    def kill(paths: list[str]) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(FileSystems, "delete", kill)
        compact(str(tmp_path), Kind.ENRICHED, "deliveries")
    assert len(files(tmp_path)) == 10
    assert events(tmp_path) == before
    compact(str(tmp_path), Kind.ENRICHED, "deliveries")
    assert len(files(tmp_path)) == 3
    assert events(tmp_path) == before


def test_files_of_an_older_and_a_younger_job_are_compacted_into_one(tmp_path: Path) -> None:
    changed = [pa.field("amount", pa.float64()), pa.field("tier", pa.int64())]
    younger = pa.schema([*changed, SCHEMA.field("at"), SCHEMA.field(MESSAGE)])
    write(tmp_path, rows(0, 30))
    write(tmp_path, rows(30, 60, schema=younger))
    compact(str(tmp_path), Kind.ENRICHED, "deliveries")
    assert len(files(tmp_path)) == 3
    assert [amount for _, _, amount in events(tmp_path, younger)] == [float(n) for n in range(60)]
    assert [amount for _, _, amount in events(tmp_path)] == list(range(60))


def test_what_failed_attempts_left_is_removed_once_none_can_be_at_work_on_it(
    tmp_path: Path,
) -> None:
    write(tmp_path, rows(0, 3))
    folder = folder_of(str(tmp_path), Kind.ENRICHED, "deliveries")
    left = Path(folder, "date=2026-01-05/hour=00/.orders-0-0-9.parquet.x.tmp")
    left.write_bytes(b"")
    compact(str(tmp_path), Kind.ENRICHED, "deliveries")
    assert len(hidden_files(folder)) == 1
    tomorrow = datetime.now(UTC) + timedelta(days=1, minutes=1)
    done = compact(str(tmp_path), Kind.ENRICHED, "deliveries", clock=lambda: tomorrow)
    assert (done.abandoned, hidden_files(folder)) == (1, [])


def test_expired_hours_are_gone_and_remembered(tmp_path: Path) -> None:
    write(tmp_path, rows(0, 30))
    assert expired_before(str(tmp_path), Kind.ENRICHED, "deliveries") is None
    second = START + timedelta(hours=2)
    assert len(expire(str(tmp_path), Kind.ENRICHED, "deliveries", second)) == 2
    assert [file.hour for file in files(tmp_path)] == [second]
    assert expired_before(str(tmp_path), Kind.ENRICHED, "deliveries") == second
    assert len(files(tmp_path, Kind.RAW)) == 3
    expire(str(tmp_path), Kind.ENRICHED, "deliveries", START)
    assert expired_before(str(tmp_path), Kind.ENRICHED, "deliveries") == second


# -- SQL ------------------------------------------------------------------------------------------


def test_athena_reads_the_archive_by_sql_that_parses(tmp_path: Path) -> None:
    sql = athena(SCHEMA, "s3://bucket/it's", "deliveries", table="deliveries")
    table, view = sqlglot.parse(sql, dialect="athena")
    assert isinstance(table, exp.Create)
    assert isinstance(view, exp.Create)
    columns = [
        column.name for column in table.this.expressions if isinstance(column, exp.ColumnDef)
    ]
    written = ["amount", "at", "_topic", "_partition", "_offset", "_timestamp", "_origin"]
    assert columns[: len(written)] == written
    location = table.find(exp.LocationProperty)
    assert location is not None
    assert location.this.name == "s3://bucket/it's/enriched/domain=deliveries/"


def test_redshift_reads_and_copies_the_archive_by_sql_that_parses(tmp_path: Path) -> None:
    write(tmp_path, rows(0, 30))
    sql = redshift(SCHEMA, "s3://bucket/a", "deliveries", files(tmp_path), table="deliveries")
    parsed = sqlglot.parse(sql, dialect="redshift")
    kinds = [type(statement) for statement in parsed]
    assert kinds == [exp.Create, *[exp.Alter] * 3, exp.Create, exp.Create, exp.Copy]
    for hour, statement in enumerate(parsed[1:4]):
        assert statement is not None
        assert f"hour=0{hour}/'" in statement.sql(dialect="redshift")


def test_the_manifest_names_each_file_with_its_length(tmp_path: Path) -> None:
    write(tmp_path, rows(0, 30))
    entries = json.loads(copy_manifest(files(tmp_path)))["entries"]
    assert [entry["meta"]["content_length"] for entry in entries] == [
        Path(entry["url"]).stat().st_size for entry in entries
    ]


def test_the_view_gives_each_event_once_and_its_columns_are_those_of_the_files(
    tmp_path: Path,
) -> None:
    write(tmp_path, rows(0, 20))
    write(tmp_path, rows(10, 30))
    sql = redshift(SCHEMA, str(tmp_path), "deliveries", files(tmp_path), table="deliveries")
    query = re.search(r'AS\n(SELECT .*"_copy" = 1)', sql, re.DOTALL)
    assert query
    pattern = f"{tmp_path}/enriched/*/*/*/*.parquet"
    source = f"read_parquet('{pattern}', hive_partitioning = true)"
    selected = query[1].replace('"spectrum"."deliveries_files"', source)
    found = duckdb.execute(selected)
    columns = [column[0] for column in found.description or ()]
    offset = columns.index("_offset")
    assert sorted(row[offset] for row in found.fetchall()) == list(range(30))
    place = ["_topic", "_partition", "_offset", "_timestamp", "_origin"]
    assert columns == [*SCHEMA.names[:-1], *place, "date", "hour"]


# -- copies ---------------------------------------------------------------------------------------


def sent(*messages: tuple[int, int | None]) -> pa.RecordBatch:
    """Rows of messages by their offset and that of their original: a copy has its time and value."""
    rows = []
    for offset, origin in messages:
        of = offset if origin is None else origin
        headers = [] if origin is None else copy_headers([], Origin("orders", 0, origin), 2)
        message = {"topic": "orders", "partition": 0, "offset": offset} | {
            "headers": [{"name": name, "value": value} for name, value in headers]
        }
        rows.append({"amount": of, "at": MS + of % 3 * HOUR + of, MESSAGE: message})
    return pa.RecordBatch.from_pylist(rows, SCHEMA)


def offsets(path: Path, kind: Kind) -> list[int]:
    """Of all that a reader finds."""
    reader: Any = ReadFromArchive(
        list(units(files(path, kind))),
        kind=kind,
        event_time="at",
        between=Between(MS, MS + 24 * HOUR),
        schema=SCHEMA if kind is Kind.ENRICHED else None,
    )
    batches = [v.value for unit in reader._units for v in reader._read.process((unit,))]
    messages = [b if kind is Kind.RAW else messages_of(b) for b in batches]
    return sorted(offset for batch in messages for offset in batch["offset"].to_pylist())


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=12),
    st.lists(st.integers(0, 40), max_size=4),
    st.booleans(),
)
@settings(max_examples=25)
def test_an_event_whose_dead_letter_was_replayed_is_read_once(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[tuple[bool, int]],
    cuts: list[int],
    compacted: bool,
) -> None:
    """Of each event the original is in the archive or not, and so many copies are, which came later."""
    path = tmp_path_factory.mktemp("archive")
    messages: list[tuple[int, int | None]] = [
        (at, None) for at, (there, _) in enumerate(history) if there
    ]
    copies = [at for n in range(3) for at, (_, many) in enumerate(history) if many > n]
    messages += [(len(history) + n, origin) for n, origin in enumerate(copies)]
    bounds = sorted({0, *(cut % (len(messages) + 1) for cut in cuts), len(messages)})
    for start, stop in pairwise(bounds):
        write(path, sent(*messages[start:stop]))
    first: dict[int, int] = {}
    for offset, origin in messages:
        first.setdefault(offset if origin is None else origin, offset)
    for kind in Kind:
        if compacted:
            compact(str(path), kind, "deliveries")
        assert offsets(path, kind) == sorted(first.values())


def test_files_that_have_no_column_of_origins_are_read_as_they_were(tmp_path: Path) -> None:
    write(tmp_path, sent((0, None), (3, None)))
    [old] = files(tmp_path)
    table = pq.read_table(old.path, partitioning=None)
    pq.write_table(table.drop_columns(["_origin"]), old.path)
    write(tmp_path, sent((6, 3), (9, 0)))
    assert offsets(tmp_path, Kind.ENRICHED) == [0, 3]
    compact(str(tmp_path), Kind.ENRICHED, "deliveries")
    assert offsets(tmp_path, Kind.ENRICHED) == [0, 3]


def test_a_compaction_makes_no_file_of_more_bytes_than_a_writer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(0, 12, 3):
        write(tmp_path, rows(first, first + 3))
    [one, *_] = files(tmp_path)
    with open_parquet(one.path) as opened:
        size = opened.metadata.row_group(0).total_byte_size
    monkeypatch.setattr("velocity.io.archive_keep.BYTES_PER_FILE", 2 * size)
    compact(str(tmp_path), Kind.ENRICHED, "deliveries")
    assert len(files(tmp_path)) == 6  # of each hour's four two


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(EXAMPLE + f"archive: {{path: {tmp_path}/archive, raw: true}}\n")
    return path


def velocity(*arguments: str | Path, code: int = 0, env: Mapping[str, str] | None = None) -> str:
    done = CliRunner().invoke(app, [str(a) for a in ("archive", *arguments)], env=env)
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_lists_compacts_and_expires(job: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    write(archive, rows(0, 30))
    write(archive, rows(30, 60))
    assert "2026-01-05" in velocity("list", job)
    assert len(velocity("list", job, "--files").splitlines()) == 6
    assert "6 files became 3, with 60 events" in velocity("compact", job)
    assert len(velocity("list", job, "--raw", "--files").splitlines()) == 6
    later = "2026-01-05T01:00:00Z"
    assert len(velocity("list", job, "--files", "--from", later).splitlines()) == 2
    assert velocity("expire", job, "--before", later).startswith("1 files")
    assert velocity("expire", job, "--older-than", "1d").startswith("2 files")
    assert "give --before or --older-than" in velocity("expire", job, code=2)


def test_the_command_prints_ddl_for_the_columns_of_the_job(job: Path, tmp_path: Path) -> None:
    write(tmp_path / "archive", rows(0, 30))
    assert "`is_large` boolean" in velocity("ddl", job, "--athena")
    manifest = tmp_path / "manifest.json"
    assert '"city" varchar' in velocity("ddl", job, "--redshift", "--manifest", manifest)
    assert len(json.loads(manifest.read_text())["entries"]) == 3
    assert "give --athena or --redshift" in velocity("ddl", job, code=2)


def test_a_job_without_an_archive_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(EXAMPLE)
    assert f"archive: {path} has none: give it a path" in velocity("list", path, code=1)
