"""Rows filtered by a condition and widened by computed columns; rows that fail are set aside."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from velocity.io.metrics import counter
from velocity.io.records import MESSAGE, Stage, WithDeadLetters, main_of, now
from velocity.transforms.expressions import (
    Evaluated,
    ExpressionError,
    Expressions,
    failed_rows,
)


class Where(beam.PTransform):
    """Keeps the rows that meet a SQL condition; null is not met. Rows to ``WithDeadLetters``.

    Raises ``ExpressionError`` at construction if the condition can't be used.
    """

    def __init__(
        self, condition: str, *, schema: pa.Schema, clock: Callable[[], datetime] = now
    ) -> None:
        super().__init__()
        self._expressions = Expressions(schema, {"where": condition})
        if not pa.types.is_boolean(self._expressions.schema.field(0).type):
            raise ExpressionError(f"a condition is wanted, true or false for each row: {condition}")
        self._clock = clock

    def expand(self, pvalueish: Any) -> Any:
        return _step(pvalueish, _Evaluate(self._expressions, _keep, "filtered_rows", self._clock))


class Derive(beam.PTransform):
    """Adds columns, each computed by a SQL expression over the columns there are so far.

    ``schema`` is that of the rows given, ``self.schema`` that of the rows put out. Raises
    ``ExpressionError`` at construction if an expression can't be used or a column is there already.
    """

    def __init__(
        self,
        columns: Mapping[str, str],
        *,
        schema: pa.Schema,
        clock: Callable[[], datetime] = now,
    ) -> None:
        super().__init__()
        for name in columns:
            if name in schema.names:
                raise ExpressionError(f"column {name} is there already; choose another name")
        self._expressions = Expressions(schema, columns)
        self._clock = clock
        self.schema = _before_message(schema, list(self._expressions.schema))

    def expand(self, pvalueish: Any) -> Any:
        add = _Add(self.schema)
        return _step(pvalueish, _Evaluate(self._expressions, add, "derived_rows", self._clock))


def _step(pvalueish: Any, evaluate: beam.DoFn) -> WithDeadLetters:
    step = beam.ParDo(evaluate).with_output_types(pa.RecordBatch, dead_letters=pa.RecordBatch)
    outputs = main_of(pvalueish) | "Evaluate" >> step.with_outputs("dead_letters", main="rows")
    return WithDeadLetters.joining(pvalueish, outputs.rows, outputs.dead_letters)


class _Evaluate(beam.DoFn):
    def __init__(
        self,
        expressions: Expressions,
        apply: Callable[[pa.RecordBatch, Evaluated], pa.RecordBatch],
        counted: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._expressions = expressions
        self._apply = apply
        self._counted = counter(counted)
        self._clock = clock

    def process(self, rows: pa.RecordBatch) -> Iterator[Any]:
        evaluated = self._expressions.evaluate(rows)
        if evaluated.failures:
            failed = failed_rows(
                rows, evaluated.failures, stage=Stage.DERIVE, failed_at=self._clock()
            )
            yield TaggedOutput("dead_letters", failed)
            rows = rows.take(pa.array(evaluated.positions))
        applied = self._apply(rows, evaluated)
        self._counted.inc(applied.num_rows)
        if applied.num_rows:
            yield applied


def _keep(rows: pa.RecordBatch, evaluated: Evaluated) -> pa.RecordBatch:
    return rows.filter(evaluated.columns.column(0))


class _Add:
    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema

    def __call__(self, rows: pa.RecordBatch, evaluated: Evaluated) -> pa.RecordBatch:
        columns = dict(zip(rows.schema.names, rows.columns, strict=True))
        columns |= dict(zip(evaluated.columns.schema.names, evaluated.columns.columns, strict=True))
        return pa.RecordBatch.from_arrays(
            [columns[name] for name in self._schema.names], schema=self._schema
        )


def _before_message(schema: pa.Schema, added: list[pa.Field]) -> pa.Schema:
    own = [column for column in schema if column.name != MESSAGE]
    last = [column for column in schema if column.name == MESSAGE]
    return pa.schema([*own, *added, *last])
