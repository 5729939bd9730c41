"""Laws of growth: every partition is given out once, whenever it comes."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.kafka_consumer import KafkaReadError
from velocity.io.kafka_offsets import UNBOUNDED, Partition
from velocity.io.kafka_partitions import (
    Known,
    KnownTracker,
    Listing,
    ListPartitions,
    WatchPartitions,
)
from velocity.io.watermark import ForwardWatermark


class Cluster:
    """Partitions that come and go, and a clock that goes on by a second at each look."""

    def __init__(self) -> None:
        self.partitions: set[tuple[str, int]] = set()
        self.answers = True
        self.unread: dict[str, str] = {}
        self.seconds = 1_767_225_600
        self.watch = WatchPartitions(self.list_new, 10, 30, self.now)

    def now(self) -> Timestamp:
        self.seconds += 1
        return Timestamp(self.seconds)

    def list_new(self, known: Known | None) -> Listing:
        if not self.answers:
            raise KafkaReadError("no broker")
        new = sorted(self.partitions.difference(known or ()))
        found = [Partition(topic, number, 0, UNBOUNDED) for topic, number in new]
        return Listing(found, self.unread)

    def look(
        self, known: Known | None, watermark: ForwardWatermark
    ) -> tuple[list[tuple[str, int]], Known | None]:
        """What a bundle gives out, and the restriction that is left."""
        guarded = ThreadsafeRestrictionTracker(KnownTracker((known,)))
        found = [each[:2] for each in self.watch.look(RestrictionTrackerView(guarded), watermark)]
        guarded.check_done()
        deferred = guarded.deferred_status()
        assert deferred is not None
        assert 9 < deferred[1].micros / 1_000_000 <= 10
        return found, deferred[0][0]


places = st.tuples(st.sampled_from(["orders", "claims"]), st.integers(0, 5))


@given(st.lists(st.tuples(st.sets(places), st.booleans(), st.booleans())))
def test_every_partition_is_given_out_once(
    steps: list[tuple[set[tuple[str, int]], bool, bool]],
) -> None:
    cluster, watermark = Cluster(), ForwardWatermark(MIN_TIMESTAMP)
    given_out, known = cluster.look(None, watermark)
    for added, answers, failed in steps:
        cluster.partitions |= added
        cluster.answers = answers
        found, left = cluster.look(known, watermark)
        if not failed:  # else the bundle is tried again from what was left before it
            given_out, known = given_out + found, left
    cluster.answers = True
    given_out += cluster.look(known, watermark)[0]
    assert sorted(given_out) == sorted(cluster.partitions)


def test_the_watermark_is_the_last_listing_less_the_disorder() -> None:
    cluster, watermark = Cluster(), ForwardWatermark(MIN_TIMESTAMP)
    _, known = cluster.look(None, watermark)
    assert watermark.current_watermark() == Timestamp(cluster.seconds - 30)
    cluster.answers = False
    cluster.look(known, watermark)
    assert watermark.current_watermark() == Timestamp(cluster.seconds - 31)


def test_a_first_listing_that_fails_fails_the_job() -> None:
    cluster = Cluster()
    cluster.answers = False
    with pytest.raises(KafkaReadError):
        cluster.look(None, ForwardWatermark(MIN_TIMESTAMP))


def test_a_topic_that_is_gone_is_told_once_and_hides_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster, watermark = Cluster(), ForwardWatermark(MIN_TIMESTAMP)
    _, known = cluster.look(None, watermark)
    cluster.unread = {"claims": "there is no topic 'claims'"}
    for number in range(3):
        cluster.partitions.add(("orders", number))
        found, known = cluster.look(known, watermark)
        assert found == [("orders", number)]
    assert caplog.text.count("there is no topic 'claims'") == 1
    assert watermark.current_watermark() == Timestamp(cluster.seconds - 30)


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_a_bounded_read_is_cut_into_pieces_that_make_up_the_whole(start: int, size: int) -> None:
    wanted = SimpleNamespace(first=lambda: [Partition("orders", 3, start, start + size, 10**9)])
    pieces = list(ListPartitions(cast(Any, wanted)).process(None))
    assert all((each.topic, each.partition, each.end) == ("orders", 3, 10**9) for each in pieces)
    assert all(0 < each.stop - each.start <= 1_000_000 for each in pieces)
    at = start
    for each in pieces:
        assert each.start == at
        at = each.stop
    assert at == start + size
