"""The workload's events in an archive, enriched, as a job would have written them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from workload import CITIES, EVENTS_PER_SECOND, KINDS, PROVIDERS, START_MS, Workload, provider

from velocity.io.archive import write_file
from velocity.io.archive_files import Kind, folder_of, hour_folder
from velocity.io.records import TIMESTAMP

HOUR_MS = 3_600_000
ROWS = 250_000
"""Of a file at most."""


def archived(workload: Workload, folder: Path) -> None:
    """Writes all events but the ends, by hour and partition, unless they are there."""
    done = folder / "done"
    if done.exists():
        return
    root = folder_of(str(folder), Kind.ENRICHED, "speed")
    for partition, hour, table in tables(workload):
        path = f"{root}/{hour_folder(hour)}"
        hidden, name = write_file(table, path, "speed", partition, "event_time")
        Path(hidden).rename(name)
    done.touch()


def tables(workload: Workload) -> Iterator[tuple[int, int, pa.Table]]:
    """Partition, hour since 1970, and the rows of a file."""
    domains, types = (pa.array(names) for names in zip(*KINDS, strict=True))
    providers = pa.array([provider(n) for n in range(PROVIDERS)])
    cities = pa.array(CITIES)
    for first in range(0, workload.events, ROWS * workload.partitions):
        columns = workload.columns(first, min(first + ROWS * workload.partitions, workload.events))
        offsets = np.arange(first, first + len(columns.time_ms)) // workload.partitions
        for partition in range(workload.partitions):
            mine = np.arange(partition, len(offsets), workload.partitions)
            hours = columns.time_ms[mine] // HOUR_MS
            for hour in np.unique(hours).tolist():
                at = mine[hours == hour]
                time, kind = columns.time_ms[at], pa.array(columns.kind[at])
                number = columns.provider[at]
                rows = {
                    "event_type": types.take(kind),
                    "domain": domains.take(kind),
                    "event_time": pa.array(time, TIMESTAMP),
                    "provider_id": providers.take(pa.array(number)),
                    "amount": pa.array(columns.amount[at]),
                    "city": cities.take(pa.array(number % len(CITIES))),
                    "_topic": pa.repeat("speed", len(at)),
                    "_partition": pa.repeat(pa.scalar(partition, pa.int32()), len(at)),
                    "_offset": pa.array(offsets[at]),
                    "_timestamp": pa.array(time, TIMESTAMP),
                }
                yield partition, hour, pa.table(rows)


def span(workload: Workload) -> tuple[str, str]:
    """From when to when its windows are."""
    seconds = workload.events / EVENTS_PER_SECOND
    start = datetime.fromtimestamp(START_MS / 1000, UTC)
    stop = start + timedelta(minutes=seconds // 60 + 1)
    return start.isoformat(), stop.isoformat()
