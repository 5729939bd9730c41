"""``velocity board``: a live page of what jobs have written, for those without Kibana."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from velocity.pipelines import jobfile
from velocity.runners.exit_codes import codes
from velocity.runners.terminal import JobPaths, Json, complain

if TYPE_CHECKING:
    from velocity.io.dead_letter_counts import LetterCounts
    from velocity.io.totals import Totalled
    from velocity.pipelines.graph import Graph
    from velocity.pipelines.live import LiveBoard

EXIT_CODES: Final = codes(_0="ended by Ctrl-C")
PORT: Final = 8088


def add_board_command(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(
        epilog="Examples: velocity board pipelines/*.yaml · velocity board job.yaml --sqlite"
        f" documents.db --dead-letters dead-letters. More: docs/board.md. {EXIT_CODES}"
    )(board)


def board(
    paths: JobPaths,
    sqlite: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read documents there, not in the jobs' sinks."),
    ] = None,
    dead_letters: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Count dead letters there, not where the jobs say."),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE",
            help="In which times are told.",
            show_default="that of the jobs' days, or UTC",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where it listens; it asks nobody who they are.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")] = PORT,
    as_json: Json = False,
) -> None:
    """Serve a live page of what jobs write: a tile and a chart for each metric.

    Reads Elasticsearch as the jobs name it, or a SQLite file. Needs velocity[board].
    """
    from velocity.pipelines.graph import Graph

    found = [Graph(jobfile.load(path)) for path in paths]
    graphs = [graph for graph in found if graph.job.metrics]
    if not graphs:
        raise typer.BadParameter("none of these jobs has a metric", param_hint="JOB")
    raise typer.Exit(serve(graphs, sqlite, dead_letters, timezone, host, port, as_json))


def serve(
    graphs: "Sequence[Graph]",
    sqlite: Path | None,
    dead_letters: str | None,
    timezone: str | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
    as_json: bool = False,
) -> int:
    """Serves the board of some jobs until Ctrl-C; says where on the output."""
    from velocity.pipelines.live import live_board
    from velocity.transforms.days import UnknownZone, zone_named

    try:
        from velocity.runners.board import Hub, Serving
    except ModuleNotFoundError as error:
        complain("board", f"{error.name} is not installed: pip install 'velocity[board]'")
        return 1
    try:
        shown = live_board(graphs, timezone and zone_named(timezone).key)
    except UnknownZone as error:
        raise typer.BadParameter(str(error), param_hint="--timezone") from error
    if twice := {job for job in shown.jobs if shown.jobs.count(job) > 1}:
        raise typer.BadParameter(f"two job files call theirs {twice.pop()}: rename one")
    store = store_of(graphs, sqlite, shown)
    letters, unwatched = letters_of(graphs, dead_letters)
    try:
        serving = Serving(lambda: Hub(shown, store, letters, unwatched=unwatched), host, port)
    except OSError as error:
        complain("board", f"{host}:{port}: {error.strerror}; give another --port, or 0 for any")
        return 1
    told = json.dumps({"url": serving.url})
    print(told if as_json else f"Board: {serving.url}   (Ctrl-C ends it)", flush=True)
    try:
        serving.run()
    except KeyboardInterrupt:
        print()
    return 0


def store_of(graphs: "Sequence[Graph]", sqlite: Path | None, board: "LiveBoard") -> "Totalled":
    """Where the documents of some jobs are; all of them in one store."""
    from velocity.io.elastic_totals import ElasticTotals
    from velocity.io.sqlite_totals import SqliteTotals
    from velocity.pipelines.templates import setup_of

    if sqlite is not None:
        return SqliteTotals(sqlite)
    if all(graph.job.sinks.elasticsearch for graph in graphs):
        if len({graph.elasticsearch for graph in graphs}) > 1:
            raise typer.BadParameter(
                "these jobs write to several Elasticsearches: give those of one"
            )
        setups = [setup_of(graph) for graph in graphs]
        indices = [s.alias or s.pattern.wildcard(s.job) for s in setups]
        return ElasticTotals(graphs[0].elasticsearch.open(), indices, board.types)
    files = {graph.sqlite_path for graph in graphs}
    if len(files) == 1 and (file := files.pop()) is not None:
        return SqliteTotals(Path(file))
    raise typer.BadParameter("these jobs write to several stores: give those of one, or --sqlite")


def letters_of(
    graphs: "Sequence[Graph]", folder: str | None
) -> "tuple[Sequence[LetterCounts], str]":
    """Where the dead letters of some jobs are, or why they can't be counted."""
    from velocity.io.dead_letter_counts import KafkaCounts, ParquetCounts
    from velocity.pipelines.graph import UnsetVariable

    if folder is not None:
        return [ParquetCounts(folder)], ""
    found: dict[Any, LetterCounts] = {}
    why: list[str] = []
    for graph in graphs:
        try:
            config, place = graph.dead_letters_at
        except UnsetVariable as error:
            why.append(f"{error}")
            continue
        if config is None:
            found.setdefault(place, ParquetCounts(place))
        else:
            found.setdefault((config.bootstrap_servers, place), KafkaCounts(config, place))
    return list(found.values()), "; ".join(dict.fromkeys(why))
