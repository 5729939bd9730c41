"""A job, and histories of it in archives: what tests of replays share."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from velocity.io.archive import WriteToArchive
from velocity.io.archive_files import Kind
from velocity.io.lookup import MISSING, Answers, Keep
from velocity.io.records import MESSAGES, TIMESTAMP
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import Message, recompute
from velocity.transforms.enrich import Enrich, enrich

JOB = """\
job: orders
source:
  kafka: {bootstrap_servers: "127.0.0.1:1", topics: [orders]}
  event_time: placed
fields:
  placed: timestamp
  shop: string
  amount: int64
  fee: decimal(12, 2)
  note: string
filter: amount >= 0
enrich:
  - {name: shop, get: "http://127.0.0.1:1/{keys}", key: shop, id: id, add: {city: city, tier: tier, rent: {path: rent, type: "decimal(9, 2)"}}}
derive: {large: amount > 50, unused: upper(note)}
metrics:
  - name: by_day
    by: [city]
    window: {fixed: 1d, timezone: Asia/Jakarta}
    emit: {early: 10s, lateness: 1h}
    values: {orders: count(), large: count(CASE WHEN large THEN 1 END), revenue: sum(amount), fees: sum(fee), rents: sum(rent)}
  - name: by_hours
    by: [tier]
    window: {sliding: 3h, every: 1h}
    values: {p90: "percentile(amount, 90)", shops: distinct(shop)}
  - name: rush
    where: amount > 10
    by: [shop]
    window: {session: 30m}
    values: {orders: count(), last: max(placed)}
  - {name: ever, by: [shop], window: {global: true}, emit: {early: 1m}, values: {orders: count()}}
sinks: {sqlite: {path: /nonexistent/documents.db}}
dead_letters: {parquet: /nonexistent}
"""
START = datetime(2026, 1, 5, tzinfo=UTC)
MS = int(START.timestamp() * 1000)
MINUTE, HOUR = 60_000, 3_600_000
SHOPS = {
    f"s{n}": {
        "city": f"city {n % 3}",
        "tier": None if n == 4 else f"tier {n % 2}",
        "rent": n / 10 if n % 2 else f"{n}.10",
    }
    for n in range(5)
}
UNKNOWN = "s9"


def job_in(folder: Path, text: str = JOB) -> Job:
    return parse(f"{text}archive: {{path: {folder}/archive, raw: true}}\n".encode(), "job").job


@dataclass(frozen=True)
class Shops:
    """A service that knows the shops, as they are at ``version``."""

    version: str = ""

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        found = [
            keep({**SHOPS[key], "city": f"{SHOPS[key]['city']}{self.version}"})
            if key in SHOPS
            else MISSING
            for key in keys
        ]
        return lambda: Answers(found, {"rest_calls": 1})


@dataclass(frozen=True)
class Event:
    """An order: minutes after ``START``."""

    minute: int
    shop: str
    amount: int

    @property
    def value(self) -> bytes:
        at = (START + timedelta(minutes=self.minute)).isoformat()
        order = {"placed": at, "shop": self.shop, "amount": self.amount, "note": "n"}
        order["fee"] = f"{self.amount}.1" if self.minute % 2 else self.amount / 4
        return json.dumps(order).encode()

    @property
    def timestamp_ms(self) -> int:
        return MS + self.minute * MINUTE + 1_000


def messages_of(history: Sequence[Any], first: int, partition: int) -> pa.RecordBatch:
    n = len(history)
    known = {
        "topic": pa.repeat("orders", n),
        "partition": pa.repeat(pa.scalar(partition, pa.int32()), n),
        "offset": pa.array(range(first, first + n), pa.int64()),
        "timestamp": pa.array([event.timestamp_ms for event in history], TIMESTAMP),
        "value": pa.array([event.value for event in history], pa.binary()),
    }
    columns = [known.get(f.name, pa.nulls(n, f.type)) for f in MESSAGES]
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGES)


def archive(
    job: Job, history: Sequence[Any], cuts: Sequence[int] = (), partitions: int = 2
) -> None:
    """Archives a history as a live job does, whose bundles end at ``cuts`` and are tried twice."""
    graph = Graph(job, {}, lambda lookup, spec: Shops())
    for partition in range(partitions):
        own = history[partition::partitions]
        bounds = sorted({0, *(cut % (len(own) + 1) for cut in cuts), len(own)})
        stretches = list(pairwise(bounds))
        # what failed after its files were there, and then was cut elsewhere
        again = [(a, min(b + 3, len(own))) for a, b in stretches[::2]]
        for start, stop in [*again, *stretches]:
            rows = _rows(graph, job, messages_of(own[start:stop], start, partition))
            for kind, batch in rows.items():
                sink: Any = graph.archives[kind]
                assert isinstance(sink, WriteToArchive)
                sink._sink.start_bundle()
                if batch.num_rows:
                    sink._sink.process(batch)
                sink._sink.finish_bundle()


def _rows(graph: Graph, job: Job, messages: pa.RecordBatch) -> Mapping[Kind, pa.RecordBatch]:
    """What the steps of the graph make of messages, without a runner."""
    rows = graph.decoder.decode(messages).rows
    found = {Kind.RAW: rows}
    for step in (graph.filter, *graph.enrichments, graph.derive):
        if step is None:
            continue
        if isinstance(step, Enrich):
            rows = enrich(rows, step.enrichments).rows
        else:
            evaluated = step._expressions.evaluate(rows)
            if step is graph.filter:
                rows = rows.filter(evaluated.columns.column(0))
            else:
                columns = dict(zip(rows.schema.names, rows.columns, strict=True))
                new = evaluated.columns
                columns |= dict(zip(new.schema.names, new.columns, strict=True))
                schema = graph.derived_schema
                rows = pa.RecordBatch.from_arrays([columns[n] for n in schema.names], schema=schema)
    return {**found, Kind.ENRICHED: rows}


def recomputed(job: Job, history: Sequence[Any], start: datetime, stop: datetime) -> Any:
    """The documents whose windows reach into a range, of all of history."""
    messages = [Message(event.value, event.timestamp_ms) for event in history]
    everything = recompute(job, messages, {"shop": SHOPS.get})
    return {
        id_: document
        for id_, document in everything.items()
        if document.metric != "ever"  # a range of history is not all of it
        and datetime.fromisoformat(document.window_start) < stop
        and datetime.fromisoformat(document.window_end) > start
    }


def steady(minutes: int, shop: str = "s1") -> list[Event]:
    return [Event(minute, shop, 20) for minute in range(minutes)]
