"""A job that is shown on the board, documents as it would write them, and the board served."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from velocity.io.dead_letter_counts import LetterCounts
from velocity.io.records import Document
from velocity.io.sqlite import SqliteStore
from velocity.io.sqlite_totals import SqliteTotals
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import parse
from velocity.pipelines.live import LiveBoard, live_board
from velocity.runners.board import Hub, Serving
from velocity.transforms.metrics import document_id

JOB = """\
job: orders
source: {kafka: {bootstrap_servers: h:1, topics: [t]}, event_time: at}
fields: {at: timestamp, city: string, tier: string, open: bool, code: int64, amount: int64, fee: double}
metrics:
  - name: by_city
    description: What comes in, by the minute.
    by: [city]
    window: {fixed: 1m}
    emit: {early: 10s, lateness: 1h}
    values: {orders: count(), revenue: sum(amount), mean_fee: mean(fee)}
    units: {revenue: IDR}
  - {name: by_all, by: [city, tier, open, code], window: {fixed: 5m}, values: {n: count(), least: min(amount), most: max(amount)}}
  - {name: overlapping, by: [tier], window: {sliding: 15m, every: 5m}, values: {n: count()}}
  - {name: daily, by: [city], window: {fixed: 1d, timezone: Asia/Jakarta}, emit: {early: 1m}, values: {n: count()}}
  - {name: runs, by: [city], window: {session: 2m}, values: {n: count()}}
  - {name: ever, by: [city], window: {global: true}, emit: {early: 1m}, values: {n: count()}}
  - {name: whole, window: {fixed: 1m}, values: {n: count(), last: max(at)}}
sinks: {elasticsearch: {url: "http://h:1", index: "orders-{window_start:%Y.%m}"}}
dead_letters: {parquet: d}
"""

T0 = 1_767_571_200_000
"""2026-01-05T00:00:00Z, the start of a minute and of five."""
MINUTE = 60_000


def job_text(name: str = "orders") -> str:
    return JOB.replace("job: orders", f"job: {name}").replace("orders-{window", name + "-{window")


def graph(text: str = JOB) -> Graph:
    return Graph(parse(text.encode(), "job.yaml").job, {})


def board(*texts: str) -> LiveBoard:
    return live_board([graph(text) for text in texts or (JOB,)])


def document(
    metric: str = "by_city",
    start: int = T0,
    *,
    job: str = "orders",
    size: int = MINUTE,
    pane: str = "on_time",
    events: int = 1,
    dimensions: dict[str, Any] | None = None,
    **values: Any,
) -> Document:
    key = {"city": "Jakarta"} if dimensions is None else dimensions
    id_ = document_id(job, metric, start, list(key.values()))
    return Document(job, metric, start, start + size, key, values, events, pane, id_)


def write(path: Path, documents: Sequence[Document], at: datetime | None = None) -> None:
    """As a job does: in one transaction, by its own connection."""
    with closing(SqliteStore(str(path))) as store:
        store.write(list(documents), at or datetime.now(UTC))


@contextmanager
def served(
    path: Path,
    shown: LiveBoard | None = None,
    letters: Sequence[LetterCounts] = (),
    port: int = 0,
) -> Iterator[str]:
    """The address of a board over a SQLite file, which need not be there yet."""
    of = shown or board()
    with Serving(lambda: Hub(of, SqliteTotals(path), letters), port=port) as serving:
        yield serving.url
