"""What every system is given, and what every system must make of it.

Events, JSON objects of about 218 bytes, in a topic of ``PARTITIONS`` partitions:

    {"event_id":"…","event_type":"order.created","domain":"pharmacy","event_time":1767225600000,
     "provider_id":"provider-0042","transaction_id":"…","amount":4711,"note":"…"}

``LATE_SHARE`` of them are up to ``MAX_LATENESS_S`` seconds behind the event before them of their partition;
partitions are read as unevenly as a system does. For each partition one event of the domain "end" follows,
an hour later, so that the last windows close; its own window is not looked at.

Each event's provider is looked up by ``GET REST/providers?ids=a,b,…`` with at most ``MAX_IDS`` ids,
``{"providers": [{"id": "provider-0042", "city": "Bandung"}, …]}`` after ``REST_SECONDS``. The events of each
one-minute window of event time are counted by domain, event type and city. A document of
Elasticsearch for each, with the id ``document_id`` gives:

    {"window": 1767225600000, "domain": …, "event_type": …, "city": …, "n": 88, "total": 1234, "most": 99}

Everything is drawn from the number of the event, so each process that needs it makes it itself.

>>> workload = Workload(1000)
>>> event = orjson.loads(workload.values(3)[0])
>>> sorted(event)  # doctest: +NORMALIZE_WHITESPACE
['amount', 'domain', 'event_id', 'event_time', 'event_type', 'note', 'provider_id', 'transaction_id']
>>> sum(document["n"] for document in workload.documents().values())
1000
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

PARTITIONS = 4
START_MS = 1_767_225_600_000  # 2026-01-01 in UTC
MINUTE_MS = 60_000
EVENTS_PER_SECOND = 1_400
"""Of event time: five million events are an hour, of some 14,000 documents."""
LATE_SHARE = 0.05
MAX_LATENESS_S = 20
PROVIDERS = 2_000
MAX_IDS = 100
REST_SECONDS = 0.005
DOMAINS = {
    "pharmacy": ("order.created", "order.paid", "order.delivered"),
    "consultation": ("consultation.requested", "consultation.answered", "consultation.ended"),
    "appointment": ("appointment.booked", "appointment.attended", "appointment.missed"),
    "insurance": ("claim.filed", "claim.approved", "claim.paid"),
}
KINDS = [(domain, event_type) for domain, types in DOMAINS.items() for event_type in types]
CITIES = (
    "Jakarta", "Surabaya", "Bandung", "Medan", "Semarang", "Makassar", "Palembang", "Depok", "Tangerang", "Bekasi",
    "Bogor", "Padang", "Malang", "Denpasar", "Samarinda", "Pontianak", "Manado", "Balikpapan", "Jambi", "Surakarta",
)  # fmt: skip


def provider(number: int) -> str:
    return f"provider-{number:04d}"


def city_of(provider_id: str) -> str:
    """What the REST service answers for it.

    >>> city_of("provider-0021")
    'Surabaya'
    """
    return CITIES[int(provider_id[-4:]) % len(CITIES)]


def document_id(window_ms: int, domain: str, event_type: str, city: str) -> str:
    """
    >>> document_id(1767225600000, "pharmacy", "order.paid", "Bandung")
    '1767225600000|pharmacy|order.paid|Bandung'
    """
    return f"{window_ms}|{domain}|{event_type}|{city}"


class Columns(NamedTuple):
    """Of a number of events, in the order in which they are sent to their partitions."""

    time_ms: NDArray[np.int64]
    kind: NDArray[np.int64]
    provider: NDArray[np.int64]
    amount: NDArray[np.int64]
    group: NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """``events`` events of about ``size`` bytes each.

    The systems are compared with the defaults of all else; ``curves.py`` asks what each costs.
    """

    events: int
    size: int = 218
    partitions: int = PARTITIONS
    late: float = LATE_SHARE
    groups: int = 0
    """If not zero, an event has a ``group``, one of so many names."""

    @property
    def topic(self) -> str:
        """A name for a topic of it."""
        usual = Workload(self.events, self.size)
        more = f"-{self.partitions}-{self.late:g}-{self.groups}" if self != usual else ""
        return f"speed-{self.events}-{self.size}{more}"

    def columns(self, first: int = 0, end: int | None = None) -> Columns:
        """Of the events with these numbers."""
        end = self.events if end is None else end
        n = np.arange(first, end, dtype=np.uint64)
        time = START_MS + (n * np.uint64(1000) // np.uint64(EVENTS_PER_SECOND)).astype(np.int64)
        late = _drawn(n, 1) % 10_000 < self.late * 10_000
        behind = (_drawn(n, 2) % (MAX_LATENESS_S * 1000)).astype(np.int64)
        return Columns(
            np.maximum(time - np.where(late, behind, 0), START_MS),
            (_drawn(n, 3) % len(KINDS)).astype(np.int64),
            (_drawn(n, 4) % PROVIDERS).astype(np.int64),
            (_drawn(n, 5) % 500_000).astype(np.int64),
            (_drawn(n, 6) % max(self.groups, 1)).astype(np.int64),
        )

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Partitions and values, the ends too."""
        for first in range(0, self.events, 100_000):
            end = min(first + 100_000, self.events)
            for n, value in enumerate(self.values(first, end), first):
                yield n % self.partitions, value
        last = START_MS + self.events * 1000 // EVENTS_PER_SECOND + 3_600_000
        for partition in range(self.partitions):
            yield partition, self._value(self.events + partition, "end", "end", last, 0, 0, 0)

    def values(self, first: int = 0, end: int | None = None) -> list[bytes]:
        columns = self.columns(first, end)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            self._value(n, *KINDS[kind], time, number, amount, group)
            for n, (time, kind, number, amount, group) in enumerate(rows, first)
        ]

    def _value(
        self, n: int, domain: str, event_type: str, time: int, number: int, amount: int, group: int
    ) -> bytes:
        event = {
            "event_id": f"{n:016x}",
            "event_type": event_type,
            "domain": domain,
            "event_time": time,
            "provider_id": provider(number),
            "transaction_id": f"tr-{n // 3:012x}",
            "amount": amount,
            "group": "end" if domain == "end" else f"group-{group:07d}",
            "note": "",
        }
        if not self.groups:
            del event["group"]
        value = orjson.dumps(event)
        return value[:-2] + b"x" * (self.size - len(value)) + value[-2:]

    def documents(self) -> dict[str, dict[str, Any]]:
        """What must be in Elasticsearch at the end: a plain recomputation over all events."""
        time, kind, number, amount, _group = self.columns()
        window = (time - START_MS) // MINUTE_MS
        key = (window * len(KINDS) + kind) * len(CITIES) + number % len(CITIES)
        keys, place, counts = np.unique(key, return_inverse=True, return_counts=True)
        total = np.zeros(len(keys), np.int64)
        np.add.at(total, place, amount)
        most = np.zeros(len(keys), np.int64)
        np.maximum.at(most, place, amount)
        documents = {}
        for at, n, amounts, largest in zip(
            keys.tolist(), counts.tolist(), total.tolist(), most.tolist(), strict=True
        ):
            rest, city = divmod(at, len(CITIES))
            minute, kind_ = divmod(rest, len(KINDS))
            parts = (START_MS + minute * MINUTE_MS, *KINDS[kind_], CITIES[city])
            names = dict(zip(("window", "domain", "event_type", "city"), parts, strict=True))
            documents[document_id(*parts)] = names | {"n": n, "total": amounts, "most": largest}
        return documents


def _drawn(n: NDArray[np.uint64], which: int) -> NDArray[np.uint64]:
    """Numbers that look random, by splitmix64 (Steele, Lea, Flood: Fast Splittable PRNGs, 2014)."""
    z = (n + np.uint64(which * 0x632BE59BD9B4E019 % 2**64)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
