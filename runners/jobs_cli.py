"""The commands ``velocity jobs`` and ``velocity stop``: what runs on Flink, and how it ends."""

import json
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from velocity.runners.exit_codes import codes
from velocity.runners.flink import LOCAL, FlinkOptions, target
from velocity.runners.flink_records import Submission, forget_ended, recall
from velocity.runners.flink_rest import Flink, FlinkJob
from velocity.runners.flink_view import short
from velocity.runners.stack_paths import state_folder
from velocity.runners.stack_state import read_state
from velocity.runners.terminal import Json, output, working

EXIT_CODES: Final = codes(130, _1="Flink cannot, or has no such job")

Master = Annotated[
    str | None,
    typer.Option(
        "--flink-master",
        metavar="HOST:PORT",
        help="Flink's REST interface.",
        show_default="the stack's",
    ),
]


def add_jobs_commands(app: typer.Typer) -> None:
    """Adds both commands to the command line."""
    app.command(
        epilog="Examples: velocity jobs · velocity jobs --watch · velocity jobs --all --json."
        f" {EXIT_CODES}"
    )(jobs)
    app.command(
        epilog="Examples: velocity stop orders-20260105-073000-3fa9 · velocity stop NAME --to"
        f" /backup/savepoints · velocity stop NAME --cancel. {EXIT_CODES}"
    )(stop)


def jobs(
    all_: Annotated[bool, typer.Option("--all", help="Those that have ended too.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Show how they are until Ctrl-C: rates, lag, delays, dead letters, breakers; with"
            " --json an object every 10 s.",
        ),
    ] = False,
    master: Master = None,
    as_json: Json = False,
) -> None:
    """List the jobs on a Flink cluster, the latest first."""
    flink = cluster(master)
    if watch:
        from velocity.runners.flink_watch import watch_all

        raise typer.Exit(watch_all(flink, console=output(), as_json=as_json, ended_too=all_))
    found = [job for job in flink.jobs() if all_ or not job.ended]
    if as_json:
        print(json.dumps({"flink": flink.url, "jobs": [plain(job) for job in found]}))
        return
    if not found:
        print(f"No job {'is known' if all_ else 'runs'} on {flink.url}.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "id", "state", "tasks", "started", "up"):
        table.add_column(title, justify="right" if title in ("tasks", "up") else "left")
    for job in found:
        table.add_row(
            job.name,
            job.id,
            job.state,
            f"{job.tasks.get('running', 0)}/{job.tasks['total']}",
            f"{job.started:%Y-%m-%dT%H:%M:%SZ}",
            short(job.duration),
        )
    output().print(table)


def stop(
    job: Annotated[str, typer.Argument(metavar="ID|NAME", help="As velocity jobs shows it.")],
    savepoint: Annotated[
        bool, typer.Option("--savepoint", help="Keep all of its state, to go on from (the usual).")
    ] = False,
    drain: Annotated[
        bool,
        typer.Option(
            "--drain",
            help="Read nothing more, and close all windows: for a job that ends for good.",
        ),
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End it where it stands, without a savepoint.")
    ] = False,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder or URL for the savepoint, as the cluster's machines see it.",
            show_default="the cluster's",
        ),
    ] = None,
    master: Master = None,
    as_json: Json = False,
) -> None:
    """Stop a job on a Flink cluster; with a savepoint, unless told otherwise.

    Prints the savepoint's path, and the command that goes on from it. Of a job that is cancelled, or
    has failed, it is the last checkpoint's, which is yours to delete. A drained job has nothing to go
    on with: its documents are final.
    """
    if savepoint + drain + cancel > 1:
        raise typer.BadParameter("one of --savepoint, --drain and --cancel is wanted")
    if cancel and to is not None:
        raise typer.BadParameter("--to is for a savepoint, and --cancel makes none")
    flink = cluster(master)
    found = flink.find(job)
    known = recall(flink.url, found.name) or _elsewhere(flink, found)
    if found.ended:
        left = flink.kept_checkpoint(found.id)
        _tell(found, f"has ended before: {found.state}", known, checkpoint=left, as_json=as_json)
        return
    if cancel:
        flink.cancel(found.id)
        with working(f"{found.name}: ending"):
            left = flink.kept_checkpoint(found.id)
        _tell(found, "is cancelled", known, checkpoint=left, as_json=as_json)
    else:
        with working(f"{found.name}: {'draining' if drain else 'taking a savepoint'}"):
            path = flink.stop(found.id, directory=to, drain=drain)
        how = "is drained" if drain else "is stopped"
        _tell(found, how, None if drain else known, savepoint=path, as_json=as_json)
    forget_ended(flink)


def _tell(
    job: FlinkJob,
    how: str,
    known: Submission | None,
    *,
    savepoint: str | None = None,
    checkpoint: str | None = None,
    as_json: bool,
) -> None:
    """Says how a job has ended, what is left of it, and how it goes on; None has nothing to go on with."""
    path = savepoint or checkpoint
    resume = None if path is None or known is None else known.resuming(path)
    if as_json:
        left = {"savepoint": savepoint, "checkpoint": checkpoint, "resume": resume}
        print(json.dumps({"id": job.id, "name": job.name, **left}))
        return
    print(f"{job.name} {how}.")
    if savepoint is not None:
        print(f"savepoint: {savepoint}")
    if checkpoint is not None:
        print(f"checkpoint: {checkpoint}")
    if resume is not None:
        print(f"go on: {resume}")


def _elsewhere(flink: Flink, job: FlinkJob) -> Submission:
    """How a job may be resumed that was not submitted from here; the job file's name is to be given."""
    at = ("--flink-master", flink.url.removeprefix("http://"))
    command = ("velocity", "run", "JOB", "--runner", "flink", *at, "--name", job.name)
    return Submission(job.name, flink.url, command, ())


def cluster(master: str | None) -> Flink:
    """The cluster at an address, or the stack's."""
    if master == LOCAL:
        raise typer.BadParameter(f"a {LOCAL} Flink is inside the run that began it: end that one")
    own = ["--environment_type"]  # who asks needs no workers
    return Flink(target(FlinkOptions(master=master), read_state(state_folder()), own).rest)


def plain(job: FlinkJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "started": job.started.isoformat(),
        "uptime_s": job.duration.total_seconds(),
        "tasks": dict(job.tasks),
    }
