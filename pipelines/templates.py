"""What Elasticsearch is told before a job writes: templates by the job's fields, alias, policy."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import pyarrow as pa

from velocity.io.elastic_setup import IndexTemplate, Policy, Setup, Template
from velocity.pipelines.graph import Graph, JobError
from velocity.pipelines.job import ElasticsearchSink, Job
from velocity.transforms.aggregates import Value
from velocity.transforms.transactions import ALERTS

_DATE: Final = {"type": "date"}
_KEYWORD: Final = {"type": "keyword"}
_TEXT: Final = {"type": "keyword", "ignore_above": 8_191}
"""Longer text is stored, and not found by: as a whole word it would be refused (32,766 bytes of
UTF-8, of which a character takes up to four)."""
_LONG: Final = {"type": "long"}
_DOUBLE: Final = {"type": "double"}
_STORED: Final = {"type": "object", "enabled": False}
"""Kept as it is: its like has no field type, and nothing is searched by it."""

_FRAME: Final = {
    "@timestamp": _DATE,
    "job": _KEYWORD,
    "metric": _KEYWORD,
    "window_start": _DATE,
    "window_end": _DATE,
    "events": _LONG,
    "pane": _KEYWORD,
    "written_at": _DATE,
}
"""What every document has, besides ``dimensions`` and ``values``."""

_RESULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "count": _LONG,
    "distinct": _LONG,
    "mean": _DOUBLE,
    "variance": _DOUBLE,
    "stddev": _DOUBLE,
    "percentile": _DOUBLE,
}
"""Of aggregates whose result is the same whatever they are computed over."""
_SAME: Final = ("min", "max", "first", "last")
"""Aggregates whose result is one of the values."""
_DELETIONS_KNOWN: Final = "1h"
"""How long Elasticsearch refuses older versions of what sessions that merged have left; 1m else."""
_ALERT: Final = {"status": _KEYWORD, "next": _KEYWORD, "ended_at": _DATE, "seconds": _DOUBLE}
"""The values of an alert on a transaction."""


def into(job: Job, prefix: str) -> Job:
    """The job with other indices: their names begin with ``prefix``, and no alias reads them."""
    sink = _sink(job)
    other = sink.model_copy(update={"index": prefix + sink.index, "alias": None})
    sinks = job.sinks.model_copy(update={"elasticsearch": other})
    return job.model_copy(update={"sinks": sinks})


def setup_of(graph: Graph, prefix: str = "") -> Setup:
    """All that the job's indices need. ``prefix`` is what the job was brought ``into``, if it was.

    Raises ``JobError`` if two metrics that share an index have values of one name and two types.

    >>> from velocity.pipelines.jobfile import parse
    >>> from velocity.pipelines.reference import EXAMPLE
    >>> setup = setup_of(Graph(parse(EXAMPLE.encode(), "job.yaml").job))
    >>> setup.indices["velocity-deliveries"].body["index_patterns"]
    ['deliveries-*']
    >>> setup.components["velocity-deliveries@mappings"]["template"]["mappings"]["properties"][
    ...     "values"]["properties"]["p95_amount"]
    {'type': 'double'}
    """
    job, sink = graph.job, _sink(graph.job)
    pattern = graph.index
    name = f"velocity-{job.job}" + (f".{prefix.strip('-._')}" if prefix else "")
    alias = None if sink.alias is None else sink.alias.replace("{job}", job.job)
    if alias is not None and pattern.makes(alias, job.job, list(mappings_of(graph))):
        raise JobError(
            f"{alias} is the name of an index too; give another alias, or null for none",
            *("sinks", "elasticsearch", "alias"),
        )
    policy = _policy(name, sink, pattern.period)
    settings: dict[str, Any] = {"settings": {"index": _settings(job, sink, policy)}}
    if sink.data_stream and sink.retention is not None:
        settings["lifecycle"] = {"data_retention": _time(sink.retention)}
    components = {f"{name}@settings": _component(job, settings)}
    indices: dict[str, IndexTemplate] = {}
    custom = f"velocity-{job.job}@custom"
    mappings = mappings_of(graph)
    metrics = list(mappings)
    groups = mappings if pattern.by_metric else {"*": _merged(mappings)}
    for metric, mapping in groups.items():
        own = name if metric == "*" else f"{name}-{metric}"
        components[f"{own}@mappings"] = _component(job, {"mappings": mapping})
        wildcard = pattern.wildcard(job.job, metric)
        template: dict[str, Any] = {
            "index_patterns": [wildcard],
            "composed_of": [f"{own}@mappings", f"{name}@settings", custom],
            "ignore_missing_component_templates": [custom],
            # Above those that come with Elasticsearch; of two that match, the longer name's holds.
            "priority": 300 + len(wildcard),
            "_meta": _meta(job),
        }
        if alias:
            template["template"] = {"aliases": {alias: {}}}
        if sink.data_stream:
            template["data_stream"] = {}
        whose = metrics if metric == "*" else [metric]
        indices[own] = IndexTemplate(whose, mapping, template)
    return Setup(job.job, pattern, components, indices, custom, alias, policy, sink.data_stream)


def _sink(job: Job) -> ElasticsearchSink:
    if job.sinks.elasticsearch is None:
        raise JobError("this job has no such sink", "sinks", "elasticsearch")
    return job.sinks.elasticsearch


def _meta(job: Job) -> dict[str, Any]:
    return {"managed_by": "velocity", "job": job.job}


def _component(job: Job, template: Mapping[str, Any]) -> Template:
    return {"template": template, "_meta": _meta(job)}


def _settings(job: Job, sink: ElasticsearchSink, policy: Policy | None) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if any(m.window.session and (m.emit.early or m.emit.lateness) for m in job.metrics):
        given["gc_deletes"] = _DELETIONS_KNOWN
    given |= {name.removeprefix("index."): value for name, value in sink.settings.items()}
    return given | ({"lifecycle.name": policy.name} if policy else {})


def _policy(name: str, sink: ElasticsearchSink, period: timedelta | None) -> Policy | None:
    if sink.ilm_policy is not None:
        return Policy(sink.ilm_policy, None)
    if sink.retention is None or sink.data_stream or period is None:
        return None
    # An index's age counts from its making, and its last window comes up to a period later.
    age = _time(sink.retention + period)
    delete = {"min_age": age, "actions": {"delete": {}}}
    meta = {"managed_by": "velocity", "min_age": age}
    body = {"_meta": meta, "phases": {"hot": {"actions": {}}, "delete": delete}}
    return Policy(name, body)


def _time(duration: timedelta) -> str:
    """As Elasticsearch writes times, which knows one unit at a time."""
    days, rest = divmod(duration, timedelta(days=1))
    return f"{days}d" if not rest else f"{int(duration.total_seconds())}s"


# -- mappings -------------------------------------------------------------------------------------


def mappings_of(graph: Graph) -> dict[str, dict[str, Any]]:
    """For each metric its documents' mapping."""
    reduction = graph.metrics.reduction
    mappings = {}
    for metric in reduction.metrics:
        values = {
            name: dict(_value(value, reduction.columns))
            for name, value in reduction.values[metric.name].items()
        }
        dimensions = {column: dict(_dimension(reduction.columns[column])) for column in metric.by}
        mappings[metric.name] = _mapping(dimensions, values)
    if spec := graph.job.transactions:
        kept = {column: dict(_dimension(reduction.columns[column])) for column in spec.by}
        who = {"transaction": dict(_KEYWORD), "stage": dict(_KEYWORD)}
        mappings[ALERTS] = _mapping({**who, **kept}, {name: dict(t) for name, t in _ALERT.items()})
    return mappings


def _mapping(dimensions: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What a document has beyond it is stored, and no field is made up for it."""
    return {
        "dynamic": "false",
        "properties": {
            **_FRAME,
            "dimensions": {"type": "object", "properties": dimensions},
            "values": {"type": "object", "properties": values},
        },
    }


def _merged(mappings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One mapping for the documents of several metrics."""
    dimensions: dict[str, Any] = {}
    values: dict[str, Any] = {}
    first: dict[str, str] = {}
    for metric, mapping in mappings.items():
        dimensions |= mapping["properties"]["dimensions"]["properties"]
        for name, found in mapping["properties"]["values"]["properties"].items():
            other = first.setdefault(name, metric)
            values[name] = _common(values.get(name, found), found, name, other, metric)
    return _mapping(dimensions, values)


def _common(a: Any, b: Any, name: str, first: str, second: str) -> Any:
    if a == b:
        return a
    if {a["type"], b["type"]} == {"long", "double"}:
        return _DOUBLE
    raise JobError(
        f"the value {name} is of type {a['type']} in {first} and {b['type']} in {second}, which "
        "share an index: rename one of them, or put {metric} into index",
        *("sinks", "elasticsearch", "index"),
    )


def _dimension(type_: pa.DataType) -> Mapping[str, Any]:
    """Keys are found by, not counted with: numbers among them are words too."""
    is_number = pa.types.is_integer(type_) or pa.types.is_decimal(type_)
    return _KEYWORD if is_number else _field(type_)


def _value(value: Value, columns: Mapping[str, pa.DataType]) -> Any:
    if len(value.calls) > 1:
        return _DOUBLE
    [call] = value.calls
    if call.function == "sum":
        return _LONG if pa.types.is_integer(columns[call.expression or ""]) else _DOUBLE
    if call.function in _SAME:
        return _field(columns[call.expression or ""])
    return _RESULTS.get(call.function, _STORED)


def _field(type_: pa.DataType) -> Mapping[str, Any]:
    return next((field for is_, field in _FIELDS if is_(type_)), _TEXT)


_FIELDS: Final = (
    (pa.types.is_boolean, {"type": "boolean"}),
    (pa.types.is_integer, _LONG),
    (pa.types.is_floating, _DOUBLE),
    (pa.types.is_decimal, _DOUBLE),  # their text is what is kept; a field of 64 bits is found by
    (pa.types.is_timestamp, _DATE),
)


def requests(setup: Setup) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What ``velocity setup`` asks of Elasticsearch at its first time: addresses and bodies."""
    if setup.policy and setup.policy.body:
        yield f"PUT /_ilm/policy/{setup.policy.name}", {"policy": setup.policy.body}
    for name, body in setup.components.items():
        yield f"PUT /_component_template/{name}", body
    for name, template in setup.indices.items():
        yield f"PUT /_index_template/{name}", template.body
