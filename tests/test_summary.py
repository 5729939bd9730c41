"""What a run tells of its calls when it has ended."""

import io
from collections.abc import Mapping

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from rich.console import Console

from velocity.io.metrics import counter, distribution
from velocity.runners.run import counters_of, summary


def text_of(counters: Mapping[str, int]) -> str:
    file = io.StringIO()
    Console(file=file, width=100).print(summary(counters))
    return file.getvalue()


def test_distributions_of_all_steps_are_summed_with_the_greatest_of_all() -> None:
    def measure(sample: int) -> None:
        distribution("rest_call_ms").update(sample)
        counter("rest_calls").inc()

    with beam.Pipeline(FnApiRunner()) as pipeline:
        _ = pipeline | "a" >> beam.Create([10, 20]) | "one" >> beam.Map(measure)
        _ = pipeline | "b" >> beam.Create([60]) | "two" >> beam.Map(measure)
    found = counters_of(pipeline.result)
    assert found == {
        "rest_calls": 3,
        "rest_call_ms_count": 3,
        "rest_call_ms_sum": 90,
        "rest_call_ms_max": 60,
    }
    assert "ms a REST call took: mean, most" in text_of(found)
    assert "30.0, 60" in text_of(found)


def test_a_hit_ratio_is_of_all_keys_that_were_looked_up() -> None:
    assert "75.0%" in text_of({"cache_hits": 3, "cache_misses": 1})
    assert "ratio" not in text_of({"cache_hits": 0, "cache_misses": 0})
