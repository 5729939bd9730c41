"""Velocity beside its peers and beside the least that one Python process can take: one workload, one table.

    python benchmarks/speed
    python benchmarks/speed --systems floor,flink --events 1000000 --runs 3

It starts a Kafka and an Elasticsearch of its own (Java and Maven are needed), fills a topic, has each system
read it from its beginning and compares the documents with a plain recomputation: ``workload.py`` says what
all are given, ``systems/`` how each does it, in an environment of its own that is made when first
wanted.

The clock runs from a system's first call of the REST service, so that what starting takes is not in it, to
the last document that changed. In that time the processors' work for the system is counted, its workers and
virtual machines too, that of Kafka, Elasticsearch and of the REST service not. A run is void and
is repeated once if meanwhile anything else used more than 5 % of the machine. A system that loses events is
told by its wrong documents: it ends when none has changed for ``--silence`` seconds.
"""

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from archived import archived
from environments import environment
from measure import fill, measure, servers, warm
from report import Run, chart, ratios, table, worse
from systems import SYSTEMS, Place
from workload import Workload


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="names, with commas between")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--size", type=int, default=218, help="bytes of an event")
    parser.add_argument("--runs", type=int, default=1, help="of each system; the rounds alternate")
    parser.add_argument("--workers", type=int, default=1, help="Python processes of a system")
    parser.add_argument(
        "--silence", type=float, default=30, help="seconds after which it has ended"
    )
    parser.add_argument("--state", type=Path, help="folder of the servers, kept; else a new one")
    parser.add_argument("--json", type=Path, help="file for what was measured")
    parser.add_argument("--chart", type=Path, help="SVG file")
    parser.add_argument(
        "--guard",
        type=Path,
        help="file of ratios to the floor: warns of worse ones, takes new systems",
    )
    given = parser.parse_args()
    names = given.systems.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"--systems: no {unknown[0]}; there are: {', '.join(SYSTEMS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped, as by Ctrl-C
    pythons = {name: environment(SYSTEMS[name].stem) for name in names}
    workload = Workload(given.events, given.size)
    runs: list[Run] = []
    with servers(given.state) as (kafka, elasticsearch, pids, folder):
        archive = folder / f"archive-{workload.topic}"
        topic = fill(kafka, workload)
        if any(SYSTEMS[name].replays for name in names):
            print("writing the archive …", file=sys.stderr)
            archived(workload, archive)
        warm(elasticsearch)
        wanted = workload.documents()
        for number in range(given.runs):
            for name in names:
                for attempt in range(2):
                    print(f"round {number + 1}: {name} …", file=sys.stderr, flush=True)
                    index = f"speed-{name}-{number}-{attempt}-{int(time.time())}"
                    place = Place(
                        kafka, topic, "", elasticsearch, index, Path(), archive, given.workers
                    )
                    run = measure(
                        SYSTEMS[name],
                        place,
                        pythons[name],
                        workload,
                        pids,
                        wanted=wanted,
                        silence=given.silence,
                    )
                    print(json.dumps(asdict(run) | {"rate": round(run.rate)}), file=sys.stderr)
                    if not run.void:
                        break
                    print(f"void: others used {run.others:.0%} of the machine", file=sys.stderr)
                runs.append(run)
                if given.json:
                    given.json.write_text(json.dumps([asdict(one) for one in runs], indent=1))
    print(table(runs))
    if given.chart:
        given.chart.write_text(chart(runs))
    if given.guard:
        guard(given.guard, runs)
    return 0


def guard(file: Path, runs: list[Run]) -> None:
    now, then = ratios(runs), json.loads(file.read_text()) if file.exists() else {}
    for line in worse(now, then):
        print(f"WARNING: {line} ({file}; delete it there to record anew)", file=sys.stderr)
    if any(run.void for run in runs):
        print("WARNING: the machine was busy with something else", file=sys.stderr)
    elif new := {name: values for name, values in now.items() if name not in then}:
        file.write_text(json.dumps(then | new, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
