"""``velocity archive``: what a job's archive holds, its upkeep, and SQL for what reads it."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table

from velocity.pipelines import jobfile
from velocity.runners.exit_codes import codes
from velocity.runners.terminal import JobPath, Json, duration, output, time_with_offset, working

if TYPE_CHECKING:
    from velocity.io.archive_files import ArchiveFile, Kind
    from velocity.pipelines.graph import Graph

EXIT_CODES: Final = codes()

archive_app = typer.Typer(
    help="See and keep the Parquet archive of a job's events. More: docs/archive.md.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

BeamOptions = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="-- OPTIONS",
        help="For Beam's file systems: -- --s3_endpoint_url=…",
        show_default=False,
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="The messages, not the enriched events.")]
From = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="Event time, RFC 3339: not earlier.")
]
To = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Event time: not later.")]


@archive_app.command(
    "list", epilog=f"Example: velocity archive list job.yaml --files. {EXIT_CODES}"
)
def list_(
    path: JobPath,
    options: BeamOptions = None,
    raw: Raw = False,
    start: From = None,
    stop: To = None,
    files: Annotated[bool, typer.Option("--files", help="Each file, not each day.")] = False,
    as_json: Json = False,
) -> None:
    """Show how many files and bytes there are of each day."""
    graph, kind = opened(path, options, raw)
    found = _files(graph, kind, start, stop)
    if files and as_json:
        print(json.dumps({"files": [{"path": f.path, "bytes": f.bytes} for f in found]}))
        return
    if files:
        for file in found:
            print(f"{file.bytes}\t{file.path}")
        return
    days = _days(found)
    if as_json:
        print(json.dumps({"job": graph.job.job, "kind": kind, "days": days}))
        return
    table = Table(title=f"{kind} archive of {graph.job.job}", title_justify="left")
    for name in ("date", "hours", "files", "MiB"):
        table.add_column(name, justify="left" if name == "date" else "right")
    for day in days:
        size = f"{day['bytes'] / 2**20:,.1f}"
        table.add_row(day["date"], str(day["hours"]), str(day["files"]), size)
    output().print(table)


def _days(found: "list[ArchiveFile]") -> list[dict[str, Any]]:
    days = []
    for date in sorted({file.hour.date() for file in found}):
        of_date = [file for file in found if file.hour.date() == date]
        hours, size = len({file.hour for file in of_date}), sum(file.bytes for file in of_date)
        days.append({"date": str(date), "hours": hours, "files": len(of_date), "bytes": size})
    return days


@archive_app.command(epilog=f"Example: velocity archive compact job.yaml. {EXIT_CODES}")
def compact(
    path: JobPath,
    options: BeamOptions = None,
    raw: Raw = False,
    start: From = None,
    stop: To = None,
    as_json: Json = False,
) -> None:
    """Make few large files of many small ones, each event once; also while the job runs."""
    from velocity.io import archive_keep

    graph, kind = opened(path, options, raw)
    assert graph.archive_path and graph.job.archive
    begin, end = _time(start, "--from"), _time(stop, "--to")
    with working("compacting"):
        done = archive_keep.compact(
            graph.archive_path,
            kind,
            graph.job.job,
            start=begin,
            stop=end,
            rows_per_file=graph.job.archive.rows_per_file,
        )
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(
        f"{done.before:,} files became {done.after:,}, with {done.rows:,} events; "
        f"{done.abandoned:,} of failed attempts removed"
    )


@archive_app.command(
    epilog=f"Example: velocity archive expire job.yaml --older-than 90d. {EXIT_CODES}"
)
def expire(
    path: JobPath,
    options: BeamOptions = None,
    raw: Raw = False,
    before: Annotated[
        str | None, typer.Option(metavar="TIME", help="Hours that end by then go.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="DURATION", help="The same, so long ago: 90d.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove old hours. A replay refuses what reaches into them."""
    from velocity.io import archive_keep
    from velocity.io.records import now

    if (before is None) == (older_than is None):
        raise typer.BadParameter("give --before or --older-than")
    graph, kind = opened(path, options, raw)
    at = _time(before, "--before") or now() - duration(older_than or "", "--older-than")
    assert graph.archive_path
    with working("removing old hours"):
        gone = archive_keep.expire(graph.archive_path, kind, graph.job.job, at)
    if as_json:
        print(json.dumps({"removed": [file.path for file in gone], "before": at.isoformat()}))
        return
    size = sum(file.bytes for file in gone) / 2**20
    print(f"{len(gone):,} files of {size:,.1f} MiB removed, of hours that end by {at.isoformat()}")


@archive_app.command(
    epilog="Examples: velocity archive ddl job.yaml --athena · velocity archive ddl job.yaml"
    f" --redshift --role arn:aws:iam::1:role/x --manifest manifest.json. {EXIT_CODES}"
)
def ddl(
    path: JobPath,
    options: BeamOptions = None,
    athena: Annotated[bool, typer.Option("--athena", help="For Athena.")] = False,
    redshift: Annotated[
        bool, typer.Option("--redshift", help="For Redshift: Spectrum, and COPY.")
    ] = False,
    table: Annotated[str | None, typer.Option(help="Its name.", show_default="the job's")] = None,
    database: Annotated[
        str | None,
        typer.Option(help="Or external schema.", show_default="default; spectrum"),
    ] = None,
    role: Annotated[str, typer.Option(help="Redshift's, to read the files.")] = "default",
    manifest: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write COPY's manifest here, to be put into the archive."
        ),
    ] = None,
    start: From = None,
    stop: To = None,
    as_json: Json = False,
) -> None:
    """Print the SQL by which a warehouse reads the enriched archive."""
    from velocity.io import archive_ddl

    if athena == redshift:
        raise typer.BadParameter("give --athena or --redshift")
    if manifest and athena:
        raise typer.BadParameter("--manifest is for --redshift")
    graph, kind = opened(path, options, raw=False)
    assert graph.archive_path
    where = (graph.schema, graph.archive_path, graph.job.job)
    name = table or graph.job.job
    if athena:
        sql = archive_ddl.athena(*where, table=name, database=database or "default")
        print(json.dumps({"sql": sql}) if as_json else sql, end="\n" if as_json else "")
        return
    found = _files(graph, kind, start, stop)
    if manifest:
        manifest.write_text(archive_ddl.copy_manifest(found) + "\n")
    sql = archive_ddl.redshift(
        *where, found, table=name, database=database or "spectrum", role=role
    )
    print(json.dumps({"sql": sql}) if as_json else sql, end="\n" if as_json else "")


def opened(path: Path, options: Sequence[str] | None, raw: bool) -> tuple["Graph", "Kind"]:
    """The graph of a job that has an archive of that kind; Beam's file systems know the options."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    from velocity.io.archive_files import Kind
    from velocity.pipelines.graph import Graph, JobError

    job = jobfile.load(path)
    kind = Kind.RAW if raw else Kind.ENRICHED
    if job.archive is None:
        raise JobError(f"{path} has none: give it a path, as docs/archive.md says", "archive")
    FileSystems.set_options(PipelineOptions(list(options or [])))
    return Graph(job, os.environ), kind


def _files(
    graph: "Graph", kind: "Kind", start: str | None, stop: str | None
) -> "list[ArchiveFile]":
    from velocity.io.archive_files import files_of

    assert graph.archive_path
    times = (_time(start, "--from"), _time(stop, "--to"))
    with working("listing the archive"):
        return files_of(graph.archive_path, kind, graph.job.job, *times)


def _time(text: str | None, option: str) -> datetime | None:
    return None if text is None else time_with_offset(text, option)
