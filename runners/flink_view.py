"""The live view of a job on Flink: a table in a terminal, else a line every 10 s, or JSON lines."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from velocity.runners.flink_errors import FlinkUnreachable
from velocity.runners.flink_rest import Checkpoints, Flink, FlinkJob

NAMESPACE: Final = "velocity"
"""Of the job's own counters."""

LOOK_EVERY: Final = 2.0
LINE_EVERY: Final = 10.0

RATE_OVER: Final = 30.0
"""Seconds that a rate is measured over: Flink collects its tasks' figures every 10 s only."""

UNREACHABLE_FOR: Final = 60.0
"""Seconds without an answer after which the view gives up; the job may well go on."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a job is at one time."""

    clock: float
    """Seconds of the clock that rates are measured with."""
    at: datetime
    job: FlinkJob
    counters: Mapping[str, int]
    """And gauges, since the tasks were last started; some 10 s old, and so not the last ones of
    what has ended."""
    watermark: datetime | None
    checkpoints: Checkpoints
    restarts: int

    @property
    def dead_letters(self) -> dict[str, int]:
        """By cause; without causes that no message had."""
        prefix = "dead_letters_"
        return {
            name.removeprefix(prefix): count
            for name, count in sorted(self.counters.items())
            if name.startswith(prefix) and name != "dead_letters_written" and count
        }

    @property
    def lag(self) -> int | None:
        """Messages that are not read yet, over all partitions; None until a task has told."""
        lags = [count for name, count in self.counters.items() if name.startswith("lag_")]
        return sum(lags) if lags else None

    @property
    def delay(self) -> timedelta | None:
        """How far the watermark is behind the clock."""
        return None if self.watermark is None else self.at - self.watermark


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second; None until it is known."""

    read: float | None = None
    written: float | None = None


def look(
    flink: Flink,
    job_id: str,
    *,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Look:
    """Asks a cluster how a job is."""
    job = flink.find(job_id)
    vertices = flink.vertices(job_id)
    return Look(
        clock(),
        now(),
        job,
        flink.counters(job_id, vertices, NAMESPACE),
        None if job.ended else flink.watermark(job_id, vertices),
        flink.checkpoints(job_id),
        flink.restarts(job_id),
    )


def rates(looks: Iterable[Look]) -> Rates:
    """From the first look to the last; not over a restart, as counters begin at 0 again there."""
    first, *rest = looks
    if not rest:
        return Rates()
    last = rest[-1]
    seconds = last.clock - first.clock

    def rate(counter: str) -> float | None:
        before, after = first.counters.get(counter), last.counters.get(counter)
        if before is None or after is None or after < before or seconds <= 0:
            return None
        return (after - before) / seconds

    return Rates(rate("read_messages"), rate("documents_written"))


class History:
    """The looks of the last ``RATE_OVER`` seconds, and the rates over them."""

    def __init__(self) -> None:
        self._looks: deque[Look] = deque()

    def add(self, found: Look) -> Rates:
        if self._looks and self._looks[-1].restarts != found.restarts:
            self._looks.clear()
        self._looks.append(found)
        while len(self._looks) > 2 and found.clock - self._looks[1].clock >= RATE_OVER:
            self._looks.popleft()
        return rates(self._looks)


def table(found: Look, speed: Rates) -> Table:
    """All of it, for a terminal."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for what, text in _rows(found, speed):
        grid.add_row(what, text)
    return grid


def line(found: Look, speed: Rates) -> str:
    """The most of it in one line, for a log."""
    return "  ".join(f"{what} {text}" for what, text in _rows(found, speed))


def record(found: Look, speed: Rates) -> dict[str, Any]:
    """All of it for other programs: times of RFC 3339, durations in seconds, sizes in bytes."""
    checkpoints = found.checkpoints
    return {
        "at": found.at.isoformat(),
        "id": found.job.id,
        "name": found.job.name,
        "state": found.job.state,
        "uptime_s": found.job.duration.total_seconds(),
        "tasks": dict(found.job.tasks),
        "restarts": found.restarts,
        "read_per_s": speed.read,
        "written_per_s": speed.written,
        "lag": found.lag,
        "watermark": found.watermark and found.watermark.isoformat(),
        "watermark_delay_s": None if found.delay is None else found.delay.total_seconds(),
        "checkpoints": {
            "completed": checkpoints.completed,
            "failed": checkpoints.failed,
            "last_at": checkpoints.last_at and checkpoints.last_at.isoformat(),
            "last_bytes": checkpoints.last_size,
            "last_duration_s": checkpoints.last_duration.total_seconds(),
        },
        "restored_from": checkpoints.restored_from,
        "counters": dict(found.counters),
    }


def watch(
    flink: Flink,
    job_id: str,
    name: str,
    *,
    console: Console,
    as_json: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    out: Callable[[str], None] = print,
) -> int:
    """Shows a job until it ends, or until Ctrl-C, which ends the view and leaves the job alone.

    The exit code: 0 if the job has finished or was stopped with a savepoint, 1 if it failed or was
    cancelled, 130 after Ctrl-C. Raises ``FlinkUnreachable`` if the cluster does not answer for
    a minute.
    """
    live = console.is_terminal and not as_json
    every = LOOK_EVERY if live else LINE_EVERY
    history, answered = History(), clock()
    if not as_json:
        console.print("Ctrl-C ends this view; the job goes on.", highlight=False)
    try:
        with Live(console=console, auto_refresh=False, transient=True) as display:
            while True:
                try:
                    found = look(flink, job_id, clock=clock)
                except FlinkUnreachable:
                    if clock() - answered >= UNREACHABLE_FOR:
                        raise
                    sleep(every)
                    continue
                answered = found.clock
                speed = history.add(found)
                if as_json:
                    out(json.dumps(record(found, speed)))
                elif live:
                    display.update(_screen(found, speed, flink, job_id), refresh=True)
                else:
                    console.print(line(found, speed), highlight=False, soft_wrap=True)
                if found.job.ended:
                    break
                sleep(every)
    except KeyboardInterrupt:
        console.print(
            f"{name} goes on at {flink.url}. Look: velocity jobs. Stop: velocity stop {name}",
            highlight=False,
            soft_wrap=True,
        )
        return 130
    if live:
        console.print(table(found, Rates()))
    return _ended(flink, found, console)


def _ended(flink: Flink, found: Look, console: Console) -> int:
    job = found.job
    console.print(f"{job.name}: {job.state} after {short(job.duration)}", highlight=False)
    if job.state == "FINISHED":
        return 0
    for failure in flink.failures(job.id)[:1]:
        console.print(failure.cause, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"What it can go on from: velocity stop {job.id}", highlight=False, soft_wrap=True
    )
    return 1


def _screen(found: Look, speed: Rates, flink: Flink, job_id: str) -> RenderableType:
    parts: list[RenderableType] = [table(found, speed)]
    if found.job.state in ("RESTARTING", "FAILING") and (failures := flink.failures(job_id)):
        parts.append(Text(failures[0].cause, style="red"))
    return Group(*parts)


def _rows(found: Look, speed: Rates) -> list[tuple[str, str]]:
    counters, checkpoints = found.counters, found.checkpoints
    tasks = found.job.tasks
    rows = [
        ("state", f"{found.job.state}, {tasks.get('running', 0)} of {tasks['total']} tasks"),
        ("up", short(found.job.duration)),
    ]
    if counters or not found.job.ended:
        rows += [
            ("read", _count(counters.get("read_messages"), speed.read)),
            ("written", _count(counters.get("documents_written"), speed.written)),
        ]
    if found.lag is not None:
        rows.append(("lag", f"{found.lag:,}"))
    if found.watermark is not None and found.delay is not None:
        at = found.watermark.strftime("%Y-%m-%dT%H:%M:%SZ")
        rows.append(("watermark", f"{at}, {short(found.delay)} behind"))
    if dead := found.dead_letters:
        causes = ", ".join(f"{cause} {count:,}" for cause, count in dead.items())
        rows.append(("dead letters", f"{sum(dead.values()):,} ({causes})"))
    last = "none yet"
    if checkpoints.last_at is not None:
        last = f"{checkpoints.last_size / 1e6:.1f} MB in {checkpoints.last_duration.total_seconds():.1f} s"
    rows += [
        ("checkpoints", f"{checkpoints.completed}, failed {checkpoints.failed}, last {last}"),
        ("restarts", str(found.restarts)),
    ]
    return rows


def _count(count: int | None, rate: float | None) -> str:
    if count is None:  # Flink collects figures every 10 s only
        return "not known yet"
    return f"{count:,}" + ("" if rate is None else f" ({rate:,.0f}/s)")


def short(duration: timedelta) -> str:
    """
    >>> short(timedelta(days=1, hours=2, seconds=3)), short(timedelta(seconds=-3))
    ('1 day, 2:00:03', '-0:00:03')
    """
    whole = timedelta(seconds=int(abs(duration).total_seconds()))
    return ("-" if duration < timedelta(seconds=-1) else "") + str(whole)
