"""Running a job: its graph on a runner, with progress while it runs and its counters at the end."""

import json
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from velocity.io.elastic_setup import apply
from velocity.io.kafka_readers import PartitionReader
from velocity.pipelines.graph import Applied, Graph, Until
from velocity.pipelines.job import DeadLetterSpec, Job, Sinks, SqliteSink
from velocity.pipelines.templates import setup_of
from velocity.runners.flink import LOCAL, FlinkOptions, pipeline_options, target, unique_name
from velocity.runners.flink_errors import JobFailed, root_cause
from velocity.runners.flink_submit import quiet, serving, submit
from velocity.runners.flink_view import watch
from velocity.runners.options import options_for
from velocity.runners.stack_state import StackState
from velocity.runners.stack_workers import workers
from velocity.runners.terminal import every

# The direct runner would cache states that are in its own memory anyway, and for the size of each
# one written Beam looks at the globals of all modules: 3 ms a state (Beam 2.77, objsize 0.7.1).
worker_handlers.STATE_CACHE_SIZE_MB = 0

COUNTERS: Final = {
    "read_messages": "messages read",
    "archive_rows": "events read from the archive",
    "decoded_rows": "events decoded",
    "filtered_rows": "events kept by the filter",
    "enriched_rows": "rows enriched",
    "rest_calls": "REST calls",
    "rest_retries": "REST retries",
    "rest_splits": "REST calls split",
    "rest_held": "REST calls held back by the breaker",
    "cache_hits": "cache hits",
    "cache_misses": "cache misses",
    "cache_stale": "old answers used",
    "cache_shared": "answers of other workers",
    "enrich_keys_missing": "keys not known",
    "enrich_keys_failed": "keys not looked up",
    "enrich_wait_ms": "ms waited for services",
    "archived_rows": "events archived",
    "partials": "partial results",
    "written_messages": "messages written to Kafka",
    "documents_written": "documents written",
    "documents_stale": "documents already newer",
    "dead_letters_written": "dead letters written",
}
"""The counters that a summary shows, in this order, and what they count."""

Counters = Mapping[str, int]


def redirect(job: Job, *, sqlite: Path | None = None, dead_letters: Path | None = None) -> Job:
    """The job with a SQLite file in place of its documents' sinks, or a folder in place of its dead
    letters; events that go to Kafka go there still."""
    changes: dict[str, Any] = {}
    if sqlite is not None:
        changes["sinks"] = Sinks(sqlite=SqliteSink(path=str(sqlite)), kafka=job.sinks.kafka)
    if dead_letters is not None:
        changes["dead_letters"] = DeadLetterSpec(parquet=str(dead_letters))
    return job.model_copy(update=changes)


def run_job(
    job: Job,
    runner: str,
    *,
    until: datetime | Literal["latest"] | None,
    sqlite: Path | None,
    dead_letters: Path | None,
    options: list[str],
    flink: FlinkOptions | None = None,
    command: Sequence[str] = (),
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Runs a job to its end, or until it is stopped; the exit code, 0 if all went well.

    ``options`` are the user's own for Beam. A job that is given to a Flink cluster goes on there
    when this process ends; ``command`` is what submits it again.
    """
    console = console or Console(stderr=True)
    graph = Graph(redirect(job, sqlite=sqlite, dead_letters=dead_letters))
    flink = flink or FlinkOptions()
    _set_up(graph, console)
    if runner == "flink" and flink.master != LOCAL:
        return _on_cluster(graph, flink, options, until, command, console, as_json)
    if runner == "flink":
        counters = in_job_server(graph, flink, options, until, console)
    else:
        counters = run(graph, options_for(runner, options), until, console)
    if as_json:
        print(json.dumps({"job": job.job, "counters": dict(counters)}))
    else:
        console.print(summary(counters))
    return 0


def _set_up(graph: Graph, console: Console) -> None:
    """Brings Elasticsearch up to date with the job, unless others do; tells what it has changed."""
    sink = graph.job.sinks.elasticsearch
    if sink is None or sink.setup != "at_start":
        return
    with console.status(f"{graph.job.job}: setting up Elasticsearch"):
        wanted = setup_of(graph)
        with graph.elasticsearch.open() as client:
            changes = list(apply(client, wanted))
    for change in changes:
        if change.state != "unchanged":
            console.print(f"Elasticsearch: {change}", highlight=False, soft_wrap=True, markup=False)


def run(
    graph: Applied,
    options: list[str],
    until: Until,
    console: Console,
    around: Callable[[beam.Pipeline], AbstractContextManager[None]] = lambda _: nullcontext(),
    showing: Callable[[str, Console], AbstractContextManager[None]] | None = None,
) -> Counters:
    """Runs a graph and gives its counters when it has ended. SIGINT and SIGTERM cancel it.

    ``around`` is entered with the pipeline before it runs, and left when it has ended; so is
    ``showing`` with the job's name, which shows progress.
    """
    with quiet():
        pipeline = beam.Pipeline(options=PipelineOptions(options))
        graph.apply(pipeline, until)
        with (
            (showing or _progress)(graph.job.job, console),
            around(pipeline),
            _until_signal() as stop,
        ):
            try:
                result = pipeline.run()
                stop.append(result.cancel)
                result.wait_until_finish()
            except Exception as error:
                if (own := of_a_worker(error)) is not None:
                    raise JobFailed(own) from error
                if (said := discreet(error)) is None:
                    raise
                raise JobFailed(f"{graph.job.job} failed{said}") from error
            return counters_of(result)


def of_a_worker(error: BaseException) -> str | None:
    """The text of an error of Velocity's own that came from a worker process, as a trace; else None.

    >>> of_a_worker(RuntimeError("Traceback (most recent call last):\\n  File a.py\\nvelocity.io.x.No: why"))
    'why'
    >>> of_a_worker(RuntimeError("Traceback (most recent call last):\\n  File a.py\\nKeyError: 0817"))
    """
    if "Traceback (most recent call last)" not in str(error):
        return None
    kind, _, text = root_cause(str(error)).partition(": ")
    return text if kind.startswith("velocity.") else None


def discreet(error: BaseException) -> str | None:
    """What may be told of an error that a step of a graph has raised; None if that is all of it.

    The text of one that is not Velocity's own may hold what was in an event.

    >>> discreet(ValueError("no number: 0817 [while running 'Derive']"))
    ' in Derive: ValueError; its text may be of an event: velocity --debug shows it'
    """
    step = re.search(r"\[while running '([^']+)'\]", str(error))
    causes = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if step is None or any(type(cause).__module__.startswith("velocity.") for cause in causes):
        return None
    frames = traceback.extract_tb(causes[-1].__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    kind = type(causes[-1]).__name__
    return f" in {step[1]}: {kind}{where}; its text may be of an event: velocity --debug shows it"


def in_job_server(
    graph: Applied, flink: FlinkOptions, own: list[str], until: Until, console: Console
) -> Counters:
    """Runs a graph in a Flink inside the job server; its worker is in this process, several have one each."""
    where = target(flink, StackState())
    name = flink.name or unique_name(graph.job.job)
    with TemporaryDirectory(prefix="velocity-artifacts-") as artifacts, ExitStack() as stack:
        if flink.sdk_worker_parallelism > 1:  # threads of one process would share one core
            where = replace(where, workers=stack.enter_context(workers()))
        options = pipeline_options(flink, where, name, bounded=until is not None)

        def around(pipeline: beam.Pipeline) -> AbstractContextManager[None]:
            return serving(flink, where, pipeline, Path(artifacts))

        try:
            return run(graph, [*options, *own], until, console, around)
        except RuntimeError as error:
            raise JobFailed(f"{graph.job.job} failed: {root_cause(str(error))}") from error


def _on_cluster(
    graph: Graph,
    flink: FlinkOptions,
    own: list[str],
    until: Until,
    command: Sequence[str],
    console: Console,
    as_json: bool,
) -> int:
    """Submits a graph, and watches it unless that is not wanted."""
    with quiet(), console.status(f"{graph.job.job}: starting") as status:
        job = submit(graph, flink, own, until, command=command, report=status.update)
    console.print(
        f"{job.name} runs on Flink at {job.flink.url}, id {job.id}", highlight=False, soft_wrap=True
    )
    if flink.detach:
        print(json.dumps({"id": job.id, "name": job.name}) if as_json else job.id)
        console.print(
            f"look: velocity jobs    stop with a savepoint: velocity stop {job.name}",
            highlight=False,
            soft_wrap=True,
        )
        return 0
    return watch(job.flink, job.id, job.name, console=console, as_json=as_json)


def counters_of(result: Any) -> Counters:
    """All of Velocity's counters, summed over the steps of the graph; of a distribution how many
    samples it has, their sum and the greatest, as ``<name>_count``, ``_sum`` and ``_max``."""
    counters: dict[str, int] = {}
    found = result.metrics().query()
    for counter in found["counters"]:
        name = counter.key.metric
        if name.namespace == "velocity":
            counters[name.name] = counters.get(name.name, 0) + (counter.result or 0)
    for measured in found["distributions"]:
        name, data = measured.key.metric, measured.result
        if name.namespace == "velocity" and data is not None and data.count:
            for part in ("count", "sum"):
                key = f"{name.name}_{part}"
                counters[key] = counters.get(key, 0) + getattr(data, part)
            key = f"{name.name}_max"
            counters[key] = max(counters.get(key, 0), data.max)
    return counters


def summary(counters: Counters) -> Table:
    """The counters as a table; dead letters by cause at its end."""
    table = Table(title="Counters", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    shown = {name: text for name, text in COUNTERS.items() if name in counters}
    for name, text in shown.items():
        table.add_row(text, f"{counters[name]:,}")
        if name == "rest_calls":
            _mean(table, counters, "keys in a REST call", "rest_call_keys")
            _mean(table, counters, "ms a REST call took", "rest_call_ms")
        if name == "cache_misses" and (asked := counters[name] + counters.get("cache_hits", 0)):
            table.add_row("cache hit ratio", f"{counters.get('cache_hits', 0) / asked:.1%}")
    for name in sorted(counters.keys() - COUNTERS.keys()):
        if cause := name.removeprefix("dead_letters_") if name.startswith("dead_l") else "":
            table.add_row(f"dead letters: {cause}", f"{counters[name]:,}")
    return table


def _mean(table: Table, counters: Counters, what: str, name: str) -> None:
    if count := counters.get(f"{name}_count"):
        mean, greatest = counters[f"{name}_sum"] / count, counters[f"{name}_max"]
        table.add_row(f"{what}: mean, most", f"{mean:,.1f}, {greatest:,}")


@contextmanager
def _progress(job: str, console: Console) -> Iterator[None]:
    """Shows how far this process has read; a runner elsewhere shows its own."""
    PartitionReader.positions.clear()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{job}: starting")

        def show() -> None:
            if read := sum(PartitionReader.positions.values()):
                progress.update(task, description=f"{job}: read to offset {read:,} in all")

        with every(0.2, show):
            yield


@contextmanager
def _until_signal() -> Iterator[list[Callable[[], Any]]]:
    """Calls what is put into the list when SIGTERM comes; as Ctrl-C does, it ends the run."""
    stop: list[Callable[[], Any]] = []

    def terminate(number: int, frame: Any) -> None:
        for cancel in stop:
            cancel()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield stop
    except KeyboardInterrupt:
        for cancel in stop:
            cancel()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
