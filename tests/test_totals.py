"""Laws of what a store of documents answers: the same as adding up its documents one by one."""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.board_jobs import MINUTE, T0, document, write
from velocity.io.records import Document
from velocity.io.sqlite_totals import SqliteTotals
from velocity.io.totals import Ask, Cell, Series, StoreDown, Totals, as_key

NOW = datetime(2026, 1, 5, 1, tzinfo=UTC)
AGGREGATES: dict[str, Any] = {"sum": sum, "min": min, "max": max}

rows = st.lists(
    st.tuples(
        st.integers(-3, 12),  # minutes from T0
        st.sampled_from(["Jakarta", "Solo", None]),
        st.sampled_from([True, False]),
        st.sampled_from(["early", "on_time", "late"]),
        st.integers(1, 9),
        st.one_of(st.none(), st.integers(-5, 10**9)),
    ),
    max_size=25,
)


def documents_of(given_rows: Iterable[tuple[Any, ...]]) -> list[Document]:
    made = {}
    for minute, city, open_, pane, events, amount in given_rows:
        key = {"city": city, "open": open_}
        found = document(
            "m",
            T0 + minute * MINUTE,
            pane=pane,
            events=events,
            dimensions=key,
            n=events,
            amount=amount,
        )
        made[found.id] = found
    return list(made.values())


def added_up(documents: Iterable[Document], ask: Ask) -> Totals:
    """The plain recomputation."""
    kept = [
        d
        for d in documents
        if (d.job, d.metric) == (ask.job, ask.metric)
        and d.window_start < ask.until
        and d.window_end > ask.since
        and all(as_key(d.dimensions[name]) == value for name, value in ask.where)
    ]
    by_key: defaultdict[tuple[str | None, ...], list[Document]] = defaultdict(list)
    for d in kept:
        by_key[tuple(as_key(d.dimensions[name]) for name in ask.split)].append(d)
    order = sorted(
        by_key,
        key=lambda key: (-sum(d.events for d in by_key[key]), [text or "" for text in key]),
    )
    series = [Series(key, cells(by_key[key], ask)) for key in order[: ask.top]]
    return Totals(cells(kept, ask), tuple(series) if ask.split else (), len(order) > ask.top)


def cells(documents: Iterable[Document], ask: Ask) -> tuple[Cell, ...]:
    def span(d: Document) -> tuple[int, bool]:
        start = d.window_start
        if ask.every:
            start = (start - ask.offset) // ask.every * ask.every + ask.offset
        return start, d.pane == "early"

    made = []
    for (start, early), group in itertools.groupby(sorted(documents, key=span), key=span):
        found = list(group)
        values: dict[str, Any] = {}
        for name, over in ask.values:
            given_values = [d.values[name] for d in found if d.values[name] is not None]
            values[name] = AGGREGATES[over](given_values) if given_values else None
        end = max(d.window_end for d in found)
        made.append(Cell(start, end, early, sum(d.events for d in found), values))
    return tuple(made)


ASK = Ask("orders", "m", (("n", "sum"), ("amount", "max")), T0, T0 + 10 * MINUTE, MINUTE)


@settings(max_examples=40, deadline=None)
@given(
    given_rows=rows,
    every=st.sampled_from([None, MINUTE, 5 * MINUTE]),
    offset=st.sampled_from([0, 30_000]),
    where=st.sampled_from([(), (("city", "Solo"),), (("open", "true"),)]),
    split=st.sampled_from([(), ("city",), ("city", "open")]),
    top=st.integers(1, 4),
)
def test_totals_are_what_adding_up_the_documents_gives(
    tmp_path_factory: pytest.TempPathFactory,
    given_rows: list[Any],
    every: int | None,
    offset: int,
    where: Any,
    split: tuple[str, ...],
    top: int,
) -> None:
    path = tmp_path_factory.mktemp("store") / "documents.db"
    documents = documents_of(given_rows)
    write(path, [*documents, document("another", T0)], NOW)
    ask = Ask(
        ASK.job, ASK.metric, ASK.values, ASK.since, ASK.until, every, offset, where, split, top
    )
    with closing(SqliteTotals(path)) as store:
        assert store.totals([ask]) == [added_up(documents, ask)]


def test_a_store_that_is_not_there_yet_says_so_and_is_read_when_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    with closing(SqliteTotals(path)) as store:
        with pytest.raises(StoreDown, match=r"run a job with --sqlite"):
            store.latest()
        write(path, [document()], NOW)
        assert set(store.latest()) == {("orders", "by_city")}


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    write(path, [document(orders=1)], NOW)
    with closing(SqliteTotals(path)) as store:
        assert len(store.latest()) == 1
        for old in tmp_path.glob("documents.db*"):
            old.unlink()
        write(path, [document(orders=1), document("another")], NOW)
        assert len(store.latest()) == 2


def test_what_is_no_store_is_down_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    path.write_bytes(b"no database" * 100)
    with closing(SqliteTotals(path)) as store, pytest.raises(StoreDown, match="not a database"):
        store.latest()


def test_any_document_that_changes_gives_its_metric_another_mark(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    write(path, [document(events=1, pane="early"), document("another")], NOW)
    with closing(SqliteTotals(path)) as store:
        before = store.latest()
        assert store.latest() == before
        write(path, [document(events=1)], NOW)  # the same count, at the same time, and final
        after = store.latest()
    assert after["orders", "by_city"] != before["orders", "by_city"]
    assert after["orders", "another"] == before["orders", "another"]


def alert(transaction: str, status: str, since: int, city: str = "Solo") -> Document:
    return document(
        "alerts",
        since,
        events=1 if status == "stuck" else 2,
        dimensions={"transaction": transaction, "stage": "order", "city": city},
        status=status,
    )


def test_stuck_transactions_are_listed_the_oldest_first_whenever_they_began(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    found = [
        alert("t1", "stuck", T0),
        alert("t2", "stuck", T0 - 99 * MINUTE),
        alert("t3", "resolved", T0),
        alert("t4", "stuck", T0, city="Jakarta"),
    ]
    write(path, found, NOW)
    with closing(SqliteTotals(path)) as store:
        alerts = store.alerts(["orders"], T0, T0 + MINUTE, (("city", "Solo"),), 5)
        assert [a.transaction for a in alerts.oldest] == ["t2", "t1"]
        assert (alerts.stuck, alerts.by_status) == (2, {"stuck": 1, "resolved": 1})
        assert len(store.alerts(["orders"], T0, T0 + 1, (), 1).oldest) == 1
        assert store.alerts(["none"], T0, T0 + 1, (), 1).stuck == 0


def test_keys_are_offered_by_their_beginning_and_those_of_most_events_first(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    cities = [("Solo", 1), ("Surabaya", 9), ("Jakarta", 5), (None, 99)]
    write(path, [document(dimensions={"city": c}, events=n) for c, n in cities], NOW)
    with closing(SqliteTotals(path)) as store:
        assert store.keys(["orders"], "city", "", 9) == ["Surabaya", "Jakarta", "Solo"]
        assert store.keys(["orders"], "city", "S", 1) == ["Surabaya"]
        assert store.keys(["orders"], "city", "'; --", 9) == []


def test_a_name_that_could_be_sql_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "documents.db"
    write(path, [document()], NOW)
    with closing(SqliteTotals(path)) as store, pytest.raises(ValueError, match="no name"):
        store.keys(["orders"], "city') --", "", 9)
