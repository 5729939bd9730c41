"""Measures what deduplication adds to an event's cost, and what its memory holds of an id.

    python benchmarks/deduplicate.py

Batches of decoded events with UUIDs, 2 % of them twice, go through Beam's local runner with and
without the step, in turns. Counted is the time of this process alone, the difference of both. Each run must keep each event once.
"""

import statistics
import time
import tracemalloc
from datetime import timedelta
from uuid import UUID

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from velocity.io.metrics import Counter
from velocity.io.records import MESSAGE, TIMESTAMP, messages
from velocity.transforms.deduplicate import Deduplicate, _Memory

BATCH, BATCHES, RUNS = 5_000, 40, 3
COPIES = BATCH // 50


def ids(first: int, count: int) -> list[str]:
    return [str(UUID(int=(number * 2**64 // 3) % 2**128)) for number in range(first, first + count)]


def batch(number: int) -> pa.RecordBatch:
    """Its last rows are copies of its first."""
    first, unique = number * BATCH, BATCH - COPIES
    times = [*range(first, first + unique), *range(first, first + COPIES)]
    names = ids(first, unique)
    values = [b"%190d" % time for time in times]
    return pa.RecordBatch.from_pydict(
        {
            "event_id": [*names, *names[:COPIES]],
            "at": pa.array(times, TIMESTAMP),
            MESSAGE: messages(values).to_struct_array(),
        }
    )


class Count(beam.DoFn):
    def __init__(self) -> None:
        self._rows = Counter("rows", {})

    def process(self, rows: pa.RecordBatch) -> None:
        self._rows.inc(rows.num_rows)


MADE: list[pa.RecordBatch] = []


def made(number: int) -> pa.RecordBatch:
    """Of this process, in which the runner works: packed into the graph they would cost more."""
    import __main__

    found: pa.RecordBatch = __main__.MADE[number]
    return found


def run(step: Deduplicate | None) -> tuple[float, int]:
    """Seconds of this process, and the rows that came out."""
    pipeline = beam.Pipeline(FnApiRunner())
    rows = pipeline | beam.Create(range(BATCHES)) | beam.Map(made).with_output_types(pa.RecordBatch)
    _ = (rows | step if step else rows) | beam.ParDo(Count())
    begin = time.process_time()
    result = pipeline.run()
    took = time.process_time() - begin
    [count] = result.metrics().query(MetricsFilter().with_name("rows"))["counters"]
    return took, count.committed


def main() -> None:
    MADE.extend(batch(number) for number in range(BATCHES))
    events = BATCH * BATCHES
    costs = []
    for _ in range(RUNS):
        step = Deduplicate("event_id", event_time="at", horizon=timedelta(hours=1))
        without, rows = run(None)
        assert rows == events
        took, rows = run(step)
        assert rows == events - COPIES * BATCHES, rows
        costs.append((took - without) / events * 1e6)
    print(f"deduplication: {statistics.median(costs):.2f} µs an event ({min(costs):.2f} at best)")
    tracemalloc.start()
    memory = _Memory()
    for time_, id_ in enumerate(ids(0, 100_000)):
        memory.add(id_, 1_767_225_600_000 + time_)
    size, _ = tracemalloc.get_traced_memory()
    print(f"memory: {size / 100_000:.0f} bytes an id")


if __name__ == "__main__":
    main()
