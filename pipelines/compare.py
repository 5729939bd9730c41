"""What a replay would change: its documents beside those that a store has."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

_SAID: Final = ("window_end", "dimensions", "events")
Verdict = Literal["new", "changed", "same", "stale", "conflict"]


@dataclass(frozen=True, slots=True)
class Change:
    """A document that a replay makes, and what it would do to the one of its id.

    ``new``: there is none. ``changed``: it has a lesser version, and is overwritten. ``same``: it
    says the same. ``stale``: it has a greater version, and stays. ``conflict``: it has the same
    version and says something else, so it stays: a correction needs a greater ``generation``.
    """

    id: str
    verdict: Verdict
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        marks = {"new": "+", "changed": "~", "same": "=", "stale": "<", "conflict": "!"}
        return f"{marks[self.verdict]} {self.id}{': ' if self.differences else ''}" + ", ".join(
            self.differences
        )


def changes(
    made: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Mapping[str, Any]]
) -> Iterator[Change]:
    """Of each document a replay made what it would change; both with their ``version``.

    >>> made = {"a": {"version": 5, "events": 2, "values": {"n": 2}}}
    >>> stored = {"a": {"version": 3, "events": 1, "values": {"n": 1}}}
    >>> [str(change) for change in changes(made, stored)]
    ['~ a: events 1 → 2, n 1 → 2']
    """
    for id_, body in made.items():
        if id_ not in stored:
            yield Change(id_, "new", (f"events {body['events']}",))
            continue
        before = stored[id_]
        differences = tuple(_differences(before, body))
        if before["version"] > body["version"]:
            yield Change(id_, "stale", differences)
        elif not differences:
            yield Change(id_, "same")
        elif before["version"] == body["version"]:
            yield Change(id_, "conflict", differences)
        else:
            yield Change(id_, "changed", differences)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in _SAID:
        if before.get(name) != after.get(name):
            yield f"{name} {before.get(name)} → {after.get(name)}"
    values, others = before.get("values", {}), after.get("values", {})
    for name in sorted(values.keys() | others.keys()):
        if values.get(name) != others.get(name):
            yield f"{name} {values.get(name)} → {others.get(name)}"
