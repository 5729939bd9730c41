"""Alert rules of Prometheus for jobs on Flink: what is wrong, for how long, and what to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import yaml

from velocity.io.documents import DOCUMENT_DELAYS
from velocity.io.records import Cause
from velocity.pipelines.dashboards import interval
from velocity.runners.signals import (
    JOB,
    breaker,
    delay,
    job_manager,
    lag,
    quantile,
    rate,
    watermark,
)


@dataclass(frozen=True, slots=True)
class Targets:
    """What is still well."""

    delay: timedelta = timedelta(minutes=5)
    """From an event to its being read."""
    documents: timedelta = timedelta(minutes=10)
    """From an event to the document that counts it, of 95 in 100."""
    lag: int = 10_000
    """Messages not read yet; fewer are no fault, though they grow."""
    dead_letters: float = 0.01
    """Of the messages read, for each cause."""

    def __post_init__(self) -> None:
        for name in ("delay", "documents"):
            if getattr(self, name) < timedelta(seconds=1):
                raise ValueError(f"{name}: a second or more is wanted")
        if self.lag < 0:
            raise ValueError("lag: 0 or more is wanted")
        if not 0 <= self.dead_letters < 1:
            raise ValueError("dead_letters: a share from 0 to less than 1 is wanted")


DEFAULT: Final = Targets()

WARNING: Final = "warning"
"""To be looked at in working hours."""
CRITICAL: Final = "critical"
"""Metrics are not up to date, and don't become so by themselves."""


def rules(targets: Targets = DEFAULT) -> dict[str, Any]:
    """A file of rules, as Prometheus loads it.

    >>> [rule["alert"] for rule in rules()["groups"][0]["rules"]][:2]
    ['VelocityLagGrowing', 'VelocityWatermarkStalled']
    """
    return {"groups": [{"name": "velocity", "rules": list(_rules(targets))}]}


def as_yaml(targets: Targets = DEFAULT) -> str:
    return yaml.safe_dump(rules(targets), sort_keys=False, allow_unicode=True, width=100)


def _rules(targets: Targets) -> Iterator[dict[str, Any]]:
    yield _rule(
        "VelocityLagGrowing",
        f"deriv(({lag()})[15m:1m]) > 0 and {lag()} > {targets.lag}",
        "15m",
        WARNING,
        "the lag grows",
        "More comes in than is read. Look for a service that is slow (Waiting for services), "
        "then give the job more parallelism, up to the topics' partitions.",
    )
    yield _rule(
        "VelocityWatermarkStalled",
        f"changes(({watermark()})[10m:1m]) == 0 and {lag()} > 0",
        "5m",
        CRITICAL,
        "event time stands still though messages wait",
        "No window closes. The job's tasks may be restarting, or wait for a service or a sink: "
        "velocity jobs, and Flink's page of the job, say which.",
    )
    yield _rule(
        "VelocityBreakerOpen",
        f"{breaker()} >= 1",
        "2m",
        WARNING,
        "the service of the enrichment {{ $labels.enrichment }} fails",
        "No calls are made to it but for a probe now and then. Events wait, or become dead "
        "letters: the enrichment's on_error says which.",
    )
    for cause in Cause:
        yield _rule(
            "VelocityDeadLettersRising",
            f"{rate(f'dead_letters_{cause}', over='10m')} "
            f"> {targets.dead_letters} * {rate('read_messages', over='10m')}",
            "5m",
            WARNING,
            f"of the messages more than {targets.dead_letters:.2%} are dead letters: {cause}",
            "velocity dead-letters list shows them with their errors, and replay sends them again.",
            cause=str(cause),
        )
    yield _rule(
        "VelocityDelayAboveTarget",
        f"{delay()} > {targets.delay.total_seconds():g} and {rate('read_messages')} > 0",
        "5m",
        WARNING,
        f"events are read more than {interval(targets.delay)} after they happened",
        "With a lag: the job is behind. Without: the producer sends late.",
    )
    yield _rule(
        "VelocityDocumentsLate",
        f"{quantile(0.95, DOCUMENT_DELAYS)} > {targets.documents.total_seconds():g}",
        "5m",
        WARNING,
        f"documents show events more than {interval(targets.documents)} after they happened",
        "Events that are read late make late documents: see the delay. Else the sink is slow, or the "
        "watermark is behind: a window without early panes is shown when it has passed.",
    )
    yield _rule(
        "VelocityRestarts",
        f"increase({job_manager('numRestarts')}[15m:1m]) > 2",
        "0m",
        CRITICAL,
        "its tasks start over and over",
        "Flink's page of the job has the exception; nothing is lost, and nothing gets on.",
    )
    yield _rule(
        "VelocityCheckpointsFail",
        f"increase({job_manager('numberOfFailedCheckpoints')}[30m:1m]) > 2",
        "0m",
        WARNING,
        "its checkpoints fail",
        "After a crash more is read again. Flink's page of the job says which task is too slow.",
    )


def _rule(
    alert: str, expression: str, lasting: str, severity: str, what: str, remedy: str, **labels: str
) -> dict[str, Any]:
    return {
        "alert": alert,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity, **labels},
        "annotations": {
            "summary": f"{{{{ $labels.{JOB} }}}}: {what}",
            "description": remedy,
        },
    }
