"""Times a replay of a day of one domain's events from a real Kafka, every provider and patient asked anew.

    velocity stack up kafka
    python benchmarks/replay_kafka.py --events 1000000

Into a topic of its own, `pharmacy.events` of the stack's broker, which must not be there yet. The clock
and the processors' time are those of `velocity replay` with its workers, its start included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from velocity.pipelines.directory import directory
from velocity.pipelines.simulator import Scenario
from velocity.runners.demo import JOB
from velocity.runners.embedded import DirectoryService
from velocity.runners.produce import produce
from velocity.runners.stack_paths import state_folder
from velocity.runners.stack_state import read_state

TOPIC = "pharmacy.events"
SEED = 5
RANGE = ("--from", "2026-01-05T00:00:00Z", "--to", "2026-01-06T00:00:00Z")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    kafka = read_state(state_folder()).address("kafka")
    if kafka is None:
        raise SystemExit("no Kafka of the stack runs: velocity stack up kafka")
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(TOPIC, 4, 1)])[TOPIC].result()
    day = Scenario(SEED, given.events, rate=given.events / 86_000, domains=("pharmacy_delivery",))
    print(f"{produce(day, kafka).messages:,} messages sent", file=sys.stderr, flush=True)
    with (
        DirectoryService(directory(SEED).tables()) as service,
        tempfile.TemporaryDirectory(prefix="velocity-replay-") as folder,
    ):
        environ = {**os.environ, "KAFKA": kafka, "PROVIDERS": service.url, "PATIENTS": service.url}
        environ["ELASTICSEARCH"] = "http://127.0.0.1:1"  # the documents go to SQLite
        into = ("--sqlite", str(Path(folder) / "documents.db"), "--workers", str(given.workers))
        velocity = [sys.executable, "-c", "from velocity.runners.cli import main; main()"]
        command = [
            *velocity,
            "replay",
            str(JOB),
            *RANGE,
            "--source",
            "kafka",
            "--late",
            "2d",
            *into,
        ]
        began, before = time.monotonic(), os.times()
        subprocess.run(command, env=environ, check=True)
        wall, after = time.monotonic() - began, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    print(f"{given.events:,} events: {wall:.1f} s, {cpu:.1f} CPU s; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
