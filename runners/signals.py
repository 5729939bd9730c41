"""What an operator watches of jobs on Flink, as PromQL over Flink's Prometheus reporter."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from velocity.io.documents import DOCUMENT_DELAYS
from velocity.io.metrics import NAMESPACE, Histogram
from velocity.io.records import Cause
from velocity.transforms.enrich import REST_CALLS

OPERATOR: Final = "flink_taskmanager_job_task_operator_"
"""Flink's scope of what an operator counts."""
JOB: Final = "job_name"
"""Flink's label of a job; of its name, all that is no letter, digit, colon or underscore is one."""


class Signal(NamedTuple):
    """A figure over time."""

    title: str
    about: str
    unit: str
    """As Grafana calls it."""
    queries: dict[str, str]
    """PromQL, by what each line is called: Grafana's legend."""


def series(name: str, where: str = "") -> str:
    """The series of a counter or gauge, one for each operator and subtask that has it.

    Beam's Flink runner gives the metric to Flink as ``velocity.NAME`` in the group of the operator,
    and the reporter writes every character that Prometheus does not take as an underscore. Flink's
    counters are gauges to Prometheus: they begin at 0 when a job's tasks start anew. Distributions
    are not there: the runner gives them as objects, and the reporter writes 0 for these.
    Source: Beam's ``FlinkMetricContainerBase``, Flink's ``AbstractPrometheusReporter``.

    >>> series("read_messages", 'job_name="orders"')
    'flink_taskmanager_job_task_operator_velocity_read_messages{job_name="orders"}'
    """
    return exposed(name) + (f"{{{where}}}" if where else "")


def each(name: str, where: str = "") -> str:
    """The series of all metrics whose names go on behind an underscore: with topic and partition.

    A range of them takes a subquery over their sum: they differ by their name alone, which
    functions of ranges drop.

    >>> each("lag")
    '{__name__=~"flink_taskmanager_job_task_operator_velocity_lag_.+"}'
    """
    matchers = [f'__name__=~"{exposed(name)}_.+"', *filter(None, [where])]
    return f"{{{','.join(matchers)}}}"


def exposed(name: str) -> str:
    """What Prometheus calls a metric of ours.

    >>> exposed("lag_pharmacy.events_3")
    'flink_taskmanager_job_task_operator_velocity_lag_pharmacy_events_3'
    """
    return f"{OPERATOR}{NAMESPACE}_{re.sub('[^a-zA-Z0-9:_]', '_', name)}"


def total(expression: str) -> str:
    return f"sum by ({JOB}) ({expression})"


def rate(name: str, where: str = "", over: str = "5m") -> str:
    """So many a second, by job."""
    return total(f"rate({series(name, where)}[{over}])")


def named(expression: str, label: str, name: str, by: str) -> str:
    """What ``each`` found, by the rest of its name as a label."""
    rest = f'"{label}", "$1", "__name__", ".+_{NAMESPACE}_{name}_(.+)"'
    return f"{by} by ({JOB}, {label}) (label_replace({expression}, {rest}))"


def lag(where: str = "") -> str:
    """Messages that are not read yet, by job."""
    return total(each("lag", where))


def watermark(where: str = "") -> str:
    """How far the event time of a job has come, in epoch seconds: as far as its last partition."""
    return f"min by ({JOB}) ({each('watermark_ms', where)}) / 1000"


def delay(where: str = "") -> str:
    """Seconds from an event to its being read, by job: of the worst partition."""
    return f"max by ({JOB}) ({each('delay_ms', where)}) / 1000"


def breaker(where: str = "") -> str:
    """By job and enrichment: 0 closed, 1 half open, 2 open."""
    return named(each("breaker", where), "enrichment", "breaker", "max")


def quantile(q: float, histogram: Histogram, where: str = "", over: str = "5m") -> str:
    """So many seconds, or fewer, took the share ``q`` of what a histogram counts, by job.

    Its counters become the buckets of one, each with its label ``le``.

    >>> quantile(0.5, Histogram("calls", (10,), "ms")).count("label_replace")
    2
    """
    bounds = {
        **{str(bound): name for name, bound in histogram.within.items()},
        "+Inf": histogram.name,
    }
    buckets = [
        f'label_replace({rate(name, where, over)}, "le", "{bound}", "", "")'
        for bound, name in bounds.items()
    ]
    return f"histogram_quantile({q}, {' or '.join(buckets)})"


def job_manager(name: str, where: str = "") -> str:
    """What Flink itself knows of a job.

    >>> job_manager("numRestarts")
    'max by (job_name) (flink_jobmanager_job_numRestarts)'
    """
    return f"max by ({JOB}) (flink_jobmanager_job_{name}{f'{{{where}}}' if where else ''})"


def signals(where: str = "") -> Iterator[Signal]:
    """All that the operations dashboard shows, of the series that ``where`` chooses."""
    job = f"{{{{{JOB}}}}}"
    yield Signal(
        "Lag",
        "Messages that are not read yet, by partition.",
        "short",
        {f"{job} {{{{partition}}}}": named(each("lag", where), "partition", "lag", "sum")},
    )
    yield Signal(
        "Watermark behind the clock",
        "How far event time is behind. Without events it stands still: that is no fault.",
        "s",
        {job: f"time() - {watermark(where)}"},
    )
    yield Signal(
        "Delay",
        "From an event to its being read, of the worst partition.",
        "s",
        {job: delay(where)},
    )
    yield Signal(
        "Delay to documents",
        "From an event to the document that counts it, or from the end of a window that is shown"
        " when it is over.",
        "s",
        {f"{job} {of:.0%}": quantile(of, DOCUMENT_DELAYS, where) for of in (0.5, 0.95, 0.99)},
    )
    yield Signal(
        "Messages read",
        "Each second, and those of them that could be decoded.",
        "short",
        {
            f"{job} read": rate("read_messages", where),
            f"{job} decoded": rate("decoded_rows", where),
        },
    )
    yield Signal(
        "Documents written",
        "Each second. Stale ones were in the store already, or newer ones were.",
        "short",
        {
            f"{job} written": rate("documents_written", where),
            f"{job} stale": rate("documents_stale", where),
            f"{job} retries": rate("sink_retries", where),
        },
    )
    yield Signal(
        "Dead letters",
        "Each minute, by cause.",
        "short",
        {
            f"{job} {cause}": f"60 * {rate(f'dead_letters_{cause}', where)}"
            for cause in map(str, Cause)
        },
    )
    yield Signal(
        "Dropped",
        "Each minute: events that had come before, facts too late for their transaction, and"
        " messages that retention took unread.",
        "short",
        {
            f"{job} duplicates": f"60 * {rate('duplicates_dropped', where)}",
            f"{job} late facts": f"60 * {rate('transactions_late', where)}",
            f"{job} lost offsets": f"60 * {rate('offsets_lost', where)}",
        },
    )
    yield Signal(
        "Breakers",
        "Of services that are asked: 0 closed, 1 half open, 2 open. As of the last call.",
        "short",
        {f"{job} {{{{enrichment}}}}": breaker(where)},
    )
    yield Signal(
        "Calls of services",
        "Each second; retries are calls too, and those held back by a breaker are none.",
        "short",
        {
            f"{job} calls": rate("rest_calls", where),
            f"{job} retries": rate("rest_retries", where),
            f"{job} held": rate("rest_held", where),
        },
    )
    yield Signal(
        "Latency of services",
        "Of each call, retries among them.",
        "s",
        {f"{job} {of:.0%}": quantile(of, REST_CALLS, where) for of in (0.5, 0.95)},
    )
    yield Signal(
        "Keys of services",
        "Each second: asked for, and of them not known, or not answered for.",
        "short",
        {
            f"{job} asked": rate("enrich_keys", where),
            f"{job} missing": rate("enrich_keys_missing", where),
            f"{job} failed": rate("enrich_keys_failed", where),
        },
    )
    yield Signal(
        "Waiting for services",
        "Seconds of each second, over all workers.",
        "s",
        {job: f"{rate('enrich_wait_ms', where)} / 1000"},
    )
    yield Signal(
        "Checkpoints",
        "How long the last one took.",
        "ms",
        {job: job_manager("lastCheckpointDuration", where)},
    )
    yield Signal(
        "Restarts",
        "Of the job's tasks since it was submitted, and checkpoints that failed.",
        "short",
        {
            f"{job} restarts": job_manager("numRestarts", where),
            f"{job} failed checkpoints": job_manager("numberOfFailedCheckpoints", where),
        },
    )
