"""What the stack is made of: from wishes and this machine's JDKs to servers ready to start."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from velocity.runners import (
    stack_elasticsearch,
    stack_flink,
    stack_kafka,
    stack_packages,
    stack_zookeeper,
)
from velocity.runners.stack_errors import MissingTool, StackError
from velocity.runners.stack_java import Jdk, choose_jdk, need_jdk, need_maven
from velocity.runners.stack_packages import Progress, Tools
from velocity.runners.stack_ports import HOST
from velocity.runners.stack_server import Component, Server
from velocity.runners.stack_state import ComponentRecord

NAMES: Final = ("kafka", "elasticsearch", "flink")

PORTS: Final[Mapping[str, Mapping[str, int]]] = {
    "kafka": stack_kafka.PORTS,
    "elasticsearch": stack_elasticsearch.PORTS,
    "flink": stack_flink.PORTS,
}
"""By component, each port's name and its usual number."""


SETTINGS: Final[Mapping[str, frozenset[str]]] = {
    "kafka": frozenset(),
    "elasticsearch": frozenset({"elasticsearch"}),
    "flink": frozenset({"task_managers", "slots", "state_backend", "ha", "prometheus"}),
}
"""By component, which of the ``Settings`` are its own."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the servers shall be, beside their ports."""

    task_managers: int = 1
    slots: int = 4
    """Of each TaskManager: how many parallel tasks it takes."""
    state_backend: str = "hashmap"
    elasticsearch: int | None = None
    """Major version; None takes 9 where there is a JDK 21, else 8."""
    ha: bool = False
    """Whether Flink's jobs outlive their JobManager."""
    prometheus: bool = False
    """Whether Flink's own reporter tells its figures to Prometheus; it listens on all interfaces."""

    def __post_init__(self) -> None:
        if self.task_managers < 1 or self.slots < 1:
            raise StackError("task_managers and slots must be 1 or more.")
        if self.state_backend not in stack_flink.STATE_BACKENDS:
            known = " or ".join(stack_flink.STATE_BACKENDS)
            raise StackError(f"state_backend is {self.state_backend!r}: give {known}.")
        versions = stack_packages.ELASTICSEARCH_VERSIONS
        if self.elasticsearch is not None and self.elasticsearch not in versions:
            known = " or ".join(map(str, versions))
            raise StackError(f"elasticsearch is {self.elasticsearch}: give {known}.")


def check_kept(record: ComponentRecord, settings: Settings, asked: Collection[str]) -> None:
    """Raises ``StackError`` if what was brought up is not as ``asked``: settings by name."""
    kept = Settings(**record.settings)
    for name in sorted(SETTINGS[record.name] & set(asked)):
        has, wanted = getattr(kept, name), getattr(settings, name)
        if has != wanted:
            raise StackError(
                f"{record.name} was brought up with {name.replace('_', '-')} {has}, not {wanted}:"
                f" take it down first, velocity stack down {record.name}"
            )


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has to run servers with."""

    jdks: Sequence[Jdk]
    cache: Path
    maven: Callable[[], str] = need_maven
    has_pip: Callable[[], bool] = stack_packages.has_pip

    def jdk(self, component: str, elasticsearch: int | None = None) -> Jdk:
        """The JDK for a component; raises ``MissingTool`` where there is none."""
        if component == "kafka":
            return need_jdk(self.jdks, user="Kafka", oldest=17, best=17)
        if component == "flink":
            return need_jdk(self.jdks, user="Flink 1.19", oldest=11, newest=21, best=17)
        if elasticsearch == 9:
            return need_jdk(self.jdks, user="Elasticsearch 9", oldest=21, best=21)
        return need_jdk(self.jdks, user="Elasticsearch 8.19", oldest=17, best=17)

    def elasticsearch(self, wanted: int | None) -> int:
        """The major version to run: the wanted one, else the newest that a JDK is there for."""
        if wanted is not None:
            return wanted
        return 9 if choose_jdk(self.jdks, oldest=21, best=21) else 8

    def check(self, names: Sequence[str], settings: Settings) -> None:
        """Raises one ``MissingTool`` that names all that is missing for these components."""
        problems = []
        for name in names:
            try:
                self.jdk(name, self.elasticsearch(settings.elasticsearch))
            except MissingTool as error:
                problems.append(str(error))
        lacking = [name for name in names if not any(self.cache.glob(f"{name}-*"))]
        if {"kafka", "elasticsearch"} & set(lacking):
            try:
                self.maven()
            except MissingTool as error:
                problems.append(str(error))
        if "flink" in lacking and not self.has_pip():
            problems.append("Flink is fetched by pip, which is missing: python -m ensurepip")
        if problems:
            raise MissingTool("\n".join(problems))


def component(
    name: str,
    *,
    ports: Mapping[str, int],
    settings: Settings,
    machine: Machine,
    folder: Path,
    progress: Progress,
) -> Component:
    """A component ready to start; its package is fetched if the cache lacks it."""
    servers: tuple[Server, ...]
    if name == "kafka":
        jdk = machine.jdk(name)
        jars = stack_packages.kafka(machine.cache, _tools(machine, jdk), progress)
        home = folder / "kafka"
        servers = (
            stack_kafka.KafkaBroker(
                home,
                jars=jars,
                jdk=jdk,
                port=ports["kafka"],
                controller_port=ports["kafka-controller"],
            ),
        )
        version = stack_packages.KAFKA_VERSION
        addresses = {"kafka": f"{HOST}:{ports['kafka']}"}
    elif name == "elasticsearch":
        major = machine.elasticsearch(settings.elasticsearch)
        settings = replace(settings, elasticsearch=major)  # started again, it is the same one
        jdk = machine.jdk(name, major)
        tools = _tools(machine, jdk)
        package = stack_packages.elasticsearch(major, machine.cache, tools, progress)
        home = folder / f"elasticsearch-{major}"  # one version cannot read a newer one's data
        servers = (
            stack_elasticsearch.ElasticsearchNode(
                home,
                package=package,
                jdk=jdk,
                port=ports["elasticsearch"],
                transport_port=ports["elasticsearch-transport"],
            ),
        )
        version = stack_packages.ELASTICSEARCH_VERSIONS[major]
        addresses = {"elasticsearch": f"http://{HOST}:{ports['elasticsearch']}"}
    else:
        jdk = machine.jdk(name)
        jars = stack_packages.flink(machine.cache, progress)
        home = folder / "flink"
        servers = _cluster(home, jars, jdk, ports, settings)
        version = stack_packages.FLINK_VERSION
        addresses = {
            "flink": f"http://{HOST}:{ports['flink']}",
            "workers": f"{HOST}:{ports['workers']}",
            "workers-metrics": f"http://{HOST}:{ports['workers-metrics']}/metrics",
            **_reporters(ports, settings),
        }
    record = ComponentRecord(name, version, dict(ports), asdict(settings), addresses)
    return Component(record, servers, home / "data")


def _reporters(ports: Mapping[str, int], settings: Settings) -> dict[str, str]:
    """Where each process of Flink tells its figures."""
    names = ["jobmanager", *(f"taskmanager-{n}" for n in range(1, settings.task_managers + 1))]
    return {
        f"{name}-metrics": f"http://{HOST}:{stack_flink.metrics_port(ports, n)}/metrics"
        for n, name in enumerate(names if settings.prometheus else [])
    }


def _tools(machine: Machine, jdk: Jdk) -> Tools:
    return Tools(maven=machine.maven, jdk=lambda: jdk)


def _cluster(
    folder: Path, jars: Path, jdk: Jdk, ports: Mapping[str, int], settings: Settings
) -> tuple[Server, ...]:
    configuration = stack_flink.configuration(
        ports=ports,
        data=folder / "data",
        temporary=folder / "tmp",
        slots=settings.slots,
        state_backend=settings.state_backend,
        ha=settings.ha,
        prometheus=settings.prometheus,
    )

    def reporter(process: int) -> int | None:
        return stack_flink.metrics_port(ports, process) if settings.prometheus else None

    zookeeper = (
        [
            stack_zookeeper.ZooKeeper(
                folder, jars=jars, jdk=jdk, port=ports["zookeeper"], log4j=stack_flink.LOG4J
            )
        ]
        if settings.ha
        else []
    )
    return (
        *zookeeper,
        stack_flink.JobManager(
            "jobmanager",
            folder,
            jars=jars,
            jdk=jdk,
            configuration=configuration,
            metrics=reporter(0),
        ),
        *(
            stack_flink.TaskManager(
                f"taskmanager-{n}",
                folder,
                jars=jars,
                jdk=jdk,
                configuration=configuration,
                metrics=reporter(n),
            )
            for n in range(1, settings.task_managers + 1)
        ),
        stack_flink.WorkerPool(folder, port=ports["workers"], metrics=ports["workers-metrics"]),
    )


def healthy(record: ComponentRecord, server: str) -> bool:
    """Whether a server of a recorded component answers now."""
    if record.name == "kafka":
        return stack_kafka.answers(record.ports["kafka"])
    if record.name == "elasticsearch":
        return stack_elasticsearch.answers(record.ports["elasticsearch"])
    if server == "zookeeper":
        return stack_zookeeper.is_ok(record.ports["zookeeper"])
    if server == "workers":
        return stack_flink.listens(record.ports["workers"])
    if server == "jobmanager":
        return stack_flink.manages(record.addresses["flink"])
    return stack_flink.has_task_manager(record.addresses["flink"], server)
