"""Decimals: from JSON to documents nothing of them is rounded, and no message breaks the reader."""

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from velocity.io.archive_ddl import athena, redshift
from velocity.io.records import MESSAGE, TIMESTAMP
from velocity.io.schema_registry import _plain
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import Message, _decimal, recompute
from velocity.pipelines.replay import enriched_already
from velocity.pipelines.templates import setup_of
from velocity.transforms.aggregates import Call, Value
from velocity.transforms.answers import Added, NotOfType
from velocity.transforms.decimals import decimal_type, parsed, whole_numbers, written
from velocity.transforms.expressions import Expressions
from velocity.transforms.fields import Field
from velocity.transforms.json_reader import JsonReader

DIGITS = st.text("0123456789", max_size=42)
EXPONENTS = st.sampled_from(
    ["", "e0", "E1", "e-2", "e+3", "e38", "e-38", "e39", "e-39", "e-76", "e-99", "e400", "e-1000"]
)
TEXTS = st.builds(
    "".join, st.tuples(st.sampled_from(["", "-", "+"]), DIGITS, st.sampled_from(["", "."]), DIGITS, EXPONENTS)
) | st.sampled_from(
    ["NaN", "Infinity", "", ".", "-", "1_0", " 1", "1 ", "0x1", "1,5", "1e", "e5", "١", "1e-100000000"]
)  # fmt: skip
TYPES = st.sampled_from(["decimal(5, 2)", "decimal(18,2)", "decimal(38, 0)", "decimal(38, 38)"])


def read(type_: str, *texts: str) -> list[Any]:
    """As the source decodes them; "bad" for what it does not."""
    values = [f'{{"other": 7, "n": {text}}}'.encode() for text in texts]
    found = JsonReader({"n": Field(type_)}, "n", 10_000).read(pa.array(values, pa.binary()))
    shown: list[Any] = ["bad"] * len(texts)
    for position, value in zip(found.kept.tolist(), found.columns[0].to_pylist(), strict=True):
        shown[position] = value
    return shown


def is_number(text: str) -> bool:
    """Whether JSON takes it for a number, and Arrow's reader for one that a double could hold."""
    try:
        number = json.loads(text)
    except ValueError:
        return False
    return isinstance(number, int | float) and abs(number) < 10**308 and text == text.strip()


@settings(deadline=None, max_examples=400)
@given(st.lists(TEXTS, min_size=1, max_size=4), TYPES)
@example(["9" * 38], "decimal(38, 2)")
@example(["9" * 38 + "e38", "0." + "0" * 37 + "1"], "decimal(38, 38)")
@example(["0e-80", "5e-80", "1e-100000000"], "decimal(18,2)")
@example(["1.000", "12.340", "00012", ".5", "5.", "-0.00"], "decimal(5, 2)")
def test_a_decimal_is_read_whole_or_not_at_all(texts: list[str], type_: str) -> None:
    """Arrow's reader, our definition and the recomputation's own, of strings and of numbers."""
    decimal = decimal_type(type_)
    assert decimal is not None
    wanted = [parsed(text, decimal) for text in texts]
    shown = ["bad" if value is None else value for value in wanted]
    assert [_decimal(text, type_) for text in texts] == wanted
    assert read(type_, *(json.dumps(text) for text in texts)) == shown
    escaped = ['"' + "".join(f"\\u{ord(c):04x}" for c in text) + '"' for text in texts]
    assert read(type_, *escaped) == shown
    numbers = [(text, value) for text, value in zip(texts, shown, strict=True) if is_number(text)]
    assert read(type_, *(text for text, _ in numbers)) == [value for _, value in numbers]
    for text, value in zip(texts, wanted, strict=True):
        if value is not None:
            assert Fraction(value) == Fraction(text), "nothing is rounded"


def test_what_arrows_reader_does_not_survive_does_not_reach_it() -> None:
    hostile = ['"1e-100000000"', '"1\\u0065-100000000"', '7}{"n": "1e-100000000"']
    assert read("decimal(18, 2)", *hostile, "1.5") == ["bad"] * 3 + [Decimal("1.50")]
    twice = '{"n": "1e-100000000", "n": 1}'[6:-1]
    assert read("decimal(18, 2)", twice) == ["bad"]
    elsewhere = '7, "note": {"n": "1e-100000000"}'
    assert read("decimal(18, 2)", elsewhere) == [Decimal("7.00")], "fields of fields are ignored"


@given(st.lists(st.none() | st.integers(-(10**38) + 1, 10**38 - 1), max_size=9), st.integers(0, 38))
def test_whole_numbers_and_texts_are_those_of_the_column(
    units: list[int | None], scale: int
) -> None:
    texts = [None if n is None else written(n, scale) for n in units]
    column = pa.array([t and Decimal(t) for t in texts], pa.decimal128(38, scale))
    assert whole_numbers(column) == units
    for cut in range(len(units)):
        assert whole_numbers(column.slice(cut)) == units[cut:]
    assert all(t is None or Fraction(t) * 10**scale == n for t, n in zip(texts, units, strict=True))


@pytest.mark.parametrize(
    ("expression", "type_"),
    [
        ("price", pa.decimal128(18, 2)),
        ("price * 1.1", pa.decimal128(18, 3)),
        ("price + n", pa.decimal128(22, 2)),
        ("price / 3", pa.float64()),
        ("price::DOUBLE", pa.float64()),
        ("n * 1.5", pa.float64()),
        ("(n * 1.5)::DECIMAL(12, 1)", pa.decimal128(12, 1)),
        ("try_cast(code AS NUMERIC(9, 3))", pa.decimal128(9, 3)),
        ("price > 1.5", pa.bool_()),
    ],
)
def test_what_is_computed_of_decimals_is_one_and_a_literal_alone_makes_none(
    expression: str, type_: pa.DataType
) -> None:
    schema = pa.schema([("price", pa.decimal128(18, 2)), ("n", pa.int64()), ("code", pa.string())])
    found = Expressions(schema, {"x": expression})
    rows = pa.RecordBatch.from_pylist([{"price": Decimal("0.10"), "n": 3, "code": "2"}], schema)
    assert found.evaluate(rows).columns.schema.field("x").type == found.schema.field("x").type
    if expression == "price":
        assert schema.field("price").type == type_
    else:
        assert found.schema.field("x").type == type_


@pytest.mark.parametrize(
    ("came", "value"),
    [
        ("12.3", "12.30"),
        (12.3, "12.30"),
        (12, "12.00"),
        (1e2, "100.00"),
        (9999999999999.99, "9999999999999.99"),
        ("9999999999999999.99", "9999999999999999.99"),
    ],
)
def test_an_answers_decimal_is_exact(came: Any, value: str) -> None:
    assert Added("x", "decimal(18, 2)").converted(came) == Decimal(value)


@pytest.mark.parametrize(
    ("came", "says"),
    [
        ("12.345", "a string that it does not hold"),
        (12.345, "a number that it does not hold"),
        (99999999999999.99, "exact as a string only"),
        (True, "a boolean"),
        ([1], "an array"),
        ("NaN", "a string that it does not hold"),
    ],
)
def test_an_answer_that_would_be_rounded_is_not_taken(came: Any, says: str) -> None:
    with pytest.raises(NotOfType, match=says):
        Added("x", "decimal(18, 2)").converted(came)


JOB = """
job: money
source: {kafka: {bootstrap_servers: x, topics: [t]}, event_time: at}
fields: {at: timestamp_ms, price: "decimal(18, 2)", shop: string}
derive: {gross: price * 1.1}
metrics:
  - name: revenue
    by: [shop, price]
    window: {fixed: 1h}
    values:
      total: sum(price)
      gross: sum(gross)
      least: min(price)
      latest: last(price)
      mean: mean(price)
      most: top(price, 2)
sinks: {elasticsearch: {url: "http://x:1", index: "m"}}
dead_letters: {parquet: dead}
archive: {path: a, enriched: true}
"""


def job() -> Any:
    return parse(JOB.encode(), "job").job


def test_a_decimal_is_a_double_to_elasticsearch_and_a_word_in_a_key() -> None:
    (template,) = setup_of(Graph(job(), {})).indices.values()
    properties = template.mapping["properties"]
    assert {n: f["type"] for n, f in properties["values"]["properties"].items()} == {
        **dict.fromkeys(("total", "gross", "least", "latest", "mean"), "double"),
        "most": "object",
    }
    assert properties["dimensions"]["properties"]["price"]["type"] == "keyword"


def test_an_archive_of_decimals_is_read_by_warehouses_and_replays_as_decimals() -> None:
    schema = pa.schema([("at", TIMESTAMP), ("p", pa.decimal128(18, 2)), (MESSAGE, pa.null())])
    assert "`p` decimal(18,2)" in athena(schema, "s3://b/a", "j", table="t")
    assert '"p" decimal(18,2)' in redshift(schema, "s3://b/a", "j", [], table="t")
    assert enriched_already(job()).fields["price"].type == "decimal(18, 2)"


def test_an_avro_decimal_stays_exact() -> None:
    price = Decimal("12345678901234567890.12")
    assert orjson.dumps({"p": price}, _plain) == b'{"p":12345678901234567890.12}'


def test_ten_dimes_are_a_dollar_in_a_document_of_the_recomputation_and_of_the_graph() -> None:
    at = 1_767_225_600_000
    prices = ["0.10"] * 9 + ['"0.1"', '"99999999999999.99"', "1e-2"]
    values = [f'{{"at": {at}, "price": {p}, "shop": "a"}}'.encode() for p in prices]
    assert Graph(job(), {}).metrics.reduction.decimals == {
        "revenue": {"total", "gross", "least", "latest"}
    }
    spec = job()
    metric = spec.metrics[0].model_copy(update={"by": ["shop"]})
    spec = spec.model_copy(update={"metrics": [metric]})
    (document,) = recompute(spec, [Message(v, at) for v in values], {}).values()
    shown = {name: value.value for name, value in document.values.items()}
    assert shown == {
        "total": "100000000000001.00",
        "gross": "110000000000001.100",
        "least": "0.01",
        "latest": "99999999999999.99",
        "most": [{"value": "0.10", "count": 10}, {"value": "0.01", "count": 1}],
        "mean": float(Fraction("100000000000001.00") / 12),
    }


def test_a_ratio_of_decimals_is_null_over_nought() -> None:
    least, most = (Call.parse(f"{f}(p)").aggregate(pa.decimal128(9, 2)) for f in ("min", "max"))
    ratio = Value.parse("ratio(min(p), max(p))")
    assert ratio.result([least.result(-5), most.result(10)]) == -0.5
    assert ratio.result([least.result(-5), most.result(0)]) is None
