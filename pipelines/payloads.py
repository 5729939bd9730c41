"""What simulated events say: the bytes that a microservice would publish of each."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

from velocity.pipelines import domains
from velocity.pipelines.domains import DOMAIN_OF
from velocity.pipelines.samples import lognormal, spread
from velocity.pipelines.transactions import Transaction

HECTOMETRES: Final = lognormal(42, 0.6, 250)
CHANNELS: Final = spread(domains.CHANNELS)
PAYMENT_METHODS: Final = spread(domains.PAYMENT_METHODS)
COURIERS: Final = spread(domains.COURIERS)
PLANS: Final = spread(domains.PLANS)
ORDER_REASONS: Final = spread(domains.ORDER_REASONS)
APPOINTMENT_REASONS: Final = spread(domains.APPOINTMENT_REASONS)
CLAIM_REASONS: Final = spread(domains.CLAIM_REASONS)

MILLIS: Final = tuple(f".{ms:03d}Z" for ms in range(1000))


@lru_cache(maxsize=65_536)
def _second(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"


def stamp(millis: int) -> str:
    """``velocity.io.records.rfc3339``, for those who call it 100,000 times a second.

    >>> stamp(1_767_225_600_123)
    '2026-01-01T00:00:00.123Z'
    """
    return _second(millis // 1000) + MILLIS[millis % 1000]


def _slot(t: Transaction, step: int) -> str:
    """When the visit is to begin: a quarter of an hour that fits what comes of it."""
    last = max(i for i, e in enumerate(t.path.events) if DOMAIN_OF[e].provider == "hospital")
    quarter = 15 * 60_000
    if step + 1 < last:  # It will be moved, to a later slot.
        return stamp((t.times[step] // quarter + 2) * quarter)
    missed = t.path.events[last] == "appointment.no_show"
    return stamp((t.times[last] // quarter + (not missed)) * quarter)


def _claimed(t: Transaction) -> tuple[str, int]:
    """What a claim is for, and how much of it is claimed."""
    if "pharmacy" in t.path.providers:
        return "pharmacy", t.amount
    return ("consultation", t.fee) if "doctor" in t.path.providers else ("appointment", 5 * t.fee)


def _granted(t: Transaction) -> int:
    return _claimed(t)[1] * (80 + t.part(4) % 21) // 100


VALUES: Final[Mapping[str, Callable[[Transaction, int], tuple[object, ...]]]] = {
    "order.created": lambda t, i: (
        t.amount,
        t.items,
        PAYMENT_METHODS[t.part(0)],
        "true" if t.path.first[i] else "false",
    ),
    "order.confirmed": lambda t, i: (),
    "order.dispatched": lambda t, i: (COURIERS[t.part(1)], HECTOMETRES[t.part(2)] / 10),
    "order.delivered": lambda t, i: (
        t.amount,
        COURIERS[t.part(1)],
        t.seconds(t.path.first[i], i) / 60,
    ),
    "order.cancelled": lambda t, i: (t.amount, ORDER_REASONS[t.part(3)]),
    "consultation.requested": lambda t, i: (t.specialty, CHANNELS[t.part(5)]),
    "consultation.started": lambda t, i: (
        t.specialty,
        CHANNELS[t.part(5)],
        t.seconds(i - 1, i),
    ),
    "consultation.ended": lambda t, i: (
        t.specialty,
        t.seconds(i - 1, i),
        t.fee,
        PAYMENT_METHODS[t.part(0)],
    ),
    "consultation.abandoned": lambda t, i: (t.specialty, t.seconds(i - 1, i)),
    "prescription.issued": lambda t, i: (t.specialty, t.items),
    "appointment.booked": lambda t, i: (
        t.specialty,
        _slot(t, i),
        "true" if t.part(3) % 5 < 2 else "false",
        5 * t.fee,
    ),
    "appointment.rescheduled": lambda t, i: (t.specialty, _slot(t, i)),
    "appointment.checked_in": lambda t, i: (t.specialty, 5 * t.fee),
    "appointment.no_show": lambda t, i: (t.specialty,),
    "appointment.cancelled": lambda t, i: (t.specialty, APPOINTMENT_REASONS[t.part(3)]),
    "claim.filed": lambda t, i: (*_claimed(t), PLANS[t.part(5)]),
    "claim.approved": lambda t, i: (_claimed(t)[0], _granted(t), t.seconds(i - 1, i)),
    "claim.rejected": lambda t, i: (
        _claimed(t)[0],
        t.seconds(i - 1, i),
        CLAIM_REASONS[t.part(3)],
    ),
    "claim.paid": lambda t, i: (_claimed(t)[0], _granted(t)),
}
"""What fills the slots after the common fields, in the dictionary's order of fields."""


class _Template(NamedTuple):
    """An event type, ready to be written."""

    provider: str
    text: str
    """With slots for the common fields, then for the type's own."""
    values: Callable[[Transaction, int], tuple[object, ...]]
    """Of its own fields."""


def _template(event_type: str) -> _Template:
    domain = DOMAIN_OF[event_type]
    slots = {"string": '"%s"', "timestamp": '"%s"', "int64": "%d", "double": "%.1f", "bool": "%s"}
    given = {"event_type": event_type, "domain": domain.name}
    members = ",".join(
        f'"{f.name}":' + (f'"{given[f.name]}"' if f.name in given else slots[f.type])
        for f in domains.fields_of(event_type)
    )
    return _Template(domain.provider, f"{{{members}}}", VALUES[event_type])


_TEMPLATES: Final = {event_type: _template(event_type) for event_type in DOMAIN_OF}


def payload(transaction: Transaction, step: int, event_id: str) -> bytes:
    """The JSON object that is published of a transaction's step."""
    template = _TEMPLATES[transaction.path.events[step]]
    return (
        template.text
        % (
            event_id,
            transaction.id,
            transaction.patient,
            transaction.providers[template.provider],
            stamp(transaction.times[step]),
            *template.values(transaction, step),
        )
    ).encode("ascii")
