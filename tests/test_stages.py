"""Laws of stages: a transaction's facts depend on its events, not on the way they arrive."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velocity.pipelines.follow import stages_of
from velocity.pipelines.job import TransactionSpec
from velocity.pipelines.recompute_transactions import facts
from velocity.transforms.stages import Arrival, Fact, Stage, StageError, Stages, Transaction

SPEC = TransactionSpec.model_validate(
    {
        "key": "id",
        "event": "event",
        "by": ["city"],
        "ttl": "40ms",
        "stages": {
            "asked": {"events": ["ask", "ask again"], "next": ["told", "left"], "sla": "5ms"},
            "told": {"events": ["tell"], "next": ["order", "claim"], "ttl": "20ms"},
            "left": {"events": ["leave"], "ttl": "3ms"},
            "order": {"events": ["order"], "next": ["sent"], "sla": "10ms", "ttl": "10ms"},
            "sent": {"events": ["send"], "next": ["claim"], "sla": "7ms"},
            "claim": {"events": ["claim"], "ttl": "1ms"},
        },
    }
)
GRAPH = stages_of(SPEC)
EVENTS = [event for stage in SPEC.stages.values() for event in stage.events]
LATENESS = 15

happened = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(EVENTS),
    st.integers(0, 120),
    st.sampled_from(["Solo", "Medan", None]),
    st.integers(0, LATENESS),  # how long after it happened it arrives
)


def row(fact: Fact, key: str) -> tuple[Any, ...]:
    following = None if fact.next is None else GRAPH.names[fact.next]
    return key, fact.what, GRAPH.names[fact.stage], following, fact.time, fact.since, *fact.by


def expected(events: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    rows = [{"id": k, "event": e, "city": city, "at": time} for k, e, time, city, *_ in events]
    names = ("transaction", "what", "stage", "next", "at", "since", "city")
    found = [tuple(fact[name] for name in names) for fact in facts(SPEC, "at", rows)]
    return sorted(found, key=repr)


def arrival(event: tuple[Any, ...]) -> Arrival:
    _, name, time, city, *_ = event
    return Arrival(time, GRAPH.of_event[name], (city,))


@given(st.lists(happened, max_size=25))
def test_any_order_of_arrival_within_the_lateness_gives_what_a_loop_over_all_gives(
    events: list[tuple[Any, ...]],
) -> None:
    kept: defaultdict[str, Any] = defaultdict(lambda: None)
    found = []
    for event in sorted(events, key=lambda event: event[2] + event[4]):
        key, clock = event[0], event[2] + event[4]
        for other in "abc":  # the watermark follows the clock, as far behind as events may be
            transaction = Transaction(GRAPH, kept[other])
            found += [row(fact, other) for fact in transaction.advance(clock - LATENESS - 1)]
            kept[other] = transaction.keep()
        transaction = Transaction(GRAPH, kept[key])
        assert transaction.arrive([arrival(event)]) == 0
        kept[key] = transaction.keep()
    for key in "abc":
        transaction = Transaction(GRAPH, kept[key])
        found += [row(fact, key) for fact in transaction.advance(10_000)]
        assert transaction.keep() is None  # nothing is kept for ever
        assert transaction.due is None
    assert sorted(found, key=repr) == expected(events)


@given(st.lists(happened, max_size=25), st.lists(st.integers(0, 300), max_size=10))
def test_any_order_and_any_steps_of_the_watermark_keep_what_is_told_once(
    events: list[tuple[Any, ...]], steps: list[int]
) -> None:
    """However late an event is: each stage of a life is entered once and ends once."""
    transaction = Transaction(GRAPH)
    found: list[Fact] = []
    clock = 0
    for event, step in zip(events, [*steps, *[0] * len(events)], strict=False):
        transaction.arrive([arrival(event)])
        clock += step
        found += transaction.advance(clock)
    found += transaction.advance(10_000)
    assert transaction.keep() is None
    ends = [f for f in found if f.what in ("moved", "dropped")]
    entered = [f for f in found if f.what == "entered" and GRAPH.stages[f.stage].next]
    assert sorted((f.stage, f.since) for f in ends) == sorted((f.stage, f.since) for f in entered)
    stuck = sorted((f.stage, f.since) for f in found if f.what == "stuck")
    over = [f for f in found if f.what == "resolved" or (f.what == "dropped" and f.overdue)]
    assert sorted((f.stage, f.since) for f in over) == stuck
    assert all(f.time >= f.since for f in found)


def test_a_late_event_counts_and_is_told_of() -> None:
    transaction = Transaction(GRAPH)
    transaction.arrive([Arrival(0, 0, ("Solo",))])
    assert [fact.what for fact in transaction.advance(6)] == ["entered", "stuck"]
    assert transaction.arrive([Arrival(3, 1, ("Solo",))]) == 1
    late = [(fact.what, fact.stage, fact.next, fact.time) for fact in transaction.advance(6)]
    assert late == [("moved", 0, 1, 3), ("resolved", 0, 1, 3), ("entered", 1, None, 3)]


def test_a_duplicate_is_neither_kept_nor_told() -> None:
    transaction = Transaction(GRAPH)
    transaction.arrive([Arrival(0, 0, ("Solo",))] * 1000)
    size = len(repr(transaction.keep()))
    assert size < 200
    assert [fact.what for fact in transaction.advance(4)] == ["entered"]
    transaction.arrive([Arrival(0, 0, ("Solo",))])
    assert list(transaction.advance(4)) == []


MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("stages", "stage", "key", "words"),
    [
        ([Stage("a", ["x"], ["b"])], "a", "next", "b, which is no stage"),
        ([Stage("a", ["x"], ["b"]), Stage("b", ["x"])], "a", "events", "x enters stage b too"),
        ([Stage("a", ["x"], ["b"]), Stage("b", ["y"], ["a"])], "a", "next", "back to itself"),
        ([Stage("a", ["x"], ["a"])], "a", "next", "back to itself"),
        ([Stage("a", ["x"]), Stage("a", ["y"])], "a", "", "given twice"),
        ([Stage("a", ["x"], sla=MINUTE)], "a", "sla", "nothing follows"),
        ([Stage("a", ["x"], ["b"], 2 * MINUTE, MINUTE), Stage("b", ["y"])], "a", "sla", "the ttl"),
        ([Stage("a", ["x"], ["b"], 0 * MINUTE), Stage("b", ["y"])], "a", "sla", "more than noth"),
        ([Stage("a", ["x"], ttl=0 * MINUTE)], "a", "ttl", "more than nothing"),
    ],
)
def test_a_graph_that_makes_no_sense_is_refused_by_its_stage_and_key(
    stages: list[Stage], stage: str, key: str, words: str
) -> None:
    with pytest.raises(StageError, match=words) as refused:
        Stages(stages)
    assert (refused.value.stage, refused.value.key) == (stage, key)
