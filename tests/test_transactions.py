"""Laws of following transactions in a pipeline: alerts once, their end, and nothing lost."""

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from velocity.io.records import (
    MESSAGE,
    ORIGIN,
    TIMESTAMP,
    Document,
    RecordBatchCoder,
    WithDeadLetters,
    messages,
    origins,
    with_watermarks,
)
from velocity.pipelines.follow import record, stages_of
from velocity.pipelines.job import TransactionSpec
from velocity.pipelines.recompute_transactions import facts
from velocity.transforms.metric import Metric
from velocity.transforms.metrics import WindowedMetrics
from velocity.transforms.transactions import FollowTransactions, TransactionError
from velocity.transforms.windows import Fixed, Sliding

NOW = datetime(2026, 1, 5, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        pa.field("trx", pa.string()),
        pa.field("event", pa.string()),
        pa.field("city", pa.string()),
        pa.field("at", TIMESTAMP),
        pa.field("amount", pa.float64()),
        pa.field(MESSAGE, ORIGIN),
    ]
)
SPEC = TransactionSpec.model_validate(
    {
        "key": "trx",
        "event": "event",
        "by": ["city"],
        "lateness": "20s",
        "ttl": "10m",
        "stages": {
            "order": {"events": ["created"], "next": ["delivery"], "sla": "1m"},
            "delivery": {"events": ["sent"], "next": ["done"], "sla": "2m"},
            "done": {"events": ["delivered"], "ttl": "1m"},
        },
    }
)

Event = tuple[str | None, str, float]
"""Transaction, event, seconds."""


def batch(*events: Event, watermark: int | None = None) -> TimestampedValue:
    """Events that came while the watermark of their partition stood there, in milliseconds."""
    keys, names, seconds = zip(*events, strict=True)
    values = [json.dumps(event).encode() for event in events]
    rows = pa.RecordBatch.from_arrays(
        [
            pa.array(keys, pa.string()),
            pa.array(names, pa.string()),
            pa.array(["Solo"] * len(events)),
            pa.array([round(s * 1000) for s in seconds], TIMESTAMP),
            pa.nulls(len(events), pa.float64()),
            origins(messages(values, topic="events")),
        ],
        schema=SCHEMA,
    )
    rows = with_watermarks(rows, pa.array([watermark] * len(events), TIMESTAMP))
    return TimestampedValue(rows, min(seconds))


def follow(**changes: Any) -> FollowTransactions:
    spec = SPEC.model_copy(update=changes)
    return FollowTransactions(
        stages_of(spec),
        key=spec.key,
        event=spec.event,
        by=spec.by,
        lateness=spec.lateness,
        schema=SCHEMA,
        event_time="at",
        job="job",
        clock=lambda: NOW,
    )


def stream() -> test_stream.TestStream:
    return test_stream.TestStream(coder=RecordBatchCoder())


def streamed(source: test_stream.TestStream, step: FollowTransactions) -> Any:
    options = PipelineOptions(["--runner=BundleBasedDirectRunner"], streaming=True)
    pipeline = beam.Pipeline(options=options)
    return pipeline, pipeline | source | step


def told(rows: pa.RecordBatch) -> list[tuple[Any, ...]]:
    columns = ("transaction", "what", "stage", "next", "since", "at", "seconds", "city")
    return [
        tuple(round(row[c].timestamp() * 1000) if c in ("since", "at") else row[c] for c in columns)
        for row in rows.to_pylist()
    ]


def alert(document: Document) -> tuple[Any, ...]:
    return document.id, document.values["status"], document.version


def test_a_stuck_transaction_is_told_once_and_once_more_when_it_moves_on() -> None:
    times = (
        stream()
        .add_elements([batch(("a", "created", 0), ("b", "created", 0))])
        .advance_watermark_to(79)  # the SLA of a minute has passed, the lateness has not
        .add_elements([batch(("b", "sent", 60))])
        .advance_watermark_to(81)
        .add_elements([batch(("a", "created", 0))])  # a duplicate
        .advance_watermark_to(200)
        .add_elements([batch(("a", "sent", 190))])
        .advance_watermark_to(230)
        .add_elements([batch(("a", "delivered", 215), ("b", "delivered", 180))])
        .advance_watermark_to_infinity()
    )
    pipeline, (_, alerts) = streamed(times, follow())
    with pipeline:
        assert_that(
            alerts | beam.Map(alert),
            equal_to(
                [
                    ('job/alerts/0/["a","order"]', "stuck", 3),
                    ('job/alerts/0/["a","order"]', "resolved", 5),
                    # what came a minute too late is told as if it hadn't, then put right
                    ('job/alerts/60000/["b","delivery"]', "stuck", 3),
                    ('job/alerts/60000/["b","delivery"]', "resolved", 5),
                ]
            ),
        )


def test_what_is_dropped_ends_its_alert() -> None:
    times = stream().add_elements([batch(("a", "created", 5))]).advance_watermark_to(1000)
    pipeline, (facts, alerts) = streamed(times.advance_watermark_to_infinity(), follow())
    with pipeline:
        ends = [('job/alerts/5000/["a","order"]', status, v) for status, v in
                (("stuck", 3), ("dropped", 5))]  # fmt: skip
        assert_that(alerts | beam.Map(alert), equal_to(ends))
        rows = [
            ("a", "entered", "order", None, 5000, 5000, 0.0, "Solo"),
            ("a", "stuck", "order", None, 5000, 65_000, 60.0, "Solo"),
            ("a", "dropped", "order", None, 5000, 605_000, 600.0, "Solo"),
        ]
        assert_that(facts.main | beam.FlatMap(told), equal_to(rows), label="facts")


def events(n: int) -> list[Event]:
    generator = random.Random(7)
    return [
        (generator.choice("abcdefgh"), generator.choice(["created", "sent", "delivered", "seen"]),
         generator.randrange(0, 900_000) / 1000)
        for _ in range(n)
    ]  # fmt: skip


def expected(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    rows = [{"trx": k, "event": e, "city": "Solo", "at": round(s * 1000)} for k, e, s in events]
    names = ("transaction", "what", "stage", "next", "since", "at", "seconds", "city")
    return sorted((tuple(f[n] for n in names) for f in facts(SPEC, "at", rows)), key=repr)


def test_a_stream_in_another_order_within_the_lateness_tells_what_a_loop_tells() -> None:
    generator = random.Random(1)
    delayed = sorted((e[2] + generator.randrange(20_000) / 1000, e) for e in events(40))
    source = stream()
    for clock, event in delayed:
        watermark = Timestamp(micros=round(clock * 1000) * 1000)
        source = source.add_elements([batch(event)]).advance_watermark_to(watermark)
    source = source.advance_watermark_to(2_000).advance_watermark_to_infinity()
    pipeline, (found, _) = streamed(source, follow())
    with pipeline:
        assert_that(found.main | beam.FlatMap(told), equal_to(expected(events(40))))


MINUTES = Metric("minutes", {"n": "count()"}, Fixed(timedelta(minutes=1)), by=["what"],
                 lateness=timedelta(seconds=30))  # fmt: skip
SLIDING = Metric(
    "sliding", {"n": "count()"}, Sliding(timedelta(minutes=3), timedelta(minutes=1)),
    where="what <> 'entered'", lateness=timedelta(minutes=2),
)  # fmt: skip


def test_however_late_each_fact_is_counted_or_a_dead_letter_with_its_transaction_and_metrics(
    tmp_path: Path,
) -> None:
    generator = random.Random(0)
    behind = [0, 0, 10_000, 25_000, 70_000, 200_000]  # beyond the lateness, and that of metrics too
    delayed = sorted(
        (
            seconds / 3 + generator.randrange(generator.choice(behind) + 1) / 1000,
            (k, e, seconds / 3),
        )
        for k, e, seconds in events(40)
    )
    source, clock = stream(), 0
    # In small steps: unlike others, the test's runner lets no timer hold back the watermark.
    for seconds, event in [*delayed, (800, None)]:
        while clock < (now := round(seconds * 1000)):
            clock = min(clock + 9_000, now)
            source = source.advance_watermark_to(Timestamp(micros=clock * 1000))
        if event:
            source = source.add_elements([batch(event, watermark=clock)])
    source = source.advance_watermark_to_infinity()
    step = follow(ttl=timedelta(minutes=2))
    pipeline, (facts, _) = streamed(source, step)
    metrics = WindowedMetrics([MINUTES, SLIDING], schema=step.schema, event_time="at")

    def keep(name: str) -> Any:
        return lambda found: (tmp_path / name).write_text(json.dumps(found))

    with pipeline:
        documents, letters = facts | metrics
        assert_that(facts.main | beam.FlatMap(told), keep("facts"), label="facts")
        shown = documents | beam.Map(lambda d: (d.metric, d.id, d.version, d.values["n"]))
        assert_that(shown, keep("documents"), label="documents")
        dead = letters | beam.FlatMap(lambda batch: [
            (row["stage"], row["cause"], row["error"], row["key"].decode(), json.loads(row["value"]))
            for row in batch.to_pylist()])  # fmt: skip
        assert_that(dead, keep("dead"), label="dead")
    found = {
        name: json.loads((tmp_path / name).read_text()) for name in ("facts", "documents", "dead")
    }
    latest = {
        id_: (metric, n) for metric, id_, _, n in sorted(found["documents"], key=itemgetter(2))
    }
    counted = {"minutes": 0, "sliding": 0}
    for metric, n in latest.values():
        counted[metric] += n
    for stage, cause, error, key, value in found["dead"]:
        assert (stage, cause) == ("metrics", "late")
        assert value["transaction"] == key
        told_ = [str(value[name]) for name in ("transaction", "what", "stage")]
        assert told_ in [[str(part) for part in fact[:3]] for fact in found["facts"]]
        named = error.removeprefix("too late for ").split("; the")[0]
        counted["minutes"] += "minutes (" in named
        counted["sliding"] += 3 * ("sliding (" in named)  # in each of its windows, or in none
    assert found["dead"]
    all_ = found["facts"]
    assert counted["minutes"] == len(all_)
    assert counted["sliding"] == 3 * sum(what != "entered" for _, what, *_ in all_)


def test_bounded_input_tells_the_same_however_it_is_cut(tmp_path: Path) -> None:
    def run(seed: int, cuts: int, *options: str) -> list[Any]:
        shuffled = events(150)
        random.Random(seed).shuffle(shuffled)
        file = tmp_path / f"{seed}"

        def keep(rows: list[Any]) -> None:
            file.write_text(json.dumps(sorted(rows, key=repr)))

        with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(options)) as pipeline:
            batches = [batch(*shuffled[i::cuts]) for i in range(cuts)]
            rows = (
                pipeline
                | beam.Create(batches, reshuffle=False)
                | beam.Map(lambda b: b).with_output_types(pa.RecordBatch)
            )
            found, _ = rows | follow()
            assert_that(found.main | beam.FlatMap(told), keep)
        return [tuple(row) for row in json.loads(file.read_text())]

    assert run(1, 1) == expected(events(150))
    assert run(2, 9, "--direct_runner_bundle_repeat=2") == expected(events(150))


def test_an_event_of_no_transaction_is_a_dead_letter_and_joins_those_before() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        create = beam.Create([batch((None, "sent", 1), (None, "seen", 2), ("a", "sent", 3))])
        rows = pipeline | create | beam.Map(lambda b: b).with_output_types(pa.RecordBatch)
        before = pipeline | "Before" >> beam.Create([messages([b"old"])])
        facts, _ = WithDeadLetters(rows, before) | follow()
        letters = facts.dead_letters | beam.FlatMap(
            lambda b: [(row.get("stage"), row.get("cause"), row["value"]) for row in b.to_pylist()]
        )
        lost = ("transactions", "missing_field", b'[null, "sent", 1]')
        assert_that(letters, equal_to([(None, None, b"old"), lost]))


def test_an_alerts_message_names_it_the_same_in_each_run() -> None:
    where = {"transaction": "trx-1", "stage": "order", "city": None}
    values = {"status": "stuck", "next": None, "ended_at": None, "seconds": 60.0}
    document = Document("j", "alerts", 0, 60_000, where, values, 1, "on_time", "id")
    [message] = record(document)
    assert json.loads(message.value or b"") == {
        "id": "id", "job": "j", "transaction": "trx-1", "stage": "order", "city": None,
        "since": "1970-01-01T00:00:00.000Z", "due": "1970-01-01T00:01:00.000Z",
        "status": "stuck", "next": None, "ended_at": None, "seconds": 60.0,
    }  # fmt: skip
    assert message.headers == (("event_id", b"id#3"),)


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({"key": "nosuch"}, ("key",), "unknown column nosuch"),
        ({"event": "at"}, ("event",), "text is wanted"),
        ({"by": ["city", "amount"]}, ("by", 1), "amount makes no key"),
        ({"by": ["city", "city"]}, ("by", 1), "a column city already"),
    ],
)
def test_what_can_not_be_followed_is_refused_by_its_place(
    changes: dict[str, Any], place: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(TransactionError, match=words) as refused:
        follow(**changes)
    assert refused.value.place == place
