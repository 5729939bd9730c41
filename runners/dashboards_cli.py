"""``velocity dashboards``: what Kibana, Grafana and Prometheus show of jobs, made from their files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from velocity.pipelines import jobfile
from velocity.runners.exit_codes import codes
from velocity.runners.terminal import JobPaths, Json, duration, working

if TYPE_CHECKING:
    from velocity.pipelines.dashboards import Board

EXIT_CODES: Final = codes(_1="a job is wrong, or not all was imported")

dashboards_app = typer.Typer(
    name="dashboards",
    help="Dashboards of jobs, by their metrics: for Kibana, Grafana and Prometheus."
    " More: docs/dashboards.md.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

All = Annotated[
    bool, typer.Option("--all", help="A dashboard across these jobs too, with links to each.")
]
By = Annotated[
    str, typer.Option("--by", metavar="DIMENSION", help="What a dashboard can be narrowed by.")
]


@dashboards_app.command(
    epilog="Examples: velocity dashboards kibana job.yaml --out job.ndjson · velocity dashboards"
    " kibana pipelines/*.yaml --all --push https://kibana:5601 (with KIBANA_API_KEY)."
    f" {EXIT_CODES}"
)
def kibana(
    paths: JobPaths,
    all_: All = False,
    by: By = "city",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write them.", show_default="the output"),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Import them there, over those that are: a Kibana, with /s/SPACE for a space.",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="KIBANA_API_KEY", help="With --push.")
    ] = None,
    username: Annotated[
        str | None, typer.Option(envvar="KIBANA_USERNAME", help="With --push, and a password.")
    ] = None,
    password: Annotated[
        str | None, typer.Option(envvar="KIBANA_PASSWORD", help="With --push, and a username.")
    ] = None,
    ca_certs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The certificate of who signed Kibana's own."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a data view, panels and a dashboard for each job, as Kibana imports them (8.11 to 9).

    A metric more makes a panel more. Ids follow from names, so importing again replaces.
    """
    from velocity.io.kibana import Kibana
    from velocity.pipelines.kibana import ndjson, overview, saved_objects

    if push is None and out is None and as_json:
        raise typer.BadParameter("it goes with --push or --out", param_hint="--json")
    server = None
    if push is not None:
        if (username is None) != (password is None):
            raise typer.BadParameter("--username and --password go together")
        user = (username, password) if username is not None and password is not None else None
        certs = None if ca_certs is None else str(ca_certs)
        server = Kibana(push, api_key=api_key, basic_auth=user, ca_certs=certs)
    boards = _boards(paths)
    objects = [found for board in boards for found in saved_objects(board, by)]
    if all_:
        objects += overview(boards, by)
    text = ndjson(objects)
    if out is not None:
        out.write_text(text, "utf-8")
    if server is not None:
        with working("importing into Kibana"):
            count = server.push(text)
        if not as_json:
            print(f"{count} objects imported.")
    elif out is None:
        print(text, end="")
    if as_json:
        told = {"imported": count} if server is not None else {"written": [str(out)]}
        print(json.dumps(told))


@dashboards_app.command(
    epilog="Examples: velocity dashboards grafana job.yaml --out job.json · velocity dashboards"
    f" grafana pipelines/*.yaml --all --out monitoring. {EXIT_CODES}"
)
def grafana(
    paths: JobPaths,
    all_: All = False,
    by: By = "city",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Where to write it; of several dashboards the folder, which is made.",
            show_default="the output",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a dashboard for each job, for Grafana (10.4 or later), over Elasticsearch.

    As one is imported, Grafana asks for the data source: one that reads the job's indices, with
    @timestamp as its time field.
    """
    from velocity.pipelines.grafana import OVERVIEW, dashboard, name_of, overview

    boards = _boards(paths)
    made = {name_of(board): dashboard(board, by) for board in boards}
    if all_:
        made[OVERVIEW] = overview(boards, by)
    texts = {name: json.dumps(one, indent=2, ensure_ascii=False) for name, one in made.items()}
    if out is None:
        if len(texts) > 1:
            raise typer.BadParameter("several dashboards need a folder", param_hint="--out")
        print(*texts.values())
        return
    alone = len(texts) == 1
    files = {out if alone else out / f"{name}.json": text for name, text in texts.items()}
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", "utf-8")
    if as_json:
        print(json.dumps({"written": [str(file) for file in files]}))


@dashboards_app.command(
    epilog=f"Example: velocity dashboards operations monitoring --delay-target 2m. {EXIT_CODES}"
)
def operations(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to write; it is made if it isn't there.")
    ],
    delay_target: Annotated[
        str, typer.Option(metavar="DURATION", help="From an event to its being read.")
    ] = "5m",
    document_delay_target: Annotated[
        str, typer.Option(metavar="DURATION", help="From an event to its document, of 95 in 100.")
    ] = "10m",
    lag_target: Annotated[
        int, typer.Option(metavar="MESSAGES", min=0, help="That may wait, though they grow.")
    ] = 10_000,
    dead_letters_target: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the messages, for each cause.")
    ] = 0.01,
    as_json: Json = False,
) -> None:
    """Write a Grafana dashboard and Prometheus alert rules for those who run jobs on Flink."""
    from velocity.runners.alert_rules import Targets, as_yaml
    from velocity.runners.operations import operations as made

    try:
        targets = Targets(
            duration(delay_target, "--delay-target"),
            duration(document_delay_target, "--document-delay-target"),
            lag_target,
            dead_letters_target,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "velocity-operations.json": f"{json.dumps(made(), indent=2)}\n",
        "velocity-alerts.yaml": as_yaml(targets),
    }
    for name, text in written.items():
        (folder / name).write_text(text, "utf-8")
        if not as_json:
            print(folder / name)
    if as_json:
        print(json.dumps({"written": [str(folder / name) for name in written]}))


def _boards(paths: Sequence[Path]) -> "tuple[Board, ...]":
    from velocity.pipelines.dashboards import boards_of
    from velocity.pipelines.graph import Graph

    graphs = {str(path): Graph(jobfile.load(path)) for path in paths}
    # Of several jobs those that count nothing have no documents to be shown.
    return boards_of({p: g for p, g in graphs.items() if g.job.metrics} or graphs)
