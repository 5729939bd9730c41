"""Laws of the view of all jobs: what is not well is told, and Ctrl-C ends it."""

import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from tests.test_flink_view import JOB, LOOK, Cluster, Screen
from velocity.io.documents import DOCUMENT_DELAYS
from velocity.runners.flink_errors import FlinkUnreachable
from velocity.runners.flink_rest import FlinkJob
from velocity.runners.flink_watch import delay_within, watch_all


@dataclass
class Several(Cluster):
    """Jobs of the names that are listed, one list a look."""

    names: list[list[str] | Exception] = field(default_factory=list)

    def jobs(self) -> list[FlinkJob]:
        names = self.names.pop(0) if len(self.names) > 1 else self.names[0]
        if isinstance(names, Exception):
            raise names
        return [replace(JOB, id=name, name=name) for name in names]

    def find(self, job: str) -> FlinkJob:
        return replace(JOB, id=job, name=job, state=str(self.states[0]))

    def counters(self, job: str, vertices: list[str], namespace: str) -> dict[str, int]:
        late = {name: 96 if bound >= 10 else 50 for name, bound in DOCUMENT_DELAYS.within.items()}
        return {**LOOK.counters, "breaker_provider": 2, "document_delays": 100, **late}


def shown(cluster: Several, looks: int, **options: Any) -> tuple[int, Screen]:
    screen = Screen(terminal=options.pop("terminal", False))
    screen.interrupt_after = looks
    code = watch_all(
        cluster,  # type: ignore[arg-type]
        console=screen.console,
        clock=lambda: screen.now,
        sleep=screen.sleep,
        out=screen.lines.append,
        **options,
    )
    return code, screen


@pytest.mark.parametrize("terminal", [True, False])
def test_all_jobs_are_shown_with_what_is_not_well_until_ctrl_c(terminal: bool) -> None:
    code, screen = shown(Several(["RUNNING"], names=[["a", "b"]]), 2, terminal=terminal)
    assert code == 130
    text = screen.text.getvalue()
    for job in "ab":
        assert f"{job}: the service of provider fails: its breaker is open" in text
        assert f"{job}: dead letters: wrong_type 10" in text
    assert "1,234" in text  # the lag
    assert "≤ 10 s" in text
    assert ("\x1b" in text) == terminal
    assert screen.now == (4 if terminal else 20)


def test_for_other_programs_a_line_is_an_object_with_all_jobs() -> None:
    cluster = Several(["RUNNING"], names=[["a", "b"], ["b"], []])
    _, screen = shown(cluster, 3, as_json=True)
    looks = [json.loads(line)["jobs"] for line in screen.lines]
    assert [[job["name"] for job in look] for look in looks] == [["a", "b"], ["b"], []]
    assert looks[0][0]["document_delay_p95_s"] == 10
    assert looks[0][0]["breakers"] == {"provider": "open"}
    assert looks[0][0]["dead_letters"] == {"wrong_type": 10}
    assert screen.text.getvalue() == ""


def test_jobs_that_have_ended_are_shown_if_wanted() -> None:
    ended = [replace(JOB, state="FINISHED", duration=timedelta(seconds=5))]
    cluster = Several(["FINISHED"], names=[["a"]])
    cluster.jobs = lambda: ended  # type: ignore[method-assign]
    for wanted in (False, True):
        _, screen = shown(cluster, 1, ended_too=wanted)
        assert ("FINISHED" in screen.text.getvalue()) == wanted


def test_a_cluster_that_is_gone_for_a_moment_is_waited_for() -> None:
    gone = FlinkUnreachable("gone")
    _, screen = shown(Several(["RUNNING"], names=[gone, gone, ["a"]]), 3)
    assert "1,234" in screen.text.getvalue()
    with pytest.raises(FlinkUnreachable):
        shown(Several(["RUNNING"], names=[gone]), 100)


def test_a_delay_beyond_all_bounds_has_none() -> None:
    assert delay_within({}) is None
    assert delay_within({"document_delays": 5}) == float("inf")
