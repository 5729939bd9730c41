"""Laws of consumers: positions, readers and what keeps them, and messages as Arrow."""

import base64
import os
import pickle
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from apache_beam.utils.timestamp import Timestamp
from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)

from tests.kafka_ways import way
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import (
    KafkaReadError,
    OffsetsLost,
    PartitionGone,
    offsets_to_read,
    open_consumer,
)
from velocity.io.kafka_offsets import UNBOUNDED
from velocity.io.kafka_readers import PartitionReader, Readers
from velocity.runners.embedded import EmbeddedKafka

pytestmark = pytest.mark.embedded
_ = way  # a fixture

CONFIG = KafkaConfig("127.0.0.1:9")
T = Timestamp


class Clock:
    """Both a monotonic clock and the time of the world, an hour ahead of it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> Timestamp:
        return T(self.seconds + 3600)


class FakeMessage:
    """A message at an offset, or an error that a consumer gives in its place."""

    def __init__(self, offset: int, error: int | None = None) -> None:
        self._offset, self._error = offset, error

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return None if self._error is None else KafkaError(self._error)

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_NOT_AVAILABLE, -1

    def key(self) -> None:
        return None

    value = headers = key


def end(offset: int) -> FakeMessage:
    return FakeMessage(offset, KafkaError._PARTITION_EOF)


class FakeConsumer:
    """Gives what is put into ``coming``; ``end`` is what the broker tells of the partition."""

    def __init__(self) -> None:
        self.coming: list[FakeMessage] = []
        self.low, self.end = 0, cast(int | None, 0)
        self.behind = 0
        """Messages beyond the end that a transaction still holds back."""
        self.asked = 0
        self.closed = False

    def assign(self, partitions: list[TopicPartition]) -> None:
        [self.assigned] = partitions

    def consume(self, most: int, timeout: float) -> list[FakeMessage]:
        given, self.coming = self.coming[:most], self.coming[most:]
        return given

    def get_watermark_offsets(
        self, where: TopicPartition, timeout: float = 1.0, cached: bool = False
    ) -> tuple[int, int]:
        if cached:  # librdkafka's memory of the last fetch; -1001 before the first
            return -1001, -1001 if self.end is None else self.end + self.behind
        self.asked += 1
        if self.end is None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return self.low, self.end

    def list_topics(self, topic: str, timeout: float) -> Any:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Pool:
    """Readers with fake consumers, in the order in which they were opened."""

    def __init__(self, sweep_every: float | None = None) -> None:
        self.clock = Clock()
        self.opened: list[FakeConsumer] = []
        self.readers = Readers(self._open, self.clock.monotonic, self.clock.now, sweep_every)

    def _open(self, config: KafkaConfig) -> Consumer:
        self.opened.append(FakeConsumer())
        return cast(Consumer, self.opened[-1])

    def take(self, start: int = 0, *, partition: int = 0) -> PartitionReader:
        return self.readers.take(CONFIG, "orders", partition, start)


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_a_reader_given_back_is_taken_again_at_its_position(pool: Pool) -> None:
    reader = pool.take(0)
    pool.opened[0].coming = [FakeMessage(0), FakeMessage(1)]
    assert reader.poll(10).num_rows == 2
    pool.readers.give_back(reader)
    assert pool.take(2) is reader


def test_a_reader_in_use_is_not_taken_twice(pool: Pool) -> None:
    assert pool.take(0) is not pool.take(0)


@pytest.mark.parametrize(
    ("config", "topic", "partition", "start"),
    [
        (CONFIG, "orders", 0, 1),
        (CONFIG, "orders", 1, 0),
        (CONFIG, "claims", 0, 0),
        (KafkaConfig(CONFIG.bootstrap_servers, {"sasl.username": "b"}), "orders", 0, 0),
    ],
)
def test_a_reader_that_stands_elsewhere_is_not_reused(
    pool: Pool, config: KafkaConfig, topic: str, partition: int, start: int
) -> None:
    reader = pool.take(0)
    pool.readers.give_back(reader)
    other = pool.readers.take(config, topic, partition, start)
    assert other is not reader
    assert other.position == start
    assert pool.take(0) is reader, "and stays for who does ask for it"


def test_a_reader_that_no_bundle_asks_for_is_closed_after_five_minutes(pool: Pool) -> None:
    pool.readers.give_back(pool.take(partition=0))
    pool.clock.seconds = 200
    pool.readers.give_back(pool.take(partition=1))
    pool.clock.seconds = 301
    pool.readers.give_back(pool.take(partition=2))
    assert [consumer.closed for consumer in pool.opened] == [True, False, False]


def test_the_last_reader_of_a_process_is_closed_too_when_no_bundle_asks_for_it() -> None:
    pool = Pool(sweep_every=0.01)
    pool.readers.give_back(pool.take())
    pool.clock.seconds = 301
    deadline = time.monotonic() + 60
    while not pool.opened[0].closed:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_closing_the_pool_closes_what_is_kept_and_leaves_what_is_in_use(pool: Pool) -> None:
    kept, used = pool.take(partition=0), pool.take(partition=1)
    pool.readers.give_back(kept)
    pool.readers.close()
    assert [consumer.closed for consumer in pool.opened] == [True, False]
    assert pool.take(partition=0) is not kept
    pool.readers.give_back(used)
    assert pool.take(partition=1) is used


def test_offsets_without_a_message_at_the_end_move_the_position(pool: Pool) -> None:
    reader = pool.take(0)
    pool.opened[0].coming = [FakeMessage(3), end(7)]
    assert reader.poll(10)["offset"].to_pylist() == [3]
    assert reader.position == 7


IDLE_AFTER = 60.0


def test_the_lag_is_what_the_broker_has_beyond_the_position(pool: Pool) -> None:
    reader = pool.take()
    [consumer] = pool.opened
    consumer.end = None
    assert reader.lag() is None
    consumer.end, consumer.coming = 10, [FakeMessage(6)]
    reader.poll(5)
    assert reader.lag() == 3
    consumer.end = 5  # told before the messages that came since
    assert reader.lag() == 0
    assert consumer.asked == 0


def test_a_partition_is_idle_once_it_has_had_no_row_for_long_enough(pool: Pool) -> None:
    reader = pool.take(0)
    pool.clock.seconds = 59.9
    assert reader.idle_as_of(IDLE_AFTER) is None
    assert pool.opened[0].asked == 0
    pool.clock.seconds = 60
    assert reader.idle_as_of(IDLE_AFTER) == T(3659)
    reader.row_seen()
    assert reader.idle_as_of(IDLE_AFTER) is None
    pool.clock.seconds = 119
    assert reader.idle_as_of(IDLE_AFTER) is None


def test_an_unread_message_means_that_a_partition_is_not_idle(pool: Pool) -> None:
    reader, consumer = pool.take(0), pool.opened[0]
    consumer.end = 5
    pool.clock.seconds = 1000
    assert reader.idle_as_of(IDLE_AFTER) is None


def test_a_message_behind_an_open_transaction_means_that_a_partition_is_not_idle(
    pool: Pool,
) -> None:
    reader, consumer = pool.take(0), pool.opened[0]
    consumer.behind = 3
    pool.clock.seconds = 1000
    assert reader.idle_as_of(IDLE_AFTER) is None
    consumer.behind, consumer.end = 0, 3  # committed: it can be read, and has not been
    pool.clock.seconds = 1002
    assert reader.idle_as_of(IDLE_AFTER) is None
    consumer.coming = [FakeMessage(0), FakeMessage(1), FakeMessage(2)]
    reader.poll(10)
    assert reader.idle_as_of(IDLE_AFTER) == T(4601)


def test_a_partition_that_cannot_be_reached_is_not_idle(pool: Pool) -> None:
    reader, consumer = pool.take(0), pool.opened[0]
    consumer.coming = [end(0)]
    reader.poll(10)
    consumer.end = None
    pool.clock.seconds = 1000
    assert reader.idle_as_of(IDLE_AFTER) is None
    consumer.end = 3  # what came while the broker could not be reached
    pool.clock.seconds = 1002
    assert reader.idle_as_of(IDLE_AFTER) is None


def test_a_partition_with_only_bad_messages_is_idle_as_of_the_end_that_was_read(pool: Pool) -> None:
    reader, consumer = pool.take(0), pool.opened[0]
    pool.clock.seconds, consumer.end = 100, 2
    assert reader.idle_as_of(IDLE_AFTER) is None
    consumer.coming = [FakeMessage(0)]
    reader.poll(10)
    pool.clock.seconds, consumer.end = 110, 4
    assert reader.idle_as_of(IDLE_AFTER) is None
    consumer.coming = [FakeMessage(1)]
    reader.poll(10)
    assert reader.idle_as_of(IDLE_AFTER) is None, "the end has moved on"
    consumer.coming = [FakeMessage(2), FakeMessage(3)]
    reader.poll(10)
    pool.clock.seconds, consumer.end = 110.5, 9
    assert reader.idle_as_of(IDLE_AFTER) == T(3709), "when the end was 4, and a second before"


def test_an_end_that_a_lost_leader_told_holds_nothing_back_for_ever(pool: Pool) -> None:
    reader, consumer = pool.take(0), pool.opened[0]
    pool.clock.seconds, consumer.end = 100, 5
    assert reader.idle_as_of(IDLE_AFTER) is None
    consumer.end = 0
    pool.clock.seconds = 160
    assert reader.idle_as_of(IDLE_AFTER) == T(3759)


def test_the_broker_is_asked_for_the_end_once_a_second_at_most(pool: Pool) -> None:
    reader, consumer = pool.take(0), pool.opened[0]
    for tenth in range(600, 631):
        pool.clock.seconds = tenth / 10
        reader.idle_as_of(IDLE_AFTER)
    assert consumer.asked == 4


def test_a_read_that_must_go_on_fails_after_two_minutes_of_silence(pool: Pool) -> None:
    reader, consumer = pool.take(7), pool.opened[0]
    pool.clock.seconds = 100
    consumer.coming = [end(8)]
    reader.poll(10)
    pool.clock.seconds = 220
    reader.expect_more()
    pool.clock.seconds = 220.1
    with pytest.raises(KafkaReadError, match="'orders' partition 0 at offset 8: nothing has come"):
        reader.expect_more()


def test_an_error_in_place_of_a_message_names_where_and_the_remedy(pool: Pool) -> None:
    reader = pool.take(42)
    pool.opened[0].coming = [FakeMessage(42, KafkaError._AUTO_OFFSET_RESET)]
    with pytest.raises(KafkaReadError, match=r"'orders' partition 0 at offset 42: .*'earliest'"):
        reader.poll(10)
    pool.opened[0].coming = [FakeMessage(42), FakeMessage(43, KafkaError._BAD_MSG)]
    assert reader.poll(10).num_rows == 1, "what came before it is given first"
    with pytest.raises(KafkaReadError, match=r"at offset 43: .*; see the broker's log"):
        reader.poll(10)


@pytest.mark.parametrize(
    "error",
    [KafkaReadError("cannot read; remedy"), PartitionGone("gone"), OffsetsLost("lost", 3)],
)
def test_the_error_survives_pickle(error: KafkaReadError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


class FakeCluster:
    """A consumer that knows one topic, ``orders``: of each partition its first offset and end."""

    def __init__(self, offsets: dict[int, tuple[int, int]], error: int | None = None) -> None:
        self._offsets, self._error = offsets, error
        self.found: int = -1
        self.found_error: int | None = None
        self.asked: list[int] = []

    def list_topics(self, topic: str, timeout: float) -> Any:
        error = None if self._error is None else KafkaError(self._error)
        metadata = SimpleNamespace(error=error, partitions=dict.fromkeys(self._offsets))
        return SimpleNamespace(topics={topic: metadata})

    def get_watermark_offsets(
        self, where: TopicPartition, timeout: float = 1.0, cached: bool = False
    ) -> tuple[int, int]:
        return self._offsets[where.partition]

    def committed(self, asked: list[TopicPartition], timeout: float) -> list[Any]:
        error = None if self.found_error is None else KafkaError(self.found_error)
        offset = 17 if asked[0].partition == 0 else -1001
        return [SimpleNamespace(offset=offset, error=error)]

    def offsets_for_times(self, asked: list[TopicPartition], timeout: float) -> list[Any]:
        self.asked += [where.offset for where in asked]
        error = None if self.found_error is None else KafkaError(self.found_error)
        return [SimpleNamespace(offset=self.found, error=error)]


def ranges(cluster: FakeCluster, start: Any, stop: Any) -> list[tuple[int, int]]:
    found = offsets_to_read(cast(Consumer, cluster), CONFIG, "orders", start, stop)
    return [(each.start, each.stop) for each in found]


TIME = datetime(2026, 1, 1, 0, 0, 0, 123_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "stop", "read"),
    [
        ("earliest", None, [(10, UNBOUNDED), (0, UNBOUNDED)]),
        ("latest", None, [(30, UNBOUNDED), (0, UNBOUNDED)]),
        ("earliest", "latest", [(10, 30), (0, 0)]),
        ("latest", "latest", [(30, 30), (0, 0)]),
        ("committed", "latest", [(17, 30), (0, 0)]),
        ({("orders", 0): 20}, "latest", [(20, 30), (0, 0)]),
        ({("other", 9): 20}, "latest", [(10, 30), (0, 0)]),
        ("earliest", {("orders", 0): 20}, [(10, 20), (0, 0)]),
        ("earliest", {("orders", 0): 2**40, ("orders", 1): 1}, [(10, 30), (0, 0)]),
        ({("orders", 0): 25}, {("orders", 0): 20}, [(25, 25), (0, 0)]),
    ],
)
def test_positions_mean_offsets(start: Any, stop: Any, read: list[tuple[int, int]]) -> None:
    assert ranges(FakeCluster({1: (0, 0), 0: (10, 30)}), start, stop) == read


def test_a_time_is_asked_for_to_the_millisecond_in_any_time_zone() -> None:
    for instant in (TIME, TIME.astimezone(datetime.strptime("+0700", "%z").tzinfo)):
        cluster = FakeCluster({0: (0, 30)})
        cluster.found = 17
        assert ranges(cluster, instant, instant + timedelta(milliseconds=1)) == [(17, 17)]
        assert cluster.asked == [1_767_225_600_123, 1_767_225_600_124]


def test_a_time_after_the_last_message_is_the_end() -> None:
    assert ranges(FakeCluster({0: (0, 30)}), "earliest", TIME) == [(0, 30)]


def test_a_broker_that_cannot_find_what_was_committed_is_told() -> None:
    cluster = FakeCluster({0: (10, 30)})
    cluster.found_error = KafkaError.GROUP_AUTHORIZATION_FAILED
    with pytest.raises(KafkaReadError, match="find the offsets of topic 'orders' partition 0"):
        ranges(cluster, "committed", None)


def test_a_broker_that_cannot_find_a_time_is_told() -> None:
    cluster = FakeCluster({0: (0, 30)})
    cluster.found_error = KafkaError.NOT_LEADER_FOR_PARTITION
    with pytest.raises(KafkaReadError, match="find the offsets of topic 'orders' partition 0"):
        ranges(cluster, "earliest", TIME)


def test_a_start_that_has_been_deleted_is_refused_unless_it_is_to_be_skipped() -> None:
    cluster = cast(Consumer, FakeCluster({0: (10, 30)}))
    start = {("orders", 0): 7}
    with pytest.raises(OffsetsLost, match=r"partition 0 at offset 7: 3 off.* 10 to 30.*'earliest'"):
        list(offsets_to_read(cluster, CONFIG, "orders", start, "latest"))
    [left] = offsets_to_read(cluster, CONFIG, "orders", start, None, lost_are_skipped=True)
    assert left.start == 7, "who reads finds it, and counts what is lost"


@pytest.mark.parametrize("start", [31, -1])
def test_a_start_that_the_broker_does_not_have_is_refused(start: int) -> None:
    with pytest.raises(
        KafkaReadError, match=rf"partition 0 at offset {start}: .* 10 to 30; choose"
    ):
        ranges(FakeCluster({0: (10, 30)}), {("orders", 0): start}, "latest")


@pytest.mark.parametrize("where", ["start", "stop"])
def test_offsets_of_a_partition_that_does_not_exist_are_refused(where: str) -> None:
    given: dict[str, Any] = {"start": "earliest", "stop": None, where: {("orders", 3): 1}}
    with pytest.raises(KafkaReadError, match="no partition 3"):
        ranges(FakeCluster({0: (0, 9)}), given["start"], given["stop"])


def test_a_topic_that_may_not_be_read_has_another_remedy_than_one_that_is_not_there() -> None:
    for code, remedy in (
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "create the topic"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "allow this user"),
        (KafkaError.INVALID_REPLICATION_FACTOR, "broker's log"),
    ):
        with pytest.raises(KafkaReadError, match=remedy):
            ranges(FakeCluster({}, code), "earliest", None)


def test_a_broker_that_does_not_answer_is_waited_for_no_longer_than_told() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: it refuses
        config = KafkaConfig(f"127.0.0.1:{taken.getsockname()[1]}")
        with closing(open_consumer(config)) as consumer:
            found = offsets_to_read(consumer, config, "orders", "earliest", None, 0.3)
            with pytest.raises(KafkaReadError, match=r"127\.0\.0\.1:.*is the broker up"):
                list(found)


@pytest.mark.parametrize(
    "options",
    [{"security.protocol": "hush"}, {"hush": "hush"}, {"sasl.mechanisms": "hush", "debug": "hush"}],
)
def test_an_option_that_is_refused_is_told_without_its_value(options: dict[str, str]) -> None:
    with pytest.raises(KafkaReadError, match=r"KafkaConfig's options") as caught:
        open_consumer(KafkaConfig("127.0.0.1:9", options))
    assert "hush" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.fixture
def kafka(way: str) -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka({"orders": 1}) as kafka:
        yield kafka


def polled(reader: PartitionReader, count: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for _ in range(100):
        messages += reader.poll(1000).to_pylist()
        if len(messages) >= count:
            return messages
    raise AssertionError(f"{len(messages)} of {count} messages came")


def test_a_callback_travels_as_itself_or_as_its_place() -> None:
    for callback in (base64.b64encode, "base64:b64encode"):
        config = KafkaConfig(
            "127.0.0.1:9", {"oauth_cb": callback, "sasl.oauthbearer.config": "hush"}
        )
        copy = pickle.loads(pickle.dumps(config))
        assert copy == config
        assert copy.client()["oauth_cb"] is base64.b64encode
        assert "hush" not in repr(copy)


@pytest.mark.parametrize("place", ["nosuch.module:token", "base64:nosuch", "base64", "no place"])
def test_a_callback_that_can_not_be_imported_is_named_with_the_remedy(place: str) -> None:
    config = KafkaConfig("127.0.0.1:9", {"oauth_cb": place})
    with pytest.raises(ValueError, match=r"oauth_cb is .*give module:function"):
        config.client()


def test_an_offset_that_the_broker_has_forgotten_fails_the_read(kafka: EmbeddedKafka) -> None:
    config = KafkaConfig(kafka.bootstrap_servers)
    producer = Producer(config.client(message_max_bytes=4_000_000))
    for _ in range(8):
        producer.produce("orders", os.urandom(1_000_000), partition=0)
        assert producer.flush(10) == 0
    forgotten = kafka.forgotten("orders")
    assert forgotten > 0
    with closing(Readers().take(config, "orders", 0, forgotten - 1)) as reader:
        refusal = rf"'orders' partition 0 at offset {forgotten - 1}: .*'earliest'"
        with pytest.raises(KafkaReadError, match=refusal):
            polled(reader, 1)
    with closing(open_consumer(config)) as consumer:
        [left] = offsets_to_read(consumer, config, "orders", "earliest", "latest")
        assert (left.start, left.stop) == (forgotten, 8)
        with pytest.raises(KafkaReadError, match=f"at offset 0: .*the broker has {forgotten} to 8"):
            list(offsets_to_read(consumer, config, "orders", {("orders", 0): 0}, None))


def test_a_partition_is_read_on_from_its_new_leader(way: str) -> None:
    with EmbeddedKafka({"orders": 1}, brokers=3) as kafka:
        config = KafkaConfig(kafka.bootstrap_servers)
        producer, read = Producer(config.client()), list[bytes]()
        with closing(Readers().take(config, "orders", 0, 0)) as reader:
            for leader in (2, 3, 1):
                kafka.lead("orders", 0, leader)
                producer.produce("orders", b"led by %d" % leader, partition=0)
                assert producer.flush(60) == 0
                read += [message["value"] for message in polled(reader, 1)]
    assert read == [b"led by 2", b"led by 3", b"led by 1"]


def test_an_unknown_topic_is_told_with_a_remedy(kafka: EmbeddedKafka) -> None:
    config = KafkaConfig(kafka.bootstrap_servers)
    told = r"topic 'unknown' at .*create the topic"
    with closing(open_consumer(config)) as consumer, pytest.raises(KafkaReadError, match=told):
        list(offsets_to_read(consumer, config, "unknown", "earliest", None))
