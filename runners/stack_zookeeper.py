"""The ZooKeeper by which a JobManager finds its jobs again: the one within Flink's own package."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from velocity.runners.stack_java import Jdk
from velocity.runners.stack_ports import HOST
from velocity.runners.stack_server import Server

TICK: Final = 2000
SESSION: Final = 20 * TICK
"""Milliseconds; ZooKeeper grants sessions of 2 to 20 ticks."""


def zoo_cfg(*, port: int, data: Path) -> str:
    """The configuration of a single server.

    Source: ZooKeeper Administrator's Guide, "Configuration Parameters".
    """
    return "\n".join(
        [
            f"tickTime={TICK}",
            f"dataDir={data}",
            f"clientPort={port}",
            f"clientPortAddress={HOST}",
            "maxClientCnxns=0",  # all of Flink comes from one address
            "admin.enableServer=false",  # it would listen on all interfaces
            "4lw.commands.whitelist=ruok",
            "autopurge.snapRetainCount=3",
            "autopurge.purgeInterval=1",
            "",
        ]
    )


class ZooKeeper(Server):
    """One ZooKeeper server; it lives with Flink's data, so that ``--fresh`` forgets both."""

    def __init__(self, folder: Path, *, jars: Path, jdk: Jdk, port: int, log4j: str) -> None:
        super().__init__("zookeeper", folder)
        self._jars = jars
        self._jdk = jdk
        self._port = port
        self._log4j = log4j

    @property
    def _conf(self) -> Path:
        return self.folder / "conf" / self.name

    def prepare(self) -> None:
        self._conf.mkdir(parents=True, exist_ok=True)
        (self._conf / "log4j2.properties").write_text(self._log4j)
        data = self.folder / "data" / "zookeeper"
        (self._conf / "zoo.cfg").write_text(zoo_cfg(port=self._port, data=data))

    def command(self) -> Sequence[str | Path]:
        return [
            self._jdk.java,
            "-Xmx128m",
            "-XX:+UseSerialGC",
            # Never takes away the empty folder of an election, without which none begins (CURATOR-724).
            f"-Dznode.container.checkIntervalMs={2**31 - 1}",
            f"-Dlog4j.configurationFile={self._conf}/log4j2.properties",
            "-cp",
            f"{self._jars}/*",
            "org.apache.flink.shaded.zookeeper3.org.apache.zookeeper.server.quorum.QuorumPeerMain",
            self._conf / "zoo.cfg",
        ]

    def healthy(self) -> bool:
        return is_ok(self._port)


def is_ok(port: int) -> bool:
    """Whether a ZooKeeper on this port says that it serves."""
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(b"ruok")
            return connection.recv(4) == b"imok"
    except OSError:
        return False
