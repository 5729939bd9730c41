"""The life cycles at work: which transactions there are, whose, and what happens to them when."""

import random
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Final, NamedTuple

from velocity.pipelines.directory import CITIES, KINDS, Provider, directory
from velocity.pipelines.disturbances import Peak, surge
from velocity.pipelines.domains import DOMAIN_OF, DOMAINS, LIFE_CYCLES, SPECIALTIES
from velocity.pipelines.samples import SAMPLES, lognormal, spread

DAY: Final = (
    0.35, 0.26, 0.22, 0.2, 0.26, 0.5, 0.8, 1.0, 1.25, 1.45, 1.5, 1.4,
    1.25, 1.2, 1.2, 1.2, 1.2, 1.25, 1.4, 1.65, 1.6, 1.35, 0.96, 0.55,
)  # fmt: skip
"""Transactions begun in each hour of the day in Jakarta (UTC+7), over the mean of the day."""

ORDER_AMOUNT: Final = lognormal(85_000, 0.7, 2_500_000, unit=500)
FEE: Final = lognormal(45_000, 0.5, 300_000, unit=1000)
_SPECIALTIES: Final = spread(SPECIALTIES)

LONGEST: Final = 1000 * max(
    int(event.longest) for domain in DOMAINS.values() for event in domain.events
)
"""The longest delay from an event to the next, in milliseconds."""


class Path(NamedTuple):
    """A life cycle, ready to be drawn from."""

    events: tuple[str, ...]
    """The type of each step's event."""
    first: tuple[int, ...]
    """For each step, the first step of the same domain."""
    gaps: tuple[Sequence[int], ...]
    """For each step, samples of the milliseconds since the step before."""
    longest: tuple[int, ...]
    wanted: tuple[int, ...]
    """The steps that belong to the domains asked for."""
    providers: tuple[str, ...]
    insured: bool
    per_second: float
    """Transactions that go this way, at the day's mean."""


class Transaction:
    """A customer's transaction and all that was drawn for it."""

    __slots__ = (
        "amount", "fee", "id", "items", "key", "path", "patient", "providers", "salt", "specialty",
        "times",
    )  # fmt: skip

    def __init__(self, world: "World", path: Path, times: list[int]) -> None:
        draw = world.rng.random
        self.path: Path = path
        self.times: list[int] = times
        self.id: str = f"trx-{world.rng.getrandbits(128):032x}"
        self.key: bytes = self.id.encode("ascii")
        self.salt: int = world.rng.getrandbits(60)
        self.patient, city = world.patient(path.insured)
        self.providers = {kind: world.provider(kind, city) for kind in path.providers}
        self.items: int = 1 + int(5 * draw() * draw())
        self.amount: int = ORDER_AMOUNT[int(draw() * SAMPLES)]
        self.fee: int = FEE[int(draw() * SAMPLES)]
        self.specialty: str = _SPECIALTIES[int(draw() * SAMPLES)]

    def part(self, n: int) -> int:
        """One of six numbers below ``SAMPLES`` that stay the same in all the events."""
        return self.salt >> 10 * n & SAMPLES - 1

    def seconds(self, earlier: int, later: int) -> int:
        """From one step to another."""
        return (self.times[later] - self.times[earlier]) // 1000


class World:
    """Draws the transactions, and knows what happens in each second.

    ``rate`` is the mean over a day, in events of ``domains`` per second; about ``events`` of them
    will be asked for. ``unknown_share`` of the provider ids and of the patient ids are unknown to
    the directory of the seed. ``steady`` says that they are published about when they happen, so
    that what happens after the last need not be kept: at 50,000 a second that is nearly all.
    """

    def __init__(
        self,
        *,
        seed: int,
        start: datetime,
        rate: float,
        events: int,
        domains: Sequence[str],
        unknown_share: float,
        peaks: Sequence[Peak] = (),
        steady: bool = False,
        part: int = 0,
    ) -> None:
        self.rng = random.Random(f"world {seed}{f' {part}' if part else ''}")
        self.start = round(start.timestamp() * 1000)
        """Epoch milliseconds; nothing happens before it."""
        self._paths = _paths(domains, rate)
        self._cumulative = list(accumulate(path.per_second for path in self._paths))
        self._agenda: defaultdict[int, list[tuple[Transaction, int]]] = defaultdict(list)
        known = directory(seed)
        everyone = [(p.id, p.city) for p in known.patients.values()]
        insured = [(p.id, p.city) for p in known.patients.values() if p.insured]
        self._patients = (everyone, insured)
        self._unknown = unknown_share
        self._peaks = peaks
        self._providers = {
            (kind, city): _zipf(known.providers.values(), kind, city)
            for kind in KINDS
            for city in CITIES
        }
        horizon = _lasts(start, rate, events)
        self._end = self.start + horizon if steady and horizon < LONGEST else None
        """What happens then or later nobody will ask for, and is not kept; None if they may."""
        self._join(horizon)

    def happening(self, second: int) -> list[tuple[Transaction, int]]:
        """Transactions, each with the step that happens in that second of the epoch."""
        rng, total = self.rng, self._cumulative[-1]
        busy = _busy(second) * surge(self._peaks, self.start, second)
        time = rng.expovariate(total * busy)
        while time < 1:
            begin = int((second + time) * 1000)
            if begin >= self.start:
                path = self._paths[bisect(self._cumulative, rng.random() * total)]
                gaps = (samples[int(rng.random() * SAMPLES)] for samples in path.gaps[1:])
                self._schedule(path, 0, list(accumulate(gaps, initial=begin)))
            time += rng.expovariate(total * busy)
        return self._agenda.pop(second, [])

    def patient(self, insured: bool) -> tuple[str, str]:
        """A patient's id and city. Some come far more often than others."""
        draw = self.rng.random
        people = self._patients[insured]
        key, city = people[int(draw() ** 1.5 * len(people))]
        return (f"PAT-9{key[-6:]}" if draw() < self._unknown else key), city

    def provider(self, kind: str, city: str) -> str:
        """A provider's id, from the city if the kind is bound to one."""
        keys, cumulative = self._providers[kind, city]
        key = keys[bisect(cumulative, self.rng.random() * cumulative[-1])]
        return f"PRV-9{key[-4:]}" if self.rng.random() < self._unknown else key

    def _schedule(self, path: Path, step: int, times: list[int]) -> None:
        transaction, end = None, self._end
        for wanted in path.wanted:
            if wanted >= step:
                transaction = transaction or Transaction(self, path, times)
                if end is None or times[wanted] < end:
                    self._agenda[times[wanted] // 1000].append((transaction, wanted))

    def _join(self, horizon: int) -> None:
        """Joins the transactions that wait at the start for a step, as a renewal process does.

        Those that have waited for step k for a time t are as many as begin in any moment, if the
        gap before k is longer than t. So walking t from 0 on and drawing gaps finds them; t is
        what they still have to wait. Beyond ``horizon`` (milliseconds) nobody will look.
        """
        rng = self.rng
        for path in self._paths:
            per_ms = path.per_second * _busy(self.start // 1000) / 1000
            for step in range(1, len(path.events)):
                wait = rng.expovariate(per_ms)
                while wait < min(path.longest[step], horizon):
                    gap = path.gaps[step][int(rng.random() * SAMPLES)]
                    if gap > wait:
                        gaps = [samples[int(rng.random() * SAMPLES)] for samples in path.gaps]
                        gaps[step] = gap
                        offset = self.start + int(wait) - sum(gaps[1 : step + 1])
                        self._schedule(path, step, list(accumulate(gaps[1:], initial=offset)))
                    wait += rng.expovariate(per_ms)


def _busy(second: int) -> float:
    """How busy that second of the epoch is, over the mean of the day."""
    hour, past = divmod((second + 7 * 3600) % 86400, 3600)
    return DAY[hour] + (DAY[(hour + 1) % 24] - DAY[hour]) * past / 3600


def _lasts(start: datetime, rate: float, events: int) -> int:
    """Milliseconds that so many events last and some more, ``LONGEST`` at most."""
    begin = int(start.timestamp())
    left = 1.25 * events + 100
    for second in range(LONGEST // 1000):
        if left <= 0:
            return 1000 * second
        left -= rate * _busy(begin + second)
    return LONGEST


def _paths(domains: Sequence[str], rate: float) -> list[Path]:
    """The life cycles that touch the domains, so often that their events come at the rate."""
    wanted = {
        cycle: tuple(
            step for step, event in enumerate(cycle.events) if DOMAIN_OF[event].name in domains
        )
        for cycle in LIFE_CYCLES
    }
    total = sum(cycle.weight * len(steps) for cycle, steps in wanted.items())
    about = {event.type: event for domain in DOMAINS.values() for event in domain.events}
    paths = []
    for cycle, steps in wanted.items():
        if steps:
            kinds = [DOMAIN_OF[event].provider for event in cycle.events]
            paths.append(
                Path(
                    events=cycle.events,
                    first=tuple(kinds.index(kind) for kind in kinds),
                    gaps=tuple(
                        lognormal(1000 * e.median, e.sigma, 1000 * e.longest)
                        for e in (about[event] for event in cycle.events)
                    ),
                    longest=tuple(int(1000 * about[event].longest) for event in cycle.events),
                    wanted=steps,
                    providers=tuple(dict.fromkeys(kinds)),
                    insured="claim.filed" in cycle.events,
                    per_second=rate * cycle.weight / total,
                )
            )
    return paths


def _zipf(providers: Iterable[Provider], kind: str, city: str) -> tuple[list[str], list[float]]:
    """Providers of a kind and their cumulative weights: the n-th gets 1/n^0.7 of the first's visits.

    Pharmacies and hospitals are sought in the patient's city, where there are any.
    """
    all_of_kind = [p for p in providers if p.kind == kind]
    near = [p for p in all_of_kind if p.city == city and kind in ("pharmacy", "hospital")]
    keys = [p.id for p in near or all_of_kind]
    return keys, list(accumulate(n**-0.7 for n in range(1, len(keys) + 1)))
