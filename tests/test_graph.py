"""Laws of the graph that a job becomes."""

import pickle
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pytest

from velocity.io.records import MESSAGE
from velocity.pipelines.graph import Graph, JobError, UnsetVariable
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import parse
from velocity.pipelines.reference import EXAMPLE

ENVIRONMENT = {
    "KAFKA": "127.0.0.1:9092",
    "PROVIDERS": "http://127.0.0.1:8080",
    "ELASTICSEARCH": "http://127.0.0.1:9200",
}
JOB = parse(EXAMPLE.encode(), "example").job


def job_with(old: str, new: str) -> Job:
    assert EXAMPLE.count(old) == 1, old
    return parse(EXAMPLE.replace(old, new).encode(), "example").job


def names(pipeline: beam.Pipeline) -> set[str]:
    transforms = pipeline.to_runner_api().components.transforms.values()
    return {transform.unique_name for transform in transforms}


def test_each_part_of_a_job_is_a_step_of_its_graph() -> None:
    pipeline = beam.Pipeline()
    Graph(job_with("derive:", "filter: amount > 0\nderive:"), ENVIRONMENT).apply(pipeline, "latest")
    assert names(pipeline) >= {
        "Read",
        "Filter",
        "Derive",
        "Metrics",
        "Write to elasticsearch",
        "All dead letters",
        "Write dead letters",
    }


def test_a_graph_ends_if_it_is_told_where() -> None:
    for until, bounded in (("latest", True), (None, False)):
        rows = beam.Pipeline() | Graph(JOB, ENVIRONMENT).read(until)  # type: ignore[arg-type]
        assert rows.main.is_bounded is bounded


def test_a_source_starts_at_the_offsets_that_its_job_names() -> None:
    place = "topics: [pharmacy.events]"
    more = f"{place}, start: {{pharmacy.events: {{0: 17, 3: 4}}}}, on_lost_offsets: earliest"
    read = Graph(job_with(place, more), ENVIRONMENT).read()
    assert read.start == {("pharmacy.events", 0): 17, ("pharmacy.events", 3): 4}
    assert read.on_lost_offsets == "earliest"
    job = job_with(place, f"{place}, start: {{other: {{0: 17}}}}")
    with pytest.raises(JobError, match=r"source\.kafka\..*start names topic 'other'"):
        Graph(job, ENVIRONMENT).read()


def test_columns_come_in_the_order_of_fields_enrichments_and_derived() -> None:
    fields = ["event_type", "event_time", "provider_id", "patient_id", "amount"]
    graph = Graph(JOB, {})
    assert graph.decoder.schema.names == [*fields, MESSAGE]
    assert graph.enriched_schema.names == [*fields, "city", "rating", MESSAGE]
    assert graph.schema.names == [*fields, "city", "rating", "is_large", MESSAGE]


def test_sensitive_columns_are_hashed_or_gone_after_enrichment_and_masked_in_dead_letters() -> None:
    said = "sensitive: {fields: [patient_id], hash_with: '${PII}'}\nderive:"
    graph = Graph(job_with("derive:", said), ENVIRONMENT | {"PII": "s3cret"})
    assert "patient_id" in graph.schema.names
    assert graph.metrics
    pipeline = beam.Pipeline()
    graph.apply(pipeline, "latest")
    assert names(pipeline) >= {"Protect", "Mask dead letters"}
    with pytest.raises(UnsetVariable):
        _ = Graph(job_with("derive:", said), ENVIRONMENT).protect

    dropped = Graph(job_with("derive:", "sensitive: [patient_id]\nderive:"), {})
    assert "patient_id" not in dropped.schema.names
    with pytest.raises(JobError, match="patient_id"):  # a metric counts patients
        _ = dropped.metrics


@pytest.mark.parametrize("field", ["x", "event_time"])
def test_what_can_not_be_sensitive_is_told_with_its_place(field: str) -> None:
    graph = Graph(job_with("derive:", f"sensitive: [{field}]\nderive:"), ENVIRONMENT)
    with pytest.raises(JobError) as caught:
        _ = graph.protect
    assert caught.value.place == ("sensitive", "fields")


def test_variables_stand_for_what_the_environment_holds() -> None:
    job = job_with('"deliveries-{window_start:%Y.%m}"', '"${STAGE}-{metric}"')
    graph = Graph(job, ENVIRONMENT | {"STAGE": "Test"})
    assert graph.read().config.bootstrap_servers == "127.0.0.1:9092"
    with pytest.raises(JobError, match="lower case"):  # so the index took it too
        _ = graph.sinks
    assert set(Graph(job, ENVIRONMENT | {"STAGE": "test"}).sinks) == {"elasticsearch"}


@pytest.mark.parametrize(
    ("variable", "part", "place"),
    [
        ("KAFKA", lambda graph: graph.read(), ("source", "kafka", "bootstrap_servers")),
        ("KAFKA", lambda graph: graph.dead_letters, ("source", "kafka", "bootstrap_servers")),
        ("PROVIDERS", lambda graph: graph.enrichments, ("enrich", 0, "get")),
        ("ELASTICSEARCH", lambda graph: graph.sinks, ("sinks", "elasticsearch", "url")),
    ],
)
def test_a_variable_that_is_not_set_is_named_with_its_place(
    variable: str, part: Callable[[Graph], Any], place: tuple[str | int, ...]
) -> None:
    part(Graph(JOB, ENVIRONMENT))
    unset = {name: value for name, value in ENVIRONMENT.items() if name != variable}
    with pytest.raises(UnsetVariable) as caught:
        part(Graph(JOB, unset))
    assert (caught.value.variable, caught.value.place) == (variable, place)


def test_parts_that_reach_nothing_need_no_environment() -> None:
    graph = Graph(job_with("derive:", "filter: amount > 0\nderive:"), {})
    assert graph.filter
    assert graph.derive
    assert graph.metrics


@pytest.mark.parametrize(
    ("old", "new", "part", "place"),
    [
        ("event_time: event_time", "event_time: x", "decoder", ("source", "event_time")),
        ("derive:", "filter: x > 0\nderive:", "filter", ("filter",)),
        (
            "  event_time: event_time\n",
            "  event_time: event_time\n  deduplicate: {by: x, horizon: 1h}\n",
            "deduplicate",
            ("source", "deduplicate"),
        ),
        ("key: provider_id", "key: x", "enriched_schema", ("enrich", 0)),
        ("?ids={keys}", "", "enrichments", ("enrich", 0)),
        ("amount >= 250000", "x", "derive", ("derive",)),
        ("amount >= 250000", "nosuch(amount)", "derive", ("derive",)),
        ("sum(amount)", "sum(x)", "metrics", ("metrics", 0)),
        ("sum(amount)", "sum(nosuch(amount))", "metrics", ("metrics", 0)),
        ("deliveries-{", "Deliveries-{", "sinks", ("sinks", "elasticsearch")),
    ],
)
def test_what_can_not_be_used_is_told_with_its_place(
    old: str, new: str, part: str, place: tuple[str | int, ...]
) -> None:
    with pytest.raises(JobError) as caught:
        getattr(Graph(job_with(old, new), ENVIRONMENT), part)
    assert caught.value.place == place
    assert str(caught.value).startswith(".".join(map(str, place)) + ": ")


def test_several_addresses_may_have_blanks_between() -> None:
    several = ENVIRONMENT | {"ELASTICSEARCH": "http://127.0.0.1:9200, http://127.0.0.1:9201"}
    sink: Any = Graph(JOB, several).sinks["elasticsearch"]
    sink._sink.setup()  # the client reads the addresses, and refuses one with a blank
    sink._sink.teardown()


def test_a_graph_shows_no_environment() -> None:
    assert "127.0.0.1" not in repr(Graph(JOB, ENVIRONMENT))


@pytest.mark.parametrize("error", [JobError("wrong", "a", 0), UnsetVariable("X", "a", 0)], ids=repr)
def test_errors_survive_pickling(error: JobError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.place) == (type(error), str(error), error.place)
