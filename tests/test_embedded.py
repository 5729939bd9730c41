"""Laws of the servers that live in the process."""

import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from velocity.runners.embedded import PARTITION_BYTES, DirectoryService, EmbeddedKafka
from velocity.runners.stack_kafka import answers

pytestmark = pytest.mark.embedded

TABLES: dict[str, dict[str, dict[str, object]]] = {
    "providers": {
        "a": {"id": "a", "city": "Medan"},
        "b": {"id": "b", "city": "Depok"},
        "c,d": {"id": "c,d", "city": "Manado"},
    },
    "patients": {"p": {"id": "p", "insured": True}},
}


def is_open(host_and_port: str) -> bool:
    host, _, port = host_and_port.rpartition(":")
    with closing(socket.socket()) as client:
        return client.connect_ex((host, int(port))) == 0


@pytest.fixture
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka({"orders": 6}) as kafka:
        yield kafka


def producer(kafka: EmbeddedKafka) -> Producer:
    return Producer({"bootstrap.servers": kafka.bootstrap_servers, "message.max.bytes": 4_000_000})


def test_a_topic_has_the_partitions_asked_for(kafka: EmbeddedKafka) -> None:
    kafka.create_topic("claims", 2)
    topics = producer(kafka).list_topics(timeout=10).topics
    assert {name: len(topic.partitions) for name, topic in topics.items()} == {
        "orders": 6,
        "claims": 2,
    }


def test_a_topic_that_is_asked_for_comes_to_be_with_four_partitions(kafka: EmbeddedKafka) -> None:
    assert len(producer(kafka).list_topics("new", timeout=10).topics["new"].partitions) == 4


def test_a_topic_is_created_once(kafka: EmbeddedKafka) -> None:
    with pytest.raises(KafkaException, match="already exists"):
        kafka.create_topic("orders", 6)


def test_a_topic_needs_a_partition(kafka: EmbeddedKafka) -> None:
    with pytest.raises(ValueError, match="partitions"):
        kafka.create_topic("none", 0)


def test_a_message_of_two_megabytes_passes_whole(kafka: EmbeddedKafka) -> None:
    value = os.urandom(2_000_000)
    client = producer(kafka)
    client.produce("orders", value, partition=5, timestamp=1_767_225_600_123)
    assert client.flush(10) == 0
    settings = {"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test"}
    with closing(Consumer(settings)) as consumer:
        consumer.assign([TopicPartition("orders", 5, 0)])
        message = consumer.poll(10)
    assert message is not None
    assert (message.value(), message.timestamp()) == (value, (1, 1_767_225_600_123))


def test_what_the_broker_forgets_is_told(kafka: EmbeddedKafka) -> None:
    client = producer(kafka)
    size = 1_000_000
    for _ in range(8):
        client.produce("orders", os.urandom(size), partition=0)
        assert client.flush(10) == 0
    assert kafka.forgotten("orders") == 8 - PARTITION_BYTES // size


def test_a_broker_that_was_left_has_closed_its_port() -> None:
    with EmbeddedKafka() as kafka:
        servers = kafka.bootstrap_servers
        assert is_open(servers)
    assert not is_open(servers)
    with pytest.raises(RuntimeError, match="not running"):
        _ = kafka.bootstrap_servers


def test_a_broker_that_fails_to_start_its_topics_leaves_nothing_open() -> None:
    kafka = EmbeddedKafka({"orders": 0})
    with pytest.raises(ValueError, match="partitions"), kafka:
        pass
    with pytest.raises(RuntimeError, match="not running"):
        _ = kafka.bootstrap_servers


def test_two_brokers_live_side_by_side() -> None:
    with EmbeddedKafka({"one": 1}) as first, EmbeddedKafka({"two": 1}) as second:
        assert set(producer(first).list_topics(timeout=10).topics) == {"one"}
        assert set(producer(second).list_topics(timeout=10).topics) == {"two"}


@pytest.fixture
def service() -> Iterator[DirectoryService]:
    with DirectoryService(TABLES) as service:
        yield service


def connection(service: DirectoryService) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=10)


def get(client: http.client.HTTPConnection, target: str) -> tuple[int, object]:
    client.request("GET", target)
    response = client.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("/providers?ids=b,a", [TABLES["providers"]["b"], TABLES["providers"]["a"]]),
        ("/providers?ids=a,unknown", [TABLES["providers"]["a"]]),
        ("/providers?ids=a,a", [TABLES["providers"]["a"]]),
        ("/providers?ids=a%2Cb", [TABLES["providers"]["a"], TABLES["providers"]["b"]]),
        ("/providers?ids=unknown", []),
        ("/patients?ids=p", [TABLES["patients"]["p"]]),
    ],
)
def test_the_service_answers_what_it_knows(
    service: DirectoryService, target: str, answer: list[object]
) -> None:
    with closing(connection(service)) as client:
        assert get(client, target) == (200, answer)


@pytest.mark.parametrize(
    ("target", "status"), [("/doctors?ids=a", 404), ("/providers", 400), ("/providers?ids=", 400)]
)
def test_a_call_that_makes_no_sense_is_refused_and_not_counted(
    service: DirectoryService, target: str, status: int
) -> None:
    with closing(connection(service)) as client:
        assert get(client, target)[0] == status
    assert (service.calls, service.keys) == (0, 0)


def test_calls_and_keys_are_counted_over_all_connections(service: DirectoryService) -> None:
    def call() -> None:
        with closing(connection(service)) as client:
            for _ in range(50):
                get(client, "/providers?ids=a,b,unknown")

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (service.calls, service.keys) == (400, 1200)


def test_a_connection_is_kept_for_the_next_call(service: DirectoryService) -> None:
    with closing(connection(service)) as client:
        get(client, "/providers?ids=a")
        kept = client.sock
        get(client, "/nothing")
        get(client, "/providers?ids=b")
        assert kept is not None
        assert client.sock is kept


def test_each_call_takes_the_latency_asked_for() -> None:
    slept: list[float] = []
    with (
        DirectoryService(TABLES, latency=0.25, sleep=slept.append) as service,
        closing(connection(service)) as client,
    ):
        get(client, "/providers?ids=a")
        get(client, "/patients?ids=p")
    assert slept == [0.25, 0.25]


def test_a_service_that_was_left_has_closed_its_port_its_connections_and_its_threads() -> None:
    before = set(threading.enumerate())
    with DirectoryService(TABLES) as service:
        address = urlsplit(service.url).netloc
        idle = connection(service)
        get(idle, "/providers?ids=a")
        assert set(threading.enumerate()) - before
    assert not is_open(address)
    assert set(threading.enumerate()) <= before
    with closing(idle), pytest.raises((http.client.HTTPException, ConnectionError)):
        idle.sock = idle.sock or socket.socket()
        idle.request("GET", "/providers?ids=a")
        idle.getresponse()
    with pytest.raises(RuntimeError, match="not running"):
        _ = service.url


def test_a_client_that_hangs_up_disturbs_nobody(
    service: DirectoryService, capfd: pytest.CaptureFixture[str]
) -> None:
    rude = connection(service)
    get(rude, "/providers?ids=a")
    rude.close()
    with closing(connection(service)) as client:
        assert get(client, "/providers?ids=a")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_broker_of_another_cluster_is_not_taken_for_the_stacks_own() -> None:
    with EmbeddedKafka() as kafka:
        port = int(kafka.bootstrap_servers.partition(":")[2])
        assert answers(port)
        assert not answers(port, "another")
