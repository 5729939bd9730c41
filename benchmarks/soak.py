"""Runs the pharmacy job on the local stack's Flink for a while, and watches what must stay flat.

    velocity stack up
    python benchmarks/soak.py --minutes 15 --rate 2000

Simulated events of the pharmacy domain go to Kafka at the given rate, hours behind the clock
and as fast as it; the job, unbounded and with early panes, writes to SQLite. Every half minute it prints
the last checkpoint's size, the TaskManager's heap after a full collection, and the resident memory
of the TaskManager and of the Python workers. At the end every document must equal the recomputation.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewTopic

from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import Directory, directory
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import differences
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import JOB, expected
from velocity.runners.embedded import DirectoryService
from velocity.runners.flink import FlinkOptions
from velocity.runners.flink_submit import Submitted, submit
from velocity.runners.produce import produce
from velocity.runners.run import redirect
from velocity.runners.stack_paths import state_folder
from velocity.runners.stack_server import members
from velocity.runners.stack_state import ServerRecord, read_state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rate", type=float, default=2_000, help="events per second")
    arguments = parser.parse_args()
    stack = read_state(state_folder())
    kafka = stack.address("kafka")
    if not kafka or "flink" not in stack.components:
        print("no stack is up: velocity stack up", file=sys.stderr)
        return 1
    servers = {s.name: s for s in stack.components["flink"].servers}
    name = f"soak-{int(time.time())}"
    folder = Path(tempfile.mkdtemp(prefix="velocity-soak-"))
    prefix = f"{name}."
    scenario = Scenario(
        seed=7,
        events=int(arguments.rate * arguments.minutes * 60),
        rate=arguments.rate,
        # so far back that every window is closed once the partitions are idle
        start=datetime.now(UTC).replace(microsecond=0) - timedelta(hours=6),
        domains=("pharmacy_delivery",),
    )
    known = directory(scenario.seed)
    job = redirect(load(JOB), sqlite=folder / "documents.db", dead_letters=folder / "dead")
    source = job.source.model_copy(
        update={
            "kafka": job.source.kafka.model_copy(update={"topics": [f"{prefix}pharmacy.events"]}),
            "idle_after": timedelta(seconds=20),
        }
    )
    # A window's state lives as long as its lateness: a minute's is given back during the soak.
    emit = {"lateness": timedelta(minutes=1)}
    metrics = [
        metric.model_copy(update={"emit": metric.emit.model_copy(update=emit)})
        for metric in job.metrics
    ]
    job = job.model_copy(update={"source": source, "metrics": metrics})
    with DirectoryService(known.tables()) as service:
        topic = NewTopic(f"{prefix}pharmacy.events", num_partitions=4, replication_factor=1)
        admin = AdminClient({"bootstrap.servers": kafka})
        admin.create_topics([topic])[topic.topic].result(30)
        environment = {"KAFKA": kafka, "PROVIDERS": service.url, "PATIENTS": service.url}
        sender = threading.Thread(
            target=produce,
            args=(scenario, kafka),
            kwargs={"topics_prefix": prefix, "rate": arguments.rate},
            daemon=True,  # so that Ctrl-C ends it too
        )
        # First, for an empty topic is idle, and the watermark of an idle one follows the clock.
        sender.start()
        running = submit(Graph(job, environment), FlinkOptions(name=name), [])
        try:
            watch(running, servers, sender.is_alive)
            wrong = settle(job, scenario, known, folder)
        finally:
            running.flink.cancel(running.id)
    print(f"{len(wrong)} differences from the recomputation", *wrong[:10], sep="\n")
    return 1 if wrong else 0


def watch(job: Submitted, servers: Mapping[str, ServerRecord], going: Callable[[], bool]) -> None:
    """A line every half minute while events are sent."""
    print(
        f"{'minute':>7} {'checkpoint KiB':>15} {'heap MiB':>9} {'TM MiB':>7} "
        f"{'workers MiB':>12} {'restarts':>9}"
    )
    begin = time.monotonic()
    while going():
        time.sleep(30)
        checkpoint = job.flink.checkpoints(job.id).last_size
        manager = servers["taskmanager-1"].process.pid
        folder = str(state_folder())
        workers = sum(rss(p.id.pid) for p in members(servers["workers"], folder))
        print(
            f"{(time.monotonic() - begin) / 60:7.1f} {checkpoint / 1024:15.0f} "
            f"{live_heap(manager):9.0f} {rss(manager):7.0f} {workers:12.0f} "
            f"{job.flink.restarts(job.id):9}",
            flush=True,
        )


def settle(job: Job, scenario: Scenario, known: Directory, folder: Path) -> list[str]:
    """What is wrong once the last windows are closed, or after two minutes."""
    wanted = expected(job, simulate(scenario), known)
    for _ in range(24):
        wrong = list(differences(wanted, read_documents(str(folder / "documents.db"))))
        if not wrong:
            break
        time.sleep(5)
    return wrong


def rss(pid: int) -> float:
    """Resident memory in MiB."""
    for line in (Path("/proc") / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def peak(pid: int) -> float:
    """The most memory that was resident, in MiB (Linux)."""
    status = Path("/proc", str(pid), "status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def processor_time(pid: int) -> float:
    """Seconds, in the program and in the system for it (Linux)."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def live_heap(pid: int) -> float:
    """MiB of a Java heap that a full collection leaves."""
    subprocess.run(["jcmd", str(pid), "GC.run"], check=True, capture_output=True)
    info = subprocess.run(
        ["jcmd", str(pid), "GC.heap_info"], check=True, capture_output=True, text=True
    )
    used = [
        word
        for line in info.stdout.splitlines()
        if " used " in line and "heap" in line
        for word in line.split("used ")[1:]
    ]
    return sum(int(word.split("K")[0]) for word in used) / 1024


if __name__ == "__main__":
    sys.exit(main())
