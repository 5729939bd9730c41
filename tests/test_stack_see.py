"""What people see of documents in a real Elasticsearch: the board in a real Chromium, an event's way."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from elasticsearch import helpers
from playwright.sync_api import Browser, Page, expect

from tests.chromium import browsing
from tests.cluster import VELOCITY, Cluster, interrupt
from velocity.io.elastic_connection import Connection
from velocity.runners.embedded import EmbeddedKafka

pytestmark = pytest.mark.stack

JOB = """
job: seen
source:
  kafka: {bootstrap_servers: "${KAFKA}", topics: [events]}
  event_time: at
  disorder: 5s
fields:
  event_id: {type: string, required: true}
  at: {type: timestamp_ms, required: true}
  city: string
  patient: string
  amount: int64
metrics:
  - {name: by_city, where: amount > 10, by: [city], window: {fixed: 1m}, emit: {lateness: 0s}, values: {orders: count(), revenue: sum(amount)}, units: {revenue: IDR}}
  - {name: sliding, window: {sliding: 2m, every: 1m}, id: "slid-{window_start}", emit: {lateness: 0s}, values: {n: count()}}
  - {name: visits, by: [patient], window: {session: 30s}, emit: {lateness: 0s}, values: {n: count()}}
sinks: {elasticsearch: {url: "${ELASTICSEARCH}", index: "seen-{window_start:%Y.%m}"}}
dead_letters: {parquet: "${FOLDER}/dead"}
"""
T0 = 1_767_225_600_000
"""2026-01-01T00:00:00Z"""
WITHIN = 60_000
"""Milliseconds for what must come to the page: a test waits for it, and measures nothing."""


@dataclass
class World:
    """A job on an Elasticsearch of its own and an embedded Kafka, and ``velocity``."""

    velocity: Cluster
    folder: Path
    kafka: str

    @property
    def job(self) -> Path:
        return self.folder / "job.yaml"

    def produce(self, *events: tuple[str, float, str, int], patient: str = "Siti") -> None:
        """Events by their id, second, city and amount."""
        producer = Producer({"bootstrap.servers": self.kafka})
        for id_, second, city, amount in events:
            at = T0 + round(second * 1000)
            body = {"event_id": id_, "at": at, "city": city, "patient": patient, "amount": amount}
            producer.produce("events", json.dumps(body).encode())
        assert producer.flush(30) == 0

    def run(self) -> None:
        """The job over all events that there are, on the DirectRunner; then all is searchable."""
        self.velocity("run", self.job, "--until", "now")
        with Connection((self.velocity.environ["ELASTICSEARCH"],)).open() as client:
            client.indices.refresh(index="seen-*")

    def documents(self) -> dict[str, dict[str, Any]]:
        with Connection((self.velocity.environ["ELASTICSEARCH"],)).open() as client:
            hits = helpers.scan(client, index="velocity-seen")
            return {hit["_id"]: hit["_source"] for hit in hits}

    def way(self, id_: str, code: int = 0) -> dict[str, Any]:
        told = self.velocity("trace", id_, "--job", self.job, "--json", code=code)
        found: dict[str, Any] = json.loads(told)
        return found

    @contextmanager
    def board(self) -> Iterator[str]:
        """The address of ``velocity board``, which ends as by Ctrl-C."""
        serving = subprocess.Popen(
            [*VELOCITY, "board", str(self.job), "--port", "0", "--json"],
            env=self.velocity.environ,
            stdout=subprocess.PIPE,
        )
        assert serving.stdout is not None
        with serving.stdout:
            try:
                yield json.loads(serving.stdout.readline())["url"]
            finally:
                code = interrupt(serving)
        assert code == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    state, folder = (tmp_path_factory.mktemp(name) for name in ("state", "seen"))
    (folder / "job.yaml").write_text(JOB)
    velocity = Cluster(state, {**os.environ, "VELOCITY_STATE": str(state), "FOLDER": str(folder)})
    with EmbeddedKafka({"events": 1}) as kafka:
        try:
            velocity("stack", "up", "elasticsearch", "--elasticsearch", "8")
            velocity.environ["ELASTICSEARCH"] = velocity.address("elasticsearch")
            velocity.environ["KAFKA"] = kafka.bootstrap_servers
            made = World(velocity, folder, kafka.bootstrap_servers)
            made.produce(
                ("counted", 1, "Solo", 20),
                ("small", 2, "Solo", 5),
                ("other", 3, "Jakarta", 30),
                ("next", 61, "Solo", 40),
                ("far", 4_000, "Solo", 50),
                ("late", 4, "Solo", 20),
            )
            made.run()
            yield made
        finally:
            velocity("stack", "down")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from browsing()


def test_the_way_of_an_event_leads_to_the_documents_that_count_it(world: World) -> None:
    documents = world.documents()
    [reading] = world.way("counted")["readings"]
    assert reading["status"] == "counted"
    counting = {found["id"]: found for found in reading["documents"]}
    assert {found["status"] for found in counting.values()} == {"counted"}
    assert sorted(found["metric"] for found in counting.values()) == [
        "by_city",
        "sliding",
        "sliding",
        "visits",  # whose window, and so whose id, only the store knows
    ]
    for id_, found in counting.items():
        for name in ("events", "pane", "written_at", "dimensions", "window_start", "window_end"):
            assert found[name] == documents[id_][name], name
        assert found["index"].startswith("seen-20")


def test_an_event_that_some_metric_does_not_count_is_in_the_others_documents(world: World) -> None:
    [reading] = world.way("small")["readings"]
    assert {found["metric"] for found in reading["documents"]} == {"sliding", "visits"}


def test_an_event_that_came_too_late_is_a_dead_letter_and_in_no_document(world: World) -> None:
    [reading] = world.way("late")["readings"]
    assert [letter["cause"] for letter in reading["dead_letters"]] == ["late"]
    assert {found["status"] for found in reading["documents"]} == {"late"}
    assert world.way("nosuch", code=1)["readings"] == []


# The board comes last: it has the job write more.


def card(page: Page, metric: str) -> Any:
    return page.locator(f'[data-part="card:seen.{metric}"]')


def shows(page: Page, number: str, metric: str = "by_city") -> None:
    expect(card(page, metric).locator(".headline b")).to_have_text(number, timeout=WITHIN)


def test_the_board_shows_what_a_run_has_written_and_what_the_next_one_changes(
    world: World, browser: Browser
) -> None:
    errors: list[str] = []
    with world.board() as url:
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/?range=6h")
        shows(page, "1")
        expect(card(page, "by_city").locator(".others")).to_contain_text("50")
        expect(card(page, "by_city").locator(".others")).to_contain_text("IDR")
        expect(card(page, "visits")).to_be_visible()
        # The same window once more: its document is another version of itself.
        world.produce(("more", 4_001, "Solo", 60), ("elsewhere", 4_002, "Jakarta", 70))
        world.run()
        shows(page, "3")
        expect(card(page, "by_city").locator(".others")).to_contain_text("180", timeout=WITHIN)
        page.get_by_label("Value", exact=True).fill("Jakarta")
        page.get_by_role("button", name="Narrow").click()
        shows(page, "1")
        assert re.search(r"key\.city=Jakarta", page.url)
        page.close()
    assert errors == []
