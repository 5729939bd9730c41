"""What crosses the borders: batches survive their coder, dead letters keep all of a message."""

from datetime import UTC, datetime

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.coders import registry
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.records import (
    DEAD_LETTERS,
    MESSAGE,
    MESSAGES,
    TIMESTAMP,
    Cause,
    Document,
    RecordBatchCoder,
    Stage,
    WithDeadLetters,
    dead_letters,
    main_of,
    messages,
    messages_of,
    rfc3339,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
YEAR_1 = -62_135_596_800_000
YEAR_10000 = 253_402_300_800_000


def document(events: int, pane: str) -> Document:
    return Document("job", "metric", 0, 60_000, {}, {}, events, pane, "id")


@given(st.integers(YEAR_1, YEAR_10000 - 1))
def test_a_time_is_written_so_that_it_reads_back_to_the_millisecond(millis: int) -> None:
    text = rfc3339(millis)
    assert len(text) == len("2026-01-01T00:00:00.000Z")
    seconds = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    assert round(seconds.total_seconds() * 1000) == millis


def test_years_have_four_digits_and_times_before_the_epoch_round_down() -> None:
    assert rfc3339(YEAR_1) == "0001-01-01T00:00:00.000Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999Z"


@given(st.integers(0, 2**40), st.sampled_from(["early", "on_time", "late"]))
def test_a_document_that_knows_more_events_has_the_greater_version(events: int, pane: str) -> None:
    assert document(events + 1, "early").version > document(events, pane).version
    assert document(events, "on_time").version == document(events, "late").version
    assert document(events, "on_time").version > document(events, "early").version


@pytest.mark.parametrize(
    "batch",
    [
        messages([b"{}", None, b"\x00\xff"], topic="orders"),
        messages([]),
        messages([b"1", b"2", b"3", b"4"]).slice(1, 2),
        pa.RecordBatch.from_pydict({"at": pa.array([None, -1], TIMESTAMP)}),
    ],
    ids=["messages", "no rows", "a slice", "times"],
)
def test_a_batch_survives_its_coder(batch: pa.RecordBatch) -> None:
    coder = RecordBatchCoder()
    decoded = coder.decode(coder.encode(batch))
    assert decoded.equals(batch)
    assert decoded.schema.equals(batch.schema, check_metadata=True)


def test_a_slice_is_encoded_without_the_batch_it_was_cut_from() -> None:
    batch = messages([b"x" * 1000] * 1000)
    assert len(RecordBatchCoder().encode(batch.slice(5, 1))) < 20_000


def test_beam_uses_the_coder_for_batches() -> None:
    assert isinstance(registry.get_coder(pa.RecordBatch), RecordBatchCoder)


def test_a_dead_letter_keeps_all_of_its_message() -> None:
    headers = [[("trace", b"1"), ("trace", b"\xff")], None]
    whole = pa.RecordBatch.from_arrays(
        [
            pa.array(["orders", "payments"]),
            pa.array([3, None], pa.int32()),
            pa.array([2**40, None], pa.int64()),
            pa.array([-5, None], TIMESTAMP),
            pa.array([b"\x00", None], pa.binary()),
            pa.array([b"\xff{", None], pa.binary()),
            pa.array(headers, MESSAGES.field("headers").type),
        ],
        schema=MESSAGES,
    )
    letters = dead_letters(
        whole,
        stage=Stage.DECODE,
        causes=[Cause.NOT_UTF8, Cause.EMPTY],
        errors=["a", "b"],
        failed_at=NOW,
        attempt=2,
    )
    assert letters.schema == DEAD_LETTERS
    assert letters.select(MESSAGES.names).equals(whole)
    assert letters["cause"].to_pylist() == ["not_utf8", "empty"]
    assert letters["error"].to_pylist() == ["a", "b"]
    assert set(letters["stage"].to_pylist()) == {"decode"}
    assert letters["attempt"].to_pylist() == [2, 2]
    assert letters["failed_at"].to_pylist() == [NOW, NOW]


def test_a_dead_letter_has_a_cause_and_an_error_each() -> None:
    with pytest.raises(ValueError, match="same length"):
        dead_letters(
            messages([b"1", b"2"]), stage=Stage.SINK, causes=[Cause.EMPTY], errors=[], failed_at=NOW
        )


def test_rows_give_back_the_messages_they_came_from() -> None:
    origin = messages([b"1", b"2", b"3"], topic="orders", timestamp=NOW)
    rows = pa.RecordBatch.from_arrays([origin.to_struct_array()], [MESSAGE])
    assert messages_of(rows).equals(origin)
    assert messages_of(rows.slice(1, 1)).equals(origin.slice(1, 1))


def test_a_step_hands_on_the_dead_letters_of_the_steps_before_it() -> None:
    pipeline = beam.Pipeline()
    [main, before, own] = [pipeline | f"{i}" >> beam.Create([i]) for i in range(3)]
    given = WithDeadLetters(main, before)
    assert main_of(given) is main
    assert main_of(main) is main
    joined = WithDeadLetters.joining(given, main, own)
    assert {i.producer for i in joined.dead_letters.producer.inputs} == {
        before.producer,
        own.producer,
    }
    assert WithDeadLetters.joining(main, main, own).dead_letters is own
