"""A job that is stopped, changed and resumed: what its states and partial results are to the job after it."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.transforms.window import IntervalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming

from velocity.io.records import TIMESTAMP
from velocity.transforms.layouts import Layout
from velocity.transforms.metric import Metric
from velocity.transforms.metrics import (
    WindowedMetrics,
    _PaneByPane,
    _PreAggregate,
    _ToDocument,
    _WholePane,
)
from velocity.transforms.partials import PreAggregation
from velocity.transforms.windows import Fixed, Session

MINUTE = timedelta(minutes=1)
SCHEMA = pa.schema(
    [("city", pa.string()), ("fee", pa.int64()), ("tip", pa.int64()), ("at", TIMESTAMP)]
)
WINDOW = IntervalWindow(Timestamp(0), Timestamp(60))
EARLY, ON_TIME = PaneInfoTiming.EARLY, PaneInfoTiming.ON_TIME


def metric(
    values: dict[str, str], *, name: str = "m", by: Sequence[str] = ("city",), **more: Any
) -> Metric:
    return Metric(name, values, **{"window": Fixed(MINUTE), **more}, by=by)


class State:
    """What a savepoint keeps for a shard and window."""

    def __init__(self) -> None:
        self.kept: Any = None

    def read(self) -> Any:
        return self.kept

    def write(self, value: Any) -> None:
        self.kept = value


class Job:
    """A version of a job: what it makes of rows, and of packs that it or another has put out."""

    def __init__(self, *metrics: Metric) -> None:
        self.reduction = PreAggregation(SCHEMA, "at", metrics)
        self.layout = Layout(self.reduction, metrics)
        self.document = _ToDocument("job", self.reduction, self.layout)
        self.metrics = metrics

    def put_out(self, *rows: tuple[str, int, int]) -> list[Any]:
        columns = [*zip(*rows, strict=True), [1_000] * len(rows)]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
        step = _PreAggregate(
            self.reduction,
            dict.fromkeys((m.name for m in self.metrics), "it"),
            {"it": self.layout},
            lambda: pytest.fail("nothing fails"),
            bounded=False,
        )
        step.start_bundle()
        batch = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
        assert list(step.process(batch, Timestamp(1))) == []
        return [out.value.value[1] for out in step.finish_bundle()]

    def documents(self, state: State, packs: list[Any], timing: int) -> dict[tuple[str, str], Any]:
        panes = _PaneByPane(self.document, show_early=True)
        info = PaneInfo(False, False, timing, 0, 0)
        made = panes.process((b"7", packs), WINDOW, info, state)
        return {(d.metric, d.dimensions.get("city", "")): (d.events, d.values) for d in made}


SUMS = {"fees": "sum(fee)", "tips": "sum(tip)"}
BEFORE = Job(metric(SUMS), metric({"n": "count()"}, name="other"))


def resumed(after: Job, *, in_flight: bool) -> dict[tuple[str, str], Any]:
    """Two events before the savepoint, of which one may be on its way, and one after it."""
    state = State()
    first, second = BEFORE.put_out(("Solo", 1, 10)), BEFORE.put_out(("Solo", 2, 20))
    BEFORE.documents(state, first if in_flight else [*first, *second], EARLY)
    then = [*(second if in_flight else []), *after.put_out(("Solo", 4, 40))]
    return after.documents(state, then, ON_TIME)


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (SUMS, {"fees": 7, "tips": 70}),
        ({"tips": "sum(tip)", "fees": "sum(fee)"}, {"tips": 70, "fees": 7}),
        ({"renamed": "sum(tip)"}, {"renamed": 70}),
        ({**SUMS, "most": "max(fee)"}, {"fees": 7, "tips": 70, "most": 4}),
        ({"n": "count()", **SUMS}, {"n": 1, "fees": 7, "tips": 70}),
        ({"fees": "percentile(fee, 50)"}, {"fees": 4.0}),
        ({"share": "ratio(sum(tip), sum(fee))"}, {"share": 10.0}),
    ],
    ids=["same", "reordered", "renamed", "added", "added first", "another aggregate", "of both"],
)
def test_what_is_called_alike_goes_on_and_what_is_new_counts_from_there(
    values: dict[str, str], wanted: dict[str, Any], in_flight: bool
) -> None:
    after = Job(metric(values), metric({"n": "count()"}, name="other"))
    assert resumed(after, in_flight=in_flight) == {
        ("m", "Solo"): (3, wanted),
        ("other", "Solo"): (3, {"n": 3}),
    }


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_metric_that_is_gone_or_has_other_keys_is_left_out_and_told(
    in_flight: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gone = Job(metric({"n": "count()"}, name=f"left {in_flight}"), metric(SUMS))
    with caplog.at_level(logging.WARNING):
        found = resumed(gone, in_flight=in_flight)
    assert found[("m", "Solo")] == (3, {"fees": 7, "tips": 70})
    assert found[(f"left {in_flight}", "Solo")] == (1, {"n": 1})
    assert "metric other: " in caplog.text
    others = Job(metric(SUMS, by=()), metric({"n": "count()"}, name="other"))
    assert resumed(others, in_flight=in_flight)[("m", "")] == (1, {"fees": 4, "tips": 40})


def test_values_of_another_type_count_anew() -> None:
    cast = Job(metric({"fees": "sum(CAST(fee AS DOUBLE))", "tips": "sum(tip)"}))
    found = resumed(cast, in_flight=True)
    assert found == {("m", "Solo"): (3, {"fees": 4.0, "tips": 70})}


def test_sessions_go_on_as_windows_do() -> None:
    window = Session(MINUTE)
    before, after = (
        Job(metric(SUMS, window=window)),
        Job(metric({"tips": "sum(tip)", "n": "count()"}, window=window)),
    )
    laid = [*before.put_out(("Solo", 1, 10)), *after.put_out(("Solo", 2, 20))]
    info = PaneInfo(True, True, ON_TIME, 0, 0)
    panes = _WholePane(after.document, window, may_grow=False)
    [document] = panes.process((b'["m","Solo"]', laid), WINDOW, info)
    assert (document.events, document.values) == (2, {"tips": 30, "n": 1})


def test_a_session_of_a_metric_that_is_gone_is_left_out() -> None:
    window = Session(MINUTE)
    before = Job(metric(SUMS, window=window))
    after = Job(metric({"n": "count()"}, window=window, name="other"))
    panes = _WholePane(after.document, window, may_grow=False)
    laid = before.put_out(("Solo", 1, 10))
    info = PaneInfo(True, True, ON_TIME, 0, 0)
    assert list(panes.process((b'["m","Solo"]', laid), WINDOW, info)) == []


def labels(*metrics: Metric) -> set[str]:
    """What a runner knows the steps that keep states by."""
    with beam.Pipeline() as pipeline:
        rows = pipeline | beam.Create([], reshuffle=False).with_output_types(pa.RecordBatch)
        _ = rows | WindowedMetrics(metrics, schema=SCHEMA, event_time="at")
        found: set[str] = set()

        class Visitor(beam.pipeline.PipelineVisitor):
            def visit_transform(self, transform_node: Any) -> None:
                found.add(transform_node.full_label)

        pipeline.visit(Visitor())
    return {label for label in found if label.endswith("/Group/GroupByKey") or "/Merge" in label}


def test_a_metric_more_before_the_others_changes_no_label_of_theirs() -> None:
    """Else a savepoint's states would be another metric's, or nobody's."""
    one, other = metric(SUMS, name="a"), metric(SUMS, name="b", window=Fixed(2 * MINUTE))
    twice = (
        metric(SUMS, name="c", window=Session(MINUTE)),
        metric(SUMS, name="d", window=Session(MINUTE), early=MINUTE),
    )
    alone = labels(one, other)
    assert alone
    assert alone < labels(*twice, other, one)
    assert labels(*twice) == labels(*reversed(twice))
    moved = metric(SUMS, name="b", window=Fixed(MINUTE, offset=MINUTE / 2))
    assert alone & labels(moved, one) == labels(one)
    assert labels(one) == labels(metric(SUMS, name="a", early=MINUTE, lateness=MINUTE))
