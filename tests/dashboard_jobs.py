"""Jobs whose dashboards are tested, and the fields that their documents have."""

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from velocity.io.records import Document
from velocity.pipelines.dashboards import Board, board_of
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import load, parse
from velocity.pipelines.templates import setup_of
from velocity.transforms.stages import Fact, Stages
from velocity.transforms.stages import Stage as Of
from velocity.transforms.transactions import alert

PIPELINES = Path(__file__).parent.parent / "pipelines"

EVERY_TYPE = """\
job: orders
source: {kafka: {bootstrap_servers: h:1, topics: [t]}, event_time: at}
fields: {at: timestamp, city: string, tier: string, open: bool, code: int64, amount: int64, fee: double}
metrics:
  - name: revenue
    by: [city, open, code, at]
    window: {fixed: 90m}
    emit: {early: 10s, lateness: 1h}
    values:
      n: count(fee)
      cities: distinct(city)
      total: sum(amount)
      fees: sum(fee)
      mean: mean(amount)
      p95: percentile(amount, 95)
      first: min(at)
      last_city: max(city)
      largest: max(amount)
      cheapest: min(fee)
      spread: stddev(fee)
      earliest: first(fee)
      opened: last(open)
      per_event: ratio(sum(amount), count())
      most: top(city, 3)
      spans: "histogram(fee, [1, 5])"
  - {name: overlapping, by: [tier], window: {sliding: 15m, every: 5m}, values: {n: count()}}
  - {name: runs, by: [open], window: {session: 2m}, values: {n: count()}}
  - {name: ever, window: {global: true}, emit: {early: 10s}, values: {n: count()}}
  - {name: everything, window: {fixed: 1d, timezone: Asia/Jakarta}, values: {n: count(), last: max(at)}}
sinks: {elasticsearch: {url: "http://h:1", index: "orders-{metric}-{window_start:%Y.%m}", alias: null}}
dead_letters: {parquet: d}
"""


@cache
def jobs() -> dict[str, Job]:
    """Those that count something, by name."""
    found = [job for path in sorted(PIPELINES.glob("*.yaml")) if (job := load(path)).metrics]
    found.append(parse(EVERY_TYPE.encode(), "orders.yaml").job)
    return {job.job: job for job in found}


def graph_of(job: Job) -> Graph:
    return Graph(job, {})


@cache
def board(name: str) -> Board:
    return board_of(graph_of(jobs()[name]))


def fields_of(graph: Graph, metric: str) -> dict[str, str]:
    """The fields of a metric's documents with their types, by what is told to Elasticsearch."""
    (mapping,) = (t.mapping for t in setup_of(graph).indices.values() if metric in t.metrics)
    fields = dict(_leaves(mapping["properties"]))
    body = Document("j", "m", 0, 1, {}, {}, 1, "late", "1").body(datetime(2026, 1, 1, tzinfo=UTC))
    assert {name.partition(".")[0] for name in fields} <= body.keys()
    own = {*body, *_own(graph.job, metric)}
    return {name: type_ for name, type_ in fields.items() if name in own}


def _own(job: Job, metric: str) -> set[str]:
    """A metric's own dimensions and values: an index may hold those of others too."""
    spec = next((spec for spec in job.metrics if spec.name == metric), None)
    if spec is not None:
        return {*(f"dimensions.{n}" for n in spec.by), *(f"values.{n}" for n in spec.values)}
    assert job.transactions is not None
    stages = Stages([Of("order", ["created"], ["sent"], timedelta(minutes=1)), Of("sent", ["s"])])
    by = job.transactions.by
    fact = Fact("stuck", 0, None, 60_000, 0, tuple("x" for _ in by))
    found = alert(stages, by, job.job, "1", fact)
    return {*(f"dimensions.{n}" for n in found.dimensions), *(f"values.{n}" for n in found.values)}


def metrics_of(graph: Graph) -> set[str]:
    return {metric for t in setup_of(graph).indices.values() for metric in t.metrics}


def _leaves(properties: Any, prefix: str = "") -> Any:
    for name, field in properties.items():
        if "properties" in field:
            yield from _leaves(field["properties"], f"{prefix}{name}.")
        elif field["type"] != "object":
            yield f"{prefix}{name}", field["type"]
