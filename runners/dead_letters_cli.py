"""The commands of ``velocity dead-letters``: what failed, why, and once more through the job."""

import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from velocity.pipelines import jobfile
from velocity.runners.exit_codes import codes
from velocity.runners.terminal import JobPath, Json, output, time_with_offset, working

if TYPE_CHECKING:  # they bring Beam, which other commands can do without
    from velocity.io.dead_letter_store import Letter
    from velocity.pipelines.graph import Graph

EXIT_CODES: Final = codes(
    130, _1="letters are unreadable or can't be replayed, or there is none of that id"
)

dead_letters_app = typer.Typer(
    name="dead-letters",
    help="What a job could not carry to its end: look at it, and send it through again.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
)


CauseOption = Annotated[list[str] | None, typer.Option(help="Of this cause; may be repeated.")]
StageOption = Annotated[list[str] | None, typer.Option(help="Of this stage; may be repeated.")]
Since = Annotated[
    datetime | None,
    typer.Option(
        parser=time_with_offset, metavar="TIME", help="That failed then or later, RFC 3339."
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=time_with_offset, metavar="TIME", help="That failed before then."),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--dead-letters", metavar="DIR", help="They are in this folder, not where the job says."
    ),
]
Again = Annotated[bool, typer.Option("--replayed", help="Those that were replayed too.")]


@dataclass(frozen=True)
class Wanted:
    """Which letters a command is about."""

    cause: Sequence[str] | None = None
    stage: Sequence[str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    replayed: bool = True

    def __post_init__(self) -> None:
        from velocity.io.records import Cause, Stage

        for option, given, known in (
            ("--cause", self.cause, list(map(str, Cause))),
            ("--stage", self.stage, list(map(str, Stage))),
        ):
            for value in given or ():
                if value not in known:
                    raise typer.BadParameter(
                        f"{value!r} is none of {', '.join(known)}", param_hint=option
                    )

    def of(self, letters: Sequence["Letter"], limit: int | None = None) -> list["Letter"]:
        """In the order of their failures."""
        return [letter for letter in letters if self._admits(letter)][:limit]

    def _admits(self, letter: "Letter") -> bool:
        return (
            (not self.cause or letter.cause in self.cause)
            and (not self.stage or letter.stage in self.stage)
            and (self.since is None or letter.failed_at >= self.since)
            and (self.until is None or letter.failed_at < self.until)
            and (self.replayed or not letter.replayed)
        )


@dead_letters_app.command(
    "list",
    epilog="Examples: velocity dead-letters list job.yaml --cause service_failed · velocity"
    f" dead-letters list job.yaml --since 2026-01-05T00:00:00Z --json. {EXIT_CODES}",
)
def list_(
    path: JobPath,
    cause: CauseOption = None,
    stage: StageOption = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="The first so many.")] = 100,
    replayed: Again = False,
    dead_letters: Folder = None,
    as_json: Json = False,
) -> None:
    """List dead letters in the order of their failures."""
    found, problems = _read(path, dead_letters)
    wanted = Wanted(cause, stage, since, until, replayed).of(found)
    shown = wanted[:limit]
    if as_json:
        plain = [as_plain(letter) for letter in shown]
        print(json.dumps({"letters": plain, "count": len(wanted), "problems": problems}))
        return
    _tell(problems)
    if not wanted:
        print("No dead letters.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("id", "stage", "cause", "failed at", "error"):
        table.add_column(title, overflow="fold" if title == "error" else "ellipsis")
    for letter in shown:
        again = " (replayed)" if letter.replayed else ""
        table.add_row(
            letter.id + again, letter.stage, letter.cause, _second(letter.failed_at), letter.error
        )
    output(markup=False).print(table)
    if len(wanted) > len(shown):
        print(f"… and {len(wanted) - len(shown):,} more: --limit shows them.")


@dead_letters_app.command(
    epilog=f"Example: velocity dead-letters show job.yaml 'pharmacy.events/3/1207#1'. {EXIT_CODES}"
)
def show(
    path: JobPath,
    id_: Annotated[str, typer.Argument(metavar="ID", help="As list shows it.")],
    dead_letters: Folder = None,
    as_json: Json = False,
) -> None:
    """Show a dead letter whole: the error, its times, headers and bytes."""
    found, problems = _read(path, dead_letters)
    letters = [letter for letter in found if letter.id == id_]
    if as_json:
        plain = [as_plain(letter) for letter in letters]
        print(json.dumps({"letters": plain, "problems": problems}))
    else:
        _tell(problems)
        for letter in letters:
            output(markup=False).print(_whole(letter))
    if not letters:
        print(f"no dead letter {id_!r}: list shows the ids there are", file=sys.stderr)
        raise typer.Exit(1)


@dead_letters_app.command(
    epilog=f"Example: velocity dead-letters stats job.yaml --since 2026-01-05T00:00:00Z."
    f" {EXIT_CODES}"
)
def stats(
    path: JobPath,
    cause: CauseOption = None,
    stage: StageOption = None,
    since: Since = None,
    until: Until = None,
    dead_letters: Folder = None,
    as_json: Json = False,
) -> None:
    """Count dead letters by stage, cause and attempt, with the first and last failure of each."""
    found, problems = _read(path, dead_letters)
    groups: defaultdict[tuple[str, str, int], list[Letter]] = defaultdict(list)
    for letter in Wanted(cause, stage, since, until).of(found):
        groups[letter.stage, letter.cause, letter.attempt].append(letter)
    rows = [
        {
            "stage": key[0],
            "cause": key[1],
            "attempt": key[2],
            "count": len(letters),
            "replayed": sum(letter.replayed for letter in letters),
            "first": _second(letters[0].failed_at),
            "last": _second(letters[-1].failed_at),
        }
        for key, letters in sorted(groups.items())
    ]
    if as_json:
        print(json.dumps({"stats": rows, "problems": problems}))
        return
    _tell(problems)
    if not rows:
        print("No dead letters.")
        return
    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        numeric = title in ("attempt", "count", "replayed")
        table.add_column(title, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    output(markup=False).print(table)


@dead_letters_app.command(
    epilog="Examples: velocity dead-letters replay job.yaml --cause service_failed · velocity"
    f" dead-letters replay job.yaml --since 2026-01-05T00:00:00Z --limit 100. {EXIT_CODES}"
)
def replay(
    path: JobPath,
    cause: CauseOption = None,
    stage: StageOption = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many.", show_default="all")
    ] = None,
    again: Annotated[
        bool, typer.Option("--replayed", help="Those that were replayed too: they count twice.")
    ] = False,
    dead_letters: Folder = None,
    as_json: Json = False,
) -> None:
    """Send the messages of dead letters to their topics again, where the running job reads them.

    A letter is replayed once: it is marked in the transaction that sends its message. What fails
    again is a new letter, of the next attempt. Ctrl-C ends it after the transaction at work.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from velocity.io.dead_letter_replay import replay as send
    from velocity.io.dead_letter_replay import replaying

    graph = _graph(path, dead_letters)
    wanted = Wanted(cause, stage, since, until, again)
    store, config = graph.letters, graph.read().config
    console = Console(stderr=True)
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn())
    with (
        _until_interrupted() as stopped,
        replaying(config, graph.job.job) as producer,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        found, problems = store.read()
        letters = wanted.of(found, limit)
        task = progress.add_task("replaying", total=len(letters))
        done = send(
            producer,
            letters,
            store,
            config,
            progress=lambda n: progress.update(task, completed=n),
            stopped=stopped,
        )
    if as_json:
        print(json.dumps({**done._asdict(), "problems": problems}))
    else:
        _tell(problems)
        print(f"{done.sent:,} dead letters replayed.")
        if done.documents:
            print(
                f"{done.documents:,} are documents that a sink refused, and no messages: mend what "
                "their errors say, and the next document of their windows is written."
            )
        if done.late:
            print(
                f"{done.late:,} came too late, and would again: give their metrics more lateness, and "
                "compute the documents anew with velocity run --generation."
            )
        for id_ in done.gone:
            print(f"{id_}: not all of it was kept, and its topic no longer has the original.")
    if stopped():
        raise typer.Exit(130)


def as_plain(letter: "Letter") -> dict[str, Any]:
    """A letter for other programs: bytes as text if they are UTF-8, else in hex under ``…_hex``."""
    names = ("job", "stage", "cause", "error", "attempt", "topic", "partition", "offset")
    return {
        "id": letter.id,
        **{name: getattr(letter, name) for name in names},
        "failed_at": _second(letter.failed_at),
        "timestamp": None if letter.timestamp is None else _second(letter.timestamp),
        **_plain("key", letter.key),
        **_plain("value", letter.value),
        "headers": [{"name": name, **_plain("value", value)} for name, value in letter.headers],
        "whole": letter.whole,
        "replayed": letter.replayed,
    }


def _plain(name: str, data: bytes | None) -> dict[str, str | None]:
    try:
        return {name: None if data is None else data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_hex": (data or b"").hex()}


def _whole(letter: "Letter") -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("what", style="dim")
    table.add_column("is", overflow="fold")
    for name, value in as_plain(letter).items():
        if name == "headers":
            for header in value:
                given = next(v for k, v in header.items() if k != "name")
                table.add_row(f"header {header['name']}", _text(given))
        elif name != "whole":
            table.add_row(name.replace("_", " "), _text(value))
    if not letter.whole:
        table.add_row("", "The value is not whole: the original is in its topic.")
    return table


def _text(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
    return str(value)


def _graph(path: Path, dead_letters: Path | None) -> "Graph":
    job = jobfile.load(path)

    from velocity.pipelines.graph import Graph
    from velocity.runners.run import redirect

    return Graph(redirect(job, dead_letters=dead_letters), os.environ)


def _read(path: Path, dead_letters: Path | None) -> tuple[Sequence["Letter"], Sequence[str]]:
    with working("reading dead letters"):
        return _graph(path, dead_letters).letters.read()


def _tell(problems: Sequence[str]) -> None:
    for problem in problems:
        print(problem, file=sys.stderr)


def _second(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def _until_interrupted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C came, which ends nothing by itself: a transaction is not left half done."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
