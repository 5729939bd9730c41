"""Laws of how partitions are spread over a runner's workers."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from velocity.io.kafka_offsets import Partition
from velocity.io.kafka_spread import group_of, spread
from velocity.io.key_groups import GROUPS
from velocity.runners.flink import MAX_PARALLELISM


@given(
    st.text("abc.-", min_size=1, max_size=40),
    st.integers(1, 40),
    st.integers(0, 300),
    st.integers(1, 16),
)
def test_each_subtask_reads_about_as_many_partitions_as_the_others(
    topic: str, number: int, before: int, parallelism: int
) -> None:
    given_out = spread((Partition(topic, n, 0, 10) for n in range(number)), before)
    read = Counter(group_of(partition) * parallelism // GROUPS for partition in given_out)
    fair = number / parallelism
    assert all(fair - 2.5 < read[subtask] < fair + 2.5 for subtask in range(parallelism))


@given(st.integers(0, 6), st.integers(0, 3), st.integers(0, 300))
def test_where_partitions_can_be_shared_evenly_they_are(
    power: int, times: int, before: int
) -> None:
    parallelism = 2**power
    partitions = (Partition("orders", n, 0, 10) for n in range(parallelism * times))
    read = Counter(
        group_of(partition) * parallelism // GROUPS for partition in spread(partitions, before)
    )
    # What was given out before ends within a round, so that each subtask may be one ahead.
    assert all(abs(read[subtask] - times) <= 1 for subtask in range(parallelism))


def test_those_who_spread_know_how_many_groups_there_are() -> None:
    assert GROUPS == MAX_PARALLELISM


def test_nothing_but_the_number_changes() -> None:
    partition = Partition("orders", 3, 17, 99, 98)
    [given_out] = spread([partition], 5)
    assert given_out._replace(spread=0) == partition
