"""What is known of a running stack: one JSON file in the state folder, and the lock on it."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from velocity.runners.stack_errors import Busy, StackError
from velocity.runners.stack_process import ProcessId

FILE: Final = "stack.json"
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A server process that was started."""

    name: str
    process: ProcessId
    log: Path
    run: str
    """Which call of ``up`` started it."""


@dataclass(frozen=True, slots=True)
class ComponentRecord:
    """Kafka, Elasticsearch or Flink, as it was started.

    ``ports`` and ``settings`` are all that is needed to start it again in the same way;
    ``addresses`` are what clients need.
    """

    name: str
    version: str
    ports: Mapping[str, int]
    settings: Mapping[str, Any]
    addresses: Mapping[str, str]
    servers: tuple[ServerRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class StackState:
    """All components that were started and not taken down.

    >>> StackState().address("kafka") is None
    True
    """

    components: Mapping[str, ComponentRecord] = field(default_factory=dict)

    def address(self, name: str) -> str | None:
        """Where to reach ``kafka`` (host:port), ``elasticsearch`` (URL), ``flink`` (URL of its
        REST interface) or ``workers`` (host:port of the Python worker pool); None if down."""
        for component in self.components.values():
            if name in component.addresses:
                return component.addresses[name]
        return None

    def having(self, component: ComponentRecord) -> "StackState":
        return StackState({**self.components, component.name: component})

    def without(self, name: str) -> "StackState":
        return StackState({k: v for k, v in self.components.items() if k != name})


def read_state(folder: Path) -> StackState:
    """The recorded state; empty if there is no file.

    Raises ``StackError`` for a file that cannot be understood.
    """
    file = folder / FILE
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return StackState()
    except json.JSONDecodeError as error:
        raise StackError(f"{file} is no JSON ({error}): {_remedy(file)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StackError(f"{file} is not of format {FORMAT}: {_remedy(file)}")
    try:
        return StackState({c["name"]: _component(c) for c in content["components"]})
    except (KeyError, TypeError) as error:
        raise StackError(f"{file} lacks {error}: {_remedy(file)}") from error


def keeps_port(folder: Path, port: int) -> bool:
    """Whether the stack of this state folder has the port for a server, be it alive or not."""
    try:
        components = read_state(folder).components.values()
    except StackError:  # its owner will be told, when they use it
        return False
    return any(port in component.ports.values() for component in components)


def _remedy(file: Path) -> str:
    return f"delete it; `velocity stack down` finds what still runs without it ({file.name})"


def _component(content: Mapping[str, Any]) -> ComponentRecord:
    servers = tuple(
        ServerRecord(s["name"], ProcessId(s["pid"], s["started"]), Path(s["log"]), s["run"])
        for s in content["servers"]
    )
    return ComponentRecord(**{**content, "servers": servers})


def write_state(folder: Path, state: StackState) -> None:
    """Replaces the file whole, so that a reader never sees a half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "components": [_plain(component) for component in state.components.values()],
    }
    draft = folder / f"{FILE}.{os.getpid()}"
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(folder / FILE)


def _plain(component: ComponentRecord) -> dict[str, Any]:
    servers = [
        {
            "name": server.name,
            "pid": server.process.pid,
            "started": server.process.started,
            "log": str(server.log),
            "run": server.run,
        }
        for server in component.servers
    ]
    return {**asdict(replace(component, servers=())), "servers": servers}


@contextmanager
def locked(
    folder: Path,
    *,
    wait: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Holds the stack's lock, which the system frees when its holder dies.

    Raises ``Busy`` if another command holds it longer than ``wait`` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        deadline = clock() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock() >= deadline:
                    raise Busy(
                        f"Another velocity stack command works on {folder}: wait for it to end,"
                        " or end it."
                    ) from None
                sleep(0.1)
        yield
