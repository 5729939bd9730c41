"""The pictures of docs/watermarks.md, drawn from a run: watermarks, and the panes of one window.

    python -m docs.draw_watermarks

runs the job below as a stream, on Beam's DirectRunner, and draws what was recorded of it: each partition's
watermark as the Kafka source makes it, and each document as it would be written. The clock is the
test's own (Beam's TestStream), so the same pictures are drawn again.
"""

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from docs.svg_chart import Axis, Picture
from velocity.io.records import Document, messages, with_watermarks
from velocity.io.watermark import ForwardWatermark, watermarks
from velocity.pipelines.graph import Graph
from velocity.pipelines.jobfile import parse

JOB: Final = """\
job: pictures
source:
  kafka: {bootstrap_servers: "${KAFKA}", topics: [orders]}
  event_time: at
  disorder: 10s
fields: {at: timestamp_ms}
metrics:
  - {name: orders, window: {fixed: 1m}, emit: {early: 10s, lateness: 1m}, values: {orders: count()}}
sinks: {sqlite: {path: documents.db}}
dead_letters: {parquet: dead-letters}
"""
DISORDER: Final = timedelta(seconds=10)
PARTITIONS: Final = 2
T0: Final = 1_767_571_200
"""2026-01-05T00:00:00Z, when the run begins: by the clock, and in event time."""
WINDOW: Final = (60, 120)
"""The window whose panes are drawn; seconds since ``T0``, as all times here."""
LATENESS: Final = 60
END: Final = 226
STEP: Final = 2
"""From a poll to the next."""

HERE: Final = Path(__file__).parent


class Event(NamedTuple):
    """An event, and when it was read."""

    read: int
    partition: int
    at: float


class Pane(NamedTuple):
    """A document of the window, as it was written then."""

    written: int
    kind: str
    events: int
    version: int


class Watermarks(NamedTuple):
    """Where they stand; None as long as nothing was read."""

    clock: int
    partitions: tuple[float | None, ...]

    @property
    def job(self) -> float | None:
        known = [at for at in self.partitions if at is not None]
        return min(known) if len(known) == len(self.partitions) else None


@dataclass(frozen=True, slots=True)
class Recording:
    """What was seen of a run."""

    events: Sequence[Event]
    watermarks: Sequence[Watermarks]
    panes: Sequence[Pane]
    dead_letters: Sequence[int]
    """When each was written."""

    def late(self) -> list[Event]:
        """The events whose window's end their own partition's watermark had passed before."""

        def stood(event: Event) -> float:
            before = [
                w.partitions[event.partition] for w in self.watermarks if w.clock < event.read
            ]
            return next((at for at in reversed(before) if at is not None), 0.0)

        size = WINDOW[1] - WINDOW[0]
        return [event for event in self.events if stood(event) >= (event.at // size + 1) * size]

    def passed(self, time: float) -> int:
        """When the job's watermark came to a time."""
        return next(w.clock for w in self.watermarks if w.job is not None and w.job >= time)


def history() -> list[Event]:
    """Two partitions, of which one is not read for a while; then events that come after their window."""
    draw = random.Random(7)
    events = []
    for partition, every in ((0, 3.0), (1, 4.0)):
        at = 1.0
        while at < END - 12:
            read = STEP * round((at + draw.uniform(1, 8)) / STEP)
            if partition == 1 and 92 <= read < 150:
                read = 150
            events.append(Event(read, partition, round(at, 1)))
            at += every * draw.uniform(0.6, 1.4)
    events += [Event(166, 0, 112.0), Event(182, 0, 97.0), Event(208, 0, 84.0)]
    return sorted(events)


# -- the run --------------------------------------------------------------------------------------


class Partition:
    """Read as ``ReadFromKafka`` does: rows by the job's own decoder, each batch with its watermark."""

    def __init__(self, graph: Graph, number: int) -> None:
        self._graph, self._number = graph, number
        self._watermark = ForwardWatermark(MIN_TIMESTAMP)

    @property
    def watermark(self) -> Timestamp:
        return self._watermark.current_watermark()

    def read(self, events: Sequence[Event]) -> TimestampedValue:
        values = [b'{"at": %d}' % round((T0 + event.at) * 1000) for event in events]
        now = datetime.fromtimestamp(T0 + events[0].read, UTC)
        raw = messages(list(values), topic="orders", partition=self._number, timestamp=now)
        rows, _ = self._graph.decoder.decode(raw)
        rows = with_watermarks(rows, watermarks(rows["at"], self.watermark, DISORDER))
        first, last = (
            Timestamp(micros=pc.min_max(rows["at"])[k].value * 1000) for k in ("min", "max")
        )
        self._watermark.advance(last - DISORDER.total_seconds())
        return TimestampedValue(rows, first)


def record(events: Sequence[Event], end: int = END) -> Recording:
    """Runs the job over events that are read as they say, by ``STEP`` seconds of the clock."""
    graph = Graph(parse(JOB.encode(), "pictures.yaml").job, {})
    partitions = [Partition(graph, number) for number in range(PARTITIONS)]
    stream, at, seen = TestStream(), MIN_TIMESTAMP, []
    for clock in range(0, end + 1, STEP):
        # What fires as the clock goes on is told what time it is by then.
        stream = stream.add_elements([TimestampedValue(clock, Timestamp(T0))])
        if clock:
            stream = stream.advance_processing_time(STEP)
        now = [
            [e for e in events if (e.read, e.partition) == (clock, n)] for n in range(PARTITIONS)
        ]
        if batches := [p.read(of) for p, of in zip(partitions, now, strict=True) if of]:
            stream = stream.add_elements(batches)
        if (to := min(partition.watermark for partition in partitions)) > at:
            at = to
            stream = stream.advance_watermark_to(at)
        seen.append(Watermarks(clock, tuple(_seconds(p.watermark) for p in partitions)))
    with tempfile.TemporaryDirectory() as folder:
        panes, dead = _run(graph, stream.advance_watermark_to_infinity(), Path(folder))
    return Recording(events, seen, panes, dead)


def _seconds(at: Timestamp) -> float | None:
    return None if at == MIN_TIMESTAMP else at.micros / 1e6 - T0


def _run(graph: Graph, stream: TestStream, folder: Path) -> tuple[list[Pane], list[int]]:
    options = PipelineOptions(["--runner=BundleBasedDirectRunner"], streaming=True)
    clock = folder / "clock"
    with beam.Pipeline(options=options) as pipeline:
        rows = pipeline | stream | beam.ParDo(Told(clock)).with_output_types(pa.RecordBatch)
        documents, dead = graph.documents(graph.rows(rows))
        _ = documents | "Note" >> beam.ParDo(Noted(clock, folder / "panes"))
        _ = dead | "Note dead letters" >> beam.ParDo(Noted(clock, folder / "dead"))
    panes = [Pane(*line) for line in _lines(folder / "panes")]
    return panes, [clock for clock, *_ in _lines(folder / "dead")]


class Told(beam.DoFn):
    """Takes the times out of the stream, into a file: a runner works on copies of what it is given."""

    def __init__(self, clock: Path) -> None:
        self._clock = clock

    def process(self, element: Any) -> Iterator[pa.RecordBatch]:
        if isinstance(element, int):
            self._clock.write_text(str(element))
        else:
            yield element


class Noted(beam.DoFn):
    """Writes down what comes, and when."""

    def __init__(self, clock: Path, file: Path) -> None:
        self._clock, self._file = clock, file

    def process(self, element: Any) -> None:
        line: list[Any] = [int(self._clock.read_text())]
        if isinstance(element, Document):
            if element.window_start != (T0 + WINDOW[0]) * 1000:
                return
            line += [element.pane, element.events, element.version]
        with self._file.open("a") as file:
            file.write(f"{json.dumps(line)}\n")


def _lines(file: Path) -> Iterator[list[Any]]:
    if file.exists():
        yield from map(json.loads, file.read_text().splitlines())


# -- the pictures ---------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """
    >>> clock(95)
    '1:35'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


MINUTES: Final = range(0, END + 1, 30)


def draw_watermarks(seen: Recording) -> str:
    """Events as they were read, each partition's watermark behind them, and the job's."""
    start, end = WINDOW
    picture = Picture(
        "Watermarks of two partitions, and of the job",
        "Event time against the clock. Each partition's watermark follows the greatest event time read, "
        "ten seconds behind. The job's is the lesser of the two, so it waits while one is not read.",
        (900, 560),
        (0, END),
        (0, END),
    )
    picture.axes(Axis("the clock", MINUTES, clock), Axis("event time", MINUTES, clock))
    picture.band((0, start), (END, end), "window")
    picture.text((3, end), f"the window {clock(start)} to {clock(end)}", "soft", by=(0, 18))
    picture.line((0, 0), (END, END), "now")
    for event in seen.events:
        shape, style = (("circle", "f0"), ("square", "f1"))[event.partition]
        told = f"orders/{event.partition}: happened {clock(event.at)}, read {clock(event.read)}"
        picture.mark((event.read, event.at), shape, 3, style, told)
    job = [(w.clock, w.job) for w in seen.watermarks if w.job is not None]
    picture.steps(job, "line job")
    for number in range(PARTITIONS):
        known = [(w.clock, w.partitions[number]) for w in seen.watermarks]
        picture.steps([(c, at) for c, at in known if at is not None], f"line s{number}")
    closed = seen.passed(end)
    picture.line((closed, 0), (closed, end), "mark")
    for n, line in enumerate(
        (f"{clock(closed)}: the job's watermark", f"passes {clock(end)}: the window", "closes")
    ):
        picture.text((closed, 0), line, "strong", by=(10, 20 * n - 54))
    waits = next(w.job for w in seen.watermarks if w.clock == closed - STEP)
    assert waits is not None
    for n, line in enumerate(("orders/1 is not read,", "and the job waits for it")):
        picture.text((closed - 8, waits), line, "f1 strong", "end", by=(0, 22 + 20 * n))
    picture.text((112, 105), "orders/0", "f0 strong", "end", by=(-6, -14))
    picture.text((76, 26), "thick: the job's watermark,", "strong")
    picture.text((76, 26), "the lesser of the two", "strong", by=(0, 20))
    for event in seen.late():
        picture.mark((event.read, event.at), "circle", 8, "bad", f"late: {clock(event.at)}")
        picture.text((event.read, event.at), "late", "badtext", by=(11, 5))
    return picture.svg()


def draw_panes(seen: Recording) -> str:
    """What the window's document says, from pane to pane."""
    start, end = WINDOW
    most = max(pane.events for pane in seen.panes)
    top = most + 14
    picture = Picture(
        f"The panes of the window {clock(start)} to {clock(end)}",
        "Orders counted in the window's document, against the clock: provisional while the window is "
        "open, then on time as the watermark passes its end, then corrected by late events.",
        (900, 500),
        (50, END),
        (0, top),
    )
    picture.axes(
        Axis("the clock", [at for at in MINUTES if at >= start], clock),
        Axis("orders", range(0, top, 10), str),
    )
    picture.band((start, 0), (end, top), "window")
    picture.text((start, top), "the window, by the clock", "soft", by=(6, 18))
    picture.text((start, 30), "grey: orders read so far", "soft", by=(6, 0))
    counted = [event.read for event in seen.events if start <= event.at < end][:most]
    picture.steps([(50, 0), *((read, n) for n, read in enumerate(counted, 1))], "read")
    panes = {
        kind: [p for p in seen.panes if p.kind == kind] for kind in ("early", "on_time", "late")
    }
    [on_time] = panes["on_time"]
    early = [(p.written, p.events) for p in panes["early"]]
    picture.steps([*early, (on_time.written, on_time.events)], "early")
    late = [(p.written, p.events) for p in panes["late"]]
    picture.steps([(on_time.written, on_time.events), *late, (END, late[-1][1])], "final")
    for pane in seen.panes:
        told = f"{clock(pane.written)} {pane.kind}: {pane.events} orders, version {pane.version}"
        shape, size, style = {
            "early": ("circle", 5.0, "early-mark"),
            "on_time": ("circle", 7.0, "final-mark"),
            "late": ("diamond", 8.0, "final-mark"),
        }[pane.kind]
        at = (pane.written, pane.events)
        picture.mark(at, shape, size, style, told)
        over = pane.kind == "early"
        picture.text(
            at,
            str(pane.events),
            "strong",
            "end" if over else "middle",
            (-8, -6) if over else (0, -14),
        )
    picture.text(early[3], "early: provisional", "f0 strong", by=(12, 24))
    picture.line((on_time.written, 0), (on_time.written, top), "mark")
    picture.text((on_time.written, top), "on time:", "strong", by=(8, 18))
    picture.text((on_time.written, top), f"the watermark passes {clock(end)}", "strong", by=(8, 37))
    picture.text(late[-1], "late: corrections", "f0 strong", by=(10, 24))
    for dead in seen.dead_letters:
        picture.mark((dead, 2), "cross", 7, "bad", f"{clock(dead)}: a dead letter")
        picture.text((dead, 2), "later still: a dead letter", "badtext", "end", by=(-14, 5))
    return picture.svg()


def main() -> None:
    seen = record(history())
    for name, draw in (("watermarks.svg", draw_watermarks), ("watermarks-panes.svg", draw_panes)):
        (HERE / name).write_text(draw(seen), "utf-8")
        print(HERE / name)


if __name__ == "__main__":
    main()
