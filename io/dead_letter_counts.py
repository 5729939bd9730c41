"""How many dead letters there are by cause, followed as they come: what was counted is not read again."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from velocity.io.dead_letters_kafka import ENVELOPE
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import open_consumer
from velocity.io.totals import StoreDown

MOST: Final = 100_000
"""Records of a partition that are looked back at, at first."""
_WITHIN: Final = 10.0
"""Seconds for a broker to answer."""
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
    first, then what comes. Records that are no dead letters are left out."""

    def __init__(self, config: KafkaConfig, topic: str, most: int = MOST) -> None:
        self._config, self._topic, self._most = config, topic, most
        self._consumer: Consumer | None = None
        self._counts: Counter[Failed] = Counter()

    def counts(self) -> Counts:
        try:
            if self._consumer is None:
                self._begin()
            assert self._consumer is not None
            while messages := self._consumer.consume(_AT_ONCE, timeout=0.05):
                for message in messages:
                    error = message.error()
                    if error is None:
                        self._counts.update(_of_headers(list(message.headers() or ())))
                    elif error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
        except KafkaException as error:
            self.close()
            raise StoreDown(
                f"dead letters in topic {self._topic} at {self._config.bootstrap_servers} can't be "
                f"read: {error.args[0].str()}"
            ) from error
        return Counter(self._counts)

    def _begin(self) -> None:
        self._counts = Counter()
        self._consumer = open_consumer(self._config)
        metadata = self._consumer.list_topics(self._topic, timeout=_WITHIN).topics[self._topic]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        at = [TopicPartition(self._topic, number) for number in metadata.partitions]
        for partition in at:
            low, high = self._consumer.get_watermark_offsets(partition, timeout=_WITHIN)
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
