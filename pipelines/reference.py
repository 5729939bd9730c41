"""The reference of job files: the page ``docs/jobs.md`` and the JSON Schema, made from the model."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from velocity.pipelines.job import (
    Decimal,
    Duration,
    Expression,
    Job,
    Shift,
    Shorthand,
    format_duration,
)

REGENERATE: Final = (
    'python -c "from velocity.pipelines.reference import reference; '
    "print(reference(), end='')\" > docs/jobs.md"
)
REGENERATE_SCHEMA: Final = "velocity schema > docs/job.schema.json"

EXAMPLE: Final = """\
# yaml-language-server: $schema=docs/job.schema.json
job: deliveries
source:
  kafka: {bootstrap_servers: "${KAFKA}", topics: [pharmacy.events]}
  event_time: event_time
fields:
  event_type: {type: string, required: true}
  event_time: timestamp
  provider_id: string
  patient_id: string
  amount: int64
enrich:
  - name: provider
    get: "${PROVIDERS}/providers?ids={keys}"
    key: provider_id
    id: id
    add: {city: address.city, rating: {path: rating, type: double}}
derive:
  is_large: amount >= 250000
metrics:
  - name: orders_by_city
    where: event_type = 'order.created'
    by: [city]
    window: {fixed: 1m}
    emit: {early: 10s, lateness: 1h}
    values:
      orders: count()
      large: count(CASE WHEN is_large THEN 1 END)
      revenue: sum(amount)
      patients: distinct(patient_id)
      p95_amount: percentile(amount, 95)
sinks:
  elasticsearch: {url: "${ELASTICSEARCH}", index: "deliveries-{window_start:%Y.%m}"}
dead_letters: {kafka: deliveries.dead-letters}
"""

ACCEPTED: Final = {
    "event_type = 'order.created' AND amount > 0": "Comparisons; text stands in single quotes.",
    "amount / nullif(distance_km, 0)": "Arithmetic; `/` gives a double, `//` a whole number.",
    "price * 1.11": "A decimal stays one: nothing is rounded, and what needs more digits than DuckDB "
    "gives the result is a dead letter. Divided it gives a double.",
    "coalesce(city, 'unknown')": "Null spreads through an expression until it is caught.",
    "CASE WHEN amount >= 250000 THEN 'large' ELSE 'small' END": "A choice.",
    "count_of_items::DOUBLE": "A cast; of a row where it can't be made, the event is a dead letter.",
    "try_cast(code AS BIGINT)": "A cast that gives null where it can't be made. A condition beside "
    "a plain cast is no guard: SQL may evaluate both.",
    '"order" > 5': "A column named like a word of SQL stands in double quotes.",
    "lower(split_part(code, '-', 1))": "Functions of text.",
    "hour(event_time + INTERVAL 7 HOUR)": "Functions of time. Times are UTC: this is Jakarta's hour.",
    "date_diff('minute', placed_at, event_time)": "The time between two times.",
}
"""Expressions over the columns of ``EXPRESSION_FIELDS``, and what they show."""

REFUSED: Final = {
    "sum(amount)": "An aggregate. In `values` it is the outermost call and no part of an expression.",
    "row_number() OVER ()": "A window function: its result would depend on where a batch was cut.",
    "(SELECT max(amount) FROM events)": "A subquery, for the same reason.",
    "now() - event_time": "The clock: a replay would give another result.",
    "random() < 0.1": "A random number: so would this.",
    "read_text('/etc/hostname')": "Anything outside: DuckDB can open neither files nor connections.",
    "amuont > 10": "A column that is not there.",
}

EXPRESSION_FIELDS: Final = {
    "event_type": "string",
    "event_time": "timestamp",
    "placed_at": "timestamp",
    "city": "string",
    "code": "string",
    "amount": "int64",
    "count_of_items": "int64",
    "order": "int64",
    "distance_km": "double",
    "price": "decimal(18, 2)",
}

AGGREGATES: Final = {
    "count()": "How many events.",
    "count(x)": "How many events where x is not null.",
    "sum(x)": "The sum of numbers, exact whatever their order; null if there is none. Of decimals a "
    "decimal, as text.",
    "mean(x)": "The mean of numbers.",
    "variance(x)": "The sample variance of numbers, exact and rounded once; null if there are fewer "
    "than two.",
    "stddev(x)": "Its square root.",
    "min(x)": "The least number, text or time.",
    "max(x)": "The greatest.",
    "first(x)": "The value of the first event by event time that has one; of several at one time the "
    "least.",
    "last(x)": "Of the last event; of several at one time the greatest.",
    "distinct(x)": "How many different values: exact up to 1,000, then estimated (HyperLogLog, "
    "standard error 1.6 %).",
    "percentile(x, 95)": "What 95 % of the numbers do not exceed: exact up to 256 of them, then "
    "within 0.5 % of itself (DDSketch).",
    "top(x, 5)": "The five most frequent values (no doubles), `[{value, count}, …]`; of equally "
    "frequent ones the least first. Null if there are more than 10,000 different ones.",
    "histogram(x, [10, 50])": "How many numbers are below 10, from 10 to below 50, and from 50 on: "
    "`{bounds: [10, 50], counts: […]}`.",
    "ratio(sum(x), count())": "One aggregate over another, rounded once; null over nought.",
}


class _Schema(GenerateJsonSchema):
    def encode_default(self, dft: Any) -> Any:
        """As a job writes it: pydantic would write a duration as ISO 8601 does."""
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a job, by which editors complete and check one.

    >>> schema()["properties"]["job"]["description"]
    'Its name, in every document and dead letter.'
    """
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **Job.model_json_schema(schema_generator=_Schema),
        "title": "Velocity job",
    }


def reference() -> str:
    """The page ``docs/jobs.md``.

    >>> reference().splitlines()[0]
    '# Job files'
    """
    return _PAGE.format(
        regenerate=REGENERATE,
        regenerate_schema=REGENERATE_SCHEMA,
        example=EXAMPLE,
        fields="\n".join(
            _table(("Column", "Type"), ((_code(n), t) for n, t in EXPRESSION_FIELDS.items()))
        ),
        accepted="\n".join(_table(("Accepted", ""), _coded(ACCEPTED))),
        refused="\n".join(_table(("Refused", "Why"), _coded(REFUSED))),
        aggregates="\n".join(_table(("Aggregate", "Result"), _coded(AGGREGATES))),
        keys="\n".join(_section("", Job)),
    )


_PAGE: Final = """\
# Job files

A job file is all that a new set of metrics needs: which events to read, what to look up, what to
count, and where the results go. It is YAML, and this page explains every key. Generated from
`pipelines/job.py`; after a change there:

    {regenerate}
    {regenerate_schema}

## An example

Orders by city, minute by minute: the city comes from a REST service, each minute's document is
there ten seconds after its first event, and it is corrected for an hour.

```yaml file=deliveries.yaml
{example}```

`pipelines/pharmacy_delivery.yaml` is a larger one. Check the job, look at its graph, run it:

    velocity validate deliveries.yaml
    velocity plan deliveries.yaml
    KAFKA=127.0.0.1:9092 PROVIDERS=http://127.0.0.1:8080 velocity run deliveries.yaml \\
        --runner direct --until now --sqlite documents.db --dead-letters dead-letters

## What holds for the whole file

- **Unknown keys are errors**, and so are keys given twice. Every problem is told with its line.
- **Secrets** are no part of the file. `${{NAME}}` in text of `source`, `enrich`, `sensitive`, `transactions`,
  `sinks`, `archive` and `dead_letters` stands for the environment variable when the job runs. `velocity plan` and every
  message show it as written. Put quotes around it: `"${{NAME}}"`.
- **Durations** are numbers with units, `d`, `h`, `m`, `s` and `ms`: `10s`, `1h30m`.
- **Plain text** is read as YAML 1.2 reads it: `on`, `yes` and `12:30` are text. Merge keys (`<<`)
  are not known; anchors and aliases are.
- **Editors** complete keys and show these explanations if the file's first line names the schema.
  For the YAML language server, which VS Code's YAML extension and others use:
  `# yaml-language-server: $schema=docs/job.schema.json`, with the path from the job file's folder
  or a URL. `velocity schema` prints the schema.

## Expressions

`filter`, `derive`, `where` and the arguments in `values` are SQL expressions, evaluated by
[DuckDB](https://duckdb.org/docs/stable/sql/expressions/overview) over the columns of an event:
first the `fields`, then what `enrich` adds, then what `derive` computes. `filter` sees the
fields alone, and columns of one `derive` don't see each other. Each row must get a value from that
row alone, the same in each run; what can't promise that is refused before anything runs. A row for
which an expression fails becomes a dead letter, and the others keep their values.

With the columns

{fields}

these are expressions:

{accepted}

and these are refused:

{refused}

## Aggregates

Each of a metric's `values` is one aggregate, and x is an expression. Nulls don't count.

{aggregates}

## Keys
{keys}
"""


def _section(path: str, model: type[BaseModel]) -> Iterator[str]:
    """A model's keys, then the sections of the models it holds."""
    yield from ("", f"### `{path}`" if path else "### The job", "")
    yield inspect.cleandoc(model.__doc__ or "")
    yield ""
    hints = get_type_hints(model, include_extras=True)
    yield from _table(
        ("Key", "Type", "Default", "Meaning"),
        (
            (
                _code(info.alias or name),
                _type(hints[name], info),
                _default(info),
                info.description or _first_line(_model_in(info.annotation)),
            )
            for name, info in model.model_fields.items()
        ),
    )
    for name, info in model.model_fields.items():
        if held := _model_in(info.annotation):
            inside = {list: "[]", dict: ".NAME"}.get(get_origin(info.annotation) or str, "")
            yield from _section(f"{path}.{name}{inside}".lstrip("."), held)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a value is, or that it lists, names or leaves out."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _first_line(model: type[BaseModel] | None) -> str:
    return (model.__doc__ or "").splitlines()[0] if model else ""


_NAMES: Final[Mapping[Any, str]] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    timedelta: "duration",
}


def _type(hint: Any, info: FieldInfo | None = None) -> str:
    """A type in words, with its bounds."""
    parts = get_args(hint)
    if hint in (Duration, Shift):
        return "duration"
    if hint == Expression:
        return "SQL"
    if hint == Decimal:
        return _code("decimal(18, 2)")
    if hint == AwareDatetime:
        return "time"
    match get_origin(hint):
        case origin if origin is Literal:
            return " or ".join(_code(part) for part in parts)
        case origin if origin is list:
            return f"list of {_type(parts[0])}"
        case origin if origin is dict:
            return f"names with {_type(parts[1])}"
    if hasattr(hint, "__metadata__"):
        return _type(parts[0])
    if parts:
        return " or ".join(_type(part) for part in parts if part is not NoneType)
    if hint in _NAMES:
        bounds = [
            f"{word} {getattr(bound, attribute)}"
            for bound in (info.metadata if info else ())
            for attribute, word in (("ge", "from"), ("le", "to"))
            if hasattr(bound, attribute)
        ]
        return ", ".join([_NAMES[hint], *bounds])
    if issubclass(hint, Shorthand):
        return f"its `{hint._shorthand()}` alone, or keys"
    return "keys"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    value = info.get_default(call_default_factory=True, validated_data={})
    match value:
        case None | "" | [] | {}:
            return ""
        case bool():
            return _code(str(value).lower())
        case timedelta():
            return _code(format_duration(value))
        case BaseModel():
            return ""
    return _code(str(value))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in row)} |"


def _code(text: str) -> str:
    return f"`{text}`"


def _coded(rows: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((_code(code), meaning) for code, meaning in rows.items())
