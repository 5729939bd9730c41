"""The law of replays, of jobs that follow transactions: what is written is what recomputation says."""

import io
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.replay_jobs import MINUTE, MS, START, archive, job_in, recomputed
from velocity.io.records import Document
from velocity.io.sqlite import read_documents
from velocity.pipelines.job import Job
from velocity.pipelines.recompute import differences
from velocity.pipelines.replay import Replay, enriched_already
from velocity.runners.replay import Where
from velocity.runners.replay_run import LEFT_OUT, Plan, carry_out
from velocity.transforms.ranges import Alert, Part, Span, reads
from velocity.transforms.settled import _Ends, _Runs

JOB = """\
job: trips
source:
  kafka: {bootstrap_servers: "127.0.0.1:1", topics: [orders]}
  event_time: at
fields: {at: timestamp, trip: string, event: string, city: string, note: string}
derive: {town: upper(city), unused: upper(note)}
transactions:
  key: trip
  event: event
  by: [town]
  ttl: 40m
  stages:
    order: {events: [created], next: [delivery], sla: 10m}
    delivery: {events: [sent], next: [done], sla: 20m, ttl: 30m}
    done: {events: [delivered], ttl: 5m}
  alerts: {kafka: alerts}
metrics:
  - name: funnel
    by: [stage, town]
    window: {fixed: 30m}
    emit: {lateness: 1h}
    values: {entered: "count(CASE WHEN what = 'entered' THEN 1 END)", facts: count(),
             dropped: "count(CASE WHEN what = 'dropped' THEN 1 END)"}
  - name: durations
    where: what = 'moved'
    by: [stage]
    window: {sliding: 1h, every: 30m}
    emit: {lateness: 1h}
    values: {mean: mean(seconds)}
  - name: busy
    by: [town]
    window: {session: 15m}
    emit: {lateness: 1h}
    values: {facts: count()}
sinks: {sqlite: {path: /nonexistent/documents.db}}
dead_letters: {parquet: /nonexistent}
"""


@dataclass(frozen=True)
class Step:
    """An event of a trip: minutes after ``START``."""

    minute: int
    trip: str
    event: str

    @property
    def value(self) -> bytes:
        at = (START + timedelta(minutes=self.minute)).isoformat()
        step = {"at": at, "trip": self.trip, "event": self.event, "city": f"c{len(self.trip) % 2}"}
        return json.dumps(step).encode()

    @property
    def timestamp_ms(self) -> int:
        return MS + self.minute * MINUTE + 1_000


def trip(number: int, start: int, waits: list[int]) -> list[Step]:
    """A trip whose events may be lost, late, or come again."""
    names = ["created", "sent", "delivered", "created"]
    minutes = [start, *(start + sum(waits[: n + 1]) for n in range(len(waits)))]
    return [Step(m, f"t{number}", name) for m, name in zip(minutes, names, strict=False)]


trips = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(0, 24 * 60), st.lists(st.integers(0, 90), max_size=3)
    ),
    max_size=30,
).map(lambda some: [step for each in some for step in trip(*each)])


def carried(
    job: Job, source: str, start: datetime, stop: datetime, folder: Path, **given: Any
) -> Any:
    """The exit code of a replay, and its documents."""
    folder.mkdir()
    store = folder / "documents.db"
    plan = Plan(
        Replay(job, source, start, stop, {}),
        Where(),
        state=str(folder / "s"),
        sqlite=store,
        **given,
    )
    code = carry_out(plan, console=Console(file=io.StringIO()))
    return code, read_documents(str(store)) if store.exists() else {}


@given(trips, st.integers(-60, 24 * 60), st.integers(1, 24 * 60), st.booleans())
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
def test_a_replay_of_transactions_gives_the_documents_of_recomputation(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[Step],
    first: int,
    minutes: int,
    halves: bool,
) -> None:
    folder = tmp_path_factory.mktemp("replay")
    job = job_in(folder, JOB)
    archive(job, history)
    start = START + timedelta(minutes=first)
    stop = start + timedelta(minutes=minutes)
    wanted = recomputed(job, history, start, stop)
    for source in ("archive", "raw"):
        length = timedelta(hours=8) if halves else None
        code, found = carried(job, source, start, stop, folder / f"of {source}", length=length)
        assert code == 0
        assert list(differences(wanted, found)) == []


def test_a_key_that_never_falls_silent_is_not_guessed_at(tmp_path: Path) -> None:
    job = job_in(tmp_path, JOB)
    names = ["created", "sent", "delivered"]
    busy = [Step(m, "always", names[m // 35 % 3]) for m in range(0, 5 * 24 * 60, 35)]
    after = [Step(5 * 24 * 60 + 600 + m, "later", names[m % 3]) for m in range(3)]
    history = [*busy, *after]
    archive(job, history)
    start = START + timedelta(days=4)
    code, found = carried(
        job, "archive", start, START + timedelta(days=6), tmp_path / "a", length=None
    )
    assert code == LEFT_OUT
    wanted = recomputed(job, history, start, START + timedelta(days=6))
    assert found
    assert list(differences({id_: wanted[id_] for id_ in found}, found)) == []
    # The whole of it is known from its beginning on.
    code, found = carried(
        job, "archive", START, START + timedelta(days=6), tmp_path / "b", length=None
    )
    assert code == 0
    assert (
        list(differences(recomputed(job, history, START, START + timedelta(days=6)), found)) == []
    )


def test_nothing_is_known_until_each_key_that_came_early_has_fallen_silent() -> None:
    runs = _Runs(["created", "sent"], "trip", "event", "at", timedelta(milliseconds=10))
    rows = pa.RecordBatch.from_pydict(
        {
            "trip": ["a", "a", "b", None, "a", "a"],
            "event": ["created", "sent", "sent", "sent", "sent", "other"],
            "at": pa.array([100, 109, 108, 0, 130, 119], pa.timestamp("ms", "UTC")),
        }
    )
    found = list(runs.process(rows))
    assert found == [("a", (100, 109)), ("b", (108, 108)), ("a", (130, 130))]
    ends = _Ends(100, timedelta(milliseconds=10))
    assert list(ends.process(("a", [(130, 130), (100, 109)]))) == [119]
    assert list(ends.process(("a", [(118, 125), (100, 109)]))) == [135]
    assert list(ends.process(("b", [(110, 500)]))) == [110]


def test_events_of_transactions_are_read_by_what_follows_them_alone(tmp_path: Path) -> None:
    lean = enriched_already(job_in(tmp_path, JOB))
    assert sorted(lean.fields) == ["at", "city", "event", "trip"]
    assert list(lean.derive) == ["town"]


def test_an_alert_is_complete_when_its_end_must_be_known() -> None:
    alert = Alert(sla=timedelta(milliseconds=10), ttl=timedelta(milliseconds=40))
    document = Document("j", "alerts", 100, 110, {}, {}, 1, "on_time", "a")
    part = Part(Span(100, 200), Span(50, 141), first=True, until=1000)
    assert reads(alert, part.wanted, first=True, pad=timedelta(0)) == Span(90, 241)
    assert part.verdict(document, alert, 100) == "write"
    assert part.verdict(document, alert, 101) == "cut"  # before it was known when it began
    assert replace(part, read=Span(50, 140)).verdict(document, alert, 100) == "cut"
    assert replace(part, until=140).verdict(document, alert, 100) == "open"
