"""How long a document that changes takes to the board's page: a real Elasticsearch, a real Chromium.

    velocity stack up elasticsearch
    python benchmarks/board.py --elasticsearch http://127.0.0.1:9200

A document is written again and again, each time a later version of itself. Measured is the time from
Elasticsearch's answer to the write until the page shows its number; the refresh that makes it searchable,
which Elasticsearch does every second, is a part of that. A line of JSON, in seconds.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from velocity.io.elastic import operation
from velocity.io.elastic_bulk import send
from velocity.io.elastic_setup import apply
from velocity.io.records import Document
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import load
from velocity.pipelines.templates import setup_of

JOB = """\
job: board_benchmark
source: {kafka: {bootstrap_servers: "127.0.0.1:1", topics: [orders]}, event_time: at}
fields: {at: timestamp}
metrics:
  - {name: orders, window: {fixed: 1m}, values: {orders: count()}}
sinks: {elasticsearch: {url: "URL", index: "board_benchmark-{window_start:%Y}"}}
dead_letters: {parquet: "FOLDER/dead-letters"}
"""
START = 1_767_571_200_000
HEADLINE = '[data-part="card:board_benchmark.orders"] .headline b'
SHOWN = "([where, n]) => document.querySelector(where)?.textContent === String(n)"


def changed(n: int) -> Document:
    id_ = f"board_benchmark/orders/{START}/[]"
    end = START + 60_000
    return Document("board_benchmark", "orders", START, end, {}, {"orders": n}, n, "on_time", id_)


@contextmanager
def serving(job: Path) -> Iterator[str]:
    command = [sys.executable, "-c", "from velocity.runners.cli import main; main()"]
    arguments = ["board", str(job), "--port", "0", "--json"]
    board = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE)
    assert board.stdout is not None
    try:
        yield json.loads(board.stdout.readline())["url"]
    finally:
        board.send_signal(signal.SIGINT)
        board.wait(60)


def measure(job: Path, updates: int) -> Iterator[float]:
    graph = Graph(load(job), os.environ)
    draw = random.Random(1)
    with (
        graph.elasticsearch.open() as client,
        serving(job) as url,
        sync_playwright() as playwright,
    ):
        client.indices.delete(index="board_benchmark-2026", ignore_unavailable=True)
        for _ in apply(client, setup_of(graph)):
            pass
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        for n in range(1, updates + 2):
            time.sleep(draw.uniform(0, 1.5))  # at any moment between two refreshes
            answer = send(client, [operation(changed(n), graph.index, datetime.now(UTC))], 30)
            assert answer.items, answer.error
            began = time.monotonic()
            options: dict[str, Any] = {"polling": 20, "timeout": 60_000}
            page.wait_for_function(SHOWN, arg=[HEADLINE, n], **options)
            if n > 1:  # the first makes the index
                yield time.monotonic() - began
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elasticsearch", required=True, metavar="URL")
    parser.add_argument("--updates", type=int, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder, "job.yaml")
        job.write_text(JOB.replace("URL", given.elasticsearch).replace("FOLDER", folder))
        took = sorted(measure(job, given.updates))
    found = {
        "updates": len(took),
        "median": round(statistics.median(took), 2),
        "p95": round(took[int(0.95 * (len(took) - 1))], 2),
        "most": round(took[-1], 2),
        "load": [round(load, 1) for load in os.getloadavg()],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
