"""What commands share of the terminal: output that programs can read, and times as users give them."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from rich.console import Console

from velocity.pipelines.job import parse_duration

JSON: Final = "velocity.json"
"""In the metadata of a command's context: whether programs read what it prints."""


def as_json_asked(ctx: typer.Context, wanted: bool) -> bool:
    """Notes for errors whether ``--json`` was given: the callback of that option."""
    ctx.meta[JSON] = wanted
    return wanted


JOBS: Final = "velocity.jobs"
"""There too: the job files that a command was given, for errors to name."""

_Paths = TypeVar("_Paths", Path, list[Path])


def jobs_given(ctx: typer.Context, paths: _Paths) -> _Paths:
    """Notes the job files for errors: the callback of that argument."""
    ctx.meta[JOBS] = [paths] if isinstance(paths, Path) else paths
    return paths


Json = Annotated[
    bool,
    typer.Option(
        "--json", callback=as_json_asked, help="Print one JSON object for other programs."
    ),
]
JobPath = Annotated[
    Path, typer.Argument(metavar="JOB", callback=jobs_given, help="A job file: docs/jobs.md.")
]
JobPaths = Annotated[
    list[Path],
    typer.Argument(metavar="JOB...", callback=jobs_given, help="Job files: docs/jobs.md."),
]


def output(*, markup: bool = True) -> Console:
    """The standard output; where it is no terminal, each row of a table stays on one line."""
    made = Console(highlight=False, markup=markup)
    if not made.is_terminal:
        made.width = 10_000  # whoever reads it breaks the lines
    return made


def time_with_offset(text: str, option: str | None = None) -> datetime:
    """A time of RFC 3339; raises ``typer.BadParameter``, which names the option if it is given.

    >>> time_with_offset("2026-01-05T00:00:00Z")
    datetime.datetime(2026, 1, 5, 0, 0, tzinfo=datetime.timezone.utc)
    """
    with suppress(ValueError):
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found
    raise typer.BadParameter(
        "a time with its offset is wanted, such as 2026-01-05T00:00:00Z", param_hint=option
    )


def duration(text: str, option: str) -> timedelta:
    """A duration of job files; raises ``typer.BadParameter``, which names the option.

    >>> duration("10s", "--part")
    datetime.timedelta(seconds=10)
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def working(text: str) -> AbstractContextManager[Any]:
    """Within, a terminal shows that something is at work, and what; elsewhere nothing is shown."""
    console = Console(stderr=True)
    return console.status(text) if console.is_terminal else nullcontext()


def complain(command: str, text: str) -> None:
    """Says on stderr what a command has against what it was given, or that it has failed."""
    print(f"velocity {command}: {text}", file=sys.stderr)


def injected(ctx: typer.Context, name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
    """What the command line was called with as ``obj={name: …}``, as tests do, or the usual."""
    found = ctx.obj.get(name, usual) if isinstance(ctx.obj, Mapping) else usual
    assert callable(found)
    return found


@contextmanager
def every(seconds: float, show: Callable[[], None]) -> Iterator[None]:
    """Calls ``show`` again and again in a thread of its own, for as long as it is entered."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            show()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
