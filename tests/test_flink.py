"""Laws of how a job is given to Flink: options, submission, what is remembered of it."""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from typer.main import get_command
from typer.testing import CliRunner

from velocity.pipelines.reference import EXAMPLE
from velocity.runners.cli import app
from velocity.runners.flink import (
    MAX_PARALLELISM,
    RUNNER_OPTIONS,
    STATE_CACHE_MB,
    FlinkOptions,
    Target,
    configuration,
    pipeline_options,
    target,
)
from velocity.runners.flink_errors import FlinkError, FlinkRefused, JobFailed
from velocity.runners.flink_job_server import job_server
from velocity.runners.flink_records import (
    Submission,
    forget_ended,
    place_of,
    recall,
    remember,
)
from velocity.runners.flink_rest import Failure, FlinkJob
from velocity.runners.flink_submit import await_running, cancel_named, quiet
from velocity.runners.run_cli import command_again
from velocity.runners.stack_state import ComponentRecord, StackState
from velocity.transforms.panes import PANES_TOLD

STACK = StackState().having(
    ComponentRecord(
        "flink", "1.19.3", {}, {}, {"flink": "http://127.0.0.1:8081", "workers": "127.0.0.1:50000"}
    )
)
CLUSTER = Target("127.0.0.1:8081", "127.0.0.1:50000")


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"parallelism": 0}, "--parallelism"),
        ({"parallelism": MAX_PARALLELISM + 1}, "--parallelism"),
        ({"sdk_worker_parallelism": 0}, "--sdk-worker-parallelism"),
        ({"checkpoint_interval": timedelta(milliseconds=9)}, "--checkpoint-interval"),
        ({"state_backend": "heap"}, "hashmap or rocksdb"),
        ({"restart_attempts": -1}, "--restart-attempts"),
        ({"restart_delay": timedelta(seconds=1)}, "--restart-attempts"),
        ({"allow_non_restored_state": True}, "--from-savepoint"),
        ({"name": "a/b"}, "--name"),
        ({"name": "../x"}, "--name"),
        ({"master": "local", "detach": True}, "--detach is for a Flink cluster"),
        ({"master": "local", "worker_pool": "h:1"}, "--worker-pool is for a Flink cluster"),
    ],
)
def test_what_can_not_be_is_refused_with_the_option_to_mend(
    wrong: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        FlinkOptions(**wrong)


def test_a_job_goes_to_the_stack_by_default() -> None:
    assert target(FlinkOptions(), STACK) == CLUSTER


def test_without_a_stack_the_remedies_are_named() -> None:
    with pytest.raises(FlinkError, match=r"velocity stack up.*--flink-master HOST:PORT.*local"):
        target(FlinkOptions(), StackState())


def test_another_cluster_needs_a_worker_pool_or_another_environment() -> None:
    other = FlinkOptions(master="https://flink:8081/")
    with pytest.raises(FlinkError, match="--worker-pool"):
        target(other, STACK)
    assert target(other, STACK, ["--environment_type=DOCKER"]) == Target("flink:8081", None)
    given = FlinkOptions(master="flink:8081", worker_pool="flink:50000")
    assert target(given, STACK) == Target("flink:8081", "flink:50000")


def test_the_stack_s_own_address_needs_no_worker_pool() -> None:
    assert target(FlinkOptions(master="127.0.0.1:8081"), STACK) == CLUSTER


def test_beam_reads_our_options_as_they_are_meant() -> None:
    options = FlinkOptions(parallelism=3, sdk_worker_parallelism=2)
    chosen = PipelineOptions(pipeline_options(options, CLUSTER, "orders-1", bounded=False))
    portable = chosen.view_as(PortableOptions)
    assert portable.environment_type == "EXTERNAL"
    assert portable.environment_config == "127.0.0.1:50000"
    assert chosen.view_as(StandardOptions).streaming
    assert chosen.get_all_options()["parallelism"] == 3
    assert chosen.get_all_options()["job_name"] == "orders-1"
    assert int(portable.sdk_worker_parallelism) == 2


def test_states_are_cached_by_workers_of_ours_alone() -> None:
    cache = f"--max_cache_memory_usage_mb={STATE_CACHE_MB}"
    for to, cached in (
        (Target("[local]", None), True),
        (Target("[local]", "localhost:5"), True),
        (Target("flink:8081", "localhost:5"), True),
        (Target("flink:8081", None), False),  # the user's own environment
    ):
        assert (cache in pipeline_options(FlinkOptions(), to, "n", bounded=False)) is cached


def test_a_job_in_the_job_server_has_threads_or_the_pool_that_it_is_given() -> None:
    threads = pipeline_options(FlinkOptions(), Target("[local]", None), "n", bounded=False)
    assert "--environment_type=LOOPBACK" in threads
    pool = pipeline_options(FlinkOptions(), Target("[local]", "localhost:5"), "n", bounded=False)
    assert {"--environment_type=EXTERNAL", "--environment_config=localhost:5"} <= set(pool)


def test_the_groups_of_keys_are_the_same_for_every_parallelism() -> None:
    for parallelism in (1, 100):
        given = FlinkOptions(parallelism=parallelism)
        chosen = pipeline_options(given, CLUSTER, "a", bounded=False)
        assert f"--max_parallelism={MAX_PARALLELISM}" in chosen


def test_checkpoints_finish_bundles_first() -> None:
    given = FlinkOptions(checkpoint_interval=timedelta(seconds=1.5))
    chosen = pipeline_options(given, CLUSTER, "a", bounded=False)
    assert "--checkpointing_interval=1500" in chosen
    assert "--finish_bundle_before_checkpointing" in chosen
    assert "--max_bundle_time_mills=200" in chosen
    assert f"--experiments={PANES_TOLD}" in chosen


def test_only_sources_that_end_are_shut_down() -> None:
    for bounded in (False, True):
        chosen = pipeline_options(FlinkOptions(), CLUSTER, "a", bounded=bounded)
        assert ("--shutdown_sources_after_idle_ms=0" in chosen) is bounded


def test_the_checkpoints_of_what_never_ends_by_itself_are_kept() -> None:
    kept = {
        "--externalized_checkpoints_enabled",
        "--retain_externalized_checkpoints_on_cancellation",
    }
    for where, bounded in ((CLUSTER, False), (CLUSTER, True), (Target("[local]", None), False)):
        chosen = pipeline_options(FlinkOptions(), where, "a", bounded=bounded)
        assert (kept <= set(chosen)) is (where is CLUSTER and not bounded)


def test_a_savepoint_is_passed_on() -> None:
    given = FlinkOptions(from_savepoint="file:/s", allow_non_restored_state=True)
    chosen = pipeline_options(given, CLUSTER, "a", bounded=False)
    assert chosen[-2:] == ["--savepoint_path=file:/s", "--allow_non_restored_state"]


def test_users_options_win() -> None:
    ours = pipeline_options(FlinkOptions(), CLUSTER, "a", bounded=False)
    own = ["--parallelism=7", "--environment_type=DOCKER", "--experiments=x"]
    chosen = PipelineOptions([*ours, *own])
    assert chosen.get_all_options()["parallelism"] == 7
    assert chosen.view_as(PortableOptions).environment_type == "DOCKER"
    assert chosen.view_as(DebugOptions).experiments == [PANES_TOLD, "x"]


def test_the_cluster_s_own_settings_hold_where_nothing_is_given() -> None:
    assert configuration(FlinkOptions()) == {}


def test_a_failure_ends_a_local_run_unless_told_otherwise() -> None:
    none = {"restart-strategy.type": "none"}
    assert configuration(FlinkOptions(master="local")) == none
    given = configuration(FlinkOptions(master="local", restart_attempts=2))
    assert given["restart-strategy.type"] == "fixed-delay"


def test_restarts_and_state_are_said_in_flink_s_keys() -> None:
    given = FlinkOptions(
        restart_attempts=3, restart_delay=timedelta(seconds=2), state_backend="rocksdb"
    )
    assert configuration(given) == {
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": 3,
        "restart-strategy.fixed-delay.delay": "2000 ms",
        "state.backend.type": "rocksdb",
        "state.backend.incremental": True,
    }


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(EXAMPLE, "utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--parallelism", "2"], "--parallelism is for --runner flink"),
        (["--flink-master", "local"], "--flink-master is for --runner flink"),
        (["--runner", "flink", "--parallelism", "0"], "--parallelism is 0"),
        (["--runner", "flink", "--checkpoint-interval", "10"], "duration"),
    ],
)
def test_options_of_flink_that_can_not_be_are_wrong_usage(
    job: Path, arguments: list[str], text: str
) -> None:
    called: list[Any] = []
    result = CliRunner().invoke(
        app, ["run", str(job), *arguments], obj={"run_job": lambda *a, **k: called.append(a)}
    )
    assert (result.exit_code, called) == (2, [])
    assert text in " ".join(result.stderr.replace("│", " ").split())


def test_what_stops_a_job_in_two_ways_is_wrong_usage() -> None:
    for wrong in (["--drain", "--cancel"], ["--cancel", "--to", "/s"], ["--flink-master", "local"]):
        assert CliRunner().invoke(app, ["stop", "a", *wrong]).exit_code == 2


# -- starting -------------------------------------------------------------------------------------


def flink_job(state: str = "RUNNING", name: str = "a", **tasks: int) -> FlinkJob:
    tasks = {"total": 2, **tasks}
    return FlinkJob("1" * 32, name, state, datetime(2026, 1, 1, tzinfo=UTC), timedelta(), tasks)


@dataclass
class Cluster:
    """Stands for a ``Flink``: what it lists, one after the other, the last for ever."""

    listed: list[list[FlinkJob]]
    failed: list[Failure] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    url: str = "http://127.0.0.1:8081"
    free: int = 0
    refuses: bool = False

    def jobs(self) -> list[FlinkJob]:
        return self.listed.pop(0) if len(self.listed) > 1 else self.listed[0]

    def failures(self, job: str) -> list[Failure]:
        return self.failed

    def slots(self) -> tuple[int, int]:
        return self.free, 4

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)
        if self.refuses:
            raise FlinkRefused("it has ended")


def awaited(
    cluster: Cluster,
    failed: Callable[[], str | None] = lambda: None,
    report: Callable[[str], None] = lambda _: None,
    others: Collection[str] = (),
) -> str:
    """``await_running`` on a clock of which each sleep is a second."""
    now = iter(range(10_000))
    return await_running(
        cluster,  # type: ignore[arg-type]
        "a",
        failed,
        report,
        others=others,
        within=60,
        settle=3,
        clock=lambda: next(now),
        sleep=lambda _: None,
    )


RUNS, STARTS = flink_job(running=2), flink_job(running=1, initializing=1)


def test_a_job_has_started_when_all_its_tasks_have_run_for_a_while() -> None:
    again = [[STARTS]] * 5
    cluster = Cluster([[], [RUNS], *again, [RUNS], [flink_job(name="b"), RUNS], []])
    assert awaited(cluster) == RUNS.id
    assert len(cluster.listed) == 1  # it did not settle before the last


def test_a_job_that_finishes_at_once_has_run() -> None:
    assert awaited(Cluster([[flink_job("FINISHED", finished=2)]])) == RUNS.id


def test_a_job_that_was_stopped_is_not_taken_for_the_one_that_resumes_it() -> None:
    stopped = replace(flink_job("FINISHED", finished=2), id="0" * 32)
    cluster = Cluster([[stopped], [stopped, RUNS]])
    assert awaited(cluster, others=[stopped.id]) == RUNS.id


def test_what_the_job_server_could_not_submit_has_failed_by_its_cause() -> None:
    with pytest.raises(JobFailed, match="could not be submitted: no such savepoint"):
        awaited(Cluster([[]]), lambda: "no such savepoint")


def test_a_job_that_fails_before_it_ran_has_failed_though_flink_would_restart_it() -> None:
    why = Failure(datetime(2026, 1, 1, tzinfo=UTC), "no such topic")
    with pytest.raises(JobFailed, match="failed as it started: no such topic"):
        awaited(Cluster([[flink_job("RESTARTING")]], [why]))


def test_the_cause_of_a_failure_is_waited_for_as_flink_shows_it_late() -> None:
    why = Failure(datetime(2026, 1, 1, tzinfo=UTC), "no such savepoint")
    cluster = Cluster([[flink_job("FAILED")]])

    def report(message: str) -> None:
        assert "say why" in message
        cluster.failed = [why]

    with pytest.raises(JobFailed, match="failed as it started: no such savepoint"):
        awaited(cluster, report=report)
    with pytest.raises(JobFailed, match="FAILED"):
        awaited(Cluster([[flink_job("FAILED")]]))


def test_who_resumes_with_one_subtask_instead_of_several_is_told() -> None:
    text = "Cannot map state, because the operator is not available in the new program. If you"
    why = Failure(datetime(2026, 1, 1, tzinfo=UTC), text)
    with pytest.raises(JobFailed, match=r"Give a --parallelism of 1 if it had 1"):
        awaited(Cluster([[flink_job("FAILED")]], [why]))


def test_a_job_that_failed_for_want_of_slots_is_awaited_while_flink_tries_again() -> None:
    why = Failure(
        datetime(2026, 1, 1, tzinfo=UTC), "Could not acquire the minimum required resources."
    )
    again = [[flink_job("RESTARTING")]] * 3
    assert awaited(Cluster([*again, [STARTS], [RUNS]], [why])) == RUNS.id
    with pytest.raises(JobFailed, match=r"minimum required resources.*4 of Flink's 4.*--paral"):
        awaited(Cluster([*again, [flink_job("FAILED")]], [why]))


def test_a_job_that_someone_ends_as_it_starts_has_not_started() -> None:
    with pytest.raises(JobFailed, match="CANCELED"):
        awaited(Cluster([[flink_job("CANCELED")]]))


def test_a_job_without_slots_is_told_what_it_waits_for() -> None:
    reports: list[str] = []
    with pytest.raises(JobFailed, match=r"after 60 s.*4 of Flink's 4 are taken.*--parallelism"):
        awaited(Cluster([[flink_job(scheduled=2)]]), report=reports.append)
    assert "slots" in reports[0]


def test_only_the_living_job_of_the_name_is_cancelled() -> None:
    cluster = Cluster([[flink_job("FINISHED"), flink_job(name="b"), flink_job("RESTARTING")]])
    cancel_named(cluster, "a")  # type: ignore[arg-type]
    assert len(cluster.cancelled) == 1


def test_a_cancellation_is_refused_only_to_a_job_that_goes_on() -> None:
    ended = Cluster([[RUNS], [flink_job("FINISHED")]], refuses=True)
    cancel_named(ended, "a")  # type: ignore[arg-type]
    with pytest.raises(FlinkRefused):
        cancel_named(Cluster([[RUNS]], refuses=True), "a")  # type: ignore[arg-type]


# -- the job server's process ---------------------------------------------------------------------

LISTENS = """
import socket, sys, time
port = int(sys.argv[sys.argv.index("--job-port") + 1])
server = socket.create_server(("127.0.0.1", port))
print("pid", __import__("os").getpid(), flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.embedded
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_job_server_lives_as_long_as_it_is_used(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), server(tmp_path) as endpoint:
        pid = int((tmp_path / "log").read_text().split()[1])
        assert endpoint.startswith("127.0.0.1:")
        assert alive(pid)
        raise RuntimeError("mine")
    assert not alive(pid)


def server(folder: Path, code: str = LISTENS, **options: Any) -> Any:
    return job_server([sys.executable, "-c", code], folder / "log", **options)


@pytest.mark.embedded
def test_a_job_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(FlinkError, match=r"did not start:\n.*no memory"),
        server(tmp_path, "raise SystemExit('no memory')"),
    ):
        pass


@pytest.mark.embedded
def test_a_job_server_that_does_not_listen_in_time_is_ended(tmp_path: Path) -> None:
    code = "import time; print('late', flush=True); time.sleep(60)"
    with pytest.raises(FlinkError, match="did not start"), server(tmp_path, code, within=0.0):
        pass


@pytest.mark.embedded
@pytest.mark.skipif(sys.platform != "linux", reason="the system ends it on Linux alone")
def test_a_job_server_dies_with_a_submission_that_is_killed(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with server(tmp_path):
                os.write(write, b"up")
                time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(read, 2) == b"up"
    deadline = time.monotonic() + 30
    while len(told := (tmp_path / "log").read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    pid = int(told[1])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)
    os.close(read)
    os.close(write)


# -- what is remembered ---------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    before = os.environ.get("VELOCITY_STATE")
    os.environ["VELOCITY_STATE"] = str(tmp_path)
    yield tmp_path
    if before is None:
        del os.environ["VELOCITY_STATE"]
    else:
        os.environ["VELOCITY_STATE"] = before


HERE, ELSEWHERE = "http://127.0.0.1:8081", "http://elsewhere:8081"


def submission(name: str, flink: str = HERE, *own: str) -> Submission:
    return Submission(name, flink, ["velocity", "run", "job.yaml"], list(own))


def test_a_submission_is_recalled_until_its_job_has_ended(state: Path) -> None:
    for name in ("a", "b"):
        remember(submission(name))
        (place_of(HERE, name) / "artifacts").mkdir()
    remember(submission("b", ELSEWHERE))
    jobs = [flink_job("RUNNING", "a"), flink_job("FINISHED", "b")]
    forget_ended(Cluster([jobs]))  # type: ignore[arg-type]
    assert recall(HERE, "a") == submission("a")
    assert recall(ELSEWHERE, "a") is None
    assert recall(HERE, "b") is None
    assert recall(ELSEWHERE, "b") is not None  # of another cluster, which was not asked
    assert not place_of(HERE, "b").exists()


def test_a_submission_on_its_way_is_left_alone(state: Path) -> None:
    artifacts = place_of(HERE, "starting") / "artifacts"
    artifacts.mkdir(parents=True)
    remember(submission("a"))
    forget_ended(Cluster([[]]))  # type: ignore[arg-type]
    assert artifacts.exists()
    assert recall(HERE, "a") is None


def test_the_command_that_goes_on_is_the_one_that_was_given() -> None:
    given = [
        "job.yaml", "--runner", "flink", "--sqlite", "a b.db", "--parallelism", "3", "--name", "n",
        "--detach", "--from-savepoint", "/old", "--", "-x",
    ]  # fmt: skip
    run = get_command(app).commands["run"]  # type: ignore[attr-defined]
    again = Submission("n", "", command_again(run.make_context("run", given)), ["-x"])
    here = Path.cwd()
    assert again.resuming("/new") == (
        f"velocity run {here}/job.yaml --runner flink --sqlite '{here}/a b.db' --parallelism 3"
        " --name n --from-savepoint /new -- -x"
    )


# -- noise ----------------------------------------------------------------------------------------


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_only_known_noise_is_silenced() -> None:
    lines = Lines()
    logger = logging.getLogger("apache_beam.options.pipeline_options")
    logger.addHandler(lines)
    try:
        with quiet():
            for option in sorted(RUNNER_OPTIONS):
                logger.warning("Unparseable argument: %s=1", option)
            logger.warning("Unparseable argument: --paralelism=3")
            logger.error("broken")
        logger.warning("Unparseable argument: --savepoint_path=/s")
    finally:
        logger.removeHandler(lines)
    assert lines.lines == [
        "Unparseable argument: --paralelism=3",
        "broken",
        "Unparseable argument: --savepoint_path=/s",
    ]


def test_every_option_that_we_pass_is_beam_s_or_known_to_the_job_server() -> None:
    given = FlinkOptions(from_savepoint="s", allow_non_restored_state=True)
    ours = pipeline_options(given, CLUSTER, "a", bounded=True)
    lines = Lines()
    logging.getLogger("apache_beam.options.pipeline_options").addHandler(lines)
    try:
        with quiet():
            PipelineOptions(ours)
    finally:
        logging.getLogger("apache_beam.options.pipeline_options").removeHandler(lines)
    assert lines.lines == []


def test_a_record_is_one_json_object(state: Path) -> None:
    remember(submission("a", "http://h:1", "--x=1"))
    content = json.loads((place_of("http://h:1", "a") / "submission.json").read_text())
    assert content == {
        "name": "a",
        "flink": "http://h:1",
        "command": ["velocity", "run", "job.yaml"],
        "own": ["--x=1"],
    }
