"""The command ``velocity``: its groups of commands, and what all of them have in common."""

import errno
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from velocity.pipelines.jobfile import JobFileError, read, variables
from velocity.runners.archive_cli import archive_app
from velocity.runners.board_cli import add_board_command
from velocity.runners.dashboards_cli import dashboards_app
from velocity.runners.dead_letters_cli import dead_letters_app
from velocity.runners.demo_cli import add_demo_commands
from velocity.runners.elastic_cli import add_elastic_commands
from velocity.runners.exit_codes import codes
from velocity.runners.ingest_cli import ingest_app
from velocity.runners.job_cli import add_job_commands
from velocity.runners.jobs_cli import add_jobs_commands
from velocity.runners.leave import run_and_leave
from velocity.runners.logs import VARIABLE, Format, configure
from velocity.runners.replay_cli import add_replay_command
from velocity.runners.run_cli import add_run_command
from velocity.runners.stack_cli import stack_app
from velocity.runners.terminal import JOBS, JSON, complain
from velocity.runners.trace_cli import add_trace_command
from velocity.runners.workers_cli import add_workers_command

EXIT_CODES: Final = codes(130)


class _Commands(TyperGroup):
    """Errors of all commands as one message on stderr; with ``--debug`` as they are.

    With ``--json`` they are an object on stdout too: ``error``, their type, and ``message``.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as error:
            broken_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
            if ctx.params.get("debug") or broken_pipe:
                raise
            told = _in_file(error, ctx.meta.get(JOBS, ()))
            message = _message(told)
            if ctx.meta.get(JSON):
                print(json.dumps({"error": type(error).__name__, "message": message}))
            if isinstance(told, JobFileError):
                print(message, file=sys.stderr)
            else:
                complain(ctx.invoked_subcommand or "", message)
            raise typer.Exit(1) from None


def _in_file(error: Exception, paths: Sequence[Path]) -> Exception:
    """What is wrong with a part of a job, with its file and line, if it is known whose part it is."""
    if not isinstance(error, ValueError) or not paths:
        return error
    from velocity.pipelines.graph import JobError, UnsetVariable  # it imports all of Beam

    if not isinstance(error, JobError):
        return error
    try:
        files = [read(path) for path in paths]
    except JobFileError:  # it was a pipe, or is another file by now
        return error
    if isinstance(error, UnsetVariable):
        files = [file for file in files if error.variable in variables(file.job)]
    elif len(files) > 1:
        return error
    if not files:  # it is an option's
        return error
    return JobFileError([file.source.problem(error.place, error.error) for file in files])


def _message(error: Exception) -> str:
    """Of an error that a user can mend its text; of a defect its type too, to be reported."""
    text = str(error) or type(error).__name__
    if isinstance(error, (KeyError, TypeError, AttributeError, AssertionError, IndexError)):
        text = f"{type(error).__name__}: {text}; this is a defect, and --debug shows more of it"
    return text


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
add_job_commands(app)
add_run_command(app)
add_jobs_commands(app)
add_replay_command(app)
add_elastic_commands(app)
add_demo_commands(app)
add_trace_command(app)
add_board_command(app)
add_workers_command(app)


def main() -> NoReturn:
    """The console script, which ends the process."""
    run_and_leave(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(version("velocity"))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    log_format: Annotated[
        Format | None,
        typer.Option(
            envvar=VARIABLE,
            help="How warnings and errors are written on stderr: as text, or as JSON lines.",
            show_default="text",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    if log_format is not None:
        os.environ[VARIABLE] = log_format  # of what it starts too
    configure(log_format or Format.TEXT)
