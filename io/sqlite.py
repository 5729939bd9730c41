"""Documents into one SQLite file: the embedded store, by the same ids and version rule."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from velocity.io.documents import Rejection, measure_delays, rejected, write_documents
from velocity.io.metrics import counter
from velocity.io.records import MERGED, Document, now

DOCUMENTS_PER_TRANSACTION: Final = 1_000

_TEXT: Final = ("job", "metric", "window_start", "window_end", "pane", "written_at")
_JSON: Final = ("dimensions", "values")
_COLUMNS: Final = {
    "id": "TEXT PRIMARY KEY",
    "version": "INTEGER NOT NULL",
    "job": "TEXT NOT NULL",
    "metric": "TEXT NOT NULL",
    "window_start": "TEXT NOT NULL",
    "window_end": "TEXT NOT NULL",
    "dimensions": "TEXT NOT NULL",
    "values": "TEXT NOT NULL",
    "events": "INTEGER NOT NULL",
    "pane": "TEXT NOT NULL",
    "written_at": "TEXT NOT NULL",
}
_CREATE: Final = "CREATE TABLE IF NOT EXISTS documents ({})".format(
    ", ".join(f'"{name}" {kind}' for name, kind in _COLUMNS.items())
)
_CREATE_REMOVED: Final = (
    "CREATE TABLE IF NOT EXISTS removed (id TEXT PRIMARY KEY, version INTEGER NOT NULL)"
)
_CREATE_INDEX: Final = (
    "CREATE INDEX IF NOT EXISTS documents_by_metric ON documents (job, metric, window_start)"
)
"""For those who read a metric's windows, as the board does."""
_UPSERT: Final = (
    "INSERT INTO documents SELECT {} "
    "WHERE NOT EXISTS (SELECT 1 FROM removed WHERE id = :id AND version >= :version) "
    "ON CONFLICT(id) DO UPDATE SET {} WHERE excluded.version > documents.version"
).format(
    ", ".join(f":{name}" for name in _COLUMNS),
    ", ".join(f'"{name}" = excluded."{name}"' for name in _COLUMNS if name != "id"),
)


_REMOVED: Final = (
    "INSERT INTO removed VALUES (:id, :version) ON CONFLICT(id) DO UPDATE "
    "SET version = excluded.version WHERE excluded.version > removed.version"
)
"""A row outlives its document, or an older one, come late, would be new."""
_REMOVE: Final = "DELETE FROM documents WHERE id = :id AND version < :version"


class StoreUnusable(Exception):
    """The file at this path is no document store, or one of another layout."""

    def __init__(self, problem: str, path: str) -> None:
        # The problem comes first because Beam adds the step's name to the first argument.
        super().__init__(problem, path)
        self.problem, self.path = problem, path

    def __str__(self) -> str:
        return f"{self.path} {self.problem}: move the file away, or give another path"


class Outcome(NamedTuple):
    """What became of some documents; each is counted once, those removed as far as they were there."""

    written: int
    stale: int
    rejected: list[Rejection]
    removed: int = 0


class SqliteStore:
    """A file of documents (table ``documents``), in which of one id the greatest version stays.

    Opening it creates the file, its folder and its table. Several processes may write at once: each
    waits up to ``busy_timeout`` for the others. Raises ``StoreUnusable`` for a foreign file.

    >>> import tempfile
    >>> from datetime import UTC
    >>> early = Document("orders", "m", 0, 60_000, {}, {"n": 2}, 2, "early", "id-1")
    >>> late = Document("orders", "m", 0, 60_000, {}, {"n": 3}, 3, "late", "id-1")
    >>> now = datetime(2026, 1, 1, tzinfo=UTC)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with closing(SqliteStore(f"{folder}/documents.db")) as store:
    ...         _ = store.write([late], now)
    ...         print(store.write([early], now))
    ...     read_documents(f"{folder}/documents.db")["id-1"]["values"]
    Outcome(written=0, stale=1, rejected=[], removed=0)
    {'n': 3}
    """

    def __init__(self, path: str, busy_timeout: timedelta = timedelta(seconds=30)) -> None:
        self._path, self._busy_timeout = path, busy_timeout
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Beam may set a DoFn up in one thread and run it in another, never in two at once.
        self._db = sqlite3.connect(
            path,
            timeout=busy_timeout.total_seconds(),
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        try:
            with self._transaction():
                self._db.execute(_CREATE)
                self._db.execute(_CREATE_REMOVED)
            _check_layout(self._path, self._db)
            with self._transaction():
                self._db.execute(_CREATE_INDEX)
            self._write_ahead(time.monotonic() + self._busy_timeout.total_seconds())
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
                raise
            raise StoreUnusable("is no SQLite database", self._path) from error

    def _write_ahead(self, deadline: float) -> None:
        """Readers and writers don't wait for each other then. The file keeps the mode."""
        while self._db.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                # The change needs the file for itself, and does not wait for it as a query does.
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def write(self, documents: list[Document], written_at: datetime) -> Outcome:
        """Writes documents in one transaction; all or none."""
        rows: list[dict[str, Any]] = []
        gone: list[dict[str, Any]] = []
        refused: list[Rejection] = []
        for document in documents:
            if document.pane == MERGED:
                gone.append({"id": document.id, "version": document.version})
                continue
            body = document.body(written_at)
            try:
                texts = {name: json.dumps(body[name], allow_nan=False) for name in _JSON}
            except ValueError as error:  # NaN and infinity, which JSON and Elasticsearch lack too
                json_text = json.dumps(body).encode()
                refused.append(Rejection("documents", document.id, json_text, str(error)))
                continue
            rows.append(body | texts | {"id": document.id, "version": document.version})
        with self._transaction():
            written = self._changed(_UPSERT, rows)
            self._changed(_REMOVED, gone)
            removed = self._changed(_REMOVE, gone)
        return Outcome(written, len(rows) - written, refused, removed)

    def _changed(self, statement: str, rows: list[dict[str, Any]]) -> int:
        before = self._db.total_changes
        self._db.executemany(statement, rows)
        return self._db.total_changes - before

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # A deferred transaction that turns from reading to writing fails at once, without waiting.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def read_documents(path: str) -> dict[str, dict[str, Any]]:
    """All documents of a store by id: each its body (``Document.body``) and its ``version``.

    Raises ``FileNotFoundError`` and ``StoreUnusable``.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no store yet; run a job with this sink first")
    names = [*_TEXT, *_JSON, "events", "version"]
    query = "SELECT id, {} FROM documents".format(", ".join(f'"{name}"' for name in names))
    uri = Path(path).absolute().as_uri() + "?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        _check_layout(path, db)
        stored = {row[0]: dict(zip(names, row[1:], strict=True)) for row in db.execute(query)}
    for body in stored.values():
        body["@timestamp"] = body["window_start"]
        body.update({name: json.loads(body[name]) for name in _JSON})
    return stored


def _check_layout(path: str, db: sqlite3.Connection) -> None:
    try:
        columns = [row[1] for row in db.execute("PRAGMA table_info(documents)")]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise
        raise StoreUnusable("is no SQLite database", path) from error
    if columns != list(_COLUMNS):
        found = f"with the columns {', '.join(columns)}" if columns else "that does not exist"
        raise StoreUnusable(f"has a table 'documents' {found}, not {', '.join(_COLUMNS)}", path)


class WriteToSqlite(beam.PTransform):
    """Writes documents to a ``SqliteStore``; the greatest version of an id stays.

    Takes a PCollection of ``Document`` or a ``WithDeadLetters`` of it, and gives a PCollection of
    dead-letter batches: those that came with it, and documents that JSON cannot hold (NaN).
    Writes once per bundle, or per 1,000 documents. Counts ``documents_written``,
    ``documents_stale`` (a newer or equal version was there: a success) and ``documents_removed``,
    which sessions that merged left.
    """

    def __init__(self, path: str, *, now: Callable[[], datetime] = now) -> None:
        super().__init__()
        if not path or path == ":memory:":
            raise ValueError(f"path is {path!r}: name a file, which the workers share")
        self._sink = _ToSqlite(path, now)

    def expand(self, documents: Any) -> beam.PCollection:
        return write_documents(documents, self._sink)


class _ToSqlite(beam.DoFn):
    def __init__(self, path: str, now: Callable[[], datetime]) -> None:
        self._path, self._now = path, now
        self._store: SqliteStore | None = None

    def setup(self) -> None:
        self._store = SqliteStore(self._path)

    def start_bundle(self) -> None:
        self._buffer: list[Document] = []
        self._timestamp = MIN_TIMESTAMP

    def process(
        self, document: Document, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[pa.RecordBatch]:
        self._buffer.append(document)
        self._timestamp = timestamp
        if len(self._buffer) >= DOCUMENTS_PER_TRANSACTION:
            yield from self._write()

    def finish_bundle(self) -> Iterator[Any]:
        for batch in self._write():
            yield GlobalWindows.windowed_value(batch, self._timestamp)

    def teardown(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _write(self) -> Iterator[pa.RecordBatch]:
        assert self._store is not None
        documents, self._buffer = self._buffer, []
        now = self._now()
        outcome = self._store.write(documents, now)
        counter("documents_written").inc(outcome.written)
        counter("documents_stale").inc(outcome.stale)
        counter("documents_removed").inc(outcome.removed)
        failed = {rejection.id for rejection in outcome.rejected}
        measure_delays((d.due for d in documents if d.id not in failed), self._now())
        if outcome.rejected:
            yield rejected(outcome.rejected, now)
