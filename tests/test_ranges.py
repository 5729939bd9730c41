"""Laws of a replay's ranges: each window is written by one part, and read whole by it."""

from datetime import timedelta

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.records import TIMESTAMP, Document
from velocity.transforms.ranges import Part, Span, parts, rows_within
from velocity.transforms.windows import Fixed, Session, Sliding, Window

NEVER = 10**15
SECOND = timedelta(seconds=1)


def document(start: int, end: int) -> Document:
    return Document("job", "m", start, end, {}, {}, 1, "on_time", "id")


durations = st.integers(1, 50).map(lambda n: n * SECOND)
fixed = st.builds(Fixed, durations, st.integers(-90, 90).map(lambda n: n * SECOND))


@st.composite
def slidings(draw: st.DrawFn) -> Sliding:
    size = draw(durations)
    return Sliding(size, draw(st.integers(1, size // SECOND)) * SECOND)


def windows_of(window: Fixed | Sliding, span: Span) -> list[tuple[int, int]]:
    """All that reach into a span, found the slow way."""
    size = window.size // timedelta(milliseconds=1)
    every = (window.every if isinstance(window, Sliding) else window.size) // timedelta(
        milliseconds=1
    )
    shift = window.offset // timedelta(milliseconds=1) if isinstance(window, Fixed) else 0
    lowest = span.start - size - every
    first = lowest + (shift - lowest) % every
    return [
        (start, start + size)
        for start in range(first, span.stop, every)
        if start < span.stop and start + size > span.start
    ]


spans = st.builds(
    lambda start, length: Span(start, start + length),
    st.integers(-10_000, 100_000),
    st.integers(1, 200_000),
)
lengths = st.none() | st.integers(7, 300).map(lambda n: n * SECOND)


@given(st.lists(fixed | slidings(), min_size=1, max_size=3), spans, lengths)
def test_each_window_that_reaches_into_the_range_is_written_by_one_part_that_reads_it_whole(
    windows: list[Fixed | Sliding], span: Span, length: timedelta | None
) -> None:
    divided = parts(windows, span, length, pad=SECOND, until=NEVER)
    assert (divided[0].wanted.start, divided[-1].wanted.stop) == span
    for window in windows:
        for start, end in windows_of(window, Span(span.start - 60_000, span.stop + 60_000)):
            verdicts = [part.verdict(document(start, end), window) for part in divided]
            reaches = start < span.stop and end > span.start
            assert verdicts.count("write") == (1 if reaches else 0)
            assert set(verdicts) <= {"write", "elsewhere"}
            if reaches:
                writes = divided[verdicts.index("write")]
                assert writes.read.start <= start
                assert end <= writes.read.stop


def sessions(times: list[int], gap: int) -> set[tuple[int, int]]:
    found: list[list[int]] = []
    for time in sorted(times):
        if found and time - found[-1][-1] < gap:
            found[-1].append(time)
        else:
            found.append([time])
    return {(run[0], run[-1] + gap) for run in found}


@given(
    st.lists(st.integers(0, 300_000), max_size=60),
    st.integers(1, 30),
    spans,
    lengths,
    st.integers(1, 10),
)
def test_what_is_written_of_sessions_is_whole_and_only_what_is_told_is_missing(
    times: list[int], gap_seconds: int, span: Span, length: timedelta | None, gaps: int
) -> None:
    window = Session(gap_seconds * SECOND)
    gap = gap_seconds * 1000
    true = sessions(times, gap)
    wanted = {(start, end) for start, end in true if start < span.stop and end > span.start}
    written: list[tuple[int, int]] = []
    cut = 0
    for part in parts([window], span, length, pad=gaps * window.gap, until=NEVER):
        seen = [time for time in times if part.read.start <= time < part.read.stop]
        for start, end in sessions(seen, gap):
            verdict = part.verdict(document(start, end), window)
            cut += verdict == "cut"
            if verdict == "write":
                written.append((start, end))
    assert len(written) == len(set(written))
    assert set(written) <= wanted
    assert set(written) == wanted or cut


def test_a_window_that_is_not_over_is_not_written() -> None:
    minute: Window = Fixed(60 * SECOND)
    [part] = parts([minute], Span(0, 120_000), None, pad=SECOND, until=90_000)
    assert part.verdict(document(0, 60_000), minute) == "write"
    assert part.verdict(document(60_000, 120_000), minute) == "open"


def test_parts_are_cut_alike_whatever_the_range() -> None:
    hour = timedelta(hours=1)
    inner = [
        p.wanted for p in parts([Fixed(hour)], Span(5, 9 * 3_600_000), hour, pad=hour, until=0)
    ]
    assert [span.start for span in inner[1:]] == [n * 3_600_000 for n in range(1, 9)]


def test_rows_within_a_span_are_those_that_happened_in_it() -> None:
    rows = pa.RecordBatch.from_arrays([pa.array([4, 5, 9, 10], TIMESTAMP)], ["at"])
    assert isinstance(parts([], Span(0, 1), None, pad=SECOND, until=0)[0], Part)
    [kept] = rows_within(rows, Span(5, 10), "at")
    assert kept["at"].cast(pa.int64()).to_pylist() == [5, 9]
    assert list(rows_within(rows, Span(100, 200), "at")) == []
