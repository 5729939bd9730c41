"""The workload on Pathway."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pathway as pw
from common import MAX_LATENESS_S, MINUTE_MS, Arguments, Cities, Documents, arguments, document

BATCH = 10_000
"""Rows for which the look-up is called at once."""


class Event(pw.Schema):
    """What is taken of an event: Pathway parses JSON itself, outside of Python."""

    domain: str
    event_type: str
    event_time: int
    provider_id: str
    amount: int


def run(given: Arguments) -> None:
    cities = Cities(given.rest)
    documents = Documents(given.elasticsearch, given.index)
    closed: list[dict[str, Any]] = []

    # Told to be deterministic, it is not asked to remember each answer for a retraction.
    @pw.udf(deterministic=True, max_batch_size=BATCH)
    def city_of(ids: list[str]) -> list[str]:
        known = cities.of(ids)
        return [known[one] for one in ids]

    def on_change(key: pw.Pointer, row: dict[str, Any], time: int, is_addition: bool) -> None:
        if is_addition:
            closed.append(document(**row))

    def on_time_end(time: int) -> None:
        if closed:
            documents.write(closed)
            closed.clear()

    events = pw.io.kafka.read(
        {
            "bootstrap.servers": given.kafka,
            "group.id": given.index,
            "auto.offset.reset": "earliest",
        },
        given.topic,
        schema=Event,
        format="json",
        # Windows close by the newest event of all: of two readers, one went ahead, and a quarter of
        # the events came too late. It costs little, as parsing is not what takes the time.
        parallel_readers=1,
    )
    events = events.with_columns(city=city_of(pw.this.provider_id))
    windows = events.windowby(
        pw.this.event_time,
        window=pw.temporal.tumbling(duration=MINUTE_MS, origin=0),
        behavior=pw.temporal.exactly_once_behavior(shift=MAX_LATENESS_S * 1000),
        instance=pw.make_tuple(pw.this.domain, pw.this.event_type, pw.this.city),
    ).reduce(
        window=pw.this._pw_window_start,
        domain=pw.this._pw_instance.get(0),
        event_type=pw.this._pw_instance.get(1),
        city=pw.this._pw_instance.get(2),
        n=pw.reducers.count(),
        total=pw.reducers.sum(pw.this.amount),
        most=pw.reducers.max(pw.this.amount),
    )
    pw.io.subscribe(windows, on_change, on_time_end=on_time_end)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


def main(given: Arguments) -> None:
    """By Pathway's own command, in processes: threads would share an interpreter's lock."""
    command = [Path(sys.executable).with_name("pathway"), "spawn"]
    command += ["--processes", str(given.workers), sys.executable, *sys.argv]
    with subprocess.Popen(command) as spawned:
        # It ends its processes when it is interrupted, and would leave them when terminated.
        signal.signal(signal.SIGTERM, lambda *_: spawned.send_signal(signal.SIGINT))


if __name__ == "__main__":
    (run if "PATHWAY_PROCESSES" in os.environ else main)(arguments())
