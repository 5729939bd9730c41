"""Laws of points in InfluxDB: what is written again changes nothing, what fails is tried or set aside."""

import gzip
import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.elastic_bulk import Limits, Retry
from velocity.io.influx import Bucket, NoPoint, WriteToInflux, line
from velocity.io.records import MERGED, Document
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import JobFileError, parse
from velocity.pipelines.plan import plan

POINT = re.compile(r"((?:\\.|[^ ])+) (.+) (-?\d+)", re.DOTALL)


def document(n: int, city: Any = "Solo", events: int = 1, **more: Any) -> Document:
    values = {"n": events} | more.pop("values", {})
    start = more.pop("start", 0)
    return Document(
        "j", "orders", start, start + 60_000, {"city": city}, values, events,
        more.pop("pane", "on_time"), f"id-{n}", **more,
    )  # fmt: skip


class Influx:
    """InfluxDB as far as writing goes: points by measurement, tags and time; and faults on demand."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, int], dict[str, str]] = {}
        self.faults: deque[int] = deque()
        self.requests: list[dict[str, Any]] = []

    def write(self, path: str, headers: Any, body: bytes) -> int:
        query = parse_qs(urlsplit(path).query)
        lines = gzip.decompress(body).decode().split("\n")
        asked = {name: found[0] for name, found in query.items()}
        self.requests.append({"path": urlsplit(path).path, "lines": len(lines), **asked})
        if headers["Authorization"] != "Token hush":
            return 401
        if self.faults:
            return self.faults.popleft()
        if len(lines) > 4:
            return 413
        for text in lines:
            if "poison" in text:
                return 400
            match = POINT.fullmatch(text)
            assert match, text
            series = self.points.setdefault((match[1], int(match[3])), {})
            series |= dict(part.split("=", 1) for part in match[2].split(","))
        return 204


@pytest.fixture
def influx() -> Iterator[tuple[Influx, str]]:
    store = Influx()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = store.write(self.path, self.headers, body)
            answer = b"" if status == 204 else b'{"message": "no"}'
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield store, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


QUICK = Retry(timedelta(milliseconds=1), timedelta(milliseconds=2), timedelta(seconds=5))


def written(url: str, *documents: Document, token: str = "hush", retry: Retry = QUICK) -> Any:
    """Dead letters as (id, error), by an assertion of the caller's."""
    bucket = Bucket(url, "b", "o", token)
    sink = WriteToInflux(bucket, retry=retry, limits=Limits(100))
    pipeline = beam.Pipeline(runner=FnApiRunner())
    letters = pipeline | beam.Create(documents, reshuffle=False) | sink
    shown = letters | beam.FlatMap(
        lambda batch: [(r["key"].decode(), r["cause"], r["stage"]) for r in batch.to_pylist()]
    )
    return pipeline, shown


def run(url: str, *documents: Document, dead: Any = (), **more: Any) -> None:
    pipeline, letters = written(url, *documents, **more)
    with pipeline:
        assert_that(letters, equal_to(list(dead)))


@pytest.mark.embedded
def test_points_are_written_once_for_each_series_and_time_and_the_greatest_version_wins(
    influx: tuple[Influx, str],
) -> None:
    store, url = influx
    run(url, document(1, events=5), document(2, "Medan"), document(1, events=3, pane="early"))
    run(url, document(1, events=5))  # again
    assert store.points == {
        ("orders,city=Solo,job=j", 0): {
            "events": "5i", "n": "5.0", "pane": '"on_time"', "version": "11i"},
        ("orders,city=Medan,job=j", 0): {
            "events": "1i", "n": "1.0", "pane": '"on_time"', "version": "3i"},
    }  # fmt: skip
    first = store.requests[0]
    assert first == {"path": "/api/v2/write", "lines": 2, "bucket": "b", "org": "o",
                     "precision": "ms"}  # fmt: skip


@pytest.mark.embedded
def test_a_late_correction_takes_the_place_of_what_it_corrects(influx: tuple[Influx, str]) -> None:
    store, url = influx
    run(url, document(1, events=5))
    run(url, document(1, events=6, pane="late"))
    [point] = store.points.values()
    assert (point["events"], point["pane"]) == ("6i", '"late"')


@pytest.mark.embedded
def test_what_is_refused_is_a_dead_letter_and_its_neighbours_are_written(
    influx: tuple[Influx, str],
) -> None:
    store, url = influx
    store.faults += [503, 429]
    bad = [document(7, "poison"), document(8, values={"x": float("nan")}),
           document(9, pane=MERGED)]  # fmt: skip
    good = [document(n, f"city {n}") for n in range(6)]
    run(url, *good[:3], *bad, *good[3:],
        dead=[(f"id-{n}", "rejected", "sink") for n in (7, 8, 9)])  # fmt: skip
    assert {key for key, _ in store.points} == {f"orders,city=city\\ {n},job=j" for n in range(6)}


@pytest.mark.embedded
@pytest.mark.parametrize("fault", ["token", "down"])
def test_a_bundle_fails_if_it_is_not_let_in_or_the_server_stays_away(
    fault: str, influx: tuple[Influx, str]
) -> None:
    store, url = influx
    soon = Retry(timedelta(milliseconds=1), timedelta(milliseconds=2), timedelta(milliseconds=50))
    if fault == "down":
        store.faults += [503] * 10_000
    pipeline, _ = written(url, document(1), token="x" if fault == "token" else "hush", retry=soon)
    with pytest.raises(RuntimeError, match=r"HTTP (401|503)"), pipeline:
        pass
    assert (len(store.requests) == 1) == (fault == "token")
    assert store.points == {}


def test_a_decimal_is_a_number_and_other_text_stays_text() -> None:
    values = {"total": "12.30", "code": "12.30", "gone": None}
    made = line(document(1, None, values=values), decimals=["total", "gone"]).decode()
    assert ",total=12.3," in made
    assert 'code="12.30"' in made


@given(st.text(), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_line_is_one_point_whatever_text_is_in_it(city: str, value: str) -> None:
    city = city.encode("utf-8", "replace").decode()
    if city.endswith("\\"):
        with pytest.raises(NoPoint, match="city"):
            line(document(1, city))
        return
    made = line(document(1, city, values={"t": value})).decode()
    series = re.match(r"(?:\\.|[^ \\]|\\)+?(?<!\\) ", made, re.DOTALL)
    assert series
    assert made.count("\n") == value.count("\n")
    assert made.endswith(" 0")
    head = r"orders,job=j" if city == "" else r"orders,city=.*,job=j"
    assert re.fullmatch(head, series[0][:-1], re.DOTALL)


def test_lists_are_json_and_nulls_are_left_out() -> None:
    top = [{"value": "a", "count": 2}]
    made = line(document(1, None, values={"top": top, "gone": None, "yes": True})).decode()
    assert made == (
        'orders,job=j events=1i,n=1.0,pane="on_time",'
        + 'top="[{\\"value\\":\\"a\\",\\"count\\":2}]",version=3i,yes=true 0'
    )
    assert json.loads('"' + made.split('top="')[1].split('",version')[0] + '"') == (
        '[{"value":"a","count":2}]'
    )


JOB = """\
job: j
source: {kafka: {bootstrap_servers: "127.0.0.1:1", topics: [a]}, event_time: at}
fields: {at: timestamp, k: string}
metrics: [{name: m, by: [k], window: {fixed: 1m}, values: {n: count()}}]
sinks: {influx: {url: "http://127.0.0.1:1", bucket: b, token: "${TOKEN}"}}
dead_letters: {parquet: dead}
"""


def test_a_job_file_chooses_it_and_its_token_shows_nowhere() -> None:
    job = parse(JOB.encode(), "job.yaml").job
    sink = Graph(job, {"TOKEN": "hush"}).sinks["influx"]
    assert "hush" not in repr(vars(sink)["_sink"].__dict__["_bucket"])
    [step] = [step for step in plan(job) if step.name == "influx"]
    assert step.details == {"url": "http://127.0.0.1:1", "bucket": "b"}
    assert step.inputs == ("metric m",)


def test_sessions_that_may_merge_after_they_were_shown_are_refused() -> None:
    session = JOB.replace("{fixed: 1m}", "{session: 1m}")
    parse(session.encode(), "job.yaml")
    with pytest.raises(JobFileError, match="takes no point back"):
        late = session.replace("values:", "emit: {lateness: 1m}, values:")
        parse(late.encode(), "job.yaml")
