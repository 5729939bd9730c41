"""Laws of the view of a job on Flink: what is shown, in which form, and how it ends."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from velocity.runners.flink_errors import FlinkUnreachable
from velocity.runners.flink_rest import Checkpoints, Failure, FlinkJob
from velocity.runners.flink_view import (
    RATE_OVER,
    History,
    Look,
    Rates,
    line,
    rates,
    record,
    watch,
)

NOW = datetime(2026, 11, 23, 4, 21, tzinfo=UTC)
JOB = FlinkJob(
    "1" * 32,
    "orders-1",
    "RUNNING",
    NOW - timedelta(seconds=70),
    timedelta(seconds=70),
    {"total": 25, "running": 25},
)
LOOK = Look(
    clock=100.0,
    at=NOW,
    job=JOB,
    counters={"read_messages": 71_342, "documents_written": 1_777, "dead_letters_wrong_type": 10,
              "dead_letters_empty": 0, "dead_letters_written": 10,
              "lag_pharmacy.events_0": 1_200, "lag_pharmacy.events_1": 34},
    watermark=NOW - timedelta(seconds=35),
    checkpoints=Checkpoints(3, 1, NOW, 2_122_971, timedelta(milliseconds=558)),
    restarts=2,
)  # fmt: skip


def later(seconds: float, read: int, **changes: Any) -> Look:
    counters = {**LOOK.counters, "read_messages": read}
    return replace(LOOK, clock=LOOK.clock + seconds, counters=counters, **changes)


def test_rates_are_over_the_time_between_the_looks() -> None:
    assert rates([LOOK, later(10, 81_342)]) == Rates(read=1_000, written=0)
    assert rates([LOOK]) == Rates()


def test_no_rate_is_told_over_a_restart() -> None:
    assert rates([LOOK, later(10, 50)]).read is None
    history = History()
    history.add(LOOK)
    assert history.add(later(10, 90_000, restarts=3)) == Rates()


def test_rates_look_back_no_further_than_they_shall() -> None:
    history = History()
    read = 0
    for seconds in range(0, 200, 2):
        read += 2 if seconds < 100 else 20
        speed = history.add(later(seconds, read))
    assert speed.read == pytest.approx(10)
    assert len(history._looks) <= RATE_OVER / 2 + 1


def test_a_line_has_all_that_is_known() -> None:
    text = line(LOOK, Rates(1_000.4, None))
    assert text.split("  ") == [
        "state RUNNING, 25 of 25 tasks",
        "up 0:01:10",
        "read 71,342 (1,000/s)",
        "written 1,777",
        "lag 1,234",
        "watermark 2026-11-23T04:20:25Z, 0:00:35 behind",
        "dead letters 10 (wrong_type 10)",
        "checkpoints 3, failed 1, last 2.1 MB in 0.6 s",
        "restarts 2",
    ]


def test_what_is_not_known_is_not_shown_as_nothing() -> None:
    unknown = replace(LOOK, counters={}, watermark=None, checkpoints=Checkpoints(0, 0))
    text = line(unknown, Rates())
    assert "read not known yet" in text
    assert "watermark" not in text
    assert "lag" not in text
    assert "last none yet" in text
    ended = replace(unknown, job=replace(JOB, state="FINISHED"))
    assert "read" not in line(ended, Rates())


def test_a_record_says_all_of_it_in_base_units() -> None:
    found = json.loads(json.dumps(record(LOOK, Rates(12.5, None))))
    assert found["uptime_s"] == 70
    assert (found["read_per_s"], found["written_per_s"]) == (12.5, None)
    assert (found["watermark"], found["watermark_delay_s"]) == ("2026-11-23T04:20:25+00:00", 35)
    assert found["checkpoints"]["last_bytes"] == 2_122_971
    assert found["checkpoints"]["last_duration_s"] == 0.558
    assert found["lag"] == 1_234
    assert found["counters"]["read_messages"] == 71_342


@dataclass
class Cluster:
    """Stands for a ``Flink``: the states its job comes to, one a look."""

    states: list[str | Exception]
    failed: list[Failure] = field(default_factory=list)
    url: str = "http://127.0.0.1:8081"

    def find(self, job: str) -> FlinkJob:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return replace(JOB, state=state)

    def vertices(self, job: str) -> list[str]:
        return []

    def counters(self, job: str, vertices: list[str], namespace: str) -> dict[str, int]:
        return {"read_messages": 5}

    def watermark(self, job: str, vertices: list[str]) -> datetime | None:
        return None

    def checkpoints(self, job: str) -> Checkpoints:
        return Checkpoints(0, 0)

    def restarts(self, job: str) -> int:
        return 0

    def failures(self, job: str) -> list[Failure]:
        return self.failed


class Screen:
    """A console into memory, and a clock on which sleeping takes the time it says."""

    def __init__(self, terminal: bool = False) -> None:
        self.text = io.StringIO()
        self.console = Console(file=self.text, force_terminal=terminal, width=100)
        self.now = 0.0
        self.sleeps = 0
        self.interrupt_after: int | None = None
        self.lines: list[str] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        if self.sleeps == self.interrupt_after:
            raise KeyboardInterrupt

    def watch(self, cluster: Cluster, *, as_json: bool = False) -> int:
        return watch(
            cluster,  # type: ignore[arg-type]
            JOB.id,
            JOB.name,
            console=self.console,
            as_json=as_json,
            clock=lambda: self.now,
            sleep=self.sleep,
            out=self.lines.append,
        )


@pytest.fixture
def screen() -> Iterator[Screen]:
    yield Screen()


@pytest.mark.parametrize(("state", "code"), [("FINISHED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_the_view_ends_with_its_job(screen: Screen, state: str, code: int) -> None:
    assert screen.watch(Cluster(["RUNNING", state])) == code
    assert f"orders-1: {state} after 0:01:10" in screen.text.getvalue()


def test_a_job_that_failed_is_told_by_its_cause(screen: Screen) -> None:
    screen.watch(Cluster(["FAILED"], [Failure(NOW, "no such topic [while running 'Read']")]))
    *_, cause, remedy = screen.text.getvalue().splitlines()
    assert cause == "no such topic [while running 'Read']"
    assert remedy.endswith(f"velocity stop {JOB.id}")


def test_ctrl_c_ends_the_view_and_says_that_the_job_goes_on(screen: Screen) -> None:
    screen.interrupt_after = 2
    assert screen.watch(Cluster(["RUNNING"])) == 130
    first, *_, last = screen.text.getvalue().splitlines()
    assert first == "Ctrl-C ends this view; the job goes on."
    assert last.startswith("orders-1 goes on at http://127.0.0.1:8081")
    assert "velocity stop orders-1" in last


def test_without_a_terminal_a_line_comes_every_10_seconds(screen: Screen) -> None:
    screen.watch(Cluster(["RUNNING", "RUNNING", "FINISHED"]))
    assert screen.now == 20
    assert screen.text.getvalue().count("state RUNNING") == 2
    assert "\x1b" not in screen.text.getvalue()


def test_for_other_programs_only_json_comes_to_stdout(screen: Screen) -> None:
    screen.watch(Cluster(["RUNNING", "FINISHED"]), as_json=True)
    assert [json.loads(text)["state"] for text in screen.lines] == ["RUNNING", "FINISHED"]


def test_in_a_terminal_the_table_is_drawn_again(screen: Screen) -> None:
    screen = Screen(terminal=True)
    why = Failure(NOW, "worker lost")
    screen.watch(Cluster(["RUNNING", "RESTARTING", "FINISHED"], [why]))
    assert screen.now == 4
    text = screen.text.getvalue()
    assert "worker lost" in text
    assert "25 of 25 tasks" in text


def test_a_cluster_that_is_gone_for_a_moment_does_not_end_the_view(screen: Screen) -> None:
    gone = FlinkUnreachable("gone")
    assert screen.watch(Cluster(["RUNNING", gone, gone, "FINISHED"])) == 0


def test_a_cluster_that_stays_away_ends_the_view(screen: Screen) -> None:
    with pytest.raises(FlinkUnreachable):
        screen.watch(Cluster(["RUNNING", FlinkUnreachable("gone")]))
    assert screen.now >= 60
