"""What transactions cost: the state of 200,000 open ones, and how fast events are followed.

    python benchmarks/transactions.py

measures the step's own work in one process, without a runner: what is kept of each transaction is
encoded as Beam encodes it, and each event is decoded, taken in and encoded again. Then what a worker
holds of the bundle in which all of them fall due, as Beam holds states and as the stack's workers do.

    velocity stack up kafka flink
    python benchmarks/transactions.py --flink

runs the job on the stack's Flink until all transactions are open there, and asks its processes for
their memory, before and after, and the last checkpoint for its size.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from apache_beam.coders import BytesCoder, Coder, FastPrimitivesCoder
from apache_beam.coders.coder_impl import CoderImpl
from apache_beam.coders.coders import GlobalWindowCoder
from apache_beam.runners.worker.bundle_processor import FnApiUserStateContext
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindow
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from soak import live_heap, peak, processor_time, rss  # beside this file

from velocity.io.records import rfc3339
from velocity.pipelines.follow import stages_of
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import FieldSpec, Job
from velocity.pipelines.jobfile import load
from velocity.runners.flink import FlinkOptions
from velocity.runners.flink_submit import submit
from velocity.runners.run import redirect
from velocity.runners.stack_paths import state_folder
from velocity.runners.stack_server import members
from velocity.runners.stack_state import read_state
from velocity.runners.stack_worker_states import BoundedStates
from velocity.transforms.stages import Arrival, Transaction

OPEN = 200_000
JOB = Path(__file__).parent.parent / "pipelines" / "transactions.yaml"
EVENTS = (
    "consultation.requested", "consultation.started", "consultation.ended", "prescription.issued",
    "order.created", "order.confirmed", "order.dispatched",
)  # fmt: skip
"""The longest way that leaves a transaction open: all of it but the delivery."""


START = 1_767_571_200_000
PARTITIONS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flink", action="store_true")
    parser.add_argument("--open", type=int, default=OPEN, help="transactions, on Flink")
    parser.add_argument("--steps", type=int, default=3, help="events of each, on Flink")
    parser.add_argument("--state-backend", default="hashmap")
    parser.add_argument("--seconds", type=float, default=1200, help="to wait for facts, on Flink")
    arguments = parser.parse_args()
    if arguments.flink:
        return on_flink(arguments)
    in_process()
    for holding in (BoundedStates, FnApiUserStateContext):
        bundle_of_all(holding)
    return 0


def in_process() -> None:
    spec = load(JOB).transactions
    assert spec is not None
    graph, coder = stages_of(spec), FastPrimitivesCoder()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept: dict[bytes, bytes] = {}
    began, facts = time.process_time(), 0
    for n in range(OPEN):
        key, state = b"trx-%032x" % n, None
        for step, event in enumerate(EVENTS):
            at = 1_767_571_200_000 + 60_000 * step + n
            transaction = Transaction(graph, state and coder.decode(state))
            transaction.arrive([Arrival(at, graph.of_event[event], ("Jakarta",))])
            facts += sum(1 for _ in transaction.advance(at))
            state = coder.encode(transaction.keep())
        kept[key] = state
    seconds = time.process_time() - began
    size = sum(len(state) for state in kept.values())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{OPEN:,} open transactions, {len(EVENTS)} events each: {facts:,} facts")
    print(f"state: {size / OPEN:,.0f} bytes each, {size / 1e6:,.0f} MB in all, without keys")
    print(f"this process has grown by {grown:,.0f} MB with them and their keys in a dict")
    print(f"{OPEN * len(EVENTS) / seconds:,.0f} events/s of CPU time, one process")


class Runner:
    """A runner that has the same state for each key, and takes what is written."""

    def __init__(self, state: Any, coder: Coder) -> None:
        self._state = coder.get_impl().encode(state)

    def blocking_get(self, key: Any, coder: CoderImpl) -> Iterator[Any]:
        yield coder.decode(self._state)

    def extend(self, key: Any, coder: CoderImpl, values: Any) -> Any:
        for value in values:
            coder.encode(value)
        return self

    def clear(self, key: Any) -> Any:
        return self

    def get(self) -> None:
        """A write is done at once."""


def bundle_of_all(holding: type[FnApiUserStateContext]) -> None:
    """What a process grows by in a bundle in which all transactions are read, advanced and written."""
    spec = load(JOB).transactions
    assert spec is not None
    graph, coder = stages_of(spec), FastPrimitivesCoder()
    opened = Transaction(graph)
    opened.arrive([Arrival(START, graph.of_event["order.created"], ("Jakarta",))])
    states = holding(Runner(opened.keep(), coder), "Follow", BytesCoder(), GlobalWindowCoder())
    kept = ReadModifyWriteStateSpec("transaction", coder)
    before, began, window = rss(os.getpid()), time.process_time(), GlobalWindow()
    for n in range(OPEN):
        state = states.get_state(kept, b"trx-%032x" % n, window)
        transaction = Transaction(graph, state.read())
        for _ in transaction.advance(START):
            pass
        state.write(transaction.keep())
    grown = rss(os.getpid()) - before
    states.commit()
    seconds = time.process_time() - began
    print(
        f"a bundle of all, {holding.__name__}: {grown:,.0f} MiB more, {seconds:.0f} s of CPU time"
    )


def on_flink(arguments: argparse.Namespace) -> int:
    number, steps, backend = arguments.open, arguments.steps, arguments.state_backend
    stack = read_state(state_folder())
    kafka = stack.address("kafka")
    if not kafka or "flink" not in stack.components:
        print("no stack is up: velocity stack up kafka flink", file=sys.stderr)
        return 1
    servers = {s.name: s for s in stack.components["flink"].servers}
    manager = servers["taskmanager-1"].process.pid
    topic = f"open-{int(time.time())}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    fill(kafka, topic, number, steps)
    with tempfile.TemporaryDirectory(prefix="velocity-open-") as name:
        job = of_one_topic(load(JOB), topic, Path(name))
        heap, resident, began = live_heap(manager), rss(manager), time.monotonic()
        options = FlinkOptions(name=topic, state_backend=backend, parallelism=2)
        running = submit(Graph(job, {"KAFKA": kafka}), options, [])
        pool = servers["workers"].process.pid
        try:

            def workers() -> list[int]:
                found = (p.id.pid for p in members(servers["workers"], str(state_folder())))
                return [pid for pid in found if pid != pool]

            def counted(name: str) -> int:
                vertices = running.flink.vertices(running.id)
                return running.flink.counters(running.id, vertices, "velocity").get(name, 0)

            wanted = number * (2 * steps - 1)  # each stage entered, all but the last left
            taken = facts = 0
            # What has arrived is held, whether its time has come or not.
            while (taken := counted("transactions_events")) < number * steps or (
                facts := counted("transactions_facts")
            ) < wanted:
                passed, memory = time.monotonic() - began, sum(map(rss, workers()))
                told = f"{taken:,} events taken, {facts:,} facts, {memory:,.0f} MiB in Python"
                print(f"{passed:6.0f} s: {told}", flush=True)
                if taken >= number * steps and passed > arguments.seconds:
                    break
                time.sleep(10)
            seconds, done = (
                time.monotonic() - began,
                running.flink.checkpoints(running.id).completed,
            )
            while running.flink.checkpoints(running.id).completed < done + 2:  # one of all of it
                time.sleep(1)
            pids = workers()
            found = {
                "open transactions": number,
                "events": number * steps,
                "state backend": backend,
                "seconds, from submission": round(seconds),
                "checkpoint, MB": round(running.flink.checkpoints(running.id).last_size / 1e6),
                "TaskManager's live heap, MiB": [round(heap), round(live_heap(manager))],
                "TaskManager, MiB": [round(resident), round(rss(manager))],
                "Python workers, MiB": [round(rss(pid)) for pid in pids],
                "at most": [round(peak(pid)) for pid in pids],
                "their CPU time, s": [round(processor_time(pid)) for pid in pids],
                "facts": counted("transactions_facts"),
            }
        finally:
            running.flink.cancel(running.id)
    print(json.dumps(found, indent=2))
    return 0


def of_one_topic(job: Job, topic: str, folder: Path) -> Job:
    """The job without services, its first metric alone, over a topic whose partitions never seem idle."""
    kafka = job.source.kafka.model_copy(update={"topics": [topic]})
    source = {"kafka": kafka, "idle_after": timedelta(hours=10)}
    changed = job.model_copy(
        update={
            "source": job.source.model_copy(update=source),
            "fields": {**job.fields, "city": FieldSpec(type="string")},
            "enrich": [],
            "metrics": job.metrics[:1],
            "transactions": job.transactions
            and job.transactions.model_copy(update={"alerts": None}),
        }
    )
    return redirect(changed, sqlite=folder / "documents.db", dead_letters=folder / "dead")


def fill(kafka: str, topic: str, number: int, steps: int) -> None:
    """Events of all transactions, a step after the other; then one that lets the watermark pass."""
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 50, "compression.type": "zstd"})

    def put(key: str, event: str, at: int, partition: int) -> None:
        value = {"event_id": f"{key}-{event}", "event_type": event, "transaction_id": key,
                 "city": "Jakarta", "event_time": rfc3339(at)}  # fmt: skip
        producer.produce(topic, json.dumps(value), key, partition=partition, timestamp=at)

    for step, event in enumerate(EVENTS[:steps]):
        for n in range(number):
            put(f"trx-{n:032x}", event, START + 20_000 * step + n % 10_000, n % PARTITIONS)
            if not n % 10_000:
                producer.poll(0)
                producer.flush()
    for partition in range(PARTITIONS):
        put(f"last-{partition}", "order.created", START + 240_000, partition)
    producer.flush()


if __name__ == "__main__":
    sys.exit(main())
