"""What transactions cost: the state of 200,000 open ones, and how fast events are followed.

    python benchmarks/transactions.py

It measures the step's own work in one process, without a runner: what is kept of each transaction is
encoded as Beam encodes it, and each event is decoded, taken in and encoded again.
"""

import resource
import time
from pathlib import Path

from apache_beam.coders import FastPrimitivesCoder

from velocity.pipelines.follow import stages_of
from velocity.pipelines.jobfile import load
from velocity.transforms.stages import Arrival, Transaction

OPEN = 200_000
JOB = Path(__file__).parent.parent / "pipelines" / "transactions.yaml"
EVENTS = (
    "consultation.requested", "consultation.started", "consultation.ended", "prescription.issued",
    "order.created", "order.confirmed", "order.dispatched",
)  # fmt: skip
"""The longest way that leaves a transaction open: all of it but the delivery."""


def main() -> None:
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


if __name__ == "__main__":
    main()
