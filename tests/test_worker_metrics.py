"""What several workers count is one set of figures for Prometheus, whichever of them end."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from velocity.io.metrics import Histogram
from velocity.io.prometheus import OTHER, ToPrometheus, folder_of
from velocity.runners.stack_metrics import FORGET_AFTER, WorkersMetrics, serve_metrics

WORKER = """
import sys
from pathlib import Path
from velocity.io.kafka_metrics import PartitionMetrics
from velocity.io.metrics import Histogram, counter, distribution, gauge, mirror
from velocity.io.prometheus import open_mirror

mirror(open_mirror(Path(sys.argv[1]), sys.argv[2]))
counter("read_messages").inc(int(sys.argv[3]))
counter("dead_letters", cause="late").inc()
PartitionMetrics("pharmacy.events", 3).bundle_ended(int(sys.argv[3]), __import__("apache_beam").utils.timestamp.Timestamp(9))
Histogram("document_delays", (1, 5), "s").add([0.5, 1, 3, 99])
distribution("rest_call_keys").update(40)
print("told", flush=True)
sys.stdin.read()
"""


class Worker:
    """A process of its own that counts, until it is let go."""

    def __init__(self, root: Path, job: str, n: int) -> None:
        command = [sys.executable, "-c", WORKER, str(root), job, str(n)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"told\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.kill()


def series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.embedded
def test_counters_never_fall_files_do_not_pile_up_and_a_job_is_forgotten_when_it_is_over(
    tmp_path: Path, workers: list[Worker]
) -> None:
    now = [0.0]
    alive: list[int] = []
    metrics = WorkersMetrics(tmp_path, lambda: alive, clock=lambda: now[0])
    server, port = serve_metrics(0, metrics)
    try:

        def scraped() -> dict[Any, float]:
            answer = urllib3.request("GET", f"http://127.0.0.1:{port}/metrics")
            assert answer.status == 200
            return series(answer.data.decode())

        def of(name: str, **labels: str) -> Any:
            return (f"velocity_{name}", frozenset({"job_name": "orders/1", **labels}.items()))

        workers += [Worker(tmp_path, "orders/1", n) for n in (5, 7)]
        workers.append(Worker(tmp_path, "other", 100))
        alive[:] = [worker.pid for worker in workers]
        first = scraped()
        partition = {"topic": "pharmacy.events", "partition": "3"}
        assert first[of("read_messages_total")] == 12
        assert first[of("dead_letters_total", cause="late")] == 2
        assert first[of("lag", **partition)] == 7  # the last that told
        assert first[of("watermark_ms", **partition)] == 9_000
        buckets = [first[of("document_delays_seconds_bucket", le=le)] for le in ("1.0", "5.0")]
        assert buckets == [4, 6]
        assert first[of("document_delays_seconds_bucket", le="+Inf")] == 8
        assert first[of("rest_call_keys_sum")] == 80
        for _ in range(3):
            workers[0].kill()
            alive.remove(workers[0].pid)
            workers[0] = Worker(tmp_path, "orders/1", 1)
            alive.append(workers[0].pid)
            again = scraped()
        assert again[of("read_messages_total")] == 15
        assert again[of("document_delays_seconds_count")] == 20
        files = sorted(path.name for path in folder_of(tmp_path, "orders/1").iterdir())
        assert len(files) == 2 * 4 + 3  # of two that live, and all that ended of three kinds
        alive[:] = [workers[2].pid]
        now[0] += FORGET_AFTER - 1
        ended = scraped()
        assert ended[of("read_messages_total")] == 15
        assert of("lag", **partition) not in ended
        now[0] += FORGET_AFTER
        assert {dict(labels)["job_name"] for _, labels in scraped()} == {"other"}
        assert not folder_of(tmp_path, "orders/1").exists()
    finally:
        server.shutdown()
        server.server_close()


def test_labels_without_end_make_no_series_without_end() -> None:
    mirror = ToPrometheus(prometheus_client, "job", most=3)
    for number in range(10):
        mirror.count("messages", (("topic", "t"), ("partition", str(number))), 1)
    text = prometheus_client.generate_latest(mirror._registry).decode()
    found = {
        dict(labels)["partition"]: value
        for (name, labels), value in series(text).items()
        if name.endswith("_total")
    }
    assert found == {"0": 1, "1": 1, "2": 1, OTHER: 7}


@given(st.lists(st.floats(0, 20, allow_nan=False)))
def test_a_histogram_counts_what_is_no_greater_than_each_bound(samples: list[float]) -> None:
    found = Histogram("h", (1, 5, 10), "s").counts(samples)
    wanted = {f"h_within_{b}s": sum(sample <= b for sample in samples) for b in (1, 5, 10)}
    assert found == wanted


def test_a_process_without_a_mirror_needs_no_client() -> None:
    code = (
        "import sys; from velocity.io.metrics import counter; counter('partials').inc();"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
