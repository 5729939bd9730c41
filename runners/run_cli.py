"""The command ``velocity run``."""

import os
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from velocity.pipelines import jobfile
from velocity.runners.arguments import (
    ON_FLINK,
    BeamOptions,
    FlinkMaster,
    Generation,
    Parallelism,
    Sqlite,
)
from velocity.runners.exit_codes import codes
from velocity.runners.flink import FlinkOptions
from velocity.runners.terminal import (
    JobPath,
    as_json_asked,
    complain,
    duration,
    injected,
    time_with_offset,
)

EXIT_CODES: Final = codes(130, _1="the job is wrong, or failed")


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


def add_run_command(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(
        epilog="Examples: velocity run job.yaml --until now --sqlite documents.db · velocity run"
        " job.yaml --runner flink --parallelism 4 --detach · velocity run job.yaml --runner flink"
        " --flink-master local -- --sdk_worker_parallelism=2."
        f" {EXIT_CODES}"
    )(run)


def run(
    ctx: typer.Context,
    path: JobPath,
    options: BeamOptions = None,
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
    sqlite: Sqlite = None,
    dead_letters: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Dead letters into this folder, not where the job says."),
    ] = None,
    flink_master: FlinkMaster = None,
    job_server_jar: Annotated[
        Path | None,
        typer.Option(
            metavar="JAR",
            help="Beam's job server for that Flink.",
            show_default="ours, for Flink 1.19",
            rich_help_panel=ON_FLINK,
        ),
    ] = None,
    worker_pool: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="What starts the Python workers.",
            show_default="the stack's",
            rich_help_panel=ON_FLINK,
        ),
    ] = None,
    parallelism: Parallelism = None,
    sdk_worker_parallelism: Annotated[
        int | None,
        typer.Option(
            help="Python processes of each TaskManager.", show_default="1", rich_help_panel=ON_FLINK
        ),
    ] = None,
    checkpoint_interval: Annotated[
        str | None,
        typer.Option(metavar="DURATION", show_default="10s", rich_help_panel=ON_FLINK),
    ] = None,
    state_backend: Annotated[
        str | None,
        typer.Option(
            metavar="hashmap|rocksdb", show_default="the cluster's", rich_help_panel=ON_FLINK
        ),
    ] = None,
    restart_attempts: Annotated[
        int | None,
        typer.Option(
            help="Restarts until the job has failed.",
            show_default="the cluster's",
            rich_help_panel=ON_FLINK,
        ),
    ] = None,
    restart_delay: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Before each of --restart-attempts.",
            show_default="10s",
            rich_help_panel=ON_FLINK,
        ),
    ] = None,
    from_savepoint: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Go on from a savepoint or checkpoint.", rich_help_panel=ON_FLINK
        ),
    ] = None,
    allow_non_restored_state: Annotated[
        bool,
        typer.Option(
            "--allow-non-restored-state",
            help="Drop the state of steps that the job no longer has.",
            rich_help_panel=ON_FLINK,
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="Of the job in Flink.", show_default="job and time", rich_help_panel=ON_FLINK
        ),
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Return once the job runs; print its id.", rich_help_panel=ON_FLINK
        ),
    ] = False,
    generation: Generation = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            callback=as_json_asked,
            help="Print a JSON object for other programs: of what was counted, when the job has ended;"
            " on a Flink cluster how it is, every 10 s, and with --detach its id.",
            rich_help_panel=ON_FLINK,
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
        checkpoint_interval=_optional(checkpoint_interval, "--checkpoint-interval"),
        state_backend=state_backend,
        restart_attempts=restart_attempts,
        restart_delay=_optional(restart_delay, "--restart-delay"),
        from_savepoint=from_savepoint,
        allow_non_restored_state=allow_non_restored_state or None,
        name=name,
        detach=detach or None,
    )
    job, source = jobfile.read(path)
    if sqlite is not None and not job.metrics:
        raise typer.BadParameter("this job has no metrics: no documents", param_hint="--sqlite")
    if generation is not None:
        job = job.model_copy(update={"generation": generation})

    from velocity.runners.run import redirect, run_job

    redirected = redirect(job, sqlite=sqlite, dead_letters=dead_letters)
    if problems := jobfile.check(redirected, os.environ, source):
        # Here what could not be checked is wrong too: the job can't run without it.
        raise jobfile.JobFileError([problem.as_error() for problem in problems])
    if until is None and stop is not None:
        complain("run", f"{_BOUNDED_ONLY[runner]}; reading up to now (--until now)")
    raise typer.Exit(
        injected(
            ctx,
            "run_job",
            partial(run_job, flink=flink, command=command_again(ctx), as_json=as_json),
        )(
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
    names = {"master": "--flink-master"}
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
    once = {"options", "from_savepoint", "allow_non_restored_state", "detach", "as_json"}
    command = ["velocity", "run"]
    for parameter in ctx.command.params:
        value = ctx.params.get(str(parameter.name))
        if value is None or parameter.name in once:
            continue
        text = str(value.absolute() if isinstance(value, Path) else value)
        command += [text] if parameter.param_type_name == "argument" else [parameter.opts[0], text]
    return command


def _optional(text: str | None, option: str) -> timedelta | None:
    return None if text is None else duration(text, option)
