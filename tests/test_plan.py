"""Laws of the plan."""

import io
import json
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import parse
from velocity.pipelines.plan import _escaped, as_json, mermaid, plan, tree
from velocity.pipelines.reference import EXAMPLE

SECRET = "hunter2"
FULL = (
    EXAMPLE.replace("topics: [", f"options: {{sasl.password: {SECRET}}}, topics: [")
    .replace("    id: id\n", f"    id: id\n    headers: {{Authorization: {SECRET}}}\n")
    .replace("derive:", "filter: amount > 0\nderive:")
    .replace(
        "sinks:\n",
        "  - {name: all, window: {session: 1m}, values: {n: 'count(\"amount\")'}}\n"
        "sinks:\n  sqlite: {path: documents.db}\n",
    )
    .replace('"${ELASTICSEARCH}"', f'"http://u:{SECRET}@h:9200", api_key: {SECRET}')
)
MINIMAL = """\
job: least
source: {kafka: {bootstrap_servers: h, topics: [t]}, event_time: at}
fields: {at: timestamp}
metrics: [{name: m, window: {fixed: 1m}, values: {n: count()}}]
sinks: {sqlite: {path: p}}
dead_letters: {parquet: dead}
"""


def job(text: str) -> Job:
    return parse(text.encode(), "j").job


def text_of(job: Job) -> str:
    file = io.StringIO()
    Console(file=file, width=1000).print(tree(job))
    return file.getvalue()


def test_the_steps_of_a_job_are_those_of_its_graph() -> None:
    assert {step.name: step.inputs for step in plan(job(FULL))} == {
        "read": (),
        "decode": ("read",),
        "filter": ("decode",),
        "enrich provider": ("filter",),
        "derive": ("enrich provider",),
        "metric orders_by_city": ("derive",),
        "metric all": ("derive",),
        "elasticsearch": ("metric orders_by_city", "metric all"),
        "sqlite": ("metric orders_by_city", "metric all"),
        "dead letters": (
            "decode",
            "filter",
            "enrich provider",
            "derive",
            "metric orders_by_city",
            "metric all",
            "elasticsearch",
            "sqlite",
        ),
    }


def test_an_enrichment_that_needs_another_comes_after_it_and_others_stand_side_by_side() -> None:
    shop = """\
  - {name: area, get: "http://h/{key}", key: city, add: {area: name}}
  - {name: patient, get: "http://h/{key}", key: patient_id, add: {age: age}}
derive:"""
    steps = {step.name: step.inputs for step in plan(job(EXAMPLE.replace("derive:", shop)))}
    assert steps["enrich provider"] == steps["enrich patient"] == ("decode",)
    assert steps["enrich area"] == ("enrich provider", "enrich patient")
    assert steps["derive"] == ("enrich area",)


def test_the_enriched_archive_takes_from_the_last_step_of_events_alone() -> None:
    text = FULL.replace("fields:", "  deduplicate: {by: event_type, horizon: 1h}\nfields:", 1)
    steps = plan(job(f"{text}archive: {{path: a, raw: true}}\n"))
    inputs = {step.name: step.inputs for step in steps if step.kind == "archive"}
    assert inputs == {"archive raw": ("decode",), "archive enriched": ("derive",)}


def test_what_a_job_leaves_out_is_no_step() -> None:
    assert [step.kind for step in plan(job(MINIMAL))] == [
        "read", "decode", "metric", "sink", "dead letters",
    ]  # fmt: skip


def test_a_step_comes_after_those_it_takes_from() -> None:
    before: set[str] = set()
    for step in plan(job(FULL)):
        assert set(step.inputs) <= before
        before.add(step.name)


def test_a_step_says_what_it_does() -> None:
    steps = {step.name: step.details for step in plan(job(EXAMPLE))}
    assert steps["read"]["disorder"] == "30s"
    assert steps["enrich provider"] == {
        "get": "${PROVIDERS}/providers?ids={keys}",
        "key": "provider_id",
        "adds": "city string, rating double",
        "keys per call": "100",
        "cache": "100,000 answers for 10m, unknown keys for 30s",
        "on missing": "null",
        "on error": "wait, 5m in one bundle",
    }
    assert steps["metric orders_by_city"] == {
        "where": "event_type = 'order.created'",
        "key": "city",
        "window": "fixed 1m",
        "early": "every 10s",
        "lateness": "1h",
        "orders": "count()",
        "large": "count(CASE WHEN is_large THEN 1 END)",
        "revenue": "sum(amount)",
        "patients": "distinct(patient_id)",
        "p95_amount": "percentile(amount, 95)",
    }


def test_no_form_of_a_plan_shows_a_secret_and_each_shows_variables_as_written() -> None:
    assert FULL.count(SECRET) == 4
    for form in (text_of(job(FULL)), mermaid(job(FULL)), as_json(job(FULL))):
        assert SECRET not in form
        assert "Authorization" in form
        assert "sasl.password" in form
        assert "${KAFKA}" in form


def test_every_form_shows_every_step_and_detail() -> None:
    text, chart = text_of(job(FULL)), mermaid(job(FULL))
    for step in plan(job(FULL)):
        assert step.name in text
        assert f"<b>{step.name}</b>" in chart
        for value in step.details.values():
            assert value in text
            assert _escaped(value) in chart


def test_an_expression_of_several_lines_is_one() -> None:
    several = job(EXAMPLE.replace("amount >= 250000", "|\n    amount\n      >= 250000"))
    details = {step.name: step.details for step in plan(several)}["derive"]
    assert details == {"is_large": "amount >= 250000"}


def test_the_json_form_is_the_plan() -> None:
    found = json.loads(as_json(job(FULL)))
    assert found["job"] == "deliveries"
    assert [step["name"] for step in found["steps"]] == [step.name for step in plan(job(FULL))]
    assert found["steps"][1]["inputs"] == ["read"]


def test_a_flowchart_is_of_nodes_with_quoted_labels_and_edges_between_them() -> None:
    first, *lines = mermaid(job(FULL)).splitlines()
    assert first == "flowchart TD"
    nodes = [m for line in lines if (m := re.fullmatch(r'  (s\d+)(\[\(?)"([^"]+)"(\)?\])', line))]
    edges = [m for line in lines if (m := re.fullmatch(r"  (s\d+) (-->|-\.->) (s\d+)", line))]
    assert len(nodes) + len(edges) == len(lines)
    ids = {node[1] for node in nodes}
    assert len(ids) == len(nodes) == len(plan(job(FULL)))
    assert {end for edge in edges for end in (edge[1], edge[3])} == ids
    assert all((node[2] == "[(") == (node[4] == ")]") for node in nodes)


@given(st.text())
def test_no_text_ends_its_label_or_is_read_as_markup(text: str) -> None:
    escaped = _escaped(text)
    assert not set(escaped) & set('"<>&`%\\\n')
    entities = re.compile(r"#(\d+);")
    assert set(entities.sub("", escaped)) & set("#;") == set()
    assert entities.sub(lambda m: chr(int(m[1])), escaped) == " ".join(text.split())


def test_markup_of_rich_in_a_job_is_only_text() -> None:
    marked = job(EXAMPLE.replace("amount >= 250000", "amount = [1][1] -- [red]"))
    assert "amount = [1][1] -- [red]" in text_of(marked)
