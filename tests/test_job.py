"""Laws of the job model."""

import pickle
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from velocity.pipelines.job import (
    DeadLetterSpec,
    ElasticsearchSink,
    EmitSpec,
    EnrichmentSpec,
    FieldSpec,
    Job,
    KafkaSource,
    Sinks,
    Source,
    WindowSpec,
    format_duration,
    parse_duration,
)

KAFKA = {"bootstrap_servers": "127.0.0.1:9092", "topics": ["t"]}
ENRICHMENT = {"name": "e", "get": "http://h/{keys}", "key": "k", "id": "id", "add": {"a": "a"}}
METRIC = {"name": "m", "window": {"fixed": "1m"}, "values": {"n": "count()"}}
JOB: dict[str, Any] = {
    "job": "j",
    "source": {"kafka": KAFKA, "event_time": "at"},
    "fields": {"at": "timestamp", "k": "string"},
    "enrich": [ENRICHMENT],
    "metrics": [METRIC],
    "sinks": {"sqlite": {"path": "documents.db"}},
    "dead_letters": {"parquet": "dead"},
}


@given(st.integers(-(10**14), 10**14))
def test_a_duration_reads_as_it_was_written(millis: int) -> None:
    duration = timedelta(milliseconds=millis)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize("text", ["", "10", "1.5s", "10 s", "s", "10sec", 10, None, True])
def test_what_has_no_unit_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="10s, 1h30m"):
        parse_duration(text)


def test_a_duration_beyond_all_bounds_is_an_error_like_any_other() -> None:
    with pytest.raises(ValidationError, match="million days"):
        EmitSpec.model_validate({"lateness": "9999999999d"})


@pytest.mark.parametrize("key", ["disorder", "idle_after", "max_future"])
def test_only_an_offset_may_be_negative(key: str) -> None:
    with pytest.raises(ValidationError, match="0s or more"):
        Source.model_validate({"kafka": KAFKA, "event_time": "at", key: "-1s"})
    window = WindowSpec.model_validate({"fixed": "1d", "offset": "-7h"})
    assert window.offset == timedelta(hours=-7)


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"fixed": "1m", "session": "1m"},
        {"sliding": "1m"},
        {"every": "1m", "fixed": "1m"},
        {"session": "1m", "offset": "1s"},
        {"sliding": "1m", "every": "61s"},
    ],
    ids=str,
)
def test_a_window_is_of_one_kind_and_whole(window: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        WindowSpec.model_validate(window)


def test_a_string_stands_for_the_key_that_matters() -> None:
    assert FieldSpec.model_validate("double") == FieldSpec(type="double", required=False)


def test_null_without_quotes_is_the_policy_null() -> None:
    spec = EnrichmentSpec.model_validate(ENRICHMENT | {"on_missing": None, "on_error": None})
    assert (spec.on_missing, spec.on_error) == ("null", "null")


def test_a_start_without_an_offset_is_refused() -> None:
    for start in ("2026-01-05T00:00:00", "2026-01-05"):
        with pytest.raises(ValidationError, match="timezone"):
            KafkaSource.model_validate(KAFKA | {"start": start})
    start = "2026-01-05T07:00:00+07:00"
    read = KafkaSource.model_validate(KAFKA | {"start": start}).start
    assert read == datetime.fromisoformat(start)


@pytest.mark.parametrize(
    "identity",
    [
        {"username": "u"},
        {"password": "p"},
        {"api_key": "k", "username": "u", "password": "p"},
    ],
    ids=str,
)
def test_half_an_identity_is_never_left_out_silently(identity: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        ElasticsearchSink.model_validate({"url": "http://h", "index": "i"} | identity)


@pytest.mark.parametrize("given", [{}, {"kafka": "t", "parquet": "p"}], ids=str)
def test_dead_letters_have_one_place(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        DeadLetterSpec.model_validate(given)


def test_documents_have_a_place() -> None:
    with pytest.raises(ValidationError, match="elasticsearch or sqlite"):
        Sinks.model_validate({})


@pytest.mark.parametrize(("key", "spec"), [("metrics", METRIC), ("enrich", ENRICHMENT)])
def test_a_name_given_twice_is_an_error_at_the_second(key: str, spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate(JOB | {key: [spec, spec | {"name": "other"}, spec]})
    [error] = caught.value.errors()
    assert error["ctx"]["place"] == (key, 2, "name")


@pytest.mark.parametrize("key", ["job", "source", "fields", "metrics", "sinks", "dead_letters"])
def test_nothing_that_matters_has_a_default(key: str) -> None:
    Job.model_validate(JOB)
    with pytest.raises(ValidationError):
        Job.model_validate({k: v for k, v in JOB.items() if k != key})


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Job.model_validate(JOB | {"metric": []})


def test_a_job_survives_json_and_pickling() -> None:
    job = Job.model_validate(JOB)
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert pickle.loads(pickle.dumps(job)) == job
