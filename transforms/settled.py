"""From when on the facts of transactions are known to one who has read history from some time on."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from operator import itemgetter
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints import KV

from velocity.io.records import main_of
from velocity.transforms.stages import Stages
from velocity.transforms.windows import Session, millis

Run = tuple[int, int]
"""The times of the first and the last of a transaction's events that follow one another."""


class SettledFrom(beam.PTransform):
    """Batches of rows, read from ``start`` on, to one epoch millisecond: facts from then on are known.

    A transaction that began before what is read looks as if it began later: facts of it would be
    wrong, and so might be those of the next with its key. But where nothing came for longer than any
    ``ttl`` nothing is remembered, so what follows depends on nothing before. All facts are known from
    where this holds for each key: a key that had an event earlier than that after ``start`` is waited
    for until it falls silent.
    """

    def __init__(
        self, stages: Stages, *, key: str, event: str, event_time: str, start: int
    ) -> None:
        super().__init__()
        quiet = quiet_of(stages)
        self._runs = _Runs(list(stages.of_event), key, event, event_time, quiet)
        self._ends = _Ends(start, quiet)
        self._floor = start + millis(quiet)

    def expand(self, pvalueish: Any) -> beam.PCollection:
        floor = self._floor
        return (
            main_of(pvalueish)
            | "Runs" >> beam.ParDo(self._runs).with_output_types(KV[str, Any])
            | "Group" >> beam.GroupByKey()
            | "Ends" >> beam.ParDo(self._ends).with_output_types(int)
            | "Latest" >> beam.CombineGlobally(lambda times: max(times, default=floor))
        )


def quiet_of(stages: Stages) -> timedelta:
    """If nothing came of a transaction for so long before an event, the event is its first.

    >>> from velocity.transforms.stages import Stage
    >>> quiet_of(Stages([Stage("order", ["created"], ttl=timedelta(hours=1))]))
    datetime.timedelta(seconds=3600, microseconds=1000)
    """
    return timedelta(milliseconds=max(stages.ttls) + 1)


def longest_of(stages: Stages) -> timedelta:
    """No transaction is remembered for longer: it enters each stage once, each within the ttl of those
    before."""
    return timedelta(milliseconds=sum(stages.ttls))


class _Runs(beam.DoFn):
    def __init__(
        self, events: list[str], key: str, event: str, event_time: str, quiet: timedelta
    ) -> None:
        self._events, self._key, self._event = events, key, event
        self._event_time, self._quiet = event_time, Session(quiet)

    def process(self, rows: pa.RecordBatch) -> Iterator[tuple[str, Run]]:
        rows = rows.filter(pc.is_in(rows[self._event], pa.array(self._events, pa.string())))
        rows = rows.filter(pc.is_valid(rows[self._key]))
        times = rows[self._event_time].view(pa.int64())
        numbers = rows[self._key].dictionary_encode().indices.to_numpy()
        runs = pa.array(self._quiet.runs(numbers, times.to_numpy()))
        table = pa.table([rows[self._key], runs, times], ["key", "run", "t"])
        found = table.group_by(["key", "run"], use_threads=False).aggregate(
            [("t", "min"), ("t", "max")]
        )
        columns = (found[name].to_pylist() for name in ("key", "t_min", "t_max"))
        for key, first, last in zip(*columns, strict=True):
            yield key, (first, last)


class _Ends(beam.DoFn):
    """Of a key that is not known from the start on: when it is."""

    def __init__(self, start: int, quiet: timedelta) -> None:
        self._start, self._quiet = start, millis(quiet)

    def process(self, element: tuple[str, Iterable[Run]]) -> Iterator[int]:
        _, runs = element
        known = self._start + self._quiet
        for first, last in sorted(runs, key=itemgetter(0)):
            if first >= known:
                break
            known = max(known, last + self._quiet)
        yield known
