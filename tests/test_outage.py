"""A run over an outage of its services: it waits, and ends as if there had been none."""

import io
from http import HTTPStatus
from pathlib import Path

import pytest
from rich.console import Console

from velocity.io.dead_letters import read_dead_letters
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import differences
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import JOB, expected
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.options import options_for
from velocity.runners.produce import produce
from velocity.runners.run import redirect, run

pytestmark = pytest.mark.embedded


class Faulty(DirectoryService):
    """Is down for the first calls."""

    refused = 0

    def answer(self, target: str) -> tuple[HTTPStatus, bytes]:
        if self.refused < 12:
            self.refused += 1
            return HTTPStatus.SERVICE_UNAVAILABLE, b""
        return super().answer(target)


def test_a_run_over_an_outage_ends_with_every_event_enriched_and_no_dead_letter(
    tmp_path: Path,
) -> None:
    text = JOB.read_text().replace(
        "    id: id\n", "    id: id\n    retries: 0\n    breaker: {open_for: 1s}\n"
    )
    job = parse(text.encode(), "job").job
    store, dead = tmp_path / "documents.db", tmp_path / "dead"
    known, scenario = directory(7), Scenario(seed=7, events=3_000, domains=("pharmacy_delivery",))
    with (
        EmbeddedKafka({"pharmacy.events": 4}) as kafka,
        Faulty(known.tables()) as service,
    ):
        produce(scenario, kafka.bootstrap_servers)
        environment = {
            "KAFKA": kafka.bootstrap_servers,
            "PROVIDERS": service.url,
            "PATIENTS": service.url,
        }
        graph = Graph(redirect(job, sqlite=store, dead_letters=dead), environment)
        counters = run(graph, options_for("direct", []), "latest", Console(file=io.StringIO()))
        assert service.refused == 12
    assert counters["enrich_waits"] > 0
    assert counters["enrich_wait_ms"] > 0
    messages = [m for m in simulate(scenario) if m.topic == "pharmacy.events"]
    wanted = expected(job, messages, known)
    assert list(differences(wanted, read_documents(str(store)))) == []
    assert set(read_dead_letters(str(dead))["stage"].to_pylist()) == {"decode"}
