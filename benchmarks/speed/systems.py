"""The systems that are compared: how each is started, and with which Python."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent / "systems"


@dataclass(frozen=True)
class Place:
    """Where a system finds what it reads and writes."""

    kafka: str
    topic: str
    rest: str
    elasticsearch: str
    index: str
    folder: Path
    archive: Path
    workers: int
    job: Path = HERE / "velocity.yaml"
    """Velocity's."""
    span: tuple[str, str] = ("", "")
    """From when to when the events' windows are, for a replay."""

    def arguments(self) -> list[str]:
        return [
            "--kafka", self.kafka, "--topic", self.topic, "--rest", self.rest, "--elasticsearch", self.elasticsearch,
            "--index", self.index, "--workers", str(self.workers),
        ]  # fmt: skip

    def environment(self) -> Mapping[str, str]:
        return {
            "KAFKA": self.kafka, "TOPIC": self.topic, "REST": self.rest, "ELASTICSEARCH": self.elasticsearch,
            "INDEX": self.index, "FOLDER": str(self.folder), "ARCHIVE": str(self.archive),
        }  # fmt: skip


@dataclass(frozen=True)
class System:
    name: str
    about: str
    script: str = ""
    """Of ``systems/``; without, it is Velocity."""
    options: tuple[str, ...] = ()
    """Of ``velocity``: its command, and what follows the job."""
    replays: bool = False
    """It reads an archive and not the topic, and asks no service: its clock runs from its start."""

    @property
    def stem(self) -> str:
        """Of its script; ``environments`` knows its Python by that."""
        return Path(self.script).stem

    def command(self, place: Place, python: Path) -> list[str]:
        if self.script:
            return [str(python), str(HERE / self.script), *place.arguments()]
        velocity = str(Path(sys.executable).with_name("velocity"))
        command, *options = self.options
        given = {
            "WORKERS": str(place.workers),
            "FROM": place.span[0],
            "TO": place.span[1],
            "STATE": str(place.folder / "state"),
        }
        return [
            velocity,
            command,
            str(place.job),
            *(given.get(option, option) for option in options),
        ]


SYSTEMS = {
    system.name: system
    for system in (
        System("floor", "bare loop: confluent-kafka, orjson, dicts", "floor.py"),
        System(
            "flink",
            "Velocity on Flink",
            options=("run", "--runner", "flink", "--flink-master", "local", "--parallelism", "2", "--sdk-worker-parallelism", "WORKERS"),
        ),
        System("direct", "Velocity on the DirectRunner", options=("run", "--runner", "direct")),
        System("prism", "Velocity on Prism", options=("run", "--runner", "prism")),
        System(
            "replay",
            "Velocity, a replay of the archive on the DirectRunner",
            options=("replay", "--from", "FROM", "--to", "TO", "--source", "archive", "--workers", "WORKERS", "--part", "all", "--state", "STATE"),
            replays=True,
        ),
        System("bytewax", "Bytewax", "bytewax_flow.py"),
        System("pyflink", "PyFlink", "pyflink_job.py"),
        System("quix", "Quix Streams", "quix_app.py"),
        System("pathway", "Pathway", "pathway_app.py"),
        System("beam", "Beam, cross-language KafkaIO, element by element", "beam_naive.py"),
    )
}  # fmt: skip
