"""The law of replays: from wherever history is read, the documents are those of recomputation."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from velocity.io.archive import WriteToArchive
from velocity.io.archive_files import Kind
from velocity.io.archive_keep import compact, expire
from velocity.io.lookup import MISSING, Answers, Keep
from velocity.io.pace import Limits
from velocity.io.records import MESSAGES, TIMESTAMP
from velocity.io.replay_state import ReplayState, StateUnusable
from velocity.io.sqlite import WriteToSqlite, read_documents
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import Message, differences, recompute
from velocity.pipelines.replay import Replay, ReplayError
from velocity.runners import replay as runner
from velocity.runners.replay import Outputs, Where, replay_parts
from velocity.transforms.enrich import Enrich, enrich

JOB = """\
job: orders
source:
  kafka: {bootstrap_servers: "127.0.0.1:1", topics: [orders]}
  event_time: placed
fields:
  placed: timestamp
  shop: string
  amount: int64
  fee: decimal(12, 2)
  note: string
filter: amount >= 0
enrich:
  - {name: shop, get: "http://127.0.0.1:1/{keys}", key: shop, id: id, add: {city: city, tier: tier, rent: {path: rent, type: "decimal(9, 2)"}}}
derive: {large: amount > 50, unused: upper(note)}
metrics:
  - name: by_day
    by: [city]
    window: {fixed: 1d, timezone: Asia/Jakarta}
    emit: {early: 10s, lateness: 1h}
    values: {orders: count(), large: count(CASE WHEN large THEN 1 END), revenue: sum(amount), fees: sum(fee), rents: sum(rent)}
  - name: by_hours
    by: [tier]
    window: {sliding: 3h, every: 1h}
    values: {p90: "percentile(amount, 90)", shops: distinct(shop)}
  - name: rush
    where: amount > 10
    by: [shop]
    window: {session: 30m}
    values: {orders: count(), last: max(placed)}
  - {name: ever, by: [shop], window: {global: true}, emit: {early: 1m}, values: {orders: count()}}
sinks: {sqlite: {path: /nonexistent/documents.db}}
dead_letters: {parquet: /nonexistent}
"""
START = datetime(2026, 1, 5, tzinfo=UTC)
MS = int(START.timestamp() * 1000)
MINUTE, HOUR = 60_000, 3_600_000
SHOPS = {
    f"s{n}": {
        "city": f"city {n % 3}",
        "tier": None if n == 4 else f"tier {n % 2}",
        "rent": n / 10 if n % 2 else f"{n}.10",
    }
    for n in range(5)
}
UNKNOWN = "s9"


def job_in(folder: Path, text: str = JOB) -> Job:
    return parse(f"{text}archive: {{path: {folder}/archive, raw: true}}\n".encode(), "job").job


@dataclass(frozen=True)
class Shops:
    """A service that knows the shops, as they are at ``version``."""

    version: str = ""

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        found = [
            keep({**SHOPS[key], "city": f"{SHOPS[key]['city']}{self.version}"})
            if key in SHOPS
            else MISSING
            for key in keys
        ]
        return lambda: Answers(found, {"rest_calls": 1})


@dataclass(frozen=True)
class Event:
    """An order: minutes after ``START``."""

    minute: int
    shop: str
    amount: int

    @property
    def value(self) -> bytes:
        at = (START + timedelta(minutes=self.minute)).isoformat()
        order = {"placed": at, "shop": self.shop, "amount": self.amount, "note": "n"}
        order["fee"] = f"{self.amount}.1" if self.minute % 2 else self.amount / 4
        return json.dumps(order).encode()

    @property
    def timestamp_ms(self) -> int:
        return MS + self.minute * MINUTE + 1_000


events = st.lists(
    st.builds(
        Event,
        st.integers(0, 3 * 24 * 60),
        st.sampled_from([*SHOPS, UNKNOWN]),
        st.integers(-5, 100),
    ),
    max_size=120,
)


def messages_of(history: Sequence[Event], first: int, partition: int) -> pa.RecordBatch:
    n = len(history)
    known = {
        "topic": pa.repeat("orders", n),
        "partition": pa.repeat(pa.scalar(partition, pa.int32()), n),
        "offset": pa.array(range(first, first + n), pa.int64()),
        "timestamp": pa.array([event.timestamp_ms for event in history], TIMESTAMP),
        "value": pa.array([event.value for event in history], pa.binary()),
    }
    columns = [known.get(f.name, pa.nulls(n, f.type)) for f in MESSAGES]
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGES)


def archive(
    job: Job, history: Sequence[Event], cuts: Sequence[int] = (), partitions: int = 2
) -> None:
    """Archives a history as a live job does, whose bundles end at ``cuts`` and are tried twice."""
    graph = Graph(job, {}, lambda lookup, spec: Shops())
    for partition in range(partitions):
        own = history[partition::partitions]
        bounds = sorted({0, *(cut % (len(own) + 1) for cut in cuts), len(own)})
        stretches = list(pairwise(bounds))
        # what failed after its files were there, and then was cut elsewhere
        again = [(a, min(b + 3, len(own))) for a, b in stretches[::2]]
        for start, stop in [*again, *stretches]:
            rows = _rows(graph, job, messages_of(own[start:stop], start, partition))
            for kind, batch in rows.items():
                sink: Any = graph.archives[kind]
                assert isinstance(sink, WriteToArchive)
                sink._sink.start_bundle()
                if batch.num_rows:
                    sink._sink.process(batch)
                sink._sink.finish_bundle()


def _rows(graph: Graph, job: Job, messages: pa.RecordBatch) -> Mapping[Kind, pa.RecordBatch]:
    """What the steps of the graph make of messages, without a runner."""
    rows = graph.decoder.decode(messages).rows
    found = {Kind.RAW: rows}
    for step in (graph.filter, *graph.enrichments, graph.derive):
        if step is None:
            continue
        if isinstance(step, Enrich):
            rows = enrich(rows, step.enrichments).rows
        else:
            evaluated = step._expressions.evaluate(rows)
            if step is graph.filter:
                rows = rows.filter(evaluated.columns.column(0))
            else:
                columns = dict(zip(rows.schema.names, rows.columns, strict=True))
                new = evaluated.columns
                columns |= dict(zip(new.schema.names, new.columns, strict=True))
                names = graph.schema.names
                rows = pa.RecordBatch.from_arrays([columns[n] for n in names], schema=graph.schema)
    return {**found, Kind.ENRICHED: rows}


def recomputed(job: Job, history: Sequence[Event], start: datetime, stop: datetime) -> Any:
    """The documents whose windows reach into a range, of all of history."""
    messages = [Message(event.value, event.timestamp_ms) for event in history]
    everything = recompute(job, messages, {"shop": SHOPS.get})
    return {
        id_: document
        for id_, document in everything.items()
        if document.metric != "ever"  # a range of history is not all of it
        and datetime.fromisoformat(document.window_start) < stop
        and datetime.fromisoformat(document.window_end) > start
    }


@contextmanager
def asking(service: Any) -> Iterator[None]:
    """Within, replays ask that service: nobody stands behind the job's own address."""
    usual = Replay._lookup
    Replay._lookup = lambda self, lookup, spec: service  # type: ignore[method-assign]
    try:
        yield
    finally:
        Replay._lookup = usual  # type: ignore[method-assign]


class Nobody:
    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        raise AssertionError("a replay of enriched events asked a service")


def into(store: Path) -> Outputs:
    return lambda: ({"sqlite": WriteToSqlite(str(store))}, None)


def documents(
    job: Job,
    source: str,
    start: datetime,
    stop: datetime,
    folder: Path,
    length: timedelta | None = None,
    **given: Any,
) -> dict[str, Any]:
    replay = Replay(job, source, start, stop, {}, **given)
    store = folder / f"{Path(source).suffix or source}.db"
    with asking(Nobody() if source == "archive" else Shops()):
        parts = replay.parts(length, datetime.now(UTC))
        replay_parts(replay, parts, Where(), into(store), console=Console(quiet=True))
    return read_documents(str(store)) if store.exists() else {}


@given(
    events,
    st.lists(st.integers(0, 200), max_size=6),
    st.integers(-60, 4 * 24 * 60),
    st.integers(1, 4 * 24 * 60),
    st.sampled_from([None, timedelta(days=1)]),
    st.booleans(),
)
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
def test_a_replay_from_any_source_gives_the_documents_of_recomputation(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[Event],
    cuts: list[int],
    first: int,
    minutes: int,
    length: timedelta | None,
    compacted: bool,
) -> None:
    folder = tmp_path_factory.mktemp("replay")
    job = job_in(folder)
    archive(job, history, cuts)
    if compacted:
        compact(f"{folder}/archive", Kind.ENRICHED, "orders")
    export = folder / "orders.jsonl"
    export.write_bytes(b"".join(event.value + b"\n" for event in history))
    start = START + timedelta(minutes=first)
    stop = start + timedelta(minutes=minutes)
    wanted = recomputed(job, history, start, stop)
    sources = ["archive", "raw", *([str(export)] if history else [])]
    for source in sources:
        found = documents(job, source, start, stop, folder, length)
        assert list(differences(wanted, found)) == []
        assert {body["pane"] for body in found.values()} <= {"on_time"}


def test_what_no_range_of_history_fills_is_left_out_and_told_or_refused(tmp_path: Path) -> None:
    job, day = job_in(tmp_path), timedelta(days=1)
    replay = Replay(job, "archive", START, START + day, {})
    assert replay.left_out == ["ever"]
    assert "ever" not in replay.windows
    only = job.model_copy(update={"metrics": job.metrics[-1:]})
    with pytest.raises(
        ReplayError, match="global windows, which no range of history fills: run the"
    ):
        Replay(only, "archive", START, START + day, {})


def steady(minutes: int, shop: str = "s1") -> list[Event]:
    return [Event(minute, shop, 20) for minute in range(minutes)]


def test_sessions_longer_than_what_is_read_at_first_are_read_whole(tmp_path: Path) -> None:
    job, history = job_in(tmp_path), steady(20 * 60)
    archive(job, history)
    start, stop = START + timedelta(hours=9), START + timedelta(hours=10)
    found = documents(job, "archive", start, stop, tmp_path)
    assert list(differences(recomputed(job, history, start, stop), found)) == []
    assert any(body["metric"] == "rush" for body in found.values())


def test_enriched_events_keep_what_was_known_in_their_day(tmp_path: Path) -> None:
    job, history = job_in(tmp_path), steady(60)
    archive(job, history)
    day = (START, START + timedelta(days=1))

    def cities(service: Any, source: str, store: Path) -> set[Any]:
        replay = Replay(job, source, *day, {})
        with asking(service):
            replay_parts(
                replay,
                replay.parts(None, datetime.now(UTC)),
                Where(),
                into(store),
                console=Console(quiet=True),
            )
        made = read_documents(str(store)).values()
        return {b["dimensions"]["city"] for b in made if b["metric"] == "by_day"}

    assert cities(Nobody(), "archive", tmp_path / "then.db") == {"city 1"}
    assert cities(Shops(" of today"), "raw", tmp_path / "now.db") == {"city 1 of today"}


def test_old_files_replay_for_a_job_with_other_columns(tmp_path: Path) -> None:
    history = steady(60)
    archive(job_in(tmp_path), history)
    text = JOB.replace("amount: int64", "amount: double").replace("  note: string\n", "")
    text = text.replace(", unused: upper(note)", ", known: channel IS NOT NULL")
    text = text.replace("  shop: string", "  shop: string\n  channel: string")
    text = text.replace(
        "revenue: sum(amount)", "revenue: sum(amount), known: count(CASE WHEN known THEN 1 END)"
    )
    job = job_in(tmp_path, text)
    found = documents(job, "archive", START, START + timedelta(days=1), tmp_path)
    wanted = recomputed(job, history, START, START + timedelta(days=1))
    assert list(differences(wanted, found)) == []


def test_a_replay_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path)
    history = [Event(minute, "s1", 20) for minute in range(0, 2 * 24 * 60, 50)]
    archive(job, history)
    replay = Replay(job, "archive", START, START + timedelta(days=2), {})
    parts = replay.parts(timedelta(days=1), datetime.now(UTC))
    sinks = into(tmp_path / "documents.db")
    state = ReplayState(str(tmp_path / "state.json"), {"job": "orders"})
    made = []
    usual = runner._run

    def dying(part: Any, *arguments: Any) -> Any:
        made.append(part.part.wanted)
        if len(made) == 2:
            raise KeyboardInterrupt
        return usual(part, *arguments)

    monkeypatch.setattr(runner, "_run", dying)
    with pytest.raises(KeyboardInterrupt):
        replay_parts(replay, parts, Where(), sinks, state=state, console=Console(quiet=True))
    assert state.done() == {tuple(parts[0].wanted)}
    replay_parts(replay, parts, Where(), sinks, state=state, console=Console(quiet=True))
    assert made[2] == parts[1].wanted
    assert state.done() == set()
    found = read_documents(str(tmp_path / "documents.db"))
    wanted = recomputed(job, history, START, START + timedelta(days=2))
    assert list(differences(wanted, found)) == []


def test_the_state_of_another_replay_is_not_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    ReplayState(path, {"job": "orders"}).add({(1, 2)})
    with pytest.raises(StateUnusable, match="another replay: name another file with --state"):
        ReplayState(path, {"job": "others"}).done()
    Path(path).write_text("no")
    with pytest.raises(StateUnusable, match="remove it"):
        ReplayState(path, {"job": "orders"}).done()


def test_a_replay_overwrites_nothing_that_knows_more(tmp_path: Path) -> None:
    job, history = job_in(tmp_path), steady(120)
    archive(job, history[:60])
    day = (START, START + timedelta(days=1))
    export = tmp_path / "archive.jsonl"
    export.write_bytes(b"".join(event.value + b"\n" for event in history))
    everything = documents(job, str(export), *day, tmp_path)
    (tmp_path / ".jsonl.db").rename(tmp_path / "archive.db")
    after = documents(job, "archive", *day, tmp_path)
    by_day = [id_ for id_, body in everything.items() if body["metric"] == "by_day"]
    assert {id_: after[id_] for id_ in by_day} == {id_: everything[id_] for id_ in by_day}


def test_a_range_that_reaches_before_what_was_expired_is_refused(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    archive(job, steady(180))
    expire(f"{tmp_path}/archive", Kind.ENRICHED, "orders", START + timedelta(hours=1))
    replay = Replay(job, "archive", START, START + timedelta(days=1), {})
    with pytest.raises(ReplayError, match=r"expired up to 2026-01-05T01:00.*give a later --from"):
        replay.check(replay.parts(None, datetime.now(UTC)))


@pytest.mark.parametrize(
    ("source", "text", "error"),
    [
        ("archive", "", "keeps no such archive"),
        ("raw", "archive: {path: x}\n", "raw: true"),
    ],
)
def test_a_source_that_the_job_does_not_keep_is_refused(source: str, text: str, error: str) -> None:
    with pytest.raises(ReplayError, match=error):
        Replay(parse((JOB + text).encode(), "job").job, source, START, START + timedelta(1), {})


def test_a_range_that_ends_before_it_begins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="is not before --to"):
        Replay(job_in(tmp_path), "raw", START, START, {})


def test_a_budget_of_calls_is_that_of_all_enrichments_together(tmp_path: Path) -> None:
    area = (
        '  - {name: area, get: "http://127.0.0.1:1/{keys}", key: shop, id: id, add: {area: area}}\n'
    )
    job = job_in(tmp_path, JOB.replace("derive:", f"{area}derive:"))
    limits = Limits(rest_calls=12, workers=3)
    replay = Replay(job, "raw", START, START + timedelta(days=1), {}, limits)
    lookups: list[Any] = [e.lookup for step in replay.graph.enrichments for e in step.enrichments]
    assert [lookup._rate for lookup in lookups] == [2, 2]


def test_a_budget_is_more_than_nothing() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Limits(events=0)
    assert Limits(events=10, workers=4).share(10) == 2.5
