"""Dead letters as they are kept, to be looked at and replayed: in Parquet files or a Kafka topic.

A letter that was replayed bears a mark, so that none is replayed twice unknowingly. Marks go by the
letter's id; in Kafka they are records of the letters' own topic, in Parquet files beside theirs.
"""

import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

from apache_beam.io.filesystems import FileSystems
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from velocity.io.copies import MASKED, Origin, is_number, origin_of
from velocity.io.dead_letters import checked_job, read_dead_letters
from velocity.io.dead_letters_kafka import ENVELOPE, OURS
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import open_consumer
from velocity.io.records import Cause, Stage

_MARK: Final = f"{ENVELOPE}replayed"
_WITHIN: Final = 30.0
"""Seconds for a broker to answer."""


class LettersUnreadable(Exception):
    """Dead letters can't be read; the message names where they are, and the remedy."""


class NotSent(Exception):
    """A transaction of replayed letters was given up: nothing of it was sent, and none is marked."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: what failed, where and why. Its ``topic`` is an index if the sink refused it."""

    job: str
    stage: str
    cause: str
    error: str
    failed_at: datetime
    attempt: int
    topic: str
    partition: int | None
    offset: int | None
    timestamp: datetime | None
    """The broker's, of the message."""
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    whole: bool = True
    """Whether key and value are all of the original; else that is only in its topic: the value was
    cut for its size, or sensitive fields were taken out."""
    replayed: bool = False

    @property
    def id(self) -> str:
        """``topic/partition/offset#attempt``; of a document its index, id and attempt."""
        if self.partition is None or self.offset is None:
            return f"{self.topic}/{(self.key or b'').decode(errors='replace')}#{self.attempt}"
        return f"{self.topic}/{self.partition}/{self.offset}#{self.attempt}"

    @property
    def origin(self) -> Origin | None:
        """Where the message was when it came first; None for a document."""
        if self.partition is None or self.offset is None:
            return None
        return origin_of(self.headers) or Origin(self.topic, self.partition, self.offset)


class Found(NamedTuple):
    """All letters of a job, in the order of their failures, and what was no letter or is unclear."""

    letters: Sequence[Letter]
    problems: Sequence[str]


class Letters(Protocol):
    """Where a job's dead letters are kept."""

    def read(self) -> Found:
        """What is there now. Raises ``LettersUnreadable``."""

    def marking(self, ids: Collection[str], producer: Producer) -> AbstractContextManager[None]:
        """Marks letters as replayed, if what is inside commits the producer's open transaction.

        What is inside raises ``NotSent`` if it gave that up.
        """


def collected(found: Iterable[Letter], replayed: Collection[str]) -> list[Letter]:
    """Letters, each once: a bundle that ran again has left its own twice, and the last one counts.

    ``replayed`` are the ids of those to mark.
    """
    letters: dict[Any, Letter] = {}
    for letter in found:
        # Of a document each rejection counts: it may have been another version.
        once = letter.id if letter.origin else (letter.id, letter.failed_at, letter.value)
        letters[once] = replace(letter, replayed=letter.id in replayed)
    return sorted(letters.values(), key=lambda letter: letter.failed_at)


# -- Parquet --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParquetLetters:
    """Those that ``WriteDeadLettersToParquet`` wrote, at the same ``path``.

    Ids of replayed ones are in ``<path>/job=<job>/_replays/``, which readers of the letters skip. A
    file ``.intent`` is there before a transaction is open; it becomes ``.done`` when that is
    committed, and goes if it was given up. One that stays tells of a crash in between.
    """

    path: str
    job: str

    def read(self) -> Found:
        rows = read_dead_letters(self.path).to_pylist()
        letters = (_from_row(row) for row in rows if row["job"] == self.job)
        done = [self._ids(name) for name in self._marks("done")]
        intents = {name: self._ids(name) for name in self._marks("intent")}
        problems = [
            f"{name}: a replay of {len(ids)} dead letters was cut off, and may have sent them: look "
            f"in their topics for messages with the header velocity-origin; rename the file to "
            ".done if they are there, remove it if not"
            for name, ids in intents.items()
        ]
        replayed = {id_ for ids in (*done, *intents.values()) for id_ in ids}
        return Found(collected(letters, replayed), problems)

    @contextmanager
    def marking(self, ids: Collection[str], producer: Producer) -> Iterator[None]:
        name = FileSystems.join(self._folder, uuid.uuid4().hex)
        intent = f"{name}.intent"
        with FileSystems.create(f"{name}.tmp") as file:
            file.write(json.dumps(sorted(ids)).encode())
        FileSystems.rename([f"{name}.tmp"], [intent])
        try:
            yield
        except NotSent:
            FileSystems.delete([intent])
            raise
        FileSystems.rename([intent], [f"{name}.done"])

    @property
    def _folder(self) -> str:
        return str(FileSystems.join(self.path, f"job={checked_job(self.job)}", "_replays"))

    def _marks(self, kind: str) -> list[str]:
        (found,) = FileSystems.match([FileSystems.join(self._folder, f"*.{kind}")])
        return sorted(metadata.path for metadata in found.metadata_list)

    def _ids(self, name: str) -> list[str]:
        with FileSystems.open(name) as file:
            try:
                ids: list[str] = json.loads(file.read())
            except ValueError:
                raise LettersUnreadable(
                    f"{name} does not say which dead letters were replayed; restore or remove it"
                ) from None
        return ids


def _from_row(row: Mapping[str, Any]) -> Letter:
    headers = tuple((header["name"], header["value"]) for header in row["headers"] or ())
    return Letter(**{**row, "headers": headers, "whole": not _masked(headers)})


def _masked(headers: Iterable[tuple[str, bytes | None]]) -> bool:
    return any(name == MASKED for name, _ in headers)


# -- Kafka ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KafkaLetters:
    """Those that ``WriteDeadLettersToKafka`` wrote, in the same ``topic``.

    A mark is a record with the header ``velocity.replayed``, which is the letter's id; the
    transaction that sends the letter's message holds it too.
    """

    topic: str
    config: KafkaConfig
    job: str
    answer_within: float = _WITHIN

    def read(self) -> Found:
        letters: list[Letter] = []
        problems: list[str] = []
        replayed: set[str] = set()
        try:
            for message in _all_of(self.config, self.topic, self.answer_within):
                headers = {name: value or b"" for name, value in message.headers() or ()}
                if _MARK in headers:
                    replayed.add(headers[_MARK].decode(errors="replace"))
                    continue
                try:
                    letter = letter_of(message.key(), message.value(), message.headers() or ())
                except ValueError as error:
                    where = f"topic {self.topic} partition {message.partition()}"
                    problems.append(f"{where} offset {message.offset()}: no dead letter: {error}")
                    continue
                if letter.job == self.job:
                    letters.append(letter)
        except _NoTopic:
            # Brokers make it with the first letter: before that there is nothing wrong.
            problems.append(f"there is no topic {self.topic}: no dead letter has been written")
        return Found(collected(letters, replayed), problems)

    @contextmanager
    def marking(self, ids: Collection[str], producer: Producer) -> Iterator[None]:
        for id_ in ids:
            headers: Any = [(f"{ENVELOPE}job", self.job.encode()), (_MARK, id_.encode())]
            producer.produce(self.topic, key=id_, value=b"", headers=headers)
        yield


def letter_of(
    key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
) -> Letter:
    """The letter that a record of Kafka is, by the headers ``kafka_records`` gave it.

    Raises ``ValueError`` that names the header which is missing or wrong.

    >>> letter_of(None, b"{", [("velocity.job", b"orders")])
    Traceback (most recent call last):
    ValueError: header velocity.stage is missing
    """
    envelope = {
        name: (given or b"").decode(errors="replace")
        for name, given in headers
        if name.startswith(ENVELOPE)
    }

    def text(name: str) -> str:
        try:
            return envelope[ENVELOPE + name]
        except KeyError:
            raise ValueError(f"header {ENVELOPE}{name} is missing") from None

    def read(name: str, convert: Any) -> Any:
        try:
            return convert(text(name))
        except ValueError as error:
            if ENVELOPE + name not in envelope:
                raise
            raise ValueError(f"header {ENVELOPE}{name} is wrong: {text(name)[:80]!r}") from error

    def optional(name: str, convert: Any) -> Any:
        return read(name, convert) if ENVELOPE + name in envelope else None

    return Letter(
        job=text("job"),
        stage=str(read("stage", Stage)),
        cause=str(read("cause", Cause)),
        error=text("error"),
        failed_at=read("failed_at", _time),
        attempt=read("attempt", _positive),
        topic=text("topic"),
        partition=optional("partition", _natural),
        offset=optional("offset", _natural),
        timestamp=optional("timestamp", _time),
        key=key,
        value=value,
        headers=tuple(h for h in headers if h[0] not in OURS),
        whole=optional("value_bytes", _natural) is None and not _masked(headers),
    )


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text} has no offset")
    return time


def _natural(text: str) -> int:
    if not is_number(text):
        raise ValueError(f"{text} is no whole number")
    return int(text)


def _positive(text: str) -> int:
    if not _natural(text):
        raise ValueError(f"{text} is no attempt")
    return int(text)


class _NoTopic(Exception):
    """The brokers answer, and don't have it."""


def _all_of(config: KafkaConfig, topic: str, answer_within: float) -> Iterator[Any]:
    """The messages of a topic, to its end as it is when it is reached. Raises ``_NoTopic``."""
    with closing(open_consumer(config)) as consumer:
        try:
            metadata = consumer.list_topics(topic, timeout=answer_within).topics[topic]
            if metadata.error is not None:
                if metadata.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise _NoTopic
                raise KafkaException(metadata.error)
            at = [TopicPartition(topic, number) for number in metadata.partitions]
            for partition in at:
                low, _ = consumer.get_watermark_offsets(partition, timeout=answer_within)
                partition.offset = low
            consumer.assign(at)
            ended: set[int | None] = set()
            while len(ended) < len(at):
                message = consumer.poll(answer_within)
                if message is None:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                if (error := message.error()) is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
                else:
                    raise KafkaException(error)
        except KafkaException as error:
            raise LettersUnreadable(
                f"cannot read topic {topic} at {config.bootstrap_servers}: {error.args[0].str()}; "
                "check that the brokers are up, and that the topic exists and may be read"
            ) from None


def fetch(config: KafkaConfig, where: Origin) -> Any | None:
    """The message at an offset of its topic; None if the broker no longer has it."""
    at = TopicPartition(where.topic, where.partition, where.offset)
    with closing(open_consumer(config)) as consumer:
        try:
            low, high = consumer.get_watermark_offsets(at, timeout=_WITHIN)
            if not low <= where.offset < high:
                return None
            consumer.assign([at])
            message = consumer.poll(_WITHIN)
            if message is None or (error := message.error()) is not None:
                raise KafkaException(error if message else KafkaError(KafkaError._TIMED_OUT))
        except KafkaException as error:
            raise LettersUnreadable(
                f"cannot read the original at {where}: {error.args[0].str()}; check that the brokers "
                "are up, and that the topic may be read"
            ) from None
        return message if message.offset() == where.offset else None
