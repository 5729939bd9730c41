"""The operator's view in a terminal: all jobs of a cluster, and what the operations dashboard shows."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from velocity.io.documents import DOCUMENT_DELAYS
from velocity.runners.flink_errors import FlinkUnreachable, UnknownJob
from velocity.runners.flink_rest import Flink
from velocity.runners.flink_view import (
    LINE_EVERY,
    LOOK_EVERY,
    UNREACHABLE_FOR,
    History,
    Look,
    Rates,
    look,
    record,
    short,
)

BREAKERS: Final = ("closed", "half open", "open")


class Seen(NamedTuple):
    """A job, and how fast it is."""

    look: Look
    rates: Rates


def delay_within(counters: Mapping[str, int], share: float = 0.95) -> float | None:
    """Seconds within which so many of the documents showed their events, as a bound of their
    histogram; infinite beyond the last. None without any document.

    >>> delay_within({"document_delays": 20, "document_delays_within_5s": 18,
    ...     "document_delays_within_10s": 19})
    10.0
    """
    all_ = counters.get(DOCUMENT_DELAYS.name, 0)
    if not all_:
        return None
    bounds = (b for n, b in DOCUMENT_DELAYS.within.items() if counters.get(n, 0) >= share * all_)
    return min(bounds, default=float("inf"))


def breakers(counters: Mapping[str, int]) -> dict[str, str]:
    """By enrichment, those that are not closed."""
    states = {
        name.removeprefix("breaker_"): state
        for name, state in counters.items()
        if name.startswith("breaker_") and state
    }
    # Flink adds up what each subtask has: one that is open is told of, however many are.
    return {name: BREAKERS[min(state, 2)] for name, state in states.items()}


def plain(seen: Seen) -> dict[str, Any]:
    """All of it for other programs."""
    counters = seen.look.counters
    within = delay_within(counters)
    return {
        **record(*seen),
        "document_delay_p95_s": None if within == float("inf") else within,
        "dead_letters": seen.look.dead_letters,
        "breakers": breakers(counters),
    }


def table(found: Sequence[Seen]) -> RenderableType:
    """A row for each job, and a line for each thing that is not well."""
    rows = Table(box=None, pad_edge=False)
    for title in ("name", "state", "up"):
        rows.add_column(title)
    for title in ("read/s", "written/s", "lag", "behind", "delay", "dead", "restarts"):
        rows.add_column(title, justify="right")
    notes = []
    for seen in found:
        job, counters = seen.look.job, seen.look.counters
        within = delay_within(counters)
        bad = job.state != "RUNNING" and not job.ended
        rows.add_row(
            job.name,
            Text(job.state, style="red" if bad or job.state == "FAILED" else ""),
            short(job.duration),
            _number(seen.rates.read),
            _number(seen.rates.written),
            _number(seen.look.lag),
            "–" if seen.look.delay is None else short(seen.look.delay),
            "–" if within is None else f"≤ {within:g} s" if within < float("inf") else "> 1 h",
            _number(sum(seen.look.dead_letters.values())),
            str(seen.look.restarts),
        )
        for name, state in breakers(counters).items():
            notes.append(f"{job.name}: the service of {name} fails: its breaker is {state}")
        if dead := seen.look.dead_letters:
            causes = ", ".join(f"{cause} {count:,}" for cause, count in dead.items())
            notes.append(f"{job.name}: dead letters: {causes}")
        if seen.look.checkpoints.failed:
            failed = seen.look.checkpoints.failed
            notes.append(f"{job.name}: {failed:,} of its checkpoints failed")
    return Group(rows, *(Text(note, style="yellow") for note in notes))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


class Watch:
    """Looks at all jobs again and again, and remembers enough of each to tell how fast it is."""

    def __init__(
        self, flink: Flink, *, ended_too: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._flink, self._ended_too, self._clock = flink, ended_too, clock
        self._histories: dict[str, History] = {}

    def look(self) -> list[Seen]:
        found = []
        for job in self._flink.jobs():
            if job.ended and not self._ended_too:
                continue
            try:
                seen = look(self._flink, job.id, clock=self._clock)
            except UnknownJob:  # it has been forgotten in between
                continue
            history = self._histories.setdefault(job.id, History())
            found.append(Seen(seen, history.add(seen)))
        self._histories = {seen.look.job.id: self._histories[seen.look.job.id] for seen in found}
        return found


def watch_all(
    flink: Flink,
    *,
    console: Console,
    as_json: bool = False,
    ended_too: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    out: Callable[[str], None] = print,
) -> int:
    """Shows all jobs until Ctrl-C; then the exit code is 130.

    In a terminal the table renews itself every 2 s; elsewhere it comes every 10 s, or one JSON object
    a line. Raises ``FlinkUnreachable`` if the cluster does not answer for a minute.
    """
    live = console.is_terminal and not as_json
    every = LOOK_EVERY if live else LINE_EVERY
    watch, answered = Watch(flink, ended_too=ended_too, clock=clock), clock()
    try:
        with Live(console=console, auto_refresh=False) as display:
            while True:
                try:
                    found = watch.look()
                except FlinkUnreachable as error:
                    if clock() - answered >= UNREACHABLE_FOR:
                        raise
                    if live:
                        display.update(Text(str(error), style="red"), refresh=True)
                    sleep(every)
                    continue
                answered = clock()
                if as_json:
                    out(json.dumps({"flink": flink.url, "jobs": [plain(seen) for seen in found]}))
                elif live:
                    shown = table(found) if found else Text(f"No job runs on {flink.url}.")
                    hint = Text("Ctrl-C ends this view; the jobs go on.", style="dim")
                    display.update(Group(shown, hint), refresh=True)
                else:
                    console.print(table(found) if found else f"No job runs on {flink.url}.")
                sleep(every)
    except KeyboardInterrupt:
        return 130
