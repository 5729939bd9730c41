"""What a job's dashboard shows, before it is Kibana's or Grafana's: its panels follow its metrics."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from velocity.pipelines.graph import Graph, JobError
from velocity.pipelines.job import MetricSpec
from velocity.pipelines.templates import setup_of
from velocity.pipelines.units import unit_of
from velocity.transforms.aggregates import Value as Computed
from velocity.transforms.metric import Metric
from velocity.transforms.windows import Days, Fixed, Global, Sliding

NUMBERS: Final = ("long", "double")
"""Types of fields that a chart can draw."""
WORDS: Final = ("date", "keyword", "boolean")
"""Types that a table shows; a field of another type is stored, and found by nothing."""

DRILL_DOWN: Final = "city"
"""The dimension that a dashboard is narrowed by, unless another is named."""

EARLY: Final = "early"
"""The pane of a document whose window is still open."""
PROVISIONAL: Final = "provisional"
"""What such a value is called."""

HEADLINES: Final = 2
"""Charts of a job on the dashboard across all jobs."""

Over = Literal["sum", "min", "max"]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a metric, and how one number is made of those of several documents."""

    name: str
    type: str
    """Of its field in Elasticsearch."""
    over: Over
    per_key: bool
    """Whether values of different keys make no value together: each key is then drawn alone."""
    unit: str = ""
    """As people read it beside the number."""

    @property
    def field(self) -> str:
        return f"values.{self.name}"


@dataclass(frozen=True, slots=True)
class Panel:
    """A metric's value over time, or in a table what can't be drawn so."""

    metric: str
    description: str
    dimensions: Mapping[str, str]
    """The names of what makes the key, each with its field's type."""
    values: tuple[Value, ...]
    """One, in a chart."""
    every: timedelta | None
    """From one window to the next; None where they begin at any time."""
    provisional: bool
    """Whether windows that are still open have documents."""

    @property
    def chart(self) -> bool:
        return self.values[0].type in NUMBERS

    @property
    def name(self) -> str:
        """The same as long as the job calls the metric and its value so."""
        return f"{self.metric}-{self.values[0].name}" if self.chart else self.metric

    @property
    def title(self) -> str:
        return f"{self.metric}: {', '.join(value.name for value in self.values)}"

    @property
    def split(self) -> tuple[str, ...]:
        """The dimensions that a chart draws a series for each of: the first, or the whole key.

        >>> mean = Value("mean", "double", "max", per_key=True)
        >>> key = {"city": "keyword", "tier": "keyword", "day": "date"}
        >>> Panel("m", "", key, (mean,), None, False).split
        ('city', 'tier')
        """
        whole = any(value.per_key for value in self.values)
        return self.told_apart if whole else self.told_apart[:1]

    @property
    def told_apart(self) -> tuple[str, ...]:
        """The dimensions that Kibana makes groups by: it has none for each time."""
        return tuple(name for name, type_ in self.dimensions.items() if type_ != "date")

    def note(self, drill_down: str) -> str:
        """What whoever looks at it has to know."""
        notes = [self.description]
        if self.chart and self.values[0].per_key and len(self.dimensions) > 1:
            notes.append(f"A series for each {', '.join(self.dimensions)}: they don't add up.")
        if merged := [name for name, type_ in self.dimensions.items() if type_ == "date"]:
            notes.append(f"Not told apart by {', '.join(merged)}: a value for each is one here.")
        if self.provisional:
            notes.append("Provisional: the window is open, and the value may change.")
        if drill_down not in self.dimensions:
            notes.append(f"Has no {drill_down}, and is not narrowed by it.")
        return " ".join(note for note in notes if note)


@dataclass(frozen=True, slots=True)
class Board:
    """What is shown of one job."""

    job: str
    description: str
    indices: str
    """The alias that reads all its documents, or a wildcard."""
    panels: tuple[Panel, ...]
    alerts: tuple[str, ...] | None
    """The dimensions of its alerts; None if it has none."""

    @property
    def charts(self) -> tuple[Panel, ...]:
        return tuple(panel for panel in self.panels if panel.chart)

    @property
    def headlines(self) -> tuple[Panel, ...]:
        """What the dashboard across all jobs shows of it."""
        return self.charts[:HEADLINES]

    def has(self, dimension: str) -> bool:
        """Whether any of its documents may have that dimension."""
        return any(
            dimension in of for of in (*(p.dimensions for p in self.panels), self.alerts or ())
        )


def board_of(graph: Graph) -> Board:
    """The board of a job that writes to Elasticsearch; raises ``JobError`` of one that doesn't.

    A chart for each number, and a table for a metric's times, texts and truth values. What is an
    object in the documents (``top``, ``histogram``) is in no panel: nothing aggregates it. Nor is a
    metric of a global window, which has no place in the time that a dashboard shows.

    >>> from velocity.pipelines.jobfile import parse
    >>> from velocity.pipelines.reference import EXAMPLE
    >>> board = board_of(Graph(parse(EXAMPLE.encode(), "job.yaml").job))
    >>> board.indices, [panel.name for panel in board.panels][:2]
    ('velocity-deliveries', ['orders_by_city-orders', 'orders_by_city-large'])
    """
    job, setup = graph.job, setup_of(graph)
    mappings = {
        metric: template.mapping["properties"]
        for template in setup.indices.values()
        for metric in template.metrics
    }
    specs = {spec.name: spec for spec in job.metrics}
    panels = tuple(
        panel
        for metric in graph.metrics.reduction.metrics
        if not isinstance(metric.window, Global)
        for panel in _panels(metric, specs[metric.name], mappings[metric.name])
    )
    alerts = None
    if job.transactions is not None:
        alerts = ("transaction", "stage", *job.transactions.by)
    indices = setup.alias or setup.pattern.wildcard(job.job)
    return Board(job.job, job.description, indices, panels, alerts)


def boards_of(graphs: Mapping[str, Graph]) -> tuple[Board, ...]:
    """Of several jobs, by the files they are in; raises ``JobError`` if two have one name."""
    boards: dict[str, tuple[str, Board]] = {}
    for file, graph in graphs.items():
        board = board_of(graph)
        if board.job in boards:
            first, _ = boards[board.job]
            raise JobError(f"{first} and {file} both call theirs {board.job}: rename one", "job")
        boards[board.job] = file, board
    return tuple(board for _, board in boards.values())


def interval(every: timedelta) -> str:
    """As Elasticsearch, Kibana and Grafana write it: in one unit.

    >>> interval(timedelta(minutes=90)), interval(timedelta(days=1)), interval(timedelta(seconds=1.5))
    ('90m', '1d', '1500ms')
    """
    units = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
    millis = every // timedelta(milliseconds=1)
    unit = next(unit for unit, size in units.items() if millis % size == 0)
    return f"{millis // units[unit]}{unit}"


def _panels(metric: Metric, spec: MetricSpec, mapping: Mapping[str, Any]) -> Iterator[Panel]:
    types, keys = (
        {name: field["type"] for name, field in mapping[part]["properties"].items()}
        for part in ("values", "dimensions")
    )
    values = [
        Value(name, types[name], *_over(Computed.parse(text), metric), unit_of(name, spec.units))
        for name, text in metric.values.items()
    ]
    frame = (metric.name, spec.description, {name: keys[name] for name in metric.by})
    rest = (_every(metric), metric.early is not None)
    for value in values:
        if value.type in NUMBERS:
            yield Panel(*frame, (value,), *rest)
    if words := tuple(value for value in values if value.type in WORDS):
        yield Panel(*frame, words, *rest)


def _over(value: Computed, metric: Metric) -> tuple[Over, bool]:
    """How values of several documents become one, and whether only those of one key do.

    In windows that overlap an event counts several times, and sums of them would too.
    """
    functions = [call.function for call in value.calls]
    if functions == ["min"]:
        return "min", False
    if functions == ["max"]:
        return "max", False
    adds_up = functions in (["count"], ["sum"]) and not isinstance(metric.window, Sliding)
    return ("sum", False) if adds_up else ("max", True)


def _every(metric: Metric) -> timedelta | None:
    match metric.window:
        case Fixed(size=size):
            return size
        case Days(count=count):
            return timedelta(days=count)
        case Sliding(every=every):
            return every
    return None
