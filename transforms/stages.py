"""The stages of a transaction, and what its events say of its way through them, in event time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

What = Literal["entered", "moved", "stuck", "resolved", "dropped"]

_MILLISECOND: Final = timedelta(milliseconds=1)


class StageError(ValueError):
    """A graph of stages that can't be used: which stage, which of its keys, and the remedy."""

    def __init__(self, error: str, stage: str = "", key: str = "") -> None:
        super().__init__(error, stage, key)
        self.error, self.stage, self.key = error, stage, key

    def __str__(self) -> str:
        return f"stage {self.stage}: {self.error}" if self.stage else self.error


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage that a transaction enters with the first of its events.

    It is left for any stage that ``next`` leads to, at once or over others in between, whose
    events may have been lost. Without ``next`` it is the end of a way.
    """

    name: str
    events: Sequence[str]
    next: Sequence[str] = ()
    sla: timedelta | None = None
    """How long a transaction may stay before it counts as stuck."""
    ttl: timedelta = timedelta(hours=6)
    """How long before it counts as dropped, and no further."""


class Stages:
    """A checked graph of stages, numbered in the order given.

    >>> graph = Stages([Stage("order", ["created"], ["delivery"]), Stage("delivery", ["sent"])])
    >>> graph.of_event["sent"], graph.after[0]
    (1, frozenset({1}))
    >>> Stages([Stage("order", ["created"], ["delivrey"]), Stage("delivery", ["sent"])])
    Traceback (most recent call last):
    velocity.transforms.stages.StageError: stage order: next names delivrey, which is no stage
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.names = [stage.name for stage in stages]
        self.of_event: Mapping[str, int] = {
            event: n for n, stage in enumerate(stages) for event in stage.events
        }
        """The number of the stage that each event enters."""
        for n, stage in enumerate(stages):
            _check(stage, n, self)
        self.after: Sequence[frozenset[int]] = [self._after(n) for n in range(len(stages))]
        """The numbers of all stages that each leads to."""
        for n, stage in enumerate(stages):
            if n in self.after[n]:
                raise StageError("leads back to itself; each is entered once", stage.name, "next")

    def _after(self, n: int) -> frozenset[int]:
        found: set[int] = set()
        left = list(self.stages[n].next)
        while left:
            number = self.names.index(left.pop())
            if number not in found:
                found.add(number)
                left += self.stages[number].next
        return frozenset(found)

    @cached_property
    def slas(self) -> Sequence[int | None]:
        """Milliseconds."""
        return [None if s.sla is None else s.sla // _MILLISECOND for s in self.stages]

    @cached_property
    def ttls(self) -> Sequence[int]:
        """Milliseconds."""
        return [stage.ttl // _MILLISECOND for stage in self.stages]


def _check(stage: Stage, n: int, graph: Stages) -> None:
    if graph.names.index(stage.name) != n:
        raise StageError("given twice; rename one of them", stage.name)
    for event in stage.events:
        if graph.of_event[event] != n:
            other = graph.names[graph.of_event[event]]
            raise StageError(f"{event} enters stage {other} too", stage.name, "events")
    for name in stage.next:
        if name not in graph.names:
            raise StageError(f"next names {name}, which is no stage", stage.name, "next")
    if stage.ttl < _MILLISECOND:
        raise StageError("a time to live of more than nothing is wanted", stage.name, "ttl")
    if stage.sla is not None:
        if not stage.next:
            raise StageError("nothing follows, so nothing can be overdue", stage.name, "sla")
        if not _MILLISECOND <= stage.sla <= stage.ttl:
            raise StageError("more than nothing and up to the ttl is wanted", stage.name, "sla")


class Fact(NamedTuple):
    """What became known of a transaction in a stage."""

    what: What
    stage: int
    next: int | None
    """The stage it has moved on to."""
    time: int
    """When, in epoch milliseconds."""
    since: int
    """When it entered the stage."""
    by: tuple[Any, ...]
    """What its first event says of it."""
    overdue: bool = False
    """Of one that moved on or was dropped: whether it was stuck before."""
    watermark: int | None = None
    """Where it stood when the event came by which this is told; None if that came in time."""


class Arrival(NamedTuple):
    """An event that enters a stage."""

    time: int
    stage: int
    by: tuple[Any, ...] = ()
    watermark: int | None = None
    """Of an event that was not waited for: where its partition's stood, in epoch milliseconds."""


class Transaction:
    """One transaction, followed in event time: what arrives waits until its time has come.

    Its facts depend on its events alone, not on the order in which they arrived, as long as
    ``advance`` is not called for a time before all events up to that time have arrived. An event
    that comes later still counts, beside what has been said; facts that it brings bear its
    ``watermark``.

    >>> graph = Stages([
    ...     Stage("order", ["created"], ["delivery"], sla=timedelta(seconds=2)),
    ...     Stage("delivery", ["sent"]),
    ... ])
    >>> transaction = Transaction(graph)
    >>> transaction.arrive([Arrival(3000, 1), Arrival(0, 0)])
    0
    >>> for fact in transaction.advance(3000):
    ...     print(fact.what, fact.stage, fact.next, fact.time)
    entered 0 None 0
    stuck 0 None 2000
    moved 0 1 3000
    resolved 0 1 3000
    entered 1 None 3000
    """

    __slots__ = ("_by", "_graph", "_late", "_open", "_reached", "_until", "_waiting")

    def __init__(self, graph: Stages, kept: tuple[Any, ...] | None = None) -> None:
        """``kept`` is what ``keep`` gave of it before."""
        self._graph = graph
        self._by: tuple[Any, ...] | None
        self._late: dict[int, int]
        """By stages that were entered late: the watermark of the event."""
        self._by, self._reached, self._open, waiting, self._until, self._late = kept or _nothing()
        self._waiting = [Arrival(*arrival) for arrival in waiting]

    def keep(self) -> tuple[Any, ...] | None:
        """All of it as plain values; None if there is nothing left to know."""
        if self._by is None and not self._waiting:
            return None
        waiting = tuple(tuple(arrival) for arrival in self._waiting)
        return self._by, self._reached, self._open, waiting, self._until, self._late

    def arrive(self, arrivals: Iterable[Arrival]) -> int:
        """Takes events in; returns how many are earlier than what has been said already."""
        late = 0
        for arrival in arrivals:
            late += self._until is not None and arrival.time <= self._until
            if not any(other[:3] == arrival[:3] for other in self._waiting):  # else nothing new
                self._waiting.append(arrival)
        self._waiting.sort(key=_order)
        return late

    @property
    def due(self) -> int | None:
        """The next time at which there is something to say or to forget, if any."""
        times = [self._waiting[0].time] if self._waiting else []
        if self._by is not None:
            times.append(self._deadline()[0])
        return min(times, default=None)

    def advance(self, until: int) -> Iterator[Fact]:
        """What is known once all events up to that time have arrived, that time included."""
        while (due := self.due) is not None and due <= until:
            if self._waiting and self._waiting[0].time <= due:
                yield from self._enter(self._waiting.pop(0))
            else:
                yield from self._expire()
        self._until = until if self._until is None else max(self._until, until)

    def _enter(self, arrival: Arrival) -> Iterator[Fact]:
        time, stage, by, watermark = arrival
        if stage in self._reached:
            return
        if self._by is None:
            self._by = by
        for left in sorted(self._open):
            if stage in self._graph.after[left] and self._reached[left] <= time:
                yield from self._move(left, stage, time, watermark)
        yield Fact("entered", stage, None, time, time, self._by, watermark=watermark)
        self._reached[stage] = time
        if watermark is not None:
            self._late[stage] = watermark
        if self._graph.stages[stage].next:
            self._open[stage] = False
            # Clocks of services differ: what follows may bear the earlier time.
            if ahead := [
                (self._reached[s], s) for s in self._graph.after[stage] & set(self._reached)
            ]:
                then, following = min(ahead)
                yield from self._move(stage, following, max(time, then), watermark)

    def _move(self, stage: int, following: int, time: int, watermark: int | None) -> Iterator[Fact]:
        assert self._by is not None
        overdue, since = self._open.pop(stage), self._reached[stage]
        yield Fact("moved", stage, following, time, since, self._by, overdue, watermark)
        if overdue:
            yield Fact("resolved", stage, following, time, since, self._by, watermark=watermark)

    def _deadline(self) -> tuple[int, What | None, int]:
        """The next: when, what is then to be said (None: all may be forgotten), of which stage."""
        deadlines: list[tuple[int, int, int]] = []
        for stage, overdue in self._open.items():
            since, sla = self._reached[stage], self._graph.slas[stage]
            if sla is not None and not overdue:
                deadlines.append((since + sla, 0, stage))
            deadlines.append((since + self._graph.ttls[stage], 1, stage))
        if deadlines:
            time, which, stage = min(deadlines)
            return time, ("dropped" if which else "stuck"), stage
        last, stage = max((time, stage) for stage, time in self._reached.items())
        return last + self._graph.ttls[stage], None, stage

    def _expire(self) -> Iterator[Fact]:
        assert self._by is not None
        time, what, stage = self._deadline()
        if what is None:
            self._by, self._reached, self._open, self._late = None, {}, {}, {}
            return
        overdue, since = self._open[stage], self._reached[stage]
        # What was due when the stage was entered late comes as late as that.
        yield Fact(what, stage, None, time, since, self._by, overdue, self._late.get(stage))
        if what == "stuck":
            self._open[stage] = True
        else:
            del self._open[stage]


def _nothing() -> tuple[Any, ...]:
    return None, {}, {}, (), None, {}


def _order(arrival: Arrival) -> tuple[int, int, str]:
    """In event time; of one moment in the order of the stages, so that the order is always one."""
    return arrival.time, arrival.stage, repr(arrival.by)
