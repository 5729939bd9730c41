"""The commands tell what is wrong in one message and an exit code, never in a traceback."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from velocity.runners import stack_errors
from velocity.runners.stack_cli import stack_app
from velocity.runners.stack_process import ProcessId
from velocity.runners.stack_state import (
    FILE,
    ComponentRecord,
    ServerRecord,
    StackState,
    read_state,
    write_state,
)


@pytest.fixture
def run(tmp_path: Path) -> CliRunner:
    return CliRunner(env={"VELOCITY_STATE": str(tmp_path), "VELOCITY_CACHE": str(tmp_path)})


def ended_kafka(folder: Path) -> ComponentRecord:
    log = folder / "kafka.log"
    log.write_text("one\ntwo\nthree\n")
    gone = ServerRecord("kafka", ProcessId(2**22 + 1, "never"), log, "run-1")
    return ComponentRecord(
        "kafka", "4.1.1", {"kafka": 9}, {}, {"kafka": "127.0.0.1:9"}, servers=(gone,)
    )


def test_nothing_up_is_said_and_is_code_1(run: CliRunner) -> None:
    result = run.invoke(stack_app, ["status"])
    assert result.exit_code == 1
    assert "velocity stack up" in result.output


def test_a_server_that_ended_is_shown_as_such(run: CliRunner, tmp_path: Path) -> None:
    write_state(tmp_path, StackState().having(ended_kafka(tmp_path)))
    result = run.invoke(stack_app, ["status", "--json"])
    (component,) = json.loads(result.stdout)["components"]
    assert result.exit_code == 1
    assert component["healthy"] is False
    assert component["servers"][0]["pid"] is None


def test_the_end_of_logs_is_printed_for_the_names_given(run: CliRunner, tmp_path: Path) -> None:
    write_state(tmp_path, StackState().having(ended_kafka(tmp_path)))
    result = run.invoke(stack_app, ["logs", "kafka", "-n", "2", "--json"])
    assert json.loads(result.stdout) == {"kafka": "two\nthree"}
    assert run.invoke(stack_app, ["logs", "flink"]).exit_code == 1


def test_down_forgets_what_has_ended_and_keeps_its_data(run: CliRunner, tmp_path: Path) -> None:
    write_state(tmp_path, StackState().having(ended_kafka(tmp_path)))
    (tmp_path / "kafka" / "data").mkdir(parents=True)
    result = run.invoke(stack_app, ["down", "--json"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"ended": 0})
    assert read_state(tmp_path) == StackState()
    assert (tmp_path / "kafka" / "data").exists()


@pytest.mark.parametrize("arguments", [["up", "redis"], ["down", "redis"]])
def test_an_unknown_component_is_refused_with_the_known_ones(
    run: CliRunner, arguments: list[str]
) -> None:
    result = run.invoke(stack_app, arguments)
    assert result.exit_code == 1
    assert "'redis' is no component: give kafka, elasticsearch, flink" in result.stderr


@pytest.mark.parametrize("port", ["9092", "redis=1", "kafka=x", "kafka=0", "kafka=70000"])
def test_a_wrong_port_is_wrong_usage(run: CliRunner, port: str) -> None:
    result = run.invoke(stack_app, ["up", "kafka", "--port", port])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_errors_are_json_for_other_programs(run: CliRunner, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    result = run.invoke(stack_app, ["down", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "StackError"


def test_every_kind_of_error_has_its_own_exit_code() -> None:
    kinds = stack_errors.StackError.__subclasses__()
    codes = [kind.exit_code for kind in kinds]
    assert len(kinds) == 5
    assert len(set(codes)) == 5
    assert not {0, 1, 2} & set(codes)


@pytest.mark.parametrize("command", ["up", "status", "logs", "down"])
def test_help_names_an_example_and_the_exit_codes(run: CliRunner, command: str) -> None:
    text = " ".join(run.invoke(stack_app, [command, "--help"]).output.split())
    assert "Example" in text
    assert "130 Ctrl-C" in text
