"""The way of an event as ``velocity trace`` tells it is the way that a run of the job has taken."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from typer.testing import CliRunner, Result

from tests.rest_service import service
from velocity.runners.cli import app
from velocity.runners.embedded import EmbeddedKafka

pytestmark = pytest.mark.embedded

JOB = """
job: traced
source:
  kafka: {bootstrap_servers: "${KAFKA}", topics: [events]}
  event_time: at
  disorder: 5s
  deduplicate: {by: event_id, horizon: 1h}
fields:
  event_id: {type: string, required: true}
  at: {type: timestamp_ms, required: true}
  provider: string
  patient: string
  amount: int64
filter: amount >= 0
enrich:
  - {name: known, get: "${SERVICE}/known?ids={keys}", key: provider, id: id, add: {city: city}, on_missing: dead_letter}
sensitive: {fields: [patient], hash_with: "${PEPPER}"}
derive: {large: amount > 100}
metrics:
  - {name: by_city, where: amount > 10, by: [city], window: {fixed: 1m}, emit: {lateness: 0s}, values: {n: count()}}
  - {name: sliding, where: amount > 10, window: {sliding: 2m, every: 1m}, id: "slid-{window_start}", emit: {lateness: 0s}, values: {n: count()}}
  - {name: visits, where: amount > 10, by: [patient], window: {session: 30s}, emit: {lateness: 0s}, values: {n: count()}}
sinks: {sqlite: {path: "${FOLDER}/documents.db"}}
dead_letters: {parquet: "${FOLDER}/dead"}
archive: {path: "${FOLDER}/archive", enriched: true}
"""

T0 = 1_767_225_600_000
"""2026-01-01T00:00:00Z"""
SENT = T0 + 4_000_000
"""By the broker's clock: more than an hour later."""


def event(id_: str, second: float, amount: Any, provider: str = "p1") -> bytes:
    at = T0 + round(second * 1000)
    body = {"event_id": id_, "at": at, "provider": provider, "patient": "Siti", "amount": amount}
    return json.dumps(body).encode()


MESSAGES = [
    event("counted", 1, 20),
    event("small", 2, 5),
    event("filtered", 3, -1),
    event("unknown", 4, 20, "nobody"),
    event("wrong", 5, "many"),
    event("counted", 6, 20),
    event("far", 4_000, 20),
    event("late", 7, 20),
    event("counted-not", 8, 20),
]


class Receiver(HTTPServer):
    """Takes spans by OTLP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.spans: list[Any] = []


class _Receive(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Traced:
    """A job that has run over all messages, and ``velocity`` in its environment."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder, self.environ = folder, environ
        self.job = folder / "job.yaml"

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments], env=self.environ)

    def way(self, id_: str, *options: str, code: int = 0) -> dict[str, Any]:
        done = self("trace", id_, "--job", str(self.job), "--json", *options)
        assert done.exit_code == code, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("traced")
    (folder / "job.yaml").write_text(JOB)
    with EmbeddedKafka({"events": 1}) as kafka, service(knows=["p1"]) as known:
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        for number, value in enumerate(MESSAGES):
            producer.produce("events", value, timestamp=SENT + number)
        assert producer.flush(30) == 0
        environ = {
            "KAFKA": kafka.bootstrap_servers,
            "SERVICE": known.host,
            "PEPPER": "s3cret-pepper",
            "FOLDER": str(folder),
        }
        found = Traced(folder, environ)
        done = found("run", str(found.job), "--until", "now")
        assert done.exit_code == 0, done.output
        yield found


def test_a_counted_event_is_in_the_documents_that_the_run_has_written(traced: Traced) -> None:
    way = traced.way("counted")
    first, second = way["readings"]
    place = {"topic": "events", "partition": 0, "offset": 0, "read_from": "kafka"}
    assert place.items() <= first.items()
    assert first["sent_at"] == "2026-01-01T01:06:40.000Z"
    assert first["event_time"] == "2026-01-01T00:00:01.000Z"
    assert first["enriched"] == {"city": "City of p1"}
    assert first["enriched_by"] == "archive"
    assert first["status"] == "counted"
    documents = {(d["metric"], d["window_start"]): d for d in first["documents"]}
    assert {status["status"] for status in first["documents"]} == {"counted"}
    assert sorted(documents) == [
        ("by_city", "2026-01-01T00:00:00.000Z"),
        ("sliding", "2025-12-31T23:59:00.000Z"),
        ("sliding", "2026-01-01T00:00:00.000Z"),
        ("visits", "2026-01-01T00:00:01.000Z"),
    ]
    by_city = documents["by_city", "2026-01-01T00:00:00.000Z"]
    assert by_city["id"] == f'traced/by_city/{T0}/["City of p1"]'
    assert by_city["pane"] == "on_time"
    assert (second["status"], second["offset"]) == ("duplicate", 5)
    assert "events/0/0" in second["why"]


def test_what_sensitive_fields_hold_is_not_told(traced: Traced) -> None:
    assert "Siti" not in json.dumps(traced.way("counted"))
    assert "Siti" not in traced("trace", "counted", "--job", str(traced.job)).output


@pytest.mark.parametrize(
    ("id_", "status", "why"),
    [
        ("small", "unwanted", "it meets the condition of no metric"),
        ("filtered", "filtered", "it does not meet amount >= 0"),
        ("unknown", "dead_letter", "enrich: key_not_found"),
        ("wrong", "dead_letter", "decode: wrong_type"),
        ("late", "dead_letter", "0 of 4 documents count it"),
    ],
)
def test_an_event_that_does_not_count_is_told_why(
    traced: Traced, id_: str, status: str, why: str
) -> None:
    [reading] = traced.way(id_)["readings"]
    assert reading["status"] == status
    assert why in reading["why"]
    causes = [letter["cause"] for letter in reading["dead_letters"]]
    assert causes == ([] if status != "dead_letter" else [causes[0]])
    if id_ == "late":
        assert causes == ["late"]
        assert {document["status"] for document in reading["documents"]} == {"late"}


def test_the_archive_tells_of_events_that_kafka_no_longer_has(traced: Traced) -> None:
    [reading] = traced.way("counted", "--source", "archive")["readings"]
    assert (reading["read_from"], reading["offset"]) == ("archive", 0)
    assert reading["status"] == "counted"
    assert len(reading["documents"]) == 4


def test_an_event_that_is_nowhere_is_exit_code_1(traced: Traced) -> None:
    way = traced.way("nosuch", code=1)
    assert way["looked_in"] == ["kafka", "archive"]
    assert way["readings"] == []
    # an id that is a part of another is not that event
    assert [r["offset"] for r in traced.way("counted-not")["readings"]] == [8]


def test_people_read_a_tree(traced: Traced) -> None:
    text = traced("trace", "counted", "--job", str(traced.job)).stdout
    assert "read from kafka: events/0/0" in text
    assert "enriched, as it is archived: city: City of p1" in text
    assert "counted: 4 of 4 documents count it" in text
    assert "duplicate: events/0/0 has the same event_id and came first" in text


def test_spans_of_the_way_go_to_a_receiver_over_a_socket(traced: Traced) -> None:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{receiver.server_port}"
        traced.way("counted", "--otlp", url)
    finally:
        receiver.shutdown()
        receiver.server_close()
        thread.join()
    by_name = {span.name: span for span in receiver.spans}
    root, read = by_name["event counted"], by_name["read events/0/0"]
    assert read.parent_span_id == root.span_id
    assert by_name["document by_city"].parent_span_id == read.span_id
    assert {span.trace_id for span in receiver.spans} == {root.trace_id}
    assert root.start_time_unix_nano == (T0 + 1_000) * 1_000_000
    console = traced("trace", "small", "--job", str(traced.job), "--otlp", "console")
    assert '"name": "read events/0/1"' in console.stderr


def test_a_receiver_that_is_not_there_is_named(traced: Traced) -> None:
    done = traced("trace", "small", "--job", str(traced.job), "--otlp", "http://127.0.0.1:9")
    assert done.exit_code == 1
    assert "http://127.0.0.1:9 has not taken the spans" in done.stderr


def test_wrong_usage_is_told(traced: Traced) -> None:
    job = ("--job", str(traced.job))
    assert traced("trace", "x", *job, "--source", "disk").exit_code == 2
    done = traced("trace", "x", *job, "--by", "nosuch")
    assert done.exit_code == 1
    assert "no field 'nosuch'" in done.stderr
