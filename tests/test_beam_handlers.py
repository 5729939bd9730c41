"""Beam's enrichment handlers as lookups."""

from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms.enrichment import EnrichmentSourceHandler

from tests.rest_service import by_key, whole
from velocity.io.beam_handlers import BeamLookup
from velocity.io.lookup_cache import Cache


class Cities(EnrichmentSourceHandler):
    """Knows cities by their id, as Beam's own handlers do."""

    entered = 0
    asked: list[str] = []  # noqa: RUF012

    def __enter__(self) -> None:
        type(self).entered += 1

    def __exit__(self, *exc: object) -> None: ...

    def __call__(self, request: beam.Row, *args: Any, **kwargs: Any) -> Any:
        type(self).asked.append(request.id)
        if request.id == "down":
            raise RuntimeError("patient-1 is not to be told")
        known = {"a": {"city": "Bandung"}, "b": {"city": "Medan"}}
        return request, beam.Row(**known.get(request.id, {}))


def plain() -> Any:
    class Plain:
        def __enter__(self) -> None: ...
        def __exit__(self, *exc: object) -> None: ...
        def __call__(self, request: beam.Row) -> Any:
            return {"both": f"{request.shop} {request.item}"}

    return Plain()


def test_a_handler_is_asked_for_each_key_once_and_its_rows_are_answers() -> None:
    lookup = BeamLookup("tests.test_beam_handlers:Cities", ("id",), concurrency=1)
    keys = ["a", "b", "z", "down"]
    answers = by_key(keys, lookup.begin(keys, whole)())
    assert answers.found == {"a": {"city": "Bandung"}, "b": {"city": "Medan"}}
    assert answers.missing == {"z"}
    assert answers.failed == {"down": "tests.test_beam_handlers:Cities: RuntimeError"}
    assert answers.counts["handler_calls"] == 4
    again = by_key(keys, lookup.begin(keys, whole)())
    assert again[:3] == answers[:3]
    assert sorted(Cities.asked) == ["a", "b", "down", "down", "z"]
    assert Cities.entered == 1


def test_a_key_of_several_columns_is_a_row_of_them_and_a_mapping_is_an_answer_too() -> None:
    lookup = BeamLookup("tests.test_beam_handlers:plain", ("shop", "item"))
    answers = by_key(["s\x1fi"], lookup.begin(["s\x1fi"], whole)())
    assert answers.found == {"s\x1fi": {"both": "s i"}}


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        ("nosuch:Handler", {}, "beam: 'nosuch' can't be imported"),
        ("json:__name__", {}, "beam: json:__name__ can't be called"),
        ("json:loads", {"concurrency": 0}, "concurrency: give 1 or more"),
        ("json:loads", {"cache": Cache(redis="redis://h")}, "cache.redis: not for handlers"),
    ],
)
def test_a_wrong_handler_is_refused_with_its_key(make: str, options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BeamLookup(make, ("id",), **options)
