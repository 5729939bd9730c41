"""A process's metrics for Prometheus, in files that another process reads: one of many workers'.

The files are those of prometheus_client's multiprocess mode: a worker that is killed has told all
that it counted, and asks nobody for anything while it counts.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final
from urllib.parse import quote

from velocity.io.measures import measure
from velocity.io.metrics import NAMESPACE, Labels, Mirror

MOST_SERIES: Final = 1_000
"""Of one metric in one process; what comes after is counted under the label values ``other``."""

OTHER: Final = "other"

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client, as it is imported, is told to keep its values."""


def folder_of(root: Path, job: str) -> Path:
    """Where the workers of a job keep what they count.

    >>> folder_of(Path("/run"), "orders/2")
    PosixPath('/run/orders%2F2')
    """
    return root / (quote(job, safe="") or "_")


def open_mirror(root: Path, job: str) -> Mirror:
    """The mirror of this process, which has not imported prometheus_client before."""
    folder = folder_of(root, job)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[_FOLDER] = str(folder)
    import prometheus_client

    return ToPrometheus(prometheus_client, job)


class ToPrometheus:
    """A ``velocity.io.metrics.Mirror``: ``velocity_NAME``, with a label ``job_name`` and the metric's own.

    Counters end in ``_total``, histograms in ``_seconds``, and a distribution is a summary: how many
    and their sum. A metric has no more than ``most`` series, whatever its labels are.
    """

    def __init__(
        self,
        client: Any,
        job: str,
        *,
        most: int = MOST_SERIES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._job, self._most = client, job, most
        self._registry = client.CollectorRegistry()
        self._metrics: dict[tuple[str, str], Any] = {}
        self._series: dict[tuple[str, str], dict[Labels, Any]] = {}
        self._lock = Lock()

    def count(self, name: str, labels: Labels, n: int) -> None:
        self._of("Counter", name, labels).inc(n)

    def set(self, name: str, labels: Labels, value: int) -> None:
        # A partition goes from one process to another: what was set last holds.
        more = {"multiprocess_mode": "livemostrecent"}
        self._of("Gauge", name, labels, **more).set(value)

    def sample(self, name: str, labels: Labels, value: int) -> None:
        self._of("Summary", name, labels).observe(value)

    def observe(
        self, name: str, labels: Labels, bounds: Sequence[float], seconds: Sequence[float]
    ) -> None:
        histogram = self._of("Histogram", f"{name}_seconds", labels, buckets=tuple(bounds))
        for sample in seconds:
            histogram.observe(sample)

    def _of(self, kind: str, name: str, labels: Labels, **more: Any) -> Any:
        """The series of a metric with these labels, or the one of all that are too many."""
        key = (kind, name)
        found = self._series.get(key, {}).get(labels)
        if found is not None:
            return found
        with self._lock:
            series = self._series.setdefault(key, {})
            if labels and len(series) >= self._most:
                labels = tuple((label, OTHER) for label, _ in labels)
            if labels not in series:
                series[labels] = self._metric(key, labels, more).labels(
                    self._job, *(value for _, value in labels)
                )
            return series[labels]

    def _metric(self, key: tuple[str, str], labels: Labels, more: dict[str, Any]) -> Any:
        if key not in self._metrics:
            kind, name = key
            self._metrics[key] = getattr(self._client, kind)(
                f"{NAMESPACE}_{name}",
                _help(name),
                ("job_name", *(label for label, _ in labels)),
                registry=self._registry,
                **more,
            )
        return self._metrics[key]


def _help(name: str) -> str:
    """
    >>> _help("rest_held")
    'Not made: held back by the breaker. (requests)'
    """
    found = measure(name.removesuffix("_seconds"))
    return (
        f"{found.about} ({found.unit})" if found else "Counted by a lookup that is not Velocity's."
    )
