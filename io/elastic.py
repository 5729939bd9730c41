"""Documents into Elasticsearch: under ids of their own, and versions of which the greatest wins."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from elasticsearch import Elasticsearch

from velocity.io.documents import measure_delays, rejected, write_documents
from velocity.io.elastic_bulk import Buffer, Bulks, Limits, Operation, Retry, send
from velocity.io.elastic_connection import REQUEST_TIMEOUT, Connection
from velocity.io.elastic_index import IndexPattern
from velocity.io.metrics import counter
from velocity.io.records import MERGED, Document, now


def operation(
    document: Document, pattern: IndexPattern, written_at: datetime, *, create_only: bool = False
) -> Operation:
    """Encodes a document. NaN and infinity are left for Elasticsearch to reject.

    A data stream takes documents that are new (``create_only``), and no versions. What has merged is
    a deletion.

    >>> from datetime import UTC
    >>> d = Document("orders", "m", 0, 60_000, {}, {"n": 2}, 2, "late", "id-1")
    >>> operation(d, IndexPattern("{job}"), datetime(2026, 1, 1, tzinfo=UTC)).action
    b'{"index":{"_index":"orders","_id":"id-1","version":5,"version_type":"external"}}'
    """
    index = pattern.name(document)
    if document.pane == MERGED:
        return deletion(index, document.id, document.version)
    action = {"_index": index, "_id": document.id}
    if create_only:
        line = _json({"create": action})
    else:
        line = _json({"index": action | _external(document.version)})
    body = _json(document.body(written_at))
    return Operation(index, document.id, document.version, line, body, document.due)


def deletion(index: str, id_: str, version: int) -> Operation:
    """Takes a document away, unless a version as great or greater is there.

    >>> deletion("orders", "id-1", 7).lines
    (b'{"delete":{"_index":"orders","_id":"id-1","version":7,"version_type":"external"}}',)
    """
    action = {"_index": index, "_id": id_} | _external(version)
    return Operation(index, id_, version, _json({"delete": action}), None)


def _external(version: int) -> dict[str, Any]:
    return {"version": version, "version_type": "external"}


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))  # ``json.dumps`` makes one each time


def _json(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


class WriteToElasticsearch(beam.PTransform):
    """Writes documents under their id and external version; the greatest version of an id stays.

    Takes a PCollection of ``Document`` or a ``WithDeadLetters`` of it, and gives a PCollection of
    dead-letter batches: those that came with it, and the documents that Elasticsearch rejects.
    ``hosts`` may be a ``Connection``, which says all of it; ``index`` is an ``IndexPattern``; see
    ``Limits`` and ``Retry`` for the rest.
    ``create_only`` writes each id once, which is all that a data stream takes: use it for documents
    that are never corrected.

    Counts ``documents_written``; ``documents_stale``, a success: a newer or equal version was
    there, or followed in the same bulk; ``documents_removed``, which sessions that merged left;
    ``bulk_calls``; and ``sink_retries``, the calls among them that repeated a failed one.

    Raises ``ValueError`` at construction, and fails the bundle with ``DocumentsUnwritten``.

    >>> WriteToElasticsearch("http://127.0.0.1:9200", "Orders")
    Traceback (most recent call last):
    ValueError: index 'Orders': use lower case and none of \\ / * ? " < > | , # : or space
    """

    def __init__(
        self,
        hosts: str | Sequence[str] | Connection,
        index: str,
        *,
        api_key: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        ca_certs: str | None = None,
        request_timeout: timedelta = REQUEST_TIMEOUT,
        create_only: bool = False,
        limits: Limits | None = None,
        retry: Retry | None = None,
        now: Callable[[], datetime] = now,
    ) -> None:
        super().__init__()
        if isinstance(hosts, Connection):
            connection = hosts
        else:
            connection = Connection(
                (hosts,) if isinstance(hosts, str) else tuple(hosts),
                api_key=api_key,
                basic_auth=basic_auth,
                ca_certs=ca_certs,
                request_timeout=request_timeout,
            )
        encode = partial(operation, pattern=IndexPattern(index), create_only=create_only)
        self._sink = _ToElasticsearch(connection, encode, limits or Limits(), retry or Retry(), now)

    def expand(self, documents: Any) -> beam.PCollection:
        return write_documents(documents, self._sink)


class _ToElasticsearch(beam.DoFn):
    def __init__(
        self,
        connection: Connection,
        encode: Callable[..., Operation],
        limits: Limits,
        retry: Retry,
        now: Callable[[], datetime],
    ) -> None:
        self._connection, self._encode = connection, encode
        self._limits, self._retry, self._now = limits, retry, now
        self._client: Elasticsearch | None = None

    def setup(self) -> None:
        self._client = self._connection.open()

    def start_bundle(self) -> None:
        assert self._client is not None
        self._bulks = Bulks(
            partial(send, self._client), self._retry, self._connection.request_timeout
        )
        self._buffer = Buffer(self._limits)
        self._timestamp = MIN_TIMESTAMP

    def process(
        self, document: Document, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[pa.RecordBatch]:
        self._timestamp = timestamp
        operation = self._encode(document, written_at=self._now())
        yield from self._write(self._buffer.add(operation))

    def finish_bundle(self) -> Iterator[Any]:
        counter("documents_stale").inc(self._buffer.superseded)
        for batch in self._write(self._buffer.take()):
            yield GlobalWindows.windowed_value(batch, self._timestamp)

    def teardown(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _write(self, bulk: Sequence[Operation]) -> Iterator[pa.RecordBatch]:
        if not bulk:  # as after most documents
            return
        outcome = self._bulks.write(bulk)
        counter("documents_written").inc(outcome.written)
        counter("documents_stale").inc(outcome.stale)
        counter("documents_removed").inc(outcome.removed)
        counter("bulk_calls").inc(outcome.calls)
        counter("sink_retries").inc(outcome.retries)
        failed = {rejection.id for rejection in outcome.rejected}
        measure_delays((o.due for o in bulk if o.id not in failed), self._now())
        if outcome.rejected:
            yield rejected(outcome.rejected, self._now())
