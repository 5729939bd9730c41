"""The law of replays: from wherever history is read, the documents are those of recomputation."""

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.replay_jobs import (
    JOB,
    SHOPS,
    START,
    UNKNOWN,
    Event,
    Shops,
    archive,
    job_in,
    recomputed,
    steady,
)
from velocity.io.archive_files import Kind
from velocity.io.archive_keep import compact, expire
from velocity.io.lookup import Answers, Keep
from velocity.io.pace import Limits
from velocity.io.records import now
from velocity.io.replay_state import ReplayState, StateUnusable
from velocity.io.sqlite import WriteToSqlite, read_documents
from velocity.pipelines.job import ElasticsearchSink, InfluxSink, Job, Sinks
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import differences
from velocity.pipelines.replay import Replay, ReplayError
from velocity.runners import replay as runner
from velocity.runners.replay import Outputs, Where, replay_parts
from velocity.runners.replay_run import LEFT_OUT, Plan, _state, _target, carry_out

events = st.lists(
    st.builds(
        Event,
        st.integers(0, 3 * 24 * 60),
        st.sampled_from([*SHOPS, UNKNOWN]),
        st.integers(-5, 100),
    ),
    max_size=120,
)


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


def test_sessions_longer_than_what_is_read_at_first_are_read_whole(tmp_path: Path) -> None:
    job, history = job_in(tmp_path), steady(20 * 60)
    archive(job, history)
    start, stop = START + timedelta(hours=9), START + timedelta(hours=10)
    found = documents(job, "archive", start, stop, tmp_path)
    assert list(differences(recomputed(job, history, start, stop), found)) == []
    assert any(body["metric"] == "rush" for body in found.values())


def test_a_session_that_began_in_what_was_expired_is_left_out_not_cut_short(tmp_path: Path) -> None:
    """Read farther around, the gap before what is left would look like its beginning."""
    job, history = job_in(tmp_path), steady(20 * 60)
    archive(job, history)
    expire(f"{tmp_path}/archive", Kind.ENRICHED, "orders", START + timedelta(hours=8))
    start, stop = START + timedelta(hours=9, minutes=50), START + timedelta(hours=10)
    found = documents(job, "archive", start, stop, tmp_path)
    wanted = recomputed(job, history, start, stop).values()
    assert any(document.metric == "rush" for document in wanted)
    assert found
    assert all(body["metric"] != "rush" for body in found.values())


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
    assert state.done() == {tuple(parts[0].wanted): 0}
    replay_parts(replay, parts, Where(), sinks, state=state, console=Console(quiet=True))
    assert made[2] == parts[1].wanted
    assert state.done() == {}
    found = read_documents(str(tmp_path / "documents.db"))
    wanted = recomputed(job, history, START, START + timedelta(days=2))
    assert list(differences(wanted, found)) == []


def test_the_state_of_another_replay_is_not_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    ReplayState(path, {"job": "orders"}).add({(1, 2): 0})
    with pytest.raises(StateUnusable, match="another replay: name another file with --state"):
        ReplayState(path, {"job": "others"}).done()
    Path(path).write_text("no")
    with pytest.raises(StateUnusable, match="remove it"):
        ReplayState(path, {"job": "orders"}).done()


def plan_of(replay: Replay, folder: Path, length: timedelta | None = None) -> Plan:
    return Plan(replay, Where(), length, str(folder / "state.json"), folder / "documents.db")


def carried(plan: Plan, clock: Callable[[], datetime] = now) -> tuple[int, str]:
    said = io.StringIO()
    code = carry_out(plan, console=Console(file=said, width=1000), clock=clock)
    return code, said.getvalue()


def test_documents_that_go_on_outside_of_all_that_is_read_are_told_by_the_exit_code(
    tmp_path: Path,
) -> None:
    job = job_in(tmp_path, JOB.replace("session: 30m", "session: 1h"))
    archive(job, [Event(minute, "s1", 20) for minute in range(0, 4 * 24 * 60, 50)])
    start = START + timedelta(days=2)
    replay = Replay(job, "archive", start, start + timedelta(hours=1), {})
    code, said = carried(plan_of(replay, tmp_path))
    assert code == LEFT_OUT
    assert "1 documents go on outside of what was read" in said
    found = read_documents(str(tmp_path / "documents.db")).values()
    assert {body["metric"] for body in found} == {"by_day", "by_hours"}


def test_a_part_is_read_as_far_around_as_the_part_before_it_had_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path, JOB.replace("session: 30m", "session: 1h"))
    history = [
        Event(24 * 60 * day + minute, "s1", 20)
        for day in range(4)
        for minute in range(-700, 700, 50)
    ]
    archive(job, history)
    plan = plan_of(
        Replay(job, "archive", START + timedelta(1), START + timedelta(4), {}),
        tmp_path,
        timedelta(1),
    )
    usual, made = runner._run, []

    def counting(part: Any, *arguments: Any) -> Any:
        made.append(part.part)
        return usual(part, *arguments)

    monkeypatch.setattr(runner, "_run", counting)
    assert carried(plan)[0] == 0
    wanted = [part.wanted for part in made]
    assert len(wanted) > len(set(wanted))  # it had to be read again
    assert wanted[1:] == sorted(set(wanted))  # but the first only
    found = read_documents(str(tmp_path / "documents.db"))
    again = recomputed(job, history, START + timedelta(1), START + timedelta(4))
    assert list(differences(again, found)) == []


def test_a_replay_that_goes_on_tells_what_was_left_out_before_it_was_killed(
    tmp_path: Path,
) -> None:
    job = job_in(tmp_path)
    archive(job, steady(60))
    plan = plan_of(Replay(job, "archive", START, START + timedelta(2), {}), tmp_path, timedelta(1))
    first, *_ = plan.replay.parts(plan.length, datetime.now(UTC))
    _state(plan, _target(plan)).add({first.wanted: 7})
    code, said = carried(plan)
    assert code == LEFT_OUT
    assert "7 documents go on" in said


def test_windows_that_were_open_are_made_when_a_replay_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, history = job_in(tmp_path), steady(30 * 60)
    archive(job, history)
    plan = plan_of(Replay(job, "archive", START, START + timedelta(2), {}), tmp_path, timedelta(1))
    usual, made = runner._run, []

    def dying(part: Any, *arguments: Any) -> Any:
        made.append(part)
        if len(made) == 2:
            raise KeyboardInterrupt
        return usual(part, *arguments)

    monkeypatch.setattr(runner, "_run", dying)
    with pytest.raises(KeyboardInterrupt):
        carried(plan, clock=lambda: START + timedelta(hours=5))
    assert carried(plan)[0] == 0
    wanted = recomputed(job, history, START, START + timedelta(2))
    found = read_documents(str(tmp_path / "documents.db"))
    assert list(differences(wanted, found)) == []


def test_a_replay_that_reads_kafka_for_longer_is_another(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    replay = Replay(job, "raw", START, START + timedelta(1), {}, late=timedelta(hours=1))
    plan = plan_of(replay, tmp_path)
    _state(plan, _target(plan)).add({})
    other = dataclasses.replace(plan, replay=dataclasses.replace(replay, late=timedelta(0)))
    with pytest.raises(StateUnusable, match="another replay"):
        _state(other, _target(other)).done()


def test_a_replay_to_another_cluster_is_another(tmp_path: Path) -> None:
    """Whose name may be the environment's: what was written to the one is not in the other."""
    job = job_in(tmp_path)
    sinks = Sinks(elasticsearch=ElasticsearchSink(url="${ES}", index="metrics"))
    job = job.model_copy(update={"sinks": sinks})
    one, other = (
        plan_of(
            Replay(job, "raw", START, START + timedelta(1), {"ES": f"http://{host}:9200"}), tmp_path
        )
        for host in ("one", "other")
    )
    one, other = (dataclasses.replace(plan, sqlite=None) for plan in (one, other))
    _state(one, _target(one)).add({})
    assert _state(one, _target(one)).done() == {}
    with pytest.raises(StateUnusable, match="another replay"):
        _state(other, _target(other)).done()


def test_where_a_replays_documents_go_is_remembered_without_a_password(tmp_path: Path) -> None:
    sinks = Sinks(influx=InfluxSink(url="http://user:secret@one:8086", bucket="metrics"))
    job = job_in(tmp_path).model_copy(update={"sinks": sinks})
    plan = plan_of(Replay(job, "raw", START, START + timedelta(1), {}), tmp_path)
    plan = dataclasses.replace(plan, sqlite=None)
    _state(plan, _target(plan)).add({})
    told = (tmp_path / "state.json").read_text()
    assert "one:8086 metrics" in told
    assert "secret" not in told


def test_several_processes_make_the_documents_of_one(tmp_path: Path) -> None:
    job, history = job_in(tmp_path), steady(600)
    archive(job, history)
    start, stop = START, START + timedelta(days=1)
    replay, store = Replay(job, "archive", start, stop, {}), tmp_path / "documents.db"
    parts = replay.parts(None, datetime.now(UTC))
    replay_parts(replay, parts, Where(workers=2), into(store), console=Console(quiet=True))
    wanted = recomputed(job, history, start, stop)
    assert list(differences(wanted, read_documents(str(store)))) == []


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
        replay.check(replay.parts(None, datetime.now(UTC))[0])


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
