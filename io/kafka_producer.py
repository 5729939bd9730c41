"""Producers of a process, and a bundle's outbox: what was sent is delivered, or the bundle fails."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from confluent_kafka import KafkaError, KafkaException, Producer

from velocity.io.kafka_config import KafkaConfig

_SETTINGS: Final = {
    # The smallest on the wire and on disk; librdkafka compresses in threads outside Python's lock.
    "compression.type": "zstd",
    # As of Java's clients: a key has one partition, whoever writes it.
    "partitioner": "murmur2_random",
    # Just under a broker's socket.request.max.bytes: it, not the client, judges the size.
    "message.max.bytes": 100_000_000,
    # What waits for the broker, in all; it must hold one message of the greatest size.
    "queue.buffering.max.kbytes": 131_072,
}
_REFUSALS: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
    }
)
"""Errors of a message itself, which no retry would help."""
_POLL: Final = 0.1
_BY_KEY: Final = -1
"""In place of a partition's number, to librdkafka: its partitioner decides."""


class MessagesUndelivered(RuntimeError):
    """The broker did not take messages, so their bundle failed and its runner tries again."""

    def __init__(self, error: str, topic: str, count: int) -> None:
        # The error comes first because Beam adds the step's name to the first argument.
        super().__init__(error, topic, count)
        self.error, self.topic, self.count = error, topic, count

    def __str__(self) -> str:
        return (
            f"{self.count} messages did not reach topic {self.topic}: {self.error}; check that "
            "the brokers are up, the topic exists with the partition and may be written, and for a size that its "
            "max.message.bytes (on the broker, message.max.bytes) admits it"
        )


@dataclass(frozen=True, slots=True)
class Record:
    """A message to be written; ``timestamp`` is epoch milliseconds, None the time of writing.

    Without a ``partition`` the key decides on it.
    """

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int | None = None
    topic: str = ""
    partition: int | None = None


class Refusal(NamedTuple):
    """A message that the broker will never take."""

    record: Record
    error: str
    too_large: bool


class Settled(NamedTuple):
    """What became of a bundle's messages; ``bytes`` are those of the values delivered."""

    messages: int
    bytes: int
    refused: list[Refusal]


def producing(config: KafkaConfig, deadline: timedelta) -> KafkaConfig:
    """The configuration of an idempotent producer that gives a message up after ``deadline``.

    Raises ``ValueError`` for options that could lose messages, and for a deadline of nothing.

    >>> config = producing(KafkaConfig("b:1", {"compression.type": "lz4"}), timedelta(seconds=5))
    >>> config.options["compression.type"], config.options["delivery.timeout.ms"]
    ('lz4', 5000)
    """
    options = config.options
    if str(options.get("enable.idempotence", True)).lower() != "true" or any(
        str(options.get(name, "all")) not in ("all", "-1")
        for name in ("acks", "request.required.acks")
    ):
        raise ValueError("config weakens enable.idempotence or acks: leave both out")
    if "transactional.id" in options:
        raise ValueError("config has transactional.id: leave it out, no transactions are written")
    if deadline <= timedelta():
        raise ValueError(f"deadline is {deadline}: give more than zero")
    timeout = {"delivery.timeout.ms": int(deadline.total_seconds() * 1000)}
    if options.keys() & {"delivery.timeout.ms", "message.timeout.ms"}:
        timeout = {}
    settings = {**_SETTINGS, **timeout, **options, "enable.idempotence": True}
    return KafkaConfig(config.bootstrap_servers, settings)


class _Producer(Producer):
    """One that can be referred to weakly."""


def open_producer(config: KafkaConfig) -> Producer:
    """A producer. Raises ``ValueError`` if librdkafka refuses an option."""
    try:
        return _Producer(config.client())
    except KafkaException as error:
        raise ValueError(config.refusal(error)) from None


class Producers:
    """The producers of a process, one for each config, open for as long as anyone holds them."""

    def __init__(self, open: Callable[[KafkaConfig], Any] = open_producer) -> None:
        self._open = open
        self._held: WeakValueDictionary[KafkaConfig, Any] = WeakValueDictionary()
        self._lock = threading.Lock()

    def take(self, config: KafkaConfig) -> Any:
        """The producer for ``config``, to be held until it is of no more use."""
        with self._lock:
            producer = self._held.get(config)
            if producer is None:
                self._held[config] = producer = self._open(config)
            return producer

    def drop(self, config: KafkaConfig, producer: Any) -> None:
        """Lets the next one who asks have another; those who hold this one may go on with it."""
        with self._lock:
            if self._held.get(config) is producer:
                del self._held[config]


PRODUCERS: Final = Producers()
"""Those of this process."""


@dataclass
class _Deliveries:
    """The broker's reports on one bundle. They come in whichever thread polls the producer, which
    this must not refer to: its queue holds the reports, and would keep it alive."""

    pending: int = 0
    messages: int = 0
    bytes: int = 0
    refused: list[Refusal] = field(default_factory=list)
    failed: list[tuple[KafkaError, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self) -> None:
        with self.lock:
            self.pending += 1

    def report(self, record: Record, error: KafkaError | None, _message: Any = None) -> None:
        with self.lock:
            self.pending -= 1
            if error is None:
                self.messages += 1
                self.bytes += len(record.value or b"")
            elif error.code() in _REFUSALS:
                too_large = error.code() == KafkaError.MSG_SIZE_TOO_LARGE
                self.refused.append(Refusal(record, error.str(), too_large))
            else:
                self.failed.append((error, record.topic))

    def take_refused(self) -> list[Refusal]:
        with self.lock:
            taken, self.refused = self.refused, []
            return taken


class Outbox:
    """One bundle's messages on their way. What fails drops the producer, so that the bundle's
    next try has another: an idempotent one may be of no more use after an error.

    ``config`` is one of ``producing``; ``deadline`` bounds each wait for room in the producer's
    queue, and the wait for the last delivery. Raises ``MessagesUndelivered``.
    """

    def __init__(
        self,
        config: KafkaConfig,
        deadline: timedelta,
        producers: Producers = PRODUCERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._deadline = config, deadline
        self._producers, self._clock = producers, clock
        self._producer = producers.take(config)
        self._deliveries = _Deliveries()
        self._topic = ""

    def send(self, record: Record) -> None:
        """Hands a record to the producer; waits while its queue is full."""
        self._check()
        self._deliveries.expect()
        self._topic = record.topic
        patience = self._patience()
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    partition=_BY_KEY if record.partition is None else record.partition,
                    key=record.key,
                    value=record.value,
                    headers=list(record.headers),
                    timestamp=record.timestamp or 0,  # to librdkafka 0 is now
                    on_delivery=partial(self._deliveries.report, record),
                )
            except BufferError as full:
                if self._clock() > patience:
                    raise self._undelivered(str(full), self._topic) from full
                self._producer.poll(_POLL)
            except KafkaException as error:
                self._deliveries.report(record, error.args[0])
                self._check()
                return
            else:
                self._producer.poll(0)
                return

    def settle(self) -> Settled:
        """Waits until all is delivered or refused.

        The broker refuses batches whole, so each refused message is sent once more by itself.
        """
        patience = self._patience()
        self._wait(patience)
        refused: list[Refusal] = []
        for refusal in self._deliveries.take_refused():
            self.send(refusal.record)
            self._wait(patience)
            refused += self._deliveries.take_refused()
        return Settled(self._deliveries.messages, self._deliveries.bytes, refused)

    def _patience(self) -> float:
        # librdkafka looks for timed-out messages once a second, and its report says more than ours.
        return self._clock() + self._deadline.total_seconds() + 5

    def _wait(self, patience: float) -> None:
        # Not for the whole queue, which is shared: other bundles may fill it without end.
        while self._deliveries.pending and not self._deliveries.failed:
            if self._clock() > patience:
                raise self._undelivered(f"not delivered in {self._deadline}", self._topic)
            self._producer.flush(_POLL)
        self._check()

    def _check(self) -> None:
        if self._deliveries.failed:
            error, topic = self._deliveries.failed[0]
            raise self._undelivered(error.str(), topic)

    def _undelivered(self, error: str, topic: str) -> MessagesUndelivered:
        self._producers.drop(self._config, self._producer)
        count = self._deliveries.pending + len(self._deliveries.failed)
        return MessagesUndelivered(error, topic, count)
