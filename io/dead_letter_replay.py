"""Dead letters back to their topics: each message as it was, in a transaction with its mark.

Who reads committed messages (librdkafka's usual) sees a letter's copy if, and only if, the letter is
marked; with marks in Parquet files a crash in between is told, by ``ParquetLetters``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaException, Producer

from velocity.io.copies import Origin, copy_headers
from velocity.io.dead_letter_store import Letter, Letters, NotSent, fetch
from velocity.io.kafka_config import KafkaConfig
from velocity.io.records import Cause

PER_TRANSACTION: Final = 500
"""Letters, at most."""
_WITHIN: Final = 60.0
"""Seconds for the brokers to take a transaction."""


class Replayed(NamedTuple):
    """What became of the letters that were to be replayed."""

    sent: int
    documents: int
    """Those of stage sink: rejected documents, which no topic has."""
    gone: Sequence[str]
    """Ids of those of which not all was kept, and whose original its topic no longer has."""
    late: int
    """Those that came too late: they would again, and count twice where they were in time."""


class ReplayFailed(Exception):
    """The brokers refuse a replay; the message says why, and the remedy."""


@contextmanager
def replaying(config: KafkaConfig, job: str) -> Iterator[Producer]:
    """A producer for a job's replays, of which only one is at work: a new one ends the other.

    What is read of the letters while it is open has the marks of all replays before. Raises
    ``ReplayFailed`` if there can be no transactions.
    """
    producer = Producer(
        config.client(
            transactional_id=f"velocity-replay-{job}",
            transaction_timeout_ms=round(_WITHIN * 1000),
            message_max_bytes=100_000_000,
        )
    )
    try:
        producer.init_transactions(_WITHIN)
    except KafkaException as error:
        raise ReplayFailed(
            f"no transaction can be opened at {config.bootstrap_servers}: {error.args[0].str()}; "
            f"check that the brokers are up, and that transactional id velocity-replay-{job} "
            "may be used"
        ) from None
    yield producer


def replay(
    producer: Producer,
    letters: Sequence[Letter],
    store: Letters,
    config: KafkaConfig,
    *,
    progress: Callable[[int], None] = lambda done: None,
    stopped: Callable[[], bool] = lambda: False,
    per_transaction: int = PER_TRANSACTION,
) -> Replayed:
    """Sends the messages of letters to their topics and partitions again, and marks the letters.

    A copy has the original's key, value, headers and timestamp, and the headers of
    ``velocity.io.copies``. ``progress`` is told how many letters are done; ``stopped`` is asked
    after each transaction. Raises ``NotSent`` for a transaction that was given up; those before it
    stand.
    """
    sent, documents, late, gone = 0, 0, 0, list[str]()
    for begin in range(0, len(letters), per_transaction):
        if stopped():
            break
        some = letters[begin : begin + per_transaction]
        copies = []
        for letter in some:
            if letter.origin is None:
                documents += 1
            elif letter.cause == Cause.LATE:
                late += 1
            elif (copy := _copy(letter, letter.origin, config)) is None:
                gone.append(letter.id)
            else:
                copies.append((letter.id, copy))
        if copies:
            _send(producer, dict(copies), store)
        sent += len(copies)
        progress(begin + len(some))
    return Replayed(sent, documents, gone, late)


def _copy(letter: Letter, origin: Origin, config: KafkaConfig) -> dict[str, Any] | None:
    """What ``Producer.produce`` takes; None if the original is gone."""
    assert letter.partition is not None
    assert letter.offset is not None
    key, value, headers = letter.key, letter.value, letter.headers
    if not letter.whole:
        original = fetch(config, Origin(letter.topic, letter.partition, letter.offset))
        if original is None:
            return None
        key, value, headers = original.key(), original.value(), tuple(original.headers() or ())
    copy = {
        "topic": letter.topic,
        "partition": letter.partition,
        "key": key,
        "value": value,
        "headers": copy_headers(headers, origin, letter.attempt + 1),
    }
    if letter.timestamp is not None:
        copy["timestamp"] = round(letter.timestamp.timestamp() * 1000)
    return copy


def _send(producer: Producer, copies: dict[str, dict[str, Any]], store: Letters) -> None:
    """One transaction."""
    producer.begin_transaction()
    with store.marking(copies.keys(), producer):
        try:
            for copy in copies.values():
                _produce(producer, copy)
            producer.commit_transaction(_WITHIN)
        except KafkaException as error:
            if error.args[0].retriable():  # it did not answer in time, and may yet commit
                raise ReplayFailed(
                    f"whether {len(copies)} dead letters were replayed is not known: "
                    f"{error.args[0].str()}; once the brokers are up list the letters again"
                ) from error
            _give_up(producer, error)
            raise NotSent(
                f"{len(copies)} dead letters were not replayed: {error.args[0].str()}; check that "
                "their topics and partitions exist and may be written, and that no other replay of "
                "this job is at work"
            ) from error


def _produce(producer: Producer, copy: dict[str, Any]) -> None:
    try:
        producer.produce(**copy)
    except BufferError:  # so many large ones: the queue is emptied before the next
        producer.flush(_WITHIN)
        producer.produce(**copy)


def _give_up(producer: Producer, error: KafkaException) -> None:
    if not error.args[0].fatal():  # after a fatal one the brokers have given it up themselves
        producer.abort_transaction(_WITHIN)
