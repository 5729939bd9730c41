"""Pace: how fast a replay may go beside a live job, and how far it has come."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.budget import Budget
from velocity.io.lookup import MISSING, Answers, Keep, Lookup
from velocity.io.records import main_of, passing_on

_TELL_EVERY: Final = 0.5


@dataclass(frozen=True)
class Limits:
    """A replay's budgets, each a second and over all workers; None is as fast as it goes."""

    events: float | None = None
    rest_calls: float | None = None
    documents: float | None = None
    workers: int = 1
    """How many take from each budget at a time: each gets its share."""

    def __post_init__(self) -> None:
        for name in ("events", "rest_calls", "documents"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} a second: a number above 0 is wanted, not {value}")

    def share(self, budget: float | None) -> float | None:
        return None if budget is None else budget / self.workers


class Pace(beam.PTransform):
    """Lets elements through, at most ``rate`` a second in each worker; ``size`` counts an element.

    With a ``folder`` each worker tells there how many rows it has let through, and how late the
    latest was by ``event_time``; ``told`` adds them up. It is a folder of the one machine that all
    workers and the reader of it are on.
    """

    def __init__(
        self, rate: float | None, *, folder: str | None = None, event_time: str | None = None
    ) -> None:
        super().__init__()
        self._step = _Pace(rate, folder, event_time)

    def expand(self, pvalueish: Any) -> Any:
        given = main_of(pvalueish)
        main = given | "Pace" >> beam.ParDo(self._step).with_output_types(given.element_type)
        return passing_on(pvalueish, main)


class _Pace(beam.DoFn):
    def __init__(self, rate: float | None, folder: str | None, event_time: str | None) -> None:
        self._rate, self._folder, self._event_time = rate, folder, event_time

    def setup(self) -> None:
        self._bucket = Budget(self._rate) if self._rate else None
        self._rows, self._latest, self._told = 0, 0, float("-inf")
        name = f"{os.getpid()}-{threading.get_ident()}-{id(self)}.json"
        self._file = Path(self._folder, name) if self._folder else None

    def process(self, element: Any) -> Iterator[Any]:
        size = element.num_rows if isinstance(element, pa.RecordBatch) else 1
        if self._bucket:
            self._bucket.take(size)
        if self._file and self._event_time:
            latest = pc.max(element[self._event_time]).value or 0
            self._rows, self._latest = self._rows + size, max(self._latest, latest)
            if time.monotonic() - self._told >= _TELL_EVERY:
                self._tell()
        yield element

    def finish_bundle(self) -> None:
        if self._file:
            self._tell()

    def _tell(self) -> None:
        assert self._file
        self._told = time.monotonic()
        hidden = self._file.with_suffix(".tmp")
        hidden.write_text(json.dumps({"rows": self._rows, "latest": self._latest}))
        hidden.replace(self._file)


@dataclass(frozen=True, slots=True)
class Told:
    """How far all workers have come: rows, and the latest event time in epoch milliseconds."""

    rows: int
    latest: int | None


def told(folder: Path) -> Told:
    """What the workers have told there."""
    rows, latest = 0, None
    for file in folder.glob("*.json"):
        with suppress(FileNotFoundError):
            one = json.loads(file.read_text())
            rows += one["rows"]
            latest = max(latest or 0, one["latest"]) if one["rows"] else latest
    return Told(rows, latest)


class BudgetedLookup:
    """A lookup that makes at most ``rate`` REST calls a second, over time."""

    def __init__(self, lookup: Lookup, rate: float) -> None:
        self._lookup, self._rate = lookup, rate
        self._bucket: Budget | None = None

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        bucket = self._bucket = self._bucket or Budget(self._rate)
        wait = self._lookup.begin(keys, keep)

        def answers() -> Answers:
            found = wait()
            bucket.take(found.counts.get("rest_calls", 0))
            return found

        return answers


class CountedLookup:
    """Asks no one: knows no key, and counts the REST calls that it would take.

    >>> CountedLookup(2).begin(["a", "b", "c"], dict)().counts["rest_calls"]
    2
    """

    def __init__(self, max_keys: int) -> None:
        self._max_keys, self._seen = max_keys, set[str]()

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        new = [key for key in keys if key not in self._seen]
        self._seen.update(new)
        calls = -(-len(new) // self._max_keys)
        return lambda: Answers([MISSING] * len(keys), {"rest_calls": calls})
