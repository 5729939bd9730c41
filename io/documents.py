"""What document sinks have in common: how they take documents, and what becomes of the rejected."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from velocity.io.metrics import counter, histogram
from velocity.io.records import MESSAGES, Cause, Stage, WithDeadLetters, dead_letters, main_of

DOCUMENT_DELAYS: Final = histogram("document_delays")
"""From an event to the document that counts it."""


def measure_delays(dues: Iterable[int | None], written_at: datetime) -> None:
    """Counts how long after they were due (``Document.due``) documents are in their store.

    Counts ``document_delays`` and ``document_delay_ms``, their sum; and of ``document_delays_within_1s``
    and so on to ``_3600s`` those that were no longer.
    """
    now = written_at.timestamp() * 1000
    millis = [max(now - due, 0) for due in dues if due is not None]
    if millis:
        counter("document_delays").inc(len(millis))
        counter("document_delay_ms").inc(round(sum(millis)))
        DOCUMENT_DELAYS.add([delay / 1000 for delay in millis])


class Rejection(NamedTuple):
    """A document that its store will never take."""

    store: str
    """The index or table it was meant for."""
    id: str
    body: bytes
    """Its JSON."""
    error: str


def rejected(rejections: Sequence[Rejection], failed_at: datetime) -> pa.RecordBatch:
    """The dead letters (``DEAD_LETTERS``) of rejected documents.

    >>> from datetime import UTC
    >>> rejection = Rejection("orders", "id-1", b"{}", "no")
    >>> batch = rejected([rejection], datetime(2026, 1, 1, tzinfo=UTC))
    >>> row = batch.to_pylist()[0]
    >>> row["stage"], row["cause"], row["error"], row["topic"], row["key"], row["value"]
    ('sink', 'rejected', 'no', 'orders', b'id-1', b'{}')
    """
    messages = pa.RecordBatch.from_pylist(
        [{"topic": r.store, "key": r.id.encode(), "value": r.body} for r in rejections],
        schema=MESSAGES,
    )
    return dead_letters(
        messages,
        stage=Stage.SINK,
        causes=[Cause.REJECTED] * len(rejections),
        errors=[r.error for r in rejections],
        failed_at=failed_at,
    )


def write_documents(
    documents: beam.PCollection | WithDeadLetters, sink: beam.DoFn
) -> beam.PCollection:
    """Runs documents through a sink and gathers all dead letters, in the global window.

    ``sink`` takes a ``Document`` and puts out dead letters (``DEAD_LETTERS``); since its input is
    in the global window, so is what it puts out at the end of a bundle. Those that came
    with the documents come out too.
    """
    own = (
        main_of(documents)
        | "Unwindow" >> beam.WindowInto(GlobalWindows())
        | "Write" >> beam.ParDo(sink).with_output_types(pa.RecordBatch)
    )
    if not isinstance(documents, WithDeadLetters):
        return own
    earlier = documents.dead_letters | "UnwindowEarlier" >> beam.WindowInto(GlobalWindows())
    return (earlier, own) | "AllDeadLetters" >> beam.Flatten()
