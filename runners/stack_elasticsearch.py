"""One Elasticsearch node, run by our own small main class from the published jars."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import urllib3

from velocity.runners.stack_java import Jdk
from velocity.runners.stack_ports import HOST
from velocity.runners.stack_server import Server

PORTS: Final = {"elasticsearch": 9200, "elasticsearch-transport": 0}


class ElasticsearchNode(Server):
    """The node; its URL is ``http://127.0.0.1:PORT``, without TLS and passwords.

    ``package`` is a folder of ``lib/`` and ``modules/``, as ``stack_packages`` lays it out.
    """

    def __init__(
        self, folder: Path, *, package: Path, jdk: Jdk, port: int, transport_port: int
    ) -> None:
        super().__init__("elasticsearch", folder)
        self._package = package
        self._jdk = jdk
        self._port = port
        self._transport_port = transport_port

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def prepare(self) -> None:
        # The node reads modules below its home, and ours must not be those of another version.
        modules = self.folder / "modules"
        shutil.rmtree(modules, ignore_errors=True)
        shutil.copytree(self._package / "modules", modules)

    def command(self) -> Sequence[str | Path]:
        return [
            self._jdk.java,
            "-Xms512m",
            "-Xmx1g",
            "-XX:+UseSerialGC",
            *self._options_of_newer_jdks(),
            # Native code is in the distribution only; Java takes its place.
            f"-Des.nativelibs.path={self._package}/native",
            "-Dorg.elasticsearch.nativeaccess.enableVectorLibrary=false",
            "-cp",
            f"{self._package}/lib/*",
            "velocity.elasticsearch.Server",
            self.folder,
            f"http.port={self._port}",
            f"transport.port={self._transport_port}",
        ]

    def _options_of_newer_jdks(self) -> list[str]:
        options = []
        if self._jdk.feature >= 19:
            # The JVM writes the classes it loaded at its first end: later starts are faster.
            options += [
                "-XX:+AutoCreateSharedArchive",
                f"-XX:SharedArchiveFile={self.folder}/classes-{self._jdk.feature}.jsa",
                "-Xlog:cds=off",
            ]
        if self._jdk.feature >= 22:
            options.append("--enable-native-access=ALL-UNNAMED")
        if self._jdk.feature >= 23:
            options.append("--sun-misc-unsafe-memory-access=allow")
        return options

    def healthy(self) -> bool:
        return answers(self._port)


def answers(port: int) -> bool:
    """Whether a node on this port has all its primary shards."""
    url = f"http://{HOST}:{port}/_cluster/health?wait_for_status=yellow&timeout=1s"
    try:
        answer = urllib3.request("GET", url, timeout=3.0, retries=False)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status == 200
