"""Laws of events that a job publishes: the topics, keys and columns, and that nothing is read again."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition
from pydantic import ValidationError
from rich.console import Console

from velocity.io.records import MESSAGE, messages, origins
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.domains import COMMON, DOMAINS
from velocity.pipelines.enriched import reading_enriched
from velocity.pipelines.graph import Graph, JobError
from velocity.pipelines.job import DeadLetterSpec, DeduplicateSpec, Job, KafkaSink
from velocity.pipelines.jobfile import check, load, parse, read
from velocity.pipelines.plan import plan
from velocity.pipelines.publish import EventRecords, PublishError, event_records
from velocity.pipelines.recompute import differences
from velocity.pipelines.simulator import Kind, Scenario, simulate
from velocity.runners.demo import expected
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.options import options_for
from velocity.runners.produce import produce
from velocity.runners.run import redirect, run

FOLDER = Path(__file__).parent.parent / "pipelines"
ENRICHMENT = FOLDER / "enrichment.yaml"
SCHEMA = pa.schema([("id", pa.string()), ("city", pa.string()), ("n", pa.int64())])

METRICS = "metrics: [{name: m, window: {fixed: 1m}, values: {n: count()}}]"
JOB = """\
job: j
source: {kafka: {bootstrap_servers: "127.0.0.1:1", topics: [a, b]}, event_time: at}
fields: {at: timestamp, city: string}
sinks: {kafka: {topic: "enriched.{topic}"}}
dead_letters: {parquet: dead}
"""


def rows(**columns: list[Any]) -> pa.RecordBatch:
    found = pa.RecordBatch.from_pydict(columns)
    n = found.num_rows
    origin = origins(messages([b"{}"] * n, topic="orders", partition=5))
    return pa.RecordBatch.from_arrays(
        [*found.columns, origin], names=[*found.schema.names, MESSAGE]
    )


def test_an_event_keeps_its_key_partition_and_time_unless_a_key_is_named() -> None:
    batch = rows(id=["a"], city=["Solo"])
    [kept] = EventRecords("enriched").records(batch)
    assert (kept.partition, kept.key, kept.timestamp) == (5, None, None)
    [keyed] = EventRecords("enriched", key="city").records(batch)
    assert (keyed.partition, keyed.key) == (None, b"Solo")


def test_a_topic_follows_the_table_and_else_the_template() -> None:
    batch = rows(id=["a", "b"], city=["Solo", None])
    records = EventRecords("{topic}.{city}", {"orders": "table"})
    assert [r.topic for r in records.records(batch)] == ["table", "table"]
    assert [r.topic for r in EventRecords("{topic}.{city}").records(batch)] == ["orders.Solo", ""]
    assert [r.topic for r in EventRecords(None, {"other": "t"}).records(batch)] == ["", ""]


def test_a_column_without_a_value_is_left_out() -> None:
    values = [r.value for r in EventRecords("t").records(rows(id=["a", None], n=[None, 2]))]
    assert values == [b'{"id":"a"}', b'{"n":2}']


@pytest.mark.parametrize(
    ("sink", "read", "place"),
    [
        ({"topic": "t", "key": "nosuch"}, ["a"], ("key",)),
        ({"topic": "t", "event_id": "nosuch"}, ["a"], ("event_id",)),
        ({"topic": "t", "headers": ["id", "nosuch"]}, ["a"], ("headers", 1)),
        ({"topic": "t.{nosuch}"}, ["a"], ("topic",)),
        ({"topic": "{topic}"}, ["a"], ("topic",)),
        ({"topic": "b"}, ["a", "b"], ("topic",)),
        ({"topics": {"a": "x.a"}}, ["a", "^x[.].*"], ("topics", "a")),
        ({"topics": {"a": "x"}}, ["a", "b"], ("topics",)),
    ],
    ids=str,
)
def test_what_can_not_work_is_refused_with_its_place(
    sink: dict[str, Any], read: list[str], place: tuple[str | int, ...]
) -> None:
    with pytest.raises(PublishError) as caught:
        event_records(KafkaSink.model_validate(sink), SCHEMA, read)
    assert caught.value.place == place


def test_another_cluster_may_have_topics_of_the_same_names() -> None:
    sink = KafkaSink(topic="{topic}", bootstrap_servers="other:9092")
    assert event_records(sink, SCHEMA, ["a"]).topic_of({"topic": "a"}) == "a"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("sinks: {kafka: {topic: \"enriched.{topic}\"}}", "sinks: {sqlite: {path: d}}", "metrics"),
        ("sinks: {kafka", "sinks: {sqlite: {path: d}, kafka", "no documents for sqlite"),
        ("dead_letters:", f"{METRICS}\ndead_letters:", "need elasticsearch or sqlite"),
        ("kafka: {topic: \"enriched.{topic}\"}", "kafka: {}", "topic or topics"),
        ("\"enriched.{topic}\"}", "x, options: {a: b}}", "bootstrap_servers"),
    ],
)  # fmt: skip
def test_metrics_and_sinks_of_documents_go_together(old: str, new: str, error: str) -> None:
    assert old in JOB
    parse(JOB.encode(), "job.yaml")
    with pytest.raises(Exception, match=error):
        parse(JOB.replace(old, new).encode(), "job.yaml")


def test_a_job_without_metrics_is_without_a_problem_and_its_plan_ends_in_kafka() -> None:
    job, source = read(ENRICHMENT)
    environment = dict.fromkeys(("PROVIDERS", "PATIENTS"), "http://127.0.0.1:1")
    assert list(check(job, {**environment, "KAFKA": "127.0.0.1:1"}, source)) == []
    [step] = [step for step in plan(job) if step.kind == "publish"]
    assert step.inputs == ("enrich provider", "enrich patient")
    wrong = job.model_copy(update={"sinks": job.sinks.model_copy(
        update={"kafka": KafkaSink(topic="t", key="nosuch")})})  # fmt: skip
    with pytest.raises(JobError, match="unknown column nosuch"):
        _ = Graph(wrong, {**environment, "KAFKA": "127.0.0.1:1"}).publish


def test_the_enrichment_job_leaves_nothing_of_the_data_dictionary_out() -> None:
    known = {field.name: field.type for d in DOMAINS.values() for field in (*COMMON, *d.fields)}
    job = load(ENRICHMENT)
    assert {name: spec.type for name, spec in job.fields.items()} == known
    assert set(job.source.kafka.topics) == {domain.topic for domain in DOMAINS.values()}


def test_a_job_that_reads_nothing_of_the_enrichment_is_refused() -> None:
    other = load(FOLDER / "insurance.yaml")
    with pytest.raises(ValueError, match=r"sinks\.kafka"):
        reading_enriched(other, other)
    kafka = other.source.kafka.model_copy(update={"topics": ["x"]})
    source = other.source.model_copy(update={"kafka": kafka})
    with pytest.raises(ValueError, match="does not read x"):
        reading_enriched(other.model_copy(update={"source": source}), load(ENRICHMENT))


def test_an_enrichment_that_the_other_job_does_not_do_stays() -> None:
    job = load(FOLDER / "insurance.yaml")
    own = job.enrich[0].model_copy(update={"get": "http://127.0.0.1:1/other?ids={keys}"})
    changed = job.model_copy(update={"enrich": [own, job.enrich[1]]})
    reading = reading_enriched(changed, load(ENRICHMENT))
    assert reading.enrich == [own]
    assert reading.derive == {"city": "patient_city", "age_group": "patient_age_group"}


def consumed(servers: str, topic: str) -> Iterator[Any]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "test"})
    try:
        for n in consumer.list_topics(topic, 30).topics[topic].partitions:
            end = consumer.get_watermark_offsets(TopicPartition(topic, n), 30)[1]
            consumer.assign([TopicPartition(topic, n, 0)])
            found = 0
            while found < end:
                for message in consumer.consume(1000, 1):
                    found += 1
                    yield message
    finally:
        consumer.close()


@pytest.mark.embedded
def test_raw_topics_to_enriched_topics_to_documents_equal_the_recomputation(tmp_path: Path) -> None:
    scenario = Scenario(seed=7, events=6_000, rate=2)
    known, console = directory(7), Console(file=io.StringIO())
    topics = {d.topic: 3 for d in DOMAINS.values()}
    topics |= {f"enriched.{topic}": 3 for topic in list(topics)}
    with EmbeddedKafka(topics) as kafka, DirectoryService(known.tables()) as service:
        produce(scenario, kafka.bootstrap_servers)
        environ = {"KAFKA": kafka.bootstrap_servers, "PROVIDERS": service.url,
                   "PATIENTS": service.url}  # fmt: skip
        enrichment = load(ENRICHMENT)
        letters = DeadLetterSpec(parquet=str(tmp_path / "dead"))
        job = enrichment.model_copy(update={"dead_letters": letters})
        counters = run(Graph(job, environ), options_for("direct", []), "latest", console)
        good = [m for m in simulate(scenario) if m.kind is not Kind.MALFORMED]
        assert counters["written_messages"] == len(good)
        calls = service.calls

        found = {
            m.headers()[1][1]: m for m in consumed(environ["KAFKA"], "enriched.pharmacy.events")
        }
        raw = {m.key(): m for m in consumed(environ["KAFKA"], "pharmacy.events")}
        for message in found.values():
            assert [name for name, _ in message.headers()] == ["event_type", "event_id"]
            assert message.partition() == raw[message.key()].partition()
        for name in ("pharmacy_delivery", "transactions"):
            # A bundle that is run again writes again: who counts goes by the ids.
            once = DeduplicateSpec(by="event_id", horizon="1h")
            plain = load(FOLDER / f"{name}.yaml")
            plain = plain.model_copy(
                update={"source": plain.source.model_copy(update={"deduplicate": once})}
            )
            counting = redirect(
                reading_enriched(plain, enrichment),
                sqlite=tmp_path / f"{name}.db",
                dead_letters=tmp_path / "dead-of-metrics",
            )
            run(Graph(counting, environ), options_for("direct", []), "latest", console)
            read_ = [m for m in simulate(scenario) if m.topic in plain.source.kafka.topics]
            wanted = expected(plain, read_, known)
            documents = read_documents(str(tmp_path / f"{name}.db"))
            assert list(differences(wanted, documents)) == []
            assert len(wanted) > 50
        assert service.calls == calls  # who reads enriched topics asks nobody
    assert not (tmp_path / "dead-of-metrics").exists()


def test_a_sensitive_field_is_not_in_what_is_published() -> None:
    text = JOB.replace("city: string}", "city: string, phone: string}\nsensitive: [phone]")
    job: Job = parse(text.encode(), "job.yaml").job
    assert "phone" not in Graph(job, {}).derived_schema.names
    with pytest.raises(JobError, match="unknown column phone"):
        sink = KafkaSink(topic="t", key="phone")
        job = job.model_copy(update={"sinks": job.sinks.model_copy(update={"kafka": sink})})
        _ = Graph(job, {}).publish


def test_a_sink_says_what_it_needs() -> None:
    with pytest.raises(ValidationError, match="topic or topics"):
        KafkaSink()
