"""What the servers of a stack do now, as the system and the servers themselves tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from velocity.runners.stack_components import healthy
from velocity.runners.stack_server import members
from velocity.runners.stack_state import ComponentRecord


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What a server process does now."""

    name: str
    pid: int | None
    """None if it has ended."""
    rss: int
    """Bytes of resident memory, with that of the processes it started."""
    healthy: bool
    log: Path


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """What a component does now."""

    name: str
    version: str
    addresses: Mapping[str, str]
    servers: tuple[ServerStatus, ...]

    @property
    def healthy(self) -> bool:
        return all(server.healthy for server in self.servers)


def component_status(record: ComponentRecord, stack: str) -> ComponentStatus:
    """Looks at each process of a component of the stack in a folder, and asks it for its health."""
    servers = []
    for server in record.servers:
        processes = members(server, stack)
        alive = any(process.id == server.process for process in processes)
        servers.append(
            ServerStatus(
                name=server.name,
                pid=server.process.pid if alive else None,
                rss=sum(process.rss for process in processes),
                healthy=alive and healthy(record, server.name),
                log=server.log,
            )
        )
    return ComponentStatus(record.name, record.version, record.addresses, tuple(servers))
