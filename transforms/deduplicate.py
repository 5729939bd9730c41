"""Deduplication: of events with one id the first is kept, within a horizon of event time."""

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from typing import Any, Final
from zlib import crc32

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.coders import BytesCoder, FastPrimitivesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.typehints import KV
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from velocity.io.copies import attempts
from velocity.io.metrics import counter
from velocity.io.records import MESSAGE, RecordBatchCoder, main_of, passing_on

_SLICES: Final = 8
"""In how many steps a horizon's ids are forgotten."""
_BATCH: Final = 5_000
"""Rows of a batch that is put out, about."""
_UNUSED: Final = 600.0
_IDS: Final = pa.schema([("id", pa.string()), ("time", pa.int64())])
"""What the state holds of a row that was kept; the time is its event time."""
_CODER: Final = RecordBatchCoder()


class Deduplicate(beam.PTransform):
    """Drops rows that repeat an event, in batches of rows or ``WithDeadLetters`` of them.

    ``by`` names the column of ids, ``event_time`` that of event times (``TIMESTAMP``). Rows are the
    same event if their ids are equal and their event times no more than ``horizon`` apart; the first
    to come is kept, from whatever partition. A row without an id is kept, and so is what a replay
    of dead letters sent again, once for each attempt: the original went no further.

    An id is forgotten when the watermark passes its event time by the horizon (and an eighth at most).
    So each copy is dropped that is not later than that, and the state holds what one horizon
    brings. A row that is later is not remembered, and its copies are kept.

    Rows are spread over ``shards`` by a hash of their ids; a shard is a key of the state, read and
    written once for a batch, not for an event. The number bounds the parallelism of this step, and
    can't change for a job that goes on from a savepoint. Counts ``duplicates_dropped``.

    >>> Deduplicate("event_id", event_time="at", horizon=timedelta(0))
    Traceback (most recent call last):
    ValueError: horizon must be a millisecond or more, not 0:00:00
    """

    def __init__(self, by: str, *, event_time: str, horizon: timedelta, shards: int = 16) -> None:
        super().__init__()
        if horizon < timedelta(milliseconds=1):
            raise ValueError(f"horizon must be a millisecond or more, not {horizon}")
        if shards < 1:
            raise ValueError(f"shards must be 1 or more, not {shards}")
        self._shard = _Shard(by, shards)
        self._keep = _KeepFirst(by, event_time, horizon // timedelta(milliseconds=1))

    def expand(self, pvalueish: Any) -> Any:
        shard = beam.ParDo(self._shard).with_output_types(KV[int, pa.RecordBatch])
        keep = beam.ParDo(self._keep).with_output_types(pa.RecordBatch)
        kept = main_of(pvalueish) | "Shard" >> shard | "Keep the first" >> keep
        return passing_on(pvalueish, kept)


class _Shard(beam.DoFn):
    def __init__(self, by: str, shards: int) -> None:
        self._by, self._shards = by, shards

    def process(self, rows: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        hashes = (
            position if id_ is None else crc32(id_.encode())
            for position, id_ in enumerate(_ids(rows, self._by))
        )
        shards = np.fromiter(hashes, np.int64, rows.num_rows) % self._shards
        order = np.argsort(shards, kind="stable")
        ends = np.searchsorted(shards[order], np.arange(self._shards), side="right").tolist()
        rows, start = rows.take(pa.array(order)), 0
        for shard, end in enumerate(ends):
            if end > start:
                yield shard, rows.slice(start, end - start)
            start = end


@dataclass
class _Memory:
    """The ids of a shard with their event times: what its state says, ready to be asked."""

    times: dict[str, int] = field(default_factory=dict)
    others: dict[str, list[int]] = field(default_factory=dict)
    """Further times of an id that has come again more than a horizon apart."""

    @classmethod
    def of(cls, ids: pa.Table) -> "_Memory":
        memory = cls()
        for id_, time in zip(ids["id"].to_pylist(), ids["time"].to_pylist(), strict=True):
            memory.add(id_, time)
        return memory

    def has(self, id_: str, time: int, horizon: int) -> bool:
        first = self.times.get(id_)
        if first is None:
            return False
        return any(abs(time - t) <= horizon for t in (first, *self.others.get(id_, ())))

    def add(self, id_: str, time: int) -> None:
        if id_ in self.times:
            self.others.setdefault(id_, []).append(time)
        else:
            self.times[id_] = time


class _Memories:
    """Those of a process, by step and shard, each with the token of the state that it equals.

    What nobody asks for in ``_UNUSED`` seconds is forgotten: the shard has moved to another worker,
    or its job has ended. A shard that was only quiet is read from its state again.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], tuple[float, bytes, _Memory]] = {}
        """The longest unused first."""

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, step: str, shard: int, token: bytes) -> _Memory | None:
        """Taken out, so that no other thread has it, nor anyone after a failure in mid-batch."""
        with self._lock:
            _, of, memory = self._kept.pop((step, shard), (0.0, None, None))
        return memory if of == token else None

    def keep(self, step: str, shard: int, token: bytes, memory: _Memory) -> None:
        now = self._clock()
        with self._lock:
            self._kept.pop((step, shard), None)  # or it would stand where it stood
            self._kept[step, shard] = now, token, memory
            while self._kept[oldest := next(iter(self._kept))][0] < now - _UNUSED:
                del self._kept[oldest]

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


_MEMORIES: Final = _Memories()


class _KeepFirst(beam.DoFn):
    """Reads a shard's ids into memory once, and then only asks the state whether they still hold.

    The state has a token that is new with each change. A memory whose token is another's (the bundle
    was tried again, the job restored, the shard moved here from elsewhere) is read anew.
    """

    _SEEN = BagStateSpec("seen", BytesCoder())
    """Batches of ``_IDS`` as bytes: Beam weighs what it caches, object by object."""
    _LEDGER = ReadModifyWriteStateSpec("ledger", FastPrimitivesCoder())
    """The token, and when (epoch milliseconds) the timer is due."""
    _FORGET = TimerSpec("forget", TimeDomain.WATERMARK)

    def __init__(self, by: str, event_time: str, horizon: int) -> None:
        self._by, self._event_time, self._horizon = by, event_time, horizon
        self._slice = -(-horizon // _SLICES)
        self._step = secrets.token_hex(8)
        self._dropped = counter("duplicates_dropped")

    def start_bundle(self) -> None:
        self._out: list[pa.RecordBatch] = []
        self._at = MAX_TIMESTAMP

    def process(
        self,
        element: tuple[int, pa.RecordBatch],
        at: Any = beam.DoFn.TimestampParam,
        seen: Any = beam.DoFn.StateParam(_SEEN),  # noqa: B008
        ledger: Any = beam.DoFn.StateParam(_LEDGER),  # noqa: B008
        forget: Any = beam.DoFn.TimerParam(_FORGET),  # noqa: B008
    ) -> Iterator[Any]:
        shard, rows = element
        token, due = ledger.read() or (b"", None)
        memory = self._recall(shard, token, seen)
        times = rows[self._event_time].view(pa.int64()).to_pylist()
        kept, new_ids, new_times = [], [], []
        for position, (id_, time) in enumerate(zip(_ids(rows, self._by), times, strict=True)):
            if id_ is None:
                kept.append(position)
            elif not memory.has(id_, time, self._horizon):
                memory.add(id_, time)
                kept.append(position)
                new_ids.append(id_)
                new_times.append(time)
        if new_ids:
            new = [pa.array(new_ids, pa.string()), pa.array(new_times, pa.int64())]
            seen.add(_CODER.encode(pa.RecordBatch.from_arrays(new, schema=_IDS)))
            until = self._until(min(new_times))
            if due is None or until < due:
                due = until
                forget.set(Timestamp(micros=due * 1000))
            token = secrets.token_bytes(8)
            ledger.write((token, due))
        _MEMORIES.keep(self._step, shard, token, memory)
        if len(kept) < rows.num_rows:
            self._dropped.inc(rows.num_rows - len(kept))
            rows = rows.take(pa.array(kept, pa.int64()))
        if rows.num_rows:
            self._out.append(rows)
            self._at = min(self._at, at)
            if sum(batch.num_rows for batch in self._out) >= _BATCH:
                yield self._put_out()

    @on_timer(_FORGET)
    def forget(
        self,
        shard: Any = beam.DoFn.KeyParam,
        at: Any = beam.DoFn.TimestampParam,
        seen: Any = beam.DoFn.StateParam(_SEEN),  # noqa: B008
        ledger: Any = beam.DoFn.StateParam(_LEDGER),  # noqa: B008
        forget: Any = beam.DoFn.TimerParam(_FORGET),  # noqa: B008
    ) -> None:
        """Writes the state anew with what the watermark has not passed by the horizon."""
        ids = _table(seen)
        until = self._until(ids["time"].to_numpy())
        left = until > at.micros // 1000
        ids, token, due = ids.filter(pa.array(left)), secrets.token_bytes(8), None
        seen.clear()
        if ids.num_rows:
            seen.add(_CODER.encode(ids.combine_chunks().to_batches()[0]))
            due = int(until[left].min())
            forget.set(Timestamp(micros=due * 1000))
        ledger.write((token, due))
        _MEMORIES.keep(self._step, shard, token, _Memory.of(ids))

    def finish_bundle(self) -> Iterator[Any]:
        if self._out:
            put_out = self._put_out()
            yield GlobalWindows.windowed_value(put_out.value, put_out.timestamp)

    def _put_out(self) -> TimestampedValue:
        """What was kept of several shards as one batch; small ones would cost later steps more."""
        out, at = self._out, self._at
        self._out, self._at = [], MAX_TIMESTAMP
        return TimestampedValue(pa.concat_batches(out), at)

    def _recall(self, shard: int, token: bytes, seen: Any) -> _Memory:
        known = _MEMORIES.take(self._step, shard, token)
        return _Memory.of(_table(seen)) if known is None else known

    def _until(self, time: Any) -> Any:
        """The watermark that forgets an event time (milliseconds; a number or an array)."""
        return ((time + self._horizon) // self._slice + 1) * self._slice


def _table(seen: Any) -> pa.Table:
    """What the state holds."""
    return pa.Table.from_batches(map(_CODER.decode, seen.read()), _IDS)


def _ids(rows: pa.RecordBatch, by: str) -> list[str | None]:
    """The ids as text; a copy that was replayed bears its attempt."""
    ids: list[str | None] = rows[by].cast(pa.string()).to_pylist()
    if MESSAGE in rows.schema.names:
        which = attempts(rows[MESSAGE].field("headers"))
        if pc.max(which).as_py() != 1:
            for position, attempt in enumerate(which.to_pylist()):
                if attempt > 1 and ids[position] is not None:
                    ids[position] = f"{ids[position]}\0{attempt}"
    return ids
