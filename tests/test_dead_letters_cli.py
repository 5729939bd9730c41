"""Dead letters at the command line: looked at, replayed, and counted as if they had never failed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from confluent_kafka import Producer
from typer.testing import CliRunner, Result

from velocity.io.copies import ORIGIN
from velocity.io.kafka_consumer import Offsets
from velocity.io.sqlite import read_documents
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import Message, differences, recompute
from velocity.runners.cli import app
from velocity.runners.embedded import DirectoryService, EmbeddedKafka

pytestmark = pytest.mark.embedded

NO_SERVICE = "http://127.0.0.1:1"
T0 = 1_767_225_600_000
PROVIDERS = {"p1": {"id": "p1", "city": "Medan"}, "p2": {"id": "p2", "city": "Solo"}}
JOB = """
job: orders
source:
  kafka: {{bootstrap_servers: "${{KAFKA}}", topics: [orders]}}
  event_time: at
fields: {{at: timestamp_ms, provider_id: string, amount: int64}}
enrich:
  - name: provider
    get: "${{PROVIDERS}}/providers?ids={{keys}}"
    key: provider_id
    id: id
    add: {{city: city}}
    retries: 0
    on_error: dead_letter
metrics:
  - name: revenue_by_city
    by: [city]
    window: {{fixed: 1m}}
    values: {{orders: count(), revenue: sum(amount)}}
sinks: {{sqlite: {{path: {folder}/documents.db}}}}
dead_letters: {{{dead_letters}}}
"""


@dataclass
class World:
    """A job, its broker, and the command line."""

    folder: Path
    kafka: EmbeddedKafka
    environment: dict[str, str]

    @property
    def path(self) -> Path:
        return self.folder / "job.yaml"

    def send(self, *values: bytes) -> list[Message]:
        """Originals, each with a key and a header, over two partitions."""
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers})
        for i, value in enumerate(values):
            producer.produce(
                "orders", value, b"k%d" % i, i % 2, timestamp=T0, headers=[("trace", b"%d" % i)]
            )
        assert producer.flush(30) == 0
        return [Message(value, T0) for value in values]

    def run(self, providers: str, start: Offsets) -> None:
        """The job from offsets to the end, as one that goes on reads what came since."""
        graph = Graph(load(self.path), self.environment | {"PROVIDERS": providers})
        with beam.Pipeline(FnApiRunner()) as pipeline:
            flow: Any = pipeline | replace(graph.read("latest"), start=start)
            for enrichment in graph.enrichments:
                flow = flow | enrichment
            documents, dead = flow | graph.metrics
            rejected = documents | graph.sinks["sqlite"]
            _ = (dead, rejected) | beam.Flatten() | graph.dead_letters

    def velocity(self, command: str, *options: str) -> Result:
        return CliRunner().invoke(
            app, ["dead-letters", command, str(self.path), *options], env=self.environment
        )

    def json(self, command: str, *options: str) -> Any:
        result = self.velocity(command, *options, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def listed(self, *options: str) -> list[dict[str, Any]]:
        letters: list[dict[str, Any]] = self.json("list", *options)["letters"]
        return sorted(letters, key=lambda letter: str(letter["id"]))


@pytest.fixture(params=["kafka: dead", "parquet: {folder}/dead"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with EmbeddedKafka({"orders": 2, "dead": 1}) as kafka:
        text = JOB.format(folder=tmp_path, dead_letters=request.param.format(folder=tmp_path))
        (tmp_path / "job.yaml").write_text(text)
        environment = {"KAFKA": kafka.bootstrap_servers, "PROVIDERS": NO_SERVICE}
        yield World(tmp_path, kafka, environment)


def order(i: int) -> bytes:
    return b'{"at": %d, "provider_id": "p%d", "amount": %d}' % (T0 + i * 7_000, 1 + i % 2, i)


def test_replayed_events_count_as_if_they_had_never_failed(world: World) -> None:
    messages = world.send(*(order(i) for i in range(19)), b"{")
    world.run(NO_SERVICE, {})
    assert read_documents(str(world.folder / "documents.db")) == {}
    counts = {row["cause"]: row["count"] for row in world.json("stats")["stats"]}
    assert counts == {"service_failed": 19, "invalid_json": 1}

    assert world.json("replay") == {
        "sent": 20, "documents": 0, "gone": [], "late": 0, "problems": [],
    }  # fmt: skip
    assert world.listed() == []
    assert len(world.listed("--replayed")) == 20
    assert world.json("replay")["sent"] == 0  # a letter is replayed once

    with DirectoryService({"providers": PROVIDERS}) as service:
        world.run(service.url, {("orders", 0): 10, ("orders", 1): 10})
    expected = recompute(load(world.path), messages, {"provider": PROVIDERS.get})
    found = read_documents(str(world.folder / "documents.db"))
    assert len(found) > 2
    assert list(differences(expected, found)) == []

    (again,) = world.listed()
    assert (again["attempt"], again["cause"], again["value"]) == (2, "invalid_json", "{")
    assert again["key"] == "k19"
    assert again["timestamp"] == "2026-01-01T00:00:00.000Z"
    headers = [(h["name"], h["value"]) for h in again["headers"]]
    assert headers[0] == ("trace", "19")
    assert (ORIGIN, "orders/1/9") in headers  # the first original, not the copy


def test_a_letter_that_fails_again_keeps_its_first_origin(world: World) -> None:
    world.send(b"{")
    world.run(NO_SERVICE, {})
    world.json("replay")
    world.run(NO_SERVICE, {("orders", 0): 1})
    world.json("replay")
    world.run(NO_SERVICE, {("orders", 0): 2})
    (third,) = world.listed()
    assert third["attempt"] == 3
    assert {h["name"]: h["value"] for h in third["headers"]}[ORIGIN] == "orders/0/0"


def test_letters_are_chosen_by_cause_stage_time_and_number(world: World) -> None:
    world.send(order(0), order(1), b"{")
    world.run(NO_SERVICE, {})
    assert [x["value"] for x in world.listed("--cause", "invalid_json")] == ["{"]
    assert len(world.listed("--stage", "enrich")) == 2
    assert len(world.listed("--since", "2026-01-01T00:00:00Z")) == 3
    assert world.listed("--until", "2026-01-01T00:00:00Z") == []
    assert world.json("list", "--limit", "1")["count"] == 3
    assert world.json("replay", "--stage", "enrich", "--limit", "1")["sent"] == 1
    assert len(world.listed()) == 2
    for wrong in (["--cause", "nosuch"], ["--stage", "nosuch"], ["--since", "2026-01-01"]):
        assert world.velocity("list", *wrong).exit_code == 2


def test_a_letter_is_shown_whole(world: World) -> None:
    world.send(b"[\xff")
    world.run(NO_SERVICE, {})
    shown = world.velocity("show", "orders/0/0#1")
    assert shown.exit_code == 0
    for text in ("not_utf8", "not UTF-8 at byte 1", "5bff", "header trace", "k0"):
        assert text in shown.stdout
    missing = world.velocity("show", "orders/0/7#1")
    assert missing.exit_code == 1
    assert "list shows the ids there are" in missing.stderr
    assert "orders/0/0#1" in world.velocity("list").stdout
    assert "not_utf8" in world.velocity("stats").stdout


def test_where_nothing_failed_there_is_nothing(world: World) -> None:
    for command in ("list", "stats"):
        assert world.velocity(command).stdout == "No dead letters.\n"
    assert world.velocity("replay").stdout == "0 dead letters replayed.\n"


def test_what_is_no_letter_on_the_topic_is_told(world: World) -> None:
    producer = Producer({"bootstrap.servers": world.kafka.bootstrap_servers})
    producer.produce("dead", b"anyone's")
    assert producer.flush(30) == 0
    world.send(b"{")
    world.run(NO_SERVICE, {})
    result = world.velocity("list")
    assert result.exit_code == 0
    assert "orders/0/0#1" in result.stdout
    on_kafka = load(world.path).dead_letters.kafka is not None
    told = "topic dead partition 0 offset 0: no dead letter: header velocity.job is missing"
    assert (told in result.stderr) is on_kafka
