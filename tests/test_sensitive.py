"""Sensitive fields leave no trace: not in rows, not in dead letters, not in documents."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from velocity.io.copies import MASKED
from velocity.io.dead_letter_store import _from_row, letter_of
from velocity.io.dead_letters import read_dead_letters
from velocity.io.dead_letters_kafka import kafka_records
from velocity.io.records import (
    DEAD_LETTERS,
    MESSAGE,
    MESSAGES,
    TIMESTAMP,
    Cause,
    Stage,
    dead_letters,
    messages,
)
from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import Message, differences, recompute
from velocity.pipelines.simulator import Scenario, simulate
from velocity.runners.demo import JOB, services
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.options import options_for
from velocity.runners.produce import produce
from velocity.runners.run import redirect, run
from velocity.transforms.fields import Field
from velocity.transforms.sensitive import Sensitive

SECRET = "a secret of the clinic"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PATIENT = st.text(st.characters(codec="utf-8"), min_size=3)


def letters(
    *values: bytes | None,
    key: bytes | None = None,
    error: str = "no",
    stage: Stage = Stage.ENRICH,
) -> pa.RecordBatch:
    messages = [
        {"topic": "orders", "partition": 1, "offset": i, "key": key, "value": value}
        for i, value in enumerate(values)
    ]
    return dead_letters(
        pa.RecordBatch.from_pylist(messages, schema=MESSAGES),
        stage=stage,
        causes=[Cause.SERVICE_FAILED] * len(values),
        errors=[error] * len(values),
        failed_at=NOW,
    )


@pytest.mark.parametrize("secret", [SECRET, ""])
@given(patient=PATIENT, others=st.dictionaries(st.sampled_from("xyz"), st.integers()))
def test_no_dead_letter_holds_a_sensitive_value(
    secret: str, patient: str, others: dict[str, int]
) -> None:
    value = json.dumps({"patient_id": patient, **others}).encode()
    given = letters(value, key=patient.encode(), error=f"cannot cast {patient} to a number")
    masked = Sensitive(("patient_id",), secret).letters(given)
    assert masked.schema == DEAD_LETTERS
    (row,) = masked.to_pylist()
    event = json.loads(row["value"])
    hashed = event.pop("patient_id", None)
    assert event == others
    assert (hashed is None) == (secret == "")
    assert hashed != patient
    assert row["key"] != patient.encode()
    assert row["error"].startswith("cannot cast ***")
    assert {k: row[k] for k in ("topic", "partition", "offset", "attempt")} == {
        "topic": "orders",
        "partition": 1,
        "offset": 0,
        "attempt": 1,
    }


@pytest.mark.parametrize(
    "value", [b"\xff patient-1", b'{"patient_id": "patient-1"', b'["patient-1"]']
)
def test_of_what_can_not_be_read_nothing_is_kept(value: bytes) -> None:
    (row,) = Sensitive(("patient_id",), SECRET).letters(letters(value)).to_pylist()
    assert row["value"] is None


def test_a_masked_letter_is_not_whole_so_its_replay_takes_the_original_from_its_topic() -> None:
    masked = Sensitive(("patient_id",), SECRET).letters(letters(b'{"patient_id": "p"}'))
    (row,) = masked.to_pylist()
    assert not _from_row({"job": "j", **row}).whole
    (record,) = kafka_records(masked, "j")
    assert not letter_of(record.key, record.value, record.headers).whole
    (record,) = kafka_records(letters(b"{}"), "j")
    assert letter_of(record.key, record.value, record.headers).whole
    assert (MASKED, b"1") not in record.headers


def test_a_rejected_document_is_kept_as_it_is() -> None:
    given = letters(b'{"dimensions": {"patient_id": "0a1b"}}', key=b"id", stage=Stage.SINK)
    assert Sensitive(("patient_id",), SECRET).letters(given).equals(given)


def rows(*patients: str | None, kind: pa.DataType | None = None) -> pa.RecordBatch:
    messages = pa.nulls(len(patients), pa.struct(list(MESSAGES)))
    columns = [pa.array(patients, kind or pa.string()), pa.array(range(len(patients))), messages]
    return pa.RecordBatch.from_arrays(columns, ["patient_id", "n", MESSAGE])


@given(st.lists(st.none() | PATIENT))
def test_equal_values_have_equal_hashes_and_null_has_none(patients: list[str | None]) -> None:
    sensitive = Sensitive(("patient_id",), SECRET)
    hashed = sensitive.rows(rows(*patients))["patient_id"].to_pylist()
    assert [value is None for value in hashed] == [value is None for value in patients]
    assert len(set(hashed)) == len(set(patients))
    assert [v for v in hashed if v] == [sensitive.hashed(p) for p in patients if p is not None]
    other = Sensitive(("patient_id",), "another").rows(rows(*patients))
    assert not set(filter(None, hashed)) & set(filter(None, other["patient_id"].to_pylist()))


def test_a_number_is_hashed_as_its_text_in_rows_and_letters_alike() -> None:
    sensitive = Sensitive(("patient_id",), SECRET)
    given: Any = [7]
    (hashed,) = sensitive.rows(rows(*given, kind=pa.int64()))["patient_id"].to_pylist()
    (row,) = sensitive.letters(letters(b'{"patient_id": 7}')).to_pylist()
    assert json.loads(row["value"])["patient_id"] == hashed == sensitive.hashed("7")


TYPED = {
    "string": st.text(st.characters(codec="utf-8"), max_size=5).map(json.dumps),
    "int64": st.integers(-(2**63), 2**63 - 1).map(str),
    "bool": st.sampled_from(["true", "false"]),
    "timestamp": st.sampled_from(
        [
            "2026-01-05T07:00:00Z",
            "2026-01-05T14:00:00+07:00",
            "2026-01-05 07:00:00.0009",
            "2026-01-05",
        ]
    ).map(json.dumps),
    "timestamp_ms": st.integers(0, 4 * 10**12).map(str),
    "decimal(20, 3)": st.sampled_from(
        ["12.5", '"12.50"', "125e-1", '"+12.500"', "-0.0", "0", '"12345678901234567.125"']
    ),
}


@pytest.mark.parametrize("type_", TYPED)
@settings(max_examples=20)
@given(data=st.data())
def test_a_value_has_one_hash_in_rows_in_dead_letters_and_in_the_recomputation(
    type_: str, data: st.DataObject
) -> None:
    """However it is written: what is set aside can be counted with what was not."""
    value = data.draw(TYPED[type_])
    event = f'{{"at": 1767225600000, "id": {value}}}'.encode()
    given = {"name": "m", "window": {"fixed": "1h"}, "by": ["id"], "values": {"n": "count()"}}
    job = Job.model_validate(
        {
            "job": "j",
            "source": {"kafka": {"bootstrap_servers": "x", "topics": ["t"]}, "event_time": "at"},
            "fields": {"at": "timestamp_ms", "id": type_},
            "sensitive": {"fields": ["id"], "hash_with": "${S}"},
            "metrics": [given],
            "sinks": {"sqlite": {"path": "x"}},
            "dead_letters": {"parquet": "x"},
        }
    )
    graph = Graph(job, {"S": SECRET})
    assert graph.sensitive is not None
    decoded = graph.decoder.decode(messages([event], timestamp=NOW)).rows
    (hashed,) = graph.sensitive.rows(decoded)["id"].to_pylist()
    (letter,) = graph.sensitive.letters(letters(event)).to_pylist()
    (document,) = recompute(job, [Message(event, 1767225600000)], {}, secret=SECRET).values()
    assert json.loads(letter["value"])["id"] == hashed == document.dimensions["id"]


def test_a_value_that_is_not_of_its_type_is_hashed_as_it_is_written() -> None:
    sensitive = Sensitive(("n",), SECRET, {"n": Field("int64")})
    (row,) = sensitive.letters(letters(b'{"n": "x7"}')).to_pylist()
    assert json.loads(row["value"])["n"] == sensitive.hashed("x7")


def test_of_an_envelope_of_sns_nothing_is_kept() -> None:
    """The event is a text in it, with all that is sensitive."""
    envelope = json.dumps({"TopicArn": "arn", "Message": '{"patient_id": "patient-1"}'}).encode()
    (row,) = Sensitive(("patient_id",), SECRET).letters(letters(envelope)).to_pylist()
    assert row["value"] is None


def test_without_a_secret_the_column_is_gone_so_that_no_metric_counts_nulls_unknowingly() -> None:
    assert Sensitive(("patient_id",)).rows(rows("p")).schema.names == ["n", MESSAGE]


@pytest.mark.parametrize(
    ("fields", "says"),
    [(("x",), "no column 'x'"), (("share",), "'share' is a fraction"), ((MESSAGE,), "is reserved")],
)
def test_what_can_not_be_hashed_is_refused(fields: tuple[str, ...], says: str) -> None:
    schema = pa.schema([("at", TIMESTAMP), ("share", pa.float64()), (MESSAGE, pa.null())])
    with pytest.raises(ValueError, match=says):
        Sensitive(fields, SECRET).schema(schema)


def test_a_secret_is_not_shown() -> None:
    assert SECRET not in repr(Sensitive(("patient_id",), SECRET))


@pytest.mark.embedded
def test_a_whole_run_keeps_no_patient_and_counts_them_all_the_same(tmp_path: Path) -> None:
    text = JOB.read_text().replace("by: [age_group, payment_method]", "by: [age_group, patient_id]")
    said = 'sensitive: {fields: [patient_id], hash_with: "${PII}"}\n\nderive:'
    job = parse(text.replace("derive:", said, 1).encode(), "job").job
    store, dead = tmp_path / "documents.db", tmp_path / "dead"
    known, scenario = directory(7), Scenario(seed=7, events=3_000, domains=("pharmacy_delivery",))
    with (
        EmbeddedKafka({"pharmacy.events": 4}) as kafka,
        DirectoryService(known.tables()) as service,
    ):
        produce(scenario, kafka.bootstrap_servers)
        environment = {
            "KAFKA": kafka.bootstrap_servers,
            "PROVIDERS": service.url,
            "PATIENTS": service.url,
            "PII": SECRET,
        }
        graph = Graph(redirect(job, sqlite=store, dead_letters=dead), environment)
        run(graph, options_for("direct", []), "latest", Console(file=io.StringIO()))
    messages = [m for m in simulate(scenario) if m.topic == "pharmacy.events"]
    wanted = recompute(
        job,
        (Message(m.value, m.timestamp_ms) for m in messages),
        services(job, known),
        secret=SECRET,
    )
    assert list(differences(wanted, read_documents(str(store)))) == []
    assert any("patient_id" in document.dimensions for document in wanted.values())
    assert all(patient.startswith("PAT-0") for patient in known.patients)
    assert read_dead_letters(str(dead)).num_rows > 0
    kept = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    letters = [repr(row).encode() for row in read_dead_letters(str(dead)).to_pylist()]
    assert not any(b"PAT-0" in text for text in (*kept, *letters))
