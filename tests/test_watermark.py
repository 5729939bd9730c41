"""Laws of a source's watermark."""

import pickle

from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.watermark import ForwardWatermarkProvider

seconds = st.integers(-(10**6), 10**10)


@given(st.lists(seconds))
def test_it_starts_at_the_beginning_of_time_and_never_goes_back(times: list[int]) -> None:
    provider = ForwardWatermarkProvider()
    watermark = provider.create_watermark_estimator(provider.initial_estimator_state(None, None))
    assert watermark.current_watermark() == MIN_TIMESTAMP
    seen = [watermark.current_watermark()]
    for time in times:
        watermark.advance(Timestamp(time))
        seen.append(watermark.current_watermark())
    assert seen == sorted(seen)
    assert seen[-1] == max([MIN_TIMESTAMP, *map(Timestamp, times)])


@given(seconds, seconds)
def test_a_residual_goes_on_where_the_watermark_was(before: int, after: int) -> None:
    provider = ForwardWatermarkProvider()
    first = provider.create_watermark_estimator(Timestamp(before))
    state = pickle.loads(pickle.dumps(first.get_estimator_state()))
    residual = provider.create_watermark_estimator(state)
    residual.advance(Timestamp(after))
    assert residual.current_watermark() == Timestamp(max(before, after))
    assert first.current_watermark() == Timestamp(before), "each restriction has its own"


def test_the_time_of_an_element_put_out_does_not_move_it() -> None:
    watermark = ForwardWatermarkProvider().create_watermark_estimator(Timestamp(10))
    watermark.observe_timestamp(Timestamp(99))
    assert watermark.current_watermark() == Timestamp(10)
