"""Days of a time zone: where they begin, and that every way to a document tells the same day."""

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from velocity.io.records import (
    Document,
    RecordBatchCoder,
    messages,
    rfc3339,
    with_watermarks,
)
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job, WindowSpec
from velocity.pipelines.recompute import Message, _days, recompute, recompute_all
from velocity.transforms.days import UnknownZone, begin_of, days_of, zone_named
from velocity.transforms.ranges import Part, Span, parts
from velocity.transforms.windows import Days

HOUR = 3_600_000
ZONES = st.sampled_from(sorted(available_timezones()))
TIMES = st.integers(0, 2_200_000_000_000)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


CHANGES = [
    ("America/New_York", at("2026-03-08T07:00:00Z")),  # to summer: a day of 23 hours
    ("America/New_York", at("2026-11-01T06:00:00Z")),  # back: 25 hours
    ("Africa/Cairo", at("2026-04-23T22:00:00Z")),  # no midnight: clocks go from 0:00 to 1:00
    ("America/Havana", at("2026-11-01T05:00:00Z")),  # two midnights: from 1:00 to 0:00
    ("America/Sao_Paulo", at("2018-02-18T02:00:00Z")),  # from 0:00 to 23:00
    ("America/St_Johns", at("2006-10-29T02:31:00Z")),  # from 0:01 to 23:01: a day begins, and ends?
    ("Australia/Lord_Howe", at("2026-04-04T15:00:00Z")),  # by half an hour
    ("Pacific/Apia", at("2011-12-30T10:00:00Z")),  # a day that never was
    ("Asia/Jakarta", at("2026-01-05T17:00:00Z")),  # none
]
NEAR = st.tuples(st.sampled_from(CHANGES), st.integers(-50 * HOUR, 50 * HOUR)).map(
    lambda drawn: (drawn[0][0], drawn[0][1] + drawn[1])
)
INSTANTS = NEAR | st.tuples(ZONES, TIMES)


def window_of(window: Days, time: int) -> tuple[int, int]:
    [start] = window.starts(time)
    return start, window.end(start)


@settings(max_examples=100)
@given(INSTANTS, st.integers(1, 9))
def test_a_window_holds_its_times_and_is_that_of_the_plain_calendar(
    instant: tuple[str, int], count: int
) -> None:
    zone, time = instant
    window = Days(count, zone)
    start, end = window_of(window, time)
    assert start <= time < end
    assert (start, end) == _days(time, count, ZoneInfo(zone))
    for inside in (start, end - 1):
        assert window_of(window, inside) == (start, end)


@settings(max_examples=100)
@given(INSTANTS)
def test_a_day_begins_at_the_first_instant_that_shows_it_or_a_later_one(
    instant: tuple[str, int],
) -> None:
    zone, time = instant
    tz, [day] = ZoneInfo(zone), days_of(np.array([time]), zone).tolist()
    begin, midnight = begin_of(day, zone), datetime(1970, 1, 1) + timedelta(days=day)

    def shown(millis: int) -> datetime:
        return datetime.fromtimestamp(millis // 1000, tz).replace(tzinfo=None)

    assert shown(begin) >= midnight
    assert all(shown(begin - back) < midnight for back in (1, 60_000, HOUR, 12 * HOUR))


@given(st.sampled_from([zone for zone, _ in CHANGES]), st.lists(TIMES, max_size=20))
def test_the_days_of_many_times_are_those_of_each(zone: str, times: list[int]) -> None:
    window = Days(1, zone)
    for function in (window.slices, window.begins, window.closes, window.stamps):
        each = [int(function(np.array([time]))[0]) for time in times]
        assert function(np.array(times, np.int64)).tolist() == each


@pytest.mark.parametrize(
    ("zone", "time", "begin", "hours"),
    [
        ("America/New_York", "2026-03-08T12:00Z", "2026-03-08T05:00Z", 23),
        ("America/New_York", "2026-11-01T12:00Z", "2026-11-01T04:00Z", 25),
        ("Africa/Cairo", "2026-04-24T12:00Z", "2026-04-23T22:00Z", 23),
        ("America/Havana", "2026-11-01T05:30Z", "2026-11-01T04:00Z", 25),
        ("America/St_Johns", "2006-10-29T02:45Z", "2006-10-29T02:30Z", 25),
        ("Pacific/Apia", "2011-12-30T10:00Z", "2011-12-30T10:00Z", 24),
        ("Asia/Jakarta", "2026-01-05T16:59Z", "2026-01-04T17:00Z", 24),
    ],
)
def test_days_as_people_know_them(zone: str, time: str, begin: str, hours: int) -> None:
    assert window_of(Days(1, zone), at(time)) == (at(begin), at(begin) + hours * HOUR)


@pytest.mark.parametrize("name", ["", "Jakarta", "Asia", "../etc/passwd", "Asia/Jakarta "])
def test_an_unknown_zone_is_an_error_that_says_what_is_wanted(name: str) -> None:
    with pytest.raises(UnknownZone, match="IANA database, such as Asia/Jakarta"):
        zone_named(name)
    with pytest.raises(ValidationError, match="unknown time zone"):
        WindowSpec.model_validate({"fixed": "1d", "timezone": name})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fixed": "6h"}, "fixed of whole days"),
        ({"fixed": "1d1s"}, "fixed of whole days"),
        ({"session": "1d"}, "fixed of whole days"),
        ({"sliding": "7d", "every": "1d"}, "fixed of whole days"),
        ({"fixed": "1d", "offset": "-7h"}, "exclude each other"),
    ],
    ids=str,
)
def test_a_zone_goes_with_whole_days_alone(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        WindowSpec.model_validate(wrong | {"timezone": "Asia/Jakarta"})


# a job with such windows


def job(*zones: str, lateness: str = "0s", early: str | None = None) -> Job:
    emit = {"lateness": lateness} | ({"early": early} if early else {})
    return Job.model_validate(
        {
            "job": "j",
            "source": {
                "kafka": {"bootstrap_servers": "x", "topics": ["t"]},
                "event_time": "at",
                "disorder": "1h",
            },
            "fields": {"at": "timestamp_ms", "k": "string"},
            "metrics": [
                {
                    "name": f"m{i}_{count}", "by": ["k"], "values": {"n": "count()"}, "emit": emit,
                    "window": {"fixed": f"{count}d", "timezone": zone},
                }
                for i, zone in enumerate(zones)
                for count in (1, 3)
            ],
            "sinks": {"sqlite": {"path": "x"}},
            "dead_letters": {"parquet": "x"},
        }
    )  # fmt: skip


@cache
def graph(*zones: str, lateness: str = "0s") -> Graph:
    return Graph(job(*zones, lateness=lateness))


Event = tuple[int, str]


def message(event: Event) -> Message:
    time, key = event
    return Message(json.dumps({"at": time, "k": key}).encode(), time, 0)


def rows(of: Graph, events: Sequence[Event]) -> pa.RecordBatch:
    values = [message(event).value for event in events]
    batch, dead = of.decoder.decode(messages(values, timestamp=datetime(2040, 1, 1, tzinfo=UTC)))
    assert dead is None or not len(dead)
    return batch


ALL = ("America/New_York", "America/St_Johns", "Asia/Jakarta")
EVENTS = st.sampled_from([change for change in CHANGES if change[0] in ALL]).flatmap(
    lambda change: st.lists(
        st.tuples(
            st.integers(-60 * HOUR, 60 * HOUR).map(lambda by: change[1] + by), st.sampled_from("ab")
        ),
        min_size=1,
        max_size=15,
    )
)


@settings(max_examples=12)
@given(EVENTS, st.sampled_from(["0s", "20h"]))
def test_what_is_late_is_late_by_the_end_of_the_day(events: list[Event], lateness: str) -> None:
    of = graph(*ALL, lateness=lateness)
    before: list[int | None] = [None]
    for time, _ in events[:-1]:
        before.append(max(time - HOUR, before[-1] or time - HOUR))
    batch = with_watermarks(rows(of, events), pa.array(before, pa.timestamp("ms", "UTC")))
    late = {
        (row, name)
        for row, error in of.metrics.reduction.reduce(batch).late
        for name in [m.name for m in of.job.metrics]
        if f"{name} (window" in error
    }
    assert late == recompute_all(of.job, map(message, events), {}).late


@settings(max_examples=3, deadline=None)
@given(EVENTS, st.integers(1, 4))
def test_bounded_documents_are_those_of_the_recomputation(events: list[Event], cuts: int) -> None:
    of = graph(*ALL)
    batches = [rows(of, events[i::cuts]) for i in range(cuts) if events[i::cuts]]
    expected = recompute(of.job, [message(e)._replace(partition=None) for e in events], {})
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        create = beam.Create(batches, reshuffle=False)
        decoded = pipeline | create | beam.Map(lambda b: b).with_output_types(pa.RecordBatch)
        documents, _ = decoded | Graph(of.job).metrics
        found = documents | beam.Map(shown)
        assert_that(
            found,
            equal_to(
                [(id_, d.window_start, d.window_end, d.events) for id_, d in expected.items()]
            ),
        )


def shown(document: Document) -> tuple[str, str, str, int]:
    start, end = rfc3339(document.window_start), rfc3339(document.window_end)
    return document.id, start, end, document.events


def pane(document: Document) -> tuple[str, str, str, str, int]:
    _, start, end, events = shown(document)
    return document.metric, start, end, document.pane, events


def test_panes_of_a_day_come_early_at_its_end_and_late() -> None:
    """New York's 8 March 2026 is over at 04:00 UTC: at 03:59 its document is early still."""
    of = Graph(job("America/New_York", early="10s", lateness="2h"))
    begin, end = at("2026-03-08T05:00Z"), at("2026-03-09T04:00Z")

    def batch(*times: int) -> TimestampedValue:
        return TimestampedValue(rows(of, [(t, "a") for t in times]), Timestamp(min(times) / 1000))

    stream = (
        test_stream.TestStream(coder=RecordBatchCoder())
        .advance_watermark_to(begin / 1000)
        .add_elements([batch(begin, end - 1, end)])
        .advance_processing_time(11)
        .advance_watermark_to(end / 1000 - 60)
        .add_elements([batch(begin + HOUR)])
        .advance_processing_time(11)
        .advance_watermark_to(end / 1000)
        .add_elements([batch(end - HOUR)])
        .advance_watermark_to_infinity()
    )
    options = PipelineOptions(["--runner=BundleBasedDirectRunner"], streaming=True)
    [wanted] = [m for m in of.job.metrics if m.name == "m0_1"]
    of = Graph(of.job.model_copy(update={"metrics": [wanted]}))
    first = ("m0_1", "2026-03-08T05:00:00.000Z", "2026-03-09T04:00:00.000Z")
    second = ("m0_1", "2026-03-09T04:00:00.000Z", "2026-03-10T04:00:00.000Z")
    with beam.Pipeline(options=options) as pipeline:
        documents, _ = pipeline | stream | of.metrics
        assert_that(
            documents | beam.Map(pane),
            equal_to(
                [
                    (*first, "early", 2),
                    (*second, "early", 1),
                    (*first, "early", 3),
                    (*first, "on_time", 3),
                    (*first, "late", 4),
                    (*second, "on_time", 1),
                ]
            ),
        )


def document(start: int, end: int) -> Document:
    return Document("job", "m", start, end, {}, {}, 1, "on_time", "id")


@settings(max_examples=50)
@given(
    st.sampled_from(CHANGES),
    st.integers(1, 3),
    st.integers(-99 * HOUR, 99 * HOUR),
    st.integers(1, 200 * HOUR),
    st.none() | st.sampled_from([*range(5, 60), 72, 96]).map(lambda hours: timedelta(hours=hours)),
)
def test_each_day_that_reaches_into_a_replays_range_is_written_by_one_part_that_reads_it_whole(
    change: tuple[str, int], count: int, begin: int, length: int, of: timedelta | None
) -> None:
    zone, middle = change
    window, span = Days(count, zone), Span(middle + begin, middle + begin + length)
    divided: list[Part] = parts([window], span, of, pad=timedelta(0), until=10**15)
    time = span.start - 99 * HOUR
    while time < span.stop + 99 * HOUR:
        start, time = window_of(window, time)
        verdicts = [part.verdict(document(start, time), window) for part in divided]
        reaches = start < span.stop and time > span.start
        assert verdicts.count("write") == reaches
        assert set(verdicts) <= {"write", "elsewhere"}
        if reaches:
            writes = divided[verdicts.index("write")]
            assert writes.read.start <= start
            assert time <= writes.read.stop


@settings(max_examples=50)
@given(st.sampled_from(CHANGES), st.integers(1, 3), st.integers(-99 * HOUR, 99 * HOUR))
def test_no_part_of_as_many_days_as_a_window_has_reads_what_another_reads(
    change: tuple[str, int], count: int, begin: int
) -> None:
    zone, middle = change
    window, span = Days(count, zone), Span(middle + begin, middle + begin + 200 * HOUR)
    each = timedelta(days=count)
    divided = parts([window], span, each, pad=timedelta(0), until=10**15)
    full = [part.read for part in divided if part.read.start < part.read.stop]
    assert all(one.stop == next_.start for one, next_ in itertools.pairwise(full))
