"""Laws of ``ReadFromKafka``: its bundles against a fake partition, its pipelines against a broker."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.io.restriction_trackers import OffsetRange
from apache_beam.metrics.execution import MetricsContainer
from apache_beam.metrics.metricbase import MetricName
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.runners.worker import statesampler
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kafka_ways import way
from velocity.io.kafka import ReadFromKafka
from velocity.io.kafka_commits import Commits
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import KafkaReadError, OffsetsLost, PartitionGone
from velocity.io.kafka_offsets import UNBOUNDED, OffsetTracker, Partition
from velocity.io.kafka_partitions import Wanted
from velocity.io.kafka_read import Read
from velocity.io.kafka_readers import Readers
from velocity.io.records import watermarks_of
from velocity.io.watermark import ForwardWatermark
from velocity.runners.embedded import EmbeddedKafka
from velocity.transforms.decode import JsonDecoder
from velocity.transforms.fields import Field

embedded = pytest.mark.embedded
_ = way  # a fixture

CONFIG = KafkaConfig("127.0.0.1:9")
START = 1_767_225_600
"""Seconds at which the fake world begins, and the broker's timestamp of each fake message."""


class FakeMessage:
    def __init__(
        self,
        offset: int,
        value: bytes = b"",
        millis: int | None = START * 1000,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> None:
        self._offset, self._value, self._millis = offset, value, millis
        self._headers = headers

    def error(self) -> None:
        return None

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return (0, -1) if self._millis is None else (1, self._millis)

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return self._value

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self._headers


class FakeEvent:
    """What a consumer is told beside messages: the end of a partition, or an error."""

    def __init__(self, code: int, offset: int = -1001) -> None:
        self._code, self._offset = code, offset

    def error(self) -> KafkaError:
        return KafkaError(self._code)

    def offset(self) -> int:
        return self._offset


@dataclass
class FakePartition:
    """A partition whose log has gaps, and the clock of the world: a poll that waits moves it."""

    log: list[FakeMessage] = field(default_factory=list)
    end: int = 0
    low: int = 0
    fails_with: int | None = None
    deleted: bool = False
    hidden: bool = False
    reachable: bool = True
    seconds: float = 0.0
    opened: int = 0
    open: int = 0
    on_poll: Callable[[], None] = lambda: None

    def holds(self, *values: bytes, every: int = 1) -> "FakePartition":
        """Appends messages, each ``every`` offsets; what lies between is a gap."""
        for value in values:
            self.log.append(FakeMessage(self.end, value))
            self.end += every
        return self

    def forget(self, before: int) -> None:
        """What retention does."""
        self.low = before
        self.log = [message for message in self.log if message.offset() >= before]

    def readers(self) -> Readers:
        return Readers(self._consumer, lambda: self.seconds, lambda: Timestamp(self.now))

    def _consumer(self, config: KafkaConfig) -> Consumer:
        self.opened += 1
        self.open += 1
        return cast(Consumer, FakeConsumer(self))

    @property
    def now(self) -> float:
        return START + self.seconds


class FakeConsumer:
    def __init__(self, partition: FakePartition) -> None:
        self._partition = partition
        self._told_end = False
        self._end_then = -1001  # as of the last answer; nothing is known before one

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._position = partitions[0].offset

    def consume(self, most: int, timeout: float) -> list[FakeMessage | FakeEvent]:
        partition, given = self._partition, list[FakeMessage | FakeEvent]()
        if partition.fails_with is not None:
            given.append(FakeEvent(partition.fails_with))
        elif not partition.low <= self._position <= partition.end:
            given.append(FakeEvent(KafkaError._AUTO_OFFSET_RESET))
        elif partition.reachable:
            log = [each for each in partition.log if each.offset() >= self._position]
            given.extend(log[:most])
            if given:
                self._position, self._told_end = given[-1].offset() + 1, False
            if len(given) < most and not self._told_end:
                self._position, self._told_end = max(self._position, partition.end), True
                given.append(FakeEvent(KafkaError._PARTITION_EOF, self._position))
        if len(given) < most:
            partition.seconds += timeout
        self._end_then = partition.end
        partition.on_poll()
        return given

    def get_watermark_offsets(
        self, where: TopicPartition, timeout: float = 1.0, cached: bool = False
    ) -> tuple[int, int]:
        if not cached and self._partition.deleted:
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
        if not cached and not self._partition.reachable:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return self._partition.low, self._end_then if cached else self._partition.end

    def list_topics(self, topic: str, timeout: float) -> Any:
        partition = self._partition
        if not partition.reachable:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        hidden = KafkaError.TOPIC_AUTHORIZATION_FAILED
        code = hidden if partition.hidden else KafkaError.UNKNOWN_TOPIC_OR_PART
        error = KafkaError(code) if partition.deleted else None
        return SimpleNamespace(topics={topic: SimpleNamespace(error=error, partitions={0: None})})

    def close(self) -> None:
        self._partition.open -= 1


class Bundle(NamedTuple):
    """What one call of ``process`` put out and left."""

    rows: list[tuple[float, pa.RecordBatch]]
    dead: list[tuple[Timestamp, pa.RecordBatch]]
    primary: OffsetRange
    residual: OffsetRange | None
    delay: Duration | None
    watermark: Timestamp

    @property
    def offsets(self) -> list[int]:
        return [offset for _, batch in self.rows for offset in batch["offset"].to_pylist()]


def reading(**arguments: Any) -> ReadFromKafka:
    return ReadFromKafka(CONFIG, ["orders"], **arguments)


@contextmanager
def counting(metrics: MetricsContainer) -> Iterator[None]:
    """Within, what is counted goes there, as a runner has it."""

    def update(name: Any, value: Any) -> None:
        metrics.get_metric_cell(name).update(value)

    statesampler.set_current_tracker(SimpleNamespace(update_metric=update))
    try:
        yield
    finally:
        statesampler.set_current_tracker(None)


class Reading:
    """The bundles of one read of a fake partition, with Beam's own guard around the tracker."""

    def __init__(
        self, partition: FakePartition, read: ReadFromKafka, step: Read | None = None
    ) -> None:
        self.partition, self.readers = partition, partition.readers()
        self._read, self._step = read, step
        self.commits = Commits(
            lambda group, told: self.told.append(told.offset), lambda: partition.seconds
        )
        self.told: list[int] = []
        self.started_at = self.end_then = 0
        self.durable: list[Callable[[], None]] = []
        self.tracker = ThreadsafeRestrictionTracker(OffsetTracker(OffsetRange(0, 0)))
        self._metrics = MetricsContainer("read")

    def counted(self, name: str) -> int:
        return int(self._metrics.get_counter(MetricName("velocity", name)).get_cumulative())

    def shown(self, name: str) -> int:
        return int(self._metrics.get_gauge(MetricName("velocity", name)).get_cumulative().value)

    def bundle(
        self, start: int = 0, stop: int = UNBOUNDED, watermark: Timestamp = MIN_TIMESTAMP
    ) -> Bundle:
        self.tracker = ThreadsafeRestrictionTracker(OffsetTracker(OffsetRange(start, stop)))
        estimator = ForwardWatermark(watermark)
        rows, dead = [], []
        element = Partition("orders", 0, self.started_at, stop, self.end_then)
        view = RestrictionTrackerView(self.tracker)
        step = self._step or Read(self._read)
        finalizer = SimpleNamespace(register=self.durable.append)
        with counting(self._metrics):
            outputs = step.read_bundle(
                element, view, estimator, finalizer, self.readers, self.commits
            )
            for output in outputs:
                if isinstance(output, TaggedOutput):
                    assert output.tag == "dead_letters"
                    dead.append((output.value.timestamp, output.value.value))
                else:
                    rows.append((output.timestamp, output.value))
        self.tracker.check_done()
        residual, delay = self.tracker.deferred_status() or (None, None)
        return Bundle(
            rows,
            dead,
            self.tracker.current_restriction(),
            residual,
            delay,
            estimator.current_watermark(),
        )

    def after(self, bundle: Bundle) -> Bundle:
        """The bundle that a runner makes of what one has left."""
        assert bundle.residual is not None
        return self.bundle(bundle.residual.start, bundle.residual.stop, bundle.watermark)


def test_a_bounded_read_gives_each_message_once_and_closes_its_reader() -> None:
    partition = FakePartition().holds(*[b""] * 25)
    bundle = Reading(partition, reading(batch_size=10)).bundle(0, 25)
    assert [batch.num_rows for _, batch in bundle.rows] == [10, 10, 5]
    assert bundle.offsets == list(range(25))
    assert (bundle.residual, partition.open) == (None, 0)


def test_a_bounded_read_leaves_what_lies_past_its_stop() -> None:
    assert Reading(FakePartition().holds(*[b""] * 25), reading()).bundle(5, 12).offsets == [
        *range(5, 12)
    ]


@pytest.mark.parametrize("every", [1, 7])
def test_gaps_at_the_end_of_the_range_end_a_bounded_read(every: int) -> None:
    partition = FakePartition().holds(b"", b"", every=every)
    partition.end = 40  # compacted away, or records of a transaction's end
    bundle = Reading(partition, reading()).bundle(0, 40)
    assert bundle.offsets == [0, every]
    assert bundle.primary == OffsetRange(0, 40)


def test_a_range_in_the_middle_of_a_gap_ends_though_the_next_message_lies_past_it() -> None:
    partition = FakePartition().holds(b"", b"", every=100)
    assert Reading(partition, reading()).bundle(20, 80).offsets == []


def test_an_empty_range_opens_no_consumer() -> None:
    partition = FakePartition().holds(b"")
    assert Reading(partition, reading()).bundle(1, 1).offsets == []
    assert partition.opened == 0


def test_a_bounded_read_of_a_silent_broker_ends_with_an_error_and_a_closed_reader() -> None:
    partition = FakePartition(reachable=False).holds(b"")
    with pytest.raises(KafkaReadError, match="'orders' partition 0 at offset 0: nothing has come"):
        Reading(partition, reading()).bundle(0, 1)
    assert partition.open == 0


def test_a_bundle_ends_when_it_is_full_and_goes_on_at_once() -> None:
    partition = FakePartition().holds(*[b""] * 100)
    bundle = Reading(partition, reading(batch_size=10, bundle_size=25)).bundle()
    assert bundle.offsets == list(range(30)), "a batch is not cut"
    assert bundle.residual == OffsetRange(30, UNBOUNDED)
    assert bundle.delay is not None
    assert bundle.delay <= Duration(0)


def test_a_bundle_ends_when_its_values_are_many_bytes() -> None:
    partition = FakePartition().holds(*[b"12345"] * 100)
    bundle = Reading(partition, reading(batch_size=10, bundle_bytes=101)).bundle()
    assert bundle.offsets == list(range(30)), "a batch is not cut"
    assert bundle.residual == OffsetRange(30, UNBOUNDED)


def test_a_bundle_ends_when_its_time_is_over() -> None:
    partition = FakePartition().holds(*[b""] * 100)

    def second() -> None:
        partition.seconds += 1

    partition.on_poll = second
    bundle = Reading(partition, reading(batch_size=10, bundle_time=timedelta(seconds=3))).bundle()
    assert bundle.offsets == list(range(30))
    assert bundle.residual == OffsetRange(30, UNBOUNDED)


def test_a_starved_bundle_ends_and_asks_for_a_pause() -> None:
    reads = Reading(FakePartition().holds(b""), reading())
    bundle = reads.bundle()
    assert (bundle.offsets, bundle.residual) == ([0], OffsetRange(1, UNBOUNDED))
    assert bundle.delay is not None
    assert Duration(0) < bundle.delay <= Duration(0.2)


def test_a_bundle_ends_as_soon_as_all_is_read_though_more_trickles_in() -> None:
    partition = FakePartition().holds(b"")

    def another() -> None:
        partition.holds(b"")

    partition.on_poll = another
    reads = Reading(partition, reading())
    first = reads.bundle()
    assert (first.offsets, first.residual) == ([0], OffsetRange(1, UNBOUNDED))
    assert first.delay
    assert reads.after(first).offsets == [1]


def test_partitions_that_one_bundle_reads_share_its_time() -> None:
    partition = FakePartition().holds(*[b""] * 100)

    def second() -> None:
        partition.seconds += 1

    partition.on_poll = second
    read = Read(reading(batch_size=1, bundle_time=timedelta(seconds=6)))
    reads = Reading(partition, reading(), read)
    of_each = []
    for partitions in (1, 3, 3, 2, 2):
        read.start_bundle()
        of_each.append([len(reads.bundle().offsets) for _ in range(partitions)])
    assert of_each == [[6], [6, 6, 6], [2, 2, 2], [2, 2], [3, 3]]


def test_the_next_bundle_takes_the_reader_of_the_last() -> None:
    partition = FakePartition().holds(*[b""] * 9)
    reads = Reading(partition, reading(batch_size=3, bundle_size=3))
    first = reads.bundle()
    second = reads.after(first)
    assert [*first.offsets, *second.offsets] == list(range(6))
    assert (partition.opened, partition.open) == (1, 1)


def test_offsets_without_messages_at_the_end_cost_no_new_reader_at_each_bundle() -> None:
    partition = FakePartition().holds(b"")
    partition.end = 2  # a transaction's end
    reads = Reading(partition, reading())
    bundle = reads.bundle()
    for _ in range(5):
        bundle = reads.after(bundle)
    assert (bundle.residual, partition.opened) == (OffsetRange(2, UNBOUNDED), 1)


def test_a_split_between_poll_and_claim_loses_nothing_and_keeps_no_reader_astray() -> None:
    partition = FakePartition().holds(*[b""] * 20)
    reads = Reading(partition, reading(batch_size=10))
    given: list[OffsetRange] = []

    def split() -> None:
        assert reads.tracker.try_split(0.25) is None, "no later part is given away"
        if bundle := reads.tracker.try_split(0):
            given.append(bundle[1])
        partition.on_poll = lambda: None

    partition.on_poll = split
    assert (reads.bundle(0, 20).offsets, given) == ([], [OffsetRange(0, 20)])
    assert reads.bundle(0, 20).offsets == list(range(20))
    assert partition.open == 0


def test_a_checkpoint_between_poll_and_claim_leaves_the_whole_batch_to_the_residual() -> None:
    partition = FakePartition().holds(*[b""] * 5)
    reads = Reading(partition, reading(batch_size=10))
    given: list[OffsetRange] = []

    def checkpoint() -> None:
        if parts := reads.tracker.try_split(0):
            given.append(parts[1])

    partition.on_poll = checkpoint
    bundle = reads.bundle()
    assert (bundle.offsets, bundle.watermark, given) == (
        [],
        MIN_TIMESTAMP,
        [OffsetRange(0, UNBOUNDED)],
    )
    assert partition.open == 0, "a reader that has read ahead is of no use to the residual"
    partition.on_poll = lambda: None
    assert reads.bundle().offsets == list(range(5))


@settings(deadline=None)
@given(st.data())
def test_however_a_read_is_split_each_message_comes_out_once(data: st.DataObject) -> None:
    partition = FakePartition()
    for gap in data.draw(st.lists(st.integers(1, 4), max_size=40)):
        partition.holds(b"", every=gap)
    bounded = data.draw(st.booleans())
    batch_size, bundle_size = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 20))
    reads = Reading(partition, reading(batch_size=batch_size, bundle_size=bundle_size))
    todo = [OffsetRange(0, partition.end if bounded else UNBOUNDED)]

    def split() -> None:
        if data.draw(st.integers(0, 3)) == 0:
            parts = reads.tracker.try_split(data.draw(st.sampled_from([0, 0.3, 0.5, 0.9])))
            if parts:
                todo.append(parts[1])

    partition.on_poll = split
    read: list[int] = []
    while todo:
        held = todo.pop(data.draw(st.integers(0, len(todo) - 1)))
        bundle = reads.bundle(held.start, held.stop)
        read += bundle.offsets
        if bundle.residual and bundle.residual.start < partition.end:
            todo.append(bundle.residual)
        todo = [held for held in todo if held.start < partition.end]
    assert sorted(read) == [message.offset() for message in partition.log]
    reads.readers.close()
    assert partition.open == 0


@pytest.mark.parametrize("stop", [3, UNBOUNDED])
def test_an_error_closes_the_reader(stop: int) -> None:
    partition = FakePartition().holds(b"", b"", b"")

    def fail() -> None:
        raise RuntimeError("broken")

    partition.on_poll = fail
    with pytest.raises(RuntimeError, match="broken"):
        Reading(partition, reading()).bundle(0, stop)
    assert (partition.opened, partition.open) == (1, 0)


def test_lost_offsets_fail_the_read_and_are_named_with_the_remedy() -> None:
    partition = FakePartition().holds(*[b""] * 9)
    reads = Reading(partition, reading())
    first = reads.bundle()
    partition.holds(*[b""] * 9)
    partition.forget(12)
    told = r"topic 'orders' partition 0 at offset 9: 3 offsets .* has 12 to 18\. .*'earliest'"
    with pytest.raises(OffsetsLost, match=told):
        reads.after(first)
    assert partition.open == 0, "after a restore too: the new reader finds the same"
    with pytest.raises(OffsetsLost, match=told):
        reads.after(first)


@pytest.mark.parametrize("stop", [UNBOUNDED, 18, 10])
def test_lost_offsets_are_skipped_and_counted_where_that_is_wanted(stop: int) -> None:
    partition = FakePartition().holds(*[b""] * 18)
    partition.forget(12)
    reads = Reading(partition, reading(on_lost_offsets="earliest"))
    bundle = reads.bundle(9, stop)
    if stop == UNBOUNDED:
        assert (bundle.offsets, bundle.residual) == ([], OffsetRange(12, UNBOUNDED))
        bundle = reads.after(bundle)
    assert bundle.offsets == ([] if stop == 10 else list(range(12, 18)))
    assert reads.counted("offsets_lost") == (1 if stop == 10 else 3)


def test_an_offset_past_the_end_is_no_lost_one_and_fails_whatever_is_wanted() -> None:
    partition = FakePartition().holds(b"")  # the topic was made anew
    reads = Reading(partition, reading(on_lost_offsets="earliest"))
    with pytest.raises(KafkaReadError, match=r"at offset 7: the broker has 0 to 1; .*made anew"):
        reads.bundle(7)


def test_a_deleted_topic_fails_the_read_and_is_named_with_the_remedy() -> None:
    partition = FakePartition().holds(b"")
    reads = Reading(partition, reading())
    first = reads.bundle()
    partition.fails_with, partition.deleted = KafkaError.UNKNOWN_TOPIC_OR_PART, True
    told = "topic 'orders' partition 0 at offset 1: the topic is gone; create it again"
    with pytest.raises(PartitionGone, match=told):
        reads.after(first)


def test_a_deleted_topic_is_noticed_though_a_consumer_says_nothing_of_it() -> None:
    partition = FakePartition().holds(b"")
    reads = Reading(partition, reading(idle_after=IDLE_AFTER))
    bundle = reads.bundle()
    partition.deleted = True
    bundle = run_for(reads, 65, bundle)
    assert bundle.watermark < Timestamp(START), "who can't be asked is not idle"
    with pytest.raises(PartitionGone, match="topic is gone"):
        run_for(reads, 20, bundle)


def test_a_deleted_topic_ends_the_read_of_its_partitions_where_losses_are_allowed() -> None:
    partition = FakePartition().holds(b"", b"")
    reads = Reading(partition, reading(on_lost_offsets="earliest", batch_size=1, bundle_size=1))
    first = reads.bundle()
    partition.fails_with, partition.deleted = KafkaError.UNKNOWN_TOPIC_OR_PART, True
    partition.reachable = False  # nobody confirms it
    with pytest.raises(PartitionGone):
        reads.after(first)
    partition.reachable, partition.hidden = True, True  # nor does who may not see it
    with pytest.raises(PartitionGone):
        reads.after(first)
    partition.hidden = False
    last = reads.after(first)
    assert (last.offsets, last.residual) == ([], None)
    assert (reads.counted("offsets_lost"), partition.open) == (1, 0)


def test_a_partition_that_may_not_be_read_names_what_to_allow() -> None:
    partition = FakePartition(fails_with=KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaReadError, match=r"'orders' partition 0 at offset 0: .*allow"):
        Reading(partition, reading()).bundle()


def test_each_partition_tells_its_lag_delay_watermark_messages_and_bytes() -> None:
    partition = FakePartition().holds(event(-50), event(-10), event(-20), event(-20))
    reads = Reading(partition, reading(decoder=DECODER, batch_size=3, bundle_size=3))
    reads.bundle()
    assert {name: reads.counted(f"{name}_orders_0") for name in ("messages", "bytes")} == {
        "messages": 3,
        "bytes": 3 * len(event(0)),
    }
    assert reads.shown("lag_orders_0") == 1
    assert reads.shown("watermark_ms_orders_0") == (START - 10 - 30) * 1000
    assert reads.shown("delay_ms_orders_0") == 10_000


def test_a_group_is_told_what_was_made_durable_and_no_more() -> None:
    partition = FakePartition().holds(b"a", b"b", b"c")
    reads = Reading(partition, reading(group="g", bundle_size=1, batch_size=1))
    bundle = reads.bundle()
    for _ in range(2):
        partition.seconds += 2
        bundle = reads.after(bundle)
    assert (len(reads.durable), reads.told) == (1, [])  # one confirmation at a time
    reads.durable[0]()
    assert reads.told == []
    reads.after(bundle)
    reads.durable[1]()
    assert reads.told == [1]


def test_a_bounded_read_commits_nothing_for_a_later_step_may_fail() -> None:
    reads = Reading(FakePartition().holds(b"a"), reading(group="g", stop="latest"))
    reads.bundle(0, 1)
    assert reads.durable == []


def test_without_a_group_the_runner_has_nothing_to_confirm() -> None:
    reads = Reading(FakePartition().holds(b"a"), reading())
    reads.bundle()
    assert reads.durable == []


def test_a_bundle_that_fails_after_the_read_closes_the_reader() -> None:
    partition = FakePartition().holds(b"")
    reads = Reading(partition, reading())
    view = RestrictionTrackerView(
        ThreadsafeRestrictionTracker(OffsetTracker(OffsetRange(0, UNBOUNDED)))
    )
    bundle = Read(reading()).read_bundle(
        Partition("orders", 0, 0, UNBOUNDED),
        view,
        ForwardWatermark(MIN_TIMESTAMP),
        None,
        reads.readers,
    )
    next(bundle)
    assert partition.open == 1
    cast(Any, bundle).close()
    assert partition.open == 0


DISORDER = timedelta(seconds=30)
IDLE_AFTER = timedelta(seconds=60)
DECODER = JsonDecoder(
    {"at": Field("timestamp_ms")},
    event_time="at",
    clock=lambda: datetime.fromtimestamp(START, UTC),
)


def event(seconds: float) -> bytes:
    """A message whose event is so long after the start of the world."""
    return json.dumps({"at": round((START + seconds) * 1000)}).encode()


BAD = b"not JSON"
decoding = reading(decoder=DECODER, disorder=DISORDER, idle_after=IDLE_AFTER, batch_size=3)


def run_for(reads: Reading, seconds: float, bundle: Bundle | None = None) -> Bundle:
    until = reads.partition.seconds + seconds
    bundle = bundle or reads.bundle()
    while reads.partition.seconds < until:
        bundle = reads.after(bundle)
    return bundle


def test_the_watermark_is_the_greatest_event_time_less_the_disorder() -> None:
    partition = FakePartition().holds(event(-50), event(-10), event(-20))
    bundle = Reading(partition, decoding).bundle()
    assert bundle.watermark == Timestamp(START - 10 - 30)
    assert [at for at, _ in bundle.rows] == [Timestamp(START - 50)], "a batch bears its earliest"


def test_an_older_event_does_not_move_the_watermark_back() -> None:
    partition = FakePartition().holds(event(-10), *[event(-500)] * 3)
    assert Reading(partition, decoding).bundle().watermark == Timestamp(START - 40)


def test_the_residual_carries_the_watermark() -> None:
    partition = FakePartition().holds(event(-10))
    reads = Reading(partition, decoding)
    first = reads.bundle()
    partition.holds(event(-300))
    assert reads.after(first).watermark == first.watermark == Timestamp(START - 40)


def test_an_event_of_the_far_future_is_a_dead_letter_and_does_not_move_the_watermark() -> None:
    partition = FakePartition().holds(event(-10), event(10**8))
    bundle = Reading(partition, decoding).bundle()
    assert [batch.num_rows for _, batch in bundle.dead] == [1]
    assert bundle.dead[0][1]["cause"].to_pylist() == ["future_event_time"]
    assert bundle.watermark == Timestamp(START - 40)


def test_dead_letters_alone_do_not_move_the_watermark() -> None:
    bundle = Reading(FakePartition().holds(BAD, BAD), decoding).bundle()
    assert (len(bundle.rows), bundle.dead[0][1].num_rows) == (0, 2)
    assert bundle.dead[0][0] == bundle.watermark == MIN_TIMESTAMP


def test_messages_without_a_timestamp_do_not_move_the_watermark() -> None:
    partition = FakePartition([FakeMessage(0, millis=None)], 1)
    bundle = Reading(partition, reading()).bundle()
    assert [at for at, _ in bundle.rows] == [bundle.watermark] == [MIN_TIMESTAMP]


def test_without_a_decoder_the_watermark_comes_from_the_brokers_timestamps() -> None:
    partition = FakePartition([FakeMessage(0), FakeMessage(1, millis=None)], 2)
    bundle = Reading(partition, reading(disorder=DISORDER)).bundle()
    assert bundle.watermark == Timestamp(START - 30)


@pytest.mark.parametrize("values", [[], [event(-1000)], [BAD]])
def test_a_partition_read_to_its_end_follows_the_clock_after_a_while(values: list[bytes]) -> None:
    partition = FakePartition().holds(*values)
    reads = Reading(partition, decoding)
    bundle = run_for(reads, 55)
    assert bundle.watermark == (
        Timestamp(START - 1030) if event(-1000) in values else MIN_TIMESTAMP
    )
    bundle = run_for(reads, 15, bundle)
    behind = partition.now - 30 - float(bundle.watermark)
    assert 0 <= behind <= 2
    bundle = run_for(reads, 100, bundle)
    behind = partition.now - 30 - float(bundle.watermark)
    assert 0 <= behind <= 2


def test_a_partition_that_gets_nothing_but_bad_messages_follows_the_clock() -> None:
    partition = FakePartition()
    partition.on_poll = lambda: cast(None, partition.holds(BAD))
    bundle = run_for(Reading(partition, decoding), 90)
    behind = partition.now - 30 - float(bundle.watermark)
    assert 0 <= behind <= 2


def test_a_partition_that_gets_rows_never_follows_the_clock() -> None:
    partition = FakePartition()
    reads = Reading(partition, decoding)
    bundle = reads.bundle()
    for _ in range(10):
        partition.holds(event(-5000))
        bundle = run_for(reads, 50, bundle)
    assert bundle.watermark == Timestamp(START - 5030)


def test_a_backlog_is_never_passed_by_the_clock() -> None:
    partition = FakePartition().holds(*[BAD] * 3000, event(-7000))

    def slow() -> None:
        partition.seconds += 0.5

    partition.on_poll = slow
    reads = Reading(partition, decoding)
    bundle = run_for(reads, 400)
    assert (bundle.primary.stop < partition.end, bundle.watermark) == (True, MIN_TIMESTAMP)


def test_what_came_while_the_broker_was_out_of_reach_is_not_late() -> None:
    partition = FakePartition()
    reads = Reading(partition, decoding)
    bundle = reads.bundle()
    partition.reachable = False
    partition.holds(event(1))
    bundle = run_for(reads, 300, bundle)
    assert bundle.watermark == MIN_TIMESTAMP
    partition.reachable = True
    bundle = reads.after(bundle)
    assert [at for at, _ in bundle.rows] == [Timestamp(START + 1)]
    assert bundle.watermark == Timestamp(START + 1 - 30)


def test_a_bounded_read_never_follows_the_clock() -> None:
    partition = FakePartition(reachable=False).holds(BAD)

    def come_back() -> None:
        partition.reachable = partition.seconds > 110

    partition.on_poll = come_back
    bundle = Reading(partition, decoding).bundle(0, 1)
    assert partition.seconds > 110
    assert bundle.watermark == MIN_TIMESTAMP


COPY = [("velocity-attempt", b"2"), ("velocity-origin", b"orders/0/1")]


def with_a_copy(partition: FakePartition) -> FakePartition:
    """Offset 1 has been set aside by some run, mended, and sent again at offset 3."""
    partition.holds(event(-9), event(-8), event(-7))
    partition.log.append(FakeMessage(3, event(-8), headers=COPY))
    partition.end = 4
    return partition.holds(event(-6))


@pytest.mark.parametrize("stop", [UNBOUNDED, 5])
def test_a_read_that_starts_anew_over_an_original_and_its_copy_has_the_event_once(
    stop: int,
) -> None:
    reads = Reading(with_a_copy(FakePartition()), decoding)
    reads.end_then = 5
    bundle = reads.bundle(0, stop)
    assert [len(rows) for _, rows in bundle.rows] == [3, 1]
    assert [row["offset"] for _, rows in bundle.rows for row in rows["_message"].to_pylist()] == [
        0, 1, 2, 4,
    ]  # fmt: skip
    assert reads.counted("copies_skipped") == 1


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(0, 3, id="the copy has come since: of what this run set aside"),
        pytest.param(2, 5, id="the original was before the start"),
    ],
)
def test_a_copy_counts_where_its_original_did_not(start: int, end: int) -> None:
    reads = Reading(with_a_copy(FakePartition()), decoding)
    reads.started_at, reads.end_then = start, end
    offsets = [
        row["offset"]
        for _, rows in reads.bundle(start, 5).rows
        for row in rows["_message"].to_pylist()
    ]
    assert offsets == [*range(start, 5)]


def test_without_a_decoder_a_copy_is_a_message_like_any_other() -> None:
    reads = Reading(with_a_copy(FakePartition()), reading())
    reads.end_then = 5
    assert reads.bundle(0, 5).offsets == [0, 1, 2, 3, 4]


@settings(max_examples=25)
@given(st.lists(st.integers(-500, 0), min_size=1, max_size=12))
def test_a_bounded_read_finds_the_same_rows_late_as_one_without_end(seconds: list[int]) -> None:
    partition = FakePartition().holds(*map(event, seconds), every=400_000)  # millions of offsets

    def before_each_row(bundles: list[Bundle]) -> list[datetime | None]:
        batches = [batch for bundle in bundles for _, batch in bundle.rows]
        return [at for batch in batches for at in watermarks_of(batch).to_pylist()]

    reads = Reading(partition, decoding)
    bundles = [reads.bundle()]
    while bundles[-1].rows:
        bundles.append(reads.after(bundles[-1]))
    bounded = reading(decoder=DECODER, disorder=DISORDER, stop="latest", batch_size=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wanted, "first", lambda _: [Partition("orders", 0, 0, partition.end)])
        pieces = list(bounded._list_partitions().fn.process(None))
    read = [Reading(partition, bounded).bundle(start, stop) for _, _, start, stop, *_ in pieces]
    assert before_each_row(read) == before_each_row(bundles)
    assert len(before_each_row(read)) == len(seconds)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"start": "lates"}, "start must be"),
        ({"start": None}, "start must be"),
        ({"stop": "earliest"}, "stop must be"),
        ({"start": datetime(2026, 1, 1)}, "start has no time zone"),
        ({"stop": datetime(2026, 1, 1)}, "stop has no time zone"),
        ({"stop": {("claims", 0): 1}}, "stop names topic 'claims'"),
        ({"start": "committed"}, "name the group"),
        ({"group": ""}, "group is empty"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1_000_001}, "batch_size"),
        ({"bundle_size": 0}, "bundle_size"),
        ({"bundle_bytes": 0}, "bundle_bytes"),
        ({"bundle_time": timedelta()}, "bundle_time"),
        ({"idle_after": timedelta()}, "idle_after"),
        ({"discover_every": timedelta()}, "discover_every"),
        ({"on_lost_offsets": "latest"}, "on_lost_offsets"),
        ({"disorder": timedelta(seconds=-1)}, "disorder"),
    ],
)
def test_an_argument_of_no_sense_is_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        reading(**arguments)


@pytest.mark.parametrize("topics", [[], "orders", [""], ["orders", "orders"], ["^("]])
def test_topics_are_names_each_given_once(topics: Any) -> None:
    with pytest.raises(ValueError, match="topics"):
        ReadFromKafka(CONFIG, topics)


def test_secrets_are_never_shown() -> None:
    read = ReadFromKafka(KafkaConfig("127.0.0.1:9", {"sasl.password": "hush"}), ["orders"])
    pipeline = beam.Pipeline()
    shown = [repr(read), str(read), read.label, repr(Read(read)), repr(read.config)]
    shown.append(repr(pipeline | read))
    proto = pipeline.to_runner_api()
    for transform in proto.components.transforms.values():
        shown += [transform.unique_name, *map(str, transform.display_data)]
    shown.append(str(pipeline.options.get_all_options()))
    assert "hush" not in "".join(shown)
    assert "hush" not in str(proto), "steps are pickled"


RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner"
ONE = [RUNNER]
TWO = [RUNNER, "--direct_num_workers=2", "--direct_running_mode=multi_threading"]


@pytest.fixture
def kafka(way: str) -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka({"orders": 4, "claims": 2, "empty": 3}) as kafka:
        yield kafka


def as_text(message: dict[str, Any]) -> str:
    return repr({**message, "timestamp": message["timestamp"].isoformat()})


def fill(kafka: EmbeddedKafka, count: int = 300) -> list[dict[str, Any]]:
    """Messages in all partitions but the last of ``orders``; what a read of them is to give."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    sent, ends = [], dict[tuple[str, int], int]()
    for i in range(count):
        topic, partition = [("orders", 0), ("orders", 1), ("orders", 2), ("claims", 0)][i % 4]
        value = None if i % 50 == 0 else b"%d" % i
        producer.produce(
            topic,
            value,
            key=b"key %d" % i,
            partition=partition,
            timestamp=START * 1000 + i,
            headers=[("i", b"%d" % i)],
        )
        offset = ends.get((topic, partition), 0)
        ends[topic, partition] = offset + 1
        sent.append(
            {
                "topic": topic,
                "partition": partition,
                "offset": offset,
                "timestamp": datetime.fromtimestamp(START, UTC) + timedelta(milliseconds=i),
                "key": b"key %d" % i,
                "value": value,
                "headers": [{"name": "i", "value": b"%d" % i}],
            }
        )
    assert producer.flush(10) == 0
    return sent


def run(read: ReadFromKafka, expected: list[dict[str, Any]], options: list[str] = ONE) -> None:
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        batches = pipeline | read
        messages = batches | beam.FlatMap(lambda batch: map(as_text, batch.to_pylist()))
        assert_that(messages, equal_to([as_text(message) for message in expected]))


@embedded
@pytest.mark.parametrize("options", [ONE, TWO])
@pytest.mark.parametrize("batch_size", [1, 7, 5000])
def test_every_message_of_every_topic_is_read_once(
    kafka: EmbeddedKafka, batch_size: int, options: list[str]
) -> None:
    config = KafkaConfig(kafka.bootstrap_servers)
    read = ReadFromKafka(config, ["orders", "claims"], stop="latest", batch_size=batch_size)
    run(read, fill(kafka), options)


@embedded
def test_start_and_stop_by_offsets_bound_each_partition(kafka: EmbeddedKafka) -> None:
    sent = fill(kafka)
    start, stop = {("orders", 0): 10}, {("orders", 0): 20, ("orders", 1): 5}
    wanted = [
        message
        for message in sent
        if message["topic"] == "orders"
        and message["offset"] >= start.get(("orders", message["partition"]), 0)
        and message["offset"] < stop.get(("orders", message["partition"]), 10**6)
    ]
    assert len(wanted) == 10 + 5 + 75
    config = KafkaConfig(kafka.bootstrap_servers)
    run(ReadFromKafka(config, ["orders"], start=start, stop=stop), wanted)


@embedded
def test_a_read_starts_at_what_its_group_was_told(kafka: EmbeddedKafka) -> None:
    config = KafkaConfig(kafka.bootstrap_servers)
    sent = [message for message in fill(kafka) if message["topic"] == "orders"]
    told = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "g"})
    told.commit(offsets=[TopicPartition("orders", 0, 17)], asynchronous=False)
    told.close()
    wanted = [m for m in sent if m["partition"] != 0 or m["offset"] >= 17]
    assert len(wanted) == len(sent) - 17
    run(ReadFromKafka(config, ["orders"], start="committed", stop="latest", group="g"), wanted)


@embedded
def test_a_pattern_stands_for_the_topics_that_it_matches(kafka: EmbeddedKafka) -> None:
    sent = [message for message in fill(kafka) if message["topic"] == "orders"]
    config = KafkaConfig(kafka.bootstrap_servers)
    run(ReadFromKafka(config, ["^ord.*", "empty"], stop="latest"), sent)


@embedded
def test_a_stop_past_the_last_message_is_the_end(kafka: EmbeddedKafka) -> None:
    sent = [message for message in fill(kafka) if message["topic"] == "claims"]
    stop = {("claims", partition): 10**9 for partition in range(2)}
    run(ReadFromKafka(KafkaConfig(kafka.bootstrap_servers), ["claims"], stop=stop), sent)


@embedded
def test_an_empty_topic_gives_nothing(kafka: EmbeddedKafka) -> None:
    config = KafkaConfig(kafka.bootstrap_servers)
    run(ReadFromKafka(config, ["empty"], stop="latest"), [])
    run(ReadFromKafka(config, ["orders"], start="latest", stop="latest"), [])


@embedded
def test_a_message_of_two_megabytes_is_read_whole(kafka: EmbeddedKafka) -> None:
    config, value = KafkaConfig(kafka.bootstrap_servers), os.urandom(2_000_000)
    producer = Producer(config.client(message_max_bytes=4_000_000))
    producer.produce("claims", value, partition=1)
    assert producer.flush(10) == 0
    with beam.Pipeline(options=PipelineOptions(ONE)) as pipeline:
        batches = pipeline | ReadFromKafka(config, ["claims"], stop="latest")
        values = batches | beam.FlatMap(lambda batch: batch["value"].to_pylist())
        assert_that(values, equal_to([value]))


@embedded
def test_a_decoder_gives_rows_and_dead_letters(kafka: EmbeddedKafka) -> None:
    config = KafkaConfig(kafka.bootstrap_servers)
    producer = Producer(config.client())
    for value in (event(-5), BAD, event(-9)):
        producer.produce("orders", value, partition=0, timestamp=START * 1000)
    assert producer.flush(10) == 0
    with beam.Pipeline(options=PipelineOptions(ONE)) as pipeline:
        read = ReadFromKafka(config, ["orders"], decoder=DECODER, stop="latest")
        rows, dead = pipeline | read
        times = rows | beam.FlatMap(lambda batch: batch["at"].to_pylist())
        values = dead | beam.FlatMap(lambda batch: batch["value"].to_pylist())
        assert_that(
            times, equal_to([datetime.fromtimestamp(START - s, UTC) for s in (5, 9)]), "rows"
        )
        assert_that(values, equal_to([BAD]), "dead")


@embedded
def test_an_unknown_topic_fails_the_pipeline_with_a_remedy(kafka: EmbeddedKafka) -> None:
    config = KafkaConfig(kafka.bootstrap_servers, {"sasl.password": "hush"})
    with pytest.raises(KafkaReadError, match=r"topic 'unknown'.*create the topic") as caught:
        run(ReadFromKafka(config, ["orders", "unknown"], stop="latest"), [])
    assert "hush" not in str(caught.value)


@embedded
def test_a_start_that_was_forgotten_fails_the_pipeline_and_is_not_moved(
    kafka: EmbeddedKafka,
) -> None:
    config = KafkaConfig(kafka.bootstrap_servers)
    producer = Producer(config.client())
    for _ in range(8):
        producer.produce("orders", os.urandom(900_000), partition=2)
        assert producer.flush(10) == 0
    assert kafka.forgotten("orders") > 0
    read = ReadFromKafka(config, ["orders"], start={("orders", 2): 0}, stop="latest")
    told = r"cannot read topic 'orders' partition 2 at offset 0: .*'earliest'"
    with pytest.raises(KafkaReadError, match=told):
        run(read, [])


@embedded
def test_the_example_of_the_documentation_runs_as_it_stands() -> None:
    page = (Path(__file__).parent.parent / "docs" / "kafka.md").read_text("utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    run = [sys.executable, "-c", example]
    assert subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout == "10000\n"
