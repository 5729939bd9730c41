"""Laws of the data dictionary."""

from datetime import datetime
from pathlib import Path

import pytest

from velocity.pipelines.domains import (
    COMMON,
    DOMAIN_OF,
    DOMAINS,
    LIFE_CYCLES,
    REGENERATE,
    Field,
    data_dictionary,
    example,
    fields_of,
)

PAGE = Path(__file__).parent.parent / "docs" / "data-dictionary.md"
PYTHON_TYPES = {"string": str, "timestamp": str, "int64": int, "double": float, "bool": bool}
ALL_FIELDS = [*COMMON, *(field for domain in DOMAINS.values() for field in domain.fields)]


def test_the_page_says_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == data_dictionary(), f"regenerate it: {REGENERATE}"


def test_the_page_says_how_to_make_it_anew() -> None:
    assert REGENERATE in data_dictionary()


def test_the_four_domains_have_the_topics_that_jobs_read() -> None:
    assert {domain.name: domain.topic for domain in DOMAINS.values()} == {
        "pharmacy_delivery": "pharmacy.events",
        "tele_consultation": "teleconsultation.events",
        "appointment": "appointment.events",
        "insurance": "insurance.events",
    }


@pytest.mark.parametrize("field", ALL_FIELDS, ids=lambda field: field.name)
def test_an_example_has_its_fields_type(field: Field) -> None:
    assert type(field.example) is PYTHON_TYPES[field.type]
    if field.type == "timestamp":
        assert datetime.fromisoformat(str(field.example)).tzinfo is not None
    if field.values:
        assert field.example in field.values


def test_an_event_type_belongs_to_one_domain() -> None:
    assert len(DOMAIN_OF) == sum(len(domain.events) for domain in DOMAINS.values())


def test_a_field_is_carried_by_events_of_its_own_domain() -> None:
    for domain in DOMAINS.values():
        for field in domain.fields:
            assert field.events
            assert {DOMAIN_OF[event].name for event in field.events} == {domain.name}


def test_an_event_has_no_two_fields_of_one_name() -> None:
    for event in DOMAIN_OF:
        names = [field.name for field in fields_of(event)]
        assert len(names) == len(set(names))


def test_a_name_has_one_type_in_all_domains() -> None:
    """Jobs that read several topics declare a field once."""
    types: dict[str, str] = {}
    for field in ALL_FIELDS:
        assert types.setdefault(field.name, field.type) == field.type


def test_what_enrichment_adds_is_in_no_event() -> None:
    assert {"city", "tier", "age_group", "insured"}.isdisjoint(field.name for field in ALL_FIELDS)


def test_every_event_type_happens_in_some_life_cycle() -> None:
    assert {event for cycle in LIFE_CYCLES for event in cycle.events} == set(DOMAIN_OF)


def test_an_example_event_is_one_of_its_type() -> None:
    for event in DOMAIN_OF:
        assert list(example(event)) == [field.name for field in fields_of(event)]
        assert example(event)["event_type"] == event
        assert example(event)["domain"] == DOMAIN_OF[event].name
