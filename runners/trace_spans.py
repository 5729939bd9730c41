"""The way of an event as OpenTelemetry spans: sent by OTLP, or printed."""

import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, cast

from velocity.pipelines.trace import Reading, Way

CONSOLE = "console"


class CannotSend(Exception):
    """The spans can't be sent; the message says why and what to do."""


def send(way: Way, to: str) -> None:
    """Sends one trace of the way: a span for the event, for each reading, and for each document.

    ``to`` is the URL of an OTLP receiver over HTTP, or ``console``: the standard error. Times are those that are known:
    an event's, its broker's, and when a document was written. Raises ``CannotSend``.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        ConsoleSpanExporter,
        SimpleSpanProcessor,
        SpanExporter,
    )
    from opentelemetry.trace import set_span_in_context

    exporter = ConsoleSpanExporter(out=sys.stderr) if to == CONSOLE else _otlp(to)
    provider = TracerProvider(resource=Resource.create({"service.name": f"velocity {way.job}"}))
    watched = _Watched(exporter)
    provider.add_span_processor(SimpleSpanProcessor(cast(SpanExporter, watched)))
    tracer = provider.get_tracer("velocity")
    times = sorted(time for reading in way.readings for time in _times(reading))
    begin, end = (_nanos(times[0]), _nanos(times[-1])) if times else (None, None)
    root = tracer.start_span(
        f"event {way.event_id}", start_time=begin, attributes={"velocity.found": way.found}
    )
    inside = set_span_in_context(root)
    for reading in way.readings:
        own = sorted(_times(reading))
        first, last = (_nanos(own[0]), _nanos(own[-1])) if own else (begin, end)
        span = tracer.start_span(
            f"read {reading.place}", inside, start_time=first, attributes=_attributes(reading)
        )
        for document in reading.documents:
            written = _nanos(document.written_at) if document.written_at else last
            below = tracer.start_span(
                f"document {document.metric}",
                set_span_in_context(span),
                start_time=_nanos(reading.sent_at) if reading.sent_at else first,
                attributes={
                    "velocity.document": document.id or "",
                    "velocity.status": document.status,
                },
            )
            below.end(written)
        span.end(last)
    root.end(end)
    provider.shutdown()
    if not watched.well:
        raise CannotSend(f"{to} has not taken the spans: is a receiver of OTLP over HTTP there?")


class _Watched:
    """An exporter that remembers whether all went well."""

    def __init__(self, exporter: Any) -> None:
        self._exporter, self.well = exporter, True

    def export(self, spans: Any) -> Any:
        result = self._exporter.export(spans)
        self.well &= result.name == "SUCCESS"
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))


def _otlp(url: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise CannotSend("OTLP takes the extra otlp: pip install 'velocity[otlp]'") from None
    return OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=5)


def _times(reading: Reading) -> Iterator[str]:
    yield from filter(None, (reading.event_time, reading.sent_at))
    yield from (d.written_at for d in reading.documents if d.written_at)


def _nanos(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000) * 1_000


def _attributes(reading: Reading) -> dict[str, Any]:
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": reading.topic,
        "messaging.destination.partition.id": str(reading.partition),
        "messaging.kafka.offset": reading.offset,
        "velocity.status": reading.status,
        "velocity.why": reading.why,
    }
