"""Pre-aggregation: a batch reduced to one partial result for each metric, key and slice of time."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from velocity.io.records import MESSAGE, TIMESTAMP, rfc3339, watermarks_of
from velocity.transforms.aggregates import Call, Value
from velocity.transforms.decimals import texts
from velocity.transforms.expressions import ExpressionError, Expressions
from velocity.transforms.lateness import Lateness
from velocity.transforms.metric import Metric
from velocity.transforms.reduction import Aggregate
from velocity.transforms.windows import Days, Fixed, Global, Session, Sliding

Partial = tuple[Any, ...]
"""The number of events, then the state of each call of the metric's values."""


class Reduced(NamedTuple):
    """A partial result of a batch, at a time that puts it into the windows of its events."""

    metric: Metric
    key: bytes
    time: int
    """Epoch milliseconds."""
    partial: Partial
    mean: int = 0
    """Of its events' times, epoch milliseconds."""
    last: int = 0
    """The latest of them."""
    slice: int = 0
    """Of time: partial results of one slice share all their windows."""


class Reduction(NamedTuple):
    """A batch's partial results, and the positions of rows that have none, with their errors."""

    partials: Sequence[Reduced]
    failures: Sequence[tuple[int, str]]
    late: Sequence[tuple[int, str]]
    """Rows that came too late for some metrics, which the errors name; they count in the others."""


class MetricError(ValueError):
    """A metric that can't be computed: which, and why."""


_SAME_TYPE: Final = ("sum", "min", "max", "first", "last")
"""Aggregates whose results are decimals if the values are."""


class PreAggregation:
    """Reduces batches of one schema for a number of metrics.

    >>> from datetime import timedelta
    >>> from velocity.transforms.windows import Fixed
    >>> minute = Fixed(timedelta(minutes=1))
    >>> rows = pa.RecordBatch.from_pydict({
    ...     "city": ["Solo", "Bandung", "Solo"],
    ...     "amount": [5, 20, 7],
    ...     "at": pa.array([1_000, 2_000, 61_000], TIMESTAMP),
    ... })
    >>> revenue = Metric("revenue", {"total": "sum(amount)"}, minute, by=["city"])
    >>> for reduced in PreAggregation(rows.schema, "at", [revenue]).reduce(rows).partials:
    ...     print(reduced.key, reduced.time, reduced.partial)
    b'["revenue","Solo"]' 1000 (1, (5, 0))
    b'["revenue","Bandung"]' 2000 (1, (5, 2))
    b'["revenue","Solo"]' 61000 (1, (7, 0))
    """

    def __init__(self, schema: pa.Schema, event_time: str, metrics: Sequence[Metric]) -> None:
        self._event_time = event_time
        self.metrics = metrics
        names = [metric.name for metric in metrics]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise MetricError(f"metric {min(repeated)}: given twice; rename one of them")
        schema = pa.schema([column for column in schema if column.name != MESSAGE])
        self.values: Mapping[str, Mapping[str, Value]] = {
            metric.name: {
                name: _about(metric, Value.parse, text) for name, text in metric.values.items()
            }
            for metric in metrics
        }
        """Of each metric, by its name: its values by theirs."""
        self._calls = {
            metric.name: [call for value in values.values() for call in value.calls]
            for metric, values in zip(metrics, self.values.values(), strict=True)
        }
        self._expressions = _expressions(schema, metrics, self._calls)
        self.columns: Mapping[str, pa.DataType] = {
            c.name: c.type for c in [*schema, *self._expressions.schema]
        }
        """Types of the rows' columns, and of all that is computed from them."""
        self.aggregates: Mapping[str, Sequence[Aggregate]] = {
            metric.name: [
                _about(metric, call.aggregate, self.columns.get(call.expression or "", pa.bool_()))
                for call in self._calls[metric.name]
            ]
            for metric in metrics
        }
        """Of each metric, by its name: one for each call of its values, in their order."""
        self.decimals: Mapping[str, frozenset[str]] = {
            metric.name: frozenset(
                name
                for name, value in self.values[metric.name].items()
                if len(value.calls) == 1 and value.calls[0].function in _SAME_TYPE
                if pa.types.is_decimal(self.columns[value.calls[0].expression or ""])
            )
            for metric in metrics
        }
        """Of each metric, by its name: those of its values that are decimals, and so text."""
        for metric in metrics:
            self._check(metric)

    def calls_of(self, metric: str) -> list[list[Any]]:
        """What the states of a metric's partial results are of, as JSON has it.

        Function, expression, parameter and the type of the values: what has these alike has states alike.
        """
        return [
            [*call, str(self.columns[call.expression] if call.expression else "")]
            for call in self._calls[metric]
        ]

    def _check(self, metric: Metric) -> None:
        for name, value in self.values[metric.name].items():
            for call in value.calls if len(value.calls) > 1 else ():
                type_ = self.columns.get(call.expression or "", pa.bool_())
                if call.function in ("min", "max") and not _is_number(type_):
                    raise MetricError(
                        f"metric {metric.name}, {name}: ratio: {call.expression} is of type "
                        f"{type_}; divide numbers"
                    )
        for column in metric.by:
            if column not in self.columns:
                raise MetricError(f"metric {metric.name}, by: unknown column {column}")
            if pa.types.is_floating(self.columns[column]):
                raise MetricError(
                    f"metric {metric.name}, by: {column} is a double, which makes no key; "
                    "derive a column that rounds it or casts it to text"
                )
        if metric.where and not pa.types.is_boolean(self.columns[metric.where]):
            raise MetricError(
                f"metric {metric.name}, where: a condition is wanted; {metric.where} is of type "
                f"{self.columns[metric.where]}"
            )

    def reduce(self, rows: pa.RecordBatch, *, spanning: bool = True) -> Reduction:
        """Partial results of all metrics; a row for which an expression fails counts in none.

        Sessions get empty ones too, to be held together by Beam's own windows (``spanning``).

        A row is late for a metric if the watermark before it (``ORIGIN``) had passed the end of its
        window by the metric's lateness. No runner drops what is left: its watermark is behind that.
        """
        columns, positions, failures = self._expressions.evaluate(rows)
        if failures:
            rows = rows.take(pa.array(positions))
        arrays = dict(zip(rows.schema.names, rows.columns, strict=True))
        arrays |= dict(zip(columns.schema.names, columns.columns, strict=True))
        times = arrays[self._event_time].view(pa.int64())
        lateness = Lateness(times, watermarks_of(rows).view(pa.int64()))
        keys = {
            column: _encoded(arrays[column])
            for column in dict.fromkeys(c for metric in self.metrics for c in metric.by)
        }
        instants = times.to_numpy()

        @cache
        def slices(window: Fixed | Days | Sliding | Global) -> pa.Array:
            return pa.array(window.slices(instants))

        partials: list[Reduced] = []
        for metric in self.metrics:
            partials += self._reduce(
                metric, arrays, keys, times, slices, lateness, spanning=spanning
            )
        late = [(int(positions[row]), error) for row, error in lateness.errors()]
        return Reduction(partials, failures, late)

    def _reduce(
        self,
        metric: Metric,
        arrays: Mapping[str, pa.Array],
        encoded: Mapping[str, pa.DictionaryArray],
        times: pa.Array,
        slices: Callable[[Fixed | Days | Sliding | Global], pa.Array],
        lateness: Lateness,
        *,
        spanning: bool,
    ) -> Iterator[Reduced]:
        calls = self._calls[metric.name]
        always = pa.repeat(True, len(times))  # what count() counts
        values = [arrays.get(call.expression or "", always) for call in calls]
        keys = [encoded[column] for column in metric.by]
        names = [f"k{i}" for i in range(len(keys))]
        table = pa.table(
            [*(key.indices for key in keys), *values, times],
            [*names, *(f"v{i}" for i in range(len(values))), "t"],
        )
        if not isinstance(metric.window, Session):
            table = table.append_column("slice", slices(metric.window))
        wanted = lateness.admitted(metric, arrays[metric.where] if metric.where else None)
        if wanted is not None:
            table = table.filter(wanted)
        if not table.num_rows:
            return
        table = table.combine_chunks()
        if isinstance(metric.window, Session):
            sizes = [len(key.dictionary) for key in keys]
            table = table.append_column("slice", _runs(metric.window, table, names, sizes))
        instants = table["t"].combine_chunks()
        reductions = [
            aggregate.reduce(table[f"v{i}"].combine_chunks(), instants)
            for i, aggregate in enumerate(self.aggregates[metric.name])
        ]
        columns: list[tuple[Any, str]] = [
            *((("t", function)) for function in ("min", "max", "mean")),
            ([], "count_all"),
        ]
        for i, reduction in enumerate(reductions):
            for j, (column, function) in enumerate(reduction.columns):
                table = table.append_column(f"r{i}_{j}", column)
                columns.append((f"r{i}_{j}", function))
        # One thread: the core belongs to Beam, and groups come in the order of their first row.
        grouped = table.group_by([*names, "slice"], use_threads=False).aggregate(columns)
        states = [
            reduction.states(
                *(
                    grouped[f"r{i}_{j}_{function}"].combine_chunks()
                    for j, (_, function) in enumerate(reduction.columns)
                )
            )
            for i, reduction in enumerate(reductions)
        ]
        dimensions = [
            _decoded(grouped[name], key.dictionary) for name, key in zip(names, keys, strict=True)
        ]
        yield from _put_out(metric, grouped, dimensions, states, spanning=spanning)


def _put_out(
    metric: Metric,
    grouped: pa.Table,
    dimensions: Sequence[Sequence[Any]],
    states: Sequence[Sequence[Any]],
    *,
    spanning: bool,
) -> Iterator[Reduced]:
    firsts, lasts = grouped["t_min"].to_pylist(), grouped["t_max"].to_pylist()
    at = firsts
    if isinstance(metric.window, Days):
        at = metric.window.stamps(grouped["t_min"].combine_chunks().to_numpy()).tolist()
    means, slices = grouped["t_mean"].to_pylist(), grouped["slice"].to_pylist()
    empty: Partial = (0, *[None] * len(states))
    for i, events in enumerate(grouped["count_all"].to_pylist()):
        key = _DUMPS([metric.name, *(values[i] for values in dimensions)]).encode()
        partial = (events, *(column[i] for column in states))
        yield Reduced(metric, key, at[i], partial, int(means[i]), lasts[i], slices[i])
        if spanning and isinstance(metric.window, Session):
            for time in metric.window.spanning(firsts[i], lasts[i]):
                yield Reduced(metric, key, time, empty)


def merge(aggregates: Sequence[Aggregate], partials: Iterable[Partial]) -> Partial:
    """One partial result for several of the same metric and key."""
    partials = list(partials)
    if len(partials) == 1:
        return partials[0]
    events = sum(partial[0] for partial in partials)
    merged: list[Any] = []
    for i, aggregate in enumerate(aggregates, start=1):
        states = [partial[i] for partial in partials if partial[i] is not None]
        merged.append(aggregate.merge(states) if len(states) > 1 else states[0] if states else None)
    return (events, *merged)


_DUMPS: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _encoded(column: pa.Array) -> pa.DictionaryArray:
    """A key's column as numbers, null one of them: all metrics group by these, which is cheaper."""
    return column.dictionary_encode(null_encoding="encode")


def _decoded(codes: pa.ChunkedArray, dictionary: pa.Array) -> list[Any]:
    """What numbers stand for, as JSON has it.

    >>> cities = _encoded(pa.array(["Solo", None, "Solo"]))
    >>> _decoded(pa.chunked_array([cities.indices]), cities.dictionary)
    ['Solo', None, 'Solo']
    """
    used, which = np.unique(codes.to_numpy(), return_inverse=True)
    values = _json_values(dictionary.take(pa.array(used)))
    return [values[i] for i in which.tolist()]


def _json_values(column: pa.Array) -> list[Any]:
    if column.type == TIMESTAMP:
        millis = column.cast(pa.int64()).to_pylist()
        return [None if value is None else rfc3339(value) for value in millis]
    if pa.types.is_decimal(column.type):
        return texts(column)
    values: list[Any] = column.to_pylist()
    return values


def _runs(window: Session, table: pa.Table, names: Sequence[str], sizes: Sequence[int]) -> pa.Array:
    """``names`` are of the keys' columns, whose numbers are below ``sizes``."""
    times = table["t"].combine_chunks().to_numpy()
    keys, most = np.zeros(len(times), np.int64), 1
    for name, size in zip(names, sizes, strict=True):
        if most * size >= 1 << 62:
            keys = np.unique(keys, return_inverse=True)[1]  # small again
            most = len(keys)
        keys, most = keys * size + table[name].to_numpy(), most * size
    return pa.array(window.runs(keys, times))


def _expressions(
    schema: pa.Schema, metrics: Sequence[Metric], calls: Mapping[str, Sequence[Call]]
) -> Expressions:
    """All that the metrics compute, under its own text as the name; bare columns need nothing."""
    wanted: dict[str, str] = {}
    for metric in metrics:
        for expression in [metric.where, *(call.expression for call in calls[metric.name])]:
            if expression is not None and expression not in schema.names:
                _about(metric, Expressions, schema, {expression: expression})
                wanted[expression] = expression
    return Expressions(schema, wanted)


def _is_number(type_: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_))


def _about(metric: Metric, make: Any, *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except (ValueError, ExpressionError) as error:
        raise MetricError(f"metric {metric.name}: {error}") from error
