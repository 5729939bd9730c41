"""The rounds of the chaos suite: events sent while faults strike, documents compared, a table.

A round has a day of event time to itself, so its documents are its own. Its windows are closed by
ticks, events that count nowhere, sent to each partition once all faults are over.
"""

import json
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from confluent_kafka import Producer
from elasticsearch import Elasticsearch, helpers

from tests.chaos_faults import KINDS, PATIENCE, Kind, Struck, World, plain, struck
from tests.cluster import Pace
from velocity.io.records import rfc3339
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import ExpectedDocument, differences
from velocity.pipelines.simulator import Kind as MessageKind
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import expected
from velocity.runners.produce import produce

TOPIC = "pharmacy.events"
PARTITIONS = 4
INDEX = "velocity-pharmacy-*"
FIRST_DAY = datetime.fromisoformat("2026-01-05T00:00:00Z")
EVENTS = 10_000
"""Of a round."""
DAY_BEGINS = timedelta(hours=-8)
"""From a round's first event to the earliest beginning of a window of its day: Jakarta's is 7 hours
before."""
TICK = timedelta(hours=23)
"""From a round's first event to the time that closes all windows of its day."""
RATE = 200.0
"""Events a second while faults last; the rest is sent at once."""


@dataclass
class Round:
    """What came of a round."""

    seed: int
    number: int
    struck: list[Struck] = field(default_factory=list)
    seconds: float = 0.0
    documents: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    """Documents lost, double, stale or otherwise unlike the recomputation."""
    first: list[str] = field(default_factory=list)
    """The first of them, in words."""

    def line(self) -> str:
        """For a file of results, that ``table`` reads."""
        return json.dumps(
            {
                "seed": self.seed,
                "round": self.number,
                "struck": [plain(s) for s in self.struck],
                "seconds": round(self.seconds, 1),
                "documents": self.documents,
                "wrong": self.wrong,
            }
        )


def scenario_of(seed: int, number: int) -> Scenario:
    """The events of a round: of the same people each day, as the directory of the seed knows them."""
    return Scenario(
        seed=seed,
        events=EVENTS,
        start=FIRST_DAY + timedelta(days=number),
        rate=10.0,
        domains=("pharmacy_delivery",),
    )


class Task:
    """A call in a thread that nobody waits for if the suite is interrupted."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - result() raises it
            self._error = error

    def result(self) -> None:
        """Returns when the call has; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error


class Rounds:
    """Rounds against a world; ``expected`` holds the documents of all so far."""

    def __init__(self, world: World, kafka: str, elasticsearch: str, seed: int) -> None:
        self.world = world
        self.kafka = kafka
        self.elasticsearch = elasticsearch
        self.seed = seed
        self.job = load(world.path)
        self.expected: dict[str, ExpectedDocument] = {}
        self.malformed: Counter[str] = Counter()

    def run(self, number: int, kinds: Sequence[Kind]) -> Round:
        """One round; raises what no fault may bring about, such as a job that stays down."""
        done = Round(self.seed, number)
        began = time.monotonic()
        pace = Pace()
        scenario = scenario_of(self.seed, number)
        sent: list[int] = []

        def send() -> None:
            told = produce(
                scenario,
                self.kafka,
                rate=RATE,
                timeout=2 * PATIENCE,
                clock=pace.clock,
                sleep=pace.sleep,
            )
            sent.append(told.messages)

        def strike(kind: Kind) -> None:
            rng = random.Random(f"{self.seed} {number} {kind.name}")
            done.struck.append(struck(kind, rng.uniform(1, 15), self.world, rng))

        producer = Task(send)
        strikes = [Task(partial(strike, kind)) for kind in kinds]
        for task in strikes:
            task.result()
        pace.release()
        producer.result()
        assert sent == [EVENTS]
        self.tick(scenario.start + TICK)
        messages = list(simulate(scenario))
        self.malformed.update(
            str(m.cause) for m in messages if m.kind is MessageKind.MALFORMED and m.cause
        )
        wanted = expected(self.job, messages, directory(self.seed))
        self.expected |= wanted
        deadline = time.monotonic() + PATIENCE
        day = (scenario.start + DAY_BEGINS, scenario.start + DAY_BEGINS + timedelta(days=1))
        while (left := faults(wanted, self.documents(day))) and time.monotonic() < deadline:
            time.sleep(1)
        done.documents = len(wanted)
        done.wrong = Counter(name for name, _ in left)
        done.first = [text for _, text in left[:5]]
        done.seconds = time.monotonic() - began
        return done

    def tick(self, moment: datetime) -> None:
        """Lets each partition's watermark pass all events before a moment."""
        producer = Producer({"bootstrap.servers": self.kafka, "enable.idempotence": True})
        millis = round(moment.timestamp() * 1000)
        for partition in range(PARTITIONS):
            event = {
                "event_id": f"tick-{partition}",
                "event_type": "tick",
                "event_time": rfc3339(millis),
            }
            producer.produce(
                TOPIC, json.dumps(event).encode(), partition=partition, timestamp=millis
            )
        assert producer.flush(PATIENCE) == 0

    def documents(self, day: tuple[datetime, datetime] | None = None) -> dict[str, Any]:
        """What Elasticsearch has of a day, or of all."""
        query: dict[str, Any] = {"match_all": {}}
        if day is not None:
            first, end = (rfc3339(round(time.timestamp() * 1000)) for time in day)
            query = {"range": {"window_start": {"gte": first, "lt": end}}}
        with Elasticsearch(self.elasticsearch, request_timeout=60) as client:
            client.indices.refresh(index=INDEX)
            hits = helpers.scan(client, index=INDEX, query={"query": query}, size=5_000)
            return {hit["_id"]: hit["_source"] for hit in hits}

    def dead_letters(self) -> Counter[str]:
        """How many are in the topic, by cause; one that was written twice counts once."""
        told = json.loads(self.world.cluster("dead-letters", "stats", self.world.path, "--json"))
        found = Counter[str]()
        for row in told["stats"]:
            found[row["cause"]] += row["count"]
        return found


def faults(
    wanted: Mapping[str, ExpectedDocument], found: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Each document that is not as recomputed: lost, double, stale or unlike, and in words.

    Double are those that nobody expects, and those that count too much; stale are those that count
    too little, or whose pane is not the last.
    """
    wrong: dict[str, tuple[str, str]] = {}
    for text in differences(wanted, found):
        id_ = text.partition(": ")[0]
        if id_ not in found:
            kind = "lost"
        elif id_ not in wanted or found[id_]["events"] > wanted[id_].events:
            kind = "double"
        elif found[id_]["events"] < wanted[id_].events:
            kind = "stale"
        else:
            kind = "unlike"
        wrong.setdefault(id_, (kind, text))
    for id_, body in found.items():
        if body["pane"] == "early":
            wrong.setdefault(id_, ("stale", f"{id_}: early"))
    return list(wrong.values())


def table(lines: Sequence[str]) -> str:
    """The results of rounds (``Round.line``) as Markdown.

    >>> line = Round(1, 0, [Struck(KINDS[0].name, timedelta(seconds=9))], 31, 7).line()
    >>> print(table([line]).splitlines()[2])
    | SIGKILL of python worker | 1 | 9.0 | 9.0 | 0 |
    """
    rounds = [json.loads(line) for line in lines]
    recoveries: defaultdict[str, list[float]] = defaultdict(list)
    wrong: Counter[str] = Counter()
    for one in rounds:
        for hit in one["struck"]:
            recoveries[hit["kind"]].append(hit["recovery"])
            wrong[hit["kind"]] += sum(one["wrong"].values())
    rows = [
        "| fault | rounds | recovery, median s | longest s | differences |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        if times := recoveries[kind.name]:
            rows.append(
                f"| {kind.name} | {len(times)} | {median(times):.1f} | {max(times):.1f} |"
                f" {wrong[kind.name]} |"
            )
    totals = Counter[str]()
    for one in rounds:
        totals.update(one["wrong"])
    documents = sum(one["documents"] for one in rounds)
    seeds = ", ".join(map(str, sorted({one["seed"] for one in rounds})))
    total = (
        f"{len(rounds)} rounds of {EVENTS:,} events (seed {seeds}), {documents:,} documents:"
        f" {totals['lost']} lost, {totals['double']} double, {totals['stale']} stale,"
        f" {totals['unlike']} otherwise unlike the recomputation."
    )
    return "\n".join([*rows, "", total])


def read_lines(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        yield from file.read_text().splitlines()


if __name__ == "__main__":
    print(table(list(read_lines([Path(name) for name in sys.argv[1:]]))))
