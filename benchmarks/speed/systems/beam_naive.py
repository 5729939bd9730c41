"""The workload on Beam as its own parts make it: KafkaIO of Java, element by element, on Flink.

Its Flink is the one inside the job server, as in ``benchmarks/source.py``.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.io.kafka import ReadFromKafka
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.transforms.trigger import AccumulationMode, AfterProcessingTime, AfterWatermark
from apache_beam.transforms.window import FixedWindows
from common import MAX_LATENESS_S, Arguments, Cities, Documents, arguments, document

BENCHMARKS = Path(__file__).parents[2]
sys.path.append(str(BENCHMARKS))

from source import JOB_SERVER, configured, free_port, java

LEGACY = "--experiments=use_deprecated_read"
"""KafkaIO before splittable functions: by these it stops reading for good."""

ALLOWED_LATENESS_S = 10 * 365 * 86_400

Key = tuple[str, str, str]
Totals = tuple[int, int, int]


class Enrich(beam.DoFn):
    """Keys and amounts of a batch of events."""

    def __init__(self, rest: str) -> None:
        self._rest = rest

    def setup(self) -> None:
        self._cities = Cities(self._rest)

    def process(self, events: list[dict[str, Any]]) -> Iterator[beam.window.TimestampedValue]:
        known = self._cities.of([event["provider_id"] for event in events])
        for event in events:
            key = event["domain"], event["event_type"], known[event["provider_id"]]
            # A batch has lost the times of its elements.
            yield beam.window.TimestampedValue((key, event["amount"]), event["event_time"] / 1000)


class AddUp(beam.CombineFn):
    def create_accumulator(self) -> Totals:
        return 0, 0, 0

    def add_input(self, totals: Totals, amount: int) -> Totals:
        n, total, most = totals
        return n + 1, total + amount, max(most, amount)

    def merge_accumulators(self, many: Iterable[Totals]) -> Totals:
        counts, totals, largest = zip(*many, strict=True)
        return sum(counts), sum(totals), max(largest)

    def extract_output(self, totals: Totals) -> Totals:
        return totals


class ToDocument(beam.DoFn):
    def process(
        self, element: tuple[Key, Totals], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[dict[str, Any]]:
        key, totals = element
        yield document(window.start.micros // 1000, *key, *totals)


class Write(beam.DoFn):
    def __init__(self, url: str, index: str) -> None:
        self._given = url, index

    def setup(self) -> None:
        self._documents = Documents(*self._given)

    def process(self, documents: list[dict[str, Any]]) -> None:
        self._documents.write(documents)


def build(pipeline: beam.Pipeline, given: Arguments, expansion: str) -> None:
    config = {
        "bootstrap.servers": given.kafka,
        "group.id": given.index,
        "auto.offset.reset": "earliest",
    }
    _ = (
        pipeline
        # Its watermark can follow the times of Kafka's messages and the clock, not what is in JSON.
        # These are the times of sending: to it each event of a replay is late, hence the lateness.
        | ReadFromKafka(
            config,
            [given.topic],
            timestamp_policy=ReadFromKafka.create_time_policy,
            expansion_service=expansion,
        )
        | "Parse" >> beam.Map(lambda message: orjson.loads(message[1]))
        | "Batch" >> beam.BatchElements(min_batch_size=100, max_batch_size=1_000)
        | "Enrich" >> beam.ParDo(Enrich(given.rest)).with_output_types(tuple[Key, int])
        | "Window"
        >> beam.WindowInto(
            FixedWindows(60),
            # A late one makes a document anew, with what else has come within so many seconds. More
            # seldom is cheaper, as each time all events of the window are added up.
            trigger=AfterWatermark(late=AfterProcessingTime(MAX_LATENESS_S)),
            accumulation_mode=AccumulationMode.ACCUMULATING,
            allowed_lateness=ALLOWED_LATENESS_S,
        )
        | "Add up" >> beam.CombinePerKey(AddUp())
        | "Document" >> beam.ParDo(ToDocument())
        | "Batch documents" >> beam.BatchElements(min_batch_size=100, max_batch_size=1_000)
        | "Write" >> beam.ParDo(Write(given.elasticsearch, given.index))
    )


def main(given: Arguments) -> None:
    # Workers are processes, so that they do not share an interpreter's lock. Their pool calls the
    # first python in PATH; they import what is beside this file.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    workers, _pool = BeamFnExternalWorkerPoolServicer.start(use_process=True)
    job, expansion = free_port(), free_port()
    options = PipelineOptions(
        [
            "--runner=PortableRunner",
            f"--job_endpoint=127.0.0.1:{job}",
            "--environment_type=EXTERNAL",
            f"--environment_config={workers}",
            f"--sdk_worker_parallelism={given.workers}",
            f"--parallelism={given.workers}",
            "--streaming",
            "--checkpointing_interval=10000",
            "--finish_bundle_before_checkpointing",  # else it hangs at a checkpoint
            LEGACY,
        ]
    )
    with ExitStack() as servers:
        service = "org.apache.beam.sdk.expansion.service.ExpansionService"
        embedded = "--defaultEnvironmentType=EMBEDDED"
        # This service does not heed the experiments of the pipeline.
        servers.enter_context(java(service, str(expansion), embedded, LEGACY, port=expansion))
        folder = servers.enter_context(configured())
        flink = ["--flink-master=[local]", f"--job-port={job}", "--artifact-port=0"]
        flink += ["--expansion-port=0", f"--flink-conf-dir={folder}"]
        servers.enter_context(java(JOB_SERVER, *flink, port=job))
        pipeline = beam.Pipeline(options=options)
        build(pipeline, given, f"127.0.0.1:{expansion}")
        pipeline.run().wait_until_finish()


if __name__ == "__main__":
    # As an exception it ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    main(arguments())
