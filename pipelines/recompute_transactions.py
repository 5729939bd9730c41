"""The plain recomputation of transactions: each one's events sorted, then read from first to last.

It shares no code with the step that follows transactions by states and timers, and sees all events
of a transaction at once.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, NamedTuple

from velocity.pipelines.job import TransactionSpec

_MILLISECOND: Final = timedelta(milliseconds=1)

Row = Mapping[str, Any]


class Fate(NamedTuple):
    """How a stage ended for a transaction; ``next`` is None for one that was dropped."""

    time: int
    next: str | None


@dataclass
class Life:
    """A transaction from its first event until it is forgotten."""

    key: str
    by: tuple[Any, ...]
    entered: dict[str, int] = field(default_factory=dict)
    """Epoch milliseconds by stage."""


def lives(spec: TransactionSpec, event_time: str, rows: Sequence[Row]) -> Iterator[Life]:
    """All transactions among rows; times are epoch milliseconds."""
    stage_of = {event: name for name, stage in spec.stages.items() for event in stage.events}
    order = list(spec.stages)
    events: defaultdict[str, list[tuple[int, int, str, Any]]] = defaultdict(list)
    for row in rows:
        if row[spec.event] in stage_of and row[spec.key] is not None:
            stage = order.index(stage_of[row[spec.event]])
            by = tuple(row[column] for column in spec.by)
            events[row[spec.key]].append((row[event_time], stage, repr(by), by))
    for key, own in events.items():
        own.sort(key=lambda event: event[:3])
        life: Life | None = None
        for time, stage, _, by in own:
            if life is not None and forgotten(spec, life) < time:
                yield life
                life = None
            if life is None:
                life = Life(key, by)
            life.entered.setdefault(order[stage], time)
        if life is not None:
            yield life


def forgotten(spec: TransactionSpec, life: Life) -> int:
    """When nothing more is waited for, of what has been entered so far."""
    order = list(spec.stages)
    last = max(life.entered, key=lambda name: (life.entered[name], order.index(name)))
    ends = life.entered[last] + _ttl(spec, last)
    fates = {name: fate(spec, life, name) for name in life.entered if spec.stages[name].next}
    return max([ends, *(end.time for end in fates.values() if end.next is None)])


def fate(spec: TransactionSpec, life: Life, name: str) -> Fate:
    """How a stage that has others after it ended, from what has been entered so far."""
    since, order = life.entered[name], list(spec.stages)
    ends = since + _ttl(spec, name)
    followed = [s for s in _after(spec, name) if life.entered.get(s, ends + 1) <= ends]
    if not followed:
        return Fate(ends, None)
    first = min(followed, key=lambda s: (life.entered[s], order.index(s)))
    return Fate(max(since, life.entered[first]), first)


def _ttl(spec: TransactionSpec, name: str) -> int:
    return (spec.stages[name].ttl or spec.ttl) // _MILLISECOND


def _after(spec: TransactionSpec, name: str) -> set[str]:
    direct = set(spec.stages[name].next)
    return direct.union(*(_after(spec, following) for following in direct))


def facts(spec: TransactionSpec, event_time: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What becomes known of all transactions once all their events and deadlines have passed."""
    found: list[dict[str, Any]] = []
    for life in lives(spec, event_time, rows):
        for name, since in life.entered.items():

            def tell(
                what: str,
                time: int,
                next_: str | None = None,
                life: Life = life,
                name: str = name,
                since: int = since,
            ) -> None:
                found.append(
                    {
                        "transaction": life.key,
                        "what": what,
                        "stage": name,
                        "next": next_,
                        "since": since,
                        "seconds": (time - since) / 1000,
                        event_time: time,
                        **dict(zip(spec.by, life.by, strict=True)),
                    }
                )

            tell("entered", since)
            if not spec.stages[name].next:
                continue
            end = fate(spec, life, name)
            sla = spec.stages[name].sla
            stuck = sla is not None and (since + sla // _MILLISECOND < end.time or end.next is None)
            if sla is not None and stuck:
                tell("stuck", since + sla // _MILLISECOND)
            if end.next is None:
                tell("dropped", end.time)
            else:
                tell("moved", end.time, end.next)
                if stuck:
                    tell("resolved", end.time, end.next)
    return found
