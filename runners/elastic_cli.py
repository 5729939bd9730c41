"""The commands ``velocity setup`` and ``velocity alias``: what Elasticsearch is told of a job."""

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from velocity.pipelines import jobfile
from velocity.runners.exit_codes import codes
from velocity.runners.terminal import JobPath, Json, working

EXIT_CODES: Final = codes(_1="the job is wrong, or Elasticsearch refuses")

alias_app = typer.Typer(
    name="alias",
    help="Have a job's alias read what a replay has written, or what was there before.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Prefix = Annotated[
    str, typer.Argument(metavar="PREFIX", help="Of the new indices, as `setup --into` had it.")
]


def add_elastic_commands(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command(
        epilog="Examples: velocity setup job.yaml · velocity setup job.yaml --dry-run · velocity"
        f" setup job.yaml --into corrected-. {EXIT_CODES}"
    )(setup)
    app.add_typer(alias_app, name="alias")


def setup(
    path: JobPath,
    prefix: Annotated[
        str,
        typer.Option(
            "--into",
            metavar="PREFIX",
            help="For indices beside the job's own, whose names begin so and which no alias reads"
            " yet: a replay fills them.",
            show_default=False,
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent; reach nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the templates, alias and policy of a job in Elasticsearch, or bring them up to date.

    Says what has changed; the second time nothing has. It takes nothing away, and may be done while
    the job runs. An index that is there and has other field types is named, and nothing is changed.
    """
    from velocity.io.elastic_setup import apply
    from velocity.pipelines.graph import Graph
    from velocity.pipelines.templates import into, requests, setup_of

    job = jobfile.load(path)
    graph = Graph(into(job, prefix) if prefix else job)
    wanted = setup_of(graph, prefix)
    if dry_run:
        if as_json:
            print(json.dumps(dict(requests(wanted)), indent=2))
            return
        for request, body in requests(wanted):
            print(f"{request}\n{json.dumps(body, indent=2)}\n")
        return
    with working("setting up Elasticsearch"), graph.elasticsearch.open() as client:
        changes = list(apply(client, wanted))
    if as_json:
        print(json.dumps({"changes": [change._asdict() for change in changes]}))
        return
    for change in changes:
        print(change)


@alias_app.command(epilog=f"Example: velocity alias swap job.yaml corrected-. {EXIT_CODES}")
def swap(path: JobPath, prefix: Prefix, as_json: Json = False) -> None:
    """Read the indices that begin with PREFIX in place of their counterparts, from one moment on.

    Of a counterpart the windows that were not replayed are read still. Indices without one stay in
    the alias. The old ones are kept: see `rollback`.
    """
    from velocity.io.elastic_alias import swap as usual

    _move(usual, path, prefix, as_json)


@alias_app.command(epilog=f"Example: velocity alias rollback job.yaml corrected-. {EXIT_CODES}")
def rollback(path: JobPath, prefix: Prefix, as_json: Json = False) -> None:
    """Take a swap back: read again the indices that it replaced."""
    from velocity.io.elastic_alias import rollback as usual

    _move(usual, path, prefix, as_json)


def _move(move: Any, path: Path, prefix: str, as_json: bool) -> None:
    from velocity.pipelines.graph import Graph
    from velocity.pipelines.templates import setup_of

    graph = Graph(jobfile.load(path))
    wanted = setup_of(graph)
    with working("moving the alias"), graph.elasticsearch.open() as client:
        moved = move(client, wanted, prefix)
    if as_json:
        print(json.dumps(moved._asdict()))
        return
    lines = list(moved.lines())
    for line in lines:
        print(line)
    if not lines:
        print(f"{moved.alias} reads them already.")
