"""The Kafka source on a real Flink: nothing is late or lost, however uneven or new a partition is."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import cycle
from pathlib import Path

import pytest
import yaml
from confluent_kafka import Producer

from tests.cluster import Cluster, until
from tests.flink_jobs import SEED, Case, end_all, flink_cluster
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.recompute import differences
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import expected
from velocity.runners.embedded import DirectoryService

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("stack") / "state"
    with DirectoryService(directory(SEED).tables()) as service:
        services = {"PROVIDERS": service.url, "PATIENTS": service.url}
        with flink_cluster(folder, tmp_path_factory.mktemp("temporary"), services) as found:
            yield found


@pytest.fixture(autouse=True)
def no_job_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    end_all(cluster)


def test_a_week_of_four_uneven_partitions_gives_what_reading_it_in_order_gives(
    cluster: Cluster, tmp_path: Path
) -> None:
    case = Case(cluster, tmp_path, 0)
    topic = f"{case.prefix}.pharmacy.events"
    job = yaml.safe_load(case.path.read_text())
    job["source"]["idle_after"] = "1h"
    rush, hourly = "pharmacy_rush", {"fixed": "1h"}
    job["metrics"] = [m for m in job["metrics"] if m["name"] in (rush, "orders_by_city")]
    for metric in job["metrics"]:
        metric["emit"] = {"lateness": "0s"}  # a window that closes early loses events
        metric["window"] = metric["window"] if metric["name"] == rush else hourly
    case.path.write_text(yaml.safe_dump(job))

    week = timedelta(days=7).total_seconds()
    scenario = Scenario(
        seed=SEED, events=40_000, rate=40_000 / week, domains=("pharmacy_delivery",)
    )
    messages = list(simulate(scenario))
    assert messages[-1].timestamp_ms - messages[0].timestamp_ms > 6 * 86_400_000
    producer = Producer({"bootstrap.servers": case.kafka})
    uneven = [0] * 25 + [1] * 5 + [2] * 2 + [3]
    where = [partition for _, partition in zip(messages, cycle(uneven), strict=False)]
    for message, partition in zip(messages, where, strict=True):
        at = message.timestamp_ms
        producer.produce(topic, message.value, message.key, partition, timestamp=at)
        producer.poll(0)
    assert producer.flush(60) == 0

    running = case.run("--checkpoint-interval", "2s")
    until(lambda: cluster.counter(running, "read_messages") == len(messages))
    cluster("stop", running, "--drain")
    wanted = expected(load(case.path), messages, directory(SEED))
    assert list(differences(wanted, case.documents()))[:5] == []
