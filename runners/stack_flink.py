"""A Flink cluster: a JobManager, TaskManagers, and the pool that starts their Python workers."""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import urllib3
import yaml

from velocity.runners.stack_java import Jdk
from velocity.runners.stack_ports import HOST
from velocity.runners.stack_server import Server
from velocity.runners.stack_zookeeper import SESSION

PORTS: Final = {
    "flink": 8081,
    "flink-rpc": 0,
    "flink-blob": 0,
    "flink-metrics": 9250,
    "workers": 50000,
    "workers-metrics": 9249,
    "zookeeper": 0,
}

STATE_BACKENDS: Final = ("hashmap", "rocksdb")

LOG4J: Final = """\
status = warn
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1.} - %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
logger.pekko.name = org.apache.pekko
logger.pekko.level = warn
"""

JAVA_17: Final = (
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
    "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.api=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.file=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.parser=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.tree=ALL-UNNAMED",
    "--add-exports=jdk.compiler/com.sun.tools.javac.util=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.net=ALL-UNNAMED",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.lang.reflect=ALL-UNNAMED",
    "--add-opens=java.base/java.text=ALL-UNNAMED",
    "--add-opens=java.base/java.time=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent.atomic=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent.locks=ALL-UNNAMED",
)
"""What Flink 1.19's own ``config.yaml`` passes to a JVM with modules (``env.java.opts.all``)."""


@dataclass(frozen=True, slots=True)
class TaskManagerMemory:
    """How a TaskManager divides its memory, in MB; with four slots 1.7 GB.

    Flink's scripts derive these figures; started without them, a TaskManager wants each one.
    Source: Flink's documentation, "Set up TaskManager Memory".

    >>> TaskManagerMemory.of(slots=4).total
    1760
    """

    task_heap: int = 512
    task_off_heap: int = 128
    """Where Beam's gRPC buffers lie."""
    framework_heap: int = 128
    framework_off_heap: int = 128
    managed: int = 384
    """RocksDB's; the hashmap state backend leaves it unused."""
    network: int = 64
    metaspace: int = 224
    """Classes: some 60 MB of Flink, and 31 MB of each job, which loads its own."""
    overhead: int = 192

    @classmethod
    def of(cls, slots: int) -> "TaskManagerMemory":
        """With room for a job of its own in each slot."""
        return cls(
            task_off_heap=32 * slots,
            managed=96 * slots,
            network=16 * slots,
            metaspace=64 + 40 * slots,
        )

    @property
    def heap(self) -> int:
        return self.task_heap + self.framework_heap

    @property
    def direct(self) -> int:
        return self.task_off_heap + self.framework_off_heap + self.network

    @property
    def total(self) -> int:
        return self.heap + self.direct + self.managed + self.metaspace + self.overhead

    def configuration(self) -> dict[str, str]:
        memory = "taskmanager.memory"
        return {
            f"{memory}.task.heap.size": f"{self.task_heap}m",
            f"{memory}.task.off-heap.size": f"{self.task_off_heap}m",
            f"{memory}.framework.heap.size": f"{self.framework_heap}m",
            f"{memory}.framework.off-heap.size": f"{self.framework_off_heap}m",
            f"{memory}.managed.size": f"{self.managed}m",
            f"{memory}.network.min": f"{self.network}m",
            f"{memory}.network.max": f"{self.network}m",
            f"{memory}.jvm-metaspace.size": f"{self.metaspace}m",
            f"{memory}.jvm-overhead.min": f"{self.overhead}m",
            f"{memory}.jvm-overhead.max": f"{self.overhead}m",
        }


def configuration(
    *,
    ports: Mapping[str, int],
    data: Path,
    temporary: Path,
    slots: int,
    state_backend: str,
    ha: bool = False,
    prometheus: bool = False,
) -> dict[str, str | int | bool]:
    """The ``config.yaml`` that all processes of the cluster share, as flat keys."""
    return {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": ports["flink-rpc"],
        "jobmanager.bind-host": HOST,
        "jobmanager.memory.process.size": "1g",
        "jobmanager.archive.fs.dir": (data / "archive").as_uri(),
        "blob.server.port": ports["flink-blob"],
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": ports["flink"],
        "rest.bind-port": str(ports["flink"]),
        "taskmanager.host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.numberOfTaskSlots": slots,
        "taskmanager.cpu.cores": slots,
        "io.tmp.dirs": str(temporary),
        "parallelism.default": 1,
        "state.backend.type": state_backend,
        "state.backend.incremental": state_backend == "rocksdb",
        # All states of a slot share its managed memory. With the usual 64 MB a first write takes an
        # eighth of that; a few states are then written to disk at each event, and a job stands still.
        "state.backend.rocksdb.writebuffer.size": "4mb",
        "state.checkpoints.dir": (data / "checkpoints").as_uri(),
        "state.savepoints.dir": (data / "savepoints").as_uri(),
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "1 s",
        "restart-strategy.exponential-delay.max-backoff": "30 s",
        # After a minute that went well, a failure is a first one again (Flink's own: an hour).
        "restart-strategy.exponential-delay.reset-backoff-threshold": "1 min",
        # A lost TaskManager is noticed in seconds: all of them live on this machine.
        "heartbeat.interval": 3000,
        "heartbeat.timeout": 20000,
        # TaskManagers start beside their JobManager, and would wait 10 s if they were first.
        "cluster.registration.error-delay": 500,
        "web.submit.enable": False,
        "web.cancel.enable": True,
        **TaskManagerMemory.of(slots).configuration(),
        **(high_availability(ports, data) if ha else {}),
        **(PROMETHEUS if prometheus else {}),
    }


PROMETHEUS: Final = {
    "metrics.reporters": "prom",
    "metrics.reporter.prom.factory.class": (
        "org.apache.flink.metrics.prometheus.PrometheusReporterFactory"
    ),
}
"""Flink's own reporter, which ships with it; each process has a port of its own."""


def metrics_port(ports: Mapping[str, int], process: int) -> int:
    """Where Prometheus finds a process: the JobManager, which is 0, or a TaskManager from 1 on.

    >>> metrics_port({"flink-metrics": 9250}, 1)
    9251
    """
    return ports["flink-metrics"] + process


def high_availability(ports: Mapping[str, int], data: Path) -> dict[str, str | int]:
    """What lets a JobManager find the jobs of the one before it, and TaskManagers find it.

    Source: Flink's documentation, "ZooKeeper HA Services".
    """
    return {
        "high-availability.type": "zookeeper",
        "high-availability.zookeeper.quorum": f"{HOST}:{ports['zookeeper']}",
        "high-availability.storageDir": (data / "ha").as_uri(),
        "high-availability.cluster-id": "/velocity",
        "high-availability.jobmanager.port": str(ports["flink-rpc"]),
        # A killed JobManager leads for so long after its end, and its successor waits. One that is
        # paused for longer may never lead again, though it lives: Curator's LeaderLatch stays idle
        # (CURATOR-724, mended in 5.8.0; Flink 1.19 has 5.4.0), and here is no other to take over.
        "high-availability.zookeeper.client.session-timeout": SESSION,
        # A JobManager that cannot reach ZooKeeper after so many waits of 5 s ends itself.
        "high-availability.zookeeper.client.max-retry-attempts": "12",
    }


class FlinkProcess(Server):
    """A JVM of the cluster, with its configuration and log file in a folder of its own."""

    entry_point: str

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        jars: Path,
        jdk: Jdk,
        configuration: Mapping[str, str | int | bool],
        metrics: int | None = None,
    ) -> None:
        super().__init__(name, folder)
        self._jars = jars
        self._jdk = jdk
        self._configuration = dict(configuration)
        if metrics is not None:
            # As text: of a number the reporter knows nothing, and takes its own, which another has.
            self._configuration["metrics.reporter.prom.port"] = str(metrics)

    @property
    def _conf(self) -> Path:
        return self.folder / "conf" / self.name

    @property
    def rest(self) -> str:
        return f"http://{HOST}:{self._configuration['rest.port']}"

    def prepare(self) -> None:
        self._conf.mkdir(parents=True, exist_ok=True)
        Path(str(self._configuration["io.tmp.dirs"])).mkdir(parents=True, exist_ok=True)
        (self._conf / "log4j2.properties").write_text(LOG4J)
        (self._conf / "config.yaml").write_text(yaml.safe_dump(self._configuration))

    def memory(self) -> list[str]:
        raise NotImplementedError

    def command(self) -> Sequence[str | Path]:
        return [
            self._jdk.java,
            *self.memory(),
            "-XX:+UseG1GC",
            *(JAVA_17 if self._jdk.feature >= 16 else ()),
            f"-Dlog4j.configurationFile={self._conf}/log4j2.properties",
            # The web interface shows this file.
            f"-Dlog.file={self.log}",
            "-cp",
            f"{self._jars}/*",
            self.entry_point,
            "--configDir",
            self._conf,
        ]


class JobManager(FlinkProcess):
    """Takes jobs at its REST interface; they are lost with it, unless the cluster is one of high
    availability."""

    entry_point = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"

    def memory(self) -> list[str]:
        return ["-Xmx448m", "-XX:MaxDirectMemorySize=128m", "-XX:MaxMetaspaceSize=256m"]

    def healthy(self) -> bool:
        return manages(self.rest)


class TaskManager(FlinkProcess):
    """Runs the tasks of jobs, in as many slots as configured."""

    entry_point = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"

    def prepare(self) -> None:
        self._configuration["taskmanager.resource-id"] = self.name
        super().prepare()

    def memory(self) -> list[str]:
        memory = TaskManagerMemory.of(int(self._configuration["taskmanager.numberOfTaskSlots"]))
        return [
            f"-Xms{memory.heap}m",
            f"-Xmx{memory.heap}m",
            f"-XX:MaxDirectMemorySize={memory.direct}m",
            f"-XX:MaxMetaspaceSize={memory.metaspace}m",
        ]

    def healthy(self) -> bool:
        return has_task_manager(self.rest, self.name)


class WorkerPool(Server):
    """Starts a Python worker when a task asks for one (environment type ``EXTERNAL``).

    Workers run this interpreter: what is installed here, they can import.
    """

    def __init__(self, folder: Path, *, port: int, metrics: int) -> None:
        super().__init__("workers", folder)
        self._port, self._metrics = port, metrics

    def command(self) -> Sequence[str | Path]:
        module = [sys.executable, "-m", "velocity.runners.workers_cli"]
        return [*module, "--port", str(self._port), "--metrics-port", str(self._metrics)]

    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "PYTHONUNBUFFERED": "1"}

    def healthy(self) -> bool:
        return listens(self._port)


def ask(rest: str, path: str) -> object:
    """What a JobManager's REST interface answers; None while it does not."""
    try:
        answer = urllib3.request("GET", rest + path, timeout=3.0, retries=False)
    except urllib3.exceptions.HTTPError:
        return None
    return json.loads(answer.data) if answer.status == 200 else None


def manages(rest: str) -> bool:
    """Whether a JobManager answers."""
    return isinstance(ask(rest, "/overview"), dict)


def has_task_manager(rest: str, name: str) -> bool:
    """Whether the TaskManager of this name has registered with its JobManager."""
    listed = ask(rest, "/taskmanagers")
    return isinstance(listed, dict) and any(
        manager["id"] == name for manager in listed["taskmanagers"]
    )


def listens(port: int) -> bool:
    """Whether a server accepts connections on this port."""
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True
