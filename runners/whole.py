"""The whole system in one go: SNS envelopes, enrichment, four domains and transactions, checked."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import Directory, directory
from velocity.pipelines.domains import DOMAINS
from velocity.pipelines.enriched import reading_enriched
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import DeadLetterSpec, DeduplicateSpec, Job
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import ExpectedDocument, differences
from velocity.pipelines.simulator import Scenario
from velocity.runners.demo import expected, show_differences, unlike_letters
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.options import options_for
from velocity.runners.run import redirect, run
from velocity.runners.simulated_sns import Ingress, SimulatedSns, published

FOLDER: Final = Path(__file__).parent.parent / "pipelines"
_PARTITIONS: Final = 4


class Whole(NamedTuple):
    """The jobs of ``pipelines/``: one enriches, the others count what it has written."""

    enrichment: Job
    counting: Sequence[Job]
    plain: Sequence[Job]
    """The counting ones as they are in their files, which must come to the same."""

    @property
    def topics(self) -> dict[str, str]:
        """Of each domain's topic the one that the enrichment reads."""
        return {
            domain.topic: next(topic for topic in self.read if topic.endswith(domain.topic))
            for domain in DOMAINS.values()
        }

    @property
    def read(self) -> Sequence[str]:
        return self.enrichment.source.kafka.topics


def whole(change: Callable[[Job], Job] = lambda job: job) -> Whole:
    """All jobs. SNS delivers twice, and so does a bundle that runs again: copies are dropped by the id.

    ``change`` is made to each as it is in its file.
    """
    jobs = [change(load(path)) for path in sorted(FOLDER.glob("*.yaml"))]
    [enrichment] = [job for job in jobs if not job.metrics]
    once = DeduplicateSpec(by="event_id", horizon=timedelta(hours=1))
    plain = [
        job.model_copy(update={"source": job.source.model_copy(update={"deduplicate": once})})
        for job in jobs
        if job.metrics
    ]
    return Whole(enrichment, [reading_enriched(job, enrichment) for job in plain], plain)


def scenario_of(events: int, seed: int) -> Scenario:
    """Of the whole system: an hour and more, so that stages are overdue and transactions dropped.

    Pushed over several connections, some dozen messages overtake each other: with what is late
    besides they must stay within the jobs' disorder.
    """
    return Scenario(seed=seed, events=events, rate=2.0, max_lateness=timedelta(seconds=8))


def wanted(
    job: Job, scenario: Scenario, known: Directory, topics: Mapping[str, str]
) -> dict[str, ExpectedDocument]:
    """The documents of a plain job, by recomputation; ``topics`` as in ``Whole``."""
    read = [m for m in published(scenario) if topics[m.topic] in job.source.kafka.topics]
    return expected(job, read, known)


def demo_all(*, events: int, seed: int, folder: Path, console: Console | None = None) -> int:
    """Runs the whole system in this process; documents and dead letters stay in ``folder``.

    The exit code is 0 if every document of every job equals the recomputation over all events and
    each malformed one is a dead letter, and 1, naming differences, if not.
    """
    console = console or Console()
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store, dead = folder / "documents.db", folder / "dead-letters"
    scenario, jobs, known = scenario_of(events, seed), whole(), directory(seed)
    topics = dict.fromkeys([*jobs.read, *(f"enriched.{topic}" for topic in jobs.read)], _PARTITIONS)
    with EmbeddedKafka(topics) as kafka, DirectoryService(known.tables()) as service:
        address = kafka.bootstrap_servers
        console.print(f"Kafka (embedded) at {address}, REST at {service.url}")
        _ingress(scenario, jobs, address, console)
        environ = {"KAFKA": address, "PROVIDERS": service.url, "PATIENTS": service.url}
        table = Table(title="Jobs", title_justify="left")
        for title in ("job", "read", "written", "seconds"):
            table.add_column(title, justify="left" if title == "job" else "right")
        letters = DeadLetterSpec(parquet=str(dead))
        for job in (jobs.enrichment, *jobs.counting):
            job = job.model_copy(update={"dead_letters": letters})
            job = redirect(job, sqlite=store) if job.metrics else job
            started = time.monotonic()
            counters = run(Graph(job, environ), options_for("direct", []), "latest", console)
            seconds = time.monotonic() - started
            read = counters.get("read_messages", 0)
            if job.metrics:
                written = f"{counters.get('documents_written', 0):,} documents"
            else:
                written = f"{counters.get('written_messages', 0):,} enriched events"
            table.add_row(job.job, f"{read:,}", written, f"{seconds:.1f}")
            console.print(f"{job.job}: {read:,} messages, {written}, {seconds:.1f} s")
        console.print(f"{service.calls:,} REST calls, for {service.keys:,} keys")
    documents = read_documents(str(store))
    with console.status("recomputing all documents of all jobs from all events"):
        wrong = compare_all(scenario, jobs, known, documents, dead)
    if wrong:
        show_differences(wrong, console)
        return 1
    alerts = Counter(d["values"]["status"] for d in documents.values() if d["metric"] == "alerts")
    console.print(
        f"[green]All {len(documents):,} documents of {len(jobs.counting)} jobs equal a plain "
        f"recomputation over all events,[/] from SNS envelopes on, {time.monotonic() - began:.0f} s "
        f"in all.\nTransactions that were stuck: {sum(alerts.values()):,}, of which "
        f"{alerts['resolved']:,} moved on.\nDocuments: {store}   Dead letters: {dead}"
    )
    return 0


def _ingress(scenario: Scenario, jobs: Whole, kafka: str, console: Console) -> None:
    """All events from envelopes over HTTP into Kafka."""
    sns = SimulatedSns(scenario)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    quiet = not console.is_terminal
    with (
        Ingress(sns, kafka, jobs.topics) as ingress,
        Progress(*columns, console=console, transient=True) if not quiet else nullcontext() as bar,
    ):
        task = bar.add_task("SNS envelopes over HTTP", total=scenario.events) if bar else None

        def show(sent: int) -> None:
            if bar and task is not None:
                bar.update(task, completed=sent)

        started = time.monotonic()
        sns.push(ingress.port, progress=show)
        seconds = time.monotonic() - started
        counts = ingress.subscriber.counts
    console.print(
        f"{sum(counts.values()):,} envelopes over HTTP, signatures verified: {counts['delivered']:,} "
        f"in Kafka, {counts['repeated']:,} repeated by SNS and known, {seconds:.1f} s"
    )


def compare_all(
    scenario: Scenario,
    jobs: Whole,
    known: Directory,
    documents: Mapping[str, Mapping[str, Any]],
    dead: Path,
) -> list[str]:
    """What differs between a run of the whole and a plain recomputation of each job."""
    wrong: list[str] = []
    for job in jobs.plain:
        own = {id_: body for id_, body in documents.items() if body["job"] == job.job}
        wrong += differences(wanted(job, scenario, known, jobs.topics), own)
    return [*wrong, *unlike_letters(published(scenario), dead)]
