"""Submission of a graph to Flink through Beam's job server, which lives only as long as it takes."""

import logging
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import apache_beam as beam
import yaml
from apache_beam.options.pipeline_options import (
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
)
from apache_beam.runners.runner import PipelineState

from velocity.pipelines.graph import Applied, Until
from velocity.runners.flink import (
    FLINK_VERSION,
    RUNNER_OPTIONS,
    FlinkOptions,
    Target,
    configuration,
    pipeline_options,
    target,
    unique_name,
)
from velocity.runners.flink_errors import FlinkError, FlinkRefused, JobFailed, root_cause
from velocity.runners.flink_job_server import job_server
from velocity.runners.flink_records import Submission, forget_ended, place_of, remember
from velocity.runners.flink_rest import Flink, FlinkJob
from velocity.runners.jobserver import job_server_jar
from velocity.runners.stack_java import installed_jdks, need_jdk
from velocity.runners.stack_paths import state_folder
from velocity.runners.stack_ports import HOST
from velocity.runners.stack_state import read_state

START_WITHIN: Final = 180.0
"""Seconds that Flink has to start all tasks of a job, its Python workers among them."""

SETTLE: Final = 3.0
"""Seconds that all tasks must have run before a start counts as one."""

CAUSE_SHOWS_WITHIN: Final = 10.0
"""Seconds that a job may be listed as failed before Flink says why.

What Flink tells of one job may be as old as its ``web.refresh-interval``, 3 s; the list is not.
"""

_LOCAL_JVM: Final = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""Of a job server that has Flink in it: what its Java does is little, and of a backlog of five million events the
optimising compiler would take a sixth of the processors' time. ``--job_server_jvm_properties`` gives others."""
_SUBMIT_JVM: Final = ("-Xmx512m", *_LOCAL_JVM)
"""Of one that submits a job and ends."""

_LACKS_SLOTS: Final = "Could not acquire the minimum required resources"

_NOT_AVAILABLE: Final = "because the operator is not available in the new program"
_REMEDY: Final = (
    " (A job with one subtask does not resume as one with several, nor the other way: Flink's ids"
    " of operators depend on it. Give a --parallelism of 1 if it had 1, else of 2 or more.)"
)

Report = Callable[[str], None]
"""Told of progress."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that runs on a cluster."""

    flink: Flink
    id: str
    name: str


def submit(
    graph: Applied,
    options: FlinkOptions,
    own: Sequence[str],
    until: Until = None,
    *,
    command: Sequence[str] = (),
    report: Report = lambda message: None,
) -> Submitted:
    """Submits a graph to a cluster, and returns when all of its tasks run (or have ended).

    ``own`` are the user's Beam options; ``command`` is what submits the job again. Raises ``JobFailed`` with the root cause if the job does
    not come to run, and ``FlinkError`` and ``StackError`` for what it lacks. Whatever it raises,
    it leaves neither a process nor a job behind.
    """
    with _submitting(graph, options, own, until, report) as (flink, name, result, others):
        job = await_running(flink, name, partial(_failure, result), report, others=others)
    remember(Submission(name, flink.url, list(command), list(own)))
    return Submitted(flink, job, name)


def submit_and_wait(
    graph: Applied,
    options: FlinkOptions,
    own: Sequence[str],
    showing: Callable[[Submitted], AbstractContextManager[None]],
    report: Report = lambda message: None,
) -> Any:
    """Runs a graph of bounded input on a cluster to its end; Beam's result, with its metrics.

    ``showing`` is entered once Flink has taken the job. Raises as ``submit`` does, and ``JobFailed``
    if the job fails; whatever it raises, Ctrl-C too, it leaves neither a process nor a job behind.
    """
    with _submitting(graph, options, own, "latest", report) as (flink, name, result, others):
        job = await_taken(flink, name, partial(_failure, result), report, others=others)
        with showing(Submitted(flink, job, name)):
            while not PipelineState.is_terminal(result.state):
                time.sleep(0.5)
            try:
                result.wait_until_finish()
            except RuntimeError as error:
                raise JobFailed(f"{name} failed: {root_cause(str(error))}") from error
            result.metrics()  # it keeps them, and the job server is there to be asked no longer
    shutil.rmtree(place_of(flink.url, name), ignore_errors=True)
    return result


@contextmanager
def _submitting(
    graph: Applied, options: FlinkOptions, own: Sequence[str], until: Until, report: Report
) -> Iterator[tuple[Flink, str, Any, Collection[str]]]:
    """Submits a graph under a name; within, the job server lives. An exception ends the job too.

    Gives the cluster, the name, Beam's result, and the ids of jobs that were there before.
    """
    where = target(options, read_state(state_folder()), own)
    flink = Flink(where.rest)
    _check(flink, options)
    name = options.name or unique_name(graph.job.job)
    others = frozenset(job.id for job in flink.jobs())
    forget_ended(flink)
    place = place_of(flink.url, name)
    chosen = pipeline_options(options, where, name, bounded=until is not None)
    pipeline = _pipeline(graph, until, [*chosen, *own])
    try:
        with _interruptible(), serving(options, where, pipeline, place / "artifacts", report):
            try:
                report(f"submitting {name}")
                yield flink, name, pipeline.run(), others
            except BaseException:
                cancel_named(flink, name)
                raise
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _check(flink: Flink, options: FlinkOptions) -> None:
    version = flink.version()
    if options.job_server_jar is None and not version.startswith(FLINK_VERSION):
        raise FlinkError(
            f"Flink at {flink.url} is {version}, and our job server is for {FLINK_VERSION}: give"
            " the one that Beam publishes for it with --job-server-jar"
        )
    if options.name and any(j.name == options.name and not j.ended for j in flink.jobs()):
        raise FlinkError(
            f"a job named {options.name} is running: give another --name, or stop that one with"
            f" `velocity stop {options.name}`"
        )


def _pipeline(graph: Applied, until: Until, options: list[str]) -> beam.Pipeline:
    pipeline = beam.Pipeline(options=PipelineOptions(options))
    graph.apply(pipeline, until)
    return pipeline


@contextmanager
def serving(
    options: FlinkOptions,
    where: Target,
    pipeline: beam.Pipeline,
    artifacts: Path,
    report: Report = lambda message: None,
) -> Iterator[None]:
    """Within, a job server takes the pipeline; afterwards it has ended.

    Artifacts (the files that a job is staged with) are read by the TaskManagers whenever they
    start a worker, for as long as the job lives: so they outlive the server. A job server, or a
    folder of artifacts, that the user's own Beam options name is taken instead.
    """
    portable = pipeline.options.view_as(PortableOptions)
    server = pipeline.options.view_as(JobServerOptions)
    if portable.job_endpoint:
        yield
        return
    jar = job_server_jar(options.job_server_jar, progress=report)
    jdk = need_jdk(installed_jdks(), user="The Flink job server", oldest=11, newest=21, best=17)
    if not server.artifacts_dir:
        artifacts.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="velocity-job-server-") as temporary:
        own = Path(temporary)
        command = [
            str(jdk.java),
            *(server.job_server_jvm_properties or (_LOCAL_JVM if where.local else _SUBMIT_JVM)),
            "-jar",
            str(jar),
            "--flink-master",
            where.rest,
            "--artifacts-dir",
            server.artifacts_dir or str(artifacts),
            "--clean-artifacts-per-job",
            "false",
            "--job-host",
            HOST,
            "--artifact-port",
            "0",
            "--expansion-port",
            "-1",
        ]
        keys = configuration(options)
        if where.local:
            if where.workers is None:  # they are threads of this process
                from velocity.runners.stack_worker_states import bound_states  # it imports Beam

                bound_states()
            # by default it keeps checkpoints in memory, and fails from 5 MB on
            keys["state.checkpoints.dir"] = (own / "checkpoints").as_uri()
        if keys:
            (own / "config.yaml").write_text(yaml.safe_dump(keys))
            command += ["--flink-conf-dir", temporary]
        report("starting the job server")
        with job_server(command, own / "log") as endpoint:
            portable.job_endpoint = endpoint
            yield


def await_running(
    flink: Flink,
    name: str,
    failed: Callable[[], str | None],
    report: Report = lambda message: None,
    *,
    others: Collection[str] = (),
    within: float = START_WITHIN,
    settle: float = SETTLE,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """The id of the job of this name, once all its tasks have run for a while, or it has finished.

    ``others`` are the ids of jobs that were there before: one that was stopped may have had the
    name. ``failed`` gives the cause if the job server could not submit it. Raises ``JobFailed`` for that,
    for a job that fails before it has run (though Flink would start it again), and for one that
    does not run ``within`` so many seconds.
    """
    deadline = clock() + within
    since: float | None = None  # all tasks run
    ended: float | None = None
    while True:
        job = _taken(flink, name, failed, others)
        failures = flink.failures(job.id) if job else []
        # What waits for slots fails over and over on a cluster that is some minutes old.
        for_slots = all(_LACKS_SLOTS in failure.cause for failure in failures)
        if job is None:
            waits_for = "Flink to take the job"
        elif failures and (job.ended or not for_slots):
            why = (
                f"{failures[0].cause}: {_slots(*flink.slots())}" if for_slots else failures[0].cause
            )
            why += _REMEDY if _NOT_AVAILABLE in why else ""
            raise JobFailed(f"{name} failed as it started: {why}")
        elif job.ended:
            if job.state == "FINISHED":
                return job.id
            ended = clock() if ended is None else ended
            if job.state != "FAILED" or clock() - ended >= CAUSE_SHOWS_WITHIN:
                raise JobFailed(f"{name} was ended as it started: {job.state}")
            waits_for = "Flink to say why it failed"
        elif job.running:
            since = clock() if since is None else since
            if clock() - since >= settle:
                return job.id
            waits_for = "the tasks to settle"
        else:
            since = None
            lacks_slots = bool(failures or job.tasks.get("scheduled"))
            waits_for = _waits_for(job.tasks, flink, lacks_slots)
        if clock() >= deadline:
            raise JobFailed(f"{name} does not run after {within:.0f} s: it waits for {waits_for}")
        report(f"{name}: waiting for {waits_for}")
        sleep(0.3)


def await_taken(
    flink: Flink,
    name: str,
    failed: Callable[[], str | None],
    report: Report = lambda message: None,
    *,
    others: Collection[str] = (),
    within: float = START_WITHIN,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """The id of the job of this name, once Flink has it; its tasks may have to wait for each other.

    Raises ``JobFailed`` as ``await_running`` does.
    """
    deadline = clock() + within
    while True:
        if job := _taken(flink, name, failed, others):
            return job.id
        if clock() >= deadline:
            raise JobFailed(f"{name} is not on Flink after {within:.0f} s")
        report(f"{name}: waiting for Flink to take the job")
        sleep(0.3)


def _taken(
    flink: Flink, name: str, failed: Callable[[], str | None], others: Collection[str]
) -> FlinkJob | None:
    """The job of this name, if Flink has it; ``JobFailed`` if it could not be submitted."""
    jobs = (job for job in flink.jobs() if job.name == name and job.id not in others)
    job = next(jobs, None)
    if job is None and (cause := failed()):
        raise JobFailed(f"{name} could not be submitted: {cause}")
    return job


def _waits_for(tasks: Mapping[str, int], flink: Flink, lacks_slots: bool) -> str:
    if lacks_slots:
        free, slots = flink.slots()
        if not free:
            return _slots(free, slots)
    working = tasks.get("running", 0) + tasks.get("finished", 0)
    return f"tasks: {working} of {tasks['total']} run (each TaskManager starts Python workers)"


def _slots(free: int, slots: int) -> str:
    return (
        f"slots: {slots - free} of Flink's {slots} are taken (a lower --parallelism needs fewer;"
        " `velocity jobs` shows what has them)"
    )


def cancel_named(flink: Flink, name: str) -> None:
    """Cancels what has come to Flink under this name and has not ended."""
    for job in flink.jobs():
        if job.name == name and not job.ended:
            try:
                flink.cancel(job.id)
            except FlinkRefused:  # it ended in between
                if not any(other.id == job.id and other.ended for other in flink.jobs()):
                    raise


def _failure(result: Any) -> str | None:
    """Why the job server could not submit a job; None if it has, or is about to."""
    if result.state not in ("FAILED", "CANCELLED"):
        return None
    try:
        result.wait_until_finish()
    except RuntimeError as error:
        return root_cause(str(error))
    return "no cause is given"


class KnownNoise(logging.Filter):
    """Drops what Beam says of options that it passes on all the same, and job messages that come
    as an exception too.

    >>> def record(text): return logging.LogRecord("x", logging.WARNING, "x", 1, text, (), None)
    >>> KnownNoise().filter(record("Unparseable argument: --savepoint_path=/x"))
    False
    >>> KnownNoise().filter(record("Unparseable argument: --paralelism=3"))
    True
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        option = text.removeprefix("Unparseable argument: ").partition("=")[0]
        return not (option != text and option in RUNNER_OPTIONS) and (
            record.module != "portable_runner" or record.name != "root"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Within, known noise of Beam's is not logged."""
    noise = KnownNoise()
    loggers = [logging.getLogger(name) for name in ("apache_beam.options.pipeline_options", "root")]
    for logger in loggers:
        logger.addFilter(noise)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(noise)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within, SIGTERM ends things in order, as Ctrl-C does."""

    def terminate(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
