"""The real servers: started, used, stopped, killed; each test has a stack of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from velocity.runners.jobserver import job_server_jar
from velocity.runners.stack_errors import ServerFailed
from velocity.runners.stack_process import Process, find
from velocity.runners.stack_state import StackState, read_state

pytestmark = pytest.mark.stack

UP = [sys.executable, "-m", "velocity.runners.stack_cli", "up"]


class Commands:
    """``velocity stack`` with a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "VELOCITY_STATE": str(folder)}

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "velocity.runners.stack_cli", *arguments, "--json"],
            capture_output=True,
            text=True,
            env=self.environ,
            check=False,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return json.loads(done.stdout)

    def begin(self, *components: str) -> "subprocess.Popen[bytes]":
        """Starts ``up`` and returns once it has started a server."""
        with self.told.open("wb") as told:
            up = subprocess.Popen(
                [*UP, *components], env=self.environ, stderr=told, start_new_session=True
            )
        until(lambda: bool(self.state.components))
        assert up.poll() is None
        return up

    @property
    def told(self) -> Path:
        """What ``begin`` wrote to its standard error."""
        return self.folder.with_name("up.stderr")

    @property
    def state(self) -> StackState:
        return read_state(self.folder)

    def address(self, name: str) -> str:
        found = self.state.address(name)
        assert found is not None
        return found

    def running(self) -> list[Process]:
        return find([], lambda mark: mark.stack == str(self.folder))


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path / "state")
    try:
        yield commands
    finally:
        commands("down")


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def call(method: str, url: str, body: object = None) -> tuple[int, Any]:
    answer = urllib3.request(method, url, json=body, timeout=30.0, retries=False)
    return answer.status, json.loads(answer.data)


def consumed(servers: str, count: int) -> list[bytes | None]:
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": "test", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe(["events"])
    try:
        return [message.value() for message in consumer.consume(count, timeout=30)]
    finally:
        consumer.close()


def test_kafka_keeps_its_messages_over_a_restart_and_loses_them_when_fresh(
    stack: Commands,
) -> None:
    stack("up", "kafka")
    # Without idempotence what is sent again, as the topic is being made, comes after the rest.
    producer = Producer({"bootstrap.servers": stack.address("kafka"), "enable.idempotence": True})
    for n in range(3):
        producer.produce("events", str(n), partition=0)
    producer.flush(30)
    assert consumed(stack.address("kafka"), 3) == [b"0", b"1", b"2"]
    stack("down")
    assert stack.running() == []

    stack("up", "kafka")
    client = AdminClient({"bootstrap.servers": stack.address("kafka")})
    assert "events" in client.list_topics(timeout=30).topics

    stack("up", "kafka", "--fresh")
    client = AdminClient({"bootstrap.servers": stack.address("kafka")})
    assert "events" not in client.list_topics(timeout=30).topics


@pytest.mark.parametrize(("major", "version"), [("9", "9.5.3"), ("8", "8.19.21")])
def test_elasticsearch_refuses_a_stale_version_and_keeps_documents_over_a_restart(
    stack: Commands, major: str, version: str
) -> None:
    stack("up", "elasticsearch", "--elasticsearch", major)
    url = stack.address("elasticsearch")
    assert call("GET", url + "/")[1]["version"]["number"] == version
    document = f"{url}/metrics/_doc/1?version_type=external&refresh=true&version="
    assert call("PUT", document + "5", {"n": 5})[0] == 201
    assert call("PUT", document + "5", {"n": 4})[0] == 409
    assert call("PUT", document + "6", {"n": 6})[0] == 200
    stack("down")

    stack("up", "elasticsearch", "--elasticsearch", major)
    url = stack.address("elasticsearch")
    assert call("GET", f"{url}/metrics/_doc/1")[1]["_source"] == {"n": 6}
    for n in range(2, 5):
        call("PUT", f"{url}/metrics/_doc/{n}?refresh=true", {"n": n})
    query = {"query": {"range": {"n": {"lt": 4}}}}
    status, deleted = call("POST", f"{url}/metrics/_delete_by_query?refresh=true", query)
    assert (status, deleted["total"], deleted["deleted"]) == (200, 2, 2)
    assert call("GET", f"{url}/metrics/_count")[1]["count"] == 2
    assert call("POST", f"{url}/missing/_delete_by_query", query)[0] == 404


def test_flink_has_its_slots_and_a_lost_task_manager_is_replaced_alone(stack: Commands) -> None:
    stack("up", "flink", "--task-managers", "2", "--slots", "3")
    overview = call("GET", stack.address("flink") + "/overview")[1]
    assert (overview["taskmanagers"], overview["slots-total"]) == (2, 6)
    assert overview["jobs-running"] == 0

    before = {s.name: s.process for s in stack.state.components["flink"].servers}
    os.kill(before["taskmanager-2"].pid, signal.SIGKILL)
    until(lambda: all(p.id != before["taskmanager-2"] for p in stack.running()))
    (status,) = stack("status", code=1)["components"]
    assert {s["name"] for s in status["servers"] if not s["healthy"]} >= {"taskmanager-2"}

    stack("up", "flink")
    after = {s.name: s.process for s in stack.state.components["flink"].servers}
    assert {name for name in after if after[name] != before[name]} == {"taskmanager-2"}


SETUP = """
from setuptools import setup

setup(name="own-functions", version="1", py_modules=["own_functions"])
"""

FUNCTIONS = """
import apache_beam as beam


class Append(beam.DoFn):
    def __init__(self, path):
        self.path = path

    def process(self, word):
        with open(self.path, "a") as output:
            print(word, file=output)
"""

JOB = """
import sys

import apache_beam as beam
import own_functions
from apache_beam.options.pipeline_options import PipelineOptions

with beam.Pipeline(options=PipelineOptions(sys.argv[2:])) as pipeline:
    words = pipeline | beam.Create(["a", "b", "c"]) | beam.Reshuffle()
    words | beam.ParDo(own_functions.Append(sys.argv[1]))
"""


def test_a_job_brings_its_own_python_to_the_cluster(stack: Commands, tmp_path: Path) -> None:
    for name, content in (("setup", SETUP), ("own_functions", FUNCTIONS), ("job", JOB)):
        (tmp_path / f"{name}.py").write_text(content)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=tmp_path, check=True)
    (package,) = (tmp_path / "dist").glob("*.tar.gz")
    stack("up", "flink")
    submitted = subprocess.run(
        [
            sys.executable,
            "job.py",
            tmp_path / "words",
            "--runner=FlinkRunner",
            f"--flink_job_server_jar={job_server_jar()}",
            f"--flink_master={stack.address('flink').removeprefix('http://')}",
            "--environment_type=EXTERNAL",
            f"--environment_config={stack.address('workers')}",
            f"--extra_package={package}",
            "--parallelism=2",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert submitted.returncode == 0, submitted.stderr
    assert sorted((tmp_path / "words").read_text().split()) == ["a", "b", "c"]
    until(lambda: len(stack.running()) == 3)  # workers end with their job


def test_a_second_up_starts_nothing(stack: Commands) -> None:
    stack("up", "kafka")
    before = {process.id for process in stack.running()}
    stack("up", "kafka")
    port = stack.state.components["kafka"].ports["kafka"]
    error = stack("up", "kafka", "--port", "kafka=1", code=1)
    assert f"kafka was brought up with port kafka={port}, not 1: take it down" in error["message"]
    assert {process.id for process in stack.running()} == before


def listening(processes: list[Process]) -> set[str]:
    """The addresses, in the hex of /proc/net/tcp, on which processes listen."""
    inodes = set()
    for process in processes:
        for link in Path(f"/proc/{process.id.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_servers_listen_on_the_loopback_only(stack: Commands) -> None:
    stack("up", "--ha")
    assert listening(stack.running()) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert len(stack.running()) == 6


def test_ctrl_c_during_up_leaves_nothing(stack: Commands) -> None:
    up = stack.begin("kafka", "flink")
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 130, stack.told.read_text()
    assert stack.running() == []
    assert stack.state == StackState()


def test_sigterm_during_up_leaves_nothing(stack: Commands) -> None:
    up = stack.begin("flink")
    up.terminate()
    assert up.wait(60) == 128 + signal.SIGTERM, stack.told.read_text()
    assert stack.running() == []


def test_a_killed_up_is_cleared_up_after_without_a_further_command(stack: Commands) -> None:
    up = stack.begin("kafka", "flink")
    up.kill()
    up.wait()
    until(lambda: stack.running() == [])
    until(lambda: stack.state == StackState())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_killed_up_and_a_killed_janitor_left_is_ended_by_down(stack: Commands) -> None:
    up = stack.begin("kafka", "flink")
    children = Path(f"/proc/{up.pid}/task/{up.pid}/children").read_text().split()
    for pid in children:
        if b"stack_janitor" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(int(pid), signal.SIGKILL)
    up.kill()
    up.wait()
    assert stack.running() != []
    # Not even a record is needed.
    (stack.folder / "stack.json").unlink()
    assert stack("down")["ended"] > 0
    assert stack.running() == []


def test_an_interrupted_up_leaves_what_ran_before(stack: Commands) -> None:
    stack("up", "kafka")
    before = {process.id for process in stack.running()}
    up = subprocess.Popen([*UP, "flink"], env=stack.environ, stderr=subprocess.DEVNULL)
    until(lambda: "flink" in stack.state.components)
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 130
    assert {process.id for process in stack.running()} == before
    assert set(stack.state.components) == {"kafka"}


def test_a_server_that_cannot_start_is_named_with_its_log_and_nothing_is_left(
    stack: Commands,
) -> None:
    data = stack.folder / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\nnode.id=99\n")
    error = stack("up", "kafka", code=ServerFailed.exit_code)
    assert "kafka ended with code" in error["message"]
    assert "kafka.log" in error["message"]
    assert stack.running() == []
    assert stack.state == StackState()


def test_an_elasticsearch_that_cannot_start_ends_and_is_named(stack: Commands) -> None:
    for version in (8, 9):
        data = stack.folder / f"elasticsearch-{version}" / "data"
        data.parent.mkdir(parents=True)
        data.write_text("no folder")
    error = stack("up", "elasticsearch", code=ServerFailed.exit_code)
    assert "elasticsearch ended with code 1" in error["message"]
    assert stack.running() == []


def test_a_taken_port_is_refused_before_anything_starts(stack: Commands) -> None:
    stack("up", "kafka")
    taken = stack.state.components["kafka"].ports["kafka"]
    error = stack("up", "flink", "--port", f"flink={taken}", code=5)
    assert f"Port {taken}, given for flink, is in use" in error["message"]
    assert set(stack.state.components) == {"kafka"}
