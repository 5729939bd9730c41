"""The commands ``velocity validate``, ``schema`` and ``plan``: a job file, and what it says."""

import json
import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from velocity.pipelines import jobfile
from velocity.pipelines.job import Job
from velocity.runners.exit_codes import codes
from velocity.runners.terminal import JobPath, Json, output

EXIT_CODES: Final = codes(_1="a job is wrong")


def add_job_commands(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command(
        epilog="Examples: velocity validate pipelines/*.yaml · velocity validate job.yaml --json."
        f" {EXIT_CODES}"
    )(validate)
    app.command(
        epilog="Example: velocity schema > job.schema.json, and as the first line of a job file:"
        f" `# yaml-language-server: $schema=job.schema.json`. {EXIT_CODES}"
    )(schema)
    app.command(
        epilog="Examples: velocity plan pipelines/pharmacy_delivery.yaml · velocity plan job.yaml"
        f" --format mermaid. {EXIT_CODES}"
    )(plan)


def validate(
    jobs: Annotated[list[Path], typer.Argument(metavar="JOB", help="Job files: docs/jobs.md.")],
    as_json: Json = False,
) -> None:
    """Check job files: every key, expression and column.

    Prints each problem with its line, or that a job is fine. Nothing outside is reached. What
    needs an environment variable that is not set is not checked, and a note says so.
    """
    reports = [_report(path) for path in jobs]
    if as_json:
        print(json.dumps({"files": reports}, indent=2, ensure_ascii=False))
    else:
        for report in reports:
            for problem in report["problems"]:
                print(jobfile.Problem(**problem))
            if report["ok"]:
                counts = ", ".join(f"{n} {what}" for what, n in report["counts"].items())
                print(f"{report['file']}: OK: {counts}")
    if not all(report["ok"] for report in reports):
        raise typer.Exit(1)


def _report(path: Path) -> dict[str, Any]:
    try:
        job, source = jobfile.read(path)
    except jobfile.JobFileError as error:
        problems, found = error.problems, {}
    else:
        problems = jobfile.check(job, os.environ, source)
        found = {"job": job.job, "counts": _counts(job)}
    ok = all(problem.note for problem in problems)
    return {"file": str(path), "ok": ok, **found, "problems": [asdict(p) for p in problems]}


def _counts(job: Job) -> dict[str, int]:
    counts = {
        "topic": len(job.source.kafka.topics),
        "field": len(job.fields),
        "enrichment": len(job.enrich),
        "derived column": len(job.derive),
        "metric": len(job.metrics),
    }
    return {what if n == 1 else f"{what}s": n for what, n in counts.items()}


def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of job files.

    Editors complete keys and explain them by it. With the YAML language server (VS Code's YAML
    extension and others) a job file names it in its first line, by path or URL:
    `# yaml-language-server: $schema=job.schema.json`
    """
    from velocity.pipelines import reference

    print(json.dumps(reference.schema(), indent=2, ensure_ascii=False))


class Format(StrEnum):
    """How a plan is shown."""

    TEXT = "text"
    MERMAID = "mermaid"
    JSON = "json"


def plan(
    path: JobPath,
    format_: Annotated[
        Format, typer.Option("--format", help="A tree, a Mermaid flowchart, or JSON.")
    ] = Format.TEXT,
    as_json: Json = False,
) -> None:
    """Show the graph of a job: its steps, and what each does.

    ${NAME} is shown as written, and no header or option with its value.
    """
    from velocity.pipelines import plan as plans

    job = jobfile.load(path)
    match Format.JSON if as_json else format_:
        case Format.TEXT:
            output().print(plans.tree(job))
        case Format.MERMAID:
            print(plans.mermaid(job), end="")
        case Format.JSON:
            print(plans.as_json(job), end="")
