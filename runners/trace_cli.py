"""``velocity trace``: the way of one event through a job."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from velocity.pipelines import jobfile
from velocity.runners.exit_codes import codes
from velocity.runners.terminal import Json, jobs_given, output, time_with_offset, working

if TYPE_CHECKING:
    from velocity.io.records import Document
    from velocity.pipelines.graph import Graph
    from velocity.pipelines.trace import Counted, Reading, Way

EXIT_CODES: Final = codes(_0="it was found", _1="it was not found, or the job is wrong")

_MOST_SESSIONS: Final = 100


def add_trace_command(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(
        epilog="Examples: velocity trace EVT-17 --job job.yaml · velocity trace EVT-17 --job job.yaml"
        " --since 2026-01-05T00:00:00Z --json · velocity trace EVT-17 --job job.yaml --otlp"
        f" http://127.0.0.1:4318. {EXIT_CODES}"
    )(trace)


def trace(
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID", help="As the event has it.")],
    path: Annotated[
        Path,
        typer.Option(
            "--job", metavar="JOB", callback=jobs_given, help="The job file whose way it is."
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="The field that holds events' ids.",
            show_default="deduplicate's, or event_id",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="kafka|raw|archive",
            help="Where to look for it; may be repeated.",
            show_default="Kafka, then the job's archive",
        ),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=time_with_offset,
            metavar="TIME",
            help="Look at messages sent then or later (RFC 3339).",
            show_default="all there are",
        ),
    ] = None,
    ask: Annotated[
        bool,
        typer.Option("--ask/--no-ask", help="Whether services are asked, as the job would."),
    ] = True,
    sqlite: Annotated[
        Path | None, typer.Option(help="Documents are in this file, not in the job's sinks.")
    ] = None,
    dead_letters: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Dead letters are in this folder, not where the job says."
        ),
    ] = None,
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL|console",
            help="Send its way as OpenTelemetry spans there too (OTLP over HTTP), or print them.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the way of one event: where it was read, how enriched, and which documents count it.

    Or why none does: late, a dead letter with its cause, a duplicate, filtered out, or not there. It is
    looked for in all of the topics, so --since saves time. Nothing is written, and nothing committed.
    """
    job = jobfile.load(path)

    from velocity.pipelines.graph import Graph
    from velocity.pipelines.trace import ARCHIVE, KAFKA, RAW, Tracer, id_column
    from velocity.runners.run import redirect

    sources = source or [KAFKA, *_archives(job)]
    for one in sources:
        if one not in (KAFKA, RAW, ARCHIVE):
            raise typer.BadParameter(
                f"{one!r} is none of kafka, raw and archive", param_hint="--source"
            )
    graph = Graph(redirect(job, sqlite=sqlite, dead_letters=dead_letters), os.environ)
    column = id_column(job, by)
    with working("reading dead letters"):
        letters, found_problems = graph.letters.read()
    problems = list(found_problems)
    if not (graph.job.sinks.elasticsearch or graph.job.sinks.sqlite):
        problems.append("its documents are in no store that trace reads: none is found")
    store = Store(graph)
    tracer = Tracer(graph, stored=store.of, around=store.around, letters=letters, ask=ask)
    with _looking() as progress:
        way = tracer.trace(event_id, column, sources=sources, since=since, progress=progress)
    if as_json:
        print(json.dumps({**way.plain(), "problems": problems}, ensure_ascii=False, default=str))
    else:
        for problem in problems:
            print(problem)
        output(markup=True).print(shown(way))
    if otlp is not None:
        from velocity.runners.trace_spans import send

        send(way, otlp)
    if not way.found:
        raise typer.Exit(1)


def _archives(job: Any) -> list[str]:
    spec = job.archive
    return [
        n for n, kept in (("raw", spec and spec.raw), ("archive", spec and spec.enriched)) if kept
    ]


class Store:
    """What a job's sink has: Elasticsearch, if it has both."""

    def __init__(self, graph: "Graph") -> None:
        self._graph = graph

    def of(self, documents: "Sequence[Document]") -> Mapping[str, Mapping[str, Any]]:
        """Documents by id, each its body and version."""
        if self._graph.job.sinks.elasticsearch:
            from velocity.io.elastic_read import read_by_id

            wanted = [(self._graph.index.name(document), document.id) for document in documents]
            with self._graph.elasticsearch.open() as client:
                return read_by_id(client, wanted)
        stored = self._sqlite()
        return {d.id: stored[d.id] for d in documents if d.id in stored}

    def around(
        self, metric: str, dimensions: Mapping[str, Any], time: int
    ) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Documents of a metric and key whose windows hold a time."""
        from velocity.io.records import rfc3339

        at = rfc3339(time)
        if self._graph.job.sinks.elasticsearch:
            from velocity.io.elastic_read import read_around

            index = self._graph.index.wildcard(self._graph.job.job, metric)
            with self._graph.elasticsearch.open() as client:
                return read_around(client, index, metric, dimensions, at, most=_MOST_SESSIONS)
        return [
            (id_, body)
            for id_, body in self._sqlite().items()
            if (body["metric"], body["dimensions"]) == (metric, dict(dimensions))
            and body["window_start"] <= at < body["window_end"]
        ]

    def _sqlite(self) -> Mapping[str, Mapping[str, Any]]:
        from velocity.io.sqlite import read_documents

        path = self._graph.sqlite_path
        return read_documents(path) if path and Path(path).exists() else {}


@contextmanager
def _looking() -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("looking for it"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("looking", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def shown(way: "Way") -> Tree:
    """A way as a tree, for people."""
    tree = Tree(f"[bold]{escape(way.event_id)}[/] in {escape(way.job)}")
    if not way.found:
        tree.add(f"not found in {', '.join(way.looked_in)}, nor among the dead letters")
    for reading in way.readings:
        _reading(tree, reading)
    for letter in way.letters:
        tree.add(
            escape(
                f"dead letter {letter.id}, {letter.failed_at}: {letter.stage}: {letter.cause}: "
                f"{letter.error}; its message was not found"
            )
        )
    return tree


def _reading(tree: Tree, reading: "Reading") -> None:
    where = f"{reading.read_from}: {reading.place}"
    sent = f", sent {reading.sent_at}" if reading.sent_at else ""
    copy = f", a copy of {reading.copy_of}" if reading.copy_of else ""
    branch = tree.add(escape(f"read from {where}{sent}{copy}"))
    if reading.event_time:
        branch.add(f"happened {reading.event_time}")
    if reading.enriched_by:
        how = {"archive": "as it is archived", "services": "as the services answer now"}
        values = ", ".join(f"{name}: {value}" for name, value in reading.enriched.items())
        if values:
            branch.add(escape(f"enriched, {how[reading.enriched_by]}: {values}"))
    colour = {"counted": "green", "dead_letter": "red"}.get(reading.status, "yellow")
    fate = branch.add(f"[{colour}]{reading.status.replace('_', ' ')}[/]: {escape(reading.why)}")
    for document in reading.documents:
        fate.add(escape(_document(document)))
    for letter in reading.dead_letters:
        again = ", replayed since" if letter.replayed else ""
        branch.add(
            escape(
                f"dead letter {letter.id}, {letter.failed_at}{again}: {letter.stage}: "
                f"{letter.cause}: {letter.error}"
            )
        )


def _document(document: "Counted") -> str:
    key = ", ".join(f"{name} {value}" for name, value in document.dimensions.items())
    where = f"{document.metric} ({key or 'all'}), {document.window_start} to {document.window_end}"
    place = "/".join(filter(None, (document.index, document.id)))
    match document.status:
        case "counted":
            return (
                f"{where}: counted in {place}, {document.pane}, {document.events:,} events, written"
                f" {document.written_at}"
            )
        case "late":
            return f"{where}: it came too late; see the dead letter"
        case "open":
            return f"{where}: not written yet, for the window is still open"
    return f"{where}: {place or 'its document'} is not there: not read yet, or expired"
