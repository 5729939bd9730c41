"""Replays on a runner: part by part, with progress, and going on where one was killed."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import apache_beam as beam
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from velocity.io.archive_count import rows_in
from velocity.io.kafka_history import HistoryGone, check_history
from velocity.io.pace import Told, told
from velocity.io.records import rfc3339
from velocity.io.replay_state import ReplayState
from velocity.pipelines.graph import Until
from velocity.pipelines.job import Job
from velocity.pipelines.replay import ARCHIVE, KAFKA, RAW, Replay, ReplayError
from velocity.runners.flink import LOCAL, FlinkOptions
from velocity.runners.flink_errors import FlinkError, JobFailed
from velocity.runners.flink_rest import Flink
from velocity.runners.flink_submit import Submitted, quiet, submit_and_wait
from velocity.runners.flink_view import NAMESPACE
from velocity.runners.memory import give_back
from velocity.runners.options import options_for
from velocity.runners.run import counters_of, in_job_server, run
from velocity.runners.terminal import every
from velocity.transforms.ranges import Part

_LINE_EVERY: Final = 10.0
_WIDER: Final = 6
_TRIES: Final = 10
_RESTARTS: Final = "restarts"
"""How often Flink restarted the job: counters begin at 0 again then."""

Counters = Mapping[str, int]
Outputs = Callable[[], tuple[Mapping[str, beam.PTransform], beam.PTransform | None]]
"""Makes what a part is written to: the sinks by name, and a sink of dead letters if they are to be
kept. Each part has its own, for a transform belongs to one pipeline."""


@dataclass(frozen=True)
class Where:
    """On what a replay runs."""

    runner: str = "direct"
    workers: int = 1
    """Processes of the direct runner."""
    options: Sequence[str] = ()
    """The user's own, for Beam."""
    flink: FlinkOptions = field(default_factory=FlinkOptions)

    @property
    def takers(self) -> int:
        """How many workers take from a budget at a time."""
        return self.flink.parallelism if self.runner == "flink" else self.workers


@dataclass(frozen=True)
class _PartOfReplay:
    """A part as what a runner takes: it has a job, and can be applied to a pipeline."""

    replay: Replay
    part: Part
    outputs: Outputs
    told: str | None = None

    @property
    def job(self) -> Job:
        return self.replay.job

    def apply(self, pipeline: beam.Pipeline, until: Until = None) -> None:
        sinks, dead_letters = self.outputs()
        self.replay.apply(pipeline, self.part, sinks, dead_letters, told=self.told)


def replay_parts(
    replay: Replay,
    parts: Sequence[Part],
    where: Where,
    outputs: Outputs,
    *,
    state: ReplayState | None = None,
    console: Console,
) -> Counters:
    """Makes the parts that are not done yet, one after the other; their counters, added up.

    After each part ``state`` says that it is done, unless it has windows that are not over yet; it
    is forgotten when all are. A part of which something was cut is made again with more read around
    it, up to ``replay.widest``, as are the parts after it from the start. What is still cut is
    counted, of parts that were done before too.
    """
    done = state.done() if state else {}
    left = [part for part in parts if part.wanted not in done]
    if len(left) < len(parts):
        console.print(f"{len(parts) - len(left)} of {len(parts)} parts are done already")
    total = {"documents_cut": sum(done.values())}
    pad = replay.pad
    for n, part in enumerate(left, len(parts) - len(left) + 1):
        name = f"part {n} of {len(parts)}"
        counters, pad = _until_quiet(replay, part, pad, where, outputs, name, console)
        for name, count in counters.items():
            total[name] = total.get(name, 0) + count
        if state and not counters.get("documents_open"):
            done[part.wanted.start, part.wanted.stop] = counters.get("documents_cut", 0)
            state.add(done)
        give_back()
    if state:
        state.forget()
    return total


def _until_quiet(
    replay: Replay,
    part: Part,
    pad: timedelta,
    where: Where,
    outputs: Outputs,
    name: str,
    console: Console,
) -> tuple[Counters, timedelta]:
    """The counters of a part, and how far around it was read in the end."""
    if pad > replay.pad:
        part = _wider(replay, part, pad, console) or part
    for _ in range(_TRIES):
        counters = _run(_PartOfReplay(replay, part, outputs), where, name, console)
        if counters.get(_RESTARTS) and pad:
            console.print("Flink restarted it, and can't say if documents were cut; once more")
            continue
        if not counters.get("documents_cut") or pad >= replay.widest:
            return counters, pad
        farther = min(pad * _WIDER, replay.widest)
        console.print(
            f"{counters['documents_cut']} documents go on outside; reading {farther} around"
        )
        wider = _wider(replay, part, farther, console)
        if wider is None:
            return counters, pad
        part, pad = wider, farther
    raise JobFailed(f"{name} of the replay was restarted by Flink each time: see its log")


def _wider(replay: Replay, part: Part, pad: timedelta, console: Console) -> Part | None:
    """A part that reads so far around it; None where history no longer reaches there, for what is
    gone would seem to be a session's beginning."""
    wider = replay.wider(part, pad)
    try:
        check(replay, wider)
    except (ReplayError, HistoryGone) as error:
        console.print(f"not read so far: {error}", highlight=False, soft_wrap=True)
        return None
    return wider


def check(replay: Replay, part: Part) -> None:
    """Raises ``ReplayError`` or ``HistoryGone`` if what the part reads is known to be gone."""
    replay.check(part)
    if replay.source == KAFKA:
        check_history(*replay.kafka_since(part))


def _run(part: _PartOfReplay, where: Where, name: str, console: Console) -> Counters:
    if where.runner == "flink" and where.flink.master != LOCAL:
        return _on_cluster(part, where, name, console)
    if where.runner == "flink":
        return in_job_server(part, where.flink, list(where.options), "latest", console)
    own = list(where.options)
    if where.runner == "direct" and where.workers > 1:
        own = [
            "--direct_running_mode=multi_processing",
            f"--direct_num_workers={where.workers}",
            *own,
        ]
    with TemporaryDirectory(prefix="velocity-replay-") as folder:
        watched = replace(part, told=folder)
        total = _events(part)

        def showing(job: str, shown_on: Console) -> AbstractContextManager[None]:
            return progress(f"{job}: {name}", lambda: told(Path(folder)), total, shown_on)

        return run(watched, options_for(where.runner, own), "latest", console, showing=showing)


def _events(part: _PartOfReplay) -> int | None:
    """How many events the part is to read; None if that takes as long as to read them."""
    if part.replay.source in (ARCHIVE, RAW):
        return rows_in(part.replay.files(part.part), part.part.read)
    return None


def _on_cluster(part: _PartOfReplay, where: Where, name: str, console: Console) -> Counters:
    total, restarts = _events(part), 0

    @contextmanager
    def showing(job: Submitted) -> Iterator[None]:
        nonlocal restarts
        console.print(f"{name}: {job.name} runs on Flink at {job.flink.url}", highlight=False)
        with progress(f"{part.job.job}: {name}", partial(_read, job.flink, job.id), total, console):
            yield
        restarts = len(job.flink.failures(job.id))

    with quiet():
        result = submit_and_wait(part, where.flink, where.options, showing)
    return {**counters_of(result), _RESTARTS: restarts}


def _read(flink: Flink, job: str) -> Told:
    """How far a job on Flink is; as it collects counters every ten seconds, it says so later."""
    try:
        counters = flink.counters(job, flink.vertices(job), NAMESPACE)
    except FlinkError:  # it may be busy, or away for a while
        counters = {}
    return Told(counters.get("archive_rows", counters.get("decoded_rows", 0)), None)


@contextmanager
def progress(
    title: str,
    look: Callable[[], Told],
    total: int | None,
    console: Console,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Shows events, their time, the rate and the time left, as ``look`` tells.

    In a terminal it is a bar; elsewhere a line every ten seconds.
    """
    began = clock()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=total, told="starting")

        next_line = began + _LINE_EVERY

        def show() -> None:
            nonlocal next_line
            so_far, now = look(), clock()
            line = told_line(so_far.rows, so_far.latest, total, now - began)
            bar.update(task, completed=so_far.rows, told=line)
            if not console.is_terminal and now >= next_line:
                next_line = now + _LINE_EVERY
                console.print(f"{title}: {line}", highlight=False, soft_wrap=True)

        with every(0.5, show):
            yield


def told_line(rows: int, latest: int | None, total: int | None, seconds: float) -> str:
    """How far a replay is, for people.

    >>> told_line(500_000, 0, 2_000_000, 10)
    '500,000 of 2,000,000 events, up to 1970-01-01T00:00:00.000Z, 50,000/s, 30 s left'
    """
    of = f" of {total:,}" if total is not None else ""
    rate = rows / seconds if seconds else 0.0
    up_to = f", up to {rfc3339(latest)}" if latest is not None else ""
    left = f", {(total - rows) / rate:,.0f} s left" if total and rate and rows <= total else ""
    return f"{rows:,}{of} events{up_to}, {rate:,.0f}/s{left}"
