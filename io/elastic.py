"""Documents into Elasticsearch: under ids of their own, and versions of which the greatest wins."""

import json
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from elastic_transport.client_utils import DEFAULT
from elasticsearch import Elasticsearch

from velocity.io.documents import rejected, write_documents
from velocity.io.elastic_bulk import Buffer, Bulks, Limits, Operation, Retry, send
from velocity.io.records import Document, counter, now

_REQUEST_TIMEOUT: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Connection:
    """Where Elasticsearch is and who asks; the secrets show in no ``repr``.

    >>> Connection(("http://127.0.0.1:9200",), api_key="c2VjcmV0")
    Connection(hosts=('http://127.0.0.1:9200',), ca_certs=None, \
request_timeout=datetime.timedelta(seconds=30))
    """

    hosts: tuple[str, ...]
    api_key: str | None = field(default=None, repr=False)
    basic_auth: tuple[str, str] | None = field(default=None, repr=False)
    ca_certs: str | None = None
    request_timeout: timedelta = _REQUEST_TIMEOUT

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ValueError("hosts is empty: give URLs such as http://127.0.0.1:9200")
        for host in self.hosts:
            # No message repeats the URL: it may hold a password.
            url = urlsplit(host)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError("hosts: each is a URL such as https://elastic.internal:9200")
            if url.username or url.password:
                raise ValueError("hosts: give the user and password as basic_auth, not in the URL")
        if self.api_key and self.basic_auth:
            raise ValueError("api_key and basic_auth exclude each other: give one")
        if self.request_timeout <= timedelta():
            raise ValueError(f"request_timeout is {self.request_timeout}: give more than zero")

    def open(self) -> Elasticsearch:
        """A client that leaves every retry to us; it connects when first used."""
        return Elasticsearch(
            list(self.hosts),
            api_key=self.api_key,
            basic_auth=self.basic_auth,
            ca_certs=self.ca_certs or DEFAULT,
            max_retries=0,
        )


_ILLEGAL: Final = re.compile(r'[\\/*?"<>| ,#:A-Z]')
_DIRECTIVE: Final = re.compile(r"%(.?)")
_DATES: Final = frozenset("YmdHGVj")


@dataclass(frozen=True, slots=True)
class IndexPattern:
    """The name of a document's index: ``{window_start:%Y.%m}`` (UTC), ``{job}`` and ``{metric}``.

    What ``{job}`` and ``{metric}`` stand for is put in lower case, as index names must be.
    Source of the rules: Elasticsearch's create index API, "Path parameters".

    >>> pattern = IndexPattern("velocity-{job}-{window_start:%Y.%m}")
    >>> pattern.name(Document("Pharmacy", "m", 1_767_225_600_000, 0, {}, {}, 1, "late", "1"))
    'velocity-pharmacy-2026.01'
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            fields = list(string.Formatter().parse(self.pattern))
        except ValueError as error:
            raise ValueError(f"index {self.pattern!r}: {error}") from error
        for _, name, spec, conversion in fields:
            if name is None:
                continue
            if name not in ("window_start", "job", "metric") or conversion:
                raise self._wrong(f"{{{name}}} is not one of {{window_start}}, {{job}}, {{metric}}")
            if name != "window_start" and spec:
                raise self._wrong(f"{{{name}}} takes no format")
            given = set(_DIRECTIVE.findall(spec or ""))
            if name == "window_start" and ("{" in (spec or "") or not given or given - _DATES):
                raise self._wrong("give {window_start} a format of %Y %m %d %H %G %V %j")
        sample = self.name(Document("job", "metric", 0, 0, {}, {}, 1, "late", "id"))
        if _ILLEGAL.search(self.pattern.format(window_start=_Epoch(), job="", metric="")):
            raise self._wrong('use lower case and none of \\ / * ? " < > | , # : or space')
        if sample[:1] in ("", "-", "_", "+", ".") or len(sample.encode()) > 255:
            raise self._wrong("begin with a letter or digit, and keep to 255 bytes")

    def _wrong(self, remedy: str) -> ValueError:
        return ValueError(f"index {self.pattern!r}: {remedy}")

    def name(self, document: Document) -> str:
        start = datetime.fromtimestamp(document.window_start // 1000, UTC)
        job, metric = document.job.lower(), document.metric.lower()
        return self.pattern.format(window_start=start, job=job, metric=metric)


class _Epoch:
    def __format__(self, spec: str) -> str:
        return datetime.fromtimestamp(0, UTC).strftime(spec)


def operation(document: Document, pattern: IndexPattern, written_at: datetime) -> Operation:
    """Encodes a document. NaN and infinity are left for Elasticsearch to reject.

    >>> d = Document("orders", "m", 0, 60_000, {}, {"n": 2}, 2, "late", "id-1")
    >>> operation(d, IndexPattern("{job}"), datetime(2026, 1, 1, tzinfo=UTC)).action
    b'{"index":{"_index":"orders","_id":"id-1","version":5,"version_type":"external"}}'
    """
    index = pattern.name(document)
    action = {
        "_index": index,
        "_id": document.id,
        "version": document.version,
        "version_type": "external",
    }
    return Operation(
        index,
        document.id,
        document.version,
        _json({"index": action}),
        _json(document.body(written_at)),
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class WriteToElasticsearch(beam.PTransform):
    """Writes documents under their id and external version; the greatest version of an id stays.

    Takes a PCollection of ``Document`` or a ``WithDeadLetters`` of it, and gives a PCollection of
    dead-letter batches: those that came with it, and the documents that Elasticsearch rejects.
    ``index`` is an ``IndexPattern``; see ``Connection``, ``Limits`` and ``Retry`` for the rest.

    Counts ``documents_written``; ``documents_stale``, a success: a newer or equal version was
    there, or followed in the same bulk; ``bulk_calls``; and ``sink_retries``, the calls among
    them that repeated a failed one.

    Raises ``ValueError`` at construction, and fails the bundle with ``DocumentsUnwritten``.

    >>> WriteToElasticsearch("http://127.0.0.1:9200", "Orders")
    Traceback (most recent call last):
    ValueError: index 'Orders': use lower case and none of \\ / * ? " < > | , # : or space
    """

    def __init__(
        self,
        hosts: str | Sequence[str],
        index: str,
        *,
        api_key: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        ca_certs: str | None = None,
        request_timeout: timedelta = _REQUEST_TIMEOUT,
        limits: Limits | None = None,
        retry: Retry | None = None,
        now: Callable[[], datetime] = now,
    ) -> None:
        super().__init__()
        hosts = (hosts,) if isinstance(hosts, str) else tuple(hosts)
        connection = Connection(hosts, api_key, basic_auth, ca_certs, request_timeout)
        pattern = IndexPattern(index)
        self._sink = _ToElasticsearch(
            connection, pattern, limits or Limits(), retry or Retry(), now
        )

    def expand(self, documents: Any) -> beam.PCollection:
        return write_documents(documents, self._sink)


class _ToElasticsearch(beam.DoFn):
    def __init__(
        self,
        connection: Connection,
        index: IndexPattern,
        limits: Limits,
        retry: Retry,
        now: Callable[[], datetime],
    ) -> None:
        self._connection, self._index = connection, index
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
        yield from self._write(self._buffer.add(operation(document, self._index, self._now())))

    def finish_bundle(self) -> Iterator[Any]:
        counter("documents_stale").inc(self._buffer.superseded)
        for batch in self._write(self._buffer.take()):
            yield GlobalWindows.windowed_value(batch, self._timestamp)

    def teardown(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _write(self, bulk: Sequence[Operation]) -> Iterator[pa.RecordBatch]:
        outcome = self._bulks.write(bulk)
        counter("documents_written").inc(outcome.written)
        counter("documents_stale").inc(outcome.stale)
        counter("bulk_calls").inc(outcome.calls)
        counter("sink_retries").inc(outcome.retries)
        if outcome.rejected:
            yield rejected(outcome.rejected, self._now())
