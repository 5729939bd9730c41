"""The command ``velocity``.

Exit codes: 0 done; 1 a job is wrong, or failed; 2 wrong usage; 130 ended by Ctrl-C. ``velocity
stack`` has further ones of its own.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from velocity.pipelines import jobfile
from velocity.pipelines.job import LAST_GENERATION, Job, parse_duration
from velocity.runners.archive_cli import archive_app
from velocity.runners.dashboards_cli import dashboards_app
from velocity.runners.dead_letters_cli import dead_letters_app
from velocity.runners.elastic_cli import add_elastic_commands
from velocity.runners.flink import FlinkOptions
from velocity.runners.ingest_cli import ingest_app
from velocity.runners.jobs_cli import add_jobs_commands
from velocity.runners.replay_cli import add_replay_command
from velocity.runners.stack_cli import stack_app
from velocity.runners.terminal import output, time_with_offset

EXIT_CODES: Final = "Exit codes: 0 done · 1 a job is wrong, or failed · 2 wrong usage · 130 Ctrl-C"


class _Commands(TyperGroup):
    """Errors of all commands as one message on stderr; with ``--debug`` as they are."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as error:
            broken_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
            if ctx.params.get("debug") or broken_pipe:
                raise
            if isinstance(error, jobfile.JobFileError):
                print(error, file=sys.stderr)
            else:
                _complain(ctx.invoked_subcommand or "", _message(error))
            raise typer.Exit(1) from None


def _message(error: Exception) -> str:
    """Of an error that a user can mend its text; of a defect its type too, to be reported."""
    text = str(error) or type(error).__name__
    if isinstance(error, (KeyError, TypeError, AttributeError, AssertionError, IndexError)):
        text = f"{type(error).__name__}: {text}; this is a defect, and --debug shows more of it"
    return text


def _complain(command: str, text: str) -> None:
    print(f"velocity {command}: {text}", file=sys.stderr)


app = typer.Typer(
    name="velocity",
    cls=_Commands,
    help="Business metrics in event time: Kafka to Elasticsearch, on Apache Beam.",
    epilog=f"Begin with: velocity demo. {EXIT_CODES}",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # it prints local variables, which may be secrets
)
app.add_typer(stack_app, name="stack")
app.add_typer(dead_letters_app, name="dead-letters")
app.add_typer(archive_app, name="archive")
app.add_typer(ingest_app, name="ingest")
app.add_typer(dashboards_app, name="dashboards")
add_jobs_commands(app)
add_replay_command(app)
add_elastic_commands(app)


def main() -> None:
    """The console script."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        print(version("velocity"))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


JobPath = Annotated[Path, typer.Argument(metavar="JOB", help="A job file: docs/jobs.md.")]


@app.command(
    epilog="Examples: velocity validate pipelines/*.yaml · velocity validate job.yaml --json."
    f" {EXIT_CODES}"
)
def validate(
    jobs: Annotated[list[Path], typer.Argument(metavar="JOB", help="Job files: docs/jobs.md.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for other programs.")
    ] = False,
) -> None:
    """Check job files: every key, expression and column.

    Prints each problem with its line, or that a job is fine. Nothing outside is reached. What
    needs an environment variable that is not set is not checked, and a note says so.
    """
    reports = [_report(path) for path in jobs]
    if as_json:
        print(json.dumps({"files": reports}, indent=2, ensure_ascii=False))
    else:
        for report in reports:
            for problem in report["problems"]:
                print(jobfile.Problem(**problem))
            if report["ok"]:
                counts = ", ".join(f"{n} {what}" for what, n in report["counts"].items())
                print(f"{report['file']}: OK: {counts}")
    if not all(report["ok"] for report in reports):
        raise typer.Exit(1)


def _report(path: Path) -> dict[str, Any]:
    try:
        job, source = jobfile.read(path)
    except jobfile.JobFileError as error:
        problems, found = error.problems, {}
    else:
        problems = jobfile.check(job, os.environ, source)
        found = {"job": job.job, "counts": _counts(job)}
    ok = all(problem.note for problem in problems)
    return {"file": str(path), "ok": ok, **found, "problems": [asdict(p) for p in problems]}


def _counts(job: Job) -> dict[str, int]:
    counts = {
        "topic": len(job.source.kafka.topics),
        "field": len(job.fields),
        "enrichment": len(job.enrich),
        "derived column": len(job.derive),
        "metric": len(job.metrics),
    }
    return {what if n == 1 else f"{what}s": n for what, n in counts.items()}


@app.command(
    epilog="Example: velocity schema > job.schema.json, and as the first line of a job file:"
    f" `# yaml-language-server: $schema=job.schema.json`. {EXIT_CODES}"
)
def schema() -> None:
    """Print the JSON Schema of job files.

    Editors complete keys and explain them by it. With the YAML language server (VS Code's YAML
    extension and others) a job file names it in its first line, by path or URL:
    `# yaml-language-server: $schema=job.schema.json`
    """
    from velocity.pipelines import reference

    print(json.dumps(reference.schema(), indent=2, ensure_ascii=False))


class Format(StrEnum):
    """How a plan is shown."""

    TEXT = "text"
    MERMAID = "mermaid"
    JSON = "json"


@app.command(
    epilog="Examples: velocity plan pipelines/pharmacy_delivery.yaml · velocity plan job.yaml"
    f" --format mermaid. {EXIT_CODES}"
)
def plan(
    path: JobPath,
    format_: Annotated[
        Format, typer.Option("--format", help="A tree, a Mermaid flowchart, or JSON.")
    ] = Format.TEXT,
) -> None:
    """Show the graph of a job: its steps, and what each does.

    ${NAME} is shown as written, and no header or option with its value.
    """
    from velocity.pipelines import plan as plans

    job = jobfile.load(path)
    match format_:
        case Format.TEXT:
            output().print(plans.tree(job))
        case Format.MERMAID:
            print(plans.mermaid(job), end="")
        case Format.JSON:
            print(plans.as_json(job), end="")


@app.command(
    epilog="Examples: velocity simulate --events 1000000 · velocity simulate --rate 500 --domain"
    f" pharmacy_delivery --bootstrap-servers 127.0.0.1:19092. {EXIT_CODES}"
)
def simulate(
    ctx: typer.Context,
    bootstrap_servers: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The Kafka to write to.")
    ] = "127.0.0.1:9092",
    events: Annotated[int, typer.Option(min=0, help="Messages in all.")] = 200_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same messages.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(help="Messages sent per second.", show_default="as fast as it goes"),
    ] = None,
    event_rate: Annotated[
        float, typer.Option(help="Events per second of event time, as a day's mean.")
    ] = 100.0,
    start: Annotated[
        str, typer.Option(metavar="TIME", help="Event time of the first events, RFC 3339.")
    ] = "2026-01-05T00:00:00Z",
    late_share: Annotated[float, typer.Option(help="Of events sent late.")] = 0.05,
    duplicate_share: Annotated[float, typer.Option(help="Of events sent twice.")] = 0.005,
    malformed_share: Annotated[float, typer.Option(help="Of events that are spoiled.")] = 0.001,
    domain: Annotated[
        list[str] | None, typer.Option(help="Of the four; may be repeated.", show_default="all")
    ] = None,
    peak: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AFTER/LENGTH[/FACTOR]",
            help="A promotion: ten times as busy, or as FACTOR says; may be repeated.",
        ),
    ] = None,
    outage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN/AFTER/LENGTH",
            help="A service that publishes nothing, then all at once; may be repeated.",
        ),
    ] = None,
    sns: Annotated[bool, typer.Option("--sns", help="In the envelope of SNS.")] = False,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="That send a part of the events each.")
    ] = 1,
    expected: Annotated[
        Path | None, typer.Option(help="Write the documents that --job must have, as JSON lines.")
    ] = None,
    job: Annotated[
        Path | None, typer.Option(metavar="JOB", help="The job that --expected is for.")
    ] = None,
) -> None:
    """Write simulated events to Kafka: four domains of a health service, with their faults.

    Ctrl-C ends it: what was sent is still delivered, and counted.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from velocity.pipelines.disturbances import outage_of, peak_of
    from velocity.pipelines.produce import produce, produce_by
    from velocity.pipelines.simulator import Scenario

    if (expected is None) != (job is None):
        raise typer.BadParameter("--expected and --job go together")

    if rate is not None and not rate > 0:
        raise typer.BadParameter("a number above 0 is wanted", param_hint="--rate")
    chosen: dict[str, Any] = {"domains": tuple(domain)} if domain else {}
    begin = time_with_offset(start, "--start")
    try:
        scenario = Scenario(
            seed=seed,
            events=events,
            start=begin,
            rate=event_rate,
            late_share=late_share,
            duplicate_share=duplicate_share,
            malformed_share=malformed_share,
            peaks=tuple(map(peak_of, peak or ())),
            outages=tuple(map(outage_of, outage or ())),
            sns=sns,
            **chosen,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console(stderr=True)
    began = time.monotonic()
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn())
    if processes > 1:
        produced = _injected(ctx, "produce_by", produce_by)(
            processes, scenario, bootstrap_servers, rate=rate
        )
    else:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("sending", total=events)
            produced = _injected(ctx, "produce", produce)(
                scenario,
                bootstrap_servers,
                rate=rate,
                progress=lambda sent: progress.update(task, completed=sent),
            )
    seconds = time.monotonic() - began
    ended = "interrupted; " if produced.interrupted else ""
    print(f"{ended}{produced.messages:,} messages sent to {bootstrap_servers} in {seconds:.1f} s")
    if produced.interrupted:
        raise typer.Exit(130)
    if expected is not None and job is not None:
        from velocity.runners.demo import write_expected

        count = write_expected(expected, jobfile.load(job), scenario.divided(processes))
        print(f"{count:,} documents expected of {job}: {expected}")


def _injected(ctx: typer.Context, name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
    """What ``app`` was called with as ``obj={name: …}``, as tests do, or the usual."""
    found = ctx.obj.get(name, usual) if isinstance(ctx.obj, Mapping) else usual
    assert callable(found)
    return found


# -- what runs graphs: Beam is imported only now --------------------------------------------------


_FLINK: Final = "With --runner flink"


class Runner(StrEnum):
    """Where a graph runs."""

    DIRECT = "direct"
    PRISM = "prism"
    FLINK = "flink"


_BOUNDED_ONLY: Final = {
    Runner.DIRECT: "the direct runner can't stream",
    # Seen with 2.77: of several partitions it takes the watermark of the one that told last.
    Runner.PRISM: "Prism closes windows early in a stream of several partitions",
}


@app.command(
    epilog="Examples: velocity run job.yaml --until now --sqlite documents.db · velocity run"
    " job.yaml --runner flink --parallelism 4 --detach · velocity run job.yaml --runner flink"
    " --flink-master local -- --sdk_worker_parallelism=2."
    f" {EXIT_CODES}"
)
def run(
    ctx: typer.Context,
    path: JobPath,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- OPTIONS", help="Passed on as they are.", show_default=False),
    ] = None,
    runner: Annotated[Runner, typer.Option(help="Where the graph runs.")] = Runner.DIRECT,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="now|TIME",
            help="Stop at the end of the topics as it is now, or at messages of that time"
            " (RFC 3339).",
            show_default="flink: never; others: now",
        ),
    ] = None,
    sqlite: Annotated[
        Path | None, typer.Option(help="Documents into this file, not into the job's sinks.")
    ] = None,
    dead_letters: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Dead letters into this folder, not where the job says."),
    ] = None,
    flink_master: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|local",
            help="Flink's REST interface; local is a Flink inside this run, for trying out.",
            show_default="the stack's",
            rich_help_panel=_FLINK,
        ),
    ] = None,
    job_server_jar: Annotated[
        Path | None,
        typer.Option(
            metavar="JAR",
            help="Beam's job server for that Flink.",
            show_default="ours, for Flink 1.19",
            rich_help_panel=_FLINK,
        ),
    ] = None,
    worker_pool: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="What starts the Python workers.",
            show_default="the stack's",
            rich_help_panel=_FLINK,
        ),
    ] = None,
    parallelism: Annotated[
        int | None,
        typer.Option(
            help="Subtasks of each step, 1 to 128.", show_default="2", rich_help_panel=_FLINK
        ),
    ] = None,
    sdk_worker_parallelism: Annotated[
        int | None,
        typer.Option(
            help="Python processes of each TaskManager.", show_default="1", rich_help_panel=_FLINK
        ),
    ] = None,
    checkpoint_interval: Annotated[
        str | None,
        typer.Option(metavar="DURATION", show_default="10s", rich_help_panel=_FLINK),
    ] = None,
    state_backend: Annotated[
        str | None,
        typer.Option(
            metavar="hashmap|rocksdb", show_default="the cluster's", rich_help_panel=_FLINK
        ),
    ] = None,
    restart_attempts: Annotated[
        int | None,
        typer.Option(
            help="Restarts until the job has failed.",
            show_default="the cluster's",
            rich_help_panel=_FLINK,
        ),
    ] = None,
    restart_delay: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Before each of --restart-attempts.",
            show_default="10s",
            rich_help_panel=_FLINK,
        ),
    ] = None,
    from_savepoint: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Go on from a savepoint or checkpoint.", rich_help_panel=_FLINK
        ),
    ] = None,
    allow_non_restored_state: Annotated[
        bool,
        typer.Option(
            "--allow-non-restored-state",
            help="Drop the state of steps that the job no longer has.",
            rich_help_panel=_FLINK,
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="Of the job in Flink.", show_default="job and time", rich_help_panel=_FLINK
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Return once the job runs; print its id.", rich_help_panel=_FLINK
        ),
    ] = False,
    generation: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=LAST_GENERATION,
            help="Of the job's logic, instead of the job's own: documents of a later one replace"
            " those of an earlier one, also if they count fewer events.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Show the job as JSON lines, every 10 s.", rich_help_panel=_FLINK
        ),
    ] = False,
) -> None:
    """Run a job to the end of its topics, or until it is stopped.

    On a Flink cluster the job goes on when this command ends: Ctrl-C ends the view of it alone.
    What follows -- goes to Beam as it is. More: docs/runners.md.
    """
    if options and not options[0].startswith("-"):
        raise typer.BadParameter(
            f"one job is wanted; before options of the runner put --: -- {options[0]}"
        )
    stop: datetime | Literal["latest"] | None = None
    if until == "now" or (until is None and runner in _BOUNDED_ONLY):
        stop = "latest"
    elif until is not None:
        stop = time_with_offset(until, "--until")
    flink = _flink_options(
        runner,
        master=flink_master,
        job_server_jar=job_server_jar,
        worker_pool=worker_pool,
        parallelism=parallelism,
        sdk_worker_parallelism=sdk_worker_parallelism,
        checkpoint_interval=_duration(checkpoint_interval, "--checkpoint-interval"),
        state_backend=state_backend,
        restart_attempts=restart_attempts,
        restart_delay=_duration(restart_delay, "--restart-delay"),
        from_savepoint=from_savepoint,
        allow_non_restored_state=allow_non_restored_state or None,
        name=name,
        detach=detach or None,
        as_json=as_json or None,
    )
    job, source = jobfile.read(path)
    if generation is not None:
        job = job.model_copy(update={"generation": generation})

    from velocity.runners.run import redirect, run_job

    redirected = redirect(job, sqlite=sqlite, dead_letters=dead_letters)
    if problems := jobfile.check(redirected, os.environ, source):
        # Here what could not be checked is wrong too: the job can't run without it.
        raise jobfile.JobFileError([replace(problem, note=False) for problem in problems])
    if until is None and stop is not None:
        _complain("run", f"{_BOUNDED_ONLY[runner]}; reading up to now (--until now)")
    raise typer.Exit(
        _injected(ctx, "run_job", partial(run_job, flink=flink, command=command_again(ctx)))(
            job,
            runner.value,
            until=stop,
            sqlite=sqlite,
            dead_letters=dead_letters,
            options=options or [],
        )
    )


def _flink_options(runner: Runner, **given: Any) -> FlinkOptions:
    """The options that were given; wrong usage if they are not for this runner, or wrong."""
    chosen = {option: value for option, value in given.items() if value is not None}
    names = {"master": "--flink-master", "as_json": "--json"}
    if chosen and runner is not Runner.FLINK:
        option = next(iter(chosen))
        raise typer.BadParameter(
            f"{names.get(option, '--' + option.replace('_', '-'))} is for --runner flink"
        )
    try:
        return FlinkOptions(**chosen)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def command_again(ctx: typer.Context) -> list[str]:
    """The command as it was given, without what holds for this time alone, or is Beam's."""
    once = {"options", "from_savepoint", "allow_non_restored_state", "name", "detach", "as_json"}
    command = ["velocity", "run"]
    for parameter in ctx.command.params:
        value = ctx.params.get(str(parameter.name))
        if value is None or parameter.name in once:
            continue
        text = str(value.absolute() if isinstance(value, Path) else value)
        command += [text] if parameter.param_type_name == "argument" else [parameter.opts[0], text]
    return command


def _duration(text: str | None, option: str) -> timedelta | None:
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


@app.command(epilog=f"Example: velocity demo --events 1000000. {EXIT_CODES}")
def demo(
    ctx: typer.Context,
    events: Annotated[int, typer.Option(min=1, help="Simulated events.")] = 200_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.")] = 1,
    folder: Annotated[
        Path, typer.Option(help="For documents and dead letters; replaced if it is a demo's.")
    ] = Path("demo"),
) -> None:
    """Run the main job over simulated events, and check each document by recomputation.

    Needs nothing but Python: Kafka and the REST service are embedded, documents go into SQLite.
    """
    if not _may_replace(folder):
        raise typer.BadParameter(
            f"{folder} holds other things than a demo's; name another", param_hint="--folder"
        )

    from velocity.runners.demo import demo as usual

    raise typer.Exit(_injected(ctx, "demo", usual)(events=events, seed=seed, folder=folder))


def _may_replace(folder: Path) -> bool:
    """Whether a folder is not there, or holds no more than a demo's results."""
    if not folder.exists():
        return True
    ours = {"documents.db", "documents.db-wal", "documents.db-shm", "dead-letters"}
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= ours
