"""Laws of commits: a group is told of nothing that a failure could have read again."""

from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.kafka_commits import Commits, Group
from velocity.io.kafka_config import KafkaConfig
from velocity.runners.embedded import EmbeddedKafka

GROUP = Group(KafkaConfig("127.0.0.1:9"), "velocity")


class Runner:
    """What Flink does with one partition: bundles, checkpoints that take a while, failures."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.seconds = 0.0
        self.commits = Commits(self._commit, lambda: self.seconds)
        self.position = self.saved = self.durable = 0
        self.outstanding: list[Callable[[], None]] = []

    def _commit(self, group: Group, offset: TopicPartition) -> None:
        assert offset.offset <= self.durable
        self.told.append(offset.offset)

    def bundle(self, messages: int) -> None:
        start, self.position = self.position, self.position + messages
        self.seconds += 2
        if callback := self.commits.bundle_ended(GROUP, "orders", 0, start, self.position):
            self.outstanding.append(callback)

    def barrier(self) -> None:
        self.saved = self.position

    def complete(self) -> None:
        """Confirms all that has ended, also since the barrier."""
        self.durable = self.saved
        callbacks, self.outstanding = self.outstanding, []
        for callback in callbacks:
            callback()

    def fail(self) -> None:
        self.position = self.saved = self.durable
        self.outstanding = []


actions = st.one_of(
    st.integers(0, 9).map(lambda messages: ("bundle", messages)),
    st.tuples(st.sampled_from(["checkpoint", "fail"]), st.integers(0, 3)),
)


@given(st.lists(actions))
def test_a_group_is_never_told_more_than_a_checkpoint_holds(done: list[tuple[str, int]]) -> None:
    runner = Runner()
    for action, number in done:
        if action == "bundle":
            runner.bundle(number)
        elif action == "checkpoint":
            runner.bundle(0)  # bundles end before a barrier, and a source always polls
            runner.barrier()
            for _ in range(number):
                runner.bundle(1)
            runner.complete()
        else:
            runner.fail()


def test_what_is_read_is_told_in_the_end() -> None:
    runner = Runner()
    runner.bundle(17)
    for _ in range(4):
        runner.bundle(0)
        runner.barrier()
        runner.complete()
    assert runner.told[-1] == 17
    told = len(runner.told)
    runner.bundle(0)
    assert (len(runner.told), runner.outstanding) == (told, [])


def test_a_partition_waits_for_one_confirmation_at_a_time_and_not_for_ever() -> None:
    times = iter([0.0, 2.0, 599.0, 600.0])
    commits = Commits(lambda group, offset: None, lambda: next(times))
    asked = [commits.bundle_ended(GROUP, "orders", 0, n, n + 1) is not None for n in range(4)]
    assert asked == [True, False, False, True]


@pytest.mark.embedded
def test_a_broker_keeps_what_the_group_was_told() -> None:
    with EmbeddedKafka({"orders": 2}) as kafka:
        group = Group(KafkaConfig(kafka.bootstrap_servers), "velocity")
        commits = Commits()
        for partition in (0, 1):
            for start in (0, 17):
                confirmed = commits.bundle_ended(group, "orders", partition, start, start + 17)
                assert confirmed is not None
                confirmed()
        commits.close()  # sends what is on its way
        consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "velocity"})
        try:
            asked = [TopicPartition("orders", partition) for partition in (0, 1)]
            assert [found.offset for found in consumer.committed(asked, 10)] == [17, 17]
        finally:
            consumer.close()
