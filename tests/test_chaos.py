"""Whatever dies, the documents are the same: rounds of faults on the real servers.

``make test-chaos`` runs it; ``CHAOS_SEED``, ``CHAOS_ROUNDS`` and ``CHAOS_MINUTES`` say what. No
round begins for which the minutes left may not do. A line for each round goes to the file
``CHAOS_RESULTS``; ``python -m tests.chaos_rounds FILES`` makes the table of several.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.chaos_faults import World, deal
from tests.chaos_proxy import Proxy
from tests.chaos_rounds import PARTITIONS, TOPIC, Rounds, faults, table
from tests.cluster import Cluster
from velocity.pipelines.directory import directory
from velocity.runners.demo import JOB
from velocity.runners.embedded import DirectoryService

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]  # it lasts as long as it is told to

SEED = int(os.environ.get("CHAOS_SEED") or 1)
ROUNDS = int(os.environ.get("CHAOS_ROUNDS") or 50)
MINUTES = float(os.environ.get("CHAOS_MINUTES") or 120)


@pytest.fixture
def ended_in_order() -> Iterator[None]:
    """SIGTERM ends the test as Ctrl-C does: with its servers."""

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def began() -> float:
    """Before the servers are up: that takes some of the minutes too."""
    return time.monotonic()


@pytest.fixture
def rounds(began: float, ended_in_order: None, tmp_path: Path) -> Iterator[Rounds]:
    folder = tmp_path / "state"
    cluster = Cluster(folder, {**os.environ, "VELOCITY_STATE": str(folder)})
    with (
        DirectoryService(directory(SEED).tables()) as service,
        Proxy(service.url, SEED) as rest,
        Proxy("", SEED) as elasticsearch,
    ):
        print(f"\nthe servers' logs: {folder}", flush=True)
        try:
            cluster("stack", "up", "--ha")
            kafka = cluster.address("kafka")
            elasticsearch.target = cluster.address("elasticsearch")
            cluster.environ |= {
                "KAFKA": kafka,
                "ELASTICSEARCH": elasticsearch.url,
                "PROVIDERS": rest.url,
                "PATIENTS": rest.url,
            }
            text = JOB.read_text()
            # Ticks close windows here, not silence; and what is cached would meet no fault.
            for old, new in (("idle_after: 60s", "idle_after: 2h"), ("ttl: 10m", "ttl: 1s")):
                assert old in text
                text = text.replace(old, new)
            job = tmp_path / "job.yaml"
            job.write_text(text.replace("missing_ttl: 30s", "missing_ttl: 1s"))
            client = AdminClient({"bootstrap.servers": kafka})
            for made in client.create_topics([NewTopic(TOPIC, PARTITIONS, 1)]).values():
                made.result()
            world = World(cluster, job, {"elasticsearch": elasticsearch, "rest": rest})
            yield Rounds(world, kafka, elasticsearch.target, SEED)
        finally:
            cluster("stack", "down")


def test_no_fault_shows_in_any_document(began: float, rounds: Rounds) -> None:
    print(f"\nseed {SEED}, {ROUNDS} rounds in {MINUTES:g} minutes at most", flush=True)
    longest = 0.0
    results = os.environ.get("CHAOS_RESULTS")
    hands = deal(random.Random(SEED))
    done: list[str] = []
    rounds.world.start()
    for number in range(ROUNDS):
        if time.monotonic() - began + longest > MINUTES * 60:
            break
        kinds = next(hands)
        names = ", ".join(kind.name for kind in kinds)
        print(f"round {number}: {names}", flush=True)
        one = rounds.run(number, kinds)
        longest = max(longest, one.seconds)
        took = ", ".join(f"{s.recovery.total_seconds():.0f} s" for s in one.struck)
        print(f"  {one.seconds:.0f} s, well after {took}; {one.documents} documents", flush=True)
        done.append(one.line())
        if results:
            with Path(results).open("a") as file:
                file.write(one.line() + "\n")
        assert one.first == [], f"seed {SEED}, round {number}: {dict(one.wrong)}, {names}"
    assert done
    print(f"\n{table(done)}\n", flush=True)
    # What comes late must not have undone an earlier round.
    assert faults(rounds.expected, rounds.documents())[:5] == []
    assert rounds.dead_letters() == rounds.malformed
    rounds.world.cluster("stop", rounds.world.job, "--cancel")
