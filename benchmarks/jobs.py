"""What an event costs in each job of ``pipelines/``: processors' time, from Kafka to documents.

    python benchmarks/jobs.py --events 100000

Each job runs in this process over simulated events, to their end, on Beam's local runner and into SQLite;
the embedded broker and the REST service are in another process, so that their time does not count. A
runner of one's own costs more or less than this one: it is what the steps themselves take, and an order
of size for capacity planning (docs/architecture.md). Documents are compared with the recomputation.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.domains import DOMAINS
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import DeadLetterSpec
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import differences
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import expected
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.options import options_for
from velocity.runners.produce import produce
from velocity.runners.run import redirect, run

FOLDER = Path(__file__).parent.parent / "pipelines"


def serve(seed: int, pipe: Connection) -> None:
    topics = {domain.topic: 8 for domain in DOMAINS.values()}
    topics |= {f"enriched.{topic}": 8 for topic in list(topics)}
    with EmbeddedKafka(topics) as kafka, DirectoryService(directory(seed).tables()) as service:
        pipe.send((kafka.bootstrap_servers, service.url))
        pipe.recv()


@contextmanager
def servers(seed: int) -> Iterator[dict[str, str]]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(seed, theirs))
    process.start()
    try:
        kafka, rest = ours.recv()
        yield {"KAFKA": kafka, "PROVIDERS": rest, "PATIENTS": rest}
    finally:
        ours.send(None)
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--job", action="append", help="of pipelines/; all without")
    options = parser.parse_args()
    scenario, console = Scenario(seed=1, events=options.events), Console(stderr=True)
    with servers(1) as environ:
        produce(scenario, environ["KAFKA"])
        print(f"{'job':20} {'events':>9} {'CPU us each':>12} {'documents':>10} {'wrong':>6}")
        for path in sorted(FOLDER.glob("*.yaml")):
            if options.job and path.stem not in options.job:
                continue
            with tempfile.TemporaryDirectory() as name:
                store, plain = Path(name) / "documents.db", load(path)
                letters = DeadLetterSpec(parquet=f"{name}/dead")
                job = plain.model_copy(update={"dead_letters": letters})
                job = redirect(job, sqlite=store) if job.metrics else job
                began = time.process_time()
                counters = run(Graph(job, environ), options_for("direct", []), "latest", console)
                used = time.process_time() - began
                documents = read_documents(str(store)) if plain.metrics else {}
                topics = plain.source.kafka.topics
                messages = (m for m in simulate(scenario) if m.topic in topics)
                wanted = expected(plain, messages, directory(1)) if plain.metrics else {}
                wrong = len(list(differences(wanted, documents)))
            events = counters["read_messages"]
            each = used / events * 1e6
            print(
                f"{path.stem:20} {events:9,} {each:12.1f} {len(documents):10,} {wrong:6}",
                flush=True,
            )


if __name__ == "__main__":
    main()
