"""Deduplication: an event counts once, whatever the batches, the order and the failures."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from velocity.io.copies import ATTEMPT
from velocity.io.records import (
    MESSAGE,
    MESSAGES,
    TIMESTAMP,
    RecordBatchCoder,
    WithDeadLetters,
    messages,
)
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import differences
from velocity.pipelines.simulator import Kind, Scenario, simulate
from velocity.runners.demo import JOB, expected
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.options import options_for
from velocity.runners.produce import produce
from velocity.runners.run import redirect, run
from velocity.transforms.deduplicate import (
    _MEMORIES,
    Deduplicate,
    _KeepFirst,
    _Memories,
    _Memory,
    _Shard,
)

HORIZON = 60_000
STEP = Deduplicate("id", event_time="at", horizon=timedelta(minutes=1), shards=4)
Event = tuple[str | None, int]
"""An id, and epoch milliseconds."""


def rows(events: Sequence[Event]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "id": pa.array([id_ for id_, _ in events], pa.string()),
            "at": pa.array([time for _, time in events], TIMESTAMP),
        }
    )


def events_of(batch: pa.RecordBatch) -> list[Event]:
    return list(zip(batch["id"].to_pylist(), batch["at"].view(pa.int64()).to_pylist(), strict=True))


def timestamped(events: Sequence[Event]) -> TimestampedValue:
    at = Timestamp(micros=min(time for _, time in events) * 1000)
    return TimestampedValue(rows(events), at)


def counted(result: Any) -> int:
    found = beam.metrics.MetricsFilter().with_name("duplicates_dropped")
    return sum(counter.attempted for counter in result.metrics().query(found)["counters"])


def assert_kept(*stream: Sequence[Event] | int, kept: Sequence[Event]) -> None:
    """Of batches in a stream, in which a number is where the watermark goes."""
    events = test_stream.TestStream(coder=RecordBatchCoder())
    for item in stream:
        if isinstance(item, int):
            events = events.advance_watermark_to(Timestamp(micros=item * 1000))
        else:
            events = events.add_elements([timestamped(item)])
    options = PipelineOptions(["--runner=BundleBasedDirectRunner"], streaming=True)
    pipeline = beam.Pipeline(options=options)
    found = pipeline | events.advance_watermark_to_infinity() | STEP
    assert_that(found | beam.FlatMap(events_of), equal_to(kept))
    pipeline.run().wait_until_finish()


# -- In a stream ----------------------------------------------------------------------------------


def test_a_repeated_event_is_dropped() -> None:
    assert_kept(
        [("a", 0), ("b", 1), ("a", 0)],
        [("b", 1), ("c", 2)],
        kept=[("a", 0), ("b", 1), ("c", 2)],
    )


def test_an_id_is_remembered_until_the_watermark_has_passed_it_by_the_horizon() -> None:
    """The last copy of a is late by the horizon, not more; that of b by far more."""
    assert_kept(
        [("a", 0), ("b", 0)],
        HORIZON,
        [("a", 0)],
        3 * HORIZON,
        [("b", 0)],
        kept=[("a", 0), ("b", 0), ("b", 0)],
    )


def test_the_first_to_come_wins_within_the_horizon_and_beyond_it_an_id_is_another_event() -> None:
    assert_kept(
        [("a", HORIZON), ("a", 0), ("a", 2 * HORIZON), ("a", 2 * HORIZON + 1)],
        [("a", HORIZON), ("a", 2 * HORIZON + 2), ("a", 3 * HORIZON + 1)],
        kept=[("a", HORIZON), ("a", 2 * HORIZON + 1)],
    )


def test_rows_without_an_id_are_kept() -> None:
    assert_kept([(None, 0), (None, 0)], [(None, 0)], kept=[(None, 0)] * 3)


@given(st.data())
@settings(max_examples=5)
def test_what_is_kept_depends_on_neither_order_nor_batches(data: st.DataObject) -> None:
    events = [(f"e{number}", number * 1000) for number in range(data.draw(st.integers(1, 6)))]
    sent = data.draw(st.permutations(events + data.draw(st.lists(st.sampled_from(events)))))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(sent)), max_size=3)))
    parts = [sent[i:j] for i, j in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    batches = [part for part in parts if part]
    assert_kept(*batches, kept=events)


def test_bounded_rows_are_deduplicated_and_counted_and_dead_letters_pass() -> None:
    class Both(beam.PTransform):
        def expand(self, begin: Any) -> Any:
            batches = [rows([("a", 0), ("b", 0), ("b", 0)]), rows([("a", 0)])]
            made = begin | "Rows" >> beam.Create(batches).with_output_types(pa.RecordBatch)
            letters = begin | "Letters" >> beam.Create([messages([b"x"])])
            return WithDeadLetters(made, letters)

    class Step(beam.PTransform):
        def expand(self, begin: Any) -> Any:
            kept, dead = begin | Both() | STEP
            assert_that(kept | beam.FlatMap(events_of), equal_to([("a", 0), ("b", 0)]), "kept")
            assert_that(dead | beam.Map(lambda batch: batch.num_rows), equal_to([1]), "dead")
            return kept

    pipeline = beam.Pipeline(FnApiRunner())
    _ = pipeline | Step()
    result = pipeline.run()
    assert counted(result) == 2


def test_each_attempt_of_a_replay_is_an_event_of_its_own() -> None:
    """The original of a copy went no further, so the copy must not be dropped for it."""
    batch = rows([("a", 0)] * 4)
    origin = messages([b"{}"] * 4).to_pylist()
    for message, attempt in zip(origin, (None, None, b"2", b"2"), strict=True):
        message["headers"] = [{"name": ATTEMPT, "value": attempt}] if attempt else None
    column = pa.RecordBatch.from_pylist(origin, schema=MESSAGES).to_struct_array()
    batch = batch.append_column(MESSAGE, column)
    with beam.Pipeline(FnApiRunner()) as pipeline:
        made = pipeline | beam.Create([batch]).with_output_types(pa.RecordBatch)
        told = made | STEP | beam.FlatMap(lambda kept: [bool(h) for h in _headers(kept)])
        assert_that(told, equal_to([False, True]))


def _headers(batch: pa.RecordBatch) -> list[Any]:
    found: list[Any] = batch[MESSAGE].field("headers").to_pylist()
    return found


@pytest.mark.parametrize("wrong", [{"horizon": timedelta(0)}, {"shards": 0}])
def test_arguments_of_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"horizon": timedelta(hours=1), **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Deduplicate("id", event_time="at", **arguments)


@pytest.mark.embedded
def test_a_job_counts_each_event_once_as_the_recomputation_does(tmp_path: Path) -> None:
    """In a topic where one of five came twice; copies lie in the partition of their original."""
    scenario = Scenario(seed=3, events=4_000, domains=("pharmacy_delivery",), duplicate_share=0.2)
    text = JOB.read_text()
    assert text.count("event_time: event_time") == 1
    once = "deduplicate: {by: event_id, horizon: 2m}\n  event_time: event_time"
    twice, job = (
        parse(t.encode(), "job.yaml").job
        for t in (text, text.replace("event_time: event_time", once))
    )
    known, store = directory(3), tmp_path / "documents.db"
    with EmbeddedKafka() as kafka, DirectoryService(known.tables()) as service:
        produce(scenario, kafka.bootstrap_servers)
        environment = {
            "KAFKA": kafka.bootstrap_servers,
            "PROVIDERS": service.url,
            "PATIENTS": service.url,
        }
        redirected = redirect(job, sqlite=store, dead_letters=tmp_path / "dead")
        graph = Graph(redirected, environment)
        counters = run(graph, options_for("direct", []), "latest", Console(file=StringIO()))
    sent = list(simulate(scenario))
    found = read_documents(str(store))
    assert list(differences(expected(job, sent, known), found)) == []
    assert list(differences(expected(twice, sent, known), found)) != []
    copies = sum(message.kind is Kind.DUPLICATE for message in sent)
    assert counters["duplicates_dropped"] == copies > 500


# -- Shards ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.none() | st.text(max_size=3), st.integers(0, 9))), st.integers(1, 9))
def test_shards_part_a_batch_by_its_ids(events: list[Event], shards: int) -> None:
    parts = dict(_Shard("id", shards).process(rows(events)))
    assert set(parts) <= set(range(shards))
    found = [event for part in parts.values() for event in events_of(part)]
    assert sorted(found, key=repr) == sorted(events, key=repr)
    shard_of = {id_: shard for shard, part in parts.items() for id_, _ in events_of(part) if id_}
    for shard, part in parts.items():
        assert all(shard_of[id_] == shard for id_, _ in events_of(part) if id_)


# -- The state ------------------------------------------------------------------------------------


@dataclass
class State:
    """What a runner keeps of a key: a bag, a value, and a timer of event time."""

    bag: list[bytes] = field(default_factory=list)
    value: Any = None
    timer: Timestamp | None = None


class Bag:
    def __init__(self, state: State) -> None:
        self.state = state

    def read(self) -> list[bytes]:
        return list(self.state.bag)

    def add(self, ids: bytes) -> None:
        self.state.bag = [*self.state.bag, ids]

    def clear(self) -> None:
        self.state.bag = []


class Value:
    def __init__(self, state: State) -> None:
        self.state = state

    def read(self) -> Any:
        return self.state.value

    def write(self, value: Any) -> None:
        self.state.value = value


class Timer:
    def __init__(self, state: State) -> None:
        self.state = state

    def set(self, at: Timestamp) -> None:
        self.state.timer = at


class Runner:
    """Runs bundles of one key, as one that loses some of them."""

    def __init__(self) -> None:
        self.dofn = _KeepFirst("id", "at", HORIZON)
        self.state = State()
        self.watermark = -(10**6)

    def bundle(self, events: Sequence[Event]) -> list[Event]:
        """What comes out of one bundle of one batch."""
        dofn, state = self.dofn, self.state
        dofn.start_bundle()
        at = Timestamp(0)
        out = list(dofn.process((0, rows(events)), at, Bag(state), Value(state), Timer(state)))
        out += list(dofn.finish_bundle())
        return [event for value in out for event in events_of(value.value)]

    def advance(self, to: int) -> None:
        self.watermark = max(self.watermark, to)
        state = self.state
        while state.timer is not None and state.timer.micros <= self.watermark * 1000:
            at, state.timer = state.timer, None
            self.dofn.forget(0, at, Bag(state), Value(state), Timer(state))


BATCHES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 20).map(lambda n: n * HORIZON // 8)),
    min_size=1,
    max_size=4,
)
DEEDS = st.one_of(
    st.tuples(st.just("bundle"), BATCHES),
    st.tuples(st.just("failed bundle"), BATCHES),
    st.tuples(st.just("another worker"), st.none()),
    st.tuples(st.just("watermark"), st.integers(0, 40).map(lambda n: n * HORIZON // 8)),
    st.tuples(st.just("checkpoint"), st.none()),
    st.tuples(st.just("restore"), st.none()),
)


@given(st.lists(DEEDS, max_size=20))
def test_no_failure_makes_an_event_count_twice_or_not_at_all(deeds: list[tuple[str, Any]]) -> None:
    runner, kept = Runner(), list[Event]()
    checkpoint = copy.copy(runner.state), list(kept), runner.watermark
    for deed, what in deeds:
        match deed:
            case "bundle":
                for event, out in _alone(runner, what):
                    same = [t for id_, t in kept if id_ == event[0]]
                    near = [t for t in same if abs(event[1] - t) <= HORIZON]
                    if not near:
                        assert out == [event]
                    elif any(runner.watermark <= t + HORIZON for t in near):
                        assert out == []
                    kept += out
            case "failed bundle":
                before = copy.copy(runner.state)
                runner.bundle(what)
                runner.state = before
            case "another worker":
                _MEMORIES.clear()
            case "watermark":
                runner.advance(what)
                ids = [event for held in runner.state.bag for event in _held(held)]
                assert all(runner.watermark < time + HORIZON * 9 / 8 for _, time in ids)
                assert set(ids) <= set(kept)
            case "checkpoint":
                checkpoint = copy.copy(runner.state), list(kept), runner.watermark
            case "restore":
                state, kept_then, runner.watermark = checkpoint
                runner.state, kept = copy.copy(state), list(kept_then)


def test_memories_of_shards_that_moved_away_or_of_jobs_that_ended_are_forgotten() -> None:
    now = 0.0
    memories = _Memories(lambda: now)
    for n in range(1_000):
        now = n * 60.0
        memories.keep(f"job {n // 10}", n % 16, b"token", _Memory())
        memories.keep("a shard that stays", 0, b"token", memory := _Memory())
        assert len(memories) <= 12
    assert memories.take("job 0", 0, b"token") is None
    assert memories.take("a shard that stays", 0, b"of another state") is None
    memories.keep("a shard that stays", 0, b"token", memory)
    assert memories.take("a shard that stays", 0, b"token") is memory
    assert memories.take("a shard that stays", 0, b"token") is None, "it is taken out"


def _alone(runner: Runner, events: Sequence[Event]) -> list[tuple[Event, list[Event]]]:
    return [(event, runner.bundle([event])) for event in events]


def _held(encoded: bytes) -> list[Event]:
    batch = RecordBatchCoder().decode(encoded)
    return list(zip(batch["id"].to_pylist(), batch["time"].to_pylist(), strict=True))


@given(st.lists(BATCHES, max_size=5))
def test_a_batch_keeps_what_its_events_would_one_by_one(batches: list[list[Event]]) -> None:
    together, alone = Runner(), Runner()
    for batch in batches:
        singly = [event for _, out in _alone(alone, batch) for event in out]
        assert together.bundle(batch) == singly


def test_the_state_is_read_once_while_nothing_fails() -> None:
    runner, reads = Runner(), 0

    class Counted(Bag):
        def read(self) -> list[bytes]:
            nonlocal reads
            reads += 1
            return super().read()

    for number in range(10):
        runner.dofn.start_bundle()
        state = runner.state
        batch = rows([(f"e{number}", number)])
        list(
            runner.dofn.process(
                (0, batch), Timestamp(0), Counted(state), Value(state), Timer(state)
            )
        )
    assert reads == 1
