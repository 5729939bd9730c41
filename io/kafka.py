"""Reading Kafka in Python alone: a splittable DoFn on confluent-kafka, one batch an element.

No JVM and no container stands beside the runner, and the read fuses with the Python steps after
it. Splittable DoFns and their watermarks: https://beam.apache.org/documentation/programming-guide/
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import apache_beam as beam
import pyarrow as pa

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import Offsets
from velocity.io.kafka_partitions import PIECE, ListPartitions, Wanted, WatchPartitions
from velocity.io.kafka_read import ReadBounded, ReadUnbounded
from velocity.io.kafka_topics import is_pattern, matching
from velocity.io.records import Decoder, WithDeadLetters

_MOST: Final = 1_000_000
"""Messages that a consumer gives at once."""


@dataclass(eq=False, repr=False)
class ReadFromKafka(beam.PTransform):
    """Reads topics as batches of messages, or of typed rows where a ``decoder`` is given.

    Without a decoder the output is a PCollection of ``MESSAGES`` batches, and the watermark comes
    from the broker's timestamps. With one it is ``WithDeadLetters`` of decoded rows, and the
    watermark comes from their event time: only a source can set a watermark, so a source that is
    to follow the payload must decode it.

    Each batch bears the earliest of its times. A partition's watermark is the greatest time seen
    less ``disorder``, and never goes back; decoded rows bear where it stood when they came, so that
    later steps can tell which are late. A partition that has had no row for ``idle_after``, and
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
    matches. A read without end looks for partitions that are new every ``discover_every``, and reads
    them from their earliest offset. What happens in a partition is taken to happen after it was
    made: older events may be late.

    A bundle ends after ``bundle_size`` messages or ``bundle_bytes`` of values (give or take a batch),
    after ``bundle_time``, or when there is nothing to read. Counters: ``read_messages``,
    ``read_bytes``, ``decoded_rows``; and a gauge ``lag_<topic>_<partition>``: how many offsets are not
    read yet, at a bundle's end.
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
    batch_size: int = 20_000
    bundle_time: timedelta = timedelta(seconds=2)
    bundle_size: int = 500_000  # Flink pauses between two bundles: long ones are fast
    bundle_bytes: int = 128 * 2**20
    group: str | None = None
    discover_every: timedelta = timedelta(seconds=10)
    on_lost_offsets: Literal["fail", "earliest"] = "fail"

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
        for name, time in (
            ("idle_after", self.idle_after),
            ("bundle_time", self.bundle_time),
            ("discover_every", self.discover_every),
        ):
            if time <= timedelta():
                raise ValueError(f"{name} must be more than 0, not {time}")
        if self.on_lost_offsets not in ("fail", "earliest"):
            raise ValueError(
                f'on_lost_offsets must be "fail" or "earliest", not {self.on_lost_offsets!r}'
            )
        if not 1 <= self.batch_size <= _MOST:
            raise ValueError(f"batch_size must be 1 to {_MOST}, not {self.batch_size}")
        for name, most in (("bundle_size", self.bundle_size), ("bundle_bytes", self.bundle_bytes)):
            if most < 1:
                raise ValueError(f"{name} must be 1 or more, not {most}")

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
        read = ReadBounded(self) if self.stop is not None else ReadUnbounded(self)
        outputs = (
            pbegin
            | "Start" >> beam.Create([None], reshuffle=False)
            | "List partitions" >> self._list_partitions()
            | "Spread partitions" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(read)
            .with_output_types(pa.RecordBatch, dead_letters=pa.RecordBatch)
            .with_outputs("dead_letters", main="rows")
        )
        return WithDeadLetters(*outputs) if self.decoder else outputs.rows

    def _list_partitions(self) -> Any:
        skips = self.on_lost_offsets == "earliest"
        wanted = Wanted(self.config, self.topics, self.start, self.stop, self.group, skips)
        if self.stop is not None:
            return beam.ParDo(ListPartitions(wanted, None if self.decoder else PIECE))
        every, disorder = self.discover_every.total_seconds(), self.disorder.total_seconds()
        return beam.ParDo(WatchPartitions(wanted.list_new, every, disorder))
