"""``velocity replay``: history through a job's graph again."""

import os
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

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
from velocity.runners.terminal import JobPath, Json, duration, time_with_offset

EXIT_CODES: Final = codes(8, 130, _1="the job is wrong, or failed")
_SAFE: Final = "Beside a live job"
_INSTEAD: Final = "Without writing, or elsewhere"


class ReplayRunner(StrEnum):
    """Where a replay runs."""

    DIRECT = "direct"
    FLINK = "flink"


def add_replay_command(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(
        epilog="Examples: velocity replay job.yaml --from 2026-01-01T00:00:00+07:00 --to"
        " 2026-02-01T00:00:00+07:00 · velocity replay job.yaml --from … --to … --source"
        f" 'exports/*.jsonl' --compare. More: docs/replay.md. {EXIT_CODES}"
    )(replay)


def replay(
    path: JobPath,
    start: Annotated[
        str, typer.Option("--from", metavar="TIME", help="Event time, RFC 3339 with its offset.")
    ],
    stop: Annotated[str, typer.Option("--to", metavar="TIME", help="Not part of the range.")],
    options: BeamOptions = None,
    source: Annotated[
        str,
        typer.Option(
            metavar="archive|raw|kafka|FILES",
            help="Enriched events, archived messages, the topics, or exports (.jsonl, .csv).",
        ),
    ] = "archive",
    runner: Annotated[ReplayRunner, typer.Option(help="Where it runs.")] = ReplayRunner.DIRECT,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of the direct runner.", show_default="one a core"),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            metavar="DURATION|all", help="Event time that is done at a time, and then remembered."
        ),
    ] = "1d",
    state: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where it is remembered.",
            show_default="beside the archive, or in VELOCITY_STATE",
        ),
    ] = None,
    sqlite: Sqlite = None,
    dead_letters: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Dead letters into this folder.", show_default="counted alone"
        ),
    ] = None,
    late: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="With --source kafka: read messages sent so much later than lateness and disorder.",
        ),
    ] = "0s",
    generation: Generation = None,
    max_rate: Annotated[
        float | None, typer.Option(help="Events a second.", rich_help_panel=_SAFE)
    ] = None,
    max_rest_rate: Annotated[
        float | None, typer.Option(help="REST calls a second.", rich_help_panel=_SAFE)
    ] = None,
    max_document_rate: Annotated[
        float | None, typer.Option(help="Documents a second.", rich_help_panel=_SAFE)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Count files, events, windows and REST calls; write nothing, call nothing.",
            rich_help_panel=_INSTEAD,
        ),
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Print which documents would change and how; write nothing.",
            rich_help_panel=_INSTEAD,
        ),
    ] = False,
    into: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX",
            help="Into Elasticsearch's indices of this prefix, which the alias does not read.",
            rich_help_panel=_INSTEAD,
        ),
    ] = None,
    swap: Annotated[
        bool,
        typer.Option(
            "--swap",
            help="With --into: when all is written, have the alias read these.",
            rich_help_panel=_INSTEAD,
        ),
    ] = False,
    flink_master: FlinkMaster = None,
    parallelism: Parallelism = None,
    batch: Annotated[
        bool,
        typer.Option("--batch", help="As a batch, not as a stream.", rich_help_panel=ON_FLINK),
    ] = False,
    as_json: Json = False,
) -> None:
    """Read a stretch of history again, through the same graph, to the same documents.

    Written are all windows that reach into the range and are complete, each read whole. Documents
    keep their ids and versions: what is there and knows more stays. A replay that was killed goes
    on where it was, if it is started again with the same job and range.
    """
    if dry_run and compare:
        raise typer.BadParameter("give --dry-run or --compare, not both")
    if (dry_run or compare) and (into or runner is ReplayRunner.FLINK):
        raise typer.BadParameter("--dry-run and --compare run here, and write nothing anywhere")
    if swap and not into:
        raise typer.BadParameter("--swap goes with --into PREFIX")
    if into and sqlite:
        raise typer.BadParameter("--into is for Elasticsearch, --sqlite for a file: give one")
    if runner is ReplayRunner.DIRECT and (flink_master or parallelism or batch):
        raise typer.BadParameter("--flink-master, --parallelism, --batch are for --runner flink")
    if runner is ReplayRunner.FLINK and workers:
        raise typer.BadParameter("--workers is for the direct runner: give --parallelism")
    length = None if part == "all" else duration(part, "--part")
    if length is not None and length < timedelta(minutes=1):
        raise typer.BadParameter("a minute or more is wanted", param_hint="--part")
    job = jobfile.load(path)
    if generation is not None:
        job = job.model_copy(update={"generation": generation})

    from velocity.io.pace import Limits
    from velocity.pipelines.replay import Replay
    from velocity.runners.flink import FlinkOptions
    from velocity.runners.replay import Where
    from velocity.runners.replay_run import Plan, carry_out

    flink = FlinkOptions(master=flink_master, parallelism=parallelism or 2, streaming=not batch)
    processes = workers or os.cpu_count() or 1
    where = Where(runner.value, 1 if dry_run else processes, tuple(options or ()), flink)
    limits = Limits(max_rate, max_rest_rate, max_document_rate, where.takers)
    wanted = Replay(
        job,
        source,
        time_with_offset(start, "--from"),
        time_with_offset(stop, "--to"),
        os.environ,
        limits,
        duration(late, "--late"),
        dry=dry_run,
    )
    plan = Plan(
        wanted,
        where,
        length,
        state=state,
        sqlite=sqlite,
        dead_letters=dead_letters,
        into=into,
        swap=swap,
    )
    raise typer.Exit(
        carry_out(plan, "dry" if dry_run else "compare" if compare else "write", as_json=as_json)
    )
