"""The recomputation against documents worked out by hand, and that it can tell right from wrong."""

from datetime import timedelta
from typing import Any

import pytest

from velocity.pipelines.job import Job
from velocity.pipelines.recompute import Expected, Message, differences, recompute

MINUTE = 60_000
T0 = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def job(**metric: Any) -> Job:
    return Job.model_validate(
        {
            "job": "j",
            "source": {
                "kafka": {"bootstrap_servers": "x", "topics": ["t"]},
                "event_time": "at",
                "max_future": "10m",
            },
            "fields": {"at": "timestamp_ms", "k": "string", "v": "double", "p": "string"},
            "enrich": [
                {"name": "p", "get": "http://x/{keys}", "key": "p", "id": "id", "add": {"c": "a.c"}}
            ],
            "metrics": [{"name": "m", "values": {"n": "count()"}} | metric],
            "sinks": {"sqlite": {"path": "x"}},
            "dead_letters": {"parquet": "x"},
        }
    )


def message(
    second: float, key: str = "a", value: float | None = 1.0, provider: str = "p1"
) -> Message:
    at = T0 + int(second * 1000)
    number = "null" if value is None else repr(value)
    text = f'{{"at": {at}, "k": "{key}", "v": {number}, "p": "{provider}"}}'
    return Message(text.encode(), at)


def services() -> dict[str, Any]:
    return {"p": {"p1": {"id": "p1", "a": {"c": "Solo"}}}.get}


def counted(job: Job, *messages: Message) -> dict[tuple[int, int], int]:
    documents = recompute(job, messages, services()).items()
    return {(int(id_.split("/")[2]) - T0, seconds(d.window_end)): d.events for id_, d in documents}


def seconds(time: str) -> int:
    hours, minutes, rest = time[11:-1].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + int(float(rest))


def test_fixed_windows_hold_their_start_and_not_their_end() -> None:
    fixed = job(window={"fixed": "1m"})
    assert counted(fixed, message(0), message(59.999), message(60)) == {
        (0, 60): 2,
        (60_000, 120): 1,
    }


def test_an_event_counts_in_each_sliding_window_that_holds_it() -> None:
    sliding = job(window={"sliding": "2m", "every": "1m"})
    assert counted(sliding, message(61)) == {(0, 120): 1, (60_000, 180): 1}


def test_a_gap_ends_a_session_and_less_than_a_gap_does_not() -> None:
    session = job(window={"session": "10s"})
    messages = message(9.999), message(0), message(19.999)
    # by the slots in which they begin
    assert counted(session, *messages) == {(0, 19): 2, (10_000, 29): 1}
    starts = [d.window_start[-8:] for d in recompute(session, messages, services()).values()]
    assert sorted(starts) == [":00.000Z", ":19.999Z"]


def test_values_are_worked_out_over_all_events_at_once() -> None:
    values = {
        "sum": "sum(v)", "mean": "mean(v)", "least": "min(v)", "last": 'max("at")',
        "keys": "distinct(k)", "p50": "percentile(v, 50)", "given": "count(v)",
        "variance": "variance(v * 10)", "first": "first(k)", "latest": "last(k)",
        "top": "top(k, 1)", "histogram": "histogram(v, [0.2])", "share": "ratio(sum(v), count())",
    }  # fmt: skip
    metric = job(window={"fixed": "1m"}, values=values, by=["c"], where="v IS NULL OR v > 0")
    messages = [
        message(1, "a", 0.1),
        message(2, "b", 0.2),
        message(3, "a", None),
        message(4, "c", -1),
    ]
    [document] = recompute(metric, messages, services()).values()
    assert document.dimensions == {"c": "Solo"}
    assert {name: value.value for name, value in document.values.items()} == {
        "sum": 0.30000000000000004, "mean": 0.15000000000000002, "least": 0.1,
        "last": "2026-01-01T00:00:03.000Z", "keys": 2, "p50": 0.1, "given": 2,
        "variance": 0.5, "first": "a", "latest": "a", "top": [{"value": "a", "count": 2}],
        "histogram": {"bounds": [0.2], "counts": [1, 1]}, "share": 0.10000000000000002,
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [b"", b"null", b"[]", b'{"at": "x"}', b'{"at": null}', b'{"at": 1} {"at": 1}', b"\xff",
     b'{"at": 1, "v": "1"}', b'{"at": %d}' % (T0 + 11 * MINUTE)],
)  # fmt: skip
def test_what_must_be_a_dead_letter_counts_nowhere(value: bytes) -> None:
    assert recompute(job(window={"fixed": "1m"}), [Message(value, T0)], services()) == {}


def found(job: Job, *messages: Message) -> dict[str, dict[str, Any]]:
    """Documents as a store that is right would hold them."""
    return {
        id_: {
            "metric": d.metric, "window_start": d.window_start, "window_end": d.window_end,
            "dimensions": dict(d.dimensions), "events": d.events,
            "values": {name: value.value for name, value in d.values.items()},
        }
        for id_, d in recompute(job, messages, services()).items()
    }  # fmt: skip


def test_differences_name_what_is_missing_too_much_or_wrong() -> None:
    fixed = job(window={"fixed": "1m"}, by=["k"], values={"n": "count()", "s": "sum(v)"})
    messages = [message(1, "a"), message(2, "b"), message(61, "a")]
    expected = recompute(fixed, messages, services())
    right = found(fixed, *messages)
    assert list(differences(expected, right)) == []

    wrong = {
        id_: document | {"values": dict(document["values"])} for id_, document in right.items()
    }
    ids = sorted(wrong)
    del wrong[ids[0]]
    wrong[ids[1]]["values"]["s"] = 1.0000000000000002
    wrong[ids[2]]["events"] = 7
    wrong["j/m/0/[]"] = right[ids[0]]
    lines = list(differences(expected, wrong))
    assert [line.rsplit(": ", 1)[1].split(" ")[0] for line in lines] == [
        "missing",
        "not",
        "s",
        "events",
    ]


@pytest.mark.parametrize(
    ("expected", "found", "admitted"),
    [
        (Expected(3), 3, True),
        (Expected(3), 3.0, False),
        (Expected(3.0), 3.0000000000000004, False),
        (Expected(None), None, True),
        (Expected(None, 1.0), 0.0, False),
        (Expected(100.0, 0.5), 100.5, True),
        (Expected(100.0, 0.5), 100.51, False),
        (Expected(100.0, 0.5), None, False),
    ],
)
def test_a_value_is_admitted_within_its_tolerance_only(
    expected: Expected, found: Any, admitted: bool
) -> None:
    assert expected.admits(found) is admitted


def test_the_window_of_a_job_may_be_offset() -> None:
    jakarta = job(window={"fixed": "1d", "offset": "-7h"})
    assert jakarta.metrics[0].window.offset == -timedelta(hours=7)
    assert counted(jakarta, message(0)) == {(-7 * 60 * MINUTE, 17 * 3600): 1}
