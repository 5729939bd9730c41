"""The embedded store: one file, many writers, and of each document the version that knows most."""

import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from velocity.io.documents import Rejection, rejected
from velocity.io.records import MERGED, Document, WithDeadLetters
from velocity.io.sqlite import SqliteStore, StoreUnusable, WriteToSqlite, read_documents

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AT_NOW = partial(datetime, 2026, 1, 1, tzinfo=UTC)


def doc(id: str, events: int, pane: str = "late", **values: Any) -> Document:
    return Document("job", "metric", 0, 60_000, {"city": "Bandung"}, values, events, pane, id)


def write(path: Path, *bundles: Sequence[Document]) -> None:
    with closing(SqliteStore(str(path))) as store:
        for bundle in bundles:
            store.write(list(bundle), NOW)


def counters(result: Any) -> dict[str, int]:
    return {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "documents.db"


def test_a_document_is_read_as_it_was_written(path: Path) -> None:
    document = doc("1", 3, revenue=1.5, city="Bandung", note='é "quoted"', none=None)
    write(path, [document])
    assert read_documents(str(path)) == {"1": document.body(NOW) | {"version": 7}}


def test_a_stale_version_never_overwrites(path: Path) -> None:
    write(path, [doc("1", 3, n=3)], [doc("1", 2, n=2)], [doc("1", 3, "early", n=0)])
    assert read_documents(str(path))["1"]["values"] == {"n": 3}


def test_an_equal_version_does_not_overwrite(path: Path) -> None:
    write(path, [doc("1", 3, n=3)], [doc("1", 3, n=4)])
    assert read_documents(str(path))["1"]["values"] == {"n": 3}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(
            st.builds(
                lambda generation, *document: replace(doc(*document), generation=generation),
                st.integers(0, 1),
                st.sampled_from("abc"),
                st.integers(1, 5),
                st.sampled_from(["early", "late", MERGED]),
            )
        ),
        max_size=5,
    )
)
def test_in_any_order_and_any_bundles_the_greatest_version_stays_or_what_merged_stays_away(
    tmp_path_factory: pytest.TempPathFactory, bundles: list[list[Document]]
) -> None:
    path = tmp_path_factory.mktemp("store") / "documents.db"
    write(path, *bundles)
    greatest: dict[str, Document] = {}
    for document in sorted((d for bundle in bundles for d in bundle), key=lambda d: d.version):
        greatest[document.id] = document
    assert {id: d["version"] for id, d in read_documents(str(path)).items()} == {
        id: document.version for id, document in greatest.items() if document.pane != MERGED
    }


def test_what_has_merged_counts_as_removed_where_it_was(path: Path) -> None:
    with closing(SqliteStore(str(path))) as store:
        store.write([doc("1", 1), doc("2", 1)], NOW)
        assert store.write([doc("1", 0, MERGED), doc("3", 0, MERGED)], NOW) == (0, 0, [], 1)
        assert store.write([doc("1", 5), doc("1", 0, MERGED)], NOW) == (0, 1, [], 0)
    assert read_documents(str(path)).keys() == {"2"}


def test_a_store_of_before_takes_removals(path: Path) -> None:
    write(path, [doc("1", 1)])
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE removed")
    write(path, [doc("1", 0, MERGED)])
    assert read_documents(str(path)) == {}


def test_a_failed_bundle_leaves_nothing(path: Path) -> None:
    with closing(SqliteStore(str(path))) as store:
        with pytest.raises(OverflowError):
            store.write([doc("1", 1), doc("2", 2**70)], NOW)
        store.write([doc("3", 1)], NOW)
    assert read_documents(str(path)).keys() == {"3"}


def test_the_journal_is_written_ahead_so_that_readers_never_wait(path: Path) -> None:
    write(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert read_documents(str(path)) == {}
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


WRITER = """
import sys
from contextlib import closing
from datetime import UTC, datetime
from velocity.io.records import Document
from velocity.io.sqlite import SqliteStore
path, mine = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
with closing(SqliteStore(path)) as store:
    for n in range(1, 40):
        documents = [
            Document("job", "m", 0, 1, {}, {"n": e}, e, "late", str(i))
            for i in range(20)
            for e in [(n * 3 + i * mine) % 100 + mine]
        ]
        store.write(documents, datetime.now(UTC))
"""


def test_several_processes_write_at_once_and_the_greatest_version_stays(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(i)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in (1, 2, 3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:  # the store does not exist yet: they create it at the same time
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    expected = {
        str(i): max((n * 3 + i * w) % 100 + w for n in range(1, 40) for w in (1, 2, 3))
        for i in range(20)
    }
    assert {id: d["events"] for id, d in read_documents(str(path)).items()} == expected


@pytest.mark.parametrize("open_store", [lambda p: SqliteStore(p), read_documents])
def test_a_store_of_another_layout_is_named_with_its_remedy(path: Path, open_store: Any) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE documents (id TEXT, body TEXT)")
    with pytest.raises(StoreUnusable, match=r"columns id, body, not .*: move"):
        open_store(str(path))


@pytest.mark.parametrize("open_store", [lambda p: SqliteStore(p), read_documents])
def test_a_file_that_is_no_store_is_left_as_it_is(path: Path, open_store: Any) -> None:
    path.parent.mkdir()
    path.write_bytes(b"precious" * 1_000)
    with pytest.raises(StoreUnusable, match="no SQLite database: move the file away"):
        open_store(str(path))
    assert path.read_bytes() == b"precious" * 1_000


def test_reading_before_any_writing_says_what_is_missing(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run a job"):
        read_documents(str(path))
    assert not path.exists()


def test_its_error_crosses_a_worker() -> None:
    error = StoreUnusable("is broken", "p")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_store_that_workers_cannot_share_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="name a file"):
        WriteToSqlite(path)


@pytest.fixture(params=["FnApiRunner", "BundleBasedDirectRunner"])
def runner(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield FnApiRunner() if request.param == "FnApiRunner" else request.param


def test_each_document_is_counted_once_as_written_or_stale(path: Path, runner: Any) -> None:
    documents = [doc(str(i % 1_500), 1 + i // 1_500) for i in range(2_500)]
    pipeline = beam.Pipeline(runner)
    _ = pipeline | beam.Create([*documents, doc("0", 1, "early")]) | WriteToSqlite(str(path))
    result = pipeline.run()
    result.wait_until_finish()
    seen = counters(result)
    assert seen["documents_written"] + seen.get("documents_stale", 0) == 2_501
    assert seen.get("documents_stale", 0) >= 1
    assert {d["version"] for d in read_documents(str(path)).values()} == {3, 5}


def test_a_repeated_bundle_writes_nothing_new(path: Path) -> None:
    documents = [doc(str(i), 1, n=i) for i in range(20)]
    pipeline = beam.Pipeline(
        FnApiRunner(), options=PipelineOptions(["--direct_runner_bundle_repeat=2"])
    )
    _ = pipeline | beam.Create(documents) | WriteToSqlite(str(path), now=AT_NOW)
    result = pipeline.run()
    result.wait_until_finish()
    assert read_documents(str(path)) == {
        d.id: d.body(NOW) | {"version": d.version} for d in documents
    }
    # Beam counts the last try only; had the repeats not run, nothing would be stale.
    assert counters(result)["documents_stale"] == 20


def test_what_json_cannot_hold_becomes_a_dead_letter_beside_the_earlier_ones(
    path: Path, runner: Any
) -> None:
    earlier = rejected([Rejection("elsewhere", "0", b"{}", "no")], NOW)
    with beam.Pipeline(runner) as pipeline:
        documents = pipeline | "Documents" >> beam.Create(
            [doc("1", 1, mean=float("nan")), doc("2", 1, mean=1.0)]
        )
        windowed = documents | beam.WindowInto(beam.window.FixedWindows(60))
        came_with = pipeline | "Earlier" >> beam.Create([earlier])
        all_dead = WithDeadLetters(windowed, came_with) | WriteToSqlite(str(path))
        told = (
            all_dead
            | beam.FlatMap(lambda batch: batch.to_pylist())
            | beam.Map(lambda row: (row["topic"], row["key"], row["stage"], row["cause"]))
        )
        assert_that(
            told,
            equal_to(
                [
                    ("elsewhere", b"0", "sink", "rejected"),
                    ("documents", b"1", "sink", "rejected"),
                ]
            ),
        )
    assert read_documents(str(path)).keys() == {"2"}
