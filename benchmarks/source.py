"""Measures the Kafka source on Flink beside Beam's cross-language KafkaIO and a bare consumer loop.

    python benchmarks/source.py

It starts a Kafka of its own (Java and Maven are needed), fills topics of four partitions with JSON
events of 200 bytes and of 2 KB, and reads each from its beginning: by confluent-kafka alone; by
``ReadFromKafka`` as batches, decoded, and decoded and deduplicated; and by Beam's ``ReadFromKafka`` in
Java with its harness embedded in the runner, as it is and with the experiment ``use_deprecated_read``, as
messages and decoded with orjson. All but the bare
loop run on one Flink inside Beam's job server, with a Python worker in this process. The clock runs
from the first events that a step after the source has seen to the last, or for ``--seconds``; each event
must be seen once. A run that gives nothing more is told by what it gave before.
The last column is what the processors did for an event, in this process and in the runner's: it says more
than the clock where other work shares the machine.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import apache_beam as beam
import orjson
import pyarrow as pa
from apache_beam.io import kafka as cross_language
from apache_beam.options.pipeline_options import PipelineOptions
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from soak import processor_time  # beside this file

from velocity.io.kafka import ReadFromKafka
from velocity.io.kafka_config import KafkaConfig
from velocity.runners.jobserver import job_server_jar
from velocity.runners.stack_java import installed_jdks, need_jdk, need_maven
from velocity.runners.stack_packages import LOCK, Tools, copy_jars, digest, make_once, verify
from velocity.runners.stack_paths import cache_folder
from velocity.runners.stack_state import read_state
from velocity.transforms.decode import JsonDecoder
from velocity.transforms.deduplicate import Deduplicate
from velocity.transforms.fields import Field

PARTITIONS = 4
START = datetime(2026, 1, 1, tzinfo=UTC)
DECODER = JsonDecoder(
    {
        "event_id": Field("string"),
        "event_type": Field("string"),
        "event_time": Field("timestamp_ms"),
        "provider_id": Field("string"),
        "amount": Field("int64"),
    },
    "event_time",
)
JOB_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"
SILENCE = 40.0
"""Seconds without a new event after which a run has stalled."""


class Seen:
    """How many events came, and when; of this process, in which the Python workers are threads."""

    lock = threading.Lock()
    events = 0
    first = last = (0.0, 0.0)
    """Seconds of the clock, and of processors in this process and ``servers``."""
    servers: ClassVar[list[int]] = []

    @classmethod
    def reset(cls) -> None:
        cls.events, cls.first, cls.last = 0, (0.0, 0.0), (0.0, 0.0)
        cls.servers = []

    @classmethod
    def add(cls, events: int) -> None:
        with cls.lock:
            cpu = time.process_time() + sum(map(processor_time, cls.servers))
            cls.last = time.perf_counter(), cpu
            if not cls.events:
                cls.first, cls.skipped = cls.last, events  # which came before
            cls.events += events

    skipped = 0

    @classmethod
    def seconds(cls) -> float:
        """Since the first came."""
        return time.perf_counter() - cls.first[0] if cls.events else 0.0


class Rate(NamedTuple):
    """Of one run."""

    events: float
    """A second."""
    cpu: float
    """Microseconds of processors for each event."""
    given: int
    """How many came."""
    stalled: bool = False
    """Whether it gave nothing for ``SILENCE`` before it had given all."""


class Count(beam.DoFn):
    """Adds to ``Seen`` the rows of each batch, and elements by the thousand."""

    def start_bundle(self) -> None:
        self.events = 0

    def process(self, element: Any) -> None:
        self.events += element.num_rows if isinstance(element, pa.RecordBatch) else 1
        if self.events >= 1_000:
            self.finish_bundle()

    def finish_bundle(self) -> None:
        import __main__

        if self.events:
            __main__.Seen.add(self.events)
            self.events = 0


def fill(servers: str, topic: str, events: int, size: int) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 50, "batch.size": 1_000_000})
    millis = int(START.timestamp() * 1000)
    for number in range(events):
        event = orjson.dumps(
            {
                "event_id": f"{number:032x}",
                "event_type": "order.created",
                "event_time": millis + number,
                "provider_id": f"pharmacy-{number % 300:04d}",
                "amount": 1000 * (number % 500),
                "note": "",
            }
        )
        value = event[:-2] + b"x" * (size - len(event)) + event[-2:]
        while True:
            try:
                producer.produce(topic, value, partition=number % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


# -- What is measured -----------------------------------------------------------------------------


def bare(servers: str, topic: str, events: int, seconds: float) -> None:
    """The least that a program in Python can do with each message: it has its value."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bare"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    while Seen.events < events and Seen.seconds() < seconds:
        Seen.add(sum(1 for message in consumer.consume(5_000, 1.0) if message.value()))
    consumer.close()


Read = Callable[[beam.Pipeline, str, str], beam.PCollection]


def velocity(pipeline: beam.Pipeline, servers: str, topic: str) -> beam.PCollection:
    return pipeline | ReadFromKafka(KafkaConfig(servers), [topic])


def velocity_decoded(pipeline: beam.Pipeline, servers: str, topic: str) -> beam.PCollection:
    return (pipeline | ReadFromKafka(KafkaConfig(servers), [topic], decoder=DECODER)).main


def velocity_deduplicated(pipeline: beam.Pipeline, servers: str, topic: str) -> beam.PCollection:
    rows = velocity_decoded(pipeline, servers, topic)
    return rows | Deduplicate("event_id", event_time="event_time", horizon=timedelta(hours=1))


def kafka_io(pipeline: beam.Pipeline, servers: str, topic: str) -> beam.PCollection:
    import __main__

    config = {"bootstrap.servers": servers, "auto.offset.reset": "earliest", "group.id": "java"}
    return pipeline | cross_language.ReadFromKafka(
        config, [topic], expansion_service=__main__.EXPANSION
    )


def kafka_io_decoded(pipeline: beam.Pipeline, servers: str, topic: str) -> beam.PCollection:
    messages = kafka_io(pipeline, servers, topic)
    return messages | beam.Map(lambda message: orjson.loads(message[1]))


CASES: dict[str, Read | None] = {
    "confluent-kafka, bare loop": None,
    "ReadFromKafka": velocity,
    "ReadFromKafka + JSON": velocity_decoded,
    "ReadFromKafka + JSON + Deduplicate": velocity_deduplicated,
    "KafkaIO (Java)": kafka_io,
    "KafkaIO (Java) + JSON": kafka_io_decoded,
    "KafkaIO (Java), deprecated read": kafka_io,
    "KafkaIO (Java), deprecated read + JSON": kafka_io_decoded,
}
EXPANSION = ""
"""The address of the expansion service."""


def measure(case: str, servers: str, topic: str, events: int, seconds: float) -> Rate:
    read, stalled = CASES[case], False
    Seen.reset()
    if read is None:
        bare(servers, topic, events, seconds)
    else:
        experiments = ["--experiments=use_deprecated_read"] * ("deprecated" in case)
        stalled = on_flink(read, servers, topic, events, seconds, experiments)
    if Seen.events > events:
        raise SystemExit(f"{case}: {Seen.events:,} events were seen of {events:,}")
    counted = Seen.events - Seen.skipped
    if counted <= 0:
        return Rate(0, 0, Seen.events, stalled)
    clock, cpu = (last - first for first, last in zip(Seen.first, Seen.last, strict=True))
    return Rate(counted / clock, cpu / counted * 1e6, Seen.events, stalled)


def on_flink(
    read: Read, servers: str, topic: str, events: int, seconds: float, experiments: list[str]
) -> bool:
    """Whether it stalled. Each on a Flink of its own: the one in the job server goes on with jobs
    that are cancelled.
    """
    port = free_port()
    flink = ["--flink-master=[local]", f"--job-port={port}", "--artifact-port=0"]
    options = PipelineOptions(
        [
            "--runner=PortableRunner",
            f"--job_endpoint=127.0.0.1:{port}",
            "--environment_type=LOOPBACK",
            "--streaming",
            "--parallelism=2",
            "--checkpointing_interval=10000",
            "--finish_bundle_before_checkpointing",
            *experiments,
        ]
    )
    with (
        configured() as folder,
        java(
            JOB_SERVER, *flink, "--expansion-port=0", f"--flink-conf-dir={folder}", port=port
        ) as server,
    ):
        Seen.servers = [server]
        pipeline = beam.Pipeline(options=options)
        _ = read(pipeline, servers, topic) | "Count" >> beam.ParDo(Count())
        job = pipeline.run()
        heard, before, stalled = time.monotonic(), 0, False
        while Seen.events < events and Seen.seconds() < seconds and not stalled:
            time.sleep(0.1)
            if Seen.events > before:
                heard, before = time.monotonic(), Seen.events
            stalled = time.monotonic() - heard > SILENCE
        if Seen.events >= events:
            time.sleep(2)  # what comes too much would come now
        job.cancel()
        Seen.servers = []
    return stalled


@contextmanager
def configured() -> Iterator[str]:
    """A folder with Flink's configuration: checkpoints in memory, its default, fail from 5 MB on."""
    with tempfile.TemporaryDirectory(prefix="velocity-source-flink-") as folder:
        checkpoints = (Path(folder) / "checkpoints").as_uri()
        (Path(folder) / "config.yaml").write_text(f"state.checkpoints.dir: {checkpoints}\n")
        yield folder


# -- Servers --------------------------------------------------------------------------------------


@contextmanager
def kafka() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="velocity-source-") as folder:
        stack = [sys.executable, "-m", "velocity.runners.stack_cli"]
        environ = {**os.environ, "VELOCITY_STATE": folder}
        try:
            subprocess.run([*stack, "up", "kafka"], env=environ, check=True)
            yield read_state(Path(folder)).address("kafka") or ""
        finally:
            subprocess.run([*stack, "down"], env=environ, check=True)


@contextmanager
def java(main: str, *arguments: str, port: int) -> Iterator[int]:
    """The pid of a Java program that listens at a port, from the job server's jar and those of KafkaIO."""
    tools = Tools(
        need_maven,
        lambda: need_jdk(installed_jdks(), user="Beam", oldest=11, newest=21, best=17),
    )
    source = Path(__file__).parent / "java"

    def make(folder: Path) -> None:
        copy_jars(source / "pom.xml", folder, tools)
        verify(folder, source / LOCK)

    key = digest(source / "pom.xml", source / LOCK)
    jars = make_once(cache_folder() / f"kafka-io-{key}", make)
    command = [tools.jdk().java, "-Xmx3g", "-cp", f"{job_server_jar()}:{jars}/*", main, *arguments]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log) as server,
    ):
        try:
            while not listening(port):
                if server.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode(errors="replace"))
                time.sleep(0.2)
            yield server.pid
        finally:
            server.kill()  # Flink would first try to end its jobs


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    global EXPANSION
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=2_000_000, help="in each topic")
    parser.add_argument("--runs", type=int, default=3, help="of which the median is told")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a run at most")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2_000])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    given = parser.parse_args()
    expansion = free_port()
    service = "org.apache.beam.sdk.expansion.service.ExpansionService"
    with ExitStack() as servers:
        address = servers.enter_context(kafka())
        embedded = "--defaultEnvironmentType=EMBEDDED"
        servers.enter_context(java(service, str(expansion), embedded, port=expansion))
        EXPANSION = f"127.0.0.1:{expansion}"
        print("| bytes | read by | events/s | of the first | CPU µs/event |")
        print("| --- | --- | --- | --- | --- |")
        for size in given.sizes:
            topic = f"bytes-{size}"
            fill(address, topic, given.events, size)
            # Paired: each round runs all cases, so that what else the machine does hits all.
            runs: dict[str, list[Rate]] = {case: [] for case in given.cases}
            for _ in range(given.runs):
                for case in given.cases:
                    runs[case].append(measure(case, address, topic, given.events, given.seconds))
                    print(f"{size} bytes, {case}: {runs[case][-1]}", file=sys.stderr, flush=True)
            first = statistics.median(rate.events for rate in runs[given.cases[0]])
            for case, found in runs.items():
                rate = statistics.median(rate.events for rate in found)
                cpu = statistics.median(rate.cpu for rate in found)
                stalls = ", ".join(f"{one.given:,}" for one in found if one.stalled)
                print(
                    f"| {size:,} | {case}{f' (stalled after {stalls})' if stalls else ''}"
                    f" | {rate:,.0f} | {rate / first:.2f} | {cpu:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
