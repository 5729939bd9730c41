"""Decoding: a bad message costs its own row only, and is kept as it came."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from apache_beam.internal import cloudpickle_pickler
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.field_types import FIELDS
from velocity.io.records import DEAD_LETTERS, MESSAGES, TIMESTAMP, Decoded, messages, messages_of
from velocity.transforms import json_reader
from velocity.transforms.decode import JsonDecoder
from velocity.transforms.fields import TYPES, Field
from velocity.transforms.json_reader import JsonReader

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DECODER = JsonDecoder(FIELDS, "at", max_bytes=4 * 2**20, clock=lambda: NOW)
DEEP = 100_000
BOMB = b"[" * DEEP + b"]" * DEEP
OBJECT_BOMB = b'{"a":' * DEEP + b"1" + b"}" * DEEP
ROW = json_reader._ROW.encode()


def batch(values: list[bytes | None], timestamp: datetime | None = NOW) -> pa.RecordBatch:
    return messages(values, topic="events", partition=7, timestamp=timestamp)


def outcome(value: bytes | None) -> Any:
    """The row that a message gives alone, or the cause and error of its dead letter."""
    rows, dead = DECODER.decode(batch([value]))
    assert rows.num_rows + dead.num_rows == 1
    if dead.num_rows:
        return dead["cause"][0].as_py(), dead["error"][0].as_py()
    return {name: rows[name][0].as_py() for name in FIELDS}


def at(millis: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=millis)


BAD: dict[str, tuple[bytes | None, str]] = {
    "a tombstone": (None, "empty"),
    "an empty message": (b"", "empty"),
    "blanks": (b" \r\n\t", "empty"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "empty"),
    "broken": (b'{"at":1', "invalid_json"),
    "a brace": (b"{", "invalid_json"),
    "a trailing comma": (b'{"at":1,}', "invalid_json"),
    "a comment": (b'{"at":1/**/}', "invalid_json"),
    "single quotes": (b"{'at':1}", "invalid_json"),
    "a NUL after the document": (b'{"at":1}\x00', "invalid_json"),
    "a NUL in a string": (b'{"at":1,"s":"a\x00b"}', "invalid_json"),
    "a line end in a string": (b'{"at":1,"s":"a\nb"}', "invalid_json"),
    "half a surrogate pair": (b'{"at":1,"s":"\\ud800"}', "invalid_json"),
    "a second byte order mark": (b'\xef\xbb\xbf\xef\xbb\xbf{"at":1}', "invalid_json"),
    "a byte order mark after blanks": (b' \xef\xbb\xbf{"at":1}', "invalid_json"),
    "UTF-16": ('{"at":1}'.encode("utf-16"), "not_utf8"),
    "UTF-16, little end, no mark": ('{"at":1}'.encode("utf-16-le"), "invalid_json"),
    "UTF-16, big end, no mark": ('{"at":1}'.encode("utf-16-be"), "invalid_json"),
    "UTF-32, no mark": ('{"at":1}'.encode("utf-32-be"), "invalid_json"),
    "Latin-1": (b'{"at":1,"s":"\xe9"}', "not_utf8"),
    "not UTF-8 in an undeclared field": (b'{"at":1,"x":"\xe9"}', "not_utf8"),
    "a surrogate as UTF-8": (b'{"at":1,"s":"\xed\xa0\x80"}', "not_utf8"),
    "null": (b"null", "not_an_object"),
    "an array": (b'[{"at":1}]', "not_an_object"),
    "a string": (b'"{}"', "not_an_object"),
    "a number": (b"1", "not_an_object"),
    "two documents": (b'{"at":1}{"at":2}', "several_documents"),
    "two lines": (b'{"at":1}\n{"at":2}\n', "several_documents"),
    "two documents, one empty": (b'{"at":1} {}', "several_documents"),
    "a declared field twice": (b'{"at":1,"at":2}', "invalid_json"),
    "a declared field twice, first null": (b'{"at":null,"at":2}', "invalid_json"),
    "a declared field twice, escaped": (b'{"at":1,"\\u0061t":2}', "invalid_json"),
    "no field": (b"{}", "missing_field"),
    "no field, a blank": (b" { } ", "missing_field"),
    "no field, a line end": (b"{}\n", "missing_field"),
    "no event time": (b'{"s":"x"}', "missing_field"),
    "a null event time": (b'{"at":null}', "missing_field"),
    "a number for a string": (b'{"at":1,"s":5}', "wrong_type"),
    "an object for a string": (b'{"at":1,"s":{}}', "wrong_type"),
    "an array for a string": (b'{"at":1,"s":[]}', "wrong_type"),
    "a string for a number": (b'{"at":1,"n":"5"}', "wrong_type"),
    "a fraction for a whole number": (b'{"at":1,"n":1.0}', "wrong_type"),
    "beyond 64 bits": (b'{"at":1,"n":9223372036854775808}', "wrong_type"),
    "5000 digits": (b'{"at":1,"n":%s}' % (b"1" * 5000), "wrong_type"),
    "5000 digits for a double": (b'{"at":1,"d":%s}' % (b"1" * 5000), "wrong_type"),
    "1e999": (b'{"at":1,"d":1e999}', "wrong_type"),
    "-1e999": (b'{"at":1,"d":-1e999}', "wrong_type"),
    "NaN": (b'{"at":1,"d":NaN}', "wrong_type"),
    "Infinity": (b'{"at":1,"d":-Infinity}', "wrong_type"),
    "1 for a boolean": (b'{"at":1,"b":1}', "wrong_type"),
    "true for a number": (b'{"at":1,"n":true}', "wrong_type"),
    "a number for a timestamp": (b'{"at":1,"t":1}', "wrong_type"),
    "no time": (b'{"at":1,"t":"yesterday"}', "wrong_type"),
    "a 30th of February": (b'{"at":1,"t":"2026-02-30T00:00:00Z"}', "wrong_type"),
    "a year that is too far": (b'{"at":1,"t":"2500-01-01T00:00:00Z"}', "wrong_type"),
    "Go's zero time": (b'{"at":-62135596800000}', "wrong_type"),
    "the least int64": (b'{"at":-9223372036854775808}', "wrong_type"),
    "the greatest int64": (b'{"at":9223372036854775807}', "wrong_type"),
    "2099": (b'{"at":4070908800000}', "future_event_time"),
    "a nesting bomb": (BOMB, "invalid_json"),
    "a bomb in a declared field": (b'{"at":1,"s":%s}' % BOMB, "invalid_json"),
    "a bomb of objects": (b'{"at":1,"s":%s}' % OBJECT_BOMB, "invalid_json"),
    "a bomb after the document": (b'{"at":1}' + BOMB, "invalid_json"),
    "too large": (b'{"at":1,"s":"%s"}' % (b"x" * (4 * 2**20)), "too_large"),
    "another's row number, where Arrow reads": (b' {"at":1,"%s":0}' % ROW, "invalid_json"),
    "a document with the next row's number": (
        b'{"at":1}\n{"%s":1,"at":2}' % ROW,
        "several_documents",
    ),
    "its head would end it": (b'{"%s":0}{"at":1}' % ROW, "several_documents"),
}
GOOD: dict[str, tuple[bytes, dict[str, Any]]] = {
    "1970": (b'{"at":0}', {"at": at(0)}),
    "before 1970": (b'{"at":-1}', {"at": at(-1)}),
    "pretty-printed": (json.dumps({"at": 1, "s": "x"}, indent=4).encode(), {"s": "x"}),
    "a byte order mark": (b'\xef\xbb\xbf{"at":1,"s":"x"}', {"s": "x"}),
    "blanks around": (b'\r\n {"at":1,"s":"x"} \n', {"s": "x"}),
    "nulls": (b'{"at":1,"s":null,"n":null,"d":null}', {"s": None, "n": None, "d": None}),
    "extremes": (b'{"at":1,"n":-9223372036854775808,"d":1e308}', {"n": -(2**63), "d": 1e308}),
    "a whole number for a double": (b'{"at":1,"d":5}', {"d": 5.0}),
    "unicode": ('{"at":1,"s":"Ünïcøde \\ud83d\\ude00\\u0000"}'.encode(), {"s": "Ünïcøde 😀\x00"}),
    "an undeclared field twice": (b'{"at":1,"x":1,"x":2}', {"at": at(1)}),
    "a declared name, deeper": (b'{"at":1,"x":{"at":2,"at":3}}', {"at": at(1)}),
    "a bomb in an undeclared field": (b'{"at":1,"x":%s}' % BOMB, {"at": at(1)}),
    "a bomb of objects, undeclared": (b'{"at":1,"x":%s}' % OBJECT_BOMB, {"at": at(1)}),
    "2 MB": (b'{"at":1,"s":"%s"}' % (b"x" * 2_000_000), {"s": "x" * 2_000_000}),
    "an offset": (b'{"at":1,"t":"2026-01-01T07:00:00+07:00"}', {"t": NOW}),
    "no offset is UTC": (b'{"at":1,"t":"2026-01-01T00:00:00"}', {"t": NOW}),
    "Z": (b'{"at":1,"t":"2026-01-01T00:00:00Z"}', {"t": NOW}),
    "nanoseconds are cut": (
        b'{"at":1,"t":"2026-01-01T00:00:00.123999999Z"}',
        {"t": NOW + timedelta(milliseconds=123)},
    ),
    "and cut before 1970 too": (b'{"at":1,"t":"1969-12-31T23:59:59.998500Z"}', {"t": at(-2)}),
}


@pytest.mark.parametrize(("value", "cause"), BAD.values(), ids=BAD)
def test_what_is_no_event_becomes_a_dead_letter(value: bytes | None, cause: str) -> None:
    result = outcome(value)
    assert isinstance(result, tuple), "it has a row"
    assert result[0] == cause, result


@pytest.mark.parametrize(("value", "expected"), GOOD.values(), ids=GOOD)
def test_what_is_an_event_becomes_a_row(value: bytes, expected: dict[str, Any]) -> None:
    result = outcome(value)
    assert isinstance(result, dict), result
    assert expected.items() <= result.items()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b'{"at":1,"n":"5"}', ["field n", "int64", "string"]),
        (b'{"at":1,"t":"2026-01-01T00:00:00","b":"x"}', ["field b"]),
        (b'{"t":"2026-01-01T00:00:00","at":"x"}', ["field at"]),
        (b'{"at":1,"n":1e999}', ["field n", "int64", "double's range"]),
        (b"{}", ["field at", "missing"]),
    ],
)
def test_an_error_names_the_field_that_is_wrong(value: bytes, words: list[str]) -> None:
    _, error = outcome(value)
    assert [word for word in words if word not in error] == []


def test_an_empty_batch_has_neither_rows_nor_dead_letters() -> None:
    rows, dead = DECODER.decode(batch([]))
    assert (rows.num_rows, dead.num_rows) == (0, 0)
    assert (rows.schema, dead.schema) == (DECODER.schema, DEAD_LETTERS)


def test_a_required_field_must_be_there() -> None:
    decoder = JsonDecoder({"s": Field("string", required=True), "at": Field("timestamp_ms")}, "at")
    values: list[bytes | None] = [b'{"at":1}', b'{"at":1,"s":null}', b'{"at":1,"s":""}', b"{}"]
    rows, dead = decoder.decode(batch(values))
    assert rows["s"].to_pylist() == [""]
    assert set(dead["cause"].to_pylist()) == {"missing_field"}
    assert {error.split(":")[0] for error in dead["error"].to_pylist()} == {"field s"}


@pytest.mark.parametrize(
    ("sent", "event", "accepted"),
    [
        (NOW, NOW + timedelta(minutes=10), True),
        (NOW, NOW + timedelta(minutes=10, milliseconds=1), False),
        (NOW - timedelta(days=365), NOW - timedelta(days=364), False),
        (None, NOW, True),
        (None, datetime(2099, 1, 1, tzinfo=UTC), False),
        (NOW + timedelta(days=1), NOW + timedelta(days=1), True),
    ],
    ids=[
        "close",
        "too far",
        "in a replay",
        "no timestamp",
        "2099, none",
        "whatever the clock says",
    ],
)
def test_no_event_is_ahead_of_its_message(
    sent: datetime | None, event: datetime, accepted: bool
) -> None:
    """One such row would take the watermark along, and make all others late. What the broker's
    timestamp admits is admitted at any time, or a replay would differ from the run."""
    for fields, value in (
        ({"at": Field("timestamp_ms")}, round(event.timestamp() * 1000)),
        ({"at": Field("timestamp")}, event.isoformat()),
    ):
        decoder = JsonDecoder(fields, "at", clock=lambda: NOW)
        rows, dead = decoder.decode(batch([json.dumps({"at": value}).encode()], sent))
        assert rows.num_rows == accepted
        assert dead["cause"].to_pylist() == ([] if accepted else ["future_event_time"])


HALVES = [
    [b'{"at":1,', b'"s":"x"}'],
    [b'{"at":1,', b'{"s":"x"}'],
    [b'{"at":1,"x":', b'{"s":"x"}}'],
    [b'{"at":1,"x":[', b'{"at":2},', b'{"at":3}]}'],
    [b'{"at":1,"x":[', b'{"at":2},{"%s":2,"at":2}]}' % ROW, b'{"at":3}'],
    [b'{"at":1,"s":"', b'{"}'],
    [b'{"at":1}{"x":', b'{"at":2}}'],
    [b'{"at":1}{"at":2}', b'{"x":', b'{"at":2}}'],
]
"""Messages that are no documents, though all of them together may look like some."""
ANY = [value for value, _ in [*BAD.values(), *GOOD.values()] if len(value or b"") < 1000] + [
    part for parts in HALVES for part in parts
]


def assert_each_as_alone(values: list[bytes | None], decoded: Decoded) -> None:
    origins = messages_of(decoded.rows)["offset"].to_pylist()
    dead = {letter["offset"]: letter for letter in decoded.dead_letters.to_pylist()}
    assert origins == sorted(origins)
    assert list(dead) == sorted(dead)
    assert sorted([*origins, *dead]) == list(range(len(values)))
    rows = dict(zip(origins, decoded.rows.select(list(FIELDS)).to_pylist(), strict=True))
    for offset, value in enumerate(values):
        expected = outcome(value)
        if offset in rows:
            assert rows[offset] == expected
        else:
            assert (dead[offset]["cause"], dead[offset]["error"]) == expected
    given_ = batch(values)
    kept = decoded.dead_letters.select(MESSAGES.names)
    assert kept.equals(given_.take(pa.array(list(dead), pa.int64())))
    assert messages_of(decoded.rows).equals(given_.take(pa.array(origins, pa.int64())))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(ANY), max_size=12))
def test_each_message_of_any_mix_decodes_as_it_would_alone(values: list[bytes | None]) -> None:
    assert_each_as_alone(values, DECODER.decode(batch(values)))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.binary(max_size=8) | st.text('{}[]",:1ats \n\\x\0', max_size=16).map(str.encode))
)
@example([b'{"at":1,"s":"' + bytes([c]) + b'"}' for c in range(256)])
@example([b"", b"{ "])
def test_no_bytes_disturb_their_neighbours(noise: list[bytes]) -> None:
    values: list[bytes | None] = [b'{"at":0}']
    for value in noise:
        values += [value, b'{"at":%d}' % len(values)]
    assert_each_as_alone(values, DECODER.decode(batch(values)))


@pytest.mark.parametrize("parts", HALVES, ids=range(len(HALVES)))
def test_unfinished_messages_never_make_a_document_together(parts: list[bytes | None]) -> None:
    assert_each_as_alone(parts, DECODER.decode(batch(parts)))
    around: list[bytes | None] = [b'{"at":5}', *parts, b'{"at":6}']
    assert_each_as_alone(around, DECODER.decode(batch(around)))


@pytest.mark.parametrize("bad", [b'{"at":1,', b'{"at":1}{}', b'{"at":1,"t":"x"}', b"{}"], ids=str)
def test_a_batch_of_bad_messages_costs_little_more_than_each_alone(bad: bytes) -> None:
    """Not their square, or one producer's mistake would stop the pipeline."""
    read: list[int] = []

    class Counting(JsonReader):
        def _read(self, values: pa.Array) -> tuple[pa.Table | None, int | None]:
            read.append(len(values))
            return super()._read(values)

    n = 512
    found = Counting(FIELDS, "at", 1_000).read(pa.array([bad] * n))
    assert len(found.failures) == n
    assert sum(read) <= n * (n.bit_length() + 1)


def test_the_position_in_a_sliced_batch_is_that_of_the_message() -> None:
    values: list[bytes | None] = [b'{"at":1}', b"{", b'{"at":3}', None]
    rows, dead = DECODER.decode(batch(values).slice(1))
    assert messages_of(rows)["offset"].to_pylist() == [2]
    assert dead["offset"].to_pylist() == [1, 3]


def test_a_decoder_that_has_decoded_still_decodes_in_another_process(tmp_path: Path) -> None:
    decoder = JsonDecoder({"at": Field("timestamp_ms")}, "at")
    values: list[bytes | None] = [b'{"at":1}', b'{"at":2}']
    decoder.decode(batch(values))
    (tmp_path / "pickle").write_bytes(cloudpickle_pickler.dumps((decoder, batch(values))))
    program = (
        "import pathlib, sys\n"
        "from apache_beam.internal import cloudpickle_pickler\n"
        "decoder, batch = cloudpickle_pickler.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(decoder.decode(batch).rows.num_rows)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "pickle")],
        env=dict(os.environ),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "2\n"


def test_a_decoder_of_impossible_fields_is_refused() -> None:
    for fields, event_time, words in (
        ({"a": Field("string")}, "at", "none of the declared"),
        ({"at": Field("int64")}, "at", "must be a timestamp"),
        ({"at": Field("timestamp"), "_message": Field("string")}, "at", "_message"),
    ):
        with pytest.raises(ValueError, match=words):
            JsonDecoder(fields, event_time)


def test_columns_have_the_declared_types() -> None:
    rows, _ = DECODER.decode(batch([b'{"at":1}']))
    assert rows.schema == DECODER.schema
    assert {name: rows.schema.field(name).type for name in FIELDS} == {
        name: TYPES[field.type] for name, field in FIELDS.items()
    }
    assert rows.schema.field("t").type == TIMESTAMP
