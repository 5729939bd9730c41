"""Jobs on a real Flink and Kafka: submitted, stopped, resumed, killed; no event lost or doubled."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster import VELOCITY, Cluster, until
from tests.flink_jobs import Case, end_all, pharmacy_cluster, values_of
from velocity.pipelines.simulator import simulate
from velocity.runners.demo import JOB
from velocity.runners.jobserver import job_server_jar
from velocity.runners.stack_state import read_state

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pharmacy_cluster(tmp_path_factory) as found:
        yield found


@pytest.fixture(autouse=True)
def no_job_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    end_all(cluster)


def test_a_job_stopped_with_a_savepoint_and_resumed_with_more_subtasks_loses_and_doubles_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 300_000)
    case.produce()
    case.run("--parallelism", "2", "--name", "first")
    until(lambda: len(case.documents()) > 50)
    assert cluster.job_servers() == []

    stopped = json.loads(cluster("stop", "first", "--json"))
    assert case.producing  # it was in mid-run
    assert cluster.flink.find(stopped["id"]).state == "FINISHED"
    assert f"--from-savepoint {stopped['savepoint']}" in stopped["resume"]
    before = len(case.documents())

    second = case.run("--parallelism", "3", "--from-savepoint", stopped["savepoint"])
    assert cluster.flink.checkpoints(second).restored_from == stopped["savepoint"]
    case.await_all()
    assert len(case.documents()) > before
    cluster("stop", second, "--cancel")
    until(lambda: cluster.flink.find(second).ended)
    assert cluster.flink.find(second).state == "CANCELED"


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


@pytest.mark.parametrize("backend", ["hashmap", "rocksdb"])
def test_a_killed_python_worker_and_a_killed_task_manager_lose_and_double_nothing(
    cluster: Cluster, tmp_path: Path, backend: str
) -> None:
    case = Case(cluster, tmp_path, 300_000)
    case.produce()
    job = case.run("--state-backend", backend, "--checkpoint-interval", "5s")
    until(lambda: cluster.flink.checkpoints(job).completed > 0)
    [worker] = cluster.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: cluster.flink.restarts(job) >= 1)
    until(lambda: cluster.flink.find(job).running)
    assert worker not in cluster.workers()

    done = cluster.flink.checkpoints(job).completed
    until(lambda: cluster.flink.checkpoints(job).completed > done)
    servers = read_state(cluster.folder).components["flink"].servers
    [manager] = [server for server in servers if server.name == "taskmanager-1"]
    assert case.producing  # both are killed in mid-run
    os.kill(manager.process.pid, signal.SIGKILL)
    cluster("stack", "up", "flink")
    until(lambda: cluster.flink.restarts(job) >= 2)
    case.await_all()


def test_each_event_counts_once_though_it_was_delivered_twice_and_the_worker_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 300_000)
    case.scenario = replace(case.scenario, duplicate_share=0.2)
    once = "deduplicate: {by: event_id, horizon: 2m}\n  event_time: event_time"
    text = case.path.read_text()
    assert text.count("event_time: event_time") == 1
    case.path.write_text(text.replace("event_time: event_time", once))
    case.produce()
    job = case.run("--checkpoint-interval", "5s")
    until(lambda: cluster.flink.checkpoints(job).completed > 0)
    until(lambda: cluster.counter(job, "duplicates_dropped") > 0)
    [worker] = cluster.workers()
    assert case.producing
    os.kill(worker, signal.SIGKILL)
    until(lambda: cluster.flink.restarts(job) >= 1)
    case.await_all()


def test_transactions_survive_a_savepoint_and_a_kill_and_each_alert_is_sent(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Two hours of event time, in which transactions get stuck and are dropped. The rate leaves the
    # runs several minutes to be stopped, resumed and killed in; then the rest comes at once.
    case = Case(cluster, tmp_path, 40_000, JOB.with_stem("transactions"), rate=5)
    # Of four topics' sixteen partitions none may seem idle meanwhile.
    case.path.write_text(case.path.read_text().replace("idle_after: 5s", "idle_after: 20s"))
    case.produce(rate=80)
    first = case.run("--checkpoint-interval", "5s", "--name", "following")
    until(lambda: cluster.counter(first, "transactions_facts") > 500)
    stopped = json.loads(cluster("stop", "following", "--json"))
    assert case.producing  # it was in mid-run

    savepoint = ("--from-savepoint", stopped["savepoint"])
    job = case.run("--checkpoint-interval", "5s", "--parallelism", "3", *savepoint)
    until(lambda: cluster.flink.checkpoints(job).completed > 0)
    [worker] = cluster.workers()
    os.kill(worker, signal.SIGKILL)
    assert case.producing
    until(lambda: cluster.flink.restarts(job) >= 1)
    case.await_all()

    wanted = {id_ for id_, body in case.documents().items() if body["metric"] == "alerts"}
    sent = [json.loads(value) for value in values_of(case.kafka, f"{case.prefix}.velocity.alerts")]
    assert {alert["id"] for alert in sent} == wanted
    assert {alert["status"] for alert in sent} == {"stuck", "resolved", "dropped"}


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
    command = [*VELOCITY, *case.command()]
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
