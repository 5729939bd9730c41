"""The reference of metrics, docs/metrics.md: made from their declarations."""

from collections.abc import Iterator, Sequence
from typing import Final

from velocity.io.measures import MEASURES, Measure

REGENERATE: Final = (
    'python -c "from velocity.pipelines.metrics_reference import metrics_reference; '
    "print(metrics_reference(), end='')\" > docs/metrics.md"
)

_HEAD: Final = f"""\
# Metrics

All that a job counts and measures: Beam metrics of the namespace `velocity`, on every runner. Generated
from `io/measures.py`; after a change there:

    {REGENERATE}

Where they are read is in [operations.md](operations.md). On the pool's page for Prometheus a counter is
`velocity_NAME_total`, a gauge `velocity_NAME`, and what is in capitals below is a label instead, as
`cause` of `velocity_dead_letters_total`; histograms are `velocity_NAME_seconds`. By Flink's own reporter each is
`flink_taskmanager_job_task_operator_velocity_NAME`, a gauge there, and a distribution is told as 0.
"""

_DELAY: Final = """
The delay to documents is measured as a sink takes one, in a stream: from the mean time of the events
that it is the first to count; from the end of the window, if the metric has no early panes and its
window is shown when it is over. A session's is measured once, when it ends. Of a bounded run there is
none.
"""
_BELOW: Final = {"The sinks": _DELAY}
"""What is to be said of a group, below its table."""


def metrics_reference() -> str:
    """The page, in Markdown.

    >>> "## Each partition" in metrics_reference()
    True
    """
    return "\n".join([_HEAD, *_sections()]).rstrip("\n") + "\n"


def _sections() -> Iterator[str]:
    for title, measures in MEASURES.items():
        yield f"## {title}\n"
        yield from _table(measures)
        yield _BELOW.get(title, "")


def _table(measures: Sequence[Measure]) -> Iterator[str]:
    yield "| metric | kind | unit | of |\n| --- | --- | --- | --- |"
    for measure in measures:
        yield f"| `{_name(measure)}` | {measure.kind} | {measure.unit} | {measure.about} |"
        if measure.within:
            values, unit = measure.within
            names = ", ".join(
                f"`{measure.name}_within_{values[0]}{unit}`" if i == 0 else f"`…_{value}{unit}`"
                for i, value in enumerate(values)
            )
            also = f"Of these, as a cumulative histogram: {names}."
            yield f"| `{measure.name}_within_…` | counters | {measure.unit} | {also} |"


def _name(measure: Measure) -> str:
    """As Beam has it.

    >>> _name(Measure("lag", "messages", "", labels=("topic", "partition")))
    'lag_TOPIC_PARTITION'
    """
    return "_".join([measure.name, *map(str.upper, measure.labels)])
