"""The commands ``velocity simulate`` and ``velocity demo``."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from velocity.pipelines import jobfile
from velocity.runners.exit_codes import codes
from velocity.runners.terminal import Json, injected, time_with_offset

EXIT_CODES: Final = codes(130)


def add_demo_commands(app: typer.Typer) -> None:
    """Adds both commands to the command line."""
    app.command(
        epilog="Examples: velocity simulate --events 1000000 · velocity simulate --rate 500 --domain"
        f" pharmacy_delivery --bootstrap-servers 127.0.0.1:19092. {EXIT_CODES}"
    )(simulate)
    app.command(
        epilog=f"Examples: velocity demo --events 1000000 · velocity demo --all. {EXIT_CODES}"
    )(demo)


def simulate(
    ctx: typer.Context,
    bootstrap_servers: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The Kafka to write to.")
    ] = "127.0.0.1:9092",
    events: Annotated[int, typer.Option(min=0, help="Messages in all.")] = 200_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same messages.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(help="Messages sent per second.", show_default="as fast as it goes"),
    ] = None,
    event_rate: Annotated[
        float, typer.Option(help="Events per second of event time, as a day's mean.")
    ] = 100.0,
    start: Annotated[
        str, typer.Option(metavar="TIME", help="Event time of the first events, RFC 3339.")
    ] = "2026-01-05T00:00:00Z",
    late_share: Annotated[float, typer.Option(help="Of events sent late.")] = 0.05,
    duplicate_share: Annotated[float, typer.Option(help="Of events sent twice.")] = 0.005,
    malformed_share: Annotated[float, typer.Option(help="Of events that are spoiled.")] = 0.001,
    domain: Annotated[
        list[str] | None, typer.Option(help="Of the four; may be repeated.", show_default="all")
    ] = None,
    peak: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AFTER/LENGTH[/FACTOR]",
            help="A promotion: ten times as busy, or as FACTOR says; may be repeated.",
        ),
    ] = None,
    outage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DOMAIN/AFTER/LENGTH",
            help="A service that publishes nothing, then all at once; may be repeated.",
        ),
    ] = None,
    sns: Annotated[bool, typer.Option("--sns", help="In the envelope of SNS.")] = False,
    echoes: Annotated[
        int,
        typer.Option(
            min=1, max=16, help="How often each transaction happens at once, for the highest rates."
        ),
    ] = 1,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="That send a part of the events each.")
    ] = 1,
    expected: Annotated[
        Path | None, typer.Option(help="Write the documents that --job must have, as JSON lines.")
    ] = None,
    job: Annotated[
        Path | None, typer.Option(metavar="JOB", help="The job that --expected is for.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write simulated events to Kafka: four domains of a health service, with their faults.

    Ctrl-C ends it: what was sent is still delivered, and counted.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from velocity.pipelines.disturbances import outage_of, peak_of
    from velocity.pipelines.simulator import Scenario
    from velocity.runners.produce import produce, produce_by

    if (expected is None) != (job is None):
        raise typer.BadParameter("--expected and --job go together")

    if rate is not None and not rate > 0:
        raise typer.BadParameter("a number above 0 is wanted", param_hint="--rate")
    chosen: dict[str, Any] = {"domains": tuple(domain)} if domain else {}
    begin = time_with_offset(start, "--start")
    try:
        scenario = Scenario(
            seed=seed,
            events=events,
            start=begin,
            rate=event_rate,
            late_share=late_share,
            duplicate_share=duplicate_share,
            malformed_share=malformed_share,
            peaks=tuple(map(peak_of, peak or ())),
            outages=tuple(map(outage_of, outage or ())),
            sns=sns,
            echoes=echoes,
            **chosen,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console(stderr=True)
    began = time.monotonic()
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn())
    if processes > 1:
        produced = injected(ctx, "produce_by", produce_by)(
            processes, scenario, bootstrap_servers, rate=rate
        )
    else:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("sending", total=events)
            produced = injected(ctx, "produce", produce)(
                scenario,
                bootstrap_servers,
                rate=rate,
                progress=lambda sent: progress.update(task, completed=sent),
            )
    seconds = time.monotonic() - began
    ended = "interrupted; " if produced.interrupted else ""
    told: dict[str, Any] = {"messages": produced.messages, "seconds": round(seconds, 3)}
    if not as_json:
        print(
            f"{ended}{produced.messages:,} messages sent to {bootstrap_servers} in {seconds:.1f} s"
        )
    if expected is not None and job is not None and not produced.interrupted:
        from velocity.runners.demo import write_expected

        count = write_expected(expected, jobfile.load(job), scenario.divided(processes))
        told |= {"documents": count}
        if not as_json:
            print(f"{count:,} documents expected of {job}: {expected}")
    if as_json:
        print(json.dumps(told | {"interrupted": produced.interrupted}))
    if produced.interrupted:
        raise typer.Exit(130)


def demo(
    ctx: typer.Context,
    all_: Annotated[
        bool,
        typer.Option(
            "--all",
            help="The whole system: SNS envelopes over HTTP, enrichment, four domains, transactions.",
        ),
    ] = False,
    events: Annotated[
        int | None,
        typer.Option(min=1, help="Simulated events.", show_default="200000, and 10000 with --all"),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.")] = 1,
    folder: Annotated[
        Path, typer.Option(help="For documents and dead letters; replaced if it is a demo's.")
    ] = Path("demo"),
    board: Annotated[
        bool,
        typer.Option(
            "--board/--no-board", help="Serve the board of it then, where the output is a terminal."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Run the main job, or all, over simulated events, and check each document by recomputation.

    Needs nothing but Python: Kafka and the REST service are embedded, documents go into SQLite. On a
    terminal it goes on to serve the board of them, until Ctrl-C.
    """
    if not _may_replace(folder):
        raise typer.BadParameter(
            f"{folder} holds other things than a demo's; name another", param_hint="--folder"
        )

    more: dict[str, Any] = {"console": Console(stderr=True)} if as_json else {}
    if all_:
        from velocity.runners.whole import demo_all, whole

        run = injected(ctx, "demo_all", demo_all)
        shown = [*whole().counting]
    else:
        from velocity.runners.demo import JOB
        from velocity.runners.demo import demo as usual

        run = injected(ctx, "demo", usual)
        shown = [jobfile.load(JOB)]
    number = events or (10_000 if all_ else 200_000)
    code = run(events=number, seed=seed, folder=folder, **more)
    if as_json:
        print(json.dumps({"exact": code == 0, "events": number, "folder": str(folder)}))
    # In CI nobody would look, nor end it.
    if code or as_json or not board or not sys.stdout.isatty() or os.environ.get("CI"):
        raise typer.Exit(code)
    from velocity.pipelines.graph import Graph
    from velocity.runners.board_cli import serve

    graphs = [Graph(job) for job in shown]
    store, letters = folder / "documents.db", str(folder / "dead-letters")
    raise typer.Exit(injected(ctx, "serve", serve)(graphs, store, letters))


def _may_replace(folder: Path) -> bool:
    """Whether a folder is not there, or holds no more than a demo's results."""
    if not folder.exists():
        return True
    ours = {"documents.db", "documents.db-wal", "documents.db-shm", "dead-letters"}
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= ours
