"""How many dead letters there are by cause, followed as they come: what was counted is not read again."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from velocity.io.dead_letters_kafka import ENVELOPE
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import KafkaReadError, open_consumer
from velocity.io.totals import StoreDown

MOST: Final = 100_000
"""Records of a partition that are looked back at, at first."""
_WITHIN: Final = 5.0
_AGAIN: Final = 30.0
_AT_ONCE: Final = 5_000


class Failed(NamedTuple):
    """What some dead letters have in common."""

    job: str
    cause: str
    minute: int
    """In which they failed, in epoch milliseconds."""


Counts = Mapping[Failed, int]


class LetterCounts(Protocol):
    """Dead letters, counted."""

    def counts(self) -> Counts:
        """All so far. Raises ``StoreDown``, after which it may be asked again."""

    def close(self) -> None:
        """Ends what is held open."""


def _minute(time: datetime) -> int:
    return int(time.timestamp()) // 60 * 60_000


class ParquetCounts:
    """Of the files that ``WriteDeadLettersToParquet`` writes below ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: dict[str, Counter[Failed]] = {}

    def counts(self) -> Counts:
        try:
            (found,) = FileSystems.match([FileSystems.join(self._path, "job=*", "*.parquet")])
            names = {metadata.path for metadata in found.metadata_list}
            for name in names - self._files.keys():  # a file is whole when it appears, and stays so
                self._files[name] = _of_file(name)
        except Exception as error:  # each file system has its own
            raise StoreDown(f"dead letters at {self._path} can't be read: {error}") from error
        self._files = {name: self._files[name] for name in names}
        return sum(self._files.values(), Counter())

    def close(self) -> None:
        """Nothing is held open."""


def _of_file(name: str) -> Counter[Failed]:
    with FileSystems.open(name) as file:
        table = pq.ParquetFile(file).read(columns=["cause", "failed_at"])
    job = table.schema.metadata[b"velocity.job"].decode()
    rows = zip(table["cause"].to_pylist(), table["failed_at"].to_pylist(), strict=True)
    return Counter(Failed(job, cause, _minute(time)) for cause, time in rows)


class KafkaCounts:
    """Of the topic that ``WriteDeadLettersToKafka`` writes: its last ``MOST`` records a partition at
    first, then what comes. Records that are no dead letters are left out.

    A broker that is gone leaves its consumer silent, as a topic without news does: the broker is
    asked for the topic's end each time. If it does not answer it is left alone for ``_AGAIN``
    seconds of ``clock``, for who waits for an answer is kept waiting.
    """

    def __init__(
        self,
        config: KafkaConfig,
        topic: str,
        most: int = MOST,
        *,
        within: float = _WITHIN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``within``: seconds for a broker to answer."""
        self._config, self._topic, self._most = config, topic, most
        self._within, self._clock = within, clock
        self._consumer: Consumer | None = None
        self._counts: Counter[Failed] = Counter()
        self._down = ""
        self._again = float("-inf")

    def counts(self) -> Counts:
        if self._clock() < self._again:
            raise StoreDown(self._down)
        try:
            if self._consumer is None:
                self._begin()
            assert self._consumer is not None
            self._consumer.get_watermark_offsets(
                TopicPartition(self._topic, 0), timeout=self._within
            )
            while messages := self._consumer.consume(_AT_ONCE, timeout=0.05):
                for message in messages:
                    error = message.error()
                    if error is None:
                        self._counts.update(_of_headers(list(message.headers() or ())))
                    elif error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
        except (KafkaException, KafkaReadError) as error:
            self.close()
            self._again = self._clock() + _AGAIN
            self._down = (
                f"dead letters in topic {self._topic} at {self._config.bootstrap_servers} can't be "
                f"read: {error.args[0].str() if isinstance(error, KafkaException) else error}"
            )
            raise StoreDown(self._down) from error
        return Counter(self._counts)

    def _begin(self) -> None:
        self._counts = Counter()
        self._consumer = open_consumer(self._config)
        metadata = self._consumer.list_topics(self._topic, timeout=self._within).topics[self._topic]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        at = [TopicPartition(self._topic, number) for number in metadata.partitions]
        for partition in at:
            low, high = self._consumer.get_watermark_offsets(partition, timeout=self._within)
            partition.offset = max(low, high - self._most)
        self._consumer.assign(at)

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = None


def _of_headers(headers: Iterable[Any]) -> list[Failed]:
    """The letter that a record is, by its headers; none if it is something else.

    >>> _of_headers([("velocity.job", b"j"), ("velocity.cause", b"late"),
    ...     ("velocity.failed_at", b"2026-01-05T00:03:07.000Z")])
    [Failed(job='j', cause='late', minute=1767571380000)]
    """
    told = {name: value or b"" for name, value in headers if name.startswith(ENVELOPE)}
    try:
        job, cause, time = (
            told[f"{ENVELOPE}{name}"].decode() for name in ("job", "cause", "failed_at")
        )
        return [Failed(job, cause, _minute(datetime.fromisoformat(time)))]
    except (KeyError, ValueError):
        return []
