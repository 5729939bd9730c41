"""Laws of the reference: page, schema and model say the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from velocity.pipelines.job import Job, parse_duration
from velocity.pipelines.jobfile import check, parse
from velocity.pipelines.reference import (
    ACCEPTED,
    AGGREGATES,
    EXAMPLE,
    EXPRESSION_FIELDS,
    REFUSED,
    REGENERATE,
    REGENERATE_SCHEMA,
    reference,
    schema,
)
from velocity.transforms.aggregates import FUNCTIONS, Value
from velocity.transforms.expressions import ExpressionError, Expressions
from velocity.transforms.fields import arrow_type

DOCS = Path(__file__).parent.parent / "docs"
COLUMNS = pa.schema([(name, arrow_type(type_)) for name, type_ in EXPRESSION_FIELDS.items()])


def objects(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for branch in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(branch, dict | list):
            yield from objects(branch)


def properties() -> Iterator[tuple[str, dict[str, Any]]]:
    for part in objects(schema()):
        if part.get("type") == "object" and "properties" in part:
            yield from part["properties"].items()


def test_the_page_says_what_the_model_says() -> None:
    assert (DOCS / "jobs.md").read_text("utf-8") == reference(), f"regenerate it: {REGENERATE}"


def test_the_committed_schema_is_that_of_the_model() -> None:
    committed = json.loads((DOCS / "job.schema.json").read_text("utf-8"))
    assert committed == schema(), f"regenerate it: {REGENERATE_SCHEMA}"


def test_the_page_says_how_to_make_both_anew() -> None:
    assert REGENERATE in reference()
    assert REGENERATE_SCHEMA in reference()


def test_the_example_is_a_job_without_a_problem() -> None:
    assert EXAMPLE in reference()
    environment = {
        "KAFKA": "127.0.0.1:9092",
        "PROVIDERS": "http://127.0.0.1:8080",
        "ELASTICSEARCH": "http://127.0.0.1:9200",
    }
    assert check(parse(EXAMPLE.encode(), "example").job, environment) == []


def test_every_key_is_on_the_page_with_a_meaning() -> None:
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    explained = {row[0].removeprefix("| ").strip("`") for row in rows if len(row) == 4}
    assert {name for name, _ in properties()} <= explained
    assert all(row[3].rstrip(" |") for row in rows if len(row) == 4)


def test_every_property_of_the_schema_is_explained() -> None:
    definitions = schema()["$defs"]
    for name, property_ in properties():
        described = property_.get("description") or next(
            (d for r in objects(property_) if (d := described_by(r, definitions))), None
        )
        assert described, name


def described_by(part: dict[str, Any], definitions: dict[str, Any]) -> str | None:
    found = definitions.get(str(part.get("$ref", "")).rpartition("/")[2], {})
    description: str | None = found.get("description")
    return description


def test_a_default_in_the_schema_is_what_a_job_could_say() -> None:
    durations = [p for _, p in properties() if "10s" in p.get("examples", ()) and "default" in p]
    assert len(durations) >= 8
    for duration in durations:
        parse_duration(duration["default"])


def test_the_schema_refuses_unknown_keys_as_the_model_does() -> None:
    parts = [p for p in objects(schema()) if p.get("type") == "object" and "properties" in p]
    assert len(parts) > 10
    assert all(part["additionalProperties"] is False for part in parts)
    assert schema()["required"] == [n for n, f in Job.model_fields.items() if f.is_required()]


def test_the_schema_names_its_dialect_and_title() -> None:
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema()["title"] == "Velocity job"


@pytest.mark.parametrize("expression", ACCEPTED)
def test_an_expression_that_the_page_shows_is_accepted(expression: str) -> None:
    assert expression in reference()
    Expressions(COLUMNS, {"x": expression})


@pytest.mark.parametrize("expression", REFUSED)
def test_an_expression_that_the_page_warns_of_is_refused(expression: str) -> None:
    assert expression in reference()
    with pytest.raises(ExpressionError):
        Expressions(COLUMNS, {"x": expression})


def test_the_page_shows_all_aggregates_and_only_those() -> None:
    assert {call.split("(")[0] for call in AGGREGATES} == set(FUNCTIONS)
    assert all(Value.parse(call) for call in AGGREGATES)
