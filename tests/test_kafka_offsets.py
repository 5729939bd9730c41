"""Laws of which offsets a splittable read owns."""

import pytest
from apache_beam.io.restriction_trackers import OffsetRange
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.kafka_offsets import UNBOUNDED, OffsetRestrictions, OffsetTracker, Partition

Step = tuple[str, float]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.integers(1, 12).map(float)),
        st.tuples(st.just("claim too far"), st.integers(0, 5).map(float)),
        st.tuples(st.just("split"), st.floats(0, 1)),
        st.tuples(st.just("checkpoint"), st.just(0.0)),
    ),
    max_size=30,
)


def offsets(held: OffsetRange) -> list[int]:
    return list(range(held.start, held.stop))


@given(start=st.integers(0, 2**40), size=st.integers(0, 60), steps=steps)
def test_each_offset_belongs_to_the_primary_or_to_one_residual(
    start: int, size: int, steps: list[Step]
) -> None:
    whole = OffsetRange(start, start + size)
    tracker, residuals, claimed = OffsetTracker(whole), [], start - 1
    for step, number in steps:
        held = tracker.current_restriction()
        if step == "claim":
            position = claimed + int(number)
            if tracker.try_claim(position):
                claimed = position
            else:
                assert position >= held.stop
        elif step == "claim too far":
            assert not tracker.try_claim(max(held.stop, claimed + 1) + int(number))
        elif parts := tracker.try_split(number):
            primary, residual = parts
            assert residual.start > claimed, "what is claimed is never given away"
            assert residual.size() > 0
            residuals.append(residual)
            assert tracker.current_restriction() == primary
        else:
            assert number or claimed == held.stop - 1, "a checkpoint gives up all that is left"
            assert tracker.current_restriction() == held
    owned = [tracker.current_restriction(), *residuals]
    assert sorted(offset for held in owned for offset in offsets(held)) == offsets(whole)


@given(st.integers(0, 100), st.integers(1, 100), st.data())
def test_only_a_range_claimed_to_its_last_offset_is_done(
    start: int, size: int, data: st.DataObject
) -> None:
    tracker = OffsetTracker(OffsetRange(start, start + size))
    position = data.draw(st.integers(start, start + size - 1))
    assert tracker.try_claim(position)
    if position < start + size - 1:
        with pytest.raises(ValueError, match="were not claimed"):
            tracker.check_done()
        assert tracker.try_split(0)
    tracker.check_done()


def test_a_range_of_which_nothing_was_read_is_not_done_and_an_empty_one_is() -> None:
    with pytest.raises(ValueError, match="were not claimed"):
        OffsetTracker(OffsetRange(5, 6)).check_done()
    OffsetTracker(OffsetRange(5, 5)).check_done()


@given(st.integers(0, 1000), st.floats(0, 1, exclude_min=True), st.sampled_from([9, UNBOUNDED]))
def test_a_partition_is_read_by_one_reader_in_its_order(
    start: int, fraction: float, size: int
) -> None:
    """Which events are late depends on those before them."""
    stop = min(start + size, UNBOUNDED)
    tracker = OffsetTracker(OffsetRange(start, stop))
    assert tracker.is_bounded() == (stop < UNBOUNDED)
    assert tracker.try_split(fraction) is None
    assert tracker.try_split(0) == (OffsetRange(start, start), OffsetRange(start, stop))
    tracker.check_done()


@given(st.integers(0, 50), st.integers(0, 50))
def test_a_failed_claim_changes_nothing(claimed: int, past: int) -> None:
    tracker = OffsetTracker(OffsetRange(0, 60))
    assert tracker.try_claim(claimed)
    assert not tracker.try_claim(60 + past)
    assert tracker.current_restriction() == OffsetRange(0, 60)
    assert tracker.current_progress().completed_work == claimed + 1
    assert tracker.try_claim(59)


def test_a_claim_never_goes_back() -> None:
    tracker = OffsetTracker(OffsetRange(0, 10))
    assert tracker.try_claim(4)
    for position in (4, 3):
        with pytest.raises(ValueError, match="claimed after 4"):
            tracker.try_claim(position)


@given(st.integers(0, 2**62), st.integers(0, 1000), st.data())
def test_progress_adds_up_to_the_range(start: int, size: int, data: st.DataObject) -> None:
    tracker = OffsetTracker(OffsetRange(start, start + size))
    if size:
        tracker.try_claim(data.draw(st.integers(start, start + size - 1)))
    progress = tracker.current_progress()
    assert progress.completed_work + progress.remaining_work == size


def test_a_drain_reads_what_is_bounded_to_its_end_and_leaves_what_is_not() -> None:
    provider, partition = OffsetRestrictions(), Partition("orders", 0, 3, 9)
    bounded = provider.initial_restriction(partition)
    assert bounded == OffsetRange(3, 9)
    assert provider.truncate(partition, bounded) == bounded
    assert provider.truncate(partition, OffsetRange(3, UNBOUNDED)) is None


def test_a_restriction_survives_its_coder() -> None:
    coder = OffsetRestrictions().restriction_coder()
    for held in (OffsetRange(0, 0), OffsetRange(7, 2**40), OffsetRange(7, UNBOUNDED)):
        assert coder.decode(coder.encode(held)) == held
