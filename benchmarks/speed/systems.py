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
    workers: int

    def arguments(self) -> list[str]:
        return [
            "--kafka", self.kafka, "--topic", self.topic, "--rest", self.rest, "--elasticsearch", self.elasticsearch,
            "--index", self.index, "--workers", str(self.workers),
        ]  # fmt: skip

    def environment(self) -> Mapping[str, str]:
        return {
            "KAFKA": self.kafka, "TOPIC": self.topic, "REST": self.rest, "ELASTICSEARCH": self.elasticsearch,
            "INDEX": self.index, "FOLDER": str(self.folder),
        }  # fmt: skip


@dataclass(frozen=True)
class System:
    name: str
    about: str
    script: str = ""
    """Of ``systems/``; without, it is Velocity."""
    options: tuple[str, ...] = ()
    """Of ``velocity run``."""

    @property
    def stem(self) -> str:
        """Of its script; ``environments`` knows its Python by that."""
        return Path(self.script).stem

    def command(self, place: Place, python: Path) -> list[str]:
        if self.script:
            return [str(python), str(HERE / self.script), *place.arguments()]
        velocity = str(Path(sys.executable).with_name("velocity"))
        parallel = [o.replace("WORKERS", str(place.workers)) for o in self.options]
        return [velocity, "run", str(HERE / "velocity.yaml"), *parallel]


SYSTEMS = {
    system.name: system
    for system in (
        System("floor", "bare loop: confluent-kafka, orjson, dicts", "floor.py"),
        System(
            "flink",
            "Velocity on Flink",
            options=("--runner", "flink", "--flink-master", "local", "--parallelism", "2", "--sdk-worker-parallelism", "WORKERS"),
        ),
        System("direct", "Velocity on the DirectRunner", options=("--runner", "direct")),
        System("prism", "Velocity on Prism", options=("--runner", "prism")),
        System("bytewax", "Bytewax", "bytewax_flow.py"),
        System("pyflink", "PyFlink", "pyflink_job.py"),
        System("quix", "Quix Streams", "quix_app.py"),
        System("pathway", "Pathway", "pathway_app.py"),
        System("beam", "Beam, cross-language KafkaIO, element by element", "beam_naive.py"),
    )
}  # fmt: skip
