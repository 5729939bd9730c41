"""A replay carried out: written, counted or compared."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from rich.console import Console

from velocity.io.dead_letters import WriteDeadLettersToParquet
from velocity.io.elastic_alias import reaching_into, replayed, swap
from velocity.io.elastic_read import read_by_id
from velocity.io.elastic_setup import apply
from velocity.io.records import Document, now
from velocity.io.replay_state import ReplayState
from velocity.io.sqlite import WriteToSqlite, read_documents
from velocity.pipelines.compare import Change, changes
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Sinks, SqliteSink
from velocity.pipelines.replay import SOURCES, Replay, ReplayError
from velocity.pipelines.templates import into, setup_of
from velocity.runners.replay import Counters, Where, check, replay_parts
from velocity.runners.run import summary
from velocity.runners.stack_paths import state_folder
from velocity.transforms.ranges import Part
from velocity.transforms.windows import Session, Window

LEFT_OUT: Final = 8
"""The exit code of a replay that is done, and has left documents out which go on outside of what
it read."""

Mode = Literal["write", "dry", "compare"]
_Carried = tuple[Counters, dict[str, Any]]
"""The counters, and what is told to programs."""
_SHOWN: Final = 200
"""Changes that a comparison prints, each on its line."""


@dataclass(frozen=True)
class Plan:
    """What is wanted of a replay."""

    replay: Replay
    where: Where
    length: timedelta | None
    """Of a part; None makes it one."""
    state: str | None = None
    sqlite: Path | None = None
    dead_letters: Path | None = None
    into: str | None = None
    swap: bool = False


def carry_out(
    plan: Plan,
    mode: Mode = "write",
    *,
    console: Console | None = None,
    out: Callable[[str], None] = print,
    as_json: bool = False,
    clock: Callable[[], datetime] = now,
) -> int:
    """Carries a replay out; the exit code, 0 or ``LEFT_OUT``. What is for the user's programs goes to
    ``out``: lines, or one JSON object."""
    console = console or Console(stderr=True)
    FileSystems.set_options(PipelineOptions(list(plan.where.options)))
    replay = plan.replay
    until = clock() - replay.job.source.disorder
    if plan.into:  # what the live job may still correct, it corrects in the old indices
        until -= max(spec.emit.lateness for spec in replay.windowed.metrics)
    parts = replay.parts(plan.length, until)
    if replay.left_out:
        names = ", ".join(replay.left_out)
        if plan.into:
            raise ReplayError(
                f"the windows of {names} are global, which no range of history fills, and the new "
                "indices would lack their documents: run the job anew with another generation instead"
            )
        console.print(f"left out, as their windows are global: {names}", highlight=False)
    check(replay, parts[0])
    carried_out = {"dry": _dry, "compare": _compare, "write": _write}[mode]
    counters, report = carried_out(plan, parts, console, (lambda line: None) if as_json else out)
    for line in _left_out(counters):
        console.print(line, highlight=False, soft_wrap=True)
    cut = counters.get("documents_cut", 0)
    if as_json:
        out(json.dumps({"job": replay.job.job, "mode": mode, "left_out": cut, **report}))
    return LEFT_OUT if cut else 0


def _write(
    plan: Plan, parts: Sequence[Part], console: Console, out: Callable[[str], None]
) -> _Carried:
    graph = _target(plan)
    if plan.into:
        with graph.elasticsearch.open() as client:
            for change in apply(client, setup_of(graph, plan.into)):
                console.print(change, highlight=False)
    state = _state(plan, graph)
    console.print(f"what is done is remembered in {state.path}", highlight=False, soft_wrap=True)

    def outputs() -> tuple[Mapping[str, beam.PTransform], beam.PTransform | None]:
        if plan.dead_letters is None:
            return _target(plan).sinks, None
        kept = WriteDeadLettersToParquet(str(plan.dead_letters), job=graph.job.job)
        return _target(plan).sinks, kept

    counters = replay_parts(plan.replay, parts, plan.where, outputs, state=state, console=console)
    console.print(summary(counters))
    report: dict[str, Any] = {"counters": dict(counters), "into": plan.into}
    if not plan.into:
        return counters, report
    live = Graph(plan.replay.job, plan.replay.environment)
    wanted = setup_of(live)
    with live.elasticsearch.open() as client:
        replayed(client, wanted, plan.into, reaching_into(*plan.replay.written(parts)))
        if plan.swap and not counters.get("documents_cut"):
            moved = swap(client, wanted, plan.into)
            for line in moved.lines():
                out(line)
            return counters, {**report, "alias": moved._asdict()}
    if plan.swap:
        console.print("not swapped, as documents are left out", highlight=False)
    out(f"ready: velocity alias swap JOB {plan.into}    and back: velocity alias rollback")
    return counters, report


def _target(plan: Plan) -> Graph:
    """The graph whose sinks are written."""
    job = plan.replay.job
    if plan.sqlite:
        sinks = Sinks(sqlite=SqliteSink(path=str(plan.sqlite)))
        job = job.model_copy(update={"sinks": sinks})
    if plan.into:
        elastic = into(job, plan.into)
        only = elastic.sinks.model_copy(update={"sqlite": None, "influx": None, "kafka": None})
        job = elastic.model_copy(update={"sinks": only})
    return Graph(job, plan.replay.environment)


def _left_out(counters: Counters) -> list[str]:
    """What a replay did not write, for people."""
    said = []
    if cut := counters.get("documents_cut"):
        said.append(
            f"{cut:,} documents go on outside of what was read, and are not written (exit code "
            f"{LEFT_OUT}): give an earlier --from or a later --to"
        )
    if still := counters.get("documents_open"):
        said.append(f"{still:,} windows are not over yet, and are not written")
    return said


def _state(plan: Plan, graph: Graph) -> ReplayState:
    replay = plan.replay
    source = replay.source if replay.source in SOURCES else str(Path(replay.source))
    about: Mapping[str, Any] = {
        "job": replay.job.job,
        "definition": hashlib.sha256(graph.job.model_dump_json().encode()).hexdigest(),
        "targets": dict(graph.targets),  # what is done there is not done elsewhere
        "source": source,
        "from": replay.start.isoformat(),
        "to": replay.stop.isoformat(),
        "late": str(replay.late),
        "part": str(plan.length),
    }
    if plan.state:
        return ReplayState(plan.state, about)
    name = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
    archive = replay.graph.archive_path
    folder = f"{archive}/replays" if archive else str(state_folder() / "replays")
    return ReplayState(f"{folder}/{replay.job.job}-{name}.json", about)


def _made(
    plan: Plan, parts: Sequence[Part], console: Console, folder: str
) -> tuple[Counters, dict[str, dict[str, Any]]]:
    """The counters and documents of a replay that writes none elsewhere."""
    store = f"{folder}/documents.db"
    counters = replay_parts(
        plan.replay,
        parts,
        plan.where,
        lambda: ({"sqlite": WriteToSqlite(store)}, None),
        console=console,
    )
    return counters, read_documents(store) if Path(store).exists() else {}


def _dry(
    plan: Plan, parts: Sequence[Part], console: Console, out: Callable[[str], None]
) -> _Carried:
    with TemporaryDirectory(prefix="velocity-replay-") as folder:
        counters, documents = _made(plan, parts, console, folder)
    windows = {(d["metric"], d["window_start"], d["window_end"]) for d in documents.values()}
    counts = {
        "parts": len(parts),
        "files": counters.get("archive_files", 0),
        "events": counters.get("archive_rows", counters.get("decoded_rows", 0)),
        "windows": len(windows),
        "documents": len(documents),
        "REST calls": counters.get("rest_calls", 0),
    }
    for name, count in counts.items():
        out(f"{name}: {count:,}")
    if plan.replay.graph.job.enrich:
        console.print(
            "As no service was asked, documents by enriched columns are counted as one, and calls "
            "for keys that come from another service not at all; calls are at least so many.",
            soft_wrap=True,
        )
    report = {name.replace(" ", "_").lower(): count for name, count in counts.items()}
    return counters, {"counts": report}


def _compare(
    plan: Plan, parts: Sequence[Part], console: Console, out: Callable[[str], None]
) -> _Carried:
    graph = _target(plan)
    with TemporaryDirectory(prefix="velocity-replay-") as folder:
        counters, made = _made(plan, parts, console, folder)
    found: Counter[str] = Counter()
    told: list[Change] = []
    for change in changes(made, _stored(graph, made)):
        found[change.verdict] += 1
        if change.verdict not in ("same", "stale") and len(told) < _SHOWN:
            told.append(change)
            out(str(change))
    out(
        f"{len(made):,} documents: {found['new']:,} new, {found['changed']:,} changed, "
        f"{found['same']:,} the same, {found['stale']:,} older than what is stored, "
        f"{found['conflict']:,} different under the same version"
    )
    return counters, {"verdicts": dict(found), "changes": [asdict(change) for change in told]}


def _stored(graph: Graph, made: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the store has under the ids; Elasticsearch, if the job has both."""
    if graph.job.sinks.elasticsearch:
        index = graph.index
        windows = {metric.name: metric.window for metric in graph.metrics.reduction.metrics}
        wanted = (
            (index.name(_document(id_, body, windows.get(body["metric"]))), id_)
            for id_, body in made.items()
        )
        with graph.elasticsearch.open() as client:
            return read_by_id(client, wanted)
    path = graph.sqlite_path
    return read_documents(path) if path and Path(path).exists() else {}


def _document(id_: str, body: Mapping[str, Any], window: Window | None) -> Document:
    start, end = (
        int(datetime.fromisoformat(body[name]).timestamp() * 1000)
        for name in ("window_start", "window_end")
    )
    return Document(
        body["job"],
        body["metric"],
        start,
        end,
        body["dimensions"],
        body["values"],
        body["events"],
        body["pane"],
        id_,
        slot=window.slot(start) if isinstance(window, Session) else None,
    )
