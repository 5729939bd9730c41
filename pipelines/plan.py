"""The plan of a job: the steps of its graph and what each does, as text, Mermaid and JSON."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

from rich.text import Text
from rich.tree import Tree

from velocity.pipelines.enrichments import levels
from velocity.pipelines.job import (
    EnrichmentSpec,
    FieldSpec,
    FormatSpec,
    Job,
    KafkaSink,
    MetricSpec,
    RegistrySpec,
    TransactionSpec,
    WindowSpec,
    format_duration,
)

Kind = Literal[
    "read",
    "decode",
    "deduplicate",
    "filter",
    "enrich",
    "protect",
    "derive",
    "archive",
    "transactions",
    "metric",
    "sink",
    "publish",
    "dead letters",
]


@dataclass(frozen=True)
class Step:
    """A step of a graph: its name, unique in the plan, what it does, and whose output it takes.

    ``${NAME}`` stands in ``details`` as the job has it; of what may hold secrets only names are
    there.
    """

    name: str
    kind: Kind
    details: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    """Names of steps before it."""


def plan(job: Job) -> Sequence[Step]:
    """The steps of a job, each after those it takes its input from.

    >>> from velocity.pipelines.jobfile import parse
    >>> from velocity.pipelines.reference import EXAMPLE
    >>> for step in plan(parse(EXAMPLE.encode(), "job.yaml").job):
    ...     print(f"{step.name}: {', '.join(step.inputs) or 'nothing'}")
    read: nothing
    decode: read
    enrich provider: decode
    derive: enrich provider
    metric orders_by_city: derive
    elasticsearch: metric orders_by_city
    dead letters: decode, enrich provider, derive, metric orders_by_city, elasticsearch
    """
    steps = list(_rows(job))
    rows = _ends(steps)
    metrics = [_metric(metric, rows) for metric in job.metrics]
    alerts = rows if job.transactions else ()
    sinks = list(_sinks(job, (*alerts, *(step.name for step in metrics))))
    steps += [*metrics, *sinks]
    events = _ends([step for step in steps if step.kind in _OF_EVENTS])
    if job.sinks.kafka:
        steps.append(_publish(job.sinks.kafka, events))
    dead = _dead_letters(job, tuple(step.name for step in steps[1:]))
    return [*steps, *_archives(job, events), dead]


_OF_EVENTS: Final = ("decode", "deduplicate", "filter", "enrich", "protect", "derive")
"""Kinds of steps that put out events."""


def _rows(job: Job) -> Iterator[Step]:
    """From the topics to the rows that metrics are computed from, one after the other."""
    before = yield from _next(_read(job), ())
    before = yield from _next(_decode(job), before)
    if spec := job.source.deduplicate:
        details = {"by": spec.by, "horizon": format_duration(spec.horizon)}
        details["shards"] = str(spec.shards)
        before = yield from _next(Step("deduplicate", "deduplicate", details), before)
    if job.filter is not None:
        before = yield from _next(Step("filter", "filter", {"where": _line(job.filter)}), before)
    for level in levels(job.enrich):
        steps = [_enrich(job.enrich[i]) for i in level]
        for step in steps:
            yield replace(step, inputs=before)
        before = tuple(step.name for step in steps)
    if job.sensitive is not None:
        how = "hashed" if job.sensitive.hash_with else "dropped"
        details = {how: ", ".join(job.sensitive.fields)}
        before = yield from _next(Step("protect", "protect", details), before)
    if job.derive:
        columns = {name: _line(expression) for name, expression in job.derive.items()}
        before = yield from _next(Step("derive", "derive", columns), before)
    if job.transactions:
        yield from _next(_transactions(job.transactions), before)


def _ends(steps: Sequence[Step]) -> tuple[str, ...]:
    """The steps whose output no other takes."""
    taken = {name for step in steps for name in step.inputs}
    return tuple(step.name for step in steps if step.name not in taken)


def _next(step: Step, inputs: tuple[str, ...]) -> Any:
    yield replace(step, inputs=inputs)
    return (step.name,)


def _read(job: Job) -> Step:
    source, kafka = job.source, job.source.kafka
    start = kafka.start.isoformat() if isinstance(kafka.start, datetime) else str(kafka.start)
    details = {
        "kafka": kafka.bootstrap_servers,
        "topics": ", ".join(kafka.topics),
        "start": start,
        "disorder": format_duration(source.disorder),
        "idle after": format_duration(source.idle_after),
    }
    if kafka.options:
        details["options"] = ", ".join(kafka.options)
    return Step("read", "read", details)


def _decode(job: Job) -> Step:
    return Step(
        "decode",
        "decode",
        {
            "format": _format(job.source.format),
            "event time": job.source.event_time,
            "max future": format_duration(job.source.max_future),
            "fields": ", ".join(_field(name, spec) for name, spec in job.fields.items()),
        },
    )


def _format(spec: str | FormatSpec) -> str:
    match spec:
        case FormatSpec(avro=RegistrySpec() as registry):
            return f"avro, of the registry {without_user(registry.registry)}"
        case FormatSpec(protobuf=RegistrySpec() as registry):
            return f"protobuf, of the registry {without_user(registry.registry)}"
    return str(spec)


def _field(name: str, spec: FieldSpec) -> str:
    return f"{name} {spec.type}{' required' if spec.required else ''}"


def _enrich(spec: EnrichmentSpec) -> Step:
    ways = {way: getattr(spec, way) for way in ("get", "post", "python", "beam")}
    details = {way: without_user(text) for way, text in ways.items() if text is not None}
    details |= {
        "key": ", ".join(spec.keys),
        "adds": ", ".join(f"{name} {added.type}" for name, added in spec.add.items()),
    }
    if spec.beam is None:
        details["keys per call"] = f"{spec.max_keys:,}"
    details |= {
        "cache": f"{spec.cache.size:,} answers for {format_duration(spec.cache.ttl)}, "
        f"unknown keys for {format_duration(spec.cache.missing_ttl)}",
        "on missing": spec.on_missing
        if isinstance(spec.on_missing, str)
        else ", ".join(f"{column} {value!r}" for column, value in spec.on_missing.items()),
        "on error": spec.on_error,
    }
    if spec.on_error == "wait":
        details["on error"] += f", {format_duration(spec.wait_at_most)} in one bundle"
    if spec.headers:
        details["headers"] = ", ".join(spec.headers)
    if spec.token is not None:
        details["token"] = "by command" if spec.token.command else without_user(str(spec.token.url))
    return Step(f"enrich {spec.name}", "enrich", details)


def _transactions(spec: TransactionSpec) -> Step:
    details = {
        "key": spec.key,
        "event": spec.event,
        "lateness": format_duration(spec.lateness),
        "ttl": format_duration(spec.ttl),
    }
    if spec.by:
        details["keeps"] = ", ".join(spec.by)
    if spec.alerts:
        details["alerts"] = f"kafka topic {spec.alerts.kafka}"
    for name, stage in spec.stages.items():
        following = f", then {' or '.join(stage.next)}" if stage.next else ""
        within = f" within {format_duration(stage.sla)}" if stage.sla is not None else ""
        details[f"stage {name}"] = f"{' or '.join(stage.events)}{following}{within}"
    return Step("transactions", "transactions", details)


def _metric(spec: MetricSpec, rows: tuple[str, ...]) -> Step:
    details = {"where": _line(spec.where)} if spec.where is not None else {}
    details |= {"key": ", ".join(spec.by) or "none: all events", "window": _window(spec.window)}
    if spec.emit.early is not None:
        details["early"] = f"every {format_duration(spec.emit.early)}"
    details["lateness"] = format_duration(spec.emit.lateness)
    details |= {name: _line(value) for name, value in spec.values.items()}
    return Step(f"metric {spec.name}", "metric", details, rows)


def _window(spec: WindowSpec) -> str:
    """As a reader says it.

    >>> from datetime import timedelta
    >>> _window(WindowSpec(sliding="15m", every="5m"))
    'sliding 15m every 5m'
    """
    if spec.global_:
        return "global: all time"
    written = {
        key: value if isinstance(value, str) else format_duration(value)
        for key, value in spec
        if value is not None and key != "global_"
    }
    return " ".join(f"{key} {value}" for key, value in written.items())


def _sinks(job: Job, metrics: tuple[str, ...]) -> Iterator[Step]:
    if spec := job.sinks.elasticsearch:
        user = "api key" if spec.api_key else "user and password" if spec.username else ""
        where = {"url": without_user(spec.url)} if spec.url else {"cloud id": spec.cloud_id or ""}
        details = where | {"index": spec.index}
        if user:
            details["identity"] = user
        yield Step("elasticsearch", "sink", details, metrics)
    if job.sinks.sqlite:
        yield Step("sqlite", "sink", {"path": job.sinks.sqlite.path}, metrics)
    if influx := job.sinks.influx:
        details = {"url": without_user(influx.url), "bucket": influx.bucket}
        yield Step("influx", "sink", details, metrics)


def _publish(spec: KafkaSink, events: tuple[str, ...]) -> Step:
    details = {"kafka": spec.bootstrap_servers} if spec.bootstrap_servers else {}
    details |= {f"topic of {name}": topic for name, topic in spec.topics.items()}
    if spec.topic is not None:
        details["topic"] = spec.topic
    details["key"] = spec.key or "and partition as they were"
    headers = [*spec.headers, *(["event_id"] if spec.event_id else [])]
    if headers:
        details["headers"] = ", ".join(headers)
    return Step("events to kafka", "publish", details, events)


def _archives(job: Job, rows: tuple[str, ...]) -> Iterator[Step]:
    if job.archive and job.archive.raw:
        yield Step("archive raw", "archive", {"path": job.archive.path}, ("decode",))
    if job.archive and job.archive.enriched:
        yield Step("archive enriched", "archive", {"path": job.archive.path}, rows)


def _dead_letters(job: Job, inputs: tuple[str, ...]) -> Step:
    spec = job.dead_letters
    details = {"kafka topic": spec.kafka} if spec.kafka else {"parquet": spec.parquet or ""}
    return Step("dead letters", "dead letters", details, inputs)


def _line(expression: str) -> str:
    return " ".join(expression.split())


def without_user(url: str) -> str:
    """No password that was written into an address shows."""
    return re.sub(r"//[^/@]*@", "//…@", url)


# -- as text, Mermaid and JSON --------------------------------------------------------------------


_SEVERAL: Final[Mapping[Kind, str]] = {
    "sink": "all documents",
    "dead letters": "every step after read",
}


def tree(job: Job) -> Tree:
    """For ``rich`` to draw: each step with its details, and what it takes if not from above."""
    drawn = Tree(Text(job.job, "bold"))
    before: tuple[str, ...] = ()
    for step in plan(job):
        label = Text(step.name, "bold cyan")
        if step.inputs != before:
            several = _SEVERAL.get(step.kind, ", ".join(step.inputs))
            label.append(f"  ← {several}", "not bold dim")
        branch = drawn.add(label)
        width = max(map(len, step.details), default=0)
        for name, value in step.details.items():
            branch.add(Text.assemble((f"{name:{width}}  ", "dim"), value))
        before = (step.name,)
    return drawn


def mermaid(job: Job) -> str:
    """A flowchart of https://mermaid.js.org/syntax/flowchart.html.

    >>> from velocity.pipelines.jobfile import parse
    >>> from velocity.pipelines.reference import EXAMPLE
    >>> print(mermaid(parse(EXAMPLE.encode(), "job.yaml").job).split("<br/>")[0])
    flowchart TD
      s0[("<b>read</b>
    """
    steps = plan(job)
    ids = {step.name: f"s{i}" for i, step in enumerate(steps)}
    lines = ["flowchart TD"]
    for step in steps:
        rows = [f"<b>{_escaped(step.name)}</b>"]
        rows += [_escaped(f"{name}: {value}") for name, value in step.details.items()]
        begin, end = ("[(", ")]") if step.kind in _STORES else ("[", "]")
        lines.append(f'  {ids[step.name]}{begin}"{"<br/>".join(rows)}"{end}')
    for step in steps:
        arrow = "-.->" if step.kind == "dead letters" else "-->"
        lines += [f"  {ids[name]} {arrow} {ids[step.name]}" for name in step.inputs]
    return "\n".join(lines) + "\n"


_STORES: Final = ("read", "archive", "sink", "publish", "dead letters")
_MARKS: Final = re.compile(r"""["#&<>`%;\\]""")


def _escaped(text: str) -> str:
    """What would end a label, or be read as Markdown, HTML or a directive, as Mermaid's entities."""
    return _MARKS.sub(lambda mark: f"#{ord(mark[0])};", " ".join(text.split()))


def as_json(job: Job) -> str:
    """``{"job": …, "steps": [{"name", "kind", "details", "inputs"}]}``."""
    steps = [asdict(step) for step in plan(job)]
    return json.dumps({"job": job.job, "steps": steps}, indent=2, ensure_ascii=False) + "\n"
