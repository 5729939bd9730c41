"""The chaos suite tells a lost document from a double, a stale and an unlike one."""

import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.chaos_faults import KINDS, Struck, deal
from tests.chaos_rounds import DAY_BEGINS, TICK, Round, faults, scenario_of, table
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import Expected, ExpectedDocument
from velocity.pipelines.simulator import simulate
from velocity.runners.demo import JOB, expected

START, END = "2026-01-05T00:00:00.000Z", "2026-01-05T00:01:00.000Z"
WANTED = {"id": ExpectedDocument("m", START, END, {"city": "Medan"}, {"n": Expected(3)}, 3)}
RIGHT: dict[str, Any] = {
    "metric": "m",
    "window_start": START,
    "window_end": END,
    "dimensions": {"city": "Medan"},
    "values": {"n": 3},
    "events": 3,
    "pane": "on_time",
}


def test_what_is_right_is_no_fault() -> None:
    assert faults(WANTED, {"id": RIGHT}) == []


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ({}, "lost"),
        ({"id": {**RIGHT, "events": 4, "values": {"n": 4}}}, "double"),
        ({"id": RIGHT, "other": RIGHT}, "double"),
        ({"id": {**RIGHT, "events": 2, "values": {"n": 2}}}, "stale"),
        ({"id": {**RIGHT, "pane": "early"}}, "stale"),
        ({"id": {**RIGHT, "values": {"n": 7}}}, "unlike"),
    ],
)
def test_each_fault_of_a_document_has_its_name(found: dict[str, Any], kind: str) -> None:
    assert [name for name, _ in faults(WANTED, found)] == [kind]


def test_the_windows_of_a_round_are_of_its_day_alone_and_closed_by_its_ticks() -> None:
    """A job with longer windows, or another time zone, needs another day for each round."""
    job, scenario = load(JOB), scenario_of(1, 3)
    first = scenario.start + DAY_BEGINS
    for document in expected(job, simulate(scenario), directory(1)).values():
        assert first <= datetime.fromisoformat(document.window_start) < first + timedelta(days=1)
        end = datetime.fromisoformat(document.window_end)
        assert end <= scenario.start + TICK - job.source.disorder
    assert timedelta(days=1) > TICK


def test_a_round_never_strikes_one_target_twice_and_a_savepoint_is_alone() -> None:
    rounds = deal(random.Random(3))
    for hand in (next(rounds) for _ in range(200)):
        assert hand
        assert len({kind.target for kind in hand}) == len(hand)
        assert len(hand) == 1 or not any(kind.alone for kind in hand)


def test_one_seed_deals_one_game() -> None:
    games = [[next(rounds) for _ in range(30)] for rounds in map(deal, map(random.Random, "aab"))]
    assert games[0] == games[1] != games[2]


def test_the_table_sums_the_rounds_of_several_runs() -> None:
    worker, manager = KINDS[0].name, KINDS[1].name
    first = Round(1, 0, [Struck(worker, timedelta(seconds=4))], documents=10)
    second = Round(2, 0, [Struck(worker, timedelta(seconds=8)), Struck(manager, timedelta())])
    second.wrong["lost"] = 1
    lines = table([first.line(), second.line()]).splitlines()
    assert lines[2] == f"| {worker} | 2 | 6.0 | 8.0 | 1 |"
    assert lines[3] == f"| {manager} | 1 | 0.0 | 0.0 | 1 |"
    assert lines[-1].startswith("2 rounds of 10,000 events (seed 1, 2), 10 documents: 1 lost")
