"""A Kafka broker that is its own controller (KRaft), of one node."""

import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from velocity.runners.stack_errors import ServerFailed
from velocity.runners.stack_java import Jdk
from velocity.runners.stack_ports import HOST
from velocity.runners.stack_server import Server

PORTS: Final = {"kafka": 9092, "kafka-controller": 0}

LOG4J: Final = """\
status = warn
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1.} - %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


def server_properties(*, port: int, controller_port: int, data: Path) -> str:
    """The broker's configuration.

    Source: Kafka's documentation, "KRaft: combined mode" and "Broker configs". One broker holds
    the only replica of all, so the internal topics cannot ask for three.
    """
    return "\n".join(
        [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@{HOST}:{controller_port}",
            f"listeners=PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
            f"advertised.listeners=PLAINTEXT://{HOST}:{port}",
            "controller.listener.names=CONTROLLER",
            "inter.broker.listener.name=PLAINTEXT",
            f"log.dirs={data}",
            "num.partitions=4",
            # Simulated events bear times of months ago: retention by time would delete them at once.
            "log.retention.ms=-1",
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=8",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=8",
            "share.coordinator.state.topic.replication.factor=1",
            "share.coordinator.state.topic.min.isr=1",
            # A laptop has one consumer of a group, and no others to wait for.
            "group.initial.rebalance.delay.ms=0",
            "",
        ]
    )


class KafkaBroker(Server):
    """The broker; ``bootstrap.servers`` is 127.0.0.1 and its port."""

    def __init__(
        self, folder: Path, *, jars: Path, jdk: Jdk, port: int, controller_port: int
    ) -> None:
        super().__init__("kafka", folder)
        self._jars = jars
        self._jdk = jdk
        self._port = port
        self._controller_port = controller_port

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _log4j(self) -> Path:
        return self.folder / "log4j2.properties"

    def prepare(self) -> None:
        self._log4j.write_text(LOG4J)
        self._properties.write_text(
            server_properties(
                port=self._port, controller_port=self._controller_port, data=self.data
            )
        )
        if (self.data / "meta.properties").exists():
            return
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        formatted = subprocess.run(
            [
                *self._java("256m"),
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster}",  # in one word: an id may begin with a dash
                "--config",
                self._properties,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if formatted.returncode != 0:
            raise ServerFailed(f"Kafka cannot format {self.data}: {formatted.stderr.strip()}")

    def command(self) -> Sequence[str | Path]:
        return [*self._java("512m"), "kafka.Kafka", self._properties]

    def _java(self, heap: str) -> list[str | Path]:
        return [
            self._jdk.java,
            f"-Xmx{heap}",
            "-XX:+UseSerialGC",
            f"-Dlog4j2.configurationFile={self._log4j}",
            "-cp",
            f"{self._jars}/*",
        ]

    def healthy(self) -> bool:
        lines = (self.data / "meta.properties").read_text().splitlines()
        ids = [line.partition("=")[2] for line in lines if line.startswith("cluster.id=")]
        # of a folder without an id no broker is ours, and Kafka ends with what is wrong with it
        return bool(ids) and answers(self._port, ids[0])


def answers(port: int, cluster: str | None = None) -> bool:
    """Whether a broker on this port answers a client, of this cluster's id if one is given.

    Another's broker, which took the port at the same moment, is not ours.
    """
    client = AdminClient(
        {"bootstrap.servers": f"{HOST}:{port}", "socket.timeout.ms": 1000, "log_level": 0}
    )
    try:
        found = client.list_topics(timeout=1.0)
        return bool(found.brokers) and cluster in (None, found.cluster_id)
    except KafkaException:
        return False
