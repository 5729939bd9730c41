"""Aggregates as a job writes them: ``sum(amount)``, ``ratio(sum(paid), sum(amount))``."""

import ast
import difflib
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import pyarrow as pa

from velocity.transforms.exact_sums import to_float
from velocity.transforms.moments import Count, Mean, Sum, Variance
from velocity.transforms.ordered import Edge, Extreme
from velocity.transforms.reduction import Aggregate
from velocity.transforms.sketches import Distinct, Percentile
from velocity.transforms.tallies import Histogram, Top


class Value(NamedTuple):
    """A value of a document: one aggregate, or the ratio of two."""

    calls: tuple["Call", ...]

    @classmethod
    def parse(cls, text: str) -> "Value":
        """Reads an aggregate, or ``ratio(AGGREGATE, AGGREGATE)``.

        >>> [call.function for call in Value.parse("ratio(count(paid), count())").calls]
        ['count', 'count']
        >>> Value.parse("ratio(amount, 2)")
        Traceback (most recent call last):
        ValueError: ratio: an aggregate such as sum(amount) is wanted, not: amount
        """
        call = _CALL.fullmatch(text)
        if not call or call[1] != "ratio":
            return cls((Call.parse(text),))
        parts = _split(call[2])
        if len(parts) != 2:
            raise ValueError(f"ratio(AGGREGATE, AGGREGATE) is wanted, not: {text}")
        try:
            calls = tuple(Call.parse(part) for part in parts)
        except ValueError as error:
            raise ValueError(f"ratio: {error}") from None
        for part in calls:
            if part.function not in _NUMERIC:
                raise ValueError(f"ratio: {part.function}(…) is no number; divide numbers")
        return cls(calls)

    def result(self, results: Sequence[Any]) -> Any:
        """From the results of the calls. A ratio is rounded once; null over or of null, or over 0.

        >>> Value.parse("ratio(sum(a), count())").result([1, 3])
        0.3333333333333333
        """
        if len(self.calls) == 1:
            return results[0]
        over, under = (None if result is None else Fraction(result) for result in results)
        if over is None or not under:
            return None
        return to_float(over / under, 0)


class Call(NamedTuple):
    """An aggregate as a job writes it."""

    function: str
    expression: str | None
    """A SQL scalar expression; None in ``count()``."""
    parameter: float | tuple[int | float, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> "Call":
        """Reads ``function(expression)``, or with a parameter ``percentile(expression, rank)``.

        >>> Call.parse("percentile(amount / 1000, 99.9)")
        Call(function='percentile', expression='amount / 1000', parameter=99.9)
        >>> Call.parse("histogram(amount, [10, 50])").parameter
        (10, 50)
        >>> Call.parse("count()")
        Call(function='count', expression=None, parameter=None)
        >>> Call.parse("totl(amount)")
        Traceback (most recent call last):
        ValueError: unknown aggregate totl; there are: count, distinct, first, histogram, last, max, \
mean, min, percentile, ratio, stddev, sum, top, variance
        """
        call = _CALL.fullmatch(text)
        if not call:
            if _names_aggregate(text) and text.count("(") == text.count(")"):
                raise ValueError(_ALONE.format(text))
            raise ValueError(f"an aggregate such as sum(amount) is wanted, not: {text}")
        function, expression = call[1], call[2].strip()
        if not _closes_last(call[2]) or (function not in FUNCTIONS and _names_aggregate(call[2])):
            raise ValueError(_ALONE.format(text))
        if function not in FUNCTIONS:
            near = difflib.get_close_matches(function, FUNCTIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(FUNCTIONS)}"
            raise ValueError(f"unknown aggregate {function}; {hint}")
        if function == "ratio":
            raise ValueError("a ratio can't be part of another")
        if not expression and function != "count":
            raise ValueError(f"{function}() needs an expression: {function}(amount), for instance")
        if function not in _PARAMETERS:
            return cls(function, expression or None)
        *rest, last = _split(expression)
        try:
            parameter = ast.literal_eval(last.strip())
            if function == "histogram":
                parameter = tuple(map(_number, parameter))
            else:
                parameter = float(_number(parameter)) if function == "percentile" else parameter
            if not "".join(rest).strip() or (function == "top" and type(parameter) is not int):
                raise ValueError
        except (ValueError, SyntaxError, TypeError):
            raise ValueError(f"{_PARAMETERS[function]} is wanted, not: {text}") from None
        return cls(function, ",".join(rest).strip(), parameter)

    def aggregate(self, type_: pa.DataType) -> Aggregate:
        """The aggregate over values of a column type.

        >>> Call.parse("sum(city)").aggregate(pa.string())
        Traceback (most recent call last):
        ValueError: sum(city) needs numbers; city is of type string
        """
        types = pa.types
        scale: int | None = type_.scale if types.is_decimal(type_) else None
        number = types.is_integer(type_) or types.is_floating(type_) or scale is not None
        time = types.is_timestamp(type_)
        if self.function in _OF_NUMBERS and not number:
            raise ValueError(
                f"{self.function}({self.expression}) needs numbers; "
                f"{self.expression} is of type {type_}"
            )
        match self.function, self.parameter:
            case "count", _:
                return Count()
            case "sum", _:
                return Sum(types.is_integer(type_), scale)
            case "mean", _:
                return Mean(scale or 0)
            case ("variance" | "stddev") as which, _:
                return Variance(which == "stddev", scale or 0)
            case ("min" | "max") as which, _ if number or time or types.is_string(type_):
                return Extreme(which, time, scale)
            case ("first" | "last") as which, _:
                return Edge(which, time, scale)
            case "distinct", _:
                return Distinct()
            case "percentile", float(rank):
                return Percentile(rank)
            case "histogram", tuple(bounds):
                return Histogram(bounds)
            case "top", int(k) if not types.is_floating(type_):
                return Top(k, time=time, scale=scale)
        raise ValueError(f"{self.function}({self.expression}) does not take type {type_}")


FUNCTIONS: Final = (
    "count", "distinct", "first", "histogram", "last", "max", "mean", "min", "percentile",
    "ratio", "stddev", "sum", "top", "variance",
)  # fmt: skip
_OF_NUMBERS: Final = ("sum", "mean", "variance", "stddev", "percentile", "histogram")
_NUMERIC: Final = ("count", "distinct", "max", "min", *_OF_NUMBERS[:-1])
"""Those whose results are numbers, if the values are."""
_PARAMETERS: Final = {
    "percentile": "percentile(EXPRESSION, RANK)",
    "top": "top(EXPRESSION, HOW_MANY)",
    "histogram": "histogram(EXPRESSION, [BOUND, BOUND])",
}
_ALONE: Final = (
    "one aggregate is wanted, with nothing around it, not: {}; compute within it, such as "
    "sum(a + abs(b)), divide by ratio(AGGREGATE, AGGREGATE), or give each a value of its own"
)
_CALL: Final = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)
_TOKENS: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|.", re.DOTALL)


def _number(value: Any) -> int | float:
    if type(value) not in (int, float):
        raise ValueError
    return value  # type: ignore[no-any-return]


def _names_aggregate(text: str) -> bool:
    return any(re.search(rf"\b{name}\s*\(", text) for name in FUNCTIONS)


def _closes_last(inside: str) -> bool:
    """Whether a bracket around a text would close after it, not within.

    >>> _closes_last("greatest(a, ')')"), _closes_last("a) + abs(b")
    (True, False)
    """
    depth = 0
    for token in _TOKENS.findall(inside):
        depth += (token in "([{") - (token in ")]}")
        if depth < 0:
            return False
    return True


def _split(text: str) -> list[str]:
    """What commas divide, but for those within brackets or quotes.

    >>> _split("greatest(a, b), [1, 2]")
    ['greatest(a, b)', ' [1, 2]']
    """
    parts, depth = [""], 0
    for token in _TOKENS.findall(text):
        depth += (token in "([{") - (token in ")]}")
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts
