"""Laws of the templates: each field of a document has the type of what the job writes there."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from velocity.io.elastic_setup import Setup
from velocity.io.records import Document
from velocity.pipelines.graph import Graph, JobError
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import JobFileError, load, parse
from velocity.pipelines.templates import into, requests, setup_of
from velocity.runners.demo import JOB
from velocity.transforms.aggregates import FUNCTIONS
from velocity.transforms.stages import Fact, Stages
from velocity.transforms.stages import Stage as Of
from velocity.transforms.transactions import alert

ORDERS = """\
job: orders
source: {kafka: {bootstrap_servers: h:1, topics: [t]}, event_time: at}
fields: {at: timestamp, city: string, open: bool, code: int64, amount: int64, fee: double}
metrics:
  - name: revenue
    by: [city, open, code, at]
    window: {fixed: 1m}
    values:
      n: count(fee)
      cities: distinct(city)
      total: sum(amount)
      fees: sum(fee)
      mean: mean(amount)
      p95: percentile(amount, 95)
      first: min(at)
      last_city: max(city)
      largest: max(amount)
      dearest: max(fee)
      rounded: max(round(fee)::BIGINT)
  - {name: events, window: {fixed: 1m}, values: {n: count()}}
sinks: {elasticsearch: {url: "http://h:1", index: "orders-{window_start:%Y.%m}"}}
dead_letters: {parquet: d}
"""


def job(**sink: Any) -> Job:
    made = parse(ORDERS.encode(), "orders.yaml").job.model_dump()
    made["sinks"]["elasticsearch"] |= sink
    return Job.model_validate(made)


def setup(**sink: Any) -> Setup:
    return setup_of(Graph(job(**sink), {}))


def mapping(made: Setup, template: str = "velocity-orders") -> Any:
    return made.components[f"{template}@mappings"]["template"]["mappings"]


def types(fields: Any) -> dict[str, str]:
    return {name: field["type"] for name, field in fields["properties"].items()}


def test_values_and_dimensions_have_the_types_of_what_they_are_computed_from() -> None:
    properties = mapping(setup())["properties"]
    assert types(properties["dimensions"]) == {
        "city": "keyword",
        "open": "boolean",
        "code": "keyword",
        "at": "date",
    }
    assert types(properties["values"]) == {
        "n": "long",
        "cities": "long",
        "total": "long",
        "fees": "double",
        "mean": "double",
        "p95": "double",
        "first": "date",
        "last_city": "keyword",
        "largest": "long",
        "dearest": "double",
        "rounded": "long",
    }


def test_every_field_of_a_document_is_mapped_and_no_other_is_made_up() -> None:
    body = Document("j", "m", 0, 1, {}, {}, 1, "late", "1").body(datetime(2026, 1, 1, tzinfo=UTC))
    assert mapping(setup())["properties"].keys() == body.keys()
    assert mapping(setup())["dynamic"] == "false"


def test_alerts_on_transactions_are_mapped_like_any_document() -> None:
    made = setup_of(Graph(load(JOB.parent / "transactions.yaml"), {}))
    properties = mapping(made, "velocity-transactions")["properties"]
    stages = Stages([Of("order", ["o"], ["sent"], timedelta(seconds=60)), Of("sent", ["s"])])
    found = alert(stages, ["city"], "j", "trx-1", Fact("stuck", 0, None, 60_000, 0, ("Solo",)))
    assert found.dimensions.keys() <= properties["dimensions"]["properties"].keys()
    assert found.values.keys() <= properties["values"]["properties"].keys()
    assert types(properties["values"])["ended_at"] == "date"


def test_every_aggregate_has_a_field_type() -> None:
    calls = {f: f"{f}(amount)" for f in FUNCTIONS} | {
        "percentile": "percentile(amount, 5)", "top": "top(city, 5)",
        "histogram": "histogram(amount, [5])", "ratio": "ratio(sum(amount), count())",
    }  # fmt: skip
    made = job().model_dump()
    for function, call in calls.items():
        made["metrics"][1]["values"] = {"value": call}
        found = mapping(setup_of(Graph(Job.model_validate(made), {})))
        assert found["properties"]["values"]["properties"]["value"]["type"], function


def test_no_type_is_used_that_lies_in_a_module_of_its_own() -> None:
    """``scaled_float``, ``flattened`` and others are not in every server."""
    everywhere = {"keyword", "long", "double", "boolean", "date", "object"}
    jobs = [job for path in JOB.parent.glob("*.yaml") if (job := load(path)).metrics]
    for made in (setup(), *(setup_of(Graph(each, {})) for each in jobs)):
        for body in made.components.values():
            found = json.dumps(body)
            used = {part.split('"')[0] for part in found.split('"type": "')[1:]}
            assert used <= everywhere


def test_new_indices_bear_the_jobs_alias_and_settings_and_the_users_component_has_the_last_word() -> (
    None
):
    made = setup(settings={"number_of_replicas": 2, "index.codec": "best_compression"})
    [(name, template)] = made.indices.items()
    assert name == "velocity-orders"
    assert template.body["index_patterns"] == ["orders-*"]
    assert template.body["template"] == {"aliases": {"velocity-orders": {}}}
    assert template.body["composed_of"][-1] == "velocity-orders@custom"
    settings = made.components["velocity-orders@settings"]["template"]["settings"]
    assert settings == {"index": {"number_of_replicas": 2, "codec": "best_compression"}}


def test_with_an_index_for_each_metric_each_has_a_template_of_its_own() -> None:
    made = setup(index="{metric}-{window_start:%Y}")
    assert {name: t.body["index_patterns"] for name, t in made.indices.items()} == {
        "velocity-orders-revenue": ["revenue-*"],
        "velocity-orders-events": ["events-*"],
    }
    events = mapping(made, "velocity-orders-events")["properties"]
    assert types(events["values"]) == {"n": "long"}


def test_of_two_templates_for_one_name_the_longer_pattern_holds() -> None:
    made = setup(index="{metric}{window_start:%Y}")
    longer, shorter = (made.indices[f"velocity-orders-{m}"].body for m in ("revenue", "events"))
    assert longer["priority"] > shorter["priority"] > 200  # what Elasticsearch brings along


def test_values_of_one_name_and_two_types_are_refused_where_they_share_an_index() -> None:
    made = job().model_dump()
    made["metrics"][1]["values"] = {"total": "min(at)"}
    with pytest.raises(JobError, match=r"total is of type long in revenue and date in events"):
        setup_of(Graph(Job.model_validate(made), {}))
    made["sinks"]["elasticsearch"]["index"] = "{metric}"
    assert setup_of(Graph(Job.model_validate(made), {})).indices


def test_whole_numbers_and_fractions_of_one_name_share_a_field_of_fractions() -> None:
    made = job().model_dump()
    made["metrics"][1]["values"] = {"total": "mean(amount)"}
    properties = mapping(setup_of(Graph(Job.model_validate(made), {})))["properties"]
    assert types(properties["values"])["total"] == "double"


def test_an_index_is_deleted_once_its_last_window_is_as_old_as_wanted() -> None:
    ages = {}
    for pattern in ("%Y.%m.%d", "%G.%V", "%Y.%m", "%Y"):
        policy = setup(index=f"o-{{window_start:{pattern}}}", retention=timedelta(days=90)).policy
        assert policy and policy.body
        ages[pattern] = policy.body["phases"]["delete"]["min_age"]
    assert ages == {"%Y.%m.%d": "91d", "%G.%V": "97d", "%Y.%m": "121d", "%Y": "456d"}
    settings = setup(retention="90d").components["velocity-orders@settings"]["template"]
    assert settings == {"settings": {"index": {"lifecycle.name": "velocity-orders"}}}


@pytest.mark.parametrize(
    ("emit", "may_merge"), [("{early: 10s}", 1), ("{lateness: 1h}", 1), ("{}", 0)]
)
def test_deletions_are_known_for_an_hour_where_sessions_may_merge(
    emit: str, may_merge: bool
) -> None:
    wanted = f"- {{name: visits, window: {{session: 1m}}, emit: {emit}, values: {{n: count()}}}}\n"
    text = ORDERS.replace("  - {name: events", f"  {wanted}  - {{name: events")
    made = setup_of(Graph(parse(text.encode(), "orders.yaml").job, {}))
    settings = made.components["velocity-orders@settings"]["template"]["settings"]["index"]
    assert settings == ({"gc_deletes": "1h"} if may_merge else {})
    text = text.replace("{elasticsearch: {", "{elasticsearch: {settings: {index.gc_deletes: 5m}, ")
    made = setup_of(Graph(parse(text.encode(), "orders.yaml").job, {}))
    settings = made.components["velocity-orders@settings"]["template"]["settings"]["index"]
    assert settings == {"gc_deletes": "5m"}


def test_a_data_stream_is_kept_as_long_as_wanted_without_a_policy() -> None:
    made = setup(index="orders", data_stream=True, retention="36h")
    assert made.policy is None
    assert made.indices["velocity-orders"].body["data_stream"] == {}
    template = made.components["velocity-orders@settings"]["template"]
    assert template["lifecycle"] == {"data_retention": "129600s"}


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ("url: u, cloud_id: c, index: o", "exactly one of url and cloud_id"),
        ("index: o", "exactly one of url and cloud_id"),
        ("url: u, index: o, retention: 9d", r"put a time such as \{window_start:%Y.%m\}"),
        ('url: u, index: "{window_start:%Y}", retention: 9m', "an hour or more"),
        ("url: u, index: o, data_stream: true, retention: 9d, ilm_policy: p", "not both"),
        ("url: u, index: o, ca_certs: c, fingerprint: f", "not both"),
    ],
)
def test_a_sink_that_cannot_be_is_refused_with_its_remedy(changes: str, remedy: str) -> None:
    sink = 'url: "http://h:1", index: "orders-{window_start:%Y.%m}"'
    with pytest.raises(JobFileError, match=rf"sinks.elasticsearch: .*{remedy}"):
        parse(ORDERS.replace(sink, changes).encode(), "orders.yaml")


@pytest.mark.parametrize("emit", ["{early: 10s}", "{lateness: 1h}"])
def test_a_data_stream_is_refused_where_documents_are_corrected(emit: str) -> None:
    text = ORDERS.replace("- name: revenue", f"- name: revenue\n    emit: {emit}")
    text = text.replace("{elasticsearch: {", "{elasticsearch: {data_stream: true, ")
    with pytest.raises(JobFileError, match=r"orders.yaml:6: metrics.0.emit: .* no correction"):
        parse(text.encode(), "orders.yaml")


def test_an_alias_that_is_an_indexs_name_is_refused() -> None:
    with pytest.raises(JobError, match="another alias"):
        setup(index="velocity-{job}")
    assert setup(index="velocity-{job}", alias=None).alias is None


def test_a_job_brought_into_other_indices_has_templates_beside_its_own_and_no_alias() -> None:
    other = into(job(), "corrected-")
    made = setup_of(Graph(other, {}), "corrected-")
    [(name, template)] = made.indices.items()
    assert name == "velocity-orders.corrected"
    assert template.body["index_patterns"] == ["corrected-orders-*"]
    assert "template" not in template.body
    assert made.components.keys().isdisjoint(setup().components)
    assert template.mapping == setup().indices["velocity-orders"].mapping


def test_what_would_be_sent_is_shown_in_its_order_without_a_server() -> None:
    shown = [request for request, _ in requests(setup(retention="90d"))]
    assert shown == [
        "PUT /_ilm/policy/velocity-orders",
        "PUT /_component_template/velocity-orders@settings",
        "PUT /_component_template/velocity-orders@mappings",
        "PUT /_index_template/velocity-orders",
    ]


def test_alerts_of_transactions_are_found_by_what_they_say() -> None:
    job = load(JOB.with_stem("transactions"))
    environment = {"KAFKA": "127.0.0.1:1", "ELASTICSEARCH": "http://127.0.0.1:1"}
    [index] = setup_of(Graph(job, environment)).indices.values()
    found = index.mapping["properties"]
    assert found["values"]["properties"]["status"] == {"type": "keyword"}
    assert found["dimensions"]["properties"]["transaction"] == {"type": "keyword"}
