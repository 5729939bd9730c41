"""Expressions: each row has a value of its own, the same in every run and however it was cut."""

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velocity.io.records import MESSAGE, TIMESTAMP, messages
from velocity.transforms.expressions import ExpressionError, Expressions, _connection

SCHEMA = pa.schema(
    [
        ("amount", pa.float64()),
        ("n", pa.int64()),
        ("city", pa.string()),
        ("paid", pa.bool_()),
        ("created", TIMESTAMP),
    ]
)


def rows(*columns: list[Any]) -> pa.RecordBatch:
    arrays = [pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


ROWS = rows(
    [5.0, -20.0, None],
    [1, 2, None],
    ["Solo", "7", None],
    [True, False, None],
    [0, 86_399_999, None],
)


def values(sql: str, batch: pa.RecordBatch = ROWS) -> dict[int, Any]:
    """Of the rows that have one, by position."""
    evaluated = Expressions(batch.schema, {"x": sql}).evaluate(batch)
    found = dict(zip(evaluated.positions.tolist(), evaluated.columns["x"].to_pylist(), strict=True))
    failed = [position for position, _ in evaluated.failures]
    assert failed == sorted(failed)
    assert sorted([*found, *failed]) == list(range(batch.num_rows))
    return found


REFUSED = {
    "an aggregate": ("sum(amount)", "aggregates"),
    "count(*)": ("count(*)", "aggregates"),
    "a nested aggregate": ("n + max(n)", "aggregates"),
    "a filtered aggregate": ("sum(n) FILTER (WHERE paid)", "aggregates"),
    "a macro that aggregates": ("geomean(n)", "aggregates"),
    "a macro of such a macro": ("wavg(n, n)", "aggregates"),
    "a JSON aggregate": ("json_group_array(n)", "aggregates"),
    "a window function": ("row_number() OVER ()", "window function"),
    "an aggregate as a window": ("sum(n) OVER (ORDER BY n)", "window function"),
    "a subquery": ("(SELECT 1)", "subquery"),
    "EXISTS": ("EXISTS (SELECT 1)", "subquery"),
    "IN a subquery": ("n IN (SELECT 1)", "subquery"),
    "a macro with a subquery": ("get_block_size('x')", "subquery"),
    "a star": ("*", r"\*"),
    "columns": ("COLUMNS('n')", r"\*"),
    "rows from one": ("unnest([n, n])", "gives rows"),
    "a macro that gives rows": ("regexp_split_to_table(city, 'o')", "gives rows"),
    "random": ("random()", "replay"),
    "random, in capitals": ("RANDOM()", "replay"),
    "random, with its schema": ("main.random()", "replay"),
    "random, deep": ("CASE WHEN n > 1 THEN [random()][1] END", "replay"),
    "a uuid": ("uuid()", "replay"),
    "now": ("now()", "replay"),
    "today": ("today()", "replay"),
    "current_timestamp": ("current_timestamp", "unknown column"),
    "current_date": ("current_date", "unknown column"),
    "the local time": ("current_localtimestamp()", "replay"),
    "the local time of day": ("current_localtime()::VARCHAR", "replay"),
    "an age as of today": ("age(created)::VARCHAR", "replay"),
    "a macro that reads the clock": ("created > ago(INTERVAL 1 DAY)", "unknown column"),
    "a setting": ("current_setting('threads')", "replay"),
    "a sequence": ("nextval('s')", "replay"),
    "a log entry": ("write_log(city)", "replay"),
    "an unknown column": ("amonut > 10", "did you mean amount"),
    "one far from all": ("zzz", "there are: amount, n, city, paid, created"),
    "the message": (MESSAGE, "unknown column"),
    "an unknown function": ("uper(city)", "uper"),
    "a wrong argument": ("upper(n, n)", "upper"),
    "a field of a number": ("n.x", "struct"),
    "two expressions": ("n, amount", "one scalar expression"),
    "two statements": ("n; SELECT 1", "one scalar expression"),
    "a name": ("n AS m", "one scalar expression"),
    "brackets that close too early": ("n), (n", "syntax error"),
    "a sum of two brackets": ("n) + (amount", "syntax error"),
    "a condition": ("n) WHERE (false", "syntax error"),
    "a condition, bare": ("n WHERE false", "one scalar expression|syntax error"),
    "a limit": ("n) LIMIT (1", "syntax error"),
    "a union": ("n) UNION SELECT (1", "syntax error"),
    "a table": ("n) FROM range(3) --", "syntax error"),
    "a table, bare": ("n FROM range(3)", "one scalar expression|syntax error"),
    "distinct": ("DISTINCT n", "one scalar expression|syntax error"),
    "an open comment": ("n /* x", "comment"),
    "a comment alone": ("-- n", "SELECT"),
    "nothing": ("", "SELECT"),
    "a file": ("read_text('/etc/hostname')", "gives rows"),
    "a file in a subquery": ("(SELECT content FROM read_text('/etc/hostname'))", "subquery"),
    "a file in FROM": ("(FROM '/etc/hostname')", "subquery"),
    "a parameter": ("$1", "parameter"),
    "a list": ("[n]", "cast it"),
    "a struct": ("{'n': n}", "cast it"),
    "an interval": ("INTERVAL 1 DAY", "cast it"),
    "bytes": ("city::BLOB", "cast it"),
    "syntax": ("n >", "syntax error"),
}


@pytest.mark.parametrize(("sql", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_value_of_one_row_is_refused_before_any_row_comes(sql: str, words: str) -> None:
    with pytest.raises(ExpressionError, match=words):
        Expressions(SCHEMA, {"x": sql})


ACCEPTED = {
    "amount * 2": [10.0, -40.0, None],
    "n + 1": [2, 3, None],
    "n / 2": [0.5, 1.0, None],
    "n * 1.5": [1.5, 3.0, None],
    "upper(city)": ["SOLO", "7", None],
    "CITY": ["Solo", "7", None],
    '"city"': ["Solo", "7", None],
    "coalesce(city, '-')": ["Solo", "7", "-"],
    "city LIKE 'S%'": [True, False, None],
    "city = 'it''s' OR paid": [True, False, None],
    "n BETWEEN 2 AND 3": [False, True, None],
    "n IN (1, 3)": [True, False, None],
    "CASE WHEN amount > 0 THEN 'in' ELSE 'out' END": ["in", "out", "out"],
    "IF(n > 1, 'a', 'b')": ["b", "a", "b"],
    "nullif(n, 1)": [None, 2, None],
    "split_part(city, 'o', 2)": ["l", "", None],
    "TRY_CAST(city AS BIGINT)": [None, 7, None],
    "TRY(CAST(city AS BIGINT))": [None, 7, None],
    "list_sum([n, n])": [2, 4, None],
    "regexp_extract(city, '[0-9]')": ["", "7", None],
    "paid IS NULL": [False, False, True],
    "n -- the number": [1, 2, None],
    "n /* the number */": [1, 2, None],
    "hour(created)": [0, 23, None],
    "epoch_ms(created)": [0, 86_399_999, None],
    "created >= '1970-01-01 12:00:00'": [False, True, None],
    "strftime(created, '%Y-%m-%d %H')": ["1970-01-01 00", "1970-01-01 23", None],
    "NULL": [None, None, None],
}


@pytest.mark.parametrize(("sql", "expected"), ACCEPTED.items(), ids=ACCEPTED)
def test_a_scalar_expression_gives_each_row_its_value(sql: str, expected: list[Any]) -> None:
    assert values(sql) == dict(enumerate(expected))


@pytest.mark.parametrize(
    ("sql", "type_"),
    [
        ("n::UTINYINT", pa.int64()),
        ("n::HUGEINT", pa.int64()),
        ("n::FLOAT", pa.float64()),
        ("n::DECIMAL(10, 2)", pa.decimal128(10, 2)),
        ("created::DATE", TIMESTAMP),
        ("date_trunc('hour', created)", TIMESTAMP),
        ("created AT TIME ZONE 'Asia/Jakarta'", TIMESTAMP),
        ("NULL", pa.string()),
        ("n > 1", pa.bool_()),
        ("city || 'x'", pa.string()),
    ],
)
def test_a_column_has_one_of_the_types_of_a_job(sql: str, type_: pa.DataType) -> None:
    expressions = Expressions(SCHEMA, {"x": sql})
    assert expressions.schema == pa.schema([("x", type_)])
    assert expressions.evaluate(ROWS).columns.schema == expressions.schema
    assert expressions.evaluate(ROWS.slice(0, 0)).columns.schema == expressions.schema


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("CAST(city AS BIGINT)", {1: 7, 2: None}),
        ("amount / 0", {2: None}),
        ("n // 0", {2: None}),
        ("ln(amount)", {0: pytest.approx(1.6094379), 2: None}),
        ("sqrt(amount)", {0: pytest.approx(2.2360680), 2: None}),
        ("1e308 * amount", {2: None}),
        ("n * 9223372036854775807", {0: 2**63 - 1, 2: None}),
        ("n::HUGEINT * 9223372036854775807", {0: 2**63 - 1, 2: None}),
        ("'nan'::DOUBLE", {}),
        ("'infinity'::TIMESTAMP", {}),
        ("epoch_ms(n * 400000000000000)", {2: None}),
    ],
)
def test_a_row_that_fails_fails_alone(sql: str, expected: dict[int, Any]) -> None:
    """Also a time that no document could show: RFC 3339 ends with the year 9999."""
    assert values(sql) == expected


def test_a_failure_says_what_failed_and_one_failing_expression_fails_the_row() -> None:
    expressions = Expressions(SCHEMA, {"a": "n + 1", "b": "CAST(city AS BIGINT)"})
    columns, positions, [(position, error)] = expressions.evaluate(ROWS)
    assert (position, positions.tolist()) == (0, [1, 2])
    assert "Solo" in error
    assert "\n" not in error
    assert columns.to_pylist() == [{"a": 3, "b": 7}, {"a": None, "b": None}]


def test_no_expressions_keep_all_rows() -> None:
    columns, positions, failures = Expressions(SCHEMA, {}).evaluate(ROWS)
    assert (columns.num_columns, positions.tolist(), list(failures)) == (0, [0, 1, 2], [])


def test_the_message_travels_past_expressions() -> None:
    origin = messages([b"1", b"2", b"3"]).to_struct_array()
    batch = pa.RecordBatch.from_arrays([ROWS["n"], origin], ["n", MESSAGE])
    assert values("n + 1", batch) == {0: 2, 1: 3, 2: None}


def test_columns_that_sql_takes_for_one_are_refused() -> None:
    """DuckDB would read the first for both."""
    schema = pa.schema([("id", pa.int64()), ("ID", pa.int64())])
    with pytest.raises(ExpressionError, match="id and ID"):
        Expressions(schema, {"x": "ID"})
    assert Expressions(schema, {}).schema.names == []


MIXED: Mapping[str, str] = {
    "a": "CAST(city AS BIGINT)",
    "b": "1 / amount",
    "c": "n * 4611686018427387904",
    "d": "CASE WHEN paid THEN date_trunc('hour', created) END",
    "e": "coalesce(city, '') || '/' || n",
}
ROW = st.tuples(
    st.none() | st.sampled_from([0.0, 1.5, -3.0, 1e-320]),
    st.none() | st.integers(-3, 3),
    st.none() | st.sampled_from(["7", "x", "", "-1"]),
    st.none() | st.booleans(),
    st.none() | st.integers(0, 10**8),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(ROW, min_size=1, max_size=30), st.lists(st.integers(0, 30), max_size=3))
def test_a_batch_cut_anywhere_gives_what_the_whole_gives(
    found: list[tuple[Any, ...]], cuts: list[int]
) -> None:
    expressions = Expressions(SCHEMA, MIXED)
    batch = rows(*(list(column) for column in zip(*found, strict=True)))
    whole = expressions.evaluate(batch)
    edges = sorted({0, len(found), *(cut for cut in cuts if cut < len(found))})
    parts = [
        (start, expressions.evaluate(batch.slice(start, stop - start)))
        for start, stop in pairwise([*edges, len(found)])
    ]
    assert pa.concat_batches([part.columns for _, part in parts]).equals(whole.columns)
    assert np.concatenate([s + part.positions for s, part in parts]).tolist() == (
        whole.positions.tolist()
    )
    assert [s + p for s, part in parts for p, _ in part.failures] == [p for p, _ in whole.failures]


def test_the_zone_of_the_machine_is_of_no_account() -> None:
    program = (
        "import pyarrow as pa\n"
        "from velocity.transforms.expressions import Expressions\n"
        "rows = pa.RecordBatch.from_pydict({'n': [0]})\n"
        "sql = {'h': 'hour(epoch_ms(n)::TIMESTAMPTZ)', 't': \"TIMESTAMPTZ '1970-01-01'\"}\n"
        "print(Expressions(rows.schema, sql).evaluate(rows).columns.to_pylist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TZ": "Asia/Jakarta"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "'h': 0" in done.stdout
    assert "datetime(1970, 1, 1, 0, 0" in done.stdout


def test_a_derived_time_is_utc() -> None:
    assert values("TIMESTAMP '2026-01-01 00:00:00'")[0] == datetime(2026, 1, 1, tzinfo=UTC)
    assert values("TIMESTAMPTZ '2026-01-01 07:00:00+07'")[0] == datetime(2026, 1, 1, tzinfo=UTC)


def test_no_expression_writes_or_reads_a_file(tmp_path: Path) -> None:
    """Even if the check let one through, DuckDB itself has no access."""
    for sql in (f"COPY (SELECT 1) TO '{tmp_path}/x'", "SET enable_external_access = true"):
        with pytest.raises(Exception, match=r"disabled|locked|Cannot"):
            _connection().execute(sql)
