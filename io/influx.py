"""Documents into InfluxDB, by line protocol: a point for each, of which the last written stays."""

import gzip
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import requests
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from velocity.io.documents import Rejection, measure_delays, rejected, write_documents
from velocity.io.elastic_answers import Answer, Fate

# How bulks are filled, sent again and split is the same for each store.
from velocity.io.elastic_bulk import Buffer, Bulks, Limits, Operation, Retry
from velocity.io.metrics import counter
from velocity.io.records import MERGED, Document, now

_TAG: Final = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ ", "\n": r"\n", "\r": r"\r"})
_MEASUREMENT: Final = str.maketrans({",": r"\,", " ": r"\ "})
_TEXT: Final = str.maketrans({'"': r"\"", "\\": r"\\"})
_WRITTEN: Final = {"index": {"status": 204}}
"""As Elasticsearch would say it of a document, for InfluxDB answers a request as a whole."""


class NoPoint(ValueError):
    """A document that line protocol can't hold: why."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where points go: a bucket of InfluxDB 2 or 3, or ``database/retention policy`` of 1.8.

    Of 1.8 the token is ``user:password``. Source: https://docs.influxdata.com/influxdb/v2/api/

    >>> Bucket("http://127.0.0.1:8086", "metrics", token="hush")
    Bucket(url='http://127.0.0.1:8086', bucket='metrics', org=None, timeout=datetime.timedelta(seconds=30))
    """

    url: str
    bucket: str
    org: str | None = None
    token: str | None = field(default=None, repr=False)
    timeout: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("url: http://HOST:PORT or https://HOST:PORT is wanted")
        if not self.bucket:
            raise ValueError("bucket: the name of one is wanted")


def line(document: Document, decimals: Collection[str] = ()) -> bytes:
    """The point of a document, in line protocol with times in milliseconds.

    Tags are the job and what the document is grouped by, without nulls and empty text; fields are its
    values, without nulls, and ``events``, ``version`` and ``pane``. A point is overwritten by the next of
    the same measurement, tags and time. Numbers are floats, so that a field is of one type for ever,
    and so are the values that are named as ``decimals``, which documents hold as text; lists and objects are JSON. Raises ``NoPoint``.
    Source: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/

    >>> line(Document("j", "orders", 0, 60_000, {"city": "Banda Aceh"}, {"n": 2}, 2, "late", "1"))
    b'orders,city=Banda\\\\ Aceh,job=j events=2i,n=2.0,pane="late",version=5i 0'
    """
    tags = {"job": document.job, **document.dimensions}
    fields: dict[str, Any] = dict(document.values)
    parts = [document.metric.translate(_MEASUREMENT)]
    parts += [
        f"{name.translate(_TAG)}={_tag(name, value)}"
        for name, value in sorted(tags.items())
        if value is not None and value != ""
    ]
    made = {
        name: _field(name, float(value) if name in decimals else value)
        for name, value in fields.items()
        if value is not None
    }
    made |= {
        "events": f"{document.events}i",
        "version": f"{document.version}i",
        "pane": _field("pane", document.pane),
    }
    values = ",".join(f"{name.translate(_TAG)}={value}" for name, value in sorted(made.items()))
    time = document.window_start if document.slot is None else document.slot
    return f"{','.join(parts)} {values} {time}".encode()


def _tag(name: str, value: Any) -> str:
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    if text.endswith("\\"):
        raise NoPoint(f"{name}: a tag can't end with a backslash")
    return text.translate(_TAG)


def _field(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        number = float(value)
        if not math.isfinite(number):
            raise NoPoint(f"{name}: line protocol has no word for {value}")
        return repr(number)
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f'"{text.translate(_TEXT)}"'


def judge(status: int) -> Fate:
    """What an answer means for its request; status 0: no whole answer came.

    A 400 or 422 refuses some points and may have written the others: halves tell which, and writing a
    point again changes nothing.

    >>> judge(204), judge(400), judge(429), judge(401)
    (<Fate.READ: 1>, <Fate.SPLIT: 3>, <Fate.RETRY: 2>, <Fate.FAIL: 4>)
    """
    if 200 <= status < 300:
        return Fate.READ
    if status in (0, 408, 429) or status >= 500:
        return Fate.RETRY
    return Fate.SPLIT if status in (400, 413, 422) else Fate.FAIL


def send(
    session: requests.Session, bucket: Bucket, operations: Sequence[Operation], timeout: float
) -> Answer:
    """One write; every error of the network or the server is an answer too."""
    body = gzip.compress(b"\n".join(o.source or b"" for o in operations), 1)
    parameters = {"bucket": bucket.bucket, "precision": "ms", "org": bucket.org}
    headers = {"Content-Encoding": "gzip", "Content-Type": "text/plain; charset=utf-8"}
    if bucket.token is not None:
        headers["Authorization"] = f"Token {bucket.token}"
    try:
        answer = session.post(
            f"{bucket.url.rstrip('/')}/api/v2/write",
            params={name: value for name, value in parameters.items() if value is not None},
            data=body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        return Answer(judge(0), (), f"{bucket.url} can't be reached: {type(error).__name__}")
    fate = judge(answer.status_code)
    told = "" if fate is Fate.READ else f"HTTP {answer.status_code}: {answer.text[:2_000]}"
    items: Sequence[Mapping[str, Any]] = [_WRITTEN] * len(operations)
    return Answer(fate, items if fate is Fate.READ else (), told)


class WriteToInflux(beam.PTransform):
    """Writes documents as points; of one document the version that was written last stays.

    Takes a PCollection of ``Document`` or a ``WithDeadLetters`` of it, and gives a PCollection of
    dead-letter batches: those that came with it, and the documents that InfluxDB refuses. InfluxDB knows
    no versions: within a bundle the greatest wins, between bundles the later. See ``docs/influx.md``.

    ``decimals`` are the values of each metric that are decimals. Counts ``documents_written``,
    ``documents_stale`` (a newer version followed in the same request),
    ``bulk_calls`` and ``sink_retries``. Fails the bundle with ``DocumentsUnwritten``.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        limits: Limits | None = None,
        retry: Retry | None = None,
        decimals: Mapping[str, Collection[str]] | None = None,
        now: Callable[[], datetime] = now,
    ) -> None:
        super().__init__()
        limits, retry = limits or Limits(5_000), retry or Retry()
        self._sink = _ToInflux(bucket, limits, retry, decimals or {}, now)

    def expand(self, documents: Any) -> beam.PCollection:
        return write_documents(documents, self._sink)


class _ToInflux(beam.DoFn):
    def __init__(
        self,
        bucket: Bucket,
        limits: Limits,
        retry: Retry,
        decimals: Mapping[str, Collection[str]],
        now: Callable[[], datetime],
    ) -> None:
        self._bucket, self._limits, self._retry, self._now = bucket, limits, retry, now
        self._decimals = decimals
        self._session: requests.Session | None = None

    def setup(self) -> None:
        self._session = requests.Session()

    def start_bundle(self) -> None:
        assert self._session is not None
        call = partial(send, self._session, self._bucket)
        self._bulks = Bulks(call, self._retry, self._bucket.timeout)
        self._buffer = Buffer(self._limits)
        self._refused: list[Rejection] = []
        self._timestamp = MIN_TIMESTAMP

    def process(
        self, document: Document, timestamp: Any = beam.DoFn.TimestampParam
    ) -> Iterator[pa.RecordBatch]:
        self._timestamp = timestamp
        try:
            if document.pane == MERGED:
                raise NoPoint("InfluxDB takes no point back: a session has merged with another")
            point = line(document, self._decimals.get(document.metric, ()))
        except NoPoint as error:
            body = json.dumps(document.body(self._now())).encode()
            self._refused.append(Rejection(self._bucket.bucket, document.id, body, str(error)))
            return
        made = Operation(
            self._bucket.bucket, document.id, document.version, b"", point, document.due
        )
        yield from self._write(self._buffer.add(made))

    def finish_bundle(self) -> Iterator[Any]:
        counter("documents_stale").inc(self._buffer.superseded)
        for batch in self._write(self._buffer.take()):
            yield GlobalWindows.windowed_value(batch, self._timestamp)

    def teardown(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _write(self, bulk: Sequence[Operation]) -> Iterator[pa.RecordBatch]:
        if not bulk and not self._refused:  # as after most documents
            return
        outcome = self._bulks.write(bulk)
        counter("documents_written").inc(outcome.written)
        counter("bulk_calls").inc(outcome.calls)
        counter("sink_retries").inc(outcome.retries)
        failed = {rejection.id for rejection in outcome.rejected}
        measure_delays((o.due for o in bulk if o.id not in failed), self._now())
        refused, self._refused = [*self._refused, *outcome.rejected], []
        if refused:
            yield rejected(refused, self._now())
