"""Pre-aggregation: partial results, merged, are what plain Python counts from the events."""

import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from fractions import Fraction
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from apache_beam.transforms.window import IntervalWindow, WindowFn
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from velocity.io.records import MESSAGE, TIMESTAMP, messages, rfc3339
from velocity.transforms.metric import Metric
from velocity.transforms.partials import (
    MetricError,
    Partial,
    PreAggregation,
    Reduced,
    merge,
)
from velocity.transforms.reduction import Aggregate
from velocity.transforms.windows import Fixed, Session, Sliding, Window


class Event(NamedTuple):
    city: str | None
    paid: bool | None
    amount: float | None
    n: int | None
    at: int


TYPES = {
    "city": pa.string(),
    "paid": pa.bool_(),
    "amount": pa.float64(),
    "n": pa.int64(),
    "at": TIMESTAMP,
}
SCHEMA = pa.schema(list(TYPES.items()))
VALUES = {
    "events": "count()",
    "amounts": "count(amount)",
    "total": "sum(amount)",
    "whole": "sum(n)",
    "mean": "mean(amount)",
    "least": "min(n)",
    "last": "max(at)",
    "cities": "distinct(city)",
    "median": "percentile(amount, 50)",
    "double": "sum(n * 2)",
}
EVENT = st.builds(
    Event,
    st.sampled_from(["Solo", "Bandung", "", "null", "a/b", None]),
    st.sampled_from([True, False, None]),
    st.none() | st.sampled_from([0.1, 0.2, 1e300, -1e300, 1e-300, -0.0]) | st.floats(-99, 99),
    st.none() | st.integers(-(2**40), 2**40),
    st.integers(-90_000, 90_000) | st.integers(-15, 15).map(lambda second: second * 1000),
)
WINDOWS: Mapping[str, Window] = {
    "fixed": Fixed(timedelta(seconds=10)),
    "fixed with an offset": Fixed(timedelta(seconds=10), timedelta(seconds=-3)),
    "sliding": Sliding(timedelta(seconds=15), timedelta(seconds=10)),
    "sliding with gaps": Sliding(timedelta(seconds=4), timedelta(seconds=10)),
    "session": Session(timedelta(seconds=8)),
}
Documents = dict[tuple[str, int, int], tuple[int, list[Any]]]
"""By key, start and end of the window: events and values."""


def batch(events: Iterable[Event]) -> pa.RecordBatch:
    columns = zip(*events, strict=True)
    arrays = [pa.array(c, t) for c, t in zip(columns, TYPES.values(), strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


# The oracle: dicts and loops.


def spans(window: Window, times: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
    """The windows of each of one key's times."""
    if isinstance(window, Session):
        gap = window.gap // timedelta(milliseconds=1)
        groups: list[list[int]] = []
        for time in sorted(times):
            if groups and time - groups[-1][-1] < gap:
                groups[-1].append(time)
            else:
                groups.append([time])
        return {t: [(group[0], group[-1] + gap)] for group in groups for t in group}
    if isinstance(window, Fixed):
        size, every, offset = window.size, window.size, window.offset
    else:
        assert isinstance(window, Sliding)
        size, every, offset = window.size, window.every, timedelta(0)
    [size_ms, every_ms, offset_ms] = [d // timedelta(milliseconds=1) for d in (size, every, offset)]
    starts = [i * every_ms + offset_ms for i in range(-30, 30)]
    return {t: [(s, s + size_ms) for s in starts if s <= t < s + size_ms] for t in times}


def computed(events: Sequence[Event]) -> list[Any]:
    amounts = [e.amount for e in events if e.amount is not None]
    whole = [e.n for e in events if e.n is not None]
    exact = sum(map(Fraction, amounts))
    return [
        len(events),
        len(amounts),
        float(exact) if amounts else None,
        sum(whole) if whole else None,
        float(exact / len(amounts)) if amounts else None,
        min(whole, default=None),
        rfc3339(max(e.at for e in events)),
        len({e.city for e in events} - {None}),
        sorted(amounts)[-(-len(amounts) // 2) - 1] if amounts else None,
        2 * sum(whole) if whole else None,
    ]


def recomputed(window: Window, events: Iterable[Event]) -> Documents:
    by_key: dict[str, list[Event]] = {}
    for event in events:
        if event.n is not None and event.n >= 0:
            key = json.dumps(
                ["m", event.city, event.paid], ensure_ascii=False, separators=(",", ":")
            )
            by_key.setdefault(key, []).append(event)
    grouped: dict[tuple[str, int, int], list[Event]] = {}
    for key, found in by_key.items():
        windows = spans(window, [event.at for event in found])
        for event in found:
            for span in windows[event.at]:
                grouped.setdefault((key, *span), []).append(event)
    return {where: (len(found), computed(found)) for where, found in grouped.items()}


# What the graph does, without the graph: partial results into Beam's windows, merged there.


class _Windows(WindowFn.MergeContext):
    """The windows of one key, each with its partial results."""

    def __init__(self) -> None:
        super().__init__([])
        self.partials: dict[IntervalWindow, list[Partial]] = {}

    def merge(self, to_be_merged: Iterable[IntervalWindow], merge_result: IntervalWindow) -> None:
        together = [p for w in to_be_merged for p in self.partials.pop(w, [])]
        self.partials.setdefault(merge_result, []).extend(together)


def windowed(
    window: Window, aggregates: Sequence[Aggregate], partials: Iterable[Reduced]
) -> Documents:
    function = window.window_fn()
    contexts: dict[bytes, _Windows] = {}
    for _, key, time, partial, *_ in partials:
        context = contexts.setdefault(key, _Windows())
        at = WindowFn.AssignContext(Timestamp(micros=time * 1000))
        for where in function.assign(at):
            context.partials.setdefault(where, []).append(partial)
    documents: Documents = {}
    for key, context in contexts.items():
        context.windows = list(context.partials)
        function.merge(context)
        for where, found in context.partials.items():
            events, *states = merge(aggregates, found)
            if events:
                start, end = where.start.micros // 1000, where.end.micros // 1000
                results = [a.result(s) for a, s in zip(aggregates, states, strict=True)]
                documents[key.decode(), start, end] = (events, results)
    return documents


def metric(window: Window, **more: Any) -> Metric:
    options: dict[str, Any] = {"by": ["city", "paid"], "where": "n >= 0", **more}
    return Metric("m", VALUES, window, **options)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_documents_are_those_of_a_plain_recomputation(window: Window, data: Any) -> None:
    """Whatever the disorder of the events, and wherever batches were cut."""
    events = data.draw(st.lists(EVENT, min_size=1, max_size=40))
    edges = data.draw(st.lists(st.integers(1, len(events)), max_size=4))
    places = sorted({0, len(events), *edges})
    reduction = PreAggregation(SCHEMA, "at", [metric(window)])
    partials: list[Reduced] = []
    for start, stop in itertools.pairwise(places):
        found, failures, _ = reduction.reduce(batch(events[start:stop]))
        assert not failures
        partials += found
    random.Random(0).shuffle(partials)
    assert windowed(window, reduction.aggregates["m"], partials) == recomputed(window, events)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@given(events=st.lists(EVENT, min_size=1, max_size=30))
@settings(deadline=None, max_examples=20)
def test_a_partial_result_is_never_earlier_than_its_batch(
    window: Window, events: list[Event]
) -> None:
    """Beam would refuse it, or count it late: the batch's own timestamp is its earliest event."""
    partials, *_ = PreAggregation(SCHEMA, "at", [metric(window)]).reduce(batch(events))
    times = [event.at for event in events]
    assert all(min(times) <= reduced.time <= max(times) for reduced in partials)


def test_a_batch_becomes_one_partial_result_for_each_metric_key_and_slice() -> None:
    events = [Event(city, True, 1.0, 1, at) for city in ("a", "b") for at in range(0, 20_000, 10)]
    metrics = [
        Metric("ten", {"n": "count()"}, WINDOWS["fixed"], ["city"]),
        Metric("all", {"n": "count()"}, WINDOWS["fixed"]),
        Metric("run", {"n": "count()"}, WINDOWS["session"], ["city"]),
    ]
    partials, *_ = PreAggregation(SCHEMA, "at", metrics).reduce(batch(events))
    counts = {
        name: [p.partial[0] for p in partials if p.metric.name == name] for name in ("ten", "all")
    }
    assert counts == {"ten": [1000] * 4, "all": [2000] * 2}
    assert sorted(p.partial[0] for p in partials if p.metric.name == "run") == [0] * 6 + [2000] * 2


def test_sessions_of_keys_that_take_turns_stay_apart() -> None:
    """In both parts of the key: neither bridges the gap of another."""
    events = [
        Event(city, paid, 1.0, 1, at * 1000)
        for at, (city, paid) in enumerate(
            [("a", True), ("b", True), ("a", False), ("b", False), (None, True), ("a", None)] * 3
        )
    ]
    reduction = PreAggregation(SCHEMA, "at", [metric(Session(timedelta(seconds=5)))])
    found, *_ = reduction.reduce(batch(events))
    assert [reduced.partial[0] for reduced in found] == [1] * len(events)


def test_a_row_whose_expression_fails_counts_in_no_metric() -> None:
    metrics = [
        Metric("m", {"x": "sum(CAST(city AS BIGINT))"}, WINDOWS["fixed"]),
        Metric("all", {"n": "count()"}, WINDOWS["fixed"]),
    ]
    events = [Event("1", True, 1.0, 1, 0), Event("x", True, 1.0, 1, 1), Event("3", True, 1.0, 1, 2)]
    partials, [(position, error)], _ = PreAggregation(SCHEMA, "at", metrics).reduce(batch(events))
    assert (position, "'x'" in error) == (1, True)
    assert [p.partial for p in partials] == [(2, (1, 2)), (2, 2)]


@pytest.mark.parametrize("where", ["paid", "paid = true", "n > 0 AND paid"])
def test_a_condition_that_is_null_is_not_met(where: str) -> None:
    events = [Event("a", paid, 1.0, 1, 0) for paid in (True, False, None)]
    counted = Metric("m", {"n": "count()"}, WINDOWS["fixed"], where=where)
    [reduced] = PreAggregation(SCHEMA, "at", [counted]).reduce(batch(events)).partials
    assert reduced.partial == (1, 1)


def test_no_rows_give_no_partial_results() -> None:
    reduction = PreAggregation(SCHEMA, "at", [metric(w) for w in [WINDOWS["session"]]])
    empty = pa.RecordBatch.from_pylist([], SCHEMA)
    assert reduction.reduce(empty) == ([], [], [])


def test_keys_that_look_alike_stay_apart() -> None:
    cities = ["null", None, "", '"', "a/b", "a", "b", "é", "e\u0301", "😀", "[]", "true", "1"]
    events = [Event(city, True, 1.0, 1, 0) for city in cities]
    by_city = Metric("m", {"n": "count()"}, WINDOWS["fixed"], ["city"])
    partials, *_ = PreAggregation(SCHEMA, "at", [by_city]).reduce(batch(events))
    assert [json.loads(p.key) for p in partials] == [["m", city] for city in cities]
    assert len({p.key for p in partials}) == len(cities)


def test_a_merge_of_nothing_but_empty_partials_counts_no_event() -> None:
    reduction = PreAggregation(SCHEMA, "at", [metric(WINDOWS["session"])])
    empty: Partial = (0, *[None] * len(VALUES))
    assert merge(reduction.aggregates["m"], [empty, empty]) == empty


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": ["town"]}, "metric m, by: unknown column town"),
        ({"by": ["amount"]}, "amount is a double"),
        ({"by": [MESSAGE]}, f"unknown column {MESSAGE}"),
        ({"where": "city"}, "a condition is wanted"),
        ({"where": "amonut > 1"}, "did you mean amount"),
        ({"where": "count(*) > 1"}, "aggregates"),
        ({"where": ""}, "metric m"),
        ({"values": {"x": "sum(city)"}}, "needs numbers"),
        ({"values": {"x": "sum(amount) + (n)"}}, "metric m: .*nothing around it"),
        ({"values": {"x": "sum(amount) / count(n)"}}, "metric m: .*nothing around it"),
        ({"values": {"x": "count(*)"}}, r"metric m: .*\*"),
        ({"values": {"x": f"distinct({MESSAGE})"}}, "unknown column"),
        ({"values": {"x": "sum(sum(n))"}}, "aggregates"),
        ({"values": {"x": "sum(uper(city))"}}, "metric m: .*uper"),
        ({"values": {"x": "percentile(n, 101)"}}, "at most 100"),
    ],
)
def test_a_metric_that_can_not_be_computed_is_refused_with_its_name(
    options: dict[str, Any], words: str
) -> None:
    wrong = Metric(
        **{"name": "m", "values": {"n": "count()"}, "window": WINDOWS["fixed"], **options}
    )
    schema = SCHEMA.append(pa.field(MESSAGE, messages([]).to_struct_array().type))
    with pytest.raises(MetricError, match=words):
        PreAggregation(schema, "at", [wrong])


def test_metrics_of_one_name_are_refused() -> None:
    """One would be shown with the other's values."""
    with pytest.raises(MetricError, match="metric m: given twice"):
        PreAggregation(SCHEMA, "at", [metric(WINDOWS["fixed"]), metric(WINDOWS["session"])])


@pytest.mark.parametrize(
    "wrong",
    [
        {"early": timedelta(0)},
        {"early": timedelta(seconds=-1)},
        {"early": timedelta(milliseconds=1500)},
        {"lateness": timedelta(seconds=-1)},
    ],
)
def test_a_metric_shows_early_after_whole_seconds_and_waits_no_negative_time(
    wrong: dict[str, timedelta],
) -> None:
    with pytest.raises(ValueError, match=r"metric m, (early|lateness): "):
        metric(WINDOWS["fixed"], **wrong)
