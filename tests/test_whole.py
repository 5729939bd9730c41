"""The whole system, small: from SNS envelopes to documents, all of which equal the recomputation."""

import io
import sqlite3
import threading
from pathlib import Path

import pytest
from rich.console import Console

from velocity.io.sns import Notification
from velocity.io.sns_signature import Forged
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.embedded import EmbeddedKafka
from velocity.runners.simulated_sns import UNTAKEN, Ingress, SimulatedSns, published
from velocity.runners.whole import compare_all, demo_all, scenario_of, whole


@pytest.mark.embedded
def test_from_envelopes_to_documents_all_equals_the_recomputation(tmp_path: Path) -> None:
    out, folder = io.StringIO(), tmp_path / "demo"
    console = Console(file=out, width=200)
    assert demo_all(events=1_500, seed=3, folder=folder, console=console) == 0, out.getvalue()
    told = out.getvalue()
    assert "signatures verified" in told
    assert "documents of 5 jobs equal a plain recomputation" in told

    # The same comparison sees a document of each job that has one event too few, and a lost letter.
    with sqlite3.connect(folder / "documents.db") as db:
        db.execute(
            "UPDATE documents SET events = events - 1 "
            "WHERE id IN (SELECT min(id) FROM documents GROUP BY job)"
        )
    scenario, dead = scenario_of(1_500, 3), folder / "dead-letters"
    next(dead.rglob("*.parquet")).unlink()
    documents = read_documents(str(folder / "documents.db"))
    wrong = compare_all(scenario, whole(), directory(3), documents, dead)
    assert sum("events is" in line for line in wrong) == 5
    assert any(line.startswith("dead letters: ") for line in wrong)


def test_what_sns_pushes_has_a_signature_that_holds_for_what_it_signed_alone() -> None:
    scenario = Scenario(events=1, sns=True)
    sns = SimulatedSns(scenario)
    [message] = simulate(scenario)
    signed = sns.signed(message.value)
    sns.verifier.check(Notification.parse(signed))
    with pytest.raises(Forged):
        sns.verifier.check(Notification.parse(signed.replace(b"event_type", b"event-type")))
    with pytest.raises(Forged):  # the simulator's own is a dummy
        sns.verifier.check(Notification.parse(message.value))


def test_what_sns_takes_is_all_but_what_is_empty_or_no_text() -> None:
    scenario = Scenario(events=3_000, malformed_share=0.1)
    every = list(simulate(scenario))
    assert list(published(scenario)) == [m for m in every if m.cause not in UNTAKEN]
    assert len(list(published(scenario))) < len(every)


@pytest.mark.embedded
def test_a_notification_that_is_refused_ends_the_pushing_with_what_was_said() -> None:
    sns = SimulatedSns(Scenario(events=50))
    stranger = SimulatedSns(Scenario(events=50))
    with EmbeddedKafka() as kafka, Ingress(stranger, kafka.bootstrap_servers, {}) as ingress:
        with pytest.raises(RuntimeError, match="400 no route for topic"):
            sns.push(ingress.port)
        stopped = threading.Event()
        stopped.set()
        assert sns.push(ingress.port, stop=stopped) == 0
