"""Reading Kafka in Python alone: a splittable DoFn on confluent-kafka, one batch an element.

No JVM and no container stands beside the runner, and the read fuses with the Python steps after
it. Splittable DoFns and their watermarks: https://beam.apache.org/documentation/programming-guide/
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from velocity.io.kafka_commits import COMMITS, Commits, Group
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import (
    Messages,
    Offsets,
    offsets_to_read,
    open_consumer,
    to_arrow,
)
from velocity.io.kafka_offsets import UNBOUNDED, OffsetRestrictions, Partition
from velocity.io.kafka_readers import READERS, PartitionReader, Readers
from velocity.io.kafka_topics import is_pattern, matching, topics_of
from velocity.io.records import Decoder, WithDeadLetters, counter, gauge
from velocity.io.watermark import ForwardWatermarkProvider

_POLL_EVERY: Final = Duration(micros=200_000)
_MOST: Final = 1_000_000
"""Messages that a consumer gives at once."""

_TRACKER: Final = beam.DoFn.RestrictionParam(OffsetRestrictions())
_FINALIZER: Final = beam.DoFn.BundleFinalizerParam  # Beam passes it by its place, after the element
_WATERMARK: Final = beam.DoFn.WatermarkEstimatorParam(ForwardWatermarkProvider())


@dataclass(eq=False, repr=False)
class ReadFromKafka(beam.PTransform):
    """Reads topics as batches of messages, or of typed rows where a ``decoder`` is given.

    Without a decoder the output is a PCollection of ``MESSAGES`` batches, and the watermark comes
    from the broker's timestamps. With one it is ``WithDeadLetters`` of decoded rows, and the
    watermark comes from their event time: only a source can set a watermark, so a source that is
    to follow the payload must decode it.

    Each batch bears the earliest of its times. A partition's watermark is the greatest time seen
    less ``disorder``, and never goes back. A partition that has had no row for ``idle_after``, and
    of which all is read, holds nothing back: its watermark follows the clock, less ``disorder``.
    That is for what never stops; a bounded read follows its data alone.

    ``start`` is ``"earliest"``, ``"latest"``, ``"committed"`` (what ``group`` has been told), a time,
    or offsets; partitions that are not named, or that the group knows nothing of, start at the
    earliest. A runner that goes on from a checkpoint takes its own offsets. ``stop`` is None (never),
    ``"latest"`` (the end as it is when reading starts), a time or offsets (exclusive; partitions not
    named stop at that end); what stops is bounded, and does not wait for messages past that end.
    Times are compared with the broker's timestamps.

    A read without end commits offsets to ``group``, where one is given, after the runner has made
    durable what was read up to them: tools that watch a group's lag show the truth. Nothing else must
    use the group. A bounded read commits nothing.

    A topic that begins with ``^`` is a regular expression that stands for all topics whose whole name
    matches when reading starts.

    A bundle ends after ``bundle_size`` messages (give or take a batch), after ``bundle_time``, or
    when there is nothing to read. Counters: ``read_messages``, ``read_bytes``, ``decoded_rows``; and
    a gauge ``lag_<topic>_<partition>``: how many offsets are not read yet, at a bundle's end.
    Raises ``ValueError`` for an argument of no sense, and ``KafkaReadError`` in the worker.

    >>> ReadFromKafka(KafkaConfig("127.0.0.1:9092"), ["orders"], start={("order", 0): 17})
    Traceback (most recent call last):
    ValueError: start names topic 'order', which is none of topics: ['orders']
    """

    config: KafkaConfig
    topics: Sequence[str]
    decoder: Decoder | None = None
    start: Literal["earliest", "latest", "committed"] | datetime | Offsets = "earliest"
    stop: Literal["latest"] | datetime | Offsets | None = None
    disorder: timedelta = timedelta(seconds=30)
    idle_after: timedelta = timedelta(seconds=60)
    batch_size: int = 5_000
    bundle_time: timedelta = timedelta(seconds=2)
    bundle_size: int = 50_000
    group: str | None = None

    def __post_init__(self) -> None:
        super().__init__()
        if isinstance(self.topics, str) or not self.topics or "" in self.topics:
            raise ValueError(f"topics: a list of topic names is wanted, not {self.topics!r}")
        if len(set(self.topics)) < len(self.topics):
            raise ValueError(f"topics: one is named twice, and would be read twice: {self.topics}")
        self._check_position("start", self.start, "earliest", "latest", "committed")
        if self.start == "committed" and self.group is None:
            raise ValueError("start is 'committed': name the group that committed, as group")
        if self.group == "":
            raise ValueError("group is empty: name it, or leave it out")
        if self.stop is not None:
            self._check_position("stop", self.stop, "latest")
        if self.disorder < timedelta():
            raise ValueError(f"disorder must be 0 or more, not {self.disorder}")
        for topic in filter(is_pattern, self.topics):
            try:
                re.compile(topic)
            except re.error as error:
                raise ValueError(f"topics: {topic!r} is no regular expression: {error}") from None
        for name, time in (("idle_after", self.idle_after), ("bundle_time", self.bundle_time)):
            if time <= timedelta():
                raise ValueError(f"{name} must be more than 0, not {time}")
        if not 1 <= self.batch_size <= _MOST:
            raise ValueError(f"batch_size must be 1 to {_MOST}, not {self.batch_size}")
        if self.bundle_size < 1:
            raise ValueError(f"bundle_size must be 1 or more, not {self.bundle_size}")

    def _check_position(self, name: str, where: Any, *words: str) -> None:
        match where:
            case datetime(tzinfo=None):
                raise ValueError(f"{name} has no time zone, and would depend on the machine's")
            case datetime():
                pass
            case Mapping():
                for topic, _ in where:
                    if not matching(self.topics, topic):
                        raise ValueError(
                            f"{name} names topic {topic!r}, which is none of topics: {self.topics}"
                        )
            case _ if where not in words:
                wanted = ", ".join(f'"{word}"' for word in words)
                raise ValueError(f"{name} must be {wanted}, a time or offsets, not {where!r}")

    def expand(self, pbegin: Any) -> Any:
        read = _ReadBounded(self) if self.stop is not None else _ReadUnbounded(self)
        outputs = (
            pbegin
            | "Start" >> beam.Create([None], reshuffle=False)
            | "List partitions" >> beam.ParDo(_ListPartitions(self))
            | "Spread partitions" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(read)
            .with_output_types(pa.RecordBatch, dead_letters=pa.RecordBatch)
            .with_outputs("dead_letters", main="rows")
        )
        return WithDeadLetters(*outputs) if self.decoder else outputs.rows


class _ListPartitions(beam.DoFn):
    """Fixes start and stop once, before anything is read, so that a retry can't move them."""

    def __init__(self, read: ReadFromKafka) -> None:
        self._read = read

    def process(self, _: None) -> Iterator[Partition]:
        read = self._read
        consumer = open_consumer(read.config, read.group)
        try:
            for topic in topics_of(consumer, read.config, read.topics):
                yield from offsets_to_read(consumer, read.config, topic, read.start, read.stop)
        finally:
            consumer.close()


class _Read(beam.DoFn):
    def __init__(self, read: ReadFromKafka) -> None:
        self._config = read.config
        self._group = Group(read.config, read.group) if read.group else None
        self._decoder = read.decoder
        self._disorder = Duration(read.disorder.total_seconds())
        self._idle_after = read.idle_after.total_seconds()
        self._batch_size = read.batch_size
        self._bundle_time = read.bundle_time.total_seconds()
        self._bundle_size = read.bundle_size
        self._messages = counter("read_messages")
        self._bytes = counter("read_bytes")
        self._decoded = counter("decoded_rows")

    def teardown(self) -> None:
        READERS.close()
        COMMITS.close()

    def read_bundle(
        self,
        element: Partition,
        tracker: Any,
        watermark: Any,
        finalizer: Any,
        readers: Readers = READERS,
        commits: Commits = COMMITS,
    ) -> Iterator[Any]:
        """Reads to the end of the restriction; without one, until the bundle is full or starved."""
        offsets = tracker.current_restriction()
        if offsets.start == offsets.stop:
            return
        bounded, read_to = offsets.stop < UNBOUNDED, offsets.start
        deadline, read, starved = readers.clock() + self._bundle_time, 0, False
        reader = readers.take(self._config, element.topic, element.partition, offsets.start)
        try:
            while reader.position < (stop := tracker.current_restriction().stop):
                if not bounded and (
                    starved or read >= self._bundle_size or readers.clock() >= deadline
                ):
                    tracker.defer_remainder(_POLL_EVERY if starved else None)
                    break
                messages = reader.poll(min(self._batch_size, stop - reader.position))
                starved = not messages
                # up to the position, for offsets that no message has (compacted, or taken by a
                # transaction's end) are read too
                upto = min(reader.position, stop)
                while upto > read_to and not tracker.try_claim(upto - 1):
                    upto = tracker.current_restriction().stop  # it was split after the poll
                read_to = max(read_to, upto)
                if owned := _before(messages, upto):
                    read += len(owned)
                    yield from self._put_out(element, owned, reader, watermark)
                if not bounded:
                    idle_as_of = reader.idle_as_of(self._idle_after)
                    if idle_as_of is not None:
                        watermark.advance(idle_as_of - self._disorder)
                elif starved:
                    reader.expect_more()
            if (lag := reader.lag()) is not None:
                gauge(f"lag_{element.topic}_{element.partition}").set(lag)
            goes_on_here = not bounded and reader.position == tracker.current_restriction().stop
        except BaseException:
            reader.close()
            raise
        if goes_on_here:
            readers.give_back(reader)
        else:
            reader.close()
        if self._group and not bounded:  # Beam's local runner confirms what later steps may fail at
            durable = commits.bundle_ended(
                self._group, element.topic, element.partition, offsets.start, read_to
            )
            if durable:
                finalizer.register(durable)

    def _put_out(
        self, element: Partition, messages: Messages, reader: PartitionReader, watermark: Any
    ) -> Iterator[Any]:
        batch = to_arrow(element, messages)
        self._messages.inc(len(messages))
        self._bytes.inc(batch["value"].nbytes)
        rows, times = batch, batch["timestamp"]
        if self._decoder:
            rows, dead = self._decoder.decode(batch)
            times = rows[self._decoder.event_time]
            self._decoded.inc(rows.num_rows)
            if dead.num_rows:
                at = watermark.current_watermark()
                yield TaggedOutput("dead_letters", TimestampedValue(dead, at))
        if rows.num_rows:
            reader.row_seen()
            if times.null_count == rows.num_rows:  # a broker that gives no timestamps
                yield TimestampedValue(rows, watermark.current_watermark())
            else:
                yield TimestampedValue(rows, _timestamp(pc.min(times)))
                watermark.advance(_timestamp(pc.max(times)) - self._disorder)


class _ReadBounded(_Read):
    def process(
        self,
        element: Partition,
        finalizer: Any = _FINALIZER,
        tracker: Any = _TRACKER,
        watermark: Any = _WATERMARK,
    ) -> Iterator[Any]:
        yield from self.read_bundle(element, tracker, watermark, finalizer)


class _ReadUnbounded(_Read):
    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Partition,
        finalizer: Any = _FINALIZER,
        tracker: Any = _TRACKER,
        watermark: Any = _WATERMARK,
    ) -> Iterator[Any]:
        yield from self.read_bundle(element, tracker, watermark, finalizer)


def _before(messages: Messages, stop: int) -> Messages:
    if not messages or messages[-1].offset() < stop:
        return messages
    return [message for message in messages if message.offset() < stop]


def _timestamp(time: pa.Scalar) -> Timestamp:
    return Timestamp(micros=time.value * 1000)
