"""A seeded stand-in for Halodoc's microservices: believable transactions as Kafka messages."""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import count, islice
from operator import itemgetter
from typing import Final, NamedTuple

from velocity.io.records import Cause
from velocity.pipelines.disturbances import Outage, Peak, published
from velocity.pipelines.domains import DOMAIN_OF, DOMAINS
from velocity.pipelines.notifications import notification
from velocity.pipelines.payloads import payload
from velocity.pipelines.samples import SAMPLES, lognormal
from velocity.pipelines.transactions import World

MIN_LATENESS: Final = timedelta(seconds=1)
LAG: Final = lognormal(120, 0.6, 900)
"""Milliseconds from an event to its publication, when nothing holds it up."""


class Kind(StrEnum):
    """What became of an event on its way to the broker; exactly one thing."""

    NORMAL = "normal"
    LATE = "late"
    """Published a second or more after it happened."""
    DUPLICATE = "duplicate"
    """The same bytes as a normal message before it."""
    MALFORMED = "malformed"
    """Spoiled: it counts nowhere, and belongs in the dead letters."""


class SimulatedMessage(NamedTuple):
    """A message as it is published. The truth that a pipeline has to find is in those whose kind
    is normal or late: each of them is an event, and no other is."""

    topic: str
    key: bytes
    value: bytes
    timestamp_ms: int
    """When it is published (Kafka's CreateTime), epoch milliseconds."""
    kind: Kind
    cause: Cause | None
    """Of a malformed message: the cause its dead letter must name."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to simulate. The same scenario gives the same bytes, always.

    ``events`` counts messages of every kind. ``rate`` is the mean over a day in events per second
    of event time: at 07:00 in Jakarta, the default start, it is about that, at 03:00 a fifth.
    The shares of late, malformed and duplicated events exclude one another. ``unknown_share`` of
    provider ids and of patient ids are unknown to the directory of the seed. With ``sns`` each
    event comes in the envelope of SNS. With ``echoes`` each transaction happens so often at once, under
    ids of its own: a rate that no world could be drawn at. ``part`` tells those of a divided scenario
    apart.

    >>> Scenario(rate=0)
    Traceback (most recent call last):
    ...
    ValueError: rate must be more than 0 events per second, not 0
    """

    seed: int = 1
    events: int = 200_000
    start: datetime = datetime(2026, 1, 5, tzinfo=UTC)
    rate: float = 100.0
    late_share: float = 0.05
    max_lateness: timedelta = timedelta(seconds=20)
    duplicate_share: float = 0.005
    malformed_share: float = 0.001
    unknown_share: float = 0.001
    domains: tuple[str, ...] = tuple(DOMAINS)
    peaks: tuple[Peak, ...] = ()
    outages: tuple[Outage, ...] = ()
    sns: bool = False
    echoes: int = 1
    part: int = 0

    def divided(self, n: int) -> "list[Scenario]":
        """As n scenarios that together are as much, for as many processes; each has other events.

        >>> [part.events for part in Scenario(events=5).divided(2)]
        [3, 2]
        """
        return [
            replace(self, events=len(range(i, self.events, n)), rate=self.rate / n, part=i)
            for i in range(n)
        ]

    def __post_init__(self) -> None:
        if self.events < 0:
            raise ValueError(f"events must be 0 or more, not {self.events}")
        if self.start.tzinfo is None:
            raise ValueError(f"start must have a time zone, such as UTC: {self.start}")
        if not self.rate > 0:
            raise ValueError(f"rate must be more than 0 events per second, not {self.rate}")
        if not 1 <= self.echoes <= MOST_ECHOES:
            raise ValueError(f"echoes must be from 1 to {MOST_ECHOES}, not {self.echoes}")
        if self.max_lateness <= MIN_LATENESS:
            raise ValueError(f"max_lateness must be more than 1 s, not {self.max_lateness}")
        for key in ("late_share", "duplicate_share", "malformed_share", "unknown_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} must be from 0 to 1, not {getattr(self, key)}")
        if self.late_share + self.duplicate_share + self.malformed_share > 1:
            raise ValueError(
                "late_share, duplicate_share and malformed_share must sum to 1 at most"
            )
        unknown = [name for name in self.domains if name not in DOMAINS]
        if unknown or not self.domains:
            raise ValueError(f"domains must be some of {', '.join(DOMAINS)}, not {self.domains}")
        if down := [outage.domain for outage in self.outages if outage.domain not in DOMAINS]:
            raise ValueError(f"outages must be of some of {', '.join(DOMAINS)}, not of {down[0]}")


def simulate(scenario: Scenario) -> Iterator[SimulatedMessage]:
    """The scenario's messages in the order of their publication.

    The stream starts in full swing: transactions begun before ``start`` are in it with what
    happens to them from then on.

    >>> [first] = simulate(Scenario(seed=7, events=1))
    >>> first.topic, first.kind
    ('insurance.events', <Kind.NORMAL: 'normal'>)
    """
    return islice(_messages(scenario), scenario.events)


def _messages(scenario: Scenario) -> Iterator[SimulatedMessage]:
    # Second by second: a sort of each second's messages costs less than a heap of all of them.
    # The world and the wire draw from generators of their own, so that a scenario with faults
    # has the same events as the one without.
    world = World(
        seed=scenario.seed,
        part=scenario.part,
        start=scenario.start,
        rate=scenario.rate / scenario.echoes,
        events=-(-scenario.events // scenario.echoes),
        domains=scenario.domains,
        unknown_share=scenario.unknown_share,
        peaks=scenario.peaks,
        steady=not (scenario.peaks or scenario.outages) and scenario.late_share <= 0.1,
    )
    wire = random.Random(f"wire {scenario.seed}{f' {scenario.part}' if scenario.part else ''}")
    draw, ids = wire.random, world.rng.getrandbits
    late = scenario.late_share
    malformed = late + scenario.malformed_share
    duplicate = malformed + scenario.duplicate_share
    least = MIN_LATENESS // timedelta(milliseconds=1)
    spread = scenario.max_lateness // timedelta(milliseconds=1) - least
    echoes = ECHOES[: scenario.echoes - 1]
    outbox: defaultdict[int, list[SimulatedMessage]] = defaultdict(list)
    published_at = itemgetter(SimulatedMessage._fields.index("timestamp_ms"))
    for second in count(world.start // 1000):
        for transaction, step in world.happening(second):
            event_type = transaction.path.events[step]
            domain = DOMAIN_OF[event_type]
            topic = domain.topic
            time = transaction.times[step]
            i = f"{ids(128):032x}"
            event_id = f"{i[:8]}-{i[8:12]}-4{i[13:16]}-a{i[17:20]}-{i[20:]}"
            value = payload(transaction, step, event_id)
            sent = time + LAG[int(draw() * SAMPLES)]
            kind, cause = Kind.NORMAL, None
            if (fate := draw()) < duplicate:
                if fate < late:
                    kind, sent = Kind.LATE, time + least + int(draw() * spread)
                elif fate < malformed:
                    kind = Kind.MALFORMED
                    value, cause = malform(value, wire)
            if scenario.outages:
                held = published(scenario.outages, world.start, domain.name, sent)
                if held - time >= least and kind is Kind.NORMAL:
                    kind = Kind.LATE
                sent = held
            # SNS takes neither what is empty nor what is no text.
            if scenario.sns and cause not in (Cause.EMPTY, Cause.NOT_UTF8):
                value = notification(topic, value.decode(), event_id, sent, event_type)
            if malformed <= fate < duplicate:
                again = sent + 50 + int(draw() * 2000)
                twice = SimulatedMessage(topic, transaction.key, value, again, Kind.DUPLICATE, None)
                outbox[again // 1000].append(twice)
                if echoes:
                    outbox[again // 1000] += _echoes(twice, event_id.encode(), echoes)
            message = SimulatedMessage(topic, transaction.key, value, sent, kind, cause)
            outbox[sent // 1000].append(message)
            if echoes:
                outbox[sent // 1000] += _echoes(message, event_id.encode(), echoes)
        yield from sorted(outbox.pop(second, ()), key=published_at)


ECHOES: Final = b"0123456789bcdef"
"""What tells the ids of an echo from those of its original."""
MOST_ECHOES: Final = len(ECHOES) + 1


def _echoes(message: SimulatedMessage, event_id: bytes, which: bytes) -> list[SimulatedMessage]:
    """The message as others publish it in the same moment: its ids are theirs, all else is equal."""
    topic, key, value, sent, kind, cause = message
    begin, end = event_id[:19], event_id[20:]
    return [
        SimulatedMessage(
            topic,
            b"tr%c%b" % (one, key[3:]),
            value.replace(event_id, b"%b%c%b" % (begin, one, end)).replace(
                key, b"tr%c%b" % (one, key[3:])
            ),
            sent,
            kind,
            cause,
        )
        for one in which
    ]


def malform(value: bytes, rng: random.Random) -> tuple[bytes, Cause]:
    """An event spoiled in one of nine ways, and the cause by which it must be rejected."""
    head, name, tail = value.partition(b'"event_time":"')
    rest = tail[tail.index(b'"') + 1 :]
    return rng.choice(
        (
            (b"", Cause.EMPTY),
            (value[: len(value) // 2], Cause.INVALID_JSON),
            (value.replace(b'"domain":"', b'"domain":"\xff', 1), Cause.NOT_UTF8),
            (b"[" + value + b"]", Cause.NOT_AN_OBJECT),
            (value + b"\n" + value, Cause.SEVERAL_DOCUMENTS),
            (value + value, Cause.SEVERAL_DOCUMENTS),
            (head + b'"event_time":"yesterday"' + rest, Cause.WRONG_TYPE),
            (head.removesuffix(b",") + rest, Cause.MISSING_FIELD),
            # A leap year, so that 29 February stays a date.
            (head + name + b"2096" + tail[4:], Cause.FUTURE_EVENT_TIME),
        )
    )
