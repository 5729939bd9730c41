"""Replays on a runner: part by part, with progress, and going on where one was killed."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import apache_beam as beam
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from velocity.io.archive_count import rows_in
from velocity.io.pace import told
from velocity.io.records import rfc3339
from velocity.io.replay_state import ReplayState
from velocity.pipelines.graph import Until
from velocity.pipelines.job import Job
from velocity.pipelines.replay import ARCHIVE, RAW, Replay
from velocity.runners.flink import LOCAL, FlinkOptions
from velocity.runners.flink_errors import JobFailed
from velocity.runners.flink_submit import quiet, submit
from velocity.runners.flink_view import watch
from velocity.runners.options import options_for
from velocity.runners.run import in_job_server, run
from velocity.runners.terminal import every
from velocity.transforms.ranges import Part

_LINE_EVERY: Final = 10.0
_WIDEST: Final = timedelta(days=1)
"""How far around a part is read for sessions that were cut, at most; or the first padding."""
_WIDER: Final = 6

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

    After each part ``state`` says that it is done; it is forgotten when all are. A part whose
    sessions were cut is made again with more read around it, up to a day.
    """
    done = state.done() if state else set()
    left = [part for part in parts if part.wanted not in done]
    if len(left) < len(parts):
        console.print(f"{len(parts) - len(left)} of {len(parts)} parts are done already")
    total: dict[str, int] = {}
    for n, part in enumerate(left, len(parts) - len(left) + 1):
        for name, count in _until_quiet(
            replay, part, where, outputs, f"part {n} of {len(parts)}", console
        ).items():
            total[name] = total.get(name, 0) + count
        if state:
            done.add((part.wanted.start, part.wanted.stop))
            state.add(done)
    if state:
        state.forget()
    return total


def _until_quiet(
    replay: Replay,
    part: Part,
    where: Where,
    outputs: Outputs,
    name: str,
    console: Console,
) -> Counters:
    pad = replay.pad
    while True:
        counters = _run(_PartOfReplay(replay, part, outputs), where, name, console)
        if not counters.get("documents_cut") or pad >= _WIDEST:
            return counters
        pad = min(pad * _WIDER, _WIDEST)
        part = replay.wider(part, pad)
        console.print(f"{counters['documents_cut']} sessions go on outside; reading {pad} around")


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
            return progress(f"{job}: {name}", Path(folder), total, shown_on)

        return run(watched, options_for(where.runner, own), "latest", console, showing=showing)


def _events(part: _PartOfReplay) -> int | None:
    """How many events the part is to read; None if that takes as long as to read them."""
    if part.replay.source in (ARCHIVE, RAW):
        return rows_in(part.replay.files(part.part), part.part.read)
    return None


def _on_cluster(part: _PartOfReplay, where: Where, name: str, console: Console) -> Counters:
    with quiet(), console.status(f"{part.job.job}: {name}: starting") as status:
        job = submit(part, where.flink, where.options, "latest", report=status.update)
    console.print(f"{name}: {job.name} runs on Flink at {job.flink.url}", highlight=False)
    if watch(job.flink, job.id, job.name, console=console):
        raise JobFailed(f"{job.name} did not finish: look at it in Flink at {job.flink.url}")
    vertices = job.flink.vertices(job.id)
    return job.flink.counters(job.id, vertices, "velocity")


@contextmanager
def progress(
    title: str,
    folder: Path,
    total: int | None,
    console: Console,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Shows events, their time, the rate and the time left, as the workers tell in ``folder``.

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
            so_far, now = told(folder), clock()
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
