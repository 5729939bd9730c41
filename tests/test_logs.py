"""Laws of logs: what a record says, what is left out, and that nothing of an event or secret is in it."""

import json
import logging
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from tests.rest_service import Call
from tests.rest_service import service as serving
from velocity.runners.cli import app
from velocity.runners.embedded import EmbeddedKafka
from velocity.runners.logs import Discreet, Format, Repeats, ToJson, configure, wanted

PATIENT = "Siti-Rahmawati-0817"
SECRET = "hunter2-7f3a9c"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    root, velocity = logging.getLogger(), logging.getLogger("velocity")
    before, level = list(root.handlers), velocity.level
    yield
    root.handlers[:] = before
    velocity.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_record_says_job_stage_and_partition(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Format.JSON, job="orders")

    class Warns(beam.DoFn):
        def process(self, element: int) -> None:
            place = {"topic": "events", "partition": element}
            logging.getLogger("velocity.io.x").warning("lost %d", 5, extra=place)

    with beam.Pipeline(runner="DirectRunner") as pipeline:
        _ = pipeline | beam.Create([3]) | "Read" >> beam.ParDo(Warns())
    [said] = [line for line in lines(capsys) if line["logger"] == "velocity.io.x"]
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "WARNING",
        "logger": "velocity.io.x",
        "message": "lost 5",
        "job": "orders",
        "stage": "Read",
        "topic": "events",
        "partition": 3,
    }


def test_what_comes_again_is_told_once_a_minute_with_how_often_for_each_partition() -> None:
    now = [0.0]
    repeats = Repeats(clock=lambda: now[0])

    def told(partition: int) -> int | None:
        record = logging.LogRecord("velocity", logging.WARNING, "x.py", 1, "%d", (partition,), None)
        record.partition = partition
        return getattr(record, "suppressed", 0) if repeats.filter(record) else None

    assert [told(1) for _ in range(100)] == [0] + [None] * 99
    assert told(2) == 0
    now[0] = 61
    assert told(1) == 99
    now[0] = 200
    assert told(1) == 0


def test_kinds_of_records_without_end_take_no_memory_without_end() -> None:
    repeats = Repeats(most=10, clock=lambda: 0.0)
    for line in range(1_000):
        assert repeats.filter(logging.LogRecord("a", logging.INFO, "x.py", line, "m", (), None))
    assert len(repeats._kinds) == 10


def test_of_an_error_that_is_not_ours_only_the_kind_and_the_place_are_told() -> None:
    def raised(error: ValueError) -> logging.LogRecord:
        try:
            raise error
        except ValueError:
            return logging.LogRecord("x", 40, "x.py", 1, "failed", (), sys.exc_info())

    text = ToJson().format(raised(ValueError(f"no number: {PATIENT}")))
    assert PATIENT not in text
    assert json.loads(text)["error"]["type"] == "builtins.ValueError"
    assert __file__ in json.loads(text)["error"]["at"][-1]


def test_beam_tells_of_no_option_and_no_text_of_an_error() -> None:
    def said(text: str, *args: object) -> str | None:
        record = logging.LogRecord("apache_beam.a", 40, "x.py", 1, text, args, None)
        return record.getMessage() if Discreet().filter(record) else None

    assert said("Pipeline_options: %s", {"s3_secret_access_key": SECRET}) is None
    assert said("Discarding unparseable args: ['--key=%s']", SECRET) == (
        "Discarding unparseable args: ['--key=***']"
    )
    trace = f"Error processing instruction 4. Original traceback is\n%s\nValueError: {PATIENT}\n"
    assert said(trace, 'Traceback …\n  File "a.py", line 1') == (
        "a bundle or its worker failed: ValueError"
    )


def test_the_environment_names_the_format() -> None:
    assert wanted({"VELOCITY_LOG_FORMAT": "json"}) is Format.JSON
    with pytest.raises(ValueError, match="give text or json"):
        wanted({"VELOCITY_LOG_FORMAT": "xml"})


JOB = """
job: leaks
source:
  kafka:
    bootstrap_servers: "${KAFKA}"
    topics: [events]
    options: {sasl.username: velocity, sasl.password: "${SECRET}"}
  event_time: at
fields:
  at: {type: timestamp_ms, required: true}
  patient: {type: string, required: true}
  amount: int64
enrich:
  - name: known
    get: "${SERVICE}/known?ids={keys}"
    key: patient
    id: id
    add: {city: {path: city, type: int64}}
    headers: {Authorization: "Bearer ${SECRET}"}
    retries: 1
    on_error: dead_letter
derive: {ratio: "cast(patient as bigint) / amount"}
metrics:
  - {name: m, by: [patient], window: {fixed: 1m}, values: {n: count(), total: sum(amount)}}
sinks: {elasticsearch: {url: "${ELASTICSEARCH}", index: leaks, api_key: "${SECRET}", retry_for: 2s, setup: by_command}}
dead_letters: {parquet: "${DEAD}"}
"""


def events() -> Iterator[bytes]:
    """Each fails in a way of its own."""
    whole = {"at": 1_767_225_600_000, "patient": PATIENT, "amount": 1}
    yield json.dumps(whole).encode()[:-4]
    yield f'"{PATIENT}"'.encode()
    yield PATIENT.encode() + b"\xff\xfe"
    yield json.dumps(whole | {"amount": f"much, of {PATIENT}"}).encode()
    yield json.dumps({"patient": PATIENT}).encode()
    yield json.dumps(whole | {"at": 99_767_225_600_000}).encode()
    yield json.dumps(whole).encode()
    yield json.dumps(whole | {"patient": f"{PATIENT}-2"}).encode()
    yield json.dumps(whole | {"patient": "17", "amount": 3}).encode()


def echo(call: Call) -> None:
    """A service that fails, and tells all that it was sent."""
    said = {"keys": getattr(call, "keys", []), "headers": dict(call.headers), "path": call.path}
    call.answer(HTTPStatus.INTERNAL_SERVER_ERROR, json.dumps(said).encode())


def wrong(call: Call) -> None:
    """A service that knows the keys, with a city that is no number."""
    call.answer(200, json.dumps([{"id": key, "city": PATIENT} for key in call.keys]).encode())


def refusing(call: Call) -> None:
    """An Elasticsearch that takes no document, and says which."""
    if call.command == "GET":
        body = {"version": {"number": "9.5.3"}, "tagline": "You Know, for Search"}
        return call.answer(200, json.dumps(body).encode(), {"X-Elastic-Product": "Elasticsearch"})
    documents = call.body.splitlines()[1::2]
    error = {"type": "document_parsing_exception", "reason": f"Preview: '{PATIENT}' {SECRET}"}
    items = [{"index": {"status": 400, "error": error}} for _ in documents]
    answer = json.dumps({"errors": True, "items": items}).encode()
    return call.answer(200, answer, {"X-Elastic-Product": "Elasticsearch"})


def known(call: Call) -> None:
    call.answer(200, json.dumps([{"id": key, "city": 5} for key in call.keys]).encode())


@pytest.mark.embedded
@pytest.mark.parametrize("path", ["echo", "wrong", "refused", "service raises", "sink forbids"])
def test_no_failing_path_tells_of_patients_or_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """Every record is looked at, whatever its level; and all that the command writes."""
    job = tmp_path / "job.yaml"
    text = JOB
    replies = {"echo": echo, "wrong": wrong}
    elastic: Any = refusing
    if path == "sink forbids":
        elastic = echo
    if path == "service raises":
        (tmp_path / "leaky_calls.py").write_text(LEAKY)
        monkeypatch.syspath_prepend(str(tmp_path))
        text = text.replace('get: "${SERVICE}/known?ids={keys}"', "python: leaky_calls:Leaky")
        text = text.replace("    id: id\n", "")
    if path in ("refused", "sink forbids"):
        text = text.replace('"cast(patient as bigint) / amount"', '"amount + 1"')
    job.write_text(text)
    with (
        EmbeddedKafka({"events": 1}) as kafka,
        serving(usual=replies.get(path, known)) as service,
        serving(usual=elastic) as store,
    ):
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        for value in events():
            producer.produce("events", value, key=PATIENT.encode(), headers={"who": PATIENT})
        assert producer.flush(30) == 0
        environment = {
            "KAFKA": kafka.bootstrap_servers,
            "SERVICE": service.host,
            "ELASTICSEARCH": store.host,
            "SECRET": SECRET,
            "DEAD": str(tmp_path / "dead"),
        }
        with caplog.at_level(logging.DEBUG, "velocity"), caplog.at_level(logging.INFO):
            done = CliRunner().invoke(
                app, ["--log-format", "json", "run", str(job), "--until", "now"], env=environment
            )
    fails = path in ("service raises", "sink forbids")
    assert done.exit_code == fails, done.output
    assert "Traceback" not in done.output
    told = [done.output, *(ToJson().format(record) for record in caplog.records if _kept(record))]
    for text in told:
        assert PATIENT not in text
        assert SECRET not in text
    if not fails:
        assert list((tmp_path / "dead").rglob("*.parquet"))  # there it is, whole


def _kept(record: logging.LogRecord) -> bool:
    return Discreet().filter(record)


LEAKY = """
from velocity.io.rest_calls import Request

class Leaky:
    def request(self, keys):
        raise ValueError(f"cannot ask for {keys}")
    def answers(self, body, keys):
        return {}
    def can_ask(self, key):
        return True
"""
