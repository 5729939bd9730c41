"""A million keys and windows in one run: the time it takes, and the memory of the worker meanwhile.

    velocity stack up kafka
    python benchmarks/cardinality.py                    # bounded, in one process
    velocity stack up flink
    python benchmarks/cardinality.py --runner flink     # without end, by the stack's worker

Each of ``--keys`` has ``--events`` events in each of ``--windows`` windows of a minute, in an order at
random within a minute. At the end there must be a document for each key and window, that counts
them all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from velocity.io.sqlite import StoreUnusable, read_documents
from velocity.runners.flink_rest import Flink
from velocity.runners.stack_paths import state_folder
from velocity.runners.stack_server import members
from velocity.runners.stack_state import read_state

T0 = 1_767_571_200_000  # 2026-01-05T00:00:00Z
PARTITIONS = 4
VELOCITY = [sys.executable, "-c", "from velocity.runners.cli import main; main()"]
JOB = """
job: cardinality
source:
  kafka: {bootstrap_servers: "${KAFKA}", topics: [TOPIC]}
  event_time: at
  disorder: 90s
  idle_after: 20s
fields: {at: timestamp_ms, key: string, amount: int64}
metrics:
  - {name: m, by: [key], window: {fixed: 1m}, values: {n: count(), total: sum(amount), most: max(amount)}}
sinks: {sqlite: {path: unused}}
dead_letters: {parquet: unused}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--events", type=int, default=2)
    parser.add_argument("--runner", choices=["direct", "flink"], default="direct")
    parser.add_argument("--state-backend", default="rocksdb", help="of Flink")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="velocity-cardinality-"))
    topic = f"cardinality-{int(time.time())}"
    (folder / "job.yaml").write_text(JOB.replace("TOPIC", topic))
    with kafka(topic) as servers:
        sent = send(servers, topic, given)
        outputs = ["--sqlite", str(folder / "documents.db"), "--dead-letters", str(folder / "dead")]
        command = [*VELOCITY, "run", str(folder / "job.yaml"), "--runner", given.runner, *outputs]
        environ = {**os.environ, "KAFKA": servers}
        began = time.monotonic()
        if given.runner == "direct":
            process = subprocess.Popen([*command, "--until", "now"], env=environ)
            peak = Peak(lambda: [process.pid])
            assert process.wait() == 0
        else:
            peak = Peak(workers)
            on_flink([*command, "--state-backend", given.state_backend], environ, folder, sent)
        seconds = time.monotonic() - began
        peak.ended.set()
    found = documents(folder)
    pairs = given.keys * given.windows
    print(
        json.dumps(
            {
                "runner": given.runner,
                "pairs": pairs,
                "events": sent,
                "documents": len(found),
                "counted": sum(body["events"] for body in found.values()),
                "seconds": round(seconds, 1),
                "pairs_per_second": round(pairs / seconds),
                "worker_peak_mib": round(peak.mib),
                "load": os.getloadavg()[0],
            }
        )
    )
    right = len(found) == pairs and {body["events"] for body in found.values()} == {given.events}
    return 0 if right else 1


@contextmanager
def kafka(topic: str) -> Iterator[str]:
    """The stack's, with the topic; an embedded one does not keep so much."""
    servers = read_state(state_folder()).address("kafka")
    if servers is None:
        raise SystemExit("no stack is up: velocity stack up kafka")
    client = AdminClient({"bootstrap.servers": servers})
    client.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    yield servers
    client.delete_topics([topic])


def send(servers: str, topic: str, given: Any) -> int:
    rng = np.random.default_rng(1)
    producer = Producer({"bootstrap.servers": servers, "queue.buffering.max.messages": 1_000_000})
    sent = 0
    for window in range(given.windows):
        keys = rng.permutation(np.repeat(np.arange(given.keys), given.events)).tolist()
        times = (T0 + window * 60_000 + rng.integers(0, 60_000, len(keys))).tolist()
        for key, at in zip(keys, times, strict=True):
            value = f'{{"at":{at},"key":"k{key}","amount":{at % 1000}}}'
            producer.produce(topic, value, partition=sent % PARTITIONS, timestamp=at)
            sent += 1
            if sent % 10_000 == 0:
                producer.poll(0)
        producer.flush()
    return sent


def on_flink(command: list[str], environ: dict[str, str], folder: Path, sent: int) -> None:
    """Returns when all events are in documents that are final."""
    done = subprocess.run(
        [*command, "--detach"], env=environ, check=True, capture_output=True, text=True
    )
    try:
        deadline = time.monotonic() + 3600
        while sum(b["events"] for b in documents(folder).values()) < sent:
            if time.monotonic() > deadline:
                raise TimeoutError("not all events are in documents")
            time.sleep(5)
    finally:
        address = read_state(state_folder()).address("flink")
        assert address is not None
        Flink(address).cancel(done.stdout.strip())


def documents(folder: Path) -> dict[str, Any]:
    try:
        return dict(read_documents(str(folder / "documents.db")))
    except (FileNotFoundError, StoreUnusable):  # it is being made
        return {}


def workers() -> list[int]:
    servers = {s.name: s for s in read_state(state_folder()).components["flink"].servers}
    return [p.id.pid for p in members(servers["workers"], str(state_folder()))]


class Peak(threading.Thread):
    """The greatest resident memory of any one of the processes, in MiB."""

    def __init__(self, pids: Any) -> None:
        super().__init__(daemon=True)
        self._pids, self.mib, self.ended = pids, 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(1):
            for pid in self._pids():
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                found = [
                    line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")
                ]
                self.mib = max([self.mib, *(int(kib) / 1024 for kib in found)])


if __name__ == "__main__":
    sys.exit(main())
