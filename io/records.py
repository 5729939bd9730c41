"""What crosses Velocity's borders: messages in, documents and dead letters out.

Between the borders the element is a ``pyarrow.RecordBatch``; importing this module registers its
coder with Beam.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import Coder, registry

from velocity.io.copies import attempts
from velocity.io.metrics import counter

TIMESTAMP: Final = pa.timestamp("ms", tz="UTC")
FIRST_MILLI: Final = -62_135_596_800_000
"""The first millisecond of the year 1: earlier ones have no RFC 3339 text."""
LAST_MILLI: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""
"""Every time in Velocity: milliseconds, the finest that all runners keep."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MESSAGE: Final = "_message"
"""The column that carries each row's message of origin through the graph."""

MESSAGES: Final = pa.schema(
    [
        pa.field("topic", pa.string(), nullable=False),
        pa.field("partition", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("timestamp", TIMESTAMP),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field(
            "headers",
            pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("value", pa.binary())])),
        ),
    ]
)
"""Messages as a broker holds them. ``timestamp`` is the broker's, null where it gave none;
``value`` is null for a tombstone. Of a rejected document ``topic`` is its index, ``key`` its id
and ``value`` its JSON; it has no partition and no offset."""

ORIGIN: Final = pa.struct([*MESSAGES, pa.field("watermark", TIMESTAMP)])
"""What the column ``MESSAGE`` holds: a message, and where the watermark of its partition stood when
it came. Null: there was none yet, or what put the row out has none, and the row is late nowhere."""

DEAD_LETTERS: Final = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("cause", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("failed_at", TIMESTAMP, nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        *MESSAGES,
    ]
)
"""A message that could not be carried to its end, whole, with where and why it stopped.
``attempt`` counts from 1; what is replayed and fails again comes back with the next number."""


_COUNT_BITS: Final = 48
"""Of a document's version, those that count its events: 15 of Elasticsearch's 63 are left."""
MERGED: Final = "merged"
"""The pane of what is no document: the session that one may have been of has merged with another."""


class Stage(StrEnum):
    """The step of the graph at which a dead letter left it."""

    DECODE = "decode"
    DERIVE = "derive"
    ENRICH = "enrich"
    METRICS = "metrics"
    TRANSACTIONS = "transactions"
    SINK = "sink"


class Cause(StrEnum):
    """Why a dead letter left the graph: a closed list, so that alerts can name its members."""

    EMPTY = "empty"
    NOT_UTF8 = "not_utf8"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    SEVERAL_DOCUMENTS = "several_documents"
    TOO_LARGE = "too_large"
    WRONG_TYPE = "wrong_type"
    MISSING_FIELD = "missing_field"
    WRONG_ENVELOPE = "wrong_envelope"
    UNKNOWN_SCHEMA = "unknown_schema"
    NOT_OF_SCHEMA = "not_of_schema"
    FUTURE_EVENT_TIME = "future_event_time"
    LATE = "late"
    EXPRESSION_FAILED = "expression_failed"
    KEY_NOT_FOUND = "key_not_found"
    SERVICE_FAILED = "service_failed"
    WRONG_ANSWER = "wrong_answer"
    REJECTED = "rejected"


class WithDeadLetters(NamedTuple):
    """What a step puts out: its rows, and all dead letters up to and including its own.

    A step takes either this or a bare PCollection, so that steps chain with ``|`` and the dead
    letters travel along to whoever writes them.
    """

    main: beam.PCollection
    dead_letters: beam.PCollection

    @classmethod
    def joining(
        cls, given: Any, main: beam.PCollection, dead_letters: beam.PCollection
    ) -> "WithDeadLetters":
        """A step's own outputs, joined with the dead letters that came with what it was given."""
        if isinstance(given, WithDeadLetters):
            both = (given.dead_letters, dead_letters)
            dead_letters = both | "Dead letters so far" >> beam.Flatten()
        return cls(main, dead_letters)


def main_of(given: Any) -> beam.PCollection:
    """What a step works on: the main output of the step before, or a PCollection as it is."""
    return given.main if isinstance(given, WithDeadLetters) else given


def passing_on(given: Any, main: beam.PCollection) -> Any:
    """The output of a step without dead letters of its own: with those that it was given, if any."""
    return WithDeadLetters(main, given.dead_letters) if isinstance(given, WithDeadLetters) else main


class Failure(NamedTuple):
    """Why the message at a position of its batch goes no further."""

    position: int
    cause: Cause
    error: str


class Texts(NamedTuple):
    """The events in a batch of messages, as JSON."""

    texts: pa.Array
    """Binary: an object for each message, in their order; null for one that failed or is empty."""
    failures: list[Failure]


class Format(Protocol):
    """Finds the event that each message holds. It is pickled with the graph."""

    def texts(self, messages: pa.RecordBatch) -> Texts:
        """Of ``MESSAGES``. What it raises fails the bundle; what is a message's own fault does not."""


class Decoded(NamedTuple):
    """A batch of messages split into typed rows and dead letters; either may have no rows."""

    rows: pa.RecordBatch
    dead_letters: pa.RecordBatch


class Decoder(Protocol):
    """Turns a batch of ``MESSAGES`` into typed rows. It is pickled with the graph."""

    @property
    def schema(self) -> pa.Schema:
        """Of the decoded rows: the job's fields, then ``MESSAGE`` of type ``ORIGIN``."""

    @property
    def event_time(self) -> str:
        """The decoded column (type ``TIMESTAMP``, no nulls) that holds each row's event time."""

    def decode(self, messages: pa.RecordBatch) -> Decoded: ...


@dataclass(frozen=True, slots=True)
class Document:
    """One metric of one key in one window, as far as it is known.

    ``id`` names what is counted and ``version`` how far: of two documents with one id the one of
    the greater version knows more. Neither depends on the run that made it.

    >>> early = Document("orders", "m", 0, 60_000, {"city": "Bandung"}, {"n": 2}, 2, "early", "1")
    >>> on_time = Document("orders", "m", 0, 60_000, {"city": "Bandung"}, {"n": 2}, 2, "on_time", "1")
    >>> early.version, on_time.version
    (4, 5)
    """

    job: str
    metric: str
    window_start: int
    """Epoch milliseconds, inclusive."""
    window_end: int
    """Epoch milliseconds, exclusive."""
    dimensions: Mapping[str, Any]
    values: Mapping[str, Any]
    events: int
    pane: str
    """``early``, ``on_time`` or ``late``; ``MERGED`` takes away what is under the id."""
    id: str
    generation: int = 0
    """Of the job's logic, 0 to 32,767: a later one may correct a count downwards."""
    slot: int | None = None
    """Epoch milliseconds that id and index go by, if not by ``window_start``: a session's may move."""
    due: int | None = None
    """Epoch milliseconds from which on it is waited for, in a stream: the mean time of the events that
    it is the first to count, or the end of a window that is shown when it is over. It is not stored."""

    @property
    def version(self) -> int:
        """Twice the events counted, and one more once the watermark has passed the window.

        A later generation's is greater than all of those before. What has merged has the greatest of
        its generation, so that nothing brings it back.
        """
        if self.pane == MERGED:
            return (self.generation + 1 << _COUNT_BITS) - 1
        return (self.generation << _COUNT_BITS) + 2 * self.events + (self.pane != "early")

    def body(self, written_at: datetime) -> dict[str, Any]:
        """The JSON object that a store keeps.

        >>> d = Document("orders", "m", 0, 60_000, {"city": "Bandung"}, {"n": 2}, 2, "late", "1")
        >>> d.body(datetime(2026, 1, 1, tzinfo=UTC))  # doctest: +NORMALIZE_WHITESPACE
        {'@timestamp': '1970-01-01T00:00:00.000Z', 'job': 'orders', 'metric': 'm',
         'window_start': '1970-01-01T00:00:00.000Z', 'window_end': '1970-01-01T00:01:00.000Z',
         'dimensions': {'city': 'Bandung'}, 'values': {'n': 2}, 'events': 2, 'pane': 'late',
         'written_at': '2026-01-01T00:00:00.000Z'}
        """
        start = rfc3339(self.window_start)
        return {
            "@timestamp": start,
            "job": self.job,
            "metric": self.metric,
            "window_start": start,
            "window_end": rfc3339(self.window_end),
            "dimensions": dict(self.dimensions),
            "values": dict(self.values),
            "events": self.events,
            "pane": self.pane,
            "written_at": rfc3339((written_at - _EPOCH) // timedelta(milliseconds=1)),
        }


@lru_cache(maxsize=1_000)  # many documents have one window
def rfc3339(millis: int) -> str:
    """Epoch milliseconds as a UTC time of RFC 3339.

    >>> rfc3339(1_767_225_600_123)
    '2026-01-01T00:00:00.123Z'
    """
    seconds, rest = divmod(millis, 1000)
    time = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return f"{time.isoformat()}.{rest:03d}Z"  # %Y would write the year 7 as 7


def now() -> datetime:
    """The wall clock, which dates what is written and what failed; never an event's time."""
    return datetime.now(UTC)


def dead_letters(
    messages: pa.RecordBatch,
    *,
    stage: Stage,
    causes: Iterable[Cause],
    errors: Iterable[str],
    failed_at: datetime,
    attempt: int | None = None,
) -> pa.RecordBatch:
    """Envelopes (``DEAD_LETTERS``) for messages (``MESSAGES``), a cause and an error each.

    Without ``attempt`` each message's headers say it: of what a replay sent again they do.
    Inside a bundle each is counted too, as ``dead_letters_<cause>``.
    """
    n = messages.num_rows
    causes = list(causes)
    for cause, count in Counter(causes).items():
        counter("dead_letters", cause=cause).inc(count)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([stage.value] * n, pa.string()),
            pa.array([cause.value for cause in causes], pa.string()),
            pa.array(list(errors), pa.string()),
            pa.array([failed_at] * n, TIMESTAMP),
            pa.array([attempt] * n, pa.int32()) if attempt else attempts(messages["headers"]),
            *messages.columns,
        ],
        schema=DEAD_LETTERS,
    )


def messages(
    values: Sequence[bytes | None],
    *,
    topic: str = "",
    partition: int = 0,
    timestamp: datetime | None = None,
) -> pa.RecordBatch:
    """A batch of ``MESSAGES`` made by hand: offsets from 0, no keys, no headers.

    >>> messages([b"{}", None], topic="orders").select(["offset", "value"]).to_pylist()
    [{'offset': 0, 'value': b'{}'}, {'offset': 1, 'value': None}]
    """
    n = len(values)
    return pa.RecordBatch.from_arrays(
        [
            pa.repeat(topic, n),
            pa.repeat(pa.scalar(partition, pa.int32()), n),
            pa.array(range(n), pa.int64()),
            pa.repeat(pa.scalar(timestamp, TIMESTAMP), n),
            pa.nulls(n, pa.binary()),
            pa.array(values, pa.binary()),
            pa.nulls(n, MESSAGES.field("headers").type),
        ],
        schema=MESSAGES,
    )


def messages_of(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The messages (``MESSAGES``) that decoded rows came from."""
    columns = rows[MESSAGE].flatten()[: len(MESSAGES)]
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGES)


def origins(messages: pa.RecordBatch) -> pa.StructArray:
    """The column ``MESSAGE`` of rows that came from these messages, without watermarks."""
    columns = [*messages.columns, pa.nulls(messages.num_rows, TIMESTAMP)]
    return pa.StructArray.from_arrays(columns, fields=list(ORIGIN))


def with_watermarks(rows: pa.RecordBatch, watermarks: pa.Array) -> pa.RecordBatch:
    """Rows whose ``MESSAGE`` says where the watermark stood before each."""
    columns = [*rows[MESSAGE].flatten()[: len(MESSAGES)], watermarks]
    origin = pa.StructArray.from_arrays(columns, fields=list(ORIGIN))
    at = rows.schema.get_field_index(MESSAGE)
    return rows.set_column(at, pa.field(MESSAGE, ORIGIN, nullable=False), origin)


def one_batch(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of several batches of one schema, of which there is at least one.

    >>> one_batch([pa.record_batch({"n": [1]}), pa.record_batch({"n": [2, 3]})])["n"].to_pylist()
    [1, 2, 3]
    """
    if len(batches) == 1:
        return batches[0]
    return pa.concat_batches(batches)


def watermarks_of(rows: pa.RecordBatch) -> pa.Array:
    """Where the watermark stood before each row (``ORIGIN``); all null if nothing says it.

    >>> rows = pa.RecordBatch.from_arrays([origins(messages([b"1"]))], [MESSAGE])
    >>> watermarks_of(with_watermarks(rows, pa.array([7], TIMESTAMP))).view(pa.int64()).to_pylist()
    [7]
    """
    if MESSAGE not in rows.schema.names:
        return pa.nulls(rows.num_rows, TIMESTAMP)
    at = rows.schema.field(MESSAGE).type.get_field_index("watermark")
    return rows[MESSAGE].flatten()[at] if at >= 0 else pa.nulls(rows.num_rows, TIMESTAMP)


class RecordBatchCoder(Coder):
    """A batch as one Arrow IPC stream; decoding copies nothing.

    >>> batch = pa.RecordBatch.from_pydict({"city": ["Bandung", None]})
    >>> coder = RecordBatchCoder()
    >>> coder.decode(coder.encode(batch)).equals(batch)
    True
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return bytes(sink.getvalue())

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        with pa.ipc.open_stream(encoded) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Beam asks for it of a sample; it would encode the batch to know it, at a third of all cost."""
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> Any:
        return pa.RecordBatch


registry.register_coder(pa.RecordBatch, RecordBatchCoder)
