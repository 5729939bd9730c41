"""``docker-compose.yaml`` brings up what ``velocity stack`` does."""

from pathlib import Path
from typing import Any

import apache_beam
import pytest
import yaml
from typer.main import get_command

from velocity.runners.cli import app
from velocity.runners.stack_kafka import server_properties
from velocity.runners.stack_packages import ELASTICSEARCH_VERSIONS, FLINK_VERSION, KAFKA_VERSION

SERVICES: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent.parent / "docker-compose.yaml").read_text()
)["services"]


@pytest.mark.parametrize(
    ("service", "image"),
    [
        ("kafka", f"apache/kafka:{KAFKA_VERSION}"),
        ("elasticsearch", f"elasticsearch:{ELASTICSEARCH_VERSIONS[9]}"),
        ("kibana", f"kibana:{ELASTICSEARCH_VERSIONS[9]}"),
        ("jobmanager", f"flink:{FLINK_VERSION}-java17"),
        ("taskmanager", f"flink:{FLINK_VERSION}-java17"),
    ],
)
def test_the_versions_are_those_of_the_stack(service: str, image: str) -> None:
    assert SERVICES[service]["image"] == image


def test_workers_run_the_beam_that_submits() -> None:
    [first, *_] = SERVICES["workers"]["build"]["dockerfile_inline"].splitlines()
    assert first == f"FROM apache/beam_python3.11_sdk:{apache_beam.__version__}"


def test_workers_are_where_flink_asks_for_them() -> None:
    workers = SERVICES["workers"]
    assert workers["network_mode"] == "service:taskmanager"  # the pool listens on 127.0.0.1 alone
    command, subcommand = workers["entrypoint"]
    assert command == "velocity"
    assert subcommand in get_command(app).commands  # type: ignore[attr-defined]


def test_kafka_keeps_simulated_events_as_the_stacks_does() -> None:
    text = server_properties(port=1, controller_port=2, data=Path("/d"))
    stack = dict(line.split("=", 1) for line in text.splitlines())
    for name in ("log.retention.ms", "num.partitions"):
        variable = f"KAFKA_{name.upper().replace('.', '_')}"
        assert SERVICES["kafka"]["environment"][variable] == stack[name]


def test_every_port_is_open_on_the_loopback_interface_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
