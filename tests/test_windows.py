"""Windows: slices and runs are what plain arithmetic says, and what Beam's windows agree with."""

from collections.abc import Iterable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from apache_beam.transforms.window import IntervalWindow, WindowFn
from apache_beam.utils.timestamp import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from velocity.transforms.windows import Fixed, Session, Sliding

TIMES = st.integers(-(10**13), 10**13)
SIZES = st.integers(1, 10**8)
Span = tuple[int, int]


def ms(millis: int) -> timedelta:
    return timedelta(milliseconds=millis)


def slice_of(window: Fixed | Sliding, time: int) -> int:
    return int(window.slices(np.array([time]))[0])


def assigned(window: Fixed | Sliding | Session, time: int) -> set[Span]:
    """Beam's windows of a time."""
    at = Timestamp(micros=time * 1000)
    windows = window.window_fn().assign(WindowFn.AssignContext(at))
    return {(w.start.micros // 1000, w.end.micros // 1000) for w in windows}


def sessions(window: Session, times: Iterable[int]) -> set[Span]:
    """Beam's sessions of the times of one key."""

    class Merging(WindowFn.MergeContext):
        def merge(self, to_be_merged: Any, merge_result: IntervalWindow) -> None:
            for merged in to_be_merged:
                self.windows.remove(merged)
            self.windows.append(merge_result)

    context = Merging([])
    context.windows = list(
        {
            w
            for time in times
            for w in window.window_fn().assign(
                WindowFn.AssignContext(Timestamp(micros=time * 1000))
            )
        }
    )
    window.window_fn().merge(context)
    return {(w.start.micros // 1000, w.end.micros // 1000) for w in context.windows}


def plain_sessions(gap: int, times: Iterable[int]) -> set[Span]:
    spans: list[list[int]] = []
    for time in sorted(times):
        if spans and time - spans[-1][1] < gap:
            spans[-1][1] = time
        else:
            spans.append([time, time])
    return {(first, last + gap) for first, last in spans}


@given(TIMES, SIZES, st.integers(-(10**9), 10**9))
@example(-1, 60_000, 0)
@example(0, 86_400_000, -7 * 3_600_000)
def test_a_fixed_slice_is_the_window(time: int, size: int, offset: int) -> None:
    window = Fixed(ms(size), ms(offset))
    start = slice_of(window, time)
    assert start <= time < start + size
    assert (start - offset) % size == 0
    assert assigned(window, time) == {(start, start + size)}


@given(TIMES, st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 7, 1000, 60_000]))
@example(-1, 3, 2, 1000)
@example(5, 1, 3, 1000)
def test_times_of_one_slice_are_in_the_same_sliding_windows(
    time: int, size: int, every: int, unit: int
) -> None:
    window = Sliding(ms(size * unit), ms(every * unit))
    start = slice_of(window, time)
    expected = {
        (begin * every * unit, begin * every * unit + size * unit)
        for begin in range(time // (every * unit) - size // every - 2, time // (every * unit) + 1)
        if begin * every * unit <= time < begin * every * unit + size * unit
    }
    assert start <= time
    assert assigned(window, time) == assigned(window, start) == expected


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-50, 50)), max_size=25), st.integers(1, 12)
)
def test_a_run_is_a_session_of_its_key(events: list[tuple[int, int]], gap: int) -> None:
    keys, times = (np.array([e[i] for e in events], np.int64) for i in (0, 1))
    runs = Session(ms(gap)).runs(keys, times).tolist()
    assert sorted(set(runs)) == list(range(len(set(runs))))
    found: dict[int, set[tuple[int, int]]] = {}
    for run, event in zip(runs, events, strict=True):
        found.setdefault(run, set()).add(event)
    spans = {
        (key, min(t for _, t in run), max(t for _, t in run) + gap)
        for run in found.values()
        for key in {key for key, _ in run}
    }
    assert spans == {
        (key, *span)
        for key in {key for key, _ in events}
        for span in plain_sessions(gap, [t for k, t in events if k == key])
    }


@given(st.integers(-(10**6), 10**6), st.integers(0, 500), st.integers(1, 50))
def test_spanning_times_keep_a_run_together(first: int, length: int, gap: int) -> None:
    last = first + length if gap > 1 else first  # with a gap of 1 ms a run is one instant
    times = [first, *Session(ms(gap)).spanning(first, last)]
    assert times[-1] == last
    assert all(0 < b - a < gap for a, b in pairwise(times))


@given(
    st.lists(st.lists(st.integers(-60, 60), min_size=1, max_size=12), max_size=6),
    st.integers(1, 15),
)
def test_beam_merges_runs_into_the_sessions_of_the_single_events(
    batches: list[list[int]], gap: int
) -> None:
    window = Session(ms(gap))
    single = [time for batch in batches for time in batch]
    emitted = []
    for batch in batches:
        times = np.array(batch, np.int64)
        runs = window.runs(np.zeros(len(batch), np.int64), times)
        for run in range(runs.max() + 1):
            first, last = int(times[runs == run].min()), int(times[runs == run].max())
            emitted += [first, *window.spanning(first, last)]
    assert sessions(window, emitted) == sessions(window, single) == plain_sessions(gap, single)


@given(st.data(), st.lists(st.integers(-60, 60), min_size=1, max_size=20), st.integers(1, 15))
def test_of_sessions_that_grow_and_merge_those_of_all_events_are_left(
    data: st.DataObject, arrived: list[int], gap: int
) -> None:
    """Each session is shown under its slot or not yet, and at last; what is taken away stays so."""
    window, length = Session(ms(gap)), len(arrived)
    shown: dict[int, tuple[int, int]] = {}
    gone: set[int] = set()
    for count in range(1, length + 1):
        for start, end in plain_sessions(gap, arrived[:count]):
            if count < length and data.draw(st.booleans()):
                continue
            shown[window.slot(start)] = (start, end)
            gone.update(window.slots_after(start, end - gap))
    final = plain_sessions(gap, arrived)
    assert {slot: span for slot, span in shown.items() if slot not in gone} == {
        window.slot(start): (start, end) for start, end in final
    }
    assert len({window.slot(start) for start, _ in final}) == len(final)


@pytest.mark.parametrize(
    "wrong", [timedelta(0), timedelta(seconds=-1), timedelta(microseconds=1500)]
)
def test_a_duration_is_whole_positive_milliseconds(wrong: timedelta) -> None:
    for make in (
        lambda: Fixed(wrong),
        lambda: Sliding(wrong, ms(1)),
        lambda: Sliding(ms(1), wrong),
        lambda: Session(wrong),
    ):
        with pytest.raises(ValueError, match=r"(size|every|gap): whole milliseconds"):
            make()


def test_an_offset_is_whole_milliseconds() -> None:
    with pytest.raises(ValueError, match="offset: whole milliseconds"):
        Fixed(ms(1000), timedelta(microseconds=1))
    assert slice_of(Fixed(ms(1000), ms(-1)), 0) == -1
