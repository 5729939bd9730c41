"""Totals of the documents in a SQLite file, read beside the job that writes it."""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from velocity.io.totals import (
    EARLY,
    Alert,
    Alerts,
    Ask,
    Cell,
    Latest,
    Series,
    StoreDown,
    Totals,
    Where,
    epoch_ms,
    instant,
)

_MILLIS: Final = (
    "(CAST(strftime('%s', window_start) AS INTEGER) * 1000"
    " + CAST(substr(window_start, 21, 3) AS INTEGER))"
)
_WAIT: Final = 5.0
"""Seconds for a writer that holds the file for itself; in WAL mode none does for long."""


class SqliteTotals:
    """A file of documents, as ``SqliteStore`` writes it, asked for totals; see ``Totalled``.

    The file need not be there yet: until then each question raises ``StoreDown``. A file that was
    replaced is opened anew. One thread at a time may ask.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._seen: Any = None
        self._latest: Mapping[tuple[str, str], Latest] = {}

    def latest(self) -> Mapping[tuple[str, str], Latest]:
        with self._open() as db:
            # What other connections commit changes this number; it costs no look at the table.
            (version,) = db.execute("PRAGMA data_version").fetchone()
            if self._seen != version:
                rows = db.execute(
                    "SELECT job, metric, max(window_start), max(window_end), max(written_at),"
                    " total(version) FROM documents GROUP BY job, metric"
                )
                self._latest = {
                    (job, metric): Latest(epoch_ms(start), epoch_ms(end), epoch_ms(at), mark)
                    for job, metric, start, end, at, mark in rows
                }
                self._seen = version
        return self._latest

    def totals(self, asks: Sequence[Ask]) -> list[Totals]:
        with self._open() as db:
            return [_totals(db, ask) for ask in asks]

    def alerts(
        self, jobs: Sequence[str], since: int, until: int, where: Where, most: int
    ) -> Alerts:
        conditions, given = _where(where)
        names = ", ".join("?" * len(jobs))
        common = f"FROM documents WHERE metric = 'alerts' AND job IN ({names}) {conditions}"
        stuck = f"{common} AND json_extract(\"values\", '$.status') = 'stuck'"
        with self._open() as db:
            (count,) = db.execute(f"SELECT count(*) {stuck}", [*jobs, *given]).fetchone()
            oldest = db.execute(
                f"SELECT job, window_start, dimensions {stuck} ORDER BY window_start LIMIT ?",
                [*jobs, *given, most],
            ).fetchall()
            by_status = db.execute(
                f"SELECT json_extract(\"values\", '$.status'), count(*) {common}"
                " AND window_start >= ? AND window_start < ? GROUP BY 1",
                [*jobs, *given, instant(since), instant(until)],
            ).fetchall()
        found = []
        for job, start, dimensions in oldest:
            by = json.loads(dimensions)
            transaction, stage = by.pop("transaction"), by.pop("stage")
            found.append(Alert(job, transaction, stage, epoch_ms(start), by))
        return Alerts(count, tuple(found), dict(by_status))

    def keys(self, jobs: Sequence[str], dimension: str, begins: str, most: int) -> list[str]:
        text = _text(dimension)
        names = ", ".join("?" * len(jobs))
        with self._open() as db:
            rows = db.execute(
                f"SELECT {text}, sum(events) FROM documents WHERE job IN ({names})"
                f" AND substr({text}, 1, ?) = ? GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?",
                [*jobs, len(begins), begins, most],
            ).fetchall()
        return [key for key, _ in rows if key is not None]

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = self._file = self._seen = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            stat = self._path.stat()
        except OSError:
            self.close()
            raise StoreDown(
                f"{self._path} is not there: run a job with --sqlite {self._path}"
            ) from None
        try:
            if self._db is None or self._file != (stat.st_dev, stat.st_ino):
                self.close()
                uri = self._path.absolute().as_uri() + "?mode=ro"
                self._db = sqlite3.connect(uri, uri=True, timeout=_WAIT, check_same_thread=False)
                self._file = (stat.st_dev, stat.st_ino)
            yield self._db
        except sqlite3.Error as error:
            self.close()
            raise StoreDown(f"{self._path} can't be read: {error}") from error


def _totals(db: sqlite3.Connection, ask: Ask) -> Totals:
    conditions, given = _where(ask.where)
    source = (
        "FROM documents WHERE job = ? AND metric = ? AND window_start < ? AND window_end > ?"
        f" {conditions}"
    )
    given = [ask.job, ask.metric, instant(ask.until), instant(ask.since), *given]
    start = _MILLIS if ask.every is None else _span(ask.every, ask.offset)
    values = [f"{over}(json_extract(\"values\", '$.{_name(name)}'))" for name, over in ask.values]
    cells = f"{start}, max(window_end), pane = '{EARLY}', sum(events), {', '.join(values)}"
    names = [name for name, _ in ask.values]

    rows = db.execute(f"SELECT {cells} {source} GROUP BY 1, 3 ORDER BY 1, 3", given)
    over_all = tuple(_cell(names, row) for row in rows)
    if not ask.split:
        return Totals(over_all, (), False)
    keys = [_text(name) for name in ask.split]
    by = ", ".join(str(i) for i in range(1, len(keys) + 1))
    found = db.execute(
        f"SELECT {', '.join(keys)}, sum(events) {source} GROUP BY {by}"
        f" ORDER BY {len(keys) + 1} DESC, {by} LIMIT ?",
        [*given, ask.top + 1],
    ).fetchall()
    series = []
    for *key, _ in found[: ask.top]:
        same = " AND ".join(f"{text} IS ?" for text in keys)
        rows = db.execute(
            f"SELECT {cells} {source} AND {same} GROUP BY 1, 3 ORDER BY 1, 3", [*given, *key]
        )
        series.append(Series(tuple(key), tuple(_cell(names, row) for row in rows)))
    return Totals(over_all, tuple(series), len(found) > ask.top)


def _span(every: int, offset: int) -> str:
    return f"(({_MILLIS} - {offset}) / {every} * {every} + {offset})"


def _cell(names: Sequence[str], row: Sequence[Any]) -> Cell:
    start, end, early, events, *values = row
    return Cell(start, epoch_ms(end), bool(early), events, dict(zip(names, values, strict=True)))


def _where(where: Where) -> tuple[str, list[Any]]:
    conditions = "".join(f" AND {_text(name)} = ?" for name, _ in where)
    return conditions, [value for _, value in where]


def _text(dimension: str) -> str:
    """The expression of a dimension's value as text."""
    path = f"dimensions, '$.{_name(dimension)}'"
    return (
        f"CASE json_type({path}) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'"
        f" ELSE CAST(json_extract({path}) AS TEXT) END"
    )


def _name(name: str) -> str:
    """A name that can stand in a path: names of columns and values in a job are such."""
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no name of a column or value")
    return name
