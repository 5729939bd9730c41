"""The demo: simulated events through jobs to documents, each checked by recomputation."""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from velocity.io.dead_letters import read_dead_letters
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import Directory, directory
from velocity.pipelines.domains import DOMAINS
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import ExpectedDocument, Find, Message, differences, recompute
from velocity.pipelines.simulator import Kind, Scenario, SimulatedMessage, simulate
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.options import options_for
from velocity.runners.produce import produce
from velocity.runners.run import redirect, run, summary

JOB: Final = Path(__file__).parent.parent / "pipelines" / "pharmacy_delivery.yaml"
_SHOWN: Final = 5
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def demo(
    *,
    events: int,
    seed: int,
    folder: Path,
    path: Path = JOB,
    console: Console | None = None,
    **more: Any,
) -> int:
    """Runs a job over simulated events; its documents and dead letters stay in ``folder``.

    ``more`` is the rest of the ``Scenario``. The exit code is 0 if every document equals the
    recomputation over all events and every malformed message is a dead letter of the right cause,
    and 1, naming the differences, if not.
    """
    console = console or Console()
    scenario = Scenario(seed=seed, events=events, **more)
    known = directory(seed)
    shutil.rmtree(folder, ignore_errors=True)
    store, dead = folder / "documents.db", folder / "dead-letters"
    job = redirect(load(path), sqlite=store, dead_letters=dead)
    topics = {domain.topic: 8 for domain in DOMAINS.values()}
    with EmbeddedKafka(topics) as kafka, DirectoryService(known.tables()) as service:
        console.print(f"Kafka (embedded) at {kafka.bootstrap_servers}, REST at {service.url}")
        _simulate(scenario, kafka, console)
        environment = {
            "KAFKA": kafka.bootstrap_servers,
            "PROVIDERS": service.url,
            "PATIENTS": service.url,
        }
        started = time.monotonic()
        graph = Graph(job, environment)
        counters = run(graph, options_for("direct", []), "latest", console)
        seconds = time.monotonic() - started
    documents = read_documents(str(store))
    for table in _tables(job, documents):
        console.print(table)
    console.print(summary(counters))
    read = counters.get("read_messages", 0)
    topics_read = ", ".join(job.source.kafka.topics)
    console.print(
        f"{read:,} messages, all of {topics_read}, to {len(documents):,} documents "
        f"in {seconds:.1f} s"
    )
    with console.status("recomputing all documents from all events"):
        wrong = compare(job, scenario, known, documents, dead)
    if wrong:
        show_differences(wrong, console)
        return 1
    console.print(
        f"[green]All {len(documents):,} documents equal a plain recomputation over all events.[/]\n"
        f"Documents: {store}   Dead letters: {dead}"
    )
    return 0


def _simulate(scenario: Scenario, kafka: EmbeddedKafka, console: Console) -> None:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("simulating events", total=scenario.events)
        produce(
            scenario,
            kafka.bootstrap_servers,
            progress=lambda sent: progress.update(task, completed=sent),
        )
    lost = {domain.topic: kafka.forgotten(domain.topic) for domain in DOMAINS.values()}
    if any(lost.values()):
        raise RuntimeError(f"the embedded broker keeps too little for so many events: {lost}")
    console.print(f"{scenario.events:,} events of {len(DOMAINS)} domains simulated")


def _tables(job: Job, documents: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """For each metric the documents that count most events."""
    for metric in job.metrics:
        of_metric = [d for d in documents.values() if d["metric"] == metric.name]
        of_metric.sort(key=lambda d: (-d["events"], d["window_start"], str(d["dimensions"])))
        title = f"{metric.name}: {len(of_metric):,} documents, those of most events"
        table = Table(title=title, title_justify="left", caption=metric.description)
        table.add_column("window")
        for name in metric.by:
            table.add_column(name)
        for name in metric.values:
            table.add_column(name, justify="right")
        for document in of_metric[:_SHOWN]:
            window = f"{_clock(document['window_start'])}–{_clock(document['window_end'])}"
            shown = [*document["dimensions"].values(), *document["values"].values()]
            table.add_row(window, *map(_short, shown))
        yield table


def _clock(time: str) -> str:
    """The time of day, with seconds if there are any."""
    return time[11:16] if time[17:] == "00.000Z" else time[11:19]


def _short(value: Any) -> str:
    match value:
        case float():
            return f"{value:,.1f}"
        case int():
            return f"{value:,}"
        case str() if _TIME.fullmatch(value):
            return value[11:19]
    return str(value)


def services(job: Job, known: Directory) -> dict[str, Find]:
    """What ``DirectoryService`` answers to each enrichment of a job, by the enrichment's name.

    >>> sorted(services(load(JOB), directory(1)))
    ['patient', 'provider']
    """
    tables = known.tables()
    found: dict[str, Find] = {}
    for spec in job.enrich:
        table = _TABLE.search(spec.get or "")
        if not table or table[1] not in tables:
            raise ValueError(
                f"enrichment {spec.name} asks {spec.get}; the directory answers "
                f"{' and '.join(f'/{name}?ids={{keys}}' for name in tables)} alone"
            )
        found[spec.name] = tables[table[1]].get
    return found


_TABLE: Final = re.compile(r"/(\w+)\?ids=\{keys\}$")


def expected(
    job: Job, messages: Iterable[SimulatedMessage], known: Directory
) -> dict[str, ExpectedDocument]:
    """The documents of a job over its messages, by recomputation."""
    read = (Message(m.value, m.timestamp_ms) for m in messages)
    return recompute(job, read, services(job, known))


def write_expected(path: Path, job: Job, scenarios: Sequence[Scenario]) -> int:
    """Writes the documents of a job over scenarios, as JSON lines by id; returns how many.

    A value that may be a sketch's estimate has its ``tolerance`` beside it.
    """
    topics = set(job.source.kafka.topics)
    messages = (m for scenario in scenarios for m in simulate(scenario) if m.topic in topics)
    documents = expected(job, messages, directory(scenarios[0].seed))
    with path.open("w", encoding="utf-8") as file:
        for id_, document in sorted(documents.items()):
            body = {"id": id_, **asdict(document)}
            values = {name: value["value"] for name, value in body["values"].items()}
            near = {n: v["tolerance"] for n, v in body["values"].items() if v["tolerance"]}
            body |= {"values": values} | ({"tolerance": near} if near else {})
            file.write(json.dumps(body, ensure_ascii=False) + "\n")
    return len(documents)


def compare(
    job: Job,
    scenario: Scenario,
    known: Directory,
    documents: Mapping[str, Mapping[str, Any]],
    dead: Path,
) -> list[str]:
    """What differs between the run and a plain recomputation of the same simulated messages."""
    topics = set(job.source.kafka.topics)
    messages = [message for message in simulate(scenario) if message.topic in topics]
    wrong = list(differences(expected(job, messages, known), documents))
    return [*wrong, *unlike_letters(messages, dead)]


def unlike_letters(messages: Iterable[SimulatedMessage], dead: Path) -> Iterator[str]:
    """Where the dead letters of a folder are not the malformed messages, each of its cause."""
    malformed = Counter(m.cause.value for m in messages if m.kind is Kind.MALFORMED and m.cause)
    found = (
        Counter(read_dead_letters(str(dead))["cause"].to_pylist()) if dead.exists() else Counter()
    )
    for cause in sorted(malformed.keys() | found.keys()):
        if malformed[cause] != found[cause]:
            yield f"dead letters: {found[cause]} of {cause}, not {malformed[cause]}"


def show_differences(wrong: Sequence[str], console: Console, *, soft_wrap: bool = False) -> None:
    """The first of them, and how many there are."""
    for line in wrong[:20]:
        console.print(f"[red]{line}", highlight=False, soft_wrap=soft_wrap)
    console.print(f"[red bold]{len(wrong)} differences from the recomputation")
