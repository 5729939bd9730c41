"""The splittable DoFn that reads a partition: its bundles, its watermark, and what it counts."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from velocity.io.copies import of_what_is_read
from velocity.io.kafka_commits import COMMITS, Commits, Group
from velocity.io.kafka_consumer import OffsetsLost, PartitionGone
from velocity.io.kafka_metrics import metrics_of
from velocity.io.kafka_offsets import UNBOUNDED, OffsetRestrictions, Partition
from velocity.io.kafka_readers import READERS, PartitionReader, Readers
from velocity.io.metrics import counter
from velocity.io.records import MESSAGES, with_watermarks
from velocity.io.watermark import ForwardWatermarkProvider, watermarks

if TYPE_CHECKING:
    from velocity.io.kafka import ReadFromKafka

_LOG: Final = logging.getLogger(__name__)

_NONE: Final = pa.RecordBatch.from_pylist([], schema=MESSAGES)
_POLL_EVERY: Final = Duration(micros=200_000)

_TRACKER: Final = beam.DoFn.RestrictionParam(OffsetRestrictions())
_FINALIZER: Final = (
    beam.DoFn.BundleFinalizerParam
)  # as a timestamp, by its place: before the others
_WATERMARK: Final = beam.DoFn.WatermarkEstimatorParam(ForwardWatermarkProvider())


class Read(beam.DoFn):
    """Reads one partition a call; what is to be read, and how, is ``ReadFromKafka``'s to say."""

    def __init__(self, read: "ReadFromKafka") -> None:
        self._config = read.config
        self._group = Group(read.config, read.group) if read.group else None
        self._decoder = read.decoder
        self._disorder = read.disorder
        self._behind = Duration(micros=read.disorder // timedelta(microseconds=1))
        self._idle_after = read.idle_after.total_seconds()
        self._batch_size = read.batch_size
        self._bundle_time = self._share = read.bundle_time.total_seconds()
        self._reads = 0
        self._bundle_size = read.bundle_size
        self._bundle_bytes = read.bundle_bytes
        self._messages = counter("read_messages")
        self._bytes = counter("read_bytes")
        self._decoded = counter("decoded_rows")
        self._lost = counter("offsets_lost")
        self._copies = counter("copies_skipped")
        self._fails_if_lost = read.on_lost_offsets == "fail"

    def start_bundle(self) -> None:
        # A runner may have a bundle read many partitions, one after the other: as many as last time.
        self._share, self._reads = self._bundle_time / max(1, self._reads), 0

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
        """Reads to the end of the restriction; without one, until the bundle is full or all is read."""
        offsets = tracker.current_restriction()
        if offsets.start == offsets.stop:
            return
        bounded, read_to = offsets.stop < UNBOUNDED, offsets.start
        deadline, read, size = readers.clock() + self._share, 0, 0
        self._reads += 1
        caught_up = False
        reader = readers.take(self._config, element.topic, element.partition, offsets.start)
        try:
            while reader.position < (stop := tracker.current_restriction().stop):
                full = read >= self._bundle_size or size >= self._bundle_bytes
                if not bounded and (full or caught_up or readers.clock() >= deadline):
                    tracker.defer_remainder(_POLL_EVERY if caught_up else None)
                    break
                messages = self._poll(element, reader, stop)
                starved = not messages.num_rows
                # What trickles in is put out at once: later steps get it when the bundle ends.
                caught_up = starved or (messages.num_rows < self._batch_size and reader.lag() == 0)
                # up to the position, for offsets that no message has (compacted, or taken by a
                # transaction's end) are read too
                upto = min(reader.position, stop)
                while upto > read_to and not tracker.try_claim(upto - 1):
                    upto = tracker.current_restriction().stop  # it was split after the poll
                read_to = max(read_to, upto)
                owned = _before(messages, upto)
                if owned.num_rows:
                    read += owned.num_rows
                    size += self._count(element, owned)
                    yield from self._put_out(element, owned, reader, watermark, readers.now())
                if not bounded:
                    idle_as_of = reader.idle_as_of(self._idle_after)
                    if idle_as_of is not None:
                        watermark.advance(idle_as_of - self._behind)
                elif starved:
                    reader.expect_more()
            metrics_of(element.topic, element.partition).bundle_ended(
                reader.lag(), watermark.current_watermark()
            )
            goes_on_here = reader.position == tracker.current_restriction().stop < UNBOUNDED
        except BaseException:
            reader.close()
            raise
        if goes_on_here and not bounded:
            readers.give_back(reader)
        else:
            reader.close()
        # Beam's local runner confirms a bounded read before later steps, which may fail, have run
        if self._group and not bounded and read_to < UNBOUNDED:
            durable = commits.bundle_ended(
                self._group, element.topic, element.partition, offsets.start, read_to
            )
            if durable:
                finalizer.register(durable)

    def _poll(self, element: Partition, reader: PartitionReader, stop: int) -> pa.RecordBatch:
        place = {"topic": element.topic, "partition": element.partition}
        try:
            return reader.poll(min(self._batch_size, stop - reader.position))
        except OffsetsLost as error:
            if self._fails_if_lost:
                raise
            earliest = min(error.earliest, stop)
            _LOG.warning("%s. The read goes on at offset %d", error, earliest, extra=place)
            self._lost.inc(earliest - reader.position)
            reader.skip_to(earliest)
        except PartitionGone as error:
            if self._fails_if_lost or not reader.is_gone():
                raise
            _LOG.warning("%s. The read of this partition ends", error, extra=place)
            self._lost.inc(reader.lag() or 0)
            reader.position = stop
        return _NONE

    def _count(self, element: Partition, batch: pa.RecordBatch) -> int:
        """Tells the metrics of messages that were read; returns the bytes of their values."""
        size: int = pc.sum(pc.binary_length(batch["value"]), min_count=0).as_py()
        self._messages.inc(batch.num_rows)
        self._bytes.inc(size)
        metrics_of(element.topic, element.partition).read(batch.num_rows, size)
        return size

    def _put_out(
        self,
        element: Partition,
        batch: pa.RecordBatch,
        reader: PartitionReader,
        watermark: Any,
        now: Timestamp,
    ) -> Iterator[Any]:
        metrics = metrics_of(element.topic, element.partition)
        rows, times = batch, batch["timestamp"]
        if self._decoder:
            batch = self._without_copies(element, batch)
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
                if self._decoder:
                    at = watermark.current_watermark()
                    rows = with_watermarks(rows, watermarks(times, at, self._disorder))
                yield TimestampedValue(rows, _timestamp(pc.min(times)))
                newest = _timestamp(pc.max(times))
                watermark.advance(newest - self._behind)
                metrics.seen(newest, now)

    def _without_copies(self, element: Partition, batch: pa.RecordBatch) -> pa.RecordBatch:
        _, _, start, _, end, _ = element
        copies = of_what_is_read(batch, start, end)
        if not copies:
            return batch
        self._copies.inc(len(copies))
        return batch.take(np.delete(np.arange(batch.num_rows), copies))


class ReadBounded(Read):
    def process(
        self,
        element: Partition,
        finalizer: Any = _FINALIZER,
        tracker: Any = _TRACKER,
        watermark: Any = _WATERMARK,
    ) -> Iterator[Any]:
        yield from self.read_bundle(element, tracker, watermark, finalizer)


class ReadUnbounded(Read):
    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Partition,
        found_at: Any = beam.DoFn.TimestampParam,
        finalizer: Any = _FINALIZER,
        tracker: Any = _TRACKER,
        watermark: Any = _WATERMARK,
    ) -> Iterator[Any]:
        watermark.advance(found_at)
        yield from self.read_bundle(element, tracker, watermark, finalizer)


def _before(messages: pa.RecordBatch, stop: int) -> pa.RecordBatch:
    offsets = messages["offset"]
    if not len(offsets) or offsets[-1].as_py() < stop:
        return messages
    return messages[: int(np.searchsorted(offsets.to_numpy(), stop))]


def _timestamp(time: pa.Scalar) -> Timestamp:
    return Timestamp(micros=time.value * 1000)
