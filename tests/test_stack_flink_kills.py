"""Jobs on a real Flink and Kafka are stopped, resumed and killed: no event is lost or doubled."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster import Cluster, until
from tests.flink_jobs import Case, values_of
from velocity.runners.demo import JOB
from velocity.runners.stack_process import identify
from velocity.runners.stack_state import read_state

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("no_job_is_left")]


def test_a_job_stopped_or_cancelled_and_resumed_with_other_subtasks_loses_and_doubles_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 75_000, rate=25)
    case.produce(250)
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
    until(lambda: len(case.documents()) > before)
    until(lambda: cluster.flink.checkpoints(second).completed > 0)
    cancelled = json.loads(cluster("stop", second, "--cancel", "--json"))
    assert case.producing
    assert cluster.flink.find(second).state == "CANCELED"
    assert f"--from-savepoint {cancelled['checkpoint']}" in cancelled["resume"]
    again = json.loads(cluster("stop", second, "--json"))
    assert again["checkpoint"] == cancelled["checkpoint"]

    third = case.run("--parallelism", "2", "--from-savepoint", cancelled["checkpoint"])
    assert cluster.flink.checkpoints(third).restored_from == cancelled["checkpoint"]
    case.await_all()


@pytest.mark.parametrize("backend", ["hashmap", "rocksdb"])
def test_a_killed_python_worker_and_a_killed_task_manager_lose_and_double_nothing(
    cluster: Cluster, tmp_path: Path, backend: str
) -> None:
    case = Case(cluster, tmp_path, 75_000, rate=25)
    case.produce(250)
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
    until(lambda: identify(manager.process.pid) != manager.process)  # it takes seconds to die
    cluster("stack", "up", "flink")
    until(lambda: cluster.flink.restarts(job) >= 2)
    case.await_all()


def test_each_event_counts_once_though_it_was_delivered_twice_and_the_worker_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 75_000, rate=25)
    case.scenario = replace(case.scenario, duplicate_share=0.2)
    once = "deduplicate: {by: event_id, horizon: 2m}\n  event_time: event_time"
    text = case.path.read_text()
    assert text.count("event_time: event_time") == 1
    case.path.write_text(text.replace("event_time: event_time", once))
    case.produce(250)
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
    case.pace.release()
    case.await_all()

    wanted = {id_ for id_, body in case.documents().items() if body["metric"] == "alerts"}

    def sent() -> list[dict[str, str]]:
        return [json.loads(v) for v in values_of(case.kafka, f"{case.prefix}.velocity.alerts")]

    # The topic may have them a bundle after the documents.
    until(lambda: {alert["id"] for alert in sent()} == wanted)
    until(lambda: {alert["status"] for alert in sent()} == {"stuck", "resolved", "dropped"})
