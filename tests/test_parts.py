"""The parts chained with ``|`` in a pipeline of one's own, from a broker to documents."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from confluent_kafka import Producer

from velocity.io.dead_letters import read_dead_letters
from velocity.io.sqlite import read_documents
from velocity.pipelines.parts import (
    Added,
    Decode,
    Derive,
    EnrichByRest,
    Field,
    Fixed,
    JsonDecoder,
    KafkaConfig,
    Metric,
    ReadFromKafka,
    Where,
    WindowedMetrics,
    WriteDeadLettersToParquet,
    WriteToSqlite,
)
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.options import direct
from velocity.transforms.enrich import enriched_schema

pytestmark = pytest.mark.embedded

PROVIDERS = {"p1": {"id": "p1", "city": "Solo"}, "p2": {"id": "p2", "city": "Bandung"}}
NOW = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)


def test_a_chain_of_parts_counts_what_is_good_and_sets_aside_what_is_not(tmp_path: Path) -> None:
    fields = {"at": Field("timestamp"), "provider_id": Field("string"), "amount": Field("string")}
    decoder = JsonDecoder(fields, event_time="at")
    add = {"city": Added("city")}
    enriched = enriched_schema(decoder.schema, add)
    derive = Derive({"idr": "amount::BIGINT"}, schema=enriched)
    metric = Metric(
        "orders", {"n": "count()", "idr": "sum(idr)"}, Fixed(timedelta(minutes=1)), ["city"]
    )
    values = [
        b'{"at": "2026-01-01T00:00:01Z", "provider_id": "p1", "amount": "5"}',
        b'{"at": "2026-01-01T00:00:02Z", "provider_id": "p2", "amount": "7"}',
        b'{"at": "2026-01-01T00:00:59Z", "provider_id": "p1", "amount": "11"}',
        b'{"at": "2026-01-01T00:00:03Z", "provider_id": "p1", "amount": "much"}',  # no number
        b'{"at": "2026-01-01T00:00:04Z", "provider_id": "p9", "amount": "1"}',  # no such provider
        b"not JSON",
    ]
    store, dead = tmp_path / "documents.db", tmp_path / "dead"
    with EmbeddedKafka({"orders": 2}) as kafka, DirectoryService({"providers": PROVIDERS}) as rest:
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        for value in values:
            producer.produce("orders", value, timestamp=int(NOW.timestamp() * 1000))
        producer.flush(10)
        with beam.Pipeline(options=PipelineOptions(direct())) as p:
            (
                p
                | ReadFromKafka(KafkaConfig(kafka.bootstrap_servers), ["orders"], stop="latest")
                | Decode(decoder)
                | Where("provider_id IS NOT NULL", schema=decoder.schema)
                | EnrichByRest(
                    f"{rest.url}/providers?ids={{keys}}",
                    id="id",
                    key="provider_id",
                    add=add,
                    on_missing="dead_letter",
                )
                | derive
                | WindowedMetrics([metric], schema=derive.schema, event_time="at", job="parts")
                | WriteToSqlite(str(store))
                | WriteDeadLettersToParquet(str(dead), job="parts")
            )
    documents = read_documents(str(store)).values()
    assert {d["dimensions"]["city"]: d["values"] for d in documents} == {
        "Solo": {"n": 2, "idr": 16},
        "Bandung": {"n": 1, "idr": 7},
    }
    letters = read_dead_letters(str(dead)).to_pylist()
    assert {(letter["stage"], letter["cause"], letter["value"]) for letter in letters} == {
        ("derive", "expression_failed", values[3]),
        ("enrich", "key_not_found", values[4]),
        ("decode", "invalid_json", values[5]),
    }
    assert {letter["topic"] for letter in letters} == {"orders"}


def test_a_filter_before_enrichment_spares_the_service(tmp_path: Path) -> None:
    decoder = JsonDecoder({"at": Field("timestamp"), "p": Field("string")}, event_time="at")
    with EmbeddedKafka({"orders": 1}) as kafka, DirectoryService({"providers": PROVIDERS}) as rest:
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        producer.produce("orders", b'{"at": "2026-01-01T00:00:01Z", "p": "p1"}')
        producer.flush(10)
        with beam.Pipeline(options=PipelineOptions(direct())) as p:
            flow = p | ReadFromKafka(
                KafkaConfig(kafka.bootstrap_servers), ["orders"], decoder=decoder, stop="latest"
            )
            flow = flow | Where("p <> 'p1'", schema=decoder.schema)
            url = f"{rest.url}/providers?ids={{keys}}"
            flow = flow | EnrichByRest(url, id="id", key="p", add={"city": Added("city")})
        assert rest.calls == 0
