"""SQL scalar expressions over the rows of a batch, evaluated by DuckDB."""

import difflib
import json
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.records import (
    FIRST_MILLI,
    LAST_MILLI,
    MESSAGE,
    TIMESTAMP,
    Cause,
    Stage,
    dead_letters,
    messages_of,
)

_local: Final = threading.local()
_DECIMALS: Final = ("DECIMAL", "NUMERIC", "DEC")
"""Names of one type."""
_NOT_FINITE: Final = "not a finite number, or a time beyond the years 1 to 9999"


class ExpressionError(ValueError):
    """An expression that can't be used: what is wrong with it, and the remedy."""


class Evaluated(NamedTuple):
    """The expressions' columns, for those rows that have a value."""

    columns: pa.RecordBatch
    positions: npt.NDArray[np.int64]
    """Which rows the columns are of, ascending."""
    failures: Sequence[tuple[int, str]]
    """The positions of the other rows, ascending, each with its error."""


class Expressions:
    """Named expressions over rows of a schema, all evaluated in one pass.

    Only what gives each row a value of its own is accepted: no aggregate, window function or
    subquery, for its result would depend on where a batch was cut; nothing that reads the clock or
    a random number, for a replay would give another. Times are UTC. DuckDB can reach neither files
    nor network.

    >>> rows = pa.RecordBatch.from_pydict({"amount": [5.0, 20.0], "city": ["Solo", "Bandung"]})
    >>> expressions = Expressions(rows.schema, {"large": "amount > 10", "where": "upper(city)"})
    >>> expressions.evaluate(rows).columns.to_pylist()
    [{'large': False, 'where': 'SOLO'}, {'large': True, 'where': 'BANDUNG'}]
    >>> Expressions(rows.schema, {"x": "amonut > 10"})
    Traceback (most recent call last):
    velocity.transforms.expressions.ExpressionError: unknown column amonut; did you mean amount?
    """

    def __init__(self, schema: pa.Schema, expressions: Mapping[str, str]) -> None:
        self._input = pa.schema([column for column in schema if column.name != MESSAGE])
        for expression in expressions.values():
            _check(expression, self._input.names)
        if expressions:
            _check_names(self._input.names)
        # The line end guards the bracket against an expression that ends with a comment.
        self._sql = ", ".join(f"({sql}\n) AS c{i}" for i, sql in enumerate(expressions.values()))
        types = []
        if expressions:
            try:
                none = _query(pa.RecordBatch.from_pylist([], schema=self._input), self._sql)
            except duckdb.Error as error:
                sql = ", ".join(expressions.values())
                raise ExpressionError(f"{_first_line(error)} in: {sql}") from error
            types = [
                _normal(type_, name, exact=self._of_decimals(sql))
                for type_, (name, sql) in zip(none.schema.types, expressions.items(), strict=True)
            ]
        self.schema = pa.schema(list(zip(expressions, types, strict=True)))
        """Of the expressions' columns, in their order."""

    def _of_decimals(self, expression: str) -> bool:
        """Whether a decimal column is in it, or a cast to a decimal."""
        used = columns_in(expression, self._input.names)
        return any(pa.types.is_decimal(self._input.field(name).type) for name in used) or any(
            node.get("type_name", "").upper() in _DECIMALS
            for node in _nodes(_parse(f"SELECT ({expression}\n)", expression))
            if node.get("class") == "TYPE"
        )

    def evaluate(self, rows: pa.RecordBatch) -> Evaluated:
        """Evaluates all; a row's failure (a cast that can't be made, a number that is not finite,
        a time that no year of four digits holds) is its own and leaves the other rows their
        values."""
        if not self.schema.names:
            return Evaluated(rows.select([]), np.arange(rows.num_rows), [])
        rows = rows.select(self._input.names)
        parts, positions, failures = [], [], []
        ranges = [(0, rows.num_rows)]
        while ranges:
            start, stop = ranges.pop()
            try:
                columns = self._evaluate(rows.slice(start, stop - start))
            except (duckdb.Error, pa.ArrowInvalid) as error:
                if stop - start > 1:
                    middle = (start + stop) // 2
                    ranges += [(middle, stop), (start, middle)]
                else:
                    failures.append((start, _first_line(error)))
                continue
            finite = _finite(columns)
            failures += [(start + int(i), _NOT_FINITE) for i in np.flatnonzero(~finite)]
            parts.append(columns.filter(pa.array(finite)))
            positions.append(start + np.flatnonzero(finite))
        return Evaluated(
            pa.concat_batches(parts) if parts else pa.RecordBatch.from_pylist([], self.schema),
            np.concatenate(positions) if positions else np.array([], np.int64),
            failures,
        )

    def _evaluate(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        columns = _query(rows, self._sql)
        if columns.num_rows != rows.num_rows:
            raise AssertionError("an expression changed the number of rows")
        return pa.RecordBatch.from_arrays(
            [
                pc.cast(column.combine_chunks(), field.type, safe=field.type != TIMESTAMP)
                for column, field in zip(columns.columns, self.schema, strict=True)
            ],
            schema=self.schema,
        )


def columns_in(expression: str, columns: Collection[str]) -> set[str]:
    """Which of the columns an expression needs, as they are written there.

    >>> columns_in("Amount / nullif(km, 0)", ["amount", "km", "city"]) == {"amount", "km"}
    True
    """
    found = {
        part.lower()
        for node in _nodes(_parse(f"SELECT ({expression}\n)", expression))
        if node.get("class") == "COLUMN_REF"
        for part in node["column_names"]
    }
    return {column for column in columns if column.lower() in found}


def failed_rows(
    rows: pa.RecordBatch,
    failures: Sequence[tuple[int, str]],
    *,
    stage: Stage,
    failed_at: datetime,
    cause: Cause = Cause.EXPRESSION_FAILED,
) -> pa.RecordBatch:
    """Dead letters of the rows (with ``MESSAGE``) at the positions of ``failures``, of which there
    is at least one."""
    positions, errors = zip(*failures, strict=True)
    return dead_letters(
        messages_of(rows.take(pa.array(positions))),
        stage=stage,
        causes=[cause] * len(errors),
        errors=errors,
        failed_at=failed_at,
    )


def _connection() -> duckdb.DuckDBPyConnection:
    """One for each thread: a connection serves one query at a time."""
    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect(
            config={
                "threads": 1,  # a second thread could reorder rows, and takes a core from Beam
                "enable_external_access": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            }
        )
        # Or the machine's zone would decide what hour it is in a TIMESTAMPTZ.
        _local.connection.execute("SET TimeZone = 'UTC'; SET lock_configuration = true")
    connection: duckdb.DuckDBPyConnection = _local.connection
    return connection


def _query(rows: pa.RecordBatch, sql: str) -> pa.Table:
    # DuckDB would need an extension for times with a zone; all of ours are UTC.
    naive = [c.cast(pa.timestamp("ms")) if c.type == TIMESTAMP else c for c in rows.columns]
    table = pa.Table.from_arrays(naive, names=rows.schema.names)
    return _connection().from_arrow(table).project(sql).to_arrow_table()


def _normal(type_: pa.DataType, name: str, *, exact: bool) -> pa.DataType:
    """The column type of a job that stands for one of DuckDB's. To DuckDB a literal such as 1.5 is a
    decimal too; one is meant (``exact``) where a column is one, or a cast makes one."""
    types = pa.types
    if exact and types.is_decimal(type_):
        return pa.decimal128(type_.precision, type_.scale)
    if types.is_boolean(type_) or types.is_string(type_):
        return type_
    if types.is_integer(type_) or (types.is_decimal(type_) and type_.scale == 0):
        return pa.int64()
    if types.is_floating(type_) or types.is_decimal(type_):
        return pa.float64()
    if types.is_timestamp(type_) or types.is_date(type_):
        return TIMESTAMP
    if types.is_null(type_):
        return pa.string()
    raise ExpressionError(f"{name} is of type {type_}; cast it to a number, text or timestamp")


def _finite(columns: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    finite = np.ones(columns.num_rows, bool)
    for column in columns.columns:
        if pa.types.is_floating(column.type):
            finite &= pc.fill_null(pc.is_finite(column), True).to_numpy(zero_copy_only=False)
        elif column.type == TIMESTAMP:
            millis = pc.fill_null(column.view(pa.int64()), 0).to_numpy()
            finite &= (millis >= FIRST_MILLI) & (millis <= LAST_MILLI)
    return finite


def _check(expression: str, columns: Sequence[str]) -> None:
    # Without brackets too, or `a) + (b` would pass for one expression and mean another.
    _parse(f"SELECT {expression}\n", expression)
    selected = _parse(f"SELECT ({expression}\n)", expression)
    lowered = {column.lower() for column in columns}
    for node in _nodes(selected):
        match node.get("class"):
            case "WINDOW" | "SUBQUERY" | "STAR" as kind:
                what = {"WINDOW": "a window function", "SUBQUERY": "a subquery", "STAR": "a *"}[
                    kind
                ]
                raise ExpressionError(f"{what} gives no value of one row alone: {expression}")
            case "COLUMN_REF":
                name = node["column_names"][0]
                if name.lower() not in lowered:
                    raise ExpressionError(f"unknown column {name}{_nearest(name, columns)}")
            case "FUNCTION":
                _check_function(node["function_name"].lower(), len(node["arguments"]))


def _parse(sql: str, expression: str) -> Any:
    """The one thing that a statement selects, and it does nothing but select."""
    serialized = _connection().execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0]
    parsed = json.loads(serialized)
    if parsed["error"]:
        raise ExpressionError(f"{parsed['error_message']} in: {expression}")
    nodes = [statement["node"] for statement in parsed["statements"]]
    selected = nodes[0].pop("select_list", []) if len(nodes) == 1 else []
    bare = (
        len(selected) == 1
        and nodes[0].pop("from_table")["type"] == "EMPTY"
        and nodes[0] == _bare_select()
        and not selected[0]["alias"]
    )
    if not bare:
        raise ExpressionError(f"one scalar expression is wanted, not: {expression}")
    return selected[0]


@cache
def _bare_select() -> Mapping[str, Any]:
    """What is left of ``SELECT 1`` without its 1: no WHERE, no LIMIT, no UNION."""
    serialized = _connection().execute("SELECT json_serialize_sql('SELECT 1')").fetchall()[0][0]
    node: dict[str, Any] = json.loads(serialized)["statements"][0]["node"]
    del node["select_list"], node["from_table"]
    return node


def _check_names(columns: Sequence[str]) -> None:
    lowered: dict[str, str] = {}
    for column in columns:
        other = lowered.setdefault(column.lower(), column)
        if other != column:
            raise ExpressionError(
                f"SQL takes the columns {other} and {column} for one; rename one of them"
            )


def _check_function(name: str, arguments: int) -> None:
    found = _functions().get(name, [])
    kinds = {function.kind for function in found}
    if kinds and not kinds & {"scalar", "macro"}:
        verb = "aggregates" if "aggregate" in kinds else "gives rows"
        raise ExpressionError(f"{name}() {verb}; here each row must give a value of its own")
    if (
        any(function.stability not in (None, "CONSISTENT") for function in found)
        or name in _READ_THE_CLOCK
        or (name == "age" and arguments == 1)
    ):
        raise ExpressionError(f"{name}() gives another value at each run, so a replay would differ")
    for function in found:
        if function.kind == "macro":
            _check_macro(function)


def _check_macro(macro: "_Function") -> None:
    """A macro is SQL of its own, and may hide all that an expression may not say."""
    try:
        _check(macro.definition, macro.parameters)
    except ExpressionError as error:
        raise ExpressionError(f"{macro.name}() can't be used: {error}") from error


class _Function(NamedTuple):
    """One overload of a function of DuckDB's."""

    name: str
    kind: str
    stability: str | None
    parameters: Sequence[str]
    definition: str


_READ_THE_CLOCK: Final = {"current_localtime", "current_localtimestamp"}
"""Functions that DuckDB says are consistent and that are not."""


@cache
def _functions() -> Mapping[str, Sequence[_Function]]:
    """All of DuckDB's functions, by name."""
    found: dict[str, list[_Function]] = {}
    for row in (
        _connection()
        .execute(
            "SELECT function_name, function_type, stability, parameters, macro_definition "
            "FROM duckdb_functions()"
        )
        .fetchall()
    ):
        found.setdefault(row[0], []).append(_Function(*row))
    return found


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for branch in tree.values():
            yield from _nodes(branch)
    elif isinstance(tree, list):
        for branch in tree:
            yield from _nodes(branch)


def _nearest(name: str, columns: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, columns, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(columns)}"


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
