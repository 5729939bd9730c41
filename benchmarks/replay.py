"""How fast an archive is replayed: events a second, and the memory of all processes meanwhile.

    python benchmarks/replay.py --events 10000000 --workers 2

It makes an enriched archive of a day of pharmacy events, or of several (once, in --folder), replays it with
`pipelines/pharmacy_delivery.yaml` into a SQLite file, a day at a time, and prints a line of JSON.
"""

import argparse
import json
import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from rich.console import Console

from velocity.io.archive import write_file
from velocity.io.archive_files import Kind, files_of, folder_of, hour_folder
from velocity.io.records import TIMESTAMP
from velocity.io.sqlite import WriteToSqlite, read_documents
from velocity.pipelines.directory import AGE_GROUPS, CITIES, TIERS
from velocity.pipelines.job import ArchiveSpec
from velocity.pipelines.jobfile import load
from velocity.pipelines.replay import Replay
from velocity.runners.replay import Where, replay_parts

JOB = Path(__file__).parent.parent / "pipelines" / "pharmacy_delivery.yaml"
START = datetime(2026, 1, 5, tzinfo=ZoneInfo("Asia/Jakarta")).astimezone(UTC)
"""Midnight where the job's days are, so that no part reads a day of which it writes half."""
NIGHT, HOURS, PARTITIONS = 5, 24, 4
"""Till five in the morning nobody orders, so that a rush (a session) ends on the day it began."""


def make(folder: Path, events: int, days: int) -> None:
    """An enriched archive of some days, in the columns of the job."""
    rng = np.random.default_rng(1)
    each = events // (days * (HOURS - NIGHT)) // PARTITIONS
    root = folder_of(str(folder), Kind.ENRICHED, "pharmacy_delivery")
    for hour in (hour for hour in range(days * HOURS) if hour % HOURS >= NIGHT):
        at = int((START + timedelta(hours=hour)).timestamp())
        for partition in range(PARTITIONS):
            table = rows(rng, each, at * 1000, partition, hour * each)
            path = f"{root}/{hour_folder(at // 3600)}"
            hidden, name = write_file(table, path, "pharmacy.events", partition, "event_time")
            Path(hidden).rename(name)


def rows(rng: Any, n: int, hour: int, partition: int, first: int) -> pa.Table:
    def drawn(values: list[str], weights: Any = None) -> pa.Array:
        weights = None if weights is None else np.array(weights) / np.sum(weights)
        picks = rng.choice(len(values), n, p=weights)
        return pa.array(values, pa.string()).take(pa.array(picks))

    providers = [f"PRV-{i:05d}" for i in range(1, 251)]
    where = rng.integers(0, 250, n)
    cities = pa.array(rng.choice(list(CITIES), 250), pa.string())
    tiers = pa.array(rng.choice(list(TIERS), 250), pa.string())
    ids = pa.array(np.arange(first, first + n)).cast(pa.string())
    kinds = ["order.created", "order.delivered", "order.cancelled", "order.confirmed"]
    minutes, km = rng.lognormal(3.3, 0.5, n), rng.lognormal(1.0, 0.6, n)
    times = hour + np.sort(rng.integers(0, 3_600_000, n))
    return pa.table(
        {
            "event_id": ids,
            "event_type": drawn(kinds, [35, 30, 5, 30]),
            "transaction_id": ids,
            "patient_id": drawn([f"PAT-{i:07d}" for i in range(20_000)]),
            "provider_id": pa.array(providers).take(pa.array(where)),
            "event_time": pa.array(times, TIMESTAMP),
            "amount": pa.array((rng.lognormal(11.3, 0.7, n) // 500 * 500).astype(np.int64)),
            "payment_method": drawn(["card", "wallet", "cash", "insurance"]),
            "delivery_minutes": pa.array(minutes),
            "distance_km": pa.array(km),
            "reason": drawn(["out of stock", "patient", "courier"]),
            "city": cities.take(pa.array(where)),
            "tier": tiers.take(pa.array(where)),
            "age_group": drawn(list(AGE_GROUPS), list(AGE_GROUPS.values())),
            "is_late": pa.array(minutes > 45),
            "minutes_per_km": pa.array(minutes / km),
            "_topic": pa.repeat("pharmacy.events", n),
            "_partition": pa.array(np.full(n, partition, np.int32)),
            "_offset": pa.array(np.arange(first, first + n)),
            "_timestamp": pa.array(times + 500, TIMESTAMP),
        }
    )


class Memory(threading.Thread):
    """Resident memory of this process and its children, in MiB, every half second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[float] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.samples.append(sum(map(_resident, _family())) / 2**20)


def _family() -> set[int]:
    """This process and all that descend from it."""
    found, left = set[int](), [os.getpid()]
    while left:
        pid = left.pop()
        found.add(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                left += map(int, task.read_text().split())
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--days", type=int, default=1, help="that the events are of")
    parser.add_argument("--hours", type=int, help="to replay, from the start; else all")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/velocity-replay-benchmark"))
    given = parser.parse_args()
    folder = given.folder / f"{given.events}-{given.days}"
    if not files_of(str(folder), Kind.ENRICHED, "pharmacy_delivery"):
        make(folder, given.events, given.days)
    job = load(JOB).model_copy(update={"archive": ArchiveSpec(path=str(folder))})
    hours = given.hours or given.days * HOURS
    replay = Replay(job, "archive", START, START + timedelta(hours=hours), {})
    store = folder / "documents.db"
    for old in folder.glob("documents.db*"):
        old.unlink()
    memory = Memory()
    memory.start()
    began, cpu = time.monotonic(), os.times()
    counters = replay_parts(
        replay,
        replay.parts(timedelta(days=1), datetime.now(UTC)),
        Where(workers=given.workers),
        lambda: ({"sqlite": WriteToSqlite(str(store))}, None),
        console=Console(stderr=True),
    )
    seconds, after = time.monotonic() - began, os.times()
    memory.ended.set()
    memory.join()
    used = sum(after[:4]) - sum(cpu[:4])
    third = len(memory.samples) // 3
    print(
        json.dumps(
            {
                "events": counters["archive_rows"],
                "documents": len(read_documents(str(store))),
                "partials": counters["partials"],
                "seconds": round(seconds, 1),
                "cpu_seconds": round(used, 1),
                "events_per_second": round(counters["archive_rows"] / seconds),
                "workers": given.workers,
                "load_before": os.getloadavg()[1],
                "peak_mib": round(max(memory.samples)),
                "peak_mib_by_thirds": [
                    round(max(memory.samples[i * third : (i + 1) * third] or [0])) for i in range(3)
                ],
            }
        )
    )


if __name__ == "__main__":
    main()
