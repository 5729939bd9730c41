"""The workload on Bytewax: as many processes of one worker each as there are workers."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import bytewax.operators as op
import bytewax.operators.windowing as win
import orjson
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, TumblingWindower
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from common import MAX_LATENESS_S, MINUTE_MS, Arguments, Cities, Documents, arguments, document

ALIGN_TO = datetime(2026, 1, 1, tzinfo=UTC)

Event = tuple[int, int]
"""Its time and its amount: what is pickled for the process that has its key is as small as can be."""


class Totals(NamedTuple):
    n: int
    total: int
    most: int


class DocumentSink(DynamicSink[dict[str, Any]]):
    def __init__(self, url: str, index: str) -> None:
        self._url, self._index = url, index

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "DocumentPartition":
        return DocumentPartition(Documents(self._url, self._index))


class DocumentPartition(StatelessSinkPartition[dict[str, Any]]):
    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def write_batch(self, items: list[dict[str, Any]]) -> None:
        self._documents.write(items)


def time_of(event: Event) -> datetime:
    return datetime.fromtimestamp(event[0] / 1000, UTC)


def add(totals: Totals, event: Event) -> Totals:
    n, total, most = totals
    amount = event[1]
    return Totals(n + 1, total + amount, max(most, amount))


def merge(one: Totals, other: Totals) -> Totals:
    return Totals(one.n + other.n, one.total + other.total, max(one.most, other.most))


def to_document(item: tuple[str, tuple[int, Totals]]) -> dict[str, Any]:
    key, (window_id, totals) = item
    domain, event_type, city = key.split("|")
    # A tumbling window's id is its number since ALIGN_TO.
    start = int(ALIGN_TO.timestamp() * 1000) + window_id * MINUTE_MS
    return document(start, domain, event_type, city, *totals)


def build(kafka: str, topic: str, rest: str, elasticsearch: str, index: str) -> Dataflow:
    cities = Cities(rest)

    def enrich(
        messages: list[KafkaSourceMessage[bytes | None, bytes]],
    ) -> Iterable[tuple[str, Event]]:
        events = [orjson.loads(message.value) for message in messages]
        known = cities.of([event["provider_id"] for event in events])
        for event in events:
            city = known[event["provider_id"]]
            key = f"{event['domain']}|{event['event_type']}|{city}"
            yield key, (event["event_time"], event["amount"])

    flow = Dataflow("speed")
    # Without tail a source ends with its partitions, and so do the last windows. Otherwise those
    # wait for the clock of the system: each key has a watermark of its own, which only its events
    # and that clock drive.
    source: KafkaSource = KafkaSource([kafka], [topic], tail=False)
    messages = op.input("read", flow, source)  # in batches of a thousand
    events = op.flat_map_batch("enrich", messages, enrich)
    windows = win.fold_window(
        "window",
        events,
        EventClock(time_of, timedelta(seconds=MAX_LATENESS_S)),
        TumblingWindower(length=timedelta(minutes=1), align_to=ALIGN_TO),
        lambda: Totals(0, 0, 0),
        add,
        merge,
        ordered=False,  # neither counts nor sums nor maxima ask for an order, which costs a sort
    )
    documents = op.map("document", windows.down, to_document)
    op.output("write", documents, DocumentSink(elasticsearch, index))
    return flow


def addresses(count: int) -> Iterator[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    for one in sockets:
        yield f"127.0.0.1:{one.getsockname()[1]}"
        one.close()


def main(given: Arguments) -> None:
    """Starts a cluster of processes: workers within one would share its interpreter's lock."""
    built = (given.kafka, given.topic, given.rest, given.elasticsearch, given.index)
    cluster = ";".join(addresses(given.workers))
    run = [sys.executable, "-m", "bytewax.run", f"{__file__}:build{built!r}", "-a", cluster]
    processes = [subprocess.Popen([*run, "-i", str(at)]) for at in range(given.workers)]

    def stop(*_: object) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    sys.exit(max(process.wait() for process in processes))


if __name__ == "__main__":
    main(arguments())
