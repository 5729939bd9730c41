"""Laws of what the board shows: a card for each metric, and each number what the documents say."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.board_jobs import MINUTE, T0, board, graph, job_text
from velocity.io.dead_letter_counts import Failed, ParquetCounts
from velocity.io.dead_letters import WriteDeadLettersToParquet
from velocity.io.totals import Alert, Alerts, Cell, Latest, Series, Totals
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import load
from velocity.pipelines.live import (
    RANGES,
    SPANS,
    Card,
    View,
    ask_of_funnel,
    asks_of,
    end_of,
    live_board,
)
from velocity.pipelines.live_shapes import (
    NONE,
    OTHERS,
    alerts_part,
    card_part,
    funnel_part,
    letters_part,
    number,
)

PIPELINES = Path(__file__).parent.parent / "pipelines"
UTC = ZoneInfo("UTC")
HOUR = 60 * MINUTE


def card(metric: str) -> Card:
    return next(card for card in board().cards if card.metric == metric)


def cell(start: int, provisional: bool = False, events: int = 1, **values: Any) -> Cell:
    return Cell(start, start + MINUTE, provisional, events, values)


def part(metric: str, totals: Totals, view: View | None = None) -> dict[str, Any]:
    times = (T0, T0 + HOUR)
    return card_part(card(metric), view or View(), UTC, totals, None, None, times)


def totals(*over_all: Cell, series: Sequence[Series] = (), more: bool = False) -> Totals:
    return Totals(over_all, tuple(series), more)


def test_each_metric_of_each_job_has_a_card() -> None:
    graphs = [Graph(load(path), {}) for path in sorted(PIPELINES.glob("*.yaml"))]
    shown = live_board(graphs)
    metrics = [(g.job.job, m.name) for g in graphs for m in g.job.metrics]
    assert [(card.job, card.metric) for card in shown.cards] == metrics
    assert all(card.values for card in shown.cards if card.job != "orders")


def test_a_metric_more_is_a_card_more() -> None:
    more = "  - {name: more, window: {fixed: 1m}, values: {n: count()}}\nsinks:"
    assert len(board(job_text().replace("sinks:", more)).cards) == len(board().cards) + 1


def test_times_are_told_in_the_zone_of_the_jobs_days_unless_another_is_named() -> None:
    assert board().zone == "Asia/Jakarta"
    assert live_board([graph()], "Europe/Paris").zone == "Europe/Paris"
    other = job_text("b").replace("Asia/Jakarta", "Asia/Tokyo")
    assert board(job_text(), other).zone == "UTC"


def test_the_dimension_that_most_metrics_have_is_offered_first() -> None:
    assert board().dimensions[0] == "city"


@given(range_=st.sampled_from(list(RANGES)), which=st.integers(0, 6), shift=st.integers(0, 10**7))
def test_however_long_a_time_is_chosen_a_chart_has_few_spans(
    range_: str, which: int, shift: int
) -> None:
    shown = board().cards[which]
    view = View(range=RANGES[range_])
    first, second = asks_of(shown, view, T0 + shift, Latest(T0, T0 + MINUTE, T0, 0))
    if first.every is not None:
        assert (first.until - first.since) / first.every <= SPANS
    if shown.kind == "side by side":
        assert first.every is not None and first.every % shown.every == 0
        # Where spans are several windows, the tile still tells of one.
        assert (second is None) == (first.every == shown.every)


def test_a_view_ends_at_the_newest_window_of_its_domain_or_where_it_says() -> None:
    shown = board(job_text("a"), job_text("b"))
    newest = {("a", "m"): Latest(T0, 0, 0, 0), ("b", "m"): Latest(T0 + HOUR, 0, 0, 0)}
    assert end_of(shown, View(), newest) == T0 + HOUR + 1
    assert end_of(shown, View(job="a"), newest) == T0 + 1
    assert end_of(shown, View(until=5), newest) == 5
    assert end_of(shown, View(), {}) is None


def test_a_choice_narrows_the_metrics_that_have_the_dimension_and_the_others_say_so() -> None:
    view = View(where=(("tier", "gold"),))
    ask, _ = asks_of(card("by_all"), view, T0, None)
    assert ask.where == (("tier", "gold"),) and "tier" not in ask.split
    ask, _ = asks_of(card("by_city"), view, T0, None)
    assert ask.where == ()
    assert "Not narrowed by tier" in " ".join(part("by_city", totals(), view)["notes"])


def test_a_tile_shows_the_newest_window_and_beside_it_the_newest_complete_one() -> None:
    told = totals(cell(T0, orders=195), cell(T0 + MINUTE, True, orders=20))
    tile = part("by_city", told)["tile"]
    assert (tile["values"][0]["text"], tile["provisional"]) == ("20", True)
    assert (tile["complete"]["values"][0]["text"], tile["complete"]["window"]) == (
        "195",
        "00:00–00:01",
    )


def test_a_window_is_provisional_as_long_as_one_of_its_keys_is() -> None:
    tile = part("by_city", totals(cell(T0, orders=5), cell(T0, True, orders=2)))["tile"]
    assert tile["provisional"] and tile["values"][0]["text"] == "7" and "complete" not in tile


def test_numbers_have_units_and_their_thousands_apart() -> None:
    values = part("by_city", totals(cell(T0, orders=1, revenue=19_956_500)))["tile"]["values"]
    assert (values[1]["text"], values[1]["unit"]) == ("19,956,500", "IDR")


@given(st.one_of(st.integers(-(10**15), 10**15), st.floats(-1e12, 1e12)))
def test_a_number_as_people_read_it_is_near_the_number(value: float) -> None:
    shown = float(number(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.01, abs=1e-300)


def test_what_is_not_drawn_by_key_is_drawn_as_the_others() -> None:
    series = [Series(("Jakarta",), (cell(T0, orders=7),)), Series((None,), (cell(T0, orders=2),))]
    charts = part("by_city", totals(cell(T0, orders=12), series=series, more=True))["charts"]
    drawn = {s["key"]: s["final"] for s in charts[0]["series"]}
    assert drawn == {"Jakarta": [7], NONE: [2], OTHERS: [3]}
    # Means of several keys make none of the others.
    assert OTHERS not in [s["key"] for s in charts[2]["series"]]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 99)), max_size=20))
def test_a_chart_holds_all_that_is_counted_early_and_final_apart(
    found: list[tuple[int, bool, int]],
) -> None:
    by = {(T0 + i * MINUTE, early): n for i, early, n in found}
    cells = [cell(at, early, orders=n) for (at, early), n in sorted(by.items())]
    chart = part("by_city", totals(*cells))["charts"][0]
    for early, column in ((False, "final"), (True, "provisional")):
        shown = [n for n in chart["series"][0][column] if n is not None]
        assert shown == [n for (_, e), n in sorted(by.items()) if e == early]


def test_windows_of_all_time_are_drawn_by_key() -> None:
    series = [Series(("Jakarta",), (cell(0, True, n=7),))]
    shown = part("ever", totals(cell(0, True, n=9), series=series))
    assert shown["charts"][0]["x"] == ["Jakarta"]
    assert shown["tile"]["window"] == "since the beginning"


def test_the_funnel_keeps_the_order_of_the_stages_and_adds_up_panes() -> None:
    shown = live_board([Graph(load(PIPELINES / "transactions.yaml"), {})])
    (funnel,) = shown.funnels
    assert funnel.counts["entered"] == "entered" and funnel.counts["moved"] == "moved_on"
    ask = ask_of_funnel(funnel, View(where=(("city", "Solo"), ("tier", "x"))), T0)
    assert ask.split == ("stage",) and ask.where == (("city", "Solo"),)
    told = totals(
        series=[
            Series(("order",), (cell(0, entered=3, dropped=1), cell(0, True, entered=2))),
            Series(("consultation",), (cell(0, entered=10),)),
        ]
    )
    drawn = funnel_part(funnel, told)
    assert [s["stage"] for s in drawn["stages"]] == ["Consultation", "Order"]
    assert drawn["stages"][1]["entered"] == "5" and drawn["stages"][1]["share"] == 0.5
    assert drawn["provisional"]


def test_a_job_whose_metrics_count_no_entries_has_no_funnel() -> None:
    text = (PIPELINES / "transactions.yaml").read_text().replace("'entered'", "'resolved'")
    from velocity.pipelines.jobfile import parse

    assert live_board([Graph(parse(text.encode(), "t.yaml").job, {})]).funnels == ()


def test_alerts_say_who_is_stuck_where_and_since_when() -> None:
    found = Alerts(1, (Alert("t", "trx-1", "order", T0, {"city": None}),), {"stuck": 1})
    shown = alerts_part(found, ZoneInfo("Asia/Jakarta"))
    assert shown["oldest"] == [
        {"transaction": "trx-1", "stage": "Order", "since": "05 Jan, 07:00", "by": NONE}
    ]
    assert shown["any"]


def test_dead_letters_are_counted_by_cause_in_the_domain_and_the_time_chosen() -> None:
    counts = {
        Failed("orders", "late", T0): 2,
        Failed("orders", "invalid_json", T0): 1,
        Failed("orders", "late", T0 - 2 * HOUR): 4,
        Failed("other", "late", T0): 8,
    }
    shown = letters_part(board(), View(range=timedelta(hours=1)), counts, UTC)
    assert [(c["cause"], c["count"]) for c in shown["causes"]] == [
        ("Late", "2"),
        ("Invalid json", "1"),
    ]
    assert letters_part(board(), View(range=timedelta(days=1)), counts, UTC)["total"] == "7"


def test_letters_in_files_are_counted_once_as_they_come(tmp_path: Path) -> None:
    import apache_beam as beam

    from velocity.io.documents import Rejection, rejected
    from velocity.io.records import now

    letters = ParquetCounts(str(tmp_path))
    assert letters.counts() == {}
    for expected in (2, 4):
        batch = rejected([Rejection("i", "1", b"{}", "no")] * 2, now())
        with beam.Pipeline() as pipeline:
            made = pipeline | beam.Create([batch])
            made | WriteDeadLettersToParquet(str(tmp_path), job="orders")
        counts = letters.counts()
        assert sum(counts.values()) == expected
        assert {(f.job, f.cause) for f in counts} == {("orders", "rejected")}


def test_what_the_page_is_given_is_json(tmp_path: Path) -> None:
    assert json.loads(json.dumps(part("by_city", totals(cell(T0, orders=1)))))
