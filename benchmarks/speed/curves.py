"""What an event costs Velocity on Flink as one thing grows, and all else stays.

    python benchmarks/speed/curves.py
    python benchmarks/speed/curves.py --curves metrics,keys --events 1000000

The workload is that of the comparison (``workload.py``), the measurement too. Its usual point is run before the
first curve and after the last, so that what the machine made of it meanwhile is seen. The events that each metric
counted are added up in Elasticsearch: none may be missing or counted twice.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from measure import fill, measure, servers, warm
from report import Run
from systems import HERE, SYSTEMS, Place
from workload import Workload

SIDES = (
    ("domain", "event_type", "city"),
    ("domain", "event_type"),
    ("domain", "city"),
    ("event_type", "city"),
    ("domain",),
    ("event_type",),
)
"""By what the metrics count, in turn: a metric more is another view of the same events. Each tells the last events of
the topic, which are not counted, from the others."""


@dataclass(frozen=True)
class Point:
    """A point of a curve."""

    label: str
    workload: Workload
    workers: int = 2
    metrics: int = 1
    by: tuple[str, ...] = SIDES[0]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of each metric, beside those of ``velocity.yaml``."""
    disorder: str = "20s"

    def job(self) -> dict[str, Any]:
        """
        >>> point = Point("3", Workload(10), metrics=3, settings={"window": {"fixed": "1h"}})
        >>> [(m["name"], len(m["by"]), m["window"]["fixed"]) for m in point.job()["metrics"]]
        [('amounts_0', 3, '1h'), ('amounts_1', 2, '1h'), ('amounts_2', 2, '1h')]
        """
        job: dict[str, Any] = yaml.safe_load((HERE / "velocity.yaml").read_text())
        [usual] = job["metrics"]
        job["source"]["disorder"] = self.disorder
        if "group" in self.by:
            job["fields"]["group"] = "string"
        sides = (self.by, *SIDES[1:])
        job["metrics"] = [
            usual | {"name": f"amounts_{n}", "by": list(sides[n % len(sides)])} | self.settings
            for n in range(self.metrics)
        ]
        return job


def curves(events: int) -> dict[str, list[Point]]:
    usual = Workload(events)

    def sized(size: int) -> Point:
        fewer = min(events, max(2_000_000_000 // size // 100_000 * 100_000, 100_000))
        return Point(f"{size:,} bytes", Workload(fewer, size))

    def emitting(**emit: str) -> Mapping[str, Any]:
        return {"emit": emit}

    return {
        "metrics": [Point(str(n), usual, metrics=n) for n in (1, 10, 50)],
        "keys": [
            Point(f"{n:,}", replace(usual, groups=n), by=("group",)) for n in (100, 10_000, 1_000_000)
        ],
        "size": [sized(size) for size in (218, 2_000, 20_000)],
        "partitions": [Point(str(n), replace(usual, partitions=n)) for n in (1, 4, 16, 64)],
        "workers": [Point(str(n), usual, workers=n) for n in (1, 2)],
        "window": [
            Point(length, usual, settings={"window": {"fixed": length}})
            for length in ("10s", "1m", "10m", "1h")
        ],
        "late": [
            Point(
                f"{share:.0%}", replace(usual, late=share), disorder="5s",
                settings=emitting(early="10s", lateness="1h"),
            )
            for share in (0.0, 0.05, 0.2, 0.5)
        ],
        "early": [
            Point("none", usual, settings=emitting(lateness="0s")),
            *(Point(every, usual, settings=emitting(early=every)) for every in ("1s", "10s", "60s")),
        ],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = curves(1)
    parser.add_argument("--curves", default=",".join(known), help="names, with commas between")
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--state", type=Path, help="folder of the servers, kept; else a new one")
    parser.add_argument("--json", type=Path, help="file for what was measured")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped, as by Ctrl-C
    names = given.curves.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--curves: no {unknown[0]}; there are: {', '.join(known)}")
    found = []
    with servers(given.state) as (kafka, elasticsearch, pids, _):
        warm(elasticsearch)
        for curve, point in points(given.events, names):
            place = Place(
                kafka,
                fill(kafka, point.workload),
                "",
                elasticsearch,
                "",
                Path(),
                Path(),
                point.workers,
            )
            run = measured(point, place, pids)
            found.append({"curve": curve, "point": point.label, "run": vars(run)})
            if given.json:
                given.json.write_text(json.dumps(found, indent=1))
            print(row(curve, point, run), flush=True)
    return 0  # fmt: skip


def points(events: int, names: list[str]) -> Iterator[tuple[str, Point]]:
    usual = Point("usual", Workload(events))
    yield "before", usual
    for name in names:
        for point in curves(events)[name]:
            yield name, point
    yield "after", usual


def measured(point: Point, place: Place, pids: list[int]) -> Run:
    with tempfile.TemporaryDirectory(prefix="velocity-curves-") as folder:
        job = Path(folder, "curve.yaml")
        job.write_text(yaml.safe_dump(point.job()))
        for _ in range(2):
            place = replace(place, index=f"speed-curve-{time.time_ns() // 1_000_000}", job=job)
            run = measure(
                SYSTEMS["flink"],
                place,
                Path(sys.executable),
                point.workload,
                pids,
                metrics=point.metrics,
            )
            if not run.void:
                break
    return run  # fmt: skip


def row(curve: str, point: Point, run: Run) -> str:
    """As a table of Markdown has it.

    >>> row("keys", Point("100", Workload(1_000_000)), Run("flink", 1_000_000, 10.0, 5, 9.0, 800.0, 1, 0, 1, 0))
    '| keys | 100 | 100,000 | 9.0 | 800 | 0 |'
    """
    cost = run.cpu / run.events * 1e6
    void = " (void: the machine was busy)" if run.void else ""
    return f"| {curve} | {point.label}{void} | {run.rate:,.0f} | {cost:.1f} | {run.peak:,.0f} | {run.wrong:,} |"


if __name__ == "__main__":
    sys.exit(main())
