"""Laws of the reader in C: what it takes is what Arrow reads, and what is not plain it leaves."""

import json
import struct
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import field_types
from velocity.transforms import json_native, json_plain
from velocity.transforms.fields import Field
from velocity.transforms.json_plain import PlainReader
from velocity.transforms.json_reader import JsonReader, Read

FIELDS = {
    **field_types.FIELDS,
    "long_name": Field("string"),
    "ü": Field("int64"),
    "money": Field("decimal(20, 4)"),
    "rate": Field("decimal(3, 3)"),
}
READER = JsonReader(FIELDS, "at", 10_000)
PLAIN = PlainReader(FIELDS, 10_000)
WIDEST = 10_000


def exact(column: pa.Array) -> list[Any]:
    """Its values, so that equal ones are the same: not only doubles that are near, and -0.0 is not 0.0."""
    column.validate(full=True)
    values = column.to_pylist()
    return [struct.pack("d", v) if isinstance(v, float) else v for v in values]


def same(found: Read, wanted: Read) -> None:
    assert found.kept.tolist() == wanted.kept.tolist()
    assert sorted(found.failures) == sorted(wanted.failures)
    for name, ours, theirs in zip(FIELDS, found.columns, wanted.columns, strict=True):
        assert ours.type == theirs.type, name
        assert ours.null_count == theirs.null_count, name
        assert exact(ours) == exact(theirs), name


def left(*texts: bytes | None) -> list[int]:
    plain = PLAIN.read(pa.array(texts, pa.binary()))
    assert plain is not None
    positions: list[int] = plain.left.tolist()
    return positions


numbers = (
    st.integers().map(str)
    | st.integers(-(10**20), 10**20).map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.decimals(allow_nan=False, allow_infinity=False, places=4).map(str)
    | st.from_regex(
        r"\A-?[0-9]{1,25}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?\Z", alphabet="0123456789.eE+-"
    )
)
times = st.datetimes().map(lambda t: t.isoformat()) | st.from_regex(
    r"\A[0-9]{4}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9](:[0-6][0-9](\.[0-9]{1,10})?)?"
    r"(Z|[+-][0-9]{2}:?([0-9]{2})?)?\Z",
    alphabet="0123456789-:.TZ+ ",
)
escapes = st.sampled_from([r"\n", r"\u0041", r"\u00e9", r"\u4e2d", r"\u0000", r"\ud83d\ude00",
                           r"\ud800", r"\ude00", r"\/", r"\x", r"\u12", "\\", "\x01", "\n", "\x7f", "é", "😀"])  # fmt: skip
strings = st.lists(escapes | st.text('ab"{},:', max_size=3), max_size=6).map(
    lambda parts: '"' + "".join(parts) + '"'
)
scalars = st.one_of(
    numbers,
    numbers.map(lambda number: f'"{number}"'),
    strings,
    times.map(lambda time: f'"{time}"'),
    st.text(max_size=12).map(json.dumps),
    st.sampled_from(["null", "true", "false", "nul", "NaN", "", "{}", "[]", "[1,{}]", "01", "-", "1.", "+1", "-0"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda all_: "[" + ", ".join(all_) + "]")
        | st.lists(st.tuples(strings, inner), max_size=3).map(
            lambda all_: "{" + ",".join(f"{k} : {v}" for k, v in all_) + "}"
        )
    ),
    max_leaves=6,
)
names = st.sampled_from([f'"{name}"' for name in FIELDS] * 2) | strings | st.just(r'"\u0073"')
space = st.sampled_from(["", "", "", " ", "\t", "\n", "\r\n ", "\f"])


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    members = draw(st.lists(st.tuples(names, space, space, values, space), max_size=6))
    text = ",".join(f"{a}{name}{b}:{a}{value}{c}" for name, a, b, value, c in members)
    around = draw(st.tuples(space, space, st.sampled_from(["", "", "", "", "{}", "x", "\0"])))
    return f"{around[0]}{{{text}}}{around[1]}{around[2]}".encode()


@settings(deadline=None, max_examples=600)
@given(st.lists(objects() | st.none() | st.binary(max_size=6), max_size=12))
@example([b'{"":0E400}', b'{"x":%s}' % (b"9" * 400), b'{"x":1.%s}' % (b"0" * 400), b'{"x":1e-400}'])
@example([b'{"s":"%s"}' % (b"x" * WIDEST), b'{"s":1}'])
@example([b'{"b":true,"n":"x"}', b'{"b":false,"n":1}', b'{"b":null}'])
@example([b'{"s":"left","n":[]}', b'{"s":"right","n":1}'])
@example([b'{"money":"12.5","rate":0.125}', b'{"money":-0.00}', b'{"rate":1}'])
@example([b'{"t":"2024-02-29T23:59:59.999999999+07:00"}', b'{"t":"1678-01-01T00:00:00"}'])
def test_what_is_read_is_what_arrow_alone_would_read(texts: list[bytes | None]) -> None:
    given_ = pa.array(texts, pa.binary())
    same(READER.read(given_), READER.read_any(given_))
    same(READER.read(given_[1:]), READER.read_any(given_[1:]))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
@example([number / 7 for number in range(1, 60)])
@example([0.1, -0.0, 5e-324, 1.7976931348623157e308, 2.2250738585072014e-308, 9007199254740993.0])
def test_doubles_are_the_nearest(numbers: list[float]) -> None:
    texts = pa.array([b'{"d":%s}' % repr(number).encode() for number in numbers], pa.binary())
    found = READER.read(texts)
    assert exact(found.columns[2]) == [struct.pack("d", number) for number in numbers]


@given(st.lists(st.text(), max_size=8), st.booleans())
def test_any_text_comes_back_as_it_was(texts: list[str], ascii_only: bool) -> None:
    written = [json.dumps({"s": text}, ensure_ascii=ascii_only).encode() for text in texts]
    found = READER.read(pa.array(written, pa.binary()))
    assert exact(found.columns[0]) == texts
    assert not found.failures


def test_what_is_written_plainly_is_not_left_to_arrow() -> None:
    assert not left(
        b'{"s":"Solo","n":-12,"d":1.5e3,"b":true,"at":1767225600000}',
        b'{ "s" : null , "other" : [1, {"s": 2}, "\\u00e9", -0.1, true, null, {}, []] }\r\n',
        '{"s":"Kraków","ü":1,"long_name":"a\\"b\\n\\u00e9"}'.encode(),
        b'{"s":"\\ud83d\\ude00"}',
        b'{"t":"2026-01-31T08:30:00"}',
        b'{"t":"2026-01-31T08:30:00.123456+07:00"}',
        b'{"money":12,"rate":0.5}',
        b'{"money":"1200.0000"}',
        b'{"d":0.30000000000000004}',
    )


@pytest.mark.parametrize(
    "text",
    [
        None, b"", b"{}", b"null", b'[{"n":1}]', b' {"n":1}', b'{"n":1}{"n":2}', b'{"n":1,}', b'{"n":1',
        b'{"n":1}\0', b'{"n":1,"n":2}', b'{"n":null,"n":2}', b'{"\\u006e":1}', b'{"n":1.0}', b'{"n":1e2}',
        b'{"n":-0}', b'{"n":01}', b'{"n":1234567890123456789}', b'{"n":"1"}', b'{"s":1}', b'{"s":"\\ud800"}', b'{"s":"\\ude00\\ud83d"}', b'{"s":"\\ud83d\\u0041"}', b'{"s":"\\ud83dxxxxxx"}',
        b'{"s":"\xe9"}', b'{"s":"\xed\xa0\x80"}', b'{"s":"\xc0\x80"}', b'{"s":"\xf4\x90\x80\x80"}', b'{"s":"\n"}',
        b'{"x":"\xe9"}', b'{"x":tru}', b'{"x":[1,]}', b'{"x":{"a"}}', b'{"x":0E400}',
        b'{"x":' + b"9" * 65 + b"}", b'{"d":1e999}', b'{"d":NaN}', b'{"b":1}',
        b'{"t":"2026-02-29T00:00:00Z"}', b'{"t":"2026-01-01 00:00:00"}', b'{"t":"2026-01-01T24:00:00"}',
        b'{"t":"1677-12-31T00:00:00"}', b'{"t":"2262-01-01T00:00:00"}', b'{"t":"2026-01-01T00:00:60"}',
        b'{"money":1e2}', b'{"money":0.00001}', b'{"rate":1}', b'{"money":"+1"}', b'{"money":""}',
        b'{"x":' + b"[" * 100 + b"]" * 100 + b"}", b'{"s":"' + b"x" * WIDEST + b'"}',
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left(text: bytes | None) -> None:
    """Each alone, and between two that are plain, whose values stay theirs."""
    assert left(text) == [0]
    around = PLAIN.read(pa.array([b'{"s":"a","b":true}', text, b'{"n":7}'], pa.binary()))
    assert around is not None
    assert around.left.tolist() == [1]
    assert [column.to_pylist() for column in around.columns[:4]] == [
        ["a", None],
        [None, 7],
        [None, None],
        [True, None],
    ]


def test_without_the_c_part_arrow_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array([b'{"s":"Solo"}', b'{"n":"7"}', None, b'{"d":1.5}'], pa.binary())
    wanted = READER.read(texts)
    monkeypatch.setattr(json_plain, "json_native", None)
    assert PLAIN.read(texts) is None
    same(READER.read(texts), wanted)


def test_buffers_that_are_none_of_an_array_are_refused() -> None:
    ends = struct.pack("3i", 0, 2, 9)
    for bad in (
        (b"", ends, b"x" * 8, 0, 2),  # ends beyond the data
        (b"", ends, b"x" * 9, 0, 3),  # fewer ends than texts
        (b"", ends, b"x" * 9, -1, 2),
        (b"", ends, b"x" * 9, 0, -1),
        (b"", struct.pack("3i", 0, 9, 2), b"x" * 9, 0, 2),  # backwards
        (b"", struct.pack("3i", -1, 2, 9), b"x" * 9, 0, 2),
        (b"", ends, b"x" * 9, 2**62, 2**62),
        (b"", ends, b"x" * 9, 0, 2**63 - 1),
        (b"\xff", struct.pack("11i", *range(11)), b"x" * 10, 0, 10),  # fewer bits than texts
    ):
        with pytest.raises(ValueError, match="not those of an array"):
            json_native.read((), *bad, 100)
    with pytest.raises(ValueError, match="no such type: float"):
        json_native.read(((b"f", "float", 0, 0),), b"", ends, b"x" * 9, 0, 2, 100)


def test_texts_of_another_type_are_left_to_arrow() -> None:
    assert PLAIN.read(pa.array([b'{"n":1}'], pa.large_binary())) is None


def test_no_texts_make_no_rows() -> None:
    found = READER.read(pa.array([], pa.binary()))
    assert [len(column) for column in found.columns] == [0] * len(FIELDS)
