"""What the live board's page is given: totals as tiles, charts, funnels and counts, ready to be shown."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo

from velocity.io.dead_letter_counts import Counts
from velocity.io.totals import Alerts, Cell, Latest, Totals
from velocity.pipelines.live import Card, Funnel, LiveBoard, Shown, View, chosen, narrowed, words
from velocity.transforms.windows import millis

Json = dict[str, Any]

NONE: Final = "(none)"
"""Stands for a dimension without a value."""
OTHERS: Final = "all others"
TOTAL: Final = "all"

EVENTS: Final = "events"
"""What is shown of a metric without a number."""


def number(value: float | None) -> str:
    """As people read it: thousands apart, and no more digits than tell something.

    >>> number(19_956_500), number(52.34), number(0.12345), number(1234.5), number(None)
    ('19,956,500', '52.3', '0.123', '1,234', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, int) or value.is_integer():
        return f"{int(value):,}"
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def card_part(
    card: Card,
    view: View,
    zone: ZoneInfo,
    totals: Totals,
    newest: Totals | None,
    latest: Latest | None,
    times: tuple[int, int],
) -> Json:
    """A metric's tile and charts; ``times`` are those that the charts begin and end at.

    ``totals`` answers the first of ``asks_of``, ``newest`` the second, if there is one; ``latest``
    is how far the metric has come, whatever is chosen.
    """
    zone = ZoneInfo(card.zone) if card.zone else zone
    where = narrowed(card.dimensions, view)
    dated = view.range.days >= 1 or card.every >= 86_400_000
    shown = card.values or (Shown(EVENTS, "", "sum", True),)
    notes = [f"Not narrowed by {words(n).lower()}: it has none." for n, _ in view.where]
    notes = [note for note, (n, _) in zip(notes, view.where, strict=True) if (n, _) not in where]
    if any(not value.adds_up for value in shown) and totals.series:
        notes.append("Of a value that does not add up, the tile shows the highest of all keys.")
    return {
        "kind": "card",
        "job": card.job,
        "metric": card.metric,
        "title": card.title,
        "description": card.description,
        "notes": notes,
        "tile": _tile(card, shown, newest or totals, zone, dated, bool(totals.series)),
        "charts": [_chart(card, value, totals, zone) for value in shown],
        "times": [] if card.kind == "ever" else [local(time, zone) for time in times],
        "written_at": latest.written_at if latest else None,
        "stale_after": card.stale_after,
    }


def _tile(
    card: Card,
    shown: Sequence[Shown],
    totals: Totals,
    zone: ZoneInfo,
    dated: bool,
    several: bool,
) -> Json | None:
    """The newest window, and the newest that is complete; None: there is no window."""
    windows: dict[int, list[Cell]] = {}
    for cell in totals.over_all:
        windows.setdefault(cell.start, []).append(cell)
    if not windows:
        return None
    start = max(windows)
    complete = [at for at, cells in windows.items() if not any(c.provisional for c in cells)]
    made = _window(card, shown, windows[start], zone, dated, several)
    if start not in complete and complete:
        made["complete"] = _window(card, shown, windows[max(complete)], zone, dated, several)
    return made


def _window(
    card: Card,
    shown: Sequence[Shown],
    cells: Sequence[Cell],
    zone: ZoneInfo,
    dated: bool,
    several: bool,
) -> Json:
    values = []
    for value in shown:
        highest = several and not value.adds_up and value.over == "max"
        values.append(
            {
                "label": value.label,
                "text": number(_together(value, cells)),
                "unit": value.unit,
                "highest": highest,
            }
        )
    start, end = cells[0].start, max(cell.end for cell in cells)
    return {
        "values": values,
        "provisional": any(cell.provisional for cell in cells),
        "window": "since the beginning" if card.kind == "ever" else span(start, end, zone, dated),
    }


def _together(value: Shown, cells: Iterable[Cell]) -> float | None:
    """One number of early documents and the others."""
    found = [n for cell in cells if (n := _of(value, cell)) is not None]
    if not found:
        return None
    match value.over:
        case "sum":
            return sum(found)
        case "min":
            return min(found)
        case "max":
            return max(found)


def _of(value: Shown, cell: Cell) -> float | None:
    return cell.events if value.name == EVENTS else cell.values.get(value.name)


def span(start: int, end: int, zone: ZoneInfo, dated: bool) -> str:
    """A window as people read it.

    >>> span(1767571380000, 1767571440000, ZoneInfo("Asia/Jakarta"), False)
    '07:03–07:04'
    >>> span(1767546000000, 1767632400000, ZoneInfo("Asia/Jakarta"), True)
    '5 Jan'
    """
    first, last = (datetime.fromtimestamp(time / 1000, zone) for time in (start, end))
    midnights = all((t.hour, t.minute, t.second) == (0, 0, 0) for t in (first, last))
    if midnights:
        final = datetime.fromtimestamp((end - 1) / 1000, zone)
        days = [f"{day.day} {day:%b}" for day in (first, final)]
        return days[0] if days[0] == days[1] else "–".join(days)
    form = "%H:%M:%S" if first.second or last.second else "%H:%M"
    text = f"{first:{form}}–{last:{form}}"
    return f"{first.day} {first:%b}, {text}" if dated else text


def _chart(card: Card, value: Shown, totals: Totals, zone: ZoneInfo) -> Json:
    """A value over time. Times are as the zone's clocks show them, without the zone."""
    if card.kind == "ever":
        return _by_key(value, totals)
    times = sorted({cell.start for cell in totals.over_all})
    ends: dict[int, int] = {}
    for cell in totals.over_all:
        ends[cell.start] = max(cell.end, ends.get(cell.start, 0))
    place = {time: i for i, time in enumerate(times)}
    shown = [
        (key_text(series.key), _columns(value, series.cells, place)) for series in totals.series
    ]
    if value.adds_up and (totals.more or not shown):
        over_all = _columns(value, totals.over_all, place)
        if not shown:
            shown = [(TOTAL, over_all)]
        else:
            final = _less(over_all[0], [columns[0] for _, columns in shown])
            early = _less(over_all[1], [columns[1] for _, columns in shown])
            shown.append((OTHERS, (final, early)))
    elif not shown:
        shown = [(TOTAL, _columns(value, totals.over_all, place))]
    return {
        "name": value.name,
        "label": value.label,
        "unit": value.unit,
        "bars": value.adds_up and card.kind != "overlapping",
        "x": [local(time, zone) for time in times],
        "spans": [span(time, ends[time], zone, dated=True) for time in times],
        "width": _width(times, card),
        "series": [
            {"key": key, "final": final, "provisional": provisional}
            for key, (final, provisional) in shown
        ],
    }


def _by_key(value: Shown, totals: Totals) -> Json:
    """A value by key, where there is no time that it could be drawn over."""
    bars = [(key_text(series.key), series.cells) for series in totals.series]
    bars = bars or [(TOTAL, totals.over_all)]

    def column(provisional: bool) -> list[float | None]:
        return [
            next((_of(value, c) for c in cells if c.provisional == provisional), None)
            for _, cells in bars
        ]

    names = [key for key, _ in bars]
    return {
        "name": value.name,
        "label": value.label,
        "unit": value.unit,
        "bars": True,
        "categories": True,
        "x": names,
        "spans": names,
        "width": 0,
        "series": [{"key": TOTAL, "final": column(False), "provisional": column(True)}],
    }


def _width(times: Sequence[int], card: Card) -> int:
    """Milliseconds of a bar: the least from one to the next."""
    steps = [after - before for before, after in pairwise(times)]
    return min(steps, default=card.every)


def _columns(
    value: Shown, cells: Iterable[Cell], place: Mapping[int, int]
) -> tuple[list[float | None], list[float | None]]:
    final: list[float | None] = [None] * len(place)
    early: list[float | None] = [None] * len(place)
    for cell in cells:
        if cell.start in place:
            (early if cell.provisional else final)[place[cell.start]] = _of(value, cell)
    return final, early


def _less(
    total: Sequence[float | None], shown: Sequence[Sequence[float | None]]
) -> list[float | None]:
    """What is left of a total when those shown are taken away."""
    return [
        None if all_ is None else all_ - sum(one[i] or 0 for one in shown)
        for i, all_ in enumerate(total)
    ]


def local(time: int, zone: ZoneInfo) -> str:
    """A time as the zone's clocks show it.

    >>> local(1767571380000, ZoneInfo("Asia/Jakarta"))
    '2026-01-05T07:03:00'
    """
    return datetime.fromtimestamp(time / 1000, zone).replace(tzinfo=None).isoformat()


def key_text(key: Sequence[str | None]) -> str:
    """A key as people read it.

    >>> key_text(("Jakarta", None))
    'Jakarta · (none)'
    """
    return " · ".join(NONE if part is None else part for part in key)


def funnel_part(funnel: Funnel, totals: Totals) -> Json:
    """How many transactions entered each stage, in the job's order, and what became of them."""
    counted: dict[str, Counter[str]] = {stage: Counter() for stage in funnel.stages}
    for series in totals.series:
        for cell in series.cells:
            for what, name in funnel.counts.items():
                if (stage := series.key[0]) in counted:
                    counted[stage][what] += int(cell.values.get(name) or 0)
    most = max((counts["entered"] for counts in counted.values()), default=0)
    return {
        "kind": "funnel",
        "job": funnel.job,
        "title": f"Where {words(funnel.job).lower()} stand",
        "columns": [what for what in ("moved", "dropped", "stuck") if what in funnel.counts],
        "provisional": any(c.provisional for s in totals.series for c in s.cells),
        "stages": [
            {
                "stage": words(stage),
                "share": counts["entered"] / most if most else 0,
                **{what: number(counts[what]) for what in ("entered", *funnel.counts)},
                "lost": counts["dropped"] / counts["entered"] if counts["entered"] else 0,
            }
            for stage, counts in counted.items()
            if sum(counts.values())
        ],
    }


def alerts_part(alerts: Alerts, zone: ZoneInfo) -> Json:
    """Transactions that are stuck, the oldest first."""
    return {
        "kind": "alerts",
        "stuck": number(alerts.stuck),
        "any": alerts.stuck > 0,
        "by_status": {status: number(count) for status, count in sorted(alerts.by_status.items())},
        "oldest": [
            {
                "transaction": alert.transaction,
                "stage": words(alert.stage),
                "since": f"{datetime.fromtimestamp(alert.since / 1000, zone):%d %b, %H:%M}",
                "by": key_text(tuple(alert.by.values())) if alert.by else "",
            }
            for alert in alerts.oldest
        ],
    }


def letters_part(board: LiveBoard, view: View, counts: Counts, zone: ZoneInfo) -> Json:
    """Dead letters by cause, of the jobs and the time chosen, counted back from the newest.

    They are counted by when they failed: no event time is sure of what could not be read.
    """
    jobs = chosen(board, view)
    ours = {failed: count for failed, count in counts.items() if failed.job in jobs}
    newest = max((failed.minute for failed in ours), default=0)
    since = newest - millis(view.range)
    causes: Counter[str] = Counter()
    last: dict[str, int] = {}
    for failed, count in ours.items():
        if failed.minute > since:
            causes[failed.cause] += count
            last[failed.cause] = max(last.get(failed.cause, 0), failed.minute)
    most = max(causes.values(), default=1)
    return {
        "kind": "letters",
        "total": number(causes.total()),
        "causes": [
            {
                "cause": words(cause),
                "count": number(count),
                "share": count / most,
                "last": f"{datetime.fromtimestamp(last[cause] / 1000, zone):%d %b, %H:%M}",
            }
            for cause, count in causes.most_common()
        ],
    }
