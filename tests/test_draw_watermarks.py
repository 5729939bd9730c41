"""The pictures of docs/watermarks.md are what the run of today would draw, and its panes obey the laws."""

import xml.etree.ElementTree as ET
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from docs.draw_watermarks import (
    LATENESS,
    WINDOW,
    Event,
    Recording,
    draw_panes,
    draw_watermarks,
    history,
    record,
)

DOCS = Path(__file__).parent.parent / "docs"
START, CLOSED = WINDOW


@cache
def recording() -> Recording:
    return record(history())


def test_the_pictures_in_the_docs_are_those_that_are_drawn() -> None:
    """If not: python -m docs.draw_watermarks, and look at them."""
    assert (DOCS / "watermarks.svg").read_text("utf-8") == draw_watermarks(recording())
    assert (DOCS / "watermarks-panes.svg").read_text("utf-8") == draw_panes(recording())


def test_the_watermark_of_the_job_is_the_least_and_none_goes_back() -> None:
    seen = recording().watermarks
    for before, after in pairwise(seen):
        for a, b in zip(before.partitions, after.partitions, strict=True):
            assert a is None or (b is not None and a <= b)
    assert all(w.job == min(w.partitions) for w in seen if None not in w.partitions)  # type: ignore[type-var]


def test_each_pane_counts_the_events_that_had_been_read_by_then() -> None:
    seen = recording()
    inside = [event for event in seen.events if START <= event.at < CLOSED]
    kinds = [pane.kind for pane in seen.panes]
    assert kinds == ["early"] * kinds.count("early") + ["on_time", "late", "late"]
    assert kinds.count("early") > 3
    for pane in seen.panes:
        read = sum(event.read <= pane.written for event in inside)
        if pane.kind == "early":
            # What the clock lets fire has not seen what is read in the same second.
            assert sum(event.read < pane.written for event in inside) <= pane.events <= read
        else:
            assert pane.events == read
    versions = [pane.version for pane in seen.panes]
    assert versions == sorted(set(versions))
    assert seen.panes[kinds.index("on_time")].written == seen.passed(CLOSED)


def test_what_is_later_than_the_lateness_is_a_dead_letter_and_in_no_pane() -> None:
    seen = recording()
    [dead] = seen.dead_letters
    assert dead > seen.passed(CLOSED + LATENESS)
    assert seen.panes[-1].written < dead
    inside = [event for event in seen.events if START <= event.at < CLOSED]
    assert seen.panes[-1].events == len(inside) - 1


@pytest.mark.parametrize("draw", [draw_watermarks, draw_panes])
def test_a_picture_says_in_words_what_it_shows_and_stays_in_its_frame(draw: object) -> None:
    root = ET.fromstring(draw(recording()))  # type: ignore[operator]
    space = "{http://www.w3.org/2000/svg}"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert root.attrib["role"] == "img"
    for tag in ("title", "desc"):
        assert (root.findtext(f"{space}{tag}") or "").strip()
    for text in root.iter(f"{space}text"):
        assert 0 < float(text.attrib["x"]) < width
        assert 0 < float(text.attrib["y"]) < height


def test_a_run_of_two_events_is_recorded_as_it_was() -> None:
    last = [Event(100, number, 131.0) for number in (0, 1)]
    seen = record([Event(62, 0, 61.0), Event(64, 1, 62.0), *last], end=100)
    assert [(pane.kind, pane.events) for pane in seen.panes] == [("early", 2), ("on_time", 2)]
    assert seen.panes[-1].written == seen.passed(CLOSED) == 100
    assert seen.dead_letters == []
