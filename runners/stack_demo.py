"""The whole system on the stack's servers, live: real Kafka, Flink and Elasticsearch, and a check."""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from elasticsearch import Elasticsearch, NotFoundError, helpers
from rich.console import Console
from rich.live import Live
from rich.table import Table

from velocity.io.elastic_setup import apply
from velocity.pipelines.directory import directory
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import DeadLetterSpec, Job
from velocity.pipelines.recompute import ExpectedDocument, differences
from velocity.pipelines.simulator import Scenario
from velocity.pipelines.templates import setup_of
from velocity.runners.demo import show_differences
from velocity.runners.embedded import DirectoryService
from velocity.runners.flink import FlinkOptions
from velocity.runners.flink_rest import Flink
from velocity.runners.flink_submit import quiet, submit
from velocity.runners.simulated_sns import Ingress, SimulatedSns, publishing
from velocity.runners.stack_errors import StackError
from velocity.runners.stack_state import StackState
from velocity.runners.whole import Whole, scenario_of, wanted, whole

PREFIX: Final = "demo"
"""Of all topics, indices and jobs of a demo; those of the one before are deleted."""
PARTITIONS: Final = 2
_LOOK_EVERY: Final = 2.0


class StackDemo:
    """The whole system on servers that are up.

    Simulated services publish through SNS's envelopes, signed and pushed over HTTP, to the endpoint of
    ``velocity ingest sns``; one job on Flink enriches, the others count from the enriched topics into
    Elasticsearch. ``run`` shows it until all documents equal the recomputation, or Ctrl-C.
    """

    def __init__(
        self,
        state: StackState,
        *,
        events: int,
        rate: float,
        seed: int = 1,
        only: Collection[str] = (),
        idle_after: timedelta | None = None,
        console: Console | None = None,
    ) -> None:
        """``only``: names of the jobs that count; none is all. ``idle_after`` is the jobs' own if None."""
        self._console = console or Console(stderr=True)
        self._kafka, self._elastic, self._rest = map(
            partial(_address, state), ("kafka", "elasticsearch", "flink")
        )
        self._scenario: Scenario = scenario_of(events, seed)
        self._rate = rate
        self._idle_after = idle_after
        self._run = f"{PREFIX}.{int(time.time())}"
        every = whole(self._own)
        if unknown := set(only) - {job.job.removeprefix(f"{PREFIX}_") for job in every.counting}:
            names = ", ".join(job.job.removeprefix(f"{PREFIX}_") for job in every.counting)
            raise StackError(f"no job {min(unknown)}: there are {names}")
        chosen = [
            i
            for i, job in enumerate(every.counting)
            if not only or job.job.removeprefix(f"{PREFIX}_") in only
        ]
        self._whole = Whole(
            every.enrichment, [every.counting[i] for i in chosen], [every.plain[i] for i in chosen]
        )

    def _own(self, job: Job) -> Job:
        """A job with the demo's own name, topics and indices."""
        kafka = job.source.kafka.model_copy(
            update={"topics": [f"{self._run}.{topic}" for topic in job.source.kafka.topics]}
        )
        source: dict[str, Any] = {"kafka": kafka}
        if self._idle_after is not None:
            source["idle_after"] = self._idle_after
        update: dict[str, Any] = {
            "job": f"{PREFIX}_{job.job}",
            "source": job.source.model_copy(update=source),
            "dead_letters": DeadLetterSpec(kafka=f"{self._run}.dead-letters"),
        }
        if elastic := job.sinks.elasticsearch:
            index = f"velocity-{PREFIX}-{job.job}-{{window_start:%Y.%m}}"
            elastic = elastic.model_copy(update={"index": index})
            update["sinks"] = job.sinks.model_copy(update={"elasticsearch": elastic})
        if job.transactions and job.transactions.alerts:
            alerts = job.transactions.alerts.model_copy(update={"kafka": f"{self._run}.alerts"})
            update["transactions"] = job.transactions.model_copy(update={"alerts": alerts})
        return job.model_copy(update=update)

    @property
    def jobs(self) -> Sequence[Job]:
        """All that run on Flink."""
        return [self._whole.enrichment, *self._whole.counting]

    def run(self, patience: float = 900.0) -> int:
        """The exit code: 0 once all is right, 1 if it is not so long after the last event was sent."""
        flink = Flink(self._rest)
        free, total = flink.slots()
        if free < len(self.jobs):
            raise StackError(
                f"{len(self.jobs)} jobs need as many slots, and of Flink's {total} {free} are free: "
                f"velocity stack down flink, then velocity stack up flink --slots {len(self.jobs) + 2}"
            )
        known = directory(self._scenario.seed)
        with ExitStack() as stack:
            client = stack.enter_context(Elasticsearch(f"http://{self._elastic}"))
            self._clear(client)
            service = stack.enter_context(DirectoryService(known.tables()))
            environ = {
                "KAFKA": self._kafka,
                "ELASTICSEARCH": f"http://{self._elastic}",
                "PROVIDERS": service.url,
                "PATIENTS": service.url,
            }
            sns = SimulatedSns(self._scenario)
            ingress = stack.enter_context(Ingress(sns, self._kafka, self._whole.topics))
            self._console.print(
                f"SNS pushes to http://127.0.0.1:{ingress.port}, REST at {service.url}, Flink at "
                f"{flink.url}, documents in http://{self._elastic}/velocity-{PREFIX}-*",
                highlight=False,
                soft_wrap=True,
            )
            started = stack.enter_context(self._cancelling(flink))
            self._start(self._whole.enrichment, environ, started, client)
            publisher = stack.enter_context(publishing(sns, ingress.port, self._rate))
            self._await_enriched()  # an empty partition would be idle, and what comes then late
            for job in self._whole.counting:
                self._start(job, environ, started, client)
            topics = self._whole.topics
            expected = {
                job.job: wanted(job, self._scenario, known, topics) for job in self._whole.plain
            }
            left = self._watch(client, ingress, publisher, expected, patience)
        if left:
            show_differences(left, self._console, soft_wrap=True)
            return 1
        count = sum(map(len, expected.values()))
        self._console.print(
            f"[green]All {count:,} documents of {len(expected)} jobs equal a plain recomputation "
            f"over all events.[/] They stay in velocity-{PREFIX}-*; the stack stays up "
            "(velocity stack down)."
        )
        return 0

    def _clear(self, client: Elasticsearch) -> None:
        """Deletes what the demo before left, and makes this one's topics."""
        found = client.indices.get(index=f"velocity-{PREFIX}-*", ignore_unavailable=True)
        for index in found.body:
            client.indices.delete(index=index, ignore_unavailable=True)
        admin = AdminClient({"bootstrap.servers": self._kafka})
        mine = (f"{PREFIX}.", f"enriched.{PREFIX}.")
        if old := [t for t in admin.list_topics(timeout=30).topics if t.startswith(mine)]:
            for deleted in admin.delete_topics(old).values():
                deleted.result()
        read = self._whole.read
        wanted_ = [*read, *(f"enriched.{topic}" for topic in read)]
        new = [NewTopic(topic, PARTITIONS, 1) for topic in wanted_]
        new += [NewTopic(f"{self._run}.{name}", 1, 1) for name in ("alerts", "dead-letters")]
        for made in admin.create_topics(new).values():
            made.result()

    @contextmanager
    def _cancelling(self, flink: Flink) -> Iterator[list[str]]:
        """Ends, in the end, the jobs whose ids are in the list; and waits until they have."""
        started: list[str] = []
        try:
            yield started
        finally:
            for id_ in started:
                flink.cancel(id_)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and any(
                not job.ended for job in flink.jobs() if job.id in started
            ):
                time.sleep(0.5)
            self._console.print(f"{len(started)} jobs cancelled")

    def _start(
        self, job: Job, environ: Mapping[str, str], started: list[str], client: Elasticsearch
    ) -> None:
        graph = Graph(job, environ)
        if job.sinks.elasticsearch:
            for _ in apply(client, setup_of(graph)):
                pass
        options = FlinkOptions(master=self._rest, parallelism=1)
        with quiet(), self._console.status(f"{job.job}: starting") as status:
            running = submit(graph, options, [], report=status.update)
        started.append(running.id)
        self._console.print(f"{job.job} runs, id {running.id}", highlight=False)

    def _await_enriched(self, patience: float = 120.0) -> None:
        """Returns when each partition of the enriched topics has an event."""
        deadline = time.monotonic() + patience
        topics = [f"enriched.{topic}" for topic in self._whole.read]
        with self._console.status("waiting for the first enriched events"):
            while not all(_has_events(self._kafka, topic) for topic in topics):
                if time.monotonic() > deadline:
                    raise StackError(f"no enriched events in {patience:.0f} s: velocity jobs")
                time.sleep(0.5)

    def _watch(
        self,
        client: Elasticsearch,
        ingress: Ingress,
        publisher: Any,
        expected: Mapping[str, Mapping[str, ExpectedDocument]],
        patience: float,
    ) -> list[str]:
        """Shows how far all is; what is wrong in the end."""
        deadline: float | None = None
        with Live(console=self._console, transient=True, auto_refresh=False) as live:
            while True:
                found = {job: _documents(client, job) for job in expected}
                live.update(_table(ingress, found, expected), refresh=True)
                if not publisher.is_alive():
                    deadline = deadline or time.monotonic() + patience
                    left = [
                        line
                        for job, documents in expected.items()
                        for line in _unlike(documents, found[job])
                    ]
                    if not left or time.monotonic() > deadline:
                        return left
                time.sleep(_LOOK_EVERY)


def _address(state: StackState, name: str) -> str:
    found = state.address(name)
    if found is None:
        raise StackError(f"{name} is not up: velocity stack up")
    return found.removeprefix("http://")


def _has_events(kafka: str, topic: str) -> bool:
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "velocity-demo"})
    try:
        numbers = consumer.list_topics(topic, 30).topics[topic].partitions
        return all(
            consumer.get_watermark_offsets(TopicPartition(topic, n), 30)[1] > 0 for n in numbers
        )
    except KafkaException:
        return False
    finally:
        consumer.close()


def _documents(client: Elasticsearch, job: str) -> dict[str, Any]:
    index = f"velocity-{PREFIX}-{job.removeprefix(f'{PREFIX}_')}-*"
    try:
        client.indices.refresh(index=index)
        hits = helpers.scan(client, index=index, query={"query": {"match_all": {}}})
        return {hit["_id"]: hit["_source"] for hit in hits}
    except NotFoundError:
        return {}


def _unlike(expected: Mapping[str, ExpectedDocument], found: Mapping[str, Any]) -> Iterator[str]:
    yield from differences(expected, found)
    yield from (f"{id_}: early" for id_, body in found.items() if body["pane"] == "early")


def _table(
    ingress: Ingress,
    found: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, Mapping[str, ExpectedDocument]],
) -> Table:
    counts = ingress.subscriber.counts
    table = Table(
        title=f"{counts['delivered']:,} events came through SNS, {counts['repeated']:,} repeated",
        title_justify="left",
    )
    for title in ("job", "documents", "of", "early", "late", "alerts"):
        table.add_column(title, justify="left" if title == "job" else "right")
    for job, documents in found.items():
        panes = Counter(body["pane"] for body in documents.values())
        alerts = sum(body["metric"] == "alerts" for body in documents.values())
        row = (len(documents), len(expected[job]), panes["early"], panes["late"], alerts)
        table.add_row(job, *(f"{number:,}" for number in row))
    return table
