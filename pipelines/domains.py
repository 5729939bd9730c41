"""The data dictionary of the four domains, from which the page and the simulator are both made."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

FieldType = Literal["string", "int64", "double", "bool", "timestamp"]
Value = str | int | float | bool

PAYMENT_METHODS: Final = {
    "gopay": 38, "ovo": 14, "dana": 12, "bank_transfer": 16, "credit_card": 12, "insurance": 8,
}  # fmt: skip
SPECIALTIES: Final = {
    "general": 46, "pediatrics": 15, "dermatology": 11, "internal_medicine": 10,
    "obstetrics": 8, "psychiatry": 5, "cardiology": 3, "dentistry": 2,
}  # fmt: skip
CHANNELS: Final = {"chat": 78, "video": 15, "voice": 7}
COURIERS: Final = {"gosend": 52, "grab_express": 33, "own_fleet": 15}
ORDER_REASONS: Final = {"customer_request": 45, "out_of_stock": 35, "payment_failed": 20}
APPOINTMENT_REASONS: Final = {"customer_request": 70, "provider_unavailable": 30}
CLAIM_REASONS: Final = {"not_covered": 50, "limit_reached": 30, "incomplete": 20}
CLAIM_TYPES: Final = {"pharmacy": 60, "consultation": 20, "appointment": 20}
PLANS: Final = {"corporate": 70, "individual": 30}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the flat JSON object that an event is. ``values`` closes the list where given."""

    name: str
    type: FieldType
    meaning: str
    example: Value
    events: tuple[str, ...] = ()
    """The event types that carry it; empty for the fields that all events have."""
    unit: str = ""
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """An event type, and how long after the one before it in its transaction it comes.

    The delay is log-normal: ``median`` seconds, ``sigma`` of its logarithm, cut at ``longest``.
    """

    type: str
    meaning: str
    median: float
    sigma: float
    longest: float


@dataclass(frozen=True, slots=True)
class Domain:
    """One kind of business: the topic its microservice publishes to, its events and fields."""

    name: str
    topic: str
    meaning: str
    provider: str
    """The kind of provider that ``provider_id`` names."""
    events: tuple[Event, ...]
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class LifeCycle:
    """The events of one customer transaction in their order, and how often it goes that way."""

    weight: float
    events: tuple[str, ...]


COMMON: Final = (
    Field("event_id", "string", "Names the event; a redelivered event keeps it.",
          "6f1f3f0e-6d0c-4b52-a9a4-0d8d4a3a7f21"),
    Field("event_type", "string", "What happened.", "order.created"),
    Field("domain", "string", "The domain whose service saw it happen.", "pharmacy_delivery"),
    Field("transaction_id", "string", "The customer's transaction, across domains; the key of "
          "the message.", "trx-9b1deb4d3b7d4bad9bdd2b0d7b3dcb6d"),
    Field("patient_id", "string", "The patient; `GET /patients?ids=` knows the age group, the "
          "city and the insurance.", "PAT-0004711"),
    Field("provider_id", "string", "Who serves the patient in this step; `GET /providers?ids=` "
          "knows the name, the city, the tier and the kind.", "PRV-00042"),
    Field("event_time", "timestamp", "When it happened, by the service's clock.",
          "2026-01-05T07:15:09.041Z", unit="RFC 3339, UTC, milliseconds"),
)  # fmt: skip

_CREATED, _CONFIRMED, _DISPATCHED, _DELIVERED, _ORDER_CANCELLED = (
    "order.created", "order.confirmed", "order.dispatched", "order.delivered", "order.cancelled",
)  # fmt: skip
_REQUESTED, _STARTED, _ENDED, _ABANDONED, _PRESCRIBED = _CONSULTATION = (
    "consultation.requested", "consultation.started", "consultation.ended",
    "consultation.abandoned", "prescription.issued",
)  # fmt: skip
_BOOKED, _RESCHEDULED, _CHECKED_IN, _NO_SHOW, _CANCELLED = _APPOINTMENT = (
    "appointment.booked", "appointment.rescheduled", "appointment.checked_in",
    "appointment.no_show", "appointment.cancelled",
)  # fmt: skip
_FILED, _APPROVED, _REJECTED, _PAID = _CLAIM = (
    "claim.filed", "claim.approved", "claim.rejected", "claim.paid",
)  # fmt: skip

DOMAINS: Final[Mapping[str, Domain]] = {
    domain.name: domain
    for domain in (
        Domain(
            "pharmacy_delivery", "pharmacy.events",
            "Medicine ordered from a pharmacy and brought to the patient.", "pharmacy",
            (
                Event(_CREATED, "The patient ordered.", 150, 0.8, 1200),
                Event(_CONFIRMED, "The pharmacy took the order.", 60, 0.6, 600),
                Event(_DISPATCHED, "The courier left the pharmacy.", 480, 0.5, 2400),
                Event(_DELIVERED, "The patient has the medicine.", 1200, 0.4, 5400),
                Event(_ORDER_CANCELLED, "The order will not be delivered.", 240, 0.8, 1800),
            ),
            (
                Field("amount", "int64", "The order's price.", 87_500,
                      (_CREATED, _DELIVERED, _ORDER_CANCELLED), "whole IDR"),
                Field("items", "int64", "Medicines in the order.", 3, (_CREATED,), "count"),
                Field("payment_method", "string", "How the order is paid.", "gopay",
                      (_CREATED,), values=tuple(PAYMENT_METHODS)),
                Field("prescribed", "bool", "Whether a consultation led to it.", True, (_CREATED,)),
                Field("courier", "string", "Who carries it.", "gosend", (_DISPATCHED, _DELIVERED),
                      values=tuple(COURIERS)),
                Field("distance_km", "double", "From the pharmacy to the patient.", 4.2,
                      (_DISPATCHED,), "km"),
                Field("delivery_minutes", "double", "From order to delivery.", 34.7,
                      (_DELIVERED,), "minutes"),
                Field("reason", "string", "Why it was cancelled.", "out_of_stock",
                      (_ORDER_CANCELLED,), values=tuple(ORDER_REASONS)),
            ),
        ),
        Domain(
            "tele_consultation", "teleconsultation.events",
            "A patient talks to a doctor over the application.", "doctor",
            (
                Event(_REQUESTED, "The patient asked for a doctor.", 0, 0, 0),
                Event(_STARTED, "The doctor answered.", 45, 0.8, 600),
                Event(_ENDED, "They are done.", 480, 0.5, 1800),
                Event(_ABANDONED, "The patient left before an answer.", 180, 0.5, 900),
                Event(_PRESCRIBED, "The doctor prescribed medicine.", 40, 0.6, 300),
            ),
            (
                Field("specialty", "string", "The doctor's field.", "dermatology", _CONSULTATION,
                      values=tuple(SPECIALTIES)),
                Field("channel", "string", "How they talk.", "chat", (_REQUESTED, _STARTED),
                      values=tuple(CHANNELS)),
                Field("waiting_seconds", "int64", "Since the request.", 48, (_STARTED, _ABANDONED),
                      "seconds"),
                Field("duration_seconds", "int64", "Since the start.", 512, (_ENDED,), "seconds"),
                Field("amount", "int64", "The doctor's fee.", 45_000, (_ENDED,), "whole IDR"),
                Field("payment_method", "string", "How the fee is paid.", "ovo", (_ENDED,),
                      values=tuple(PAYMENT_METHODS)),
                Field("items", "int64", "Medicines prescribed.", 2, (_PRESCRIBED,), "count"),
            ),
        ),
        Domain(
            "appointment", "appointment.events",
            "A visit to a hospital, booked over the application for the same day.", "hospital",
            (
                Event(_BOOKED, "The patient took a slot.", 0, 0, 0),
                Event(_RESCHEDULED, "The slot was moved.", 900, 0.6, 3600),
                Event(_CHECKED_IN, "The patient arrived.", 3600, 0.5, 14_400),
                Event(_NO_SHOW, "The slot passed without the patient.", 4500, 0.4, 14_400),
                Event(_CANCELLED, "The slot was given back.", 1200, 0.8, 7200),
            ),
            (
                Field("specialty", "string", "The department.", "cardiology", _APPOINTMENT,
                      values=tuple(SPECIALTIES)),
                Field("slot_time", "timestamp", "When the visit is to begin.",
                      "2026-01-05T08:30:00.000Z", (_BOOKED, _RESCHEDULED),
                      "RFC 3339, UTC, milliseconds"),
                Field("first_visit", "bool", "Whether the hospital is new to the patient.", False,
                      (_BOOKED,)),
                Field("amount", "int64", "The visit's fee.", 210_000, (_BOOKED, _CHECKED_IN),
                      "whole IDR"),
                Field("reason", "string", "Why it was cancelled.", "customer_request",
                      (_CANCELLED,), values=tuple(APPOINTMENT_REASONS)),
            ),
        ),
        Domain(
            "insurance", "insurance.events",
            "What an insured patient's insurer pays of a transaction.", "insurer",
            (
                Event(_FILED, "The claim was handed in.", 60, 0.6, 600),
                Event(_APPROVED, "The insurer will pay.", 180, 0.8, 3600),
                Event(_REJECTED, "The insurer will not pay.", 300, 0.8, 3600),
                Event(_PAID, "The insurer paid.", 600, 0.6, 7200),
            ),
            (
                Field("claim_type", "string", "What is claimed for.", "pharmacy", _CLAIM,
                      values=tuple(CLAIM_TYPES)),
                Field("amount", "int64", "Claimed, approved or paid, as the event says.", 80_000,
                      (_FILED, _APPROVED, _PAID), "whole IDR"),
                Field("plan", "string", "The kind of policy.", "corporate", (_FILED,),
                      values=tuple(PLANS)),
                Field("processing_seconds", "int64", "Since the filing.", 185,
                      (_APPROVED, _REJECTED), "seconds"),
                Field("reason", "string", "Why it was rejected.", "not_covered", (_REJECTED,),
                      values=tuple(CLAIM_REASONS)),
            ),
        ),
    )
}  # fmt: skip

_ASKED = (_REQUESTED, _STARTED, _ENDED)
_BROUGHT = (_CREATED, _CONFIRMED, _DISPATCHED, _DELIVERED)
_SETTLED = (_FILED, _APPROVED, _PAID)

LIFE_CYCLES: Final = (
    LifeCycle(6, (_REQUESTED, _ABANDONED)),
    LifeCycle(20, _ASKED),
    LifeCycle(2, (*_ASKED, *_SETTLED)),
    LifeCycle(14, (*_ASKED, _PRESCRIBED)),
    LifeCycle(14, (*_ASKED, _PRESCRIBED, *_BROUGHT)),
    LifeCycle(7, (*_ASKED, _PRESCRIBED, *_BROUGHT, *_SETTLED)),
    LifeCycle(1, (*_ASKED, _PRESCRIBED, *_BROUGHT, _FILED, _REJECTED)),
    LifeCycle(2, (*_ASKED, _PRESCRIBED, _CREATED, _ORDER_CANCELLED)),
    LifeCycle(17, _BROUGHT),
    LifeCycle(2, (_CREATED, _CONFIRMED, _ORDER_CANCELLED)),
    LifeCycle(7, (_BOOKED, _CHECKED_IN)),
    LifeCycle(2, (_BOOKED, _RESCHEDULED, _CHECKED_IN)),
    LifeCycle(2, (_BOOKED, _NO_SHOW)),
    LifeCycle(2, (_BOOKED, _CANCELLED)),
    LifeCycle(2, (_BOOKED, _CHECKED_IN, *_SETTLED)),
)

DOMAIN_OF: Final[Mapping[str, Domain]] = {
    event.type: domain for domain in DOMAINS.values() for event in domain.events
}
"""The domain that each event type belongs to."""


def fields_of(event_type: str) -> tuple[Field, ...]:
    """The fields of an event of that type, in the order in which they are written.

    >>> [f.name for f in fields_of("order.confirmed")][-2:]
    ['provider_id', 'event_time']
    >>> [f.name for f in fields_of("order.dispatched")][-2:]
    ['courier', 'distance_km']
    """
    own = DOMAIN_OF[event_type].fields
    return (*COMMON, *(field for field in own if event_type in field.events))


def example(event_type: str) -> dict[str, Value]:
    """An event of that type, made of its fields' examples.

    >>> example("claim.paid")["amount"]
    80000
    """
    event = {field.name: field.example for field in fields_of(event_type)}
    return event | {"event_type": event_type, "domain": DOMAIN_OF[event_type].name}


REGENERATE: Final = (
    'python -c "from velocity.pipelines.domains import data_dictionary; '
    "print(data_dictionary(), end='')\" > docs/data-dictionary.md"
)


def data_dictionary() -> str:
    """The data dictionary as the Markdown page ``docs/data-dictionary.md``.

    >>> data_dictionary().splitlines()[0]
    '# Data dictionary'
    """
    lines = [
        "# Data dictionary",
        "",
        "Generated from `pipelines/domains.py`. After a change there:",
        "",
        f"    {REGENERATE}",
        "",
        "Every event is a flat JSON object, published with its `transaction_id` as the key. It",
        "carries no city, no tier and no age group: these come from the enrichment.",
        "",
        "## Fields of every event",
        "",
        *_table(
            ("Field", "Type", "Meaning", "Unit", "Example"),
            (
                (f"`{f.name}`", f.type, f.meaning, f.unit, f"`{json.dumps(f.example)}`")
                for f in COMMON
            ),
        ),
    ]
    for domain in DOMAINS.values():
        lines += _section(domain)
    lines += ["", "## Life cycles", "", "The ways a transaction goes, and how many of 100 do.", ""]
    total = sum(cycle.weight for cycle in LIFE_CYCLES)
    lines += _table(
        ("Of 100", "Events"),
        (
            (f"{100 * c.weight / total:.0f}", " → ".join(f"`{e}`" for e in c.events))
            for c in LIFE_CYCLES
        ),
    )
    return "\n".join(lines) + "\n"


def _section(domain: Domain) -> list[str]:
    events = ((f"`{e.type}`", e.meaning, _delay(e)) for e in domain.events)
    fields = (
        (
            f"`{f.name}`",
            f.type,
            f.meaning + (f" One of {', '.join(f'`{v}`' for v in f.values)}." if f.values else ""),
            f.unit,
            f"`{json.dumps(f.example)}`",
            ", ".join(f"`{e}`" for e in f.events),
        )
        for f in domain.fields
    )
    return [
        "",
        f"## {domain.name}",
        "",
        f"{domain.meaning} Topic `{domain.topic}`; `provider_id` names the {domain.provider}.",
        "",
        *_table(("Event", "Meaning", "After the event before it"), events),
        "",
        *_table(("Field", "Type", "Meaning", "Unit", "Example", "Carried by"), fields),
        "",
        "```json",
        json.dumps(example(domain.events[0].type), indent=2),
        "```",
    ]


def _delay(event: Event) -> str:
    if not event.longest:
        return "first of its transaction"
    return f"about {event.median:g} s, at most {event.longest:g} s"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
