"""Laws of the command line."""

import errno
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from typer.testing import CliRunner, Result

from velocity.pipelines.domains import DOMAINS
from velocity.pipelines.graph import UnsetVariable
from velocity.pipelines.jobfile import load
from velocity.pipelines.reference import EXAMPLE, schema
from velocity.pipelines.simulator import Scenario
from velocity.runners.cli import app
from velocity.runners.embedded import EmbeddedKafka
from velocity.runners.produce import DeliveryError, Produced

ENVIRONMENT = {
    "KAFKA": "127.0.0.1:9092",
    "PROVIDERS": "http://127.0.0.1:8080",
    "ELASTICSEARCH": "http://127.0.0.1:9200",
}
UNSET = dict.fromkeys(ENVIRONMENT)
COMMANDS = ("validate", "schema", "plan", "simulate", "run", "demo")


def velocity(*arguments: str | Path, env: Any = ENVIRONMENT, **doers: Any) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env=env, obj=doers)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(EXAMPLE, "utf-8")
    return path


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.yaml"
    path.write_text(EXAMPLE.replace("by: [city]", "by: [town]"), "utf-8")
    return path


class Doer:
    """Stands for what a command would call: keeps what it is called with."""

    def __init__(self, answer: Any = 0) -> None:
        self.answer = answer
        self.called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.called.append((given, named))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


# -- all commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_exit_codes(command: str) -> None:
    result = velocity(command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert f"velocity {command}" in text.partition("Example")[2]
    assert "Exit codes: 0 done" in text


@pytest.mark.parametrize(
    "arguments", [["--help"], ["schema"], *([command, "--help"] for command in COMMANDS)]
)
def test_beam_is_not_imported_to_explain(arguments: list[str]) -> None:
    """It takes a second or more."""
    code = (
        "import sys; from velocity.runners.cli import app; "
        f"app({arguments}, standalone_mode=False); "
        "sys.exit('apache_beam' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("arguments", [["nosuch"], ["plan"], ["plan", "--nosuch"], ["validate"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert velocity(*arguments).exit_code == 2


def test_the_stack_has_its_commands() -> None:
    assert "up" in velocity("stack", "--help").stdout


def test_no_colour_goes_into_a_file(job: Path) -> None:
    for arguments in (["--help"], ["plan", job], ["validate", job]):
        assert "\x1b" not in velocity(*arguments).output


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DeliveryError("the broker is down"), "velocity simulate: the broker is down\n"),
        (KeyError("x"), "velocity simulate: KeyError: 'x'; this is a defect, and --debug"),
    ],
)
def test_an_error_is_a_line_on_stderr_and_a_traceback_only_with_debug(
    error: Exception, text: str
) -> None:
    result = velocity("simulate", produce=Doer(error))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(text)
    assert result.stderr.count("\n") == 1
    assert velocity("--debug", "simulate", produce=Doer(error)).exception is error


def test_a_reader_that_has_gone_is_no_error_to_tell_of() -> None:
    result = velocity("simulate", produce=Doer(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert (result.exit_code, result.output) == (1, "")


# -- validate, schema, plan -----------------------------------------------------------------------


def test_a_job_that_is_right_is_one_line(job: Path) -> None:
    result = velocity("validate", job)
    assert result.exit_code == 0
    assert result.stdout == (
        f"{job}: OK: 1 topic, 5 fields, 1 enrichment, 1 derived column, 1 metric\n"
    )


def test_each_problem_of_each_job_is_a_line(job: Path, wrong: Path, tmp_path: Path) -> None:
    result = velocity("validate", wrong, job, tmp_path / "none.yaml")
    assert result.exit_code == 1
    first, second, third = result.stdout.splitlines()
    assert first.startswith(f"{wrong}:23: metrics.0.by.0: unknown column town")
    assert second.startswith(f"{job}: OK")
    assert third == f"{tmp_path / 'none.yaml'}: can't be read: No such file or directory"


def test_what_a_variable_would_tell_is_a_note_and_no_failure(job: Path) -> None:
    result = velocity("validate", job, env=UNSET)
    assert result.exit_code == 0
    assert f"{job}:14: note: enrich.0.get: not checked: ${{PROVIDERS}} is not set" in result.stdout
    assert "OK" in result.stdout


def test_validate_for_programs_is_one_json_object(job: Path, wrong: Path) -> None:
    result = velocity("validate", "--json", job, wrong)
    assert result.exit_code == 1
    right, bad = json.loads(result.stdout)["files"]
    assert (right["ok"], right["job"], right["problems"]) == (True, "deliveries", [])
    assert right["counts"]["metric"] == 1
    assert bad["ok"] is False
    [problem] = bad["problems"]
    assert (problem["line"], problem["key"], problem["note"]) == (23, "metrics.0.by.0", False)


def test_schema_is_that_of_jobs() -> None:
    assert json.loads(velocity("schema").stdout) == schema()


def test_a_plan_is_drawn_in_three_forms(job: Path) -> None:
    assert velocity("plan", job).stdout.startswith("deliveries\n├── read\n")
    assert velocity("plan", job, "--format", "mermaid").stdout.startswith("flowchart TD\n")
    assert json.loads(velocity("plan", job, "--format", "json").stdout)["job"] == "deliveries"


def test_a_plan_breaks_no_line_of_what_is_read_by_programs(job: Path) -> None:
    job.write_text(EXAMPLE.replace("amount >= 250000", " + ".join(["amount"] * 100) + " > 1"))
    assert " + ".join(["amount"] * 100) in velocity("plan", job).stdout


def test_a_plan_shows_variables_as_written(job: Path) -> None:
    assert "${KAFKA}" in velocity("plan", job).stdout


def test_a_plan_of_what_is_no_job_tells_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("job: a\nmetric: []\n")
    result = velocity("plan", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{path}:2: metric: unknown key; did you mean metrics?" in result.stderr.splitlines()


# -- simulate -------------------------------------------------------------------------------------


def test_simulate_says_nothing_that_a_scenario_does_not_say_by_itself() -> None:
    produce = Doer(Produced(200_000, interrupted=False))
    result = velocity("simulate", produce=produce)
    assert result.stdout.startswith("200,000 messages sent to 127.0.0.1:9092 in ")
    [(given, named)] = produce.called
    assert given == (Scenario(), "127.0.0.1:9092")
    assert named["rate"] is None


def test_each_option_of_simulate_reaches_its_scenario() -> None:
    produce = Doer(Produced(9, interrupted=False))
    velocity(
        "simulate", "--bootstrap-servers", "h:1", "--events", "9", "--seed", "8", "--rate", "7.5",
        "--event-rate", "6", "--start", "2026-02-01T07:00:00+07:00", "--late-share", "0.1",
        "--duplicate-share", "0.2", "--malformed-share", "0.3", "--domain", "insurance",
        "--domain", "appointment", produce=produce,
    )  # fmt: skip
    [(given, named)] = produce.called
    scenario = Scenario(
        seed=8,
        events=9,
        start=datetime(2026, 2, 1, tzinfo=UTC),
        rate=6,
        late_share=0.1,
        duplicate_share=0.2,
        malformed_share=0.3,
        domains=("insurance", "appointment"),
    )
    assert given == (scenario, "h:1")
    assert named["rate"] == 7.5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--events", "-1"),
        ("--rate", "0"),
        ("--event-rate", "0"),
        ("--start", "2026-01-05"),
        ("--start", "soon"),
        ("--late-share", "2"),
        ("--domain", "pharmacy"),
    ],
)
def test_a_scenario_that_can_not_be_is_wrong_usage(option: str, value: str) -> None:
    produce = Doer()
    assert velocity("simulate", option, value, produce=produce).exit_code == 2
    assert produce.called == []


def test_an_interrupted_simulation_reports_what_was_sent() -> None:
    result = velocity("simulate", produce=Doer(Produced(1_234, interrupted=True)))
    assert result.exit_code == 130
    assert result.stdout.startswith("interrupted; 1,234 messages sent")


@pytest.mark.embedded
def test_simulated_messages_are_in_kafka() -> None:
    with EmbeddedKafka({domain.topic: 2 for domain in DOMAINS.values()}) as kafka:
        result = velocity(
            "simulate", "--events", "500", "--bootstrap-servers", kafka.bootstrap_servers,
            "--domain", "pharmacy_delivery",
        )  # fmt: skip
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("500 messages sent")
        consumer = Consumer(
            {
                "bootstrap.servers": kafka.bootstrap_servers,
                "group.id": "test",
                "auto.offset.reset": "earliest",
            }
        )
        consumer.subscribe([DOMAINS["pharmacy_delivery"].topic])
        found = 0
        while found < 500:
            messages = consumer.consume(500, timeout=30)
            assert messages, f"{found} of 500 messages"
            found += len([message for message in messages if message.error() is None])
        consumer.close()


# -- run, demo ------------------------------------------------------------------------------------


def test_what_follows_the_dashes_reaches_the_runner_untouched(job: Path) -> None:
    run_job = Doer()
    options = ["--parallelism=4", "--until", "now", "--", "-x", "a b"]
    result = velocity("run", job, "--runner", "flink", "--", *options, run_job=run_job)
    assert (result.exit_code, result.stderr) == (0, "")
    [(given, named)] = run_job.called
    assert given == (load(job), "flink")
    assert named == {"until": None, "sqlite": None, "dead_letters": None, "options": options}


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_of_a_run_is_the_commands(job: Path, code: int) -> None:
    assert velocity("run", job, "--until", "now", run_job=Doer(code)).exit_code == code


@pytest.mark.parametrize("runner", ["direct", "prism"])
def test_a_runner_that_cannot_stream_stops_at_the_end_and_says_so(job: Path, runner: str) -> None:
    run_job = Doer()
    result = velocity("run", job, "--runner", runner, run_job=run_job)
    assert "stream" in result.stderr
    assert "--until now" in result.stderr
    [(_, named)] = run_job.called
    assert named["until"] == "latest"


def test_a_run_stops_where_it_is_told(job: Path) -> None:
    run_job = Doer()
    result = velocity("run", job, "--until", "2026-01-05T00:00:00Z", run_job=run_job)
    assert result.stderr == ""
    [(_, named)] = run_job.called
    assert named["until"] == datetime(2026, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "arguments",
    [["--until", "soon"], ["--until", "2026-01-05T00:00:00"], ["--runner", "spark"], ["b.yaml"]],
    ids=" ".join,
)
def test_a_run_that_can_not_be_is_wrong_usage(job: Path, arguments: list[str]) -> None:
    run_job = Doer()
    assert velocity("run", job, *arguments, run_job=run_job).exit_code == 2
    assert run_job.called == []


def test_nothing_runs_if_the_job_is_wrong(wrong: Path) -> None:
    run_job = Doer()
    result = velocity("run", wrong, run_job=run_job)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{wrong}:23: metrics.0.by.0: unknown column town")
    assert run_job.called == []


def test_nothing_runs_if_a_variable_is_not_set(job: Path) -> None:
    run_job = Doer()
    result = velocity("run", job, env=UNSET, run_job=run_job)
    assert result.exit_code == 1
    assert f"{job}:14: enrich.0.get: ${{PROVIDERS}} is not set: export it" in result.stderr
    assert run_job.called == []


@pytest.mark.parametrize("command", [["setup"], ["dead-letters", "list"], ["board"]])
def test_commands_name_the_file_and_the_line_of_what_they_cannot_use(
    job: Path, tmp_path: Path, command: list[str]
) -> None:
    other = tmp_path / "other.yaml"
    text = job.read_text().replace("deliveries", "others")
    other.write_text(text.replace("${ELASTICSEARCH}", "http://127.0.0.1:1"), "utf-8")
    more = [other] if command == ["board"] else []
    result = velocity(*command, *more, job, env=UNSET)
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"{job}:")
    assert line.endswith("is not set: export it")


def test_a_variable_of_an_option_is_told_though_no_file_has_it(job: Path) -> None:
    at = ("--dead-letters", "${NOWHERE}/letters")
    result = velocity("dead-letters", "stats", job, *at, env=ENVIRONMENT)
    assert result.exit_code == 1
    assert "variable NOWHERE is not set" in result.stderr


def test_a_file_that_is_gone_by_now_is_no_reason_for_a_second_error(job: Path) -> None:
    def run_job(*_: Any, **__: Any) -> None:
        job.unlink()
        raise UnsetVariable("PROVIDERS", "enrich", 0, "get")

    result = velocity("run", job, env=ENVIRONMENT, run_job=run_job)
    assert result.exit_code == 1
    assert "PROVIDERS is not set: export it" in result.stderr


def test_a_variable_of_a_sink_that_is_not_used_may_be_unset(job: Path, tmp_path: Path) -> None:
    run_job = Doer()
    store, dead = tmp_path / "documents.db", tmp_path / "dead"
    result = velocity(
        "run", job, "--sqlite", store, "--dead-letters", dead,
        env=ENVIRONMENT | {"ELASTICSEARCH": None}, run_job=run_job,
    )  # fmt: skip
    assert result.exit_code == 0
    [(_, named)] = run_job.called
    assert (named["sqlite"], named["dead_letters"]) == (store, dead)


def test_the_demo_is_run_as_told(tmp_path: Path) -> None:
    demo = Doer(1)
    result = velocity("demo", "--events", "9", "--seed", "8", "--folder", tmp_path, demo=demo)
    assert result.exit_code == 1
    assert demo.called == [((), {"events": 9, "seed": 8, "folder": tmp_path})]


def test_the_demo_of_all_is_run_as_told(tmp_path: Path) -> None:
    demo_all = Doer(1)
    result = velocity("demo", "--all", "--folder", tmp_path, demo_all=demo_all)
    assert result.exit_code == 1
    assert demo_all.called == [((), {"events": 10_000, "seed": 1, "folder": tmp_path})]


def test_the_demo_replaces_no_folder_but_its_own(tmp_path: Path) -> None:
    demo = Doer()
    (tmp_path / "documents.db").touch()
    (tmp_path / "dead-letters").mkdir()
    assert velocity("demo", "--folder", tmp_path, demo=demo).exit_code == 0
    (tmp_path / "thesis.txt").touch()
    assert velocity("demo", "--folder", tmp_path, demo=demo).exit_code == 2
    assert len(demo.called) == 1


def test_simulate_writes_the_documents_that_a_job_must_have(tmp_path: Path) -> None:
    wanted = tmp_path / "expected.jsonl"
    job = "pipelines/pharmacy_delivery.yaml"
    sent = Produced(300, False)
    result = CliRunner().invoke(
        app,
        ["simulate", "--events", "300", "--expected", str(wanted), "--job", job],
        obj={"produce": lambda *given, **options: sent},
    )
    assert result.exit_code == 0, result.output
    documents = [json.loads(line) for line in wanted.read_text("utf-8").splitlines()]
    assert f"{len(documents)} documents expected" in result.output
    metrics = {document["metric"] for document in documents}
    assert {"orders_by_city", "daily_revenue"} <= metrics
    assert all(document["events"] >= 1 and document["id"] for document in documents)


def test_expected_documents_are_those_of_a_job_that_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", "--expected", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "--expected and --job go together" in result.output
