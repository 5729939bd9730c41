"""What a real broker does to a read: deletes, compacts, aborts, refuses, and goes away for a while."""

import base64
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apache_beam.io.restriction_trackers import OffsetRange
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.cimpl import NewPartitions, NewTopic

from tests.kafka_ways import WAYS, go, way
from velocity.io.kafka import ReadFromKafka
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import (
    KafkaReadError,
    OffsetsLost,
    PartitionGone,
    offsets_to_read,
    open_consumer,
)
from velocity.io.kafka_offsets import UNBOUNDED, OffsetTracker, Partition
from velocity.io.kafka_partitions import KnownTracker, Wanted, WatchPartitions
from velocity.io.kafka_read import Read
from velocity.io.kafka_readers import Readers
from velocity.io.watermark import ForwardWatermark
from velocity.runners import stack_packages
from velocity.runners.stack_java import installed_jdks, need_jdk, need_maven
from velocity.runners.stack_kafka import KafkaBroker
from velocity.runners.stack_paths import cache_folder
from velocity.runners.stack_ports import HOST, any_free

pytestmark = pytest.mark.stack
_ = way  # a fixture

AWAY = float(os.environ.get("VELOCITY_TEST_OUTAGE", "6"))
"""Seconds for which a broker is away."""


class GuardedBroker(KafkaBroker):
    """The stack's broker, with a second door that asks for a token, and rules for who enters there.

    Who comes by the first one may do all.
    """

    def __init__(self, folder: Path) -> None:
        jdk = need_jdk(installed_jdks(), user="Kafka", oldest=17, best=17)
        tools = stack_packages.Tools(maven=need_maven, jdk=lambda: jdk)
        jars = stack_packages.kafka(cache_folder(), tools, print)
        self.port, self.controller, self.guarded = any_free(), any_free(), any_free()
        super().__init__(
            folder, jars=jars, jdk=jdk, port=self.port, controller_port=self.controller
        )
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        super().prepare()
        login = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
        lines = [
            (
                f"listeners=PLAINTEXT://{HOST}:{self.port},SASL_PLAINTEXT://{HOST}:{self.guarded},"
                f"CONTROLLER://{HOST}:{self.controller}"
            ),
            (
                f"advertised.listeners=PLAINTEXT://{HOST}:{self.port},"
                f"SASL_PLAINTEXT://{HOST}:{self.guarded}"
            ),
            (
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
                "SASL_PLAINTEXT:SASL_PLAINTEXT"
            ),
            "listener.name.sasl_plaintext.sasl.enabled.mechanisms=OAUTHBEARER",
            (
                f"listener.name.sasl_plaintext.oauthbearer.sasl.jaas.config={login} required "
                'unsecuredLoginStringClaim_sub="broker";'
            ),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS",
            "allow.everyone.if.no.acl.found=true",
            "log.cleaner.backoff.ms=200",
            "",
        ]
        with self._properties.open("a") as properties:
            properties.write("\n".join(lines))

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdout=log, stderr=log
            )
        until(self.healthy)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def with_token(self, user: str) -> KafkaConfig:
        """How a user comes in by the guarded door."""
        return KafkaConfig(
            f"{HOST}:{self.guarded}",
            {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanisms": "OAUTHBEARER",
                "sasl.oauthbearer.config": user,
                "oauth_cb": token,
            },
        )


def token(user: str) -> tuple[str, float]:
    """An unsigned token, as Kafka's own development login makes them."""

    def part(content: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    now = time.time()
    claims = part({"sub": user, "iat": now - 60, "exp": now + 3600})
    return f"{part({'alg': 'none'})}.{claims}.", now + 3600


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedBroker]:
    broker = GuardedBroker(tmp_path_factory.mktemp("broker"))
    try:
        broker.run()
        yield broker
    finally:
        broker.kill()


@pytest.fixture
def topic(broker: GuardedBroker, request: pytest.FixtureRequest) -> str:
    """A topic of one partition, of the test's own."""
    name = re.sub(r"[^a-zA-Z0-9]+", "-", request.node.name)
    create(broker, name)
    return name


def create(broker: GuardedBroker, name: str, **config: str) -> None:
    settings = {key.replace("_", "."): value for key, value in config.items()}
    client = AdminClient({"bootstrap.servers": broker.address})
    client.create_topics([NewTopic(name, 1, 1, config=settings)])[name].result()
    until(lambda: client.list_topics(name, 10).topics[name].error is None)


def produce(broker: GuardedBroker, topic: str, *values: str, at: datetime | None = None) -> None:
    producer = Producer({"bootstrap.servers": broker.address})
    millis = 0 if at is None else int(at.timestamp() * 1000)
    for value in values:
        producer.produce(topic, value.encode(), partition=0, timestamp=millis)
    assert producer.flush(60) == 0


class Reads:
    """The bundles of a read of partition 0, as a runner makes them of one another."""

    def __init__(self, config: KafkaConfig, topic: str, **arguments: Any) -> None:
        self._topic, self._readers = topic, Readers()
        self._read = Read(ReadFromKafka(config, [topic], **arguments))
        self.left: OffsetRange | None = OffsetRange(0, UNBOUNDED)
        self.watermark = MIN_TIMESTAMP

    def bundle(self) -> list[str | None]:
        """The values that it gave."""
        assert self.left is not None
        tracker = ThreadsafeRestrictionTracker(OffsetTracker(self.left))
        view, watermark = RestrictionTrackerView(tracker), ForwardWatermark(self.watermark)
        element = Partition(self._topic, 0, self.left.start, self.left.stop)
        nothing = SimpleNamespace(register=lambda confirmed: None)
        given = [
            None if value is None else value.decode()
            for output in self._read.read_bundle(element, view, watermark, nothing, self._readers)
            for value in output.value["value"].to_pylist()
        ]
        tracker.check_done()
        self.left, _ = tracker.deferred_status() or (None, None)
        self.watermark = watermark.current_watermark()
        return given

    def next(self, count: int) -> list[str | None]:
        """The next values, however many bundles it takes."""
        deadline, given = time.monotonic() + 120, self.bundle()
        while len(given) < count:
            assert time.monotonic() < deadline, given
            given += self.bundle()
        return given

    def restored(self) -> None:
        """As after a restore: the readers of the process are gone."""
        self._readers.close()


def all_of(config: KafkaConfig, topic: str, start: Any = "earliest", stop: Any = "latest") -> Any:
    """The values of a bounded read."""
    consumer = open_consumer(config)
    try:
        [found] = offsets_to_read(consumer, config, topic, start, stop)
    finally:
        consumer.close()
    reads = Reads(config, topic, start=start, stop=stop)
    reads.left = OffsetRange(found.start, found.stop)
    given = reads.bundle()
    assert reads.left is None, "what is bounded is read to its end in one go"
    return given


def delete_before(broker: GuardedBroker, topic: str, offset: int) -> None:
    """What retention does, at once."""
    client = AdminClient({"bootstrap.servers": broker.address})
    where = TopicPartition(topic, 0, offset)
    client.delete_records([where])[where].result()


@pytest.mark.parametrize("restored", [False, True])
def test_what_retention_took_fails_the_read_or_is_skipped_as_wanted(
    broker: GuardedBroker, topic: str, restored: bool, way: str
) -> None:
    # a consumer that fetches no more than a message ahead
    config = KafkaConfig(broker.address, {"queued.min.messages": 1, "fetch.message.max.bytes": 1})
    strict, lenient = (
        Reads(config, topic, batch_size=1, bundle_size=1, on_lost_offsets=wanted)
        for wanted in ("fail", "earliest")
    )
    for number in range(20):
        produce(broker, topic, str(number))
    for reads in (strict, lenient):
        assert reads.next(1) == ["0"]
    delete_before(broker, topic, 15)
    if restored:
        strict.restored()
        lenient.restored()
    given: list[str | None] = []
    while given[-1:] != ["19"]:
        given += lenient.next(1)
    ahead = len(given) - 5
    assert given == [*map(str, range(1, 1 + ahead)), "15", "16", "17", "18", "19"]
    assert ahead == 0 or not restored
    told = rf"'{topic}' partition 0 at offset \d+: \d+ offsets .*has 15 to 20.*'earliest'"
    with pytest.raises(OffsetsLost, match=told):
        strict.next(20)


def test_a_compacted_topic_is_read_across_its_gaps(
    broker: GuardedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = "compacted"
    create(
        broker,
        topic,
        cleanup_policy="compact",
        segment_ms="100",
        min_cleanable_dirty_ratio="0.0",
        max_compaction_lag_ms="100",
        min_compaction_lag_ms="0",
    )
    config, producer = KafkaConfig(broker.address), Producer({"bootstrap.servers": broker.address})
    sent = 0

    def add() -> int:
        """One more value for each of three keys, in a segment of their own; what is left of all."""
        nonlocal sent
        for key in ("a", "b", "c"):
            producer.produce(topic, f"{key}{sent}", key, partition=0)
            sent += 1
        assert producer.flush(60) == 0
        time.sleep(0.15)  # segments end by time
        return len(all_of(config, topic))

    until(lambda: add() < sent - 6)
    for each in WAYS:
        go(each, monkeypatch)
        left = all_of(config, topic)
        assert left[-3:] == [f"a{sent - 3}", f"b{sent - 2}", f"c{sent - 1}"]
        running = Reads(config, topic)
        assert set(running.next(3)) >= set(left[-3:])
        assert running.left == OffsetRange(sent, UNBOUNDED)
        assert all_of(config, topic, {(topic, 0): 1}, {(topic, 0): 3}) in ([], ["b1", "c2"])


def test_what_a_transaction_took_back_is_not_read_unless_it_is_asked_for(
    broker: GuardedBroker, topic: str, way: str
) -> None:
    producer = Producer({"bootstrap.servers": broker.address, "transactional.id": topic})
    producer.init_transactions()
    for value in ("kept", "taken back", "kept too", "taken back again"):
        producer.begin_transaction()
        producer.produce(topic, value, partition=0)
        producer.flush(60)
        if "taken" in value:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    config = KafkaConfig(broker.address)
    assert all_of(config, topic) == ["kept", "kept too"]
    running = Reads(config, topic)
    assert running.next(2) == ["kept", "kept too"]
    until(lambda: running.bundle() == [] and running.left == OffsetRange(8, UNBOUNDED))
    dirty = KafkaConfig(broker.address, {"isolation.level": "read_uncommitted"})
    assert all_of(dirty, topic) == ["kept", "taken back", "kept too", "taken back again"]


def test_what_an_open_transaction_holds_back_is_not_passed_by_the_clock(
    broker: GuardedBroker, topic: str
) -> None:
    """What other producers write meanwhile can't be read before it ends, and is not late then."""
    produce(broker, topic, "read")
    within = Producer({"bootstrap.servers": broker.address, "transactional.id": topic})
    within.init_transactions()
    within.begin_transaction()
    within.produce(topic, "in it", partition=0)
    assert within.flush(60) == 0
    produce(broker, topic, "beside it")
    idle_after = timedelta(seconds=1)
    running = Reads(KafkaConfig(broker.address), topic, idle_after=idle_after)
    assert running.next(1) == ["read"]
    held, deadline = running.watermark, time.monotonic() + 5
    while time.monotonic() < deadline:
        assert running.bundle() == []
        assert running.watermark == held
    within.commit_transaction()
    assert running.next(2) == ["in it", "beside it"]
    until(lambda: running.bundle() == [] and running.watermark > held + 5)


def test_a_tombstone_is_a_message_without_a_value(broker: GuardedBroker, topic: str) -> None:
    producer = Producer({"bootstrap.servers": broker.address})
    producer.produce(topic, None, "key", partition=0)
    assert producer.flush(60) == 0
    assert all_of(KafkaConfig(broker.address), topic) == [None]


def test_times_are_the_brokers(broker: GuardedBroker, topic: str) -> None:
    noon = datetime(2026, 1, 5, 12, tzinfo=UTC)
    for hour in range(5):
        produce(broker, topic, f"{12 + hour}h", at=noon + timedelta(hours=hour))
    config = KafkaConfig(broker.address)
    start, stop = noon + timedelta(minutes=30), noon + timedelta(hours=3)
    assert all_of(config, topic, start, stop) == ["13h", "14h"]
    assert all_of(config, topic, start) == ["13h", "14h", "15h", "16h"]
    assert all_of(config, topic, noon + timedelta(days=1)) == []


def test_a_deleted_topic_fails_the_read_or_ends_it_as_wanted(
    broker: GuardedBroker, topic: str
) -> None:
    config, soon = KafkaConfig(broker.address), timedelta(seconds=1)
    strict, lenient = (
        Reads(config, topic, idle_after=soon, on_lost_offsets=wanted)
        for wanted in ("fail", "earliest")
    )
    produce(broker, topic, "only")
    for reads in (strict, lenient):
        assert reads.next(1) == ["only"]
    client = AdminClient({"bootstrap.servers": broker.address})
    client.delete_topics([topic])[topic].result()
    told = rf"'{topic}' partition 0 at offset 1: the topic is gone; create it again"
    with pytest.raises(PartitionGone, match=told):
        strict.next(1)
    until(lambda: lenient.left is None or (lenient.bundle() == [] and lenient.left is None))


def test_partitions_and_topics_that_come_are_found_once_and_read_whole(
    broker: GuardedBroker, topic: str
) -> None:
    config, later = KafkaConfig(broker.address), f"{topic}-later"
    produce(broker, topic, "before")
    wanted = Wanted(config, [f"^{topic}.*"], "latest", None, None, False)
    watch, known = WatchPartitions(wanted.list_new, 10.0, 30.0), KnownTracker((None,))

    def look() -> list[Partition]:
        nonlocal known
        tracker = ThreadsafeRestrictionTracker(known)
        found = list(watch.look(RestrictionTrackerView(tracker), ForwardWatermark(MIN_TIMESTAMP)))
        left, _ = tracker.deferred_status()
        known = KnownTracker(left)
        return found

    assert [each._replace(spread=0) for each in look()] == [Partition(topic, 0, 1, UNBOUNDED, 1)]
    assert look() == []
    client = AdminClient({"bootstrap.servers": broker.address})
    client.create_partitions([NewPartitions(topic, 3)])[topic].result()
    create(broker, later)
    produce(broker, later, "first")
    come: list[Partition] = []
    while len(come) < 3:
        come += look()
    assert sorted(each[:4] for each in come) == [
        (topic, 1, 0, UNBOUNDED),
        (topic, 2, 0, UNBOUNDED),
        (later, 0, 0, UNBOUNDED),
    ]
    assert look() == []
    assert Reads(config, later).next(1) == ["first"]


def test_an_oauth_callback_travels_with_the_read_and_opens_the_guarded_door(
    broker: GuardedBroker, topic: str
) -> None:
    produce(broker, topic, "guarded")
    assert all_of(broker.with_token("reader"), topic) == ["guarded"]
    assert "reader" not in repr(broker.with_token("reader"))


def test_who_may_not_read_is_told_what_to_allow(
    broker: GuardedBroker, topic: str, way: str
) -> None:
    produce(broker, topic, "secret")
    client = AdminClient({"bootstrap.servers": broker.address})

    def rule(operation: AclOperation, permission: AclPermissionType) -> AclBinding:
        pattern, user = ResourcePatternType.LITERAL, "User:reader"
        return AclBinding(ResourceType.TOPIC, topic, pattern, user, "*", operation, permission)

    allowed = rule(AclOperation.DESCRIBE, AclPermissionType.ALLOW)
    client.create_acls([allowed])[allowed].result()
    config = broker.with_token("reader")
    told = rf"'{topic}' partition 0 at offset 0: .*allow this user to read"

    def refused() -> bool:
        try:
            Reads(config, topic).bundle()
        except KafkaReadError as error:
            assert topic in str(error)
            return "allow this user to read" in str(error)
        return False

    until(refused)
    with pytest.raises(KafkaReadError, match=told):
        Reads(config, topic).next(1)
    hidden = rule(AclOperation.DESCRIBE, AclPermissionType.DENY)
    client.create_acls([hidden])[hidden].result()
    told = rf"cannot list the partitions of topic '{topic}' .*allow this user to describe and read"
    with pytest.raises(KafkaReadError, match=told):
        all_of(config, topic)


def test_a_broker_that_is_away_for_a_while_loses_nothing_and_makes_nothing_late(
    broker: GuardedBroker, topic: str
) -> None:
    config = KafkaConfig(broker.address, {"reconnect.backoff.max.ms": 500})
    reads = Reads(config, topic, idle_after=timedelta(seconds=2), disorder=timedelta())
    produce(broker, topic, "before", at=datetime(2026, 1, 5, tzinfo=UTC))
    assert reads.next(1) == ["before"]
    broker.kill()
    at, away = reads.watermark, time.monotonic()
    while time.monotonic() - away < AWAY:
        assert reads.bundle() == []
    silent = float(Timestamp.now() - reads.watermark)
    assert silent > AWAY - 3, "who can't be reached is not idle"
    broker.run()
    produce(broker, topic, "after", at=datetime.now(UTC))
    assert reads.next(1) == ["after"]
    assert reads.watermark >= at
