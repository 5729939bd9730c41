"""Laws that hold for each command of ``velocity``, found by walking its tree."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from velocity.pipelines.reference import EXAMPLE
from velocity.runners.cli import app
from velocity.runners.exit_codes import MEANINGS, codes

ENVIRONMENT = {
    "KAFKA": "127.0.0.1:9",
    "PROVIDERS": "http://127.0.0.1:9",
    "ELASTICSEARCH": "http://127.0.0.1:9",
    "KIBANA_API_KEY": None,
}


def commands(
    command: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands and groups of commands, each with the words that call it."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, below in sorted(getattr(command, "commands", {}).items()):
        yield from commands(below, (*path, name))


LEAVES = {path: command for path, command in commands() if not hasattr(command, "commands")}
GROUPS = {path: command for path, command in commands() if hasattr(command, "commands")}
ALL = [*GROUPS, *LEAVES]


def run(*arguments: str | Path, env: Any = ENVIRONMENT) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env=env)


def flat(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_the_tree_is_walked() -> None:
    assert ("dead-letters", "replay") in LEAVES
    assert len(LEAVES) >= 30


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_help_has_a_sentence_examples_that_can_be_called_and_exit_codes(
    path: tuple[str, ...],
) -> None:
    command = LEAVES[path]
    assert command.help and command.help.split("\n")[0].endswith("."), "a summary, as a sentence"
    examples = command.epilog.partition("Example")[2]
    assert f"velocity {' '.join(path)}" in examples
    known = {option for parameter in command.params for option in parameter.opts}
    for example in examples.partition("Exit codes:")[0].partition(" More:")[0].split("·"):
        before_beam = example.strip().rstrip(".").partition(" -- ")[0].split()
        used = {word.partition("=")[0] for word in before_beam if word.startswith("--")}
        assert used <= known | {"--debug"}, example
    told = examples.partition("Exit codes: ")[2]
    for code in told.split(" · "):
        assert int(code.split()[0]) in MEANINGS
    shown = flat(run(*path, "--help").stdout)
    assert "Example" in shown
    assert "Exit codes: 0" in shown


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_each_option_and_argument_is_explained(path: tuple[str, ...]) -> None:
    for parameter in LEAVES[path].params:
        if parameter.name != "help":
            assert parameter.help or parameter.metavar, parameter.name


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_each_command_speaks_json(path: tuple[str, ...]) -> None:
    assert "--json" in {option for parameter in LEAVES[path].params for option in parameter.opts}


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "velocity")
def test_an_option_that_there_is_not_is_exit_code_2_without_a_traceback(
    path: tuple[str, ...],
) -> None:
    done = run(*path, "--no-such-option")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "No such option" in flat(done.stderr)
    assert "Traceback" not in done.output


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: " ".join(path) or "velocity")
def test_a_command_that_there_is_not_is_exit_code_2(path: tuple[str, ...]) -> None:
    assert run(*path, "nosuch").exit_code == 2


OF_JOBS = [
    path
    for path, command in LEAVES.items()
    if any("JOB" in str(parameter.metavar) for parameter in command.params)
    and path not in {("simulate",)}
]
"""Those that take a job file."""
MORE = {
    ("replay",): ("--from", "2026-01-01T00:00:00Z", "--to", "2026-01-02T00:00:00Z"),
    ("alias", "swap"): ("new-",),
    ("alias", "rollback"): ("new-",),
    ("dead-letters", "show"): ("events/0/0#1",),
    ("archive", "expire"): ("--older-than", "9d"),
    ("archive", "ddl"): ("--athena",),
}
"""What else they take."""


def with_job(path: tuple[str, ...], job: Path) -> list[str | Path]:
    if path == ("trace",):
        return ["trace", "e1", "--job", job]
    return [*path, job, *MORE.get(path, ())]


def test_commands_of_jobs_are_found() -> None:
    assert len(OF_JOBS) >= 16


@pytest.mark.parametrize("path", OF_JOBS, ids=" ".join)
def test_a_file_that_is_not_there_is_exit_code_1_and_named(
    path: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(*with_job(path, tmp_path / "none.yaml"))
    assert done.exit_code == 1
    assert "none.yaml" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("path", OF_JOBS, ids=" ".join)
def test_an_unknown_key_is_exit_code_1_and_named_in_json_too(
    path: tuple[str, ...], tmp_path: Path
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(EXAMPLE.replace("metrics:", "metric:"), "utf-8")
    done = run(*with_job(path, job))
    assert done.exit_code == 1
    assert "metric: unknown key; did you mean metrics?" in done.output
    assert "Traceback" not in done.output
    extra = ("--out", str(tmp_path / "out")) if path == ("dashboards", "kibana") else ()
    told = run(*with_job(path, job), *extra, "--json")
    assert told.exit_code == 1
    assert "did you mean metrics?" in json.dumps(json.loads(told.stdout))


HERE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("validate",): ("JOB",),
    ("plan",): ("JOB",),
    ("schema",): (),
    ("setup",): ("JOB", "--dry-run"),
    ("dashboards", "grafana"): ("JOB",),
    ("dashboards", "kibana"): ("JOB", "--out", "FOLDER/kibana.ndjson"),
    ("dashboards", "operations"): ("FOLDER/operations",),
    ("archive", "list"): ("JOB",),
    ("archive", "compact"): ("JOB",),
    ("archive", "expire"): ("JOB", "--older-than", "9d"),
    ("archive", "ddl"): ("JOB", "--athena"),
    ("dead-letters", "list"): ("JOB", "--dead-letters", "FOLDER"),
    ("dead-letters", "stats"): ("JOB", "--dead-letters", "FOLDER"),
    ("stack", "status"): (),
    ("stack", "down"): (),
}
"""What can be called with nothing outside, and how; the others' output is read by tests of their own."""


@pytest.mark.parametrize("path", HERE, ids=" ".join)
def test_what_json_prints_is_one_object(path: tuple[str, ...], tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"{EXAMPLE}\narchive: {{path: {tmp_path}/archive}}\n", "utf-8")
    arguments = [
        word.replace("JOB", str(job)).replace("FOLDER", str(tmp_path)) for word in HERE[path]
    ]
    state = {"VELOCITY_STATE": str(tmp_path / "state")}
    done = run(*path, *arguments, "--json", env=ENVIRONMENT | state)
    assert isinstance(json.loads(done.stdout), dict), done.output
    assert done.exit_code in (0, 1)
    assert "\x1b" not in done.output


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "velocity")
def test_no_colour_goes_where_it_is_not_wanted(path: tuple[str, ...]) -> None:
    """Into a pipe, as here; a terminal with NO_COLOR is a matter of the libraries."""
    assert "\x1b" not in run(*path, "--help", env={"NO_COLOR": "1"}).output


def test_codes_are_those_of_one_table() -> None:
    assert codes(7, _1="it fails").startswith(
        "Exit codes: 0 done · 1 it fails · 2 wrong usage · 7 "
    )
    with pytest.raises(KeyError):
        codes(99)


@pytest.mark.parametrize(
    ("words", "wanted"), [("velocity jo", "jobs"), ("velocity dead-letters s", "stats")]
)
def test_the_shell_completes_commands(words: str, wanted: str) -> None:
    code = "import sys; sys.argv = ['velocity']; from velocity.runners.cli import main; main()"
    completing = {
        "_VELOCITY_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **completing},
        capture_output=True,
        text=True,
        check=False,
    )
    assert wanted in done.stdout.split()


def test_a_script_for_the_shell_can_be_shown() -> None:
    assert "--show-completion" in flat(run("--help").stdout)
