"""Windowed metrics: what each pane shows, and that no run shows another document."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import IntervalWindow, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.records import (
    MESSAGE,
    TIMESTAMP,
    Document,
    RecordBatchCoder,
    WithDeadLetters,
    messages,
)
from velocity.transforms.layouts import Layout
from velocity.transforms.metric import Metric
from velocity.transforms.metrics import (
    _GATHER_ROWS,
    WindowedMetrics,
    _PaneByPane,
    _PreAggregate,
    _ToDocument,
    _WholePane,
    document_id,
)
from velocity.transforms.partials import PreAggregation
from velocity.transforms.shards import SHARDS, packed, shard_of, unpacked
from velocity.transforms.windows import Fixed, Global, Session, Sliding

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND, MINUTE, HOUR = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours"))
SCHEMA = pa.schema(
    [
        ("city", pa.string()),
        ("amount", pa.int64()),
        ("at", TIMESTAMP),
        pa.field(MESSAGE, messages([]).to_struct_array().type, nullable=False),
    ]
)
Event = tuple[str | None, int, float]
"""City, amount, second."""
SUM = {"total": "sum(amount)"}


def batch(*events: Event) -> TimestampedValue:
    cities, amounts, seconds = zip(*events, strict=True)
    values: list[bytes | None] = [json.dumps(event).encode() for event in events]
    rows = pa.RecordBatch.from_arrays(
        [
            pa.array(cities, pa.string()),
            pa.array(amounts, pa.int64()),
            pa.array([round(s * 1000) for s in seconds], TIMESTAMP),
            messages(values, topic="events").to_struct_array(),
        ],
        schema=SCHEMA,
    )
    return TimestampedValue(rows, min(seconds))


def metrics(*wanted: Metric) -> WindowedMetrics:
    return WindowedMetrics(wanted, schema=SCHEMA, event_time="at", job="job", clock=lambda: NOW)


def pane(document: Document) -> Any:
    """Metric, city, start and end in seconds, pane, total, version."""
    [total] = document.values.values() or [None]
    start, end = document.window_start / 1000, document.window_end / 1000
    city = document.dimensions.get("city")
    return document.metric, city, start, end, document.pane, total, document.version


def stream() -> test_stream.TestStream:
    return test_stream.TestStream(coder=RecordBatchCoder())


def assert_panes(
    stream: test_stream.TestStream, wanted: Sequence[Metric], expected: list[Any]
) -> None:
    options = PipelineOptions(["--runner=BundleBasedDirectRunner"], streaming=True)
    with beam.Pipeline(options=options) as pipeline:
        documents, _ = pipeline | stream | metrics(*wanted)
        assert_that(documents | beam.Map(pane), equal_to(expected))


def documents_of(
    file: Path, bundles: Iterable[TimestampedValue], *options: str
) -> list[tuple[str, int, dict[str, Any]]]:
    """All documents of a bounded run, sorted: id, version and what a store keeps."""

    def keep(documents: Iterable[Document]) -> None:
        file.write_text(json.dumps(sorted((d.id, d.version, d.body(NOW)) for d in documents)))

    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(options)) as pipeline:
        create = beam.Create(list(bundles), reshuffle=False)
        rows = pipeline | create | beam.Map(lambda b: b).with_output_types(pa.RecordBatch)
        documents, _ = rows | metrics(*ALL)
        assert_that(documents, keep)
    return [(id_, version, body) for id_, version, body in json.loads(file.read_text())]


def test_early_on_time_and_late_panes_accumulate_and_what_is_too_late_is_dropped() -> None:
    times = (
        stream()
        .add_elements([batch(("a", 1, 1), ("b", 2, 2))])
        .advance_processing_time(15)
        .add_elements([batch(("a", 4, 3))])
        .advance_processing_time(15)
        .add_elements([batch(("a", 8, 59.999), ("a", 16, 60))])
        .advance_watermark_to(60)
        .add_elements([batch(("a", 32, 4))])
        .add_elements([batch(("a", 64, 5), ("c", 128, 5))])
        .advance_watermark_to(121)
        .add_elements([batch(("a", 10_000, 4))])
        .advance_watermark_to_infinity()
    )
    early = Metric("m", SUM, Fixed(MINUTE), ["city"], early=10 * SECOND, lateness=MINUTE)
    assert_panes(
        times,
        [early],
        [
            ("m", "a", 0, 60, "early", 1, 2),
            ("m", "b", 0, 60, "early", 2, 2),
            ("m", "a", 0, 60, "early", 5, 4),
            ("m", "a", 0, 60, "on_time", 13, 7),
            ("m", "b", 0, 60, "on_time", 2, 3),
            ("m", "a", 0, 60, "late", 45, 9),
            ("m", "a", 0, 60, "late", 109, 11),
            ("m", "c", 0, 60, "late", 128, 3),
            ("m", "a", 60, 120, "on_time", 16, 3),
        ],
    )


def to_document(*wanted: Metric) -> _ToDocument:
    reduction = PreAggregation(SCHEMA, "at", wanted)
    return _ToDocument("job", reduction, Layout(reduction, wanted))


def layout_of(*wanted: Metric) -> bytes:
    return Layout(PreAggregation(SCHEMA, "at", wanted), wanted).encoded


def of_one_bundle(*bundle: TimestampedValue, wanted: Metric) -> list[tuple[str, Any, Any]]:
    """What is put out: tag, value, and the time of it."""
    reduction = PreAggregation(SCHEMA, "at", [wanted])
    layouts = {"it": Layout(reduction, [wanted])}
    step = _PreAggregate(reduction, {wanted.name: "it"}, layouts, lambda: NOW, bounded=False)
    step.start_bundle()
    outputs = [out for b in bundle for out in step.process(b.value, b.timestamp)]
    outputs += step.finish_bundle()
    assert not list(step.finish_bundle()), "nothing twice"
    return [(o.tag, o.value.value, o.value.timestamp) for o in outputs]


def test_batches_of_a_bundle_give_one_partial_result_for_each_session_of_a_key() -> None:
    total = Metric("m", SUM, Session(MINUTE), ["city"])
    bundle = [batch(("a", 1, 5), ("b", 2, 2)), batch(("a", 4, 5)), batch(("a", 8, 65))]
    layout = layout_of(total)
    assert of_one_bundle(*bundle, wanted=total) == [
        ("it", (b'["m","a"]', (layout, 5000, (2, (5, 0)))), Timestamp(5)),
        ("it", (b'["m","b"]', (layout, 2000, (1, (1, 1)))), Timestamp(2)),
        ("it", (b'["m","a"]', (layout, 65000, (1, (1, 3)))), Timestamp(65)),
    ]


def test_of_a_bundle_all_keys_of_a_shard_go_together_window_by_window() -> None:
    total = Metric("m", SUM, Fixed(MINUTE), ["city"])
    towns = [f"t{n}" for n in range(300)]
    bundle = [
        batch(*((town, 1, 5) for town in towns)),
        batch(*((town, 2, 3) for town in towns), ("t0", 4, 61)),
    ]
    found = of_one_bundle(*bundle, wanted=total)
    assert len({(shard, at) for _, (shard, _), at in found}) == len(found) <= SHARDS + 1
    counted = Counter[tuple[bytes, int]]()
    for _, (shard, pack), at in found:
        for key, mean, (events, _) in unpacked(pack)[1]:
            assert (shard, at) == (shard_of(key), Timestamp(3 if mean < 60_000 else 61))
            counted[key, mean] += events
    assert counted == {(f'["m","{t}"]'.encode(), 4_000): 2 for t in towns} | {
        (b'["m","t0"]', 61_000): 1
    }


def test_of_a_bundle_that_is_too_much_what_is_gathered_is_put_out_before_its_end() -> None:
    counted = Metric("m", {"n": "count()"}, Fixed(MINUTE))
    many = [batch(*[("a", 1, second)] * (_GATHER_ROWS // 4)) for second in (1, 2, 3, 4, 5)]
    packs = [pack for _, (_, pack), _ in of_one_bundle(*many, wanted=counted)]
    events = [partial[0] for pack in packs for _, _, partial in unpacked(pack)[1]]
    assert events == [_GATHER_ROWS, _GATHER_ROWS // 4]


def test_how_much_is_gathered_goes_by_how_many_partial_results_a_row_has_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("velocity.transforms.metrics._GATHER_ROWS", 1_000)
    monkeypatch.setattr("velocity.transforms.metrics._GATHER_PARTIALS", 100)
    counted = Metric("m", {"n": "count()"}, Fixed(MINUTE), by=("city",))
    few = [batch(*[("a", 1, 1)] * 50)] * 42
    many = [batch(*((f"t{n}", 1, 1) for n in range(at, at + 50))) for at in range(0, 300, 50)]
    packs = [pack for _, (_, pack), _ in of_one_bundle(*few, wanted=counted)]
    gathered = [partial[0] for pack in packs for _, _, partial in unpacked(pack)[1]]
    assert gathered == [100, 1_000, 1_000]
    found = of_one_bundle(*few[:2], *many, wanted=counted)
    assert sum(len(unpacked(pack)[1]) for _, (_, pack), _ in found) == 301


def test_a_dead_letter_of_a_bundle_has_the_message_of_its_own_row() -> None:
    strict = Metric("m", {"n": "sum(CAST(city AS BIGINT))"}, Fixed(MINUTE))
    bundle = [batch(("1", 1, 5), ("2", 2, 2)), batch(("x", 3, 3)), batch(("3", 4, 61))]
    [dead] = [value for tag, value, _ in of_one_bundle(*bundle, wanted=strict) if tag != "it"]
    assert [json.loads(value) for value in dead["value"].to_pylist()] == [["x", 3, 3]]


def test_without_early_panes_a_window_is_shown_at_the_watermark_and_when_late() -> None:
    times = (
        stream()
        .add_elements([batch(("a", 1, 1)), batch(("a", 2, 31))])
        .advance_processing_time(3600)
        .advance_watermark_to(60)
        .add_elements([batch(("a", 4, 29))])
        .advance_watermark_to_infinity()
    )
    sliding = Metric("m", SUM, Sliding(MINUTE, 30 * SECOND), lateness=HOUR)
    assert_panes(
        times,
        [sliding],
        [
            ("m", None, -30, 30, "on_time", 1, 3),
            ("m", None, 0, 60, "on_time", 3, 5),
            ("m", None, -30, 30, "late", 5, 5),
            ("m", None, 0, 60, "late", 7, 7),
            ("m", None, 30, 90, "on_time", 2, 3),
        ],
    )


def test_sessions_merge_across_batches_and_panes() -> None:
    times = (
        stream()
        # one batch longer than three gaps, another that carries it on, and a key of its own
        .add_elements([batch(*(("a", 1, s) for s in range(0, 40, 9)), ("b", 100, 20))])
        .add_elements([batch(("a", 2, 45.5), ("a", 4, 70))])
        .advance_watermark_to(200)
        # late: between the two sessions of a, and so long that it joins them
        .add_elements([batch(("a", 8, 54), ("a", 16, 62))])
        .advance_watermark_to_infinity()
    )
    session = Metric("m", SUM, Session(10 * SECOND), ["city"], lateness=HOUR)
    assert_panes(
        times,
        [session],
        [
            ("m", "a", 0, 55.5, "on_time", 7, 13),
            *(("m", "a", slot, slot, "merged", None, 2**48 - 1) for slot in range(10, 50, 10)),
            ("m", "a", 70, 80, "on_time", 4, 3),
            ("m", "b", 20, 30, "on_time", 100, 3),
            ("m", "a", 0, 80, "late", 35, 19),
            *(("m", "a", slot, slot, "merged", None, 2**48 - 1) for slot in range(10, 80, 10)),
        ],
    )


def test_a_global_window_shows_its_total_now_and_then_and_at_the_end_of_time() -> None:
    end = 253_402_300_799.999
    times = (
        stream()
        .add_elements([batch(("a", 1, -5), ("b", 2, 90))])
        .advance_processing_time(15)
        .advance_watermark_to(1_000_000)
        # behind the watermark by far, and not late; before 1970, and counted
        .add_elements([batch(("a", 4, 10)), batch(("a", 8, 2_000_000))])
        .advance_processing_time(15)
        .advance_processing_time(3600)
        .add_elements([batch(("c", 16, 7))])
        .advance_watermark_to_infinity()
    )
    assert_panes(
        times,
        [Metric("m", SUM, Global(), ["city"], early=10 * SECOND)],
        [
            ("m", "a", 0, end, "early", 1, 2),
            ("m", "b", 0, end, "early", 2, 2),
            ("m", "a", 0, end, "early", 13, 6),
            ("m", "a", 0, end, "on_time", 13, 7),
            ("m", "b", 0, end, "on_time", 2, 3),
            ("m", "c", 0, end, "on_time", 16, 3),
        ],
    )


def test_a_session_that_is_shown_once_takes_nothing_away() -> None:
    times = stream().add_elements([batch(*(("a", 1, s) for s in range(0, 40, 9)))])
    session = Metric("m", SUM, Session(10 * SECOND), ["city"])
    expected = [("m", "a", 0, 46, "on_time", 5, 11)]
    assert_panes(times.advance_watermark_to_infinity(), [session], expected)


def test_an_early_pane_takes_away_no_more_than_the_last_hundred_slots() -> None:
    session = Session(10 * SECOND)
    counted = Metric("m", {"n": "count()"}, session, ["city"])
    document, layout = to_document(counted), layout_of(counted)
    panes = _WholePane(document, session, may_grow=True)
    window = IntervalWindow(5, 3_000)
    found = {}
    for timing in (PaneInfoTiming.EARLY, PaneInfoTiming.ON_TIME, PaneInfoTiming.LATE):
        info = PaneInfo(False, False, timing, 0, 0)
        first, *rest = panes.process((b'["m","a"]', [(layout, 5_000, (2, 2))]), window, info)
        assert (first.window_start, first.id) == (5_000, 'job/m/0/["a"]')
        assert {document.pane for document in rest} == {"merged"}
        found[timing] = [document.slot for document in rest]
    every = list(range(10_000, 3_000_000, 10_000))
    assert list(found.values()) == [every[-100:], every, every]


def bounded(seed: int, cuts: int) -> list[TimestampedValue]:
    """The same events always, in an order and in batches of the seed's choosing."""
    generator = random.Random(0)
    events: list[Event] = [
        (generator.choice(["a", "b/c", None]), 1, generator.randrange(-4000, 4000) / 10)
        for _ in range(120)
    ]
    random.Random(seed).shuffle(events)
    return [batch(*events[i::cuts]) for i in range(cuts)]


ALL = [
    Metric("fixed", SUM, Fixed(MINUTE), ["city"], early=10 * SECOND, lateness=HOUR),
    Metric("offset", SUM, Fixed(MINUTE, -7 * SECOND), ["city"]),
    Metric("sliding", SUM, Sliding(MINUTE, 45 * SECOND), ["city"]),
    Metric("session", SUM, Session(7 * SECOND), ["city"], early=10 * SECOND),
    Metric("all", SUM, Global(), ["city"], early=10 * SECOND),
]


def test_bounded_input_gives_each_window_once_and_the_same_in_any_order_and_cut(
    tmp_path: Path,
) -> None:
    found = documents_of(tmp_path / "1", bounded(1, 1))
    assert documents_of(tmp_path / "2", bounded(2, 9)) == found
    again = documents_of(tmp_path / "3", bounded(3, 4), "--direct_runner_bundle_repeat=2")
    assert again == found

    assert len({id_ for id_, _, _ in found}) == len(found)
    assert {body["pane"] for _, _, body in found} == {"on_time"}
    counted = Counter[str]()
    for _, version, body in found:
        counted[body["metric"]] += body["events"]
        assert body["values"]["total"] == body["events"]
        assert version == 2 * body["events"] + 1
    assert [counted[name] for name in ("fixed", "offset", "session", "all")] == [120] * 4
    assert 120 < counted["sliding"] < 240


def test_a_row_that_fails_is_a_dead_letter_with_its_message_and_joins_those_before() -> None:
    strict = Metric("m", {"total": "sum(CAST(city AS BIGINT))"}, Fixed(MINUTE))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        create = beam.Create([batch(("1", 0, 0), ("x", 0, 1), ("2", 0, 2))], reshuffle=False)
        rows = pipeline | create | beam.Map(lambda b: b).with_output_types(pa.RecordBatch)
        before = pipeline | "Before" >> beam.Create([messages([b"old"])])
        documents, dead = WithDeadLetters(rows, before) | metrics(strict)
        assert_that(documents | beam.Map(pane), equal_to([("m", None, 0, 60, "on_time", 3, 5)]))
        letters = dead | beam.FlatMap(
            lambda b: [
                (row.get("stage"), row.get("cause"), row["topic"], row["offset"], row["value"])
                for row in b.to_pylist()
            ]
        )
        expected = [
            (None, None, "", 0, b"old"),
            ("metrics", "expression_failed", "events", 1, b'["x", 0, 1]'),
        ]
        assert_that(letters, equal_to(expected), label="dead letters")


class _State:
    """What a runner keeps for one shard and window."""

    def __init__(self) -> None:
        self.kept: Any = None
        self.calls: list[str] = []

    def read(self) -> Any:
        self.calls.append("read")
        return self.kept

    def write(self, value: Any) -> None:
        self.calls.append("write")
        self.kept = value


@pytest.mark.parametrize("show_early", [True, False])
def test_a_pane_that_brings_nothing_shows_what_was_known_or_is_not_written(
    show_early: bool,
) -> None:
    """Portable Flink emits such panes: written empty they would overwrite good documents. An early
    pane adds up, whether it is shown or not."""
    wanted = Metric("m", SUM, Fixed(MINUTE))
    document = to_document(wanted)
    panes = _PaneByPane(document, show_early=show_early)
    state = _State()

    def shown(partials: list[Any], timing: int) -> list[Any]:
        some = [(b'["m"]', 1_000 * i, partial) for i, partial in enumerate(partials, start=1)]
        window = IntervalWindow(Timestamp(0), Timestamp(60))
        info = PaneInfo(False, False, timing, 0, 0)
        packs = [packed((layout_of(wanted), [one])) for one in some]
        made = list(panes.process((b"7", packs), window, info, state))
        return [(*pane(document), document.due) for document in made]

    on_time, early, late = (
        PaneInfoTiming.ON_TIME,
        PaneInfoTiming.EARLY,
        PaneInfoTiming.LATE,
    )
    assert shown([], on_time) == []
    assert shown([(2, (5, 0))], early) == [("m", None, 0, 60, "early", 5, 4, 1_000)] * show_early
    # What is shown when its window is over was waited for from then on.
    due = None if show_early else 60_000
    assert shown([], on_time) == [("m", None, 0, 60, "on_time", 5, 5, due)]
    # Two late events, at 1 s and 2 s.
    together = [(1, (1, 1)), (1, (1, 0))]
    assert shown(together, late) == [("m", None, 0, 60, "late", 8, 9, 1_500)]


@pytest.mark.parametrize("told", [True, False])
def test_a_windows_only_pane_asks_for_no_state_where_the_runner_tells_that_it_is(
    told: bool,
) -> None:
    wanted = Metric("m", SUM, Fixed(MINUTE))
    document = to_document(wanted)
    panes = _PaneByPane(document, show_early=True, told=told)
    window = IntervalWindow(Timestamp(0), Timestamp(60))

    def made(state: _State, first: bool, last: bool, total: int) -> Any:
        info = PaneInfo(first, last, PaneInfoTiming.ON_TIME, 0, 0)
        pack = packed((layout_of(wanted), [(b'["m"]', 1_000, (1, (total, 0)))]))
        [it] = panes.process((b"7", [pack]), window, info, state)
        return it.values["total"]

    only, several = _State(), _State()
    assert made(only, True, True, 3) == 3
    assert only.calls == ([] if told else ["read", "write"])
    assert [made(several, True, False, 1), made(several, False, False, 2)] == [1, 3]
    assert made(several, False, True, 4) == 7
    skipped = {("read", 0), ("write", 2)} if told else set()
    wanted_calls = [(c, i) for i in range(3) for c in ("read", "write") if (c, i) not in skipped]
    assert several.calls == [call for call, _ in wanted_calls]


def test_a_pane_shows_what_it_brings_and_the_one_at_the_watermark_all_keys() -> None:
    wanted = Metric("m", SUM, Fixed(MINUTE), ["city"])
    document = to_document(wanted)
    panes, state = _PaneByPane(document, show_early=True), _State()

    def shown(timing: int, *cities: str) -> list[Any]:
        some = [(f'["m","{city}"]'.encode(), 1_000, (1, (5, 0))) for city in cities]
        window = IntervalWindow(Timestamp(0), Timestamp(60))
        info = PaneInfo(False, False, timing, 0, 0)
        made = panes.process(
            (b"7", [packed((layout_of(wanted), some))] if some else []), window, info, state
        )
        return sorted((d.dimensions["city"], d.events, d.pane) for d in made)

    early, on_time, late = PaneInfoTiming.EARLY, PaneInfoTiming.ON_TIME, PaneInfoTiming.LATE
    assert shown(early, "a", "b") == [("a", 1, "early"), ("b", 1, "early")]
    assert shown(early, "b", "c") == [("b", 2, "early"), ("c", 1, "early")]
    assert shown(on_time, "a") == [("a", 2, "on_time"), ("b", 2, "on_time"), ("c", 1, "on_time")]
    assert shown(late, "d", "c") == [("c", 2, "late"), ("d", 1, "late")]


DIMENSIONS = st.lists(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=400), max_size=3
)
NAMES = st.text("abc_-0123456789é", min_size=1, max_size=300)


@given(NAMES, NAMES, st.integers(-(10**15), 10**15), DIMENSIONS, DIMENSIONS)
def test_an_id_is_short_and_distinct_for_distinct_keys(
    job: str, metric: str, start: int, one: list[Any], two: list[Any]
) -> None:
    ids = [document_id(job, metric, start, key) for key in (one, two)]
    assert all(len(id_.encode()) <= 512 for id_ in ids)
    assert (ids[0] == ids[1]) == (json.dumps(one) == json.dumps(two))
    assert document_id(job, metric, start + 1, one) != ids[0]
    assert document_id(job, metric + "x", start, one) != ids[0]


def test_keys_that_look_alike_have_ids_of_their_own() -> None:
    keys: list[list[Any]] = [
        ["a/b"], ["a", "b"], ["a"], ["null"], [None], [""], [], ["1"], [1], [True], ["true"],
        ["é"], ["e\u0301"], ['a","b'], ["a" * 600], ["a" * 601], [None, "x"], ["x", None],
    ]  # fmt: skip
    assert len({document_id("j", "m", 0, key) for key in keys}) == len(keys)


def test_an_id_is_the_same_in_each_run_and_version_of_velocity() -> None:
    """Another id would leave the old document beside the new one."""
    assert document_id("j", "m", -1, ["Ünïcøde", None, 1, True]) == (
        'j/m/-1/["Ünïcøde",null,1,true]'
    )
    assert document_id("j", "m", 0, ["x" * 600]) == (
        "j/m/0/83f21b6c8b87059c1e75022f330823eb27c93b9cc171f96bdb0aadf13838c7bb"
    )
