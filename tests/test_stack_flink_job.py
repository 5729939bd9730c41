"""Jobs on a real Flink and Kafka: how they start, fail and end, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, until
from tests.flink_jobs import SEED, Case, in_time, not_final
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.simulator import simulate
from velocity.runners.demo import expected
from velocity.runners.jobserver import job_server_jar

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("no_job_is_left")]


def test_a_drained_job_closes_its_windows_and_ends(cluster: Cluster, tmp_path: Path) -> None:
    case = Case(cluster, tmp_path, 20_000)
    text = case.path.read_text().replace("idle_after: 5s", "idle_after: 1h")
    case.path.write_text(text.replace("kafka: {bootstrap", "kafka: {group: drained, bootstrap"))
    case.pace.release()
    case.produce()
    assert case.producer is not None
    case.producer.join()
    job = case.run()

    sent = len(list(simulate(case.scenario)))
    until(lambda: cluster.counter(job, "read_messages") == sent)
    until(lambda: case.committed("drained") == sent)
    # Windows are open, for no partition counts as idle so soon; what is early has been shown.
    until(lambda: any(body["pane"] == "early" for body in case.documents().values()))
    stopped = json.loads(cluster("stop", job, "--drain", "--json"))
    assert stopped["resume"] is None
    assert cluster.flink.find(job).state == "FINISHED"
    case.await_all(0, closed=True)


def test_a_job_that_is_changed_goes_on_from_its_savepoint_with_all_that_it_still_counts(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A metric that is gone, one that is new and first, and values in another order: of a day's window,
    which the savepoint has in its midst, and of all others."""
    day = "window: {fixed: 1d, timezone: Asia/Jakarta}, emit: {early: 1m, lateness: 1d}"
    gone = f"  - {{name: gone, by: [event_type], {day}, values: {{n: count()}}}}\n"
    new = "  - {name: new, by: [city], window: {fixed: 2m}, values: {n: count()}}\n"
    values = (
        "      orders: count()\n      revenue: sum(amount)\n      patients: distinct(patient_id)\n"
    )
    others = (
        "      patients: distinct(patient_id)\n      revenue: sum(amount)\n      orders: count()\n"
    )
    case = Case(cluster, tmp_path, 75_000, rate=25)
    text = case.path.read_text()
    assert text.count(values) == 2
    case.path.write_text(text.replace("metrics:\n", f"metrics:\n{gone}", 1))
    case.produce(250)
    case.run("--name", "changed", "--checkpoint-interval", "5s")
    until(lambda: {"gone", "daily_revenue"} <= {b["metric"] for b in case.documents().values()})
    stopped = json.loads(cluster("stop", "changed", "--json"))
    assert "--name changed" in stopped["resume"]
    assert case.producing
    shown = max(
        body["window_end"] for body in case.documents().values() if is_of(body, "orders_by_city")
    )

    case.path.write_text(text.replace(values, others).replace("metrics:\n", f"metrics:\n{new}", 1))
    second = case.run("--name", "changed", "--from-savepoint", stopped["savepoint"])
    assert cluster.flink.checkpoints(second).restored_from == stopped["savepoint"]
    whole = moment(shown) + 5 * MINUTE
    until(
        lambda: any(
            is_of(body, "new") and moment(body["window_start"]) >= whole
            for body in case.documents().values()
        )
    )
    case.stop_producing()
    wanted = expected(load(case.path), case.messages(), directory(SEED))
    # What is new counts from where the first had read to, which is soon after what that had shown.
    partly = {
        id_
        for id_, document in wanted.items()
        if document.metric == "new" and moment(document.window_start) < whole
    }
    wanted = {id_: document for id_, document in wanted.items() if id_ not in partly}
    assert any(document.metric == "new" for document in wanted.values())

    def wrong() -> list[str]:
        found = {
            id_: body
            for id_, body in case.documents().items()
            if not is_of(body, "gone") and id_ not in partly
        }
        return not_final(wanted, found)

    assert in_time(wrong)[:5] == []


MINUTE = timedelta(minutes=1)


def is_of(body: Mapping[str, Any], metric: str) -> bool:
    return bool(body["metric"] == metric)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_bounded_job_ends_by_itself_and_its_view_with_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 20_000)
    case.pace.release()
    case.produce()
    assert case.producer is not None
    case.producer.join()
    sinks = ("--sqlite", case.store, "--dead-letters", case.dead)
    jar = ("--job-server-jar", job_server_jar())  # a jar that is given is taken
    output = cluster(
        "run", case.path, "--runner", "flink", "--until", "now", *sinks, *jar, "--json"
    )
    last = json.loads(output.splitlines()[-1])
    assert last["state"] == "FINISHED"
    case.await_all(0, closed=True)


def test_a_job_that_fails_as_it_starts_is_told_by_its_cause_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 0)
    case.path.write_text(case.path.read_text().replace(f"[{case.prefix}.", "[nosuch."))
    case.run(code=1)
    assert "cannot list the partitions of topic 'nosuch.pharmacy.events'" in cluster.stderr
    assert "Traceback" not in cluster.stderr
    assert "\tat " not in cluster.stderr
    assert cluster.job_servers() == []
    until(lambda: all(job.ended for job in cluster.flink.jobs()))
    assert list((cluster.folder / "flink-jobs").glob("*")) == []


def test_a_job_cancelled_while_its_worker_boots_leaves_no_worker(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 0)
    command = [*cluster.velocity, *case.command()]
    with subprocess.Popen(command, env=cluster.environ, stderr=subprocess.PIPE) as run:
        until(lambda: cluster.workers() != [])
        for job in cluster.flink.jobs():
            if not job.ended:
                cluster.flink.cancel(job.id)
        _, told = run.communicate(timeout=180)
    assert run.returncode == 1
    assert b"CANCEL" in told
    until(lambda: cluster.workers() == [])


def test_a_savepoint_that_is_not_there_is_named(cluster: Cluster, tmp_path: Path) -> None:
    case = Case(cluster, tmp_path, 0)
    case.run("--from-savepoint", str(tmp_path / "nosuch"), code=1)
    assert str(tmp_path / "nosuch") in cluster.stderr
    assert len(cluster.stderr.splitlines()) < 10
    assert cluster.job_servers() == []


SETUP = """
from setuptools import setup

setup(name="own-functions", version="1", py_modules=["own_functions"])
"""


@pytest.mark.parametrize("option", ["--setup_file", "--extra_package"])
def test_a_job_brings_its_own_python_to_the_workers(
    cluster: Cluster, tmp_path: Path, option: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "setup.py").write_text(SETUP)
    (project / "own_functions.py").write_text("ANSWER = 42\n")
    given = project / "setup.py"
    if option == "--extra_package":
        build = [sys.executable, "setup.py", "-q", "sdist"]
        subprocess.run(build, cwd=project, check=True)
        [given] = (project / "dist").glob("*.tar.gz")
    case = Case(cluster, tmp_path, 0)
    job = case.run("--", f"{option}={given}")
    temporary = Path(cluster.environ["TMPDIR"])
    assert list(temporary.glob("velocity-worker-*/site/own_functions.py")) != []
    [worker] = cluster.workers()
    os.kill(worker, signal.SIGKILL)  # the next one is staged too
    until(lambda: cluster.flink.restarts(job) >= 1)
    until(lambda: cluster.flink.find(job).running)
    until(lambda: len(cluster.workers()) == 1 and worker not in cluster.workers())
