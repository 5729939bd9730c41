"""Laws of the client of Flink's REST interface, against answers captured from a Flink 1.19.3."""

import json
import pickle
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest

from velocity.runners import flink_errors
from velocity.runners.flink_errors import (
    FlinkError,
    FlinkRefused,
    FlinkUnreachable,
    SavepointFailed,
    UnknownJob,
    root_cause,
)
from velocity.runners.flink_rest import Checkpoints, Flink

pytestmark = pytest.mark.embedded

JOB = "03794e5901f1f07d31a02aec6ec54d2b"
OTHER = "65e2f67be5443780e000d46819ce86ed"
SOURCE, READ = "bc764cd8ddf7a0cff126f51c16239658", "154133fc000b8120036a9ecd725f8c0b"
REQUEST = "473771e03235715bd10d9df3376dea1d"

TASKS = {
    "running": 25, "canceling": 0, "canceled": 0, "total": 25, "created": 0, "scheduled": 0,
    "deploying": 0, "reconciling": 0, "finished": 0, "initializing": 0, "failed": 0,
}  # fmt: skip


def listed(id_: str, name: str, state: str, start: int = 1795407629477) -> dict[str, Any]:
    return {
        "jid": id_, "name": name, "start-time": start, "end-time": -1, "duration": 21217,
        "state": state, "last-modification": 1795407636369, "tasks": TASKS,
    }  # fmt: skip


COMPLETED = {
    "className": "completed", "id": 3, "status": "COMPLETED", "is_savepoint": False,
    "savepointFormat": None, "trigger_timestamp": 1795407657396,
    "latest_ack_timestamp": 1795407658099, "checkpointed_size": 323496, "state_size": 323497,
    "end_to_end_duration": 703, "alignment_buffered": 0, "processed_data": 182,
    "persisted_data": 0, "num_subtasks": 25, "num_acknowledged_subtasks": 25,
    "checkpoint_type": "CHECKPOINT", "tasks": {},
    "external_path": f"file:/state/checkpoints/{JOB}/chk-3", "discarded": False,
}  # fmt: skip
COUNTS = {"restored": 0, "total": 3, "in_progress": 0, "completed": 3, "failed": 1}

OPERATOR = "[16]{Read__Enrich_provider__Derive__Metrics__Write_dead_letters}"
METRICS = [
    {"id": "numRecordsIn"},
    {"id": f"{OPERATOR}.velocity_read_messages"},
    {"id": f"{OPERATOR}.velocity_dead_letters_wrong_type"},
    {"id": f"{OPERATOR}.ref_PCollection_PCollection_11_metric_element_count_v1"},
]

JAVA = (
    "org.apache.flink.runtime.taskmanager.AsynchronousException: Caught exception while processing"
    " timer.\n\tat org.apache.flink.streaming.runtime.tasks.StreamTask.run(StreamTask.java:1650)\n"
    "Caused by: TimerException{java.lang.RuntimeException: Failed to finish remote bundle}\n"
    "\t... 15 more\n"
    "Caused by: java.util.concurrent.ExecutionException: java.lang.RuntimeException: Error received"
    " from SDK harness for instruction 1: Traceback (most recent call last):\n"
    '  File "apache_beam/runners/common.py", line 1512, in apache_beam.runners.common.process\n'
    '  File "/app/velocity/io/kafka_consumer.py", line 47, in partitions\n'
    "    raise KafkaReadError(\n"
    "velocity.io.kafka_consumer.KafkaReadError: cannot list the partitions\n\n"
    "During handling of the above exception, another exception occurred:\n\n"
    "Traceback (most recent call last):\n"
    '  File "/app/apache_beam/runners/worker/sdk_worker.py", line 310, in _execute\n'
    "    response = task()\n"
    "               ^^^^^^\n"
    "velocity.io.kafka_consumer.KafkaReadError: cannot list the partitions; create the topic"
    " [while running 'Read/List partitions']\n\n"
    "\tat java.base/java.util.concurrent.CompletableFuture.reportGet(CompletableFuture.java:396)\n"
    "Caused by: java.lang.RuntimeException: Error received from SDK harness for instruction 1:"
    " Traceback (most recent call last):\n"
    '  File "/app/apache_beam/runners/worker/sdk_worker.py", line 310, in _execute\n'
    "    response = task()\n"
    "velocity.io.kafka_consumer.KafkaReadError: cannot list the partitions; create the topic"
    " [while running 'Read/List partitions']\n\n"
    "\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient.run(Fn.java:180)\n"
)

NO_FOLDER = (
    "java.util.concurrent.CompletionException: org.apache.flink.runtime.checkpoint."
    "CheckpointException: An Exception occurred while triggering the checkpoint. IO-problem"
    " detected.\n\tat java.base/java.util.concurrent.CompletableFuture.encodeRelay(C.java:368)\n"
    "Caused by: java.io.IOException: Failed to create savepoint directory at /proc/nosuch\n"
    "\tat org.apache.flink.runtime.state.filesystem.AbstractFsCheckpointStorageAccess.x(A.java)\n"
)

GONE = (
    f"org.apache.flink.runtime.rest.NotFoundException: Job {JOB} not found\n"
    "\tat org.apache.flink.runtime.rest.handler.job.AbstractExecutionGraphHandler.x(A.java:99)\n"
    "Caused by: org.apache.flink.runtime.messages.FlinkJobNotFoundException: Could not find Flink"
    f" job ({JOB})\n\tat org.apache.flink.runtime.dispatcher.Dispatcher.x(Dispatcher.java:1)\n"
)

ENDED = (
    "org.apache.flink.runtime.rest.handler.RestHandlerException: Job cancellation failed because"
    " the job has already reached another terminal state (FINISHED).\n\tat org.apache.flink.x(Y:1)\n"
)


class Answers:
    """A server with an answer for each ``METHOD path``; a list is answered one by one."""

    def __init__(self) -> None:
        self.by_request: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []

    def set(self, request: str, *answers: Any, status: int = 200) -> None:
        self.by_request[request] = (status, list(answers))

    def answer(self, request: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append((request, json.loads(body or b"null")))
        status, answers = self.by_request.get(
            request, (404, [{"errors": ["Not found: " + request]}])
        )
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return status, found if isinstance(found, bytes) else json.dumps(found).encode()


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def flink(answers: Answers) -> Iterator[Flink]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = answers.answer(f"{self.command} {unquote(self.path)}", body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Flink(f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_jobs_are_listed_the_latest_first(flink: Flink, answers: Answers) -> None:
    jobs = [listed(JOB, "a", "RUNNING"), listed(OTHER, "b", "FAILED", 1795407629478)]
    answers.set("GET /jobs/overview", {"jobs": jobs})
    later, earlier = flink.jobs()
    assert (later.id, later.ended, later.running) == (OTHER, True, False)
    assert (earlier.id, earlier.ended, earlier.running) == (JOB, False, True)
    assert earlier.started == datetime(2026, 11, 23, 4, 20, 29, 477000, UTC)
    assert earlier.duration == timedelta(milliseconds=21217)


def test_a_job_runs_only_when_all_of_its_tasks_do(flink: Flink, answers: Answers) -> None:
    job = listed(JOB, "a", "RUNNING") | {"tasks": TASKS | {"running": 20, "scheduled": 5}}
    answers.set("GET /jobs/overview", {"jobs": [job]})
    assert not flink.jobs()[0].running
    job["tasks"] = TASKS | {"running": 20, "finished": 5}
    answers.set("GET /jobs/overview", {"jobs": [job]})
    assert flink.jobs()[0].running


def test_a_job_is_found_by_its_id_or_by_its_name_while_it_lives(
    flink: Flink, answers: Answers
) -> None:
    jobs = [listed(JOB, "a", "FINISHED"), listed(OTHER, "a", "RUNNING")]
    answers.set("GET /jobs/overview", {"jobs": jobs})
    assert flink.find("a").id == OTHER
    assert flink.find(JOB).state == "FINISHED"


@pytest.mark.parametrize(
    ("states", "text"),
    [
        (("FINISHED",), f"job a has ended: FINISHED; give its id, {JOB}"),
        (("RUNNING", "RUNNING"), "2 jobs are named a: give one's id"),
        ((), "no job 'a' on http://127.0.0.1"),
    ],
)
def test_a_job_that_can_not_be_meant_is_explained(
    flink: Flink, answers: Answers, states: tuple[str, ...], text: str
) -> None:
    ids = (JOB, OTHER)
    jobs = [listed(id_, "a", state) for id_, state in zip(ids, states, strict=False)]
    answers.set("GET /jobs/overview", {"jobs": jobs})
    with pytest.raises(UnknownJob) as caught:
        flink.find("a")
    assert text in str(caught.value)


def test_counters_are_summed_over_the_vertices_and_others_are_left_out(
    flink: Flink, answers: Answers
) -> None:
    for vertex, read in ((SOURCE, 40.0), (READ, 2.0)):
        base = f"GET /jobs/{JOB}/vertices/{vertex}/subtasks/metrics"
        # Flink has distributions as text, and can't add them up.
        text = {"id": METRICS[1]["id"].replace("read_messages", "rest_call_ms")}
        answers.set(base, [*METRICS, text])
        wanted = f"{METRICS[1]['id']},{METRICS[2]['id']}"
        sums = [METRICS[1] | {"sum": read}, METRICS[2] | {"sum": 1.0}]
        answers.set(f"{base}?get={wanted}&agg=sum", sums)
    found = flink.counters(JOB, [SOURCE, READ], "velocity")
    assert found == {"read_messages": 42, "dead_letters_wrong_type": 2}


def test_no_request_for_counters_is_longer_than_flink_reads(flink: Flink, answers: Answers) -> None:
    ids = [{"id": f"{OPERATOR}.velocity_counter_{n}"} for n in range(200)]
    answers.set(f"GET /jobs/{JOB}/vertices/{READ}/subtasks/metrics", ids)

    class Any_(dict[str, Any]):
        def get(self, request: str, default: Any = None) -> Any:
            if "?get=" in request:
                wanted = request.partition("?get=")[2].partition("&")[0].split(",")
                return 200, [[{"id": id_, "sum": 1.0} for id_ in wanted]]
            return super().get(request, default)

    answers.by_request = Any_(answers.by_request)
    found = flink.counters(JOB, [READ], "velocity")
    assert found == {f"counter_{n}": 1 for n in range(200)}
    assert max(len(request) for request, _ in answers.asked) < 3500


@pytest.mark.parametrize(
    ("values", "watermark"),
    [
        ((["9223372036854775807"], ["1795407634427", "1795407632925"]), 1795407632925),
        ((["9223372036854775807"], ["-9223372036854775808", "1795407632925"]), None),
        ((["9223372036854775807"], []), None),
    ],
    ids=["the least", "none before the first", "none of what has ended"],
)
def test_the_watermark_is_the_least_of_all_subtasks_that_go_on(
    flink: Flink, answers: Answers, values: tuple[list[str], list[str]], watermark: int | None
) -> None:
    for vertex, some in zip((SOURCE, READ), values, strict=True):
        subtasks = [{"id": f"{i}.currentInputWatermark", "value": v} for i, v in enumerate(some)]
        answers.set(f"GET /jobs/{JOB}/vertices/{vertex}/watermarks", subtasks)
    found = flink.watermark(JOB, [SOURCE, READ])
    assert (found and round(found.timestamp() * 1000)) == watermark


def test_checkpoints_tell_of_the_last_completed_one(flink: Flink, answers: Answers) -> None:
    latest = {"completed": COMPLETED, "savepoint": None, "failed": None, "restored": None}
    answers.set(f"GET /jobs/{JOB}/checkpoints", {"counts": COUNTS, "latest": latest})
    assert flink.checkpoints(JOB) == Checkpoints(
        completed=3,
        failed=1,
        last_at=datetime(2026, 11, 23, 4, 20, 57, 396000, UTC),
        last_size=323497,
        last_duration=timedelta(milliseconds=703),
        last_path=f"file:/state/checkpoints/{JOB}/chk-3",
    )


def test_a_checkpoint_in_the_job_manager_s_memory_has_no_path(
    flink: Flink, answers: Answers
) -> None:
    held = COMPLETED | {"external_path": "<checkpoint-not-externally-addressable>"}
    answers.set(f"GET /jobs/{JOB}/checkpoints", {"counts": COUNTS, "latest": {"completed": held}})
    assert flink.checkpoints(JOB).last_path is None


def ended(answers: Answers, state: str, *, enabled: bool = True, deleted: bool = False) -> None:
    """A job with a checkpoint, and what is to become of that when it ends."""
    policy = {"externalization": {"enabled": enabled, "delete_on_cancellation": deleted}}
    answers.set(f"GET /jobs/{JOB}/checkpoints/config", policy)
    answers.set(f"GET /jobs/{JOB}", {"state": state})
    latest = {"completed": COMPLETED, "restored": None}
    answers.set(f"GET /jobs/{JOB}/checkpoints", {"counts": COUNTS, "latest": latest})
    answers.set("GET /config", {"refresh-interval": 3000})


@pytest.mark.parametrize(
    ("state", "enabled", "deleted", "kept"),
    [
        ("CANCELED", True, False, True),
        ("CANCELED", True, True, False),
        ("CANCELED", False, True, False),
        ("FAILED", True, False, True),
        ("FAILED", True, True, True),  # what is to be deleted then is what is cancelled
        ("FAILED", False, True, False),
        ("FINISHED", True, False, False),
    ],
)
def test_the_checkpoint_of_a_job_that_ended_is_told_where_flink_keeps_it(
    flink: Flink, answers: Answers, state: str, enabled: bool, deleted: bool, kept: bool
) -> None:
    ended(answers, state, enabled=enabled, deleted=deleted)
    slept: list[float] = []
    found = flink.kept_checkpoint(JOB, sleep=slept.append)
    assert found == (COMPLETED["external_path"] if kept else None)
    assert slept == ([3.0] if kept else [])  # until then Flink may tell of one that is gone


def test_of_a_job_that_made_no_checkpoint_it_is_told_what_it_came_from(
    flink: Flink, answers: Answers
) -> None:
    ended(answers, "FAILED")
    latest = {"completed": None, "restored": {"external_path": "file:/s"}}
    none = {"counts": COUNTS | {"completed": 0}, "latest": latest}
    answers.set(f"GET /jobs/{JOB}/checkpoints", none)
    assert flink.kept_checkpoint(JOB, sleep=lambda _: None) == "file:/s"


def test_a_batch_has_no_checkpoint(flink: Flink, answers: Answers) -> None:
    none = {"errors": ["Checkpointing is not enabled for this job (" + JOB + ")."]}
    answers.set(f"GET /jobs/{JOB}/checkpoints/config", none, status=404)
    assert flink.kept_checkpoint(JOB) is None


def test_a_checkpoint_is_told_when_no_other_can_follow_or_not_at_all(
    flink: Flink, answers: Answers
) -> None:
    ended(answers, "CANCELLING")
    with pytest.raises(FlinkRefused, match=f"is to end, and has not after 60 s.*stop {JOB}"):
        flink.kept_checkpoint(JOB, clock=iter(range(100)).__next__, sleep=lambda _: None)

    def end(seconds: float) -> None:
        answers.set(f"GET /jobs/{JOB}", {"state": "CANCELED"})

    assert flink.kept_checkpoint(JOB, sleep=end) == COMPLETED["external_path"]


def test_checkpoints_before_the_first_tell_what_was_restored(
    flink: Flink, answers: Answers
) -> None:
    restored = {"id": 9, "restore_timestamp": 1, "is_savepoint": True, "external_path": "file:/s"}
    latest = {"completed": None, "savepoint": None, "failed": None, "restored": restored}
    answers.set(f"GET /jobs/{JOB}/checkpoints", {"counts": COUNTS, "latest": latest})
    assert flink.checkpoints(JOB).restored_from == "file:/s"
    assert flink.checkpoints(JOB).last_at is None


def test_restarts_are_counted(flink: Flink, answers: Answers) -> None:
    request = f"GET /jobs/{JOB}/metrics?get=numRestarts"
    answers.set(request, [{"id": "numRestarts", "value": "2"}])
    assert flink.restarts(JOB) == 2
    answers.set(request, [])
    assert flink.restarts(JOB) == 0


def test_a_failure_is_told_by_its_innermost_python_exception(
    flink: Flink, answers: Answers
) -> None:
    entry = {
        "exceptionName": "org.apache.flink.runtime.taskmanager.AsynchronousException",
        "stacktrace": JAVA, "timestamp": 1795407629477, "failureLabels": {},
        "taskName": "[3]Read/{Start, List partitions} (2/2) - execution #0",
        "endpoint": "localhost:35493", "taskManagerId": "taskmanager-1",
        "concurrentExceptions": [],
    }  # fmt: skip
    history = {"entries": [entry], "truncated": False}
    answers.set(f"GET /jobs/{JOB}/exceptions", {"exceptionHistory": history})
    [failure] = flink.failures(JOB)
    assert failure.cause == (
        "velocity.io.kafka_consumer.KafkaReadError: cannot list the partitions; create the topic"
        " [while running 'Read/List partitions']"
    )


def test_a_stop_waits_for_its_savepoint_and_gives_the_path(flink: Flink, answers: Answers) -> None:
    answers.set(f"POST /jobs/{JOB}/stop", {"request-id": REQUEST}, status=202)
    answers.set(
        f"GET /jobs/{JOB}/savepoints/{REQUEST}",
        {"status": {"id": "IN_PROGRESS"}, "operation": None},
        {"status": {"id": "COMPLETED"}, "operation": {"location": "file:/s/savepoint-03794e"}},
    )
    waits: list[float] = []
    path = flink.stop(JOB, directory="/s", clock=lambda: 0.0, sleep=waits.append)
    assert path == "file:/s/savepoint-03794e"
    assert len(waits) == 1
    assert answers.asked[0][1] == {"drain": False, "targetDirectory": "/s"}


def test_a_stop_leaves_the_folder_to_the_cluster_if_none_is_given(
    flink: Flink, answers: Answers
) -> None:
    answers.set(f"POST /jobs/{JOB}/stop", {"request-id": REQUEST}, status=202)
    done = {"status": {"id": "COMPLETED"}, "operation": {"location": "file:/s"}}
    answers.set(f"GET /jobs/{JOB}/savepoints/{REQUEST}", done)
    flink.stop(JOB, drain=True)
    assert answers.asked[0][1] == {"drain": True}


def test_a_savepoint_that_fails_says_why(flink: Flink, answers: Answers) -> None:
    answers.set(f"POST /jobs/{JOB}/stop", {"request-id": REQUEST}, status=202)
    cause = {"class": "java.util.concurrent.CompletionException", "stack-trace": NO_FOLDER}
    failed = {"status": {"id": "COMPLETED"}, "operation": {"failure-cause": cause}}
    answers.set(f"GET /jobs/{JOB}/savepoints/{REQUEST}", failed)
    with pytest.raises(SavepointFailed, match="Failed to create savepoint directory at /proc/no"):
        flink.stop(JOB)


def test_a_savepoint_that_takes_too_long_is_given_up(flink: Flink, answers: Answers) -> None:
    answers.set(f"POST /jobs/{JOB}/stop", {"request-id": REQUEST}, status=202)
    waits = {"status": {"id": "IN_PROGRESS"}, "operation": None}
    answers.set(f"GET /jobs/{JOB}/savepoints/{REQUEST}", waits)
    time = iter(range(100))
    with pytest.raises(SavepointFailed, match="after 5 s"):
        flink.stop(JOB, patience=5, clock=lambda: next(time), sleep=lambda _: None)


def test_a_job_is_cancelled(flink: Flink, answers: Answers) -> None:
    answers.set(f"PATCH /jobs/{JOB}?mode=cancel", {}, status=202)
    flink.cancel(JOB)
    assert [request for request, _ in answers.asked] == [f"PATCH /jobs/{JOB}?mode=cancel"]


def test_what_the_cluster_does_not_do_is_told_in_its_own_words(
    flink: Flink, answers: Answers
) -> None:
    answers.set(f"PATCH /jobs/{JOB}?mode=cancel", {"errors": [ENDED]}, status=409)
    with pytest.raises(FlinkRefused, match=r"answers 409: Job cancellation failed because .*\.$"):
        flink.cancel(JOB)


def test_a_job_that_the_cluster_forgot_is_unknown(flink: Flink, answers: Answers) -> None:
    answers.set(f"GET /jobs/{JOB}", {"errors": [GONE]}, status=404)
    with pytest.raises(UnknownJob, match=JOB):
        flink.vertices(JOB)


def test_a_place_where_nothing_listens_is_told_with_the_remedy() -> None:
    with pytest.raises(FlinkUnreachable, match=r"velocity stack up.*--flink-master"):
        Flink("127.0.0.1:9").jobs()


def test_a_server_that_is_no_flink_is_told(flink: Flink, answers: Answers) -> None:
    answers.set("GET /overview", b"<html>")
    with pytest.raises(FlinkUnreachable, match="is no Flink"):
        flink.version()


def test_the_innermost_cause_of_java_alone_is_found() -> None:
    assert root_cause(NO_FOLDER) == "Failed to create savepoint directory at /proc/nosuch"
    assert root_cause("") == "no cause is given"


def test_a_cause_is_no_longer_than_a_screen() -> None:
    assert len(root_cause("x.Y: " + "a" * 100_000)) < 2_000


def test_every_error_survives_pickling() -> None:
    kinds = [kind for kind in vars(flink_errors).values() if isinstance(kind, type)]
    errors = [kind("why") for kind in kinds if issubclass(kind, FlinkError)]
    assert len(errors) == 6
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), "why")
