"""What is missing is said before anything starts; servers listen on 127.0.0.1 only."""

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from velocity.runners import stack_components
from velocity.runners.stack_components import NAMES, PORTS, SETTINGS, Machine, Settings, check_kept
from velocity.runners.stack_errors import MissingTool, StackError
from velocity.runners.stack_flink import (
    JobManager,
    TaskManager,
    TaskManagerMemory,
    configuration,
    metrics_port,
)
from velocity.runners.stack_java import Jdk
from velocity.runners.stack_kafka import server_properties
from velocity.runners.stack_ports import any_free
from velocity.runners.stack_server import tail
from velocity.runners.stack_state import ComponentRecord
from velocity.runners.stack_workers import spawn
from velocity.runners.stack_zookeeper import ZooKeeper, is_ok, zoo_cfg

JDK_17, JDK_25 = Jdk(Path("/jvm/17"), 17), Jdk(Path("/jvm/25"), 25)
FLINK_PORTS = {
    "flink": 8081,
    "flink-rpc": 6123,
    "flink-blob": 6124,
    "workers": 50000,
    "workers-metrics": 9249,
    "flink-metrics": 9250,
    "zookeeper": 2181,
}


def no_maven() -> str:
    raise MissingTool("no mvn")


def machine(tmp_path: Path, *jdks: Jdk, pip: bool = True) -> Machine:
    return Machine(jdks, tmp_path, maven=lambda: "mvn", has_pip=lambda: pip)


def test_elasticsearch_9_runs_where_a_jdk_allows_it_else_8(tmp_path: Path) -> None:
    assert machine(tmp_path, JDK_17, JDK_25).elasticsearch(None) == 9
    assert machine(tmp_path, JDK_17).elasticsearch(None) == 8
    assert machine(tmp_path, JDK_17, JDK_25).elasticsearch(8) == 8


def test_elasticsearch_9_without_its_jdk_is_refused_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="Elasticsearch 9 needs a JDK 21 or later; found: 17"):
        machine(tmp_path, JDK_17).check(["elasticsearch"], Settings(elasticsearch=9))


def test_each_server_gets_a_jdk_it_runs_on(tmp_path: Path) -> None:
    both = machine(tmp_path, JDK_25, JDK_17)
    assert both.jdk("flink") == JDK_17
    assert both.jdk("kafka") == JDK_17
    assert both.jdk("elasticsearch", 9) == JDK_25


def test_flink_does_not_run_on_a_jdk_it_was_not_made_for(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match=r"Flink 1\.19 needs a JDK 11 to 21; found: 25"):
        machine(tmp_path, JDK_25).check(["flink"], Settings())


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    bare = Machine([], tmp_path, maven=no_maven, has_pip=lambda: False)
    with pytest.raises(MissingTool) as raised:
        bare.check(NAMES, Settings())
    for missing in ("Kafka needs", "Elasticsearch 8.19 needs", "Flink 1.19 needs", "mvn", "pip"):
        assert missing in str(raised.value)


def test_what_is_in_the_cache_needs_no_maven_and_no_pip(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / f"{name}-1").mkdir()
    Machine([JDK_17], tmp_path, maven=no_maven, has_pip=lambda: False).check(NAMES, Settings())


def test_what_is_asked_for_decides_what_is_needed(tmp_path: Path) -> None:
    Machine([JDK_17], tmp_path, maven=no_maven, has_pip=lambda: True).check(["flink"], Settings())


@pytest.mark.parametrize(
    "settings",
    [{"task_managers": 0}, {"slots": 0}, {"state_backend": "disk"}, {"elasticsearch": 7}],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(StackError, match=next(iter(settings))):
        Settings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"slots": 8}, "flink was brought up with slots 2, not 8: .* velocity stack down flink"),
        ({"ha": True}, "flink was brought up with ha False, not True"),
        ({"state_backend": "rocksdb"}, "with state-backend hashmap, not rocksdb"),
    ],
)
def test_a_setting_that_what_runs_does_not_have_is_refused(wish: dict[str, Any], told: str) -> None:
    flink = ComponentRecord("flink", "1.19.3", FLINK_PORTS, {"slots": 2}, {})
    with pytest.raises(StackError, match=told):
        check_kept(flink, Settings(**wish), wish)


def test_what_is_not_asked_for_stays_as_it_was_brought_up() -> None:
    flink = ComponentRecord("flink", "1.19.3", FLINK_PORTS, {"slots": 2, "ha": True}, {})
    check_kept(flink, Settings(), ())
    check_kept(flink, Settings(ha=True), {"ha"})
    check_kept(flink, Settings(elasticsearch=8), {"elasticsearch"})  # another component's


def test_every_setting_is_some_components() -> None:
    assert set().union(*SETTINGS.values()) == {field.name for field in fields(Settings)}


def test_kafka_listens_on_the_loopback_only() -> None:
    text = server_properties(port=19092, controller_port=19093, data=Path("/d"))
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert properties["listeners"] == "PLAINTEXT://127.0.0.1:19092,CONTROLLER://127.0.0.1:19093"
    assert properties["advertised.listeners"] == "PLAINTEXT://127.0.0.1:19092"
    assert properties["log.dirs"] == "/d"
    assert properties["log.retention.ms"] == "-1"  # what is old by its own time is kept
    assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", text)) == {"127.0.0.1"}


def flink_configuration(**changes: object) -> dict[str, str | int | bool]:
    wanted = {
        "ports": FLINK_PORTS,
        "data": Path("/d"),
        "temporary": Path("/t"),
        "slots": 4,
        "state_backend": "hashmap",
    }
    return configuration(**(wanted | changes))  # type: ignore[arg-type]


def test_flink_listens_on_the_loopback_only() -> None:
    rendered = flink_configuration()
    for key, value in rendered.items():
        if key.endswith((".address", "-host", ".host", "bind-address")):
            assert value == "127.0.0.1", key
    assert {"jobmanager.bind-host", "taskmanager.bind-host", "rest.bind-address"} <= set(rendered)


def test_checkpoints_and_savepoints_lie_with_the_data() -> None:
    rendered = flink_configuration()
    assert rendered["state.checkpoints.dir"] == "file:///d/checkpoints"
    assert rendered["state.savepoints.dir"] == "file:///d/savepoints"


def test_jobs_outlive_their_job_manager_only_where_asked_for() -> None:
    assert not any(key.startswith("high-availability") for key in flink_configuration())
    rendered = flink_configuration(ha=True)
    assert rendered["high-availability.type"] == "zookeeper"
    assert rendered["high-availability.zookeeper.quorum"] == "127.0.0.1:2181"
    assert rendered["high-availability.storageDir"] == "file:///d/ha"
    # TaskManagers learn the port from ZooKeeper; it is one of the stack's all the same.
    assert rendered["high-availability.jobmanager.port"] == "6123"


def test_flinks_reporter_is_there_where_asked_for_with_a_port_for_each_process(
    tmp_path: Path,
) -> None:
    assert not any(key.startswith("metrics.") for key in flink_configuration())
    rendered = flink_configuration(prometheus=True)
    assert rendered["metrics.reporters"] == "prom"
    manager = TaskManager(
        "taskmanager-2",
        tmp_path,
        jars=Path("/j"),
        jdk=JDK_17,
        configuration={**rendered, "io.tmp.dirs": str(tmp_path / "t")},
        metrics=metrics_port(FLINK_PORTS, 2),
    )
    manager.prepare()
    written = yaml.safe_load((tmp_path / "conf" / "taskmanager-2" / "config.yaml").read_text())
    # Of a number Flink's reporter knows nothing, and takes its usual port.
    assert written["metrics.reporter.prom.port"] == "9252"


def test_zookeeper_listens_on_the_loopback_only_and_lives_with_flinks_data(tmp_path: Path) -> None:
    settings = dict(line.split("=", 1) for line in zoo_cfg(port=2181, data=tmp_path).splitlines())
    assert settings["clientPortAddress"] == "127.0.0.1"
    assert settings["admin.enableServer"] == "false"  # its HTTP server listens on all interfaces
    server = ZooKeeper(tmp_path, jars=Path("/j"), jdk=JDK_17, port=2181, log4j="status = warn")
    server.prepare()
    assert f"dataDir={tmp_path}/data/zookeeper" in (
        (tmp_path / "conf" / "zookeeper" / "zoo.cfg").read_text().splitlines()
    )


def test_where_no_zookeeper_is_none_is_healthy() -> None:
    assert not is_ok(any_free())


def test_high_availability_brings_a_zookeeper_first(tmp_path: Path) -> None:
    for ha, first in ((False, "jobmanager"), (True, "zookeeper")):
        found = stack_components._cluster(
            tmp_path, Path("/j"), JDK_17, FLINK_PORTS, Settings(ha=ha)
        )
        assert found[0].name == first


def test_rocksdb_writes_checkpoints_by_increments() -> None:
    assert flink_configuration()["state.backend.incremental"] is False
    rocksdb = flink_configuration(state_backend="rocksdb")
    assert rocksdb["state.backend.type"] == "rocksdb"
    assert rocksdb["state.backend.incremental"] is True


def test_the_jvm_gets_the_memory_that_flink_counts_with() -> None:
    memory = TaskManagerMemory(task_heap=100, framework_heap=20, metaspace=64)
    assert memory.heap == 120
    counted = sum(
        int(size.removesuffix("m"))
        for key, size in memory.configuration().items()
        if not key.endswith(".min")
    )
    assert counted == memory.total


@given(st.integers(1, 64))
def test_each_slot_has_room_for_the_classes_of_a_job_and_for_the_buffers_of_rocksdb(
    slots: int,
) -> None:
    memory = TaskManagerMemory.of(slots)
    assert memory.metaspace >= 65 + 31 * slots  # 157 MB were seen with three jobs
    assert memory.managed == 96 * slots


def test_a_task_manager_finds_its_own_name_in_its_configuration(tmp_path: Path) -> None:
    server = TaskManager(
        "taskmanager-2",
        tmp_path,
        jars=Path("/jars"),
        jdk=JDK_17,
        configuration=flink_configuration(temporary=tmp_path / "tmp"),
    )
    server.prepare()
    folder = tmp_path / "conf" / "taskmanager-2"
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["taskmanager.resource-id"] == "taskmanager-2"
    assert (folder / "log4j2.properties").exists()
    assert folder in server.command()


@pytest.mark.parametrize(("jdk", "opens"), [(JDK_17, True), (Jdk(Path("/jvm/11"), 11), False)])
def test_modules_are_opened_only_where_java_has_sealed_them(
    tmp_path: Path, jdk: Jdk, opens: bool
) -> None:
    server = JobManager(
        "jobmanager", tmp_path, jars=Path("/j"), jdk=jdk, configuration=flink_configuration()
    )
    assert any(str(part).startswith("--add-opens") for part in server.command()) is opens


def test_workers_find_this_python_first() -> None:
    first = "import os, sys; sys.exit(os.environ['PATH'].split(':')[0] != os.path.dirname(sys.executable))"
    assert spawn([sys.executable, "-c", first]).wait(60) == 0


def test_no_two_servers_have_one_usual_port() -> None:
    usual = [port for ports in PORTS.values() for port in ports.values() if port]
    assert len(usual) == len(set(usual))


def test_the_end_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("".join(f"{n} {'x' * 300}\n" for n in range(1000)))
    assert [line.split()[0] for line in tail(log, 3).splitlines()] == ["997", "998", "999"]
    assert tail(log, 0) == ""
