"""Whether memory stays flat: Velocity on Flink at an even rate for a while.

    python benchmarks/speed/steady.py --minutes 30 --rate 20000

The workload is that of the comparison (``workload.py``), sent to the topic at the given rate while the job reads it.
Every minute a line tells the resident memory of each of its processes. At the end each document must be as a plain
recomputation has it.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from threading import Thread

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from machine import processes, tree
from measure import counted, new_topic, put, running, servers, warm, wrong
from systems import SYSTEMS, Place
from workload import Workload


class Sender(Thread):
    """Sends the workload's events at a rate, and its last ones; ``late`` by so many seconds at most."""

    def __init__(self, kafka: str, topic: str, workload: Workload, rate: float) -> None:
        super().__init__(daemon=True)
        self._kafka, self._topic, self._workload, self._rate = kafka, topic, workload, rate
        self.late = 0.0

    def run(self) -> None:
        producer = Producer(
            {"bootstrap.servers": self._kafka, "linger.ms": 20, "compression.type": "lz4"}
        )
        began = time.monotonic()
        for n, (partition, value) in enumerate(self._workload.messages()):
            if n % 500 == 0:
                ahead = began + n / self._rate - time.monotonic()
                self.late = max(self.late, -ahead)
                time.sleep(max(ahead, 0))
            put(producer, self._topic, partition, value)
            producer.poll(0)
        producer.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=20_000, help="events a second")
    parser.add_argument("--workers", type=int, default=2, help="Python processes")
    parser.add_argument("--wait", type=float, default=120, help="seconds at most, for the last")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped, as by Ctrl-C
    workload = Workload(int(given.minutes * 60 * given.rate))
    with servers(None) as (kafka, elasticsearch, _pids, folder):
        warm(elasticsearch)
        topic = "steady"
        new_topic(AdminClient({"bootstrap.servers": kafka}), topic, workload.partitions)
        place = Place(
            kafka, topic, "", elasticsearch, "speed-steady", folder, folder, given.workers
        )
        sender = Sender(kafka, topic, workload, given.rate)
        with running(SYSTEMS["flink"], place, Path(sys.executable)) as (_, elastic, process, _log):
            sender.start()
            samples = watched(sender, process.pid)
            deadline = time.monotonic() + given.wait
            while counted(elastic, place.index) < workload.events and time.monotonic() < deadline:
                time.sleep(1)
        bad = wrong(elastic, place.index, workload.documents())
    print(
        f"{workload.events:,} events, sent at most {sender.late:.1f} s late; {bad} documents wrong"
    )
    for name, values in samples.items():
        print(f"{name}: {told(values)}")
    return 1 if bad else 0


def watched(sender: Sender, root: int) -> dict[str, list[float]]:
    """Resident MiB of each process, every minute while events are sent."""
    samples: dict[str, list[float]] = {}
    began = time.monotonic()
    while sender.is_alive():
        sender.join(60)
        every = processes()
        line = []
        for pid in sorted(tree([root], every)):
            name = f"{kind(pid)} {pid}"
            samples.setdefault(name, []).append(every[pid].resident / 2**20)
            line.append(f"{name} {samples[name][-1]:,.0f}")
        print(f"{(time.monotonic() - began) / 60:5.1f} min: {', '.join(line)}", flush=True)
    return samples


def kind(pid: int) -> str:
    """
    >>> import os
    >>> kind(os.getpid())
    'command'
    """
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    if b"stack_worker" in command:
        return "worker"
    return "Flink" if command.split(b"\0")[0].endswith(b"java") else "command"


def told(values: Sequence[float]) -> str:
    """How memory went, by thirds of the time.

    >>> told([100, 110, 120, 121, 119, 120])
    'MiB, medians by thirds: 105, 120, 120; at most 121'
    """
    third = max(len(values) // 3, 1)
    thirds = (values[:third], values[third : 2 * third] or values, values[2 * third :] or values)
    return f"MiB, medians by thirds: {', '.join(f'{median(t):,.0f}' for t in thirds)}; at most {max(values):,.0f}"


if __name__ == "__main__":
    sys.exit(main())
