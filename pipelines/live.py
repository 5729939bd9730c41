"""What the live board shows of jobs, and what it asks of the store for it: pure, of the job files."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from velocity.io.totals import Ask, Latest, Over, Where
from velocity.pipelines.dashboards import DRILL_DOWN, NUMBERS
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job, MetricSpec
from velocity.pipelines.templates import mappings_of
from velocity.pipelines.units import unit_of
from velocity.transforms.aggregates import Value as Computed
from velocity.transforms.metric import Metric
from velocity.transforms.windows import Days, Fixed, Global, Session, Sliding, millis

SPANS: Final = 60
"""In a chart, at most: of a longer time several windows are one."""
AT_LEAST: Final = 8
"""Windows in a chart, though the time chosen is shorter: a day alone is no course."""
AT_MOST: Final = 400
"""Windows that each stand for themselves: days, and those that overlap."""
SERIES: Final = 6
"""Keys in a chart: those with the most events; the others together are one more."""
VALUES: Final = 6
"""Of a metric that can be looked at."""
_STALE: Final = 3
"""Times that a document may fail to come before its metric is stale."""
_SESSION_SPAN: Final = 60_000

RANGES: Final[Mapping[str, timedelta]] = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
RANGE: Final = "1h"


@dataclass(frozen=True, slots=True)
class Shown:
    """A value of a metric that is a number."""

    name: str
    unit: str
    over: Over
    adds_up: bool
    """Whether values of different keys, in one window, add up."""

    @property
    def label(self) -> str:
        return words(self.name)


@dataclass(frozen=True, slots=True)
class Card:
    """A metric on the board: a tile and a chart."""

    job: str
    metric: str
    description: str
    dimensions: tuple[str, ...]
    """Those that make series: no times."""
    values: tuple[Shown, ...]
    """None, if the metric has no number: then its events are shown."""
    kind: Literal["side by side", "overlapping", "days", "sessions", "ever"]
    every: int
    """Milliseconds from a window to the next; of sessions, their gap; 1 of the one window of all time."""
    offset: int
    provisional: bool
    """Whether windows that are still open have documents."""
    stale_after: int
    """Milliseconds without a document."""
    zone: str | None
    """That the metric's days are in."""

    @property
    def id(self) -> str:
        return f"{self.job}.{self.metric}"

    @property
    def title(self) -> str:
        return words(self.metric)

    @property
    def apart(self) -> bool:
        """Whether each window's start stands for itself."""
        return self.kind in ("overlapping", "days", "ever")


@dataclass(frozen=True, slots=True)
class Funnel:
    """A metric that counts what becomes of transactions, by stage."""

    job: str
    metric: str
    stages: tuple[str, ...]
    """In the order of the job."""
    dimensions: tuple[str, ...]
    counts: Mapping[str, str]
    """Which value counts what: ``entered`` at least."""


@dataclass(frozen=True, slots=True)
class LiveBoard:
    """All that is shown of some jobs."""

    jobs: tuple[str, ...]
    cards: tuple[Card, ...]
    funnels: tuple[Funnel, ...]
    alerting: tuple[str, ...]
    """The jobs that have alerts."""
    dimensions: tuple[str, ...]
    """That it can be narrowed by; the city first, then those that most metrics have."""
    types: Mapping[str, str]
    """Of the dimensions' fields in Elasticsearch."""
    zone: str
    """In which times are told."""


@dataclass(frozen=True, slots=True)
class View:
    """What whoever looks has chosen."""

    job: str | None = None
    where: Where = ()
    range: timedelta = RANGES[RANGE]
    until: int | None = None
    """Epoch milliseconds; None: up to the newest document."""


def live_board(graphs: Iterable[Graph], zone: str | None = None) -> LiveBoard:
    """The board of some jobs. Times are in ``zone``; without one in that of the jobs' days, if they
    agree on one, else in UTC.

    >>> from velocity.pipelines.jobfile import parse
    >>> from velocity.pipelines.reference import EXAMPLE
    >>> board = live_board([Graph(parse(EXAMPLE.encode(), "job.yaml").job)])
    >>> board.cards[0].title, [value.name for value in board.cards[0].values][:2]
    ('Orders by city', ['orders', 'large'])
    """
    cards: list[Card] = []
    funnels: list[Funnel] = []
    alerting: list[str] = []
    types: dict[str, str] = {}
    count: dict[str, int] = {}
    jobs: list[str] = []
    for graph in graphs:
        job = graph.job
        if not job.metrics:
            continue
        jobs.append(job.job)
        mappings = mappings_of(graph)
        specs = {spec.name: spec for spec in job.metrics}
        for metric in graph.metrics.reduction.metrics:
            properties = mappings[metric.name]["properties"]
            keys = {n: f["type"] for n, f in properties["dimensions"]["properties"].items()}
            fields = {n: f["type"] for n, f in properties["values"]["properties"].items()}
            card = _card(job, metric, specs[metric.name], keys, fields)
            cards.append(card)
            for name in card.dimensions:
                types[name] = keys[name]
                count[name] = count.get(name, 0) + 1
        if job.transactions is not None:
            alerting.append(job.job)
            if funnel := _funnel(job):
                funnels.append(funnel)
    zones = {card.zone for card in cards} - {None}
    return LiveBoard(
        tuple(jobs),
        tuple(cards),
        tuple(funnels),
        tuple(alerting),
        tuple(sorted(count, key=lambda name: (name != DRILL_DOWN, -count[name]))),
        types,
        zone or (zones.pop() if len(zones) == 1 else None) or "UTC",
    )


def words(name: str) -> str:
    """A name as people read it.

    >>> words("orders_by_city"), words("p95_minutes")
    ('Orders by city', 'P95 minutes')
    """
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def _card(
    job: Job,
    metric: Metric,
    spec: MetricSpec,
    keys: Mapping[str, str],
    fields: Mapping[str, str],
) -> Card:
    values = [
        Shown(name, unit_of(name, spec.units), *_over(Computed.parse(text)))
        for name, text in metric.values.items()
        if fields[name] in NUMBERS
    ]
    offset = 0
    zone: str | None = None
    match metric.window:
        case Fixed(size=size, offset=shift):
            kind, every, offset = "side by side", millis(size), millis(shift)
        case Days(count=count, zone=named):
            kind, every, zone = "days", count * 86_400_000, named
        case Sliding(every=step):
            kind, every = "overlapping", millis(step)
        case Session(gap=gap):
            kind, every = "sessions", millis(gap)
        case Global():
            kind, every = "ever", 1
    # Of all time there is no window that a document must come for.
    comes = (
        86_400_000 if kind == "ever" else every if metric.early is None else millis(metric.early)
    )
    late = millis(job.source.disorder + job.source.idle_after)
    return Card(
        job.job,
        metric.name,
        spec.description,
        tuple(name for name in metric.by if keys[name] != "date"),
        tuple(values[:VALUES]),
        kind,  # type: ignore[arg-type]  # one of its four, by the match
        every,
        offset,
        metric.early is not None,
        max(60_000, _STALE * comes) + late,
        zone,
    )


def _over(value: Computed) -> tuple[Over, bool]:
    functions = [call.function for call in value.calls]
    if functions == ["min"]:
        return "min", False
    if functions in (["count"], ["sum"]):
        return "sum", True
    return "max", False


def _funnel(job: Job) -> Funnel | None:
    """By the first metric that counts, by stage, which transactions have entered it."""
    assert job.transactions is not None
    for spec in job.metrics:
        if "stage" not in spec.by or spec.window.fixed is None:
            continue
        counts = {
            what: name for name, text in spec.values.items() if (what := _counted(text)) is not None
        }
        if "entered" in counts:
            by = tuple(name for name in spec.by if name != "stage")
            return Funnel(job.job, spec.name, tuple(job.transactions.stages), by, counts)
    return None


def _counted(text: str) -> str | None:
    """Which fact alone a value counts, if it does.

    >>> _counted("count(CASE WHEN what = 'entered' THEN 1 END)"), _counted("count()")
    ('entered', None)
    """
    value = Computed.parse(text)
    if [call.function for call in value.calls] != ["count"]:
        return None
    found = re.findall(r"'(entered|moved|dropped|stuck|resolved)'", value.calls[0].expression or "")
    return found[0] if len(found) == 1 else None


# -- what is asked --------------------------------------------------------------------------------

Newest = Mapping[tuple[str, str], Latest]


def chosen(board: LiveBoard, view: View) -> tuple[str, ...]:
    """The jobs that a view shows."""
    return board.jobs if view.job is None else (view.job,)


def end_of(board: LiveBoard, view: View, newest: Newest) -> int | None:
    """Up to where a view shows windows; None: there is nothing."""
    if view.until is not None:
        return view.until
    jobs = chosen(board, view)
    starts = [at.window_start for (job, _), at in newest.items() if job in jobs]
    return max(starts) + 1 if starts else None


def since_of(card: Card, view: View, until: int) -> int:
    """From where a card's chart shows windows."""
    if card.kind == "ever":
        return 0
    shown = max(millis(view.range), AT_LEAST * card.every)
    return until - (min(shown, AT_MOST * card.every) if card.apart else shown)


def narrowed(names: Sequence[str], view: View) -> Where:
    """What of a view's choice holds for documents with these dimensions."""
    return tuple((name, value) for name, value in view.where if name in names)


def asks_of(card: Card, view: View, until: int, newest: Latest | None) -> tuple[Ask, Ask | None]:
    """For the chart; and for the tile, where the chart's spans are several windows each."""
    since = since_of(card, view, until)
    values: tuple[tuple[str, Over], ...] = tuple((v.name, v.over) for v in card.values)
    where = narrowed(card.dimensions, view)
    left = tuple(name for name in card.dimensions if name not in dict(where))
    split = left if any(not value.adds_up for value in card.values) else left[:1]
    every: int | None = None
    if not card.apart:
        window = _SESSION_SPAN if card.kind == "sessions" else card.every
        every = window * max(1, -(-(until - since) // (window * SPANS)))
    ask = Ask(card.job, card.metric, values, since, until, every, card.offset, where, split, SERIES)
    if card.kind == "sessions" or every in (None, card.every):
        return ask, None
    last = min(until, newest.window_start + 1) if newest else until
    return ask, Ask(
        card.job, card.metric, values, last - 3 * card.every, last, None, 0, where, (), 0
    )


def ask_of_funnel(funnel: Funnel, view: View, until: int) -> Ask:
    """Sums over the whole time, for each stage."""
    values: tuple[tuple[str, Over], ...] = tuple((name, "sum") for name in funnel.counts.values())
    return Ask(
        funnel.job,
        funnel.metric,
        values,
        until - millis(view.range),
        until,
        AT_MOST * 86_400_000,
        0,
        narrowed(funnel.dimensions, view),
        ("stage",),
        len(funnel.stages) + 1,
    )
