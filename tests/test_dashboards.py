"""Laws of dashboards: a chart shows what the metric would be if it were counted by its series."""

import json
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dashboard_jobs import board, fields_of, graph_of, jobs
from velocity.pipelines.dashboards import Panel, board_of, boards_of, interval
from velocity.pipelines.graph import JobError
from velocity.pipelines.job import Job, parse_duration
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import Message, recompute

JOB = """\
job: orders
source: {{kafka: {{bootstrap_servers: h:1, topics: [t]}}, event_time: at, max_future: 365d, disorder: 1d}}
fields: {{at: timestamp_ms, city: string, tier: string, amount: int64}}
metrics:
  - name: m
    by: {by}
    window: {window}
    values:
      n: count()
      total: sum(amount)
      least: min(amount)
      most: max(amount)
      mean: mean(amount)
      p50: percentile(amount, 50)
      kinds: distinct(amount)
      share: ratio(sum(amount), count())
      newest: last(amount)
sinks: {{elasticsearch: {{url: "http://h:1", index: "orders"}}}}
dead_letters: {{parquet: d}}
"""
WINDOWS = ("{fixed: 1m}", "{sliding: 3m, every: 1m}")
OVER: dict[str, Callable[[list[Any]], Any]] = {"sum": sum, "min": min, "max": max}


def job(window: str = WINDOWS[0], by: str = "[city, tier]") -> Job:
    return parse(JOB.format(window=window, by=by).encode(), "orders.yaml").job


def documents(job: Job, events: list[dict[str, Any]]) -> list[Any]:
    messages = [Message(json.dumps(event).encode(), 0) for event in events]
    return list(recompute(job, messages, {}).values())


def drawn(panel: Panel, found: list[Any]) -> dict[Any, Any]:
    """What a chart draws of documents, by series and window."""
    (value,) = panel.values
    groups: dict[Any, list[Any]] = defaultdict(list)
    for document in found:
        key = tuple(document.dimensions[name] for name in panel.split)
        if (number := document.values[value.name].value) is not None:
            groups[key, document.window_start].append(number)
    return {group: OVER[value.over](numbers) for group, numbers in groups.items()}


@cache
def drawing(window: str) -> tuple[Panel, ...]:
    return board_of(graph_of(job(window))).panels


EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 300_000),
            "city": st.sampled_from(["Solo", "Bandung", None]),
            "tier": st.sampled_from(["a", "b"]),
            "amount": st.integers(-9, 9),
        }
    ),
    max_size=20,
)


@pytest.mark.parametrize("window", WINDOWS)
@given(events=EVENTS)
@settings(max_examples=6, deadline=None)
def test_a_chart_draws_what_its_metric_counted_by_its_series_would_be(
    window: str, events: list[dict[str, Any]]
) -> None:
    counted = {by: documents(job(window, by), events) for by in ("[city]", "[city, tier]")}
    for panel in drawing(window):
        by_series = counted[f"[{', '.join(panel.split)}]"]
        alone = {
            (tuple(document.dimensions.values()), document.window_start): found
            for document in by_series
            if (found := document.values[panel.values[0].name].value) is not None
        }
        assert drawn(panel, counted["[city, tier]"]) == alone


def test_only_counts_and_sums_of_windows_side_by_side_add_up() -> None:
    adding = {
        window: {p.values[0].name for p in drawing(window) if p.values[0].over == "sum"}
        for window in WINDOWS
    }
    assert adding == {WINDOWS[0]: {"n", "total"}, WINDOWS[1]: set()}


@pytest.mark.parametrize("name", jobs())
def test_every_value_of_every_metric_with_a_place_in_time_is_on_the_board_once(name: str) -> None:
    graph = graph_of(jobs()[name])
    shown = [(p.metric, v.name) for p in board(name).panels for v in p.values]
    wanted = {
        (spec.name, value)
        for spec in graph.job.metrics
        for value, text in spec.values.items()
        if not text.startswith(("top(", "histogram(")) and not spec.window.global_
    }
    assert sorted(shown) == sorted(wanted)
    for panel in board(name).panels:
        fields = fields_of(graph, panel.metric)
        assert all(fields[value.field] == value.type for value in panel.values)
        assert {f"dimensions.{n}": t for n, t in panel.dimensions.items()}.items() <= fields.items()


def test_times_make_no_series_and_the_panel_says_so() -> None:
    panel = next(p for p in board("orders").panels if p.name == "revenue-mean")
    assert panel.split == ("city", "open", "code")
    assert "at" in panel.note("city")


def test_a_panel_that_is_not_narrowed_says_so() -> None:
    panels = {p.name: p for p in board("pharmacy_delivery").panels}
    assert "not narrowed" in panels["cancellations-orders"].note("city")
    assert "not narrowed" not in panels["orders_by_city-orders"].note("city")


def test_every_window_has_a_bucket_of_its_own() -> None:
    every = {p.metric: p.every for p in board("orders").panels}
    assert every == {
        "revenue": timedelta(minutes=90),
        "overlapping": timedelta(minutes=5),
        "runs": None,
        "everything": timedelta(days=1),
    }


@given(
    st.timedeltas(timedelta(milliseconds=1), timedelta(days=400)).map(
        lambda d: d - d % timedelta(milliseconds=1)
    )
)
def test_an_interval_in_one_unit_lasts_as_long(duration: timedelta) -> None:
    assert parse_duration(interval(duration)) == duration


def test_two_jobs_of_one_name_are_told_by_their_files() -> None:
    with pytest.raises(JobError, match=r"a\.yaml and b\.yaml both call theirs orders"):
        boards_of({"a.yaml": graph_of(job()), "b.yaml": graph_of(job())})


def test_a_job_without_elasticsearch_has_no_board() -> None:
    given = job().model_dump() | {"sinks": {"sqlite": {"path": "d.db"}}}
    with pytest.raises(JobError, match=r"sinks\.elasticsearch"):
        board_of(graph_of(Job.model_validate(given)))
