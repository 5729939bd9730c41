"""Lateness: an event is in a document or in the dead letters, by its partition's messages alone."""

import json
import pickle
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from velocity.io.records import (
    MERGED,
    Cause,
    Document,
    RecordBatchCoder,
    Stage,
    messages,
    with_watermarks,
)
from velocity.io.watermark import ForwardWatermark, watermarks
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.pipelines.recompute import Message, Recomputed, differences, recompute_all

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DISORDER = timedelta(seconds=5)
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""An example takes a second: a failing one is told as it was found."""
T0 = 1_767_225_600_000  # 2026-01-01T00:00:00Z
Event = tuple[int, str, int]
"""Milliseconds after T0, key, value."""


def metric(name: str, window: dict[str, Any], **emit: str) -> dict[str, Any]:
    values = {"n": "count()", "total": "sum(v)"}
    return {"name": name, "window": window, "by": ["k"], "values": values, "emit": emit}


ALL = {
    "variance": "variance(v)", "stddev": "stddev(v / 7.0)", "first": "first(v)", "last": "last(k)",
    "top": "top(v, 2)", "histogram": "histogram(v, [2, 5.5])", "share": "ratio(sum(v), count())",
    "p50": "percentile(v, 50)", "keys": "distinct(k)", "least": "min(v)", "when": 'max("at")',
    "money": "sum(d)", "taxed": "sum(d * 1.11)", "dear": "max(d)", "cheap": "min(d)",
    "newest": "last(d)", "oldest": "first(d)", "prices": "distinct(d)", "often": "top(d, 2)",
    "mean": "mean(d)", "spread": "stddev(d)", "p90": "percentile(d, 90)",
    "bands": "histogram(d, [0, 2.5])", "part": "ratio(sum(d), max(d))",
}  # fmt: skip
METRICS = [
    metric("fixed", {"fixed": "10s"}),
    metric("patient", {"fixed": "10s", "offset": "3s"}, lateness="20s", early="10s"),
    metric("hour", {"fixed": "1h"}) | {"values": ALL},
    metric("sliding", {"sliding": "12s", "every": "5s"}, lateness="3s"),
    metric("session", {"session": "4s"}, lateness="6s"),
    metric("eager_session", {"session": "4s"}, early="10s")
    | {"id": "eager/{window_start:%Y-%m-%dT%H:%M:%S}/{k}"},
    metric("strict_session", {"session": "4s"}),
    metric("stay", {"session": "4s"}, early="10s", lateness="6s"),
    metric("all_time", {"global": True}, early="10s") | {"id": "{job}-ever-{k}"},
    metric("by_price", {"fixed": "20s"}) | {"by": ["d", "k"]},
    metric("few", {"fixed": "10s"}) | {"where": "v > 5"},
]


def job(metrics: Sequence[dict[str, Any]]) -> Job:
    return Job.model_validate(
        {
            "job": "j",
            "source": {
                "kafka": {"bootstrap_servers": "x", "topics": ["t"]},
                "event_time": "at",
                "disorder": "5s",
            },
            "fields": {"at": "timestamp_ms", "k": "string", "v": "int64", "d": "decimal(20, 3)"},
            "metrics": list(metrics),
            "sinks": {"sqlite": {"path": "x"}},
            "dead_letters": {"parquet": "x"},
        }
    )


def encoded(event: Event) -> bytes:
    at, key, value = event
    money = f"{value - 4}.{at % 1000:03}"
    text = f'{{"at": {T0 + at}, "k": "{key}", "v": {value}, "d": {money if at % 2 else json.dumps(money)}}}'
    return text.encode()


@cache
def graph(*names: str) -> Graph:
    """Of the metrics of these names, or all; made once, for its expressions are checked each time."""
    return Graph(job([m for m in METRICS if not names or m["name"] in names]))


def wanted(of: Graph, partitions: Sequence[Sequence[Event]]) -> Recomputed:
    flat = [
        Message(encoded(event), T0 + event[0], number)
        for number, events in enumerate(partitions)
        for event in events
    ]
    return recompute_all(of.job, flat, {})


class Source:
    """Partitions read as ``ReadFromKafka`` does: batch by batch, each with its watermark."""

    def __init__(self, of: Graph, partitions: Sequence[Sequence[Event]]) -> None:
        self._decoder = of.decoder
        self._partitions = partitions
        self._read = [0] * len(partitions)
        self._watermarks = [ForwardWatermark(MIN_TIMESTAMP) for _ in partitions]

    @property
    def watermark(self) -> Timestamp:
        return min(partition.current_watermark() for partition in self._watermarks)

    def read(self, partition: int, most: int) -> pa.RecordBatch | None:
        begin = self._read[partition]
        events = self._partitions[partition][begin : begin + most]
        if not events:
            return None
        before = sum(map(len, self._partitions[:partition])) + begin
        batch = messages([encoded(event) for event in events], partition=partition, timestamp=NOW)
        offsets = pa.array(range(before, before + len(events)), pa.int64())
        batch = batch.set_column(2, batch.schema.field(2), offsets)
        rows, _ = self._decoder.decode(batch)
        self._read[partition] += len(events)
        estimator = self._watermarks[partition]
        at = estimator.current_watermark()
        rows = with_watermarks(rows, watermarks(rows["at"], at, DISORDER))
        latest = max(event[0] for event in events)
        estimator.advance(Timestamp((T0 + latest) / 1000) - DISORDER.total_seconds())
        return rows


PARTITIONS = st.lists(
    st.lists(
        st.tuples(st.integers(0, 60_000), st.sampled_from("ab"), st.integers(0, 9)), max_size=14
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=15)
@given(PARTITIONS, st.data())
def test_what_is_late_depends_neither_on_batch_cuts_nor_on_other_partitions(
    partitions: list[list[Event]], data: st.DataObject
) -> None:
    of = graph("fixed", "patient", "sliding", "session", "strict_session", "all_time", "few")
    reduction = of.metrics.reduction
    source = Source(of, partitions)
    late = set()
    for partition, events in enumerate(partitions):
        left = len(events)
        while left:
            most = data.draw(st.integers(1, left))
            rows = source.read(partition, most)
            assert rows is not None
            offsets = rows["_message"].field("offset").to_pylist()
            for row, error in reduction.reduce(rows).late:
                late |= {(offsets[row], name) for name in named(error)}
            left -= most
    assert late == wanted(of, partitions).late


def named(error: str) -> Iterator[str]:
    """The metrics that a letter names."""
    assert error.startswith("too late for ")
    for part in error.removeprefix("too late for ").split("; the watermark")[0].split("), "):
        yield part.split(" (window from ")[0]


class Documents(beam.PTransform):
    def __init__(self, of: Graph) -> None:
        super().__init__()
        self._of = of

    def expand(self, rows: Any) -> Any:
        return self._of.documents(rows)


def kept(file: Path, elements: Iterable[Any]) -> None:
    file.write_bytes(pickle.dumps(list(elements)))


def stream_of(
    of: Graph,
    partitions: Sequence[Sequence[Event]],
    steps: Sequence[tuple[int, int]],
    seconds: int = 7,
) -> test_stream.TestStream:
    """``steps`` are the partitions in the order of their reading, each with how many messages.

    After each so many seconds of processing time pass."""
    source = Source(of, partitions)
    stream = test_stream.TestStream(coder=RecordBatchCoder())
    at = MIN_TIMESTAMP
    for partition, most in [*steps, *((p, len(e)) for p, e in enumerate(partitions))]:
        if partition < len(partitions) and (rows := source.read(partition, most)) is not None:
            first = min(rows["at"].view(pa.int64()).to_pylist()) / 1000
            stream = stream.add_elements([TimestampedValue(rows, first)])
            stream = stream.advance_processing_time(seconds)
            if source.watermark > at:
                at = source.watermark
                stream = stream.advance_watermark_to(at)
    return stream.advance_watermark_to_infinity()


def run(
    of: Graph, partitions: list[list[Event]], steps: Sequence[tuple[int, int]]
) -> tuple[dict[str, Document], list[dict[str, Any]]]:
    """The documents of the greatest versions, and the dead letters, of a streaming run."""
    stream = stream_of(of, partitions, steps)
    options = PipelineOptions(["--runner=BundleBasedDirectRunner"], streaming=True)
    with TemporaryDirectory() as folder:
        pipeline = beam.Pipeline(options=options)
        # through files, for a runner works on copies of what it is given
        found, dead = pipeline | stream | "Documents" >> Documents(of)
        assert_that(found, partial(kept, Path(folder, "documents")), label="documents")
        assert_that(dead, partial(kept, Path(folder, "dead")), label="dead letters")
        pipeline.run().wait_until_finish()
        panes: list[Document] = pickle.loads(Path(folder, "documents").read_bytes())
        batches: list[pa.RecordBatch] = pickle.loads(Path(folder, "dead").read_bytes())
    documents: dict[str, Document] = {}
    for document in sorted(panes, key=lambda document: document.version):
        documents[document.id] = document
    documents = {id_: document for id_, document in documents.items() if document.pane != MERGED}
    letters = [letter for batch in batches for letter in batch.to_pylist()]
    return documents, letters


@settings(max_examples=4, phases=NO_SHRINKING)
@given(PARTITIONS, st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), max_size=12))
def test_each_event_is_in_the_documents_or_in_the_dead_letters_of_a_streaming_run(
    partitions: list[list[Event]], steps: list[tuple[int, int]]
) -> None:
    of = graph(
        *("fixed", "patient", "sliding", "session", "eager_session", "all_time", "few", "hour"),
        *("by_price", "stay"),
    )
    documents, letters = run(of, partitions, steps)
    expected = wanted(of, partitions)
    final = {id_: document.body(NOW) for id_, document in documents.items()}
    assert list(differences(expected.documents, final)) == []
    told = {(letter["offset"], name) for letter in letters for name in named(letter["error"])}
    assert told == expected.late
    assert all(letter["cause"] == Cause.LATE for letter in letters)
    assert len(letters) == len({letter["offset"] for letter in letters}), "one letter a message"


def test_a_session_that_takes_an_earlier_event_in_leaves_no_document_behind() -> None:
    of = graph("session")
    events = [(12_500, "a", 1), (21_500, "b", 1), (10_500, "a", 1)]
    before, after = (run(of, [events[:n]], [(0, 1)] * n)[0] for n in (2, 3))
    assert before.keys() - after.keys() == {f'j/session/{T0 + 12_000}/["a"]'}
    bodies = {id_: document.body(NOW) for id_, document in after.items()}
    assert list(differences(wanted(of, [events]).documents, bodies)) == []


def test_a_late_letter_has_the_original_and_says_for_which_metric_and_window() -> None:
    late = (9_999, "a", 1)
    of = graph("fixed", "hour")
    documents, letters = run(of, [[(1_000, "a", 1), (15_000, "a", 1), late]], [])
    assert {(d.metric, d.window_start - T0): d.events for d in documents.values()} == {
        ("fixed", 0): 1,
        ("fixed", 10_000): 1,
        ("hour", 0): 3,
    }
    [letter] = letters
    assert (letter["stage"], letter["cause"]) == (Stage.METRICS, Cause.LATE)
    assert letter["value"] == encoded(late)
    assert letter["error"] == (
        "too late for fixed (window from 2026-01-01T00:00:00.000Z closed at "
        "2026-01-01T00:00:10.000Z); the watermark of its partition was at "
        "2026-01-01T00:00:10.000Z"
    )


@pytest.mark.parametrize(("at", "late"), [(9_999, True), (10_000, False)])
def test_a_window_closes_when_the_watermark_reaches_its_end(at: int, late: bool) -> None:
    assert bool(wanted(graph("fixed"), [[(15_000, "a", 1), (at, "a", 1)]]).late) is late


def test_a_later_generation_replaces_a_document_that_counts_more() -> None:
    partitions: list[list[Event]] = [[(1_000, "a", 1), (2_000, "a", 9)]]
    fewer = METRICS[0] | {"where": "v > 5"}
    first, _ = run(Graph(job(METRICS[:1])), partitions, [])
    second, _ = run(Graph(job([fewer]).model_copy(update={"generation": 1})), partitions, [])
    third, _ = run(Graph(job([fewer]).model_copy(update={"generation": 32_767})), partitions, [])
    [(id_, before)], [after], [last] = first.items(), second.values(), third.values()
    assert (id_, before.events, after.events) == (after.id, 2, 1)
    assert before.version < after.version == 2**48 + 3 < last.version < 2**63


def test_without_a_partitions_watermark_nothing_is_late() -> None:
    of = graph()
    rows, _ = of.decoder.decode(messages([encoded((0, "a", 1))], timestamp=NOW))
    assert of.metrics.reduction.reduce(rows).late == []
