"""Laws of what operators watch: every expression is PromQL, of metrics that Velocity has."""

import ast
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from apache_beam.metrics.execution import MetricsContainer
from apache_beam.runners.worker.statesampler import StateSampler
from apache_beam.utils.counters import CounterFactory
from apache_beam.utils.timestamp import Timestamp
from typer.testing import CliRunner

from velocity.io.documents import DOCUMENT_DELAYS
from velocity.io.kafka_metrics import PartitionMetrics
from velocity.io.records import Cause
from velocity.runners.alert_rules import Targets, as_yaml, rules
from velocity.runners.cli import app
from velocity.runners.operations import INPUT, operations
from velocity.runners.signals import each, exposed, named, series
from velocity.transforms.enrich import REST_CALLS

ROOT = Path(__file__).parent.parent
FLINKS = {
    "flink_jobmanager_job_numRestarts",
    "flink_jobmanager_job_numberOfFailedCheckpoints",
    "flink_jobmanager_job_lastCheckpointDuration",
}
"""Source: Flink's documentation, "Metrics"."""


@cache
def words() -> set[str]:
    """All texts in the sources of what runs in workers, and the beginnings of those with a part."""
    found = set()
    for path in [*(ROOT / "io").glob("*.py"), *(ROOT / "transforms").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def expressions() -> Iterator[str]:
    for group in rules()["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]
    for panel in operations()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def selectors(expression: str) -> list[promql.VectorSelector]:
    found: list[promql.VectorSelector] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        return True

    promql.walk(promql.parse(expression), pre_visit=visit)
    assert found
    return found


def names(expression: str) -> Iterator[str]:
    """What a selector chooses: a name, or a pattern of names."""
    for selector in selectors(expression):
        if selector.name:
            yield selector.name
        else:
            (pattern,) = re.findall(r'__name__=~"([^"]+)"', str(selector))
            yield pattern


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_expression_is_promql_of_metrics_that_there_are(expression: str) -> None:
    there = words()
    for name in names(expression):
        if name in FLINKS:
            continue
        own = name.removeprefix(exposed(""))
        assert own != name
        if within := re.fullmatch(r"(\w+)_within_\d+m?s", own):
            of = {h.name: h for h in (DOCUMENT_DELAYS, REST_CALLS)}[within[1]]
            assert own in of.within
            continue
        cause = own.removeprefix("dead_letters_")
        if cause != own:
            assert cause in set(map(str, Cause))
        elif own.endswith("_.+"):
            # the name begins so, and goes on: f"lag_{...}", or a name that PartitionMetrics has
            assert {own.removesuffix("_.+"), own.removesuffix(".+")} & there
        else:
            assert own in there


def distributions() -> set[str]:
    """The names that are measured, as the lookups and the steps name them."""
    found = {"rest_call_ms", "rest_call_keys"}
    for path in [*(ROOT / "io").glob("*.py"), *(ROOT / "transforms").glob("*.py")]:
        text = path.read_text("utf-8")
        found |= set(re.findall(r'distribution\(\s*"(\w+)"', text))
    return found


def test_no_expression_reads_a_distribution_for_flink_shows_none() -> None:
    read = {name.removeprefix(exposed("")) for e in expressions() for name in names(e)}
    assert not read & distributions()


def test_what_a_partition_tells_is_found_by_its_pattern_and_named_by_its_rest() -> None:
    sampler, container = StateSampler("", CounterFactory()), MetricsContainer("read")
    sampler.start()
    with sampler.scoped_state("read", "process", metrics_container=container):
        partition = PartitionMetrics("pharmacy.events-v2", 3)
        partition.seen(Timestamp(5), Timestamp(7))
        partition.bundle_ended(4, Timestamp(5))
    sampler.stop()
    told = container.get_cumulative()
    assert all(key.metric.namespace == "velocity" for key in told.gauges)
    shown = {exposed(key.metric.name) for key in told.gauges}
    for name in ("lag", "delay_ms", "watermark_ms"):
        (pattern,) = names(each(name))
        (found,) = [metric for metric in shown if re.fullmatch(pattern, metric)]
        (rest,) = re.findall(
            r'"(\.\+_velocity_[^"]+)"', named(each(name), "partition", name, "sum")
        )
        matched = re.fullmatch(rest, found)
        assert matched is not None
        assert matched[1] == "pharmacy_events_v2_3"


def test_ranges_are_of_one_name_or_of_a_sum() -> None:
    """Of series that differ by their names alone a function of ranges makes an error."""

    def visit(node: Any) -> bool:
        if isinstance(node, promql.MatrixSelector):
            assert node.vector_selector.name
        return True

    for expression in expressions():
        promql.walk(promql.parse(expression), pre_visit=visit)


def test_the_rules_are_such_as_prometheus_loads() -> None:
    loaded = yaml.safe_load(as_yaml())
    assert loaded == rules()
    (group,) = loaded["groups"]
    for rule in group["rules"]:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", rule["alert"])
        assert re.fullmatch(r"\d+(ms|s|m|h|d)", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        made_of = str(promql.parse(rule["expr"]))
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in made_of
    marks = [(rule["alert"], rule["labels"].get("cause")) for rule in group["rules"]]
    assert len(set(marks)) == len(marks)


def test_there_is_a_rule_for_each_thing_that_goes_wrong() -> None:
    alerts = {rule["alert"] for rule in rules()["groups"][0]["rules"]}
    assert alerts >= {
        "VelocityLagGrowing",
        "VelocityWatermarkStalled",
        "VelocityBreakerOpen",
        "VelocityDeadLettersRising",
        "VelocityDelayAboveTarget",
    }
    causes = {rule["labels"].get("cause") for rule in rules()["groups"][0]["rules"]} - {None}
    assert causes == set(map(str, Cause))


def test_targets_stand_in_the_rules() -> None:
    text = as_yaml(Targets(timedelta(minutes=2), timedelta(minutes=3), 77, 0.5))
    by_name = {rule["alert"]: rule["expr"] for rule in yaml.safe_load(text)["groups"][0]["rules"]}
    assert "> 120 " in by_name["VelocityDelayAboveTarget"]
    assert by_name["VelocityLagGrowing"].endswith("> 77")
    assert "> 0.5 *" in by_name["VelocityDeadLettersRising"]


def test_every_panel_shows_the_chosen_jobs_only() -> None:
    made = operations()
    assert [given["name"] for given in made["__inputs"]] == [INPUT]
    (variable,) = made["templating"]["list"]
    assert variable["definition"] == f"label_values({series('read_messages')}, job_name)"
    for panel in made["panels"]:
        for target in panel["targets"]:
            for selector in selectors(target["expr"]):
                assert 'job_name=~"$job"' in str(selector)


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    to = tmp_path / "new" / "monitoring"
    command = ["dashboards", "operations", str(to), "--delay-target", "2m"]
    assert CliRunner().invoke(app, command).exit_code == 0
    written = yaml.safe_load((to / "velocity-alerts.yaml").read_text("utf-8"))
    assert written == rules(Targets(delay=timedelta(minutes=2)))
    assert '"velocity-operations"' in (to / "velocity-operations.json").read_text("utf-8")
    for wrong in (["--delay-target", "2"], ["--dead-letters-target", "1"]):
        assert CliRunner().invoke(app, ["dashboards", "operations", str(to), *wrong]).exit_code == 2
