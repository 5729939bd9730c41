"""What Velocity counts and measures: each metric's name, unit and meaning, which docs/metrics.md lists."""

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    DISTRIBUTION = "distribution"


class Bounds(NamedTuple):
    """Of a counter of samples: up to which values they are counted once more, as a histogram."""

    values: tuple[int, ...]
    unit: str


class Measure(NamedTuple):
    """A metric as it is declared. A ratio or a rate is for whoever reads it."""

    name: str
    unit: str
    about: str
    kind: Kind = Kind.COUNTER
    labels: tuple[str, ...] = ()
    """What divides it; in Beam, which has no labels, their values are at the end of the name."""
    within: Bounds | None = None


class Undeclared(ValueError):
    """A metric that is not in ``MEASURES``, or is another kind of metric there."""


_PARTITION: Final = ("topic", "partition")

MEASURES: Final[Mapping[str, Sequence[Measure]]] = {
    "The source": (
        Measure("read_messages", "messages", "Read from Kafka, or from exports in a replay."),
        Measure("read_bytes", "bytes", "Of their values."),
        Measure("decoded_rows", "rows", "Events that could be decoded."),
        Measure("offsets_lost", "offsets", "Removed by Kafka's retention before they were read."),
        Measure(
            "copies_skipped",
            "messages",
            "Replayed dead letters left out, as their originals are read too.",
        ),
    ),
    "Each partition": (
        Measure("messages", "messages", "Read of it.", labels=_PARTITION),
        Measure("bytes", "bytes", "Of their values.", labels=_PARTITION),
        Measure(
            "lag", "messages", "That Kafka has and no bundle has read.", Kind.GAUGE, _PARTITION
        ),
        Measure(
            "delay_ms",
            "milliseconds",
            "From the latest event of a batch to its being read.",
            Kind.GAUGE,
            _PARTITION,
        ),
        Measure(
            "watermark_ms",
            "milliseconds since 1970",
            "How far its event time has come.",
            Kind.GAUGE,
            _PARTITION,
        ),
    ),
    "The steps": (
        Measure("duplicates_dropped", "events", "Whose id had come before."),
        Measure("filtered_rows", "rows", "That passed the filter."),
        Measure("enriched_rows", "rows", "Put out by enrichment."),
        Measure("derived_rows", "rows", "Put out with derived columns."),
        Measure("partials", "partial results", "Of a bundle: one a metric, key and slice of time."),
    ),
    "Enrichment": (
        Measure("enrich_keys", "keys", "Looked up: once for each batch that has them."),
        Measure("enrich_keys_missing", "keys", "Of them, those that the service does not know."),
        Measure("enrich_keys_failed", "keys", "Of them, those that it gave no answer for."),
        Measure("enrich_waits", "bundles", "That waited for a service."),
        Measure("enrich_wait_ms", "milliseconds", "Waited, over all workers."),
        Measure(
            "rest_calls",
            "requests",
            "Made, those made again among them.",
            within=Bounds((10, 50, 100, 500, 1_000, 5_000), "ms"),
        ),
        Measure("rest_retries", "requests", "Made again."),
        Measure("rest_splits", "requests", "Cut into two halves, as they were not answered whole."),
        Measure("rest_held", "requests", "Not made: held back by the breaker."),
        Measure("rest_keys", "keys", "That services were asked for."),
        Measure("rest_call_ms", "milliseconds", "That a request took.", Kind.DISTRIBUTION),
        Measure("rest_call_keys", "keys", "In a request.", Kind.DISTRIBUTION),
        Measure(
            "breaker",
            "state",
            "0 closed, 1 half open, 2 open, as of the last request.",
            Kind.GAUGE,
            ("enrichment",),
        ),
        Measure("cache_hits", "keys", "Answered by the cache."),
        Measure("cache_misses", "keys", "Not in the cache, or too old."),
        Measure("cache_stale", "keys", "Answered by the cache though too old, as the job allows."),
        Measure("cache_shared", "keys", "Found in Redis."),
        Measure("cache_shared_errors", "requests", "To Redis that failed."),
    ),
    "Transactions": (
        Measure("transactions_events", "events", "Of a stage."),
        Measure("transactions_facts", "facts", "Known of transactions."),
        Measure("transactions_late", "events", "Too late for their transaction."),
    ),
    "The sinks": (
        Measure("documents_written", "documents", "That their store took."),
        Measure("documents_stale", "documents", "Not written: there already, or newer ones are."),
        Measure("documents_removed", "documents", "Deleted, as their session merged with another."),
        Measure("bulk_calls", "requests", "To Elasticsearch or InfluxDB."),
        Measure("sink_retries", "requests", "Made again."),
        Measure(
            "document_delays",
            "documents",
            "Whose delay was measured, as below.",
            within=Bounds((1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600), "s"),
        ),
        Measure("document_delay_ms", "milliseconds", "The sum of their delays."),
        Measure("written_messages", "messages", "Written by the Kafka sink."),
        Measure("written_bytes", "bytes", "Of their values."),
    ),
    "Dead letters": (
        Measure("dead_letters", "dead letters", "Made, by their cause.", labels=("cause",)),
        Measure("dead_letters_written", "dead letters", "That their store took."),
        Measure("dead_letters_cut", "dead letters", "Cut to what their topic takes."),
    ),
    "The archive": (
        Measure("archived_rows", "rows", "Written to it."),
        Measure("archive_files", "files", "Read of it."),
        Measure("archive_rows", "rows", "Read of it."),
    ),
    "A replay": (
        Measure("documents_complete", "documents", "Written: of windows that were read whole."),
        Measure("documents_elsewhere", "documents", "Left out: another part writes them."),
        Measure("documents_cut", "documents", "Left out: they go on outside of what was read."),
        Measure("documents_open", "documents", "Left out: their windows are not over yet."),
    ),
}
"""By the headings of docs/metrics.md."""

_BY_NAME: Final = {measure.name: measure for group in MEASURES.values() for measure in group}


def measure(name: str) -> Measure | None:
    """The metric of that name, if it is one of Velocity's own.

    >>> measure("read_messages").unit, measure("nosuch")
    ('messages', None)
    """
    return _BY_NAME.get(name)


def declared(name: str, kind: Kind, labels: Collection[str] = ()) -> Measure:
    """The metric of that name, which is of that kind and has those labels, or it is a defect.

    >>> declared("lag", Kind.GAUGE, ["partition", "topic"]).unit
    'messages'
    >>> declared("read_messages", Kind.GAUGE)
    Traceback (most recent call last):
    velocity.io.measures.Undeclared: no gauge read_messages: declare it in velocity.io.measures
    """
    found = _BY_NAME.get(name)
    if found is None or found.kind is not kind or {*found.labels} != {*labels}:
        by = f" by {', '.join(labels)}" if labels else ""
        raise Undeclared(f"no {kind} {name}{by}: declare it in velocity.io.measures")
    return found
