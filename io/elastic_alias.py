"""The alias of a job moved to indices that a replay has filled, all at once, and back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from elasticsearch import Elasticsearch

from velocity.io.elastic_index import IndexPattern
from velocity.io.elastic_setup import Setup, SetupError, indices_of, stream_of, told

_SWAPPED: Final = "velocity_swapped"
"""In the ``_meta`` of an index that was swapped in: whose place it has, and what it replaced there,
which after a second correction is the first one."""


class Swap(NamedTuple):
    """What an alias reads now, and what no longer."""

    alias: str
    added: list[str]
    removed: list[str]


def swap(client: Elasticsearch, setup: Setup, prefix: str) -> Swap:
    """Has the job's alias read the indices that begin with ``prefix``, in one step for readers.

    Each takes the place of the index named as it is without the prefix, or of the one that has that
    place by an earlier swap. Other indices of the alias stay: a replay of January leaves February as
    it is. A second swap changes nothing.

    Raises ``SetupError`` if the job has no alias, or nothing is there to swap in.
    """
    state = _look(client, setup, prefix)
    added = sorted(state.new - state.read.keys())
    removed = []
    with told():
        client.indices.refresh(index=sorted(state.new))  # what was written last is seen too
        for name in added:
            place = name.removeprefix(prefix)
            before = sorted(other for other, of in state.read.items() if of.place == place)
            _remember(client, name, _Swapped(place, before))
            removed += before
    return _moved(client, Swap(state.alias, added, sorted(removed)))


def rollback(client: Elasticsearch, setup: Setup, prefix: str) -> Swap:
    """Takes a swap back: the alias reads again what it read before.

    Raises ``SetupError`` and changes nothing if any of that is there no more: readers would miss it.
    """
    state = _look(client, setup, prefix)
    removed = sorted(state.new & state.read.keys())
    before = sorted({name for index in removed for name in state.read[index].replaced})
    with told():
        gone = [name for name in before if not client.indices.exists(index=name)]
    if gone:
        raise SetupError(
            f"{state.alias} can't go back from {prefix}: {', '.join(gone)} is there no more, and "
            f"readers would miss it: restore it from a snapshot, or leave {state.alias} as it is"
        )
    added = [name for name in before if name not in state.read]
    return _moved(client, Swap(state.alias, added, removed))


class _Swapped(NamedTuple):
    place: str
    replaced: list[str]


@dataclass(frozen=True)
class _State:
    alias: str
    new: set[str]
    """What begins with the prefix."""
    read: Mapping[str, _Swapped]
    """What the alias reads."""


def _look(client: Elasticsearch, setup: Setup, prefix: str) -> _State:
    alias, pattern = setup.alias, IndexPattern(prefix + setup.pattern.pattern)
    if alias is None:
        raise SetupError("sinks.elasticsearch.alias: this job has none that could be swapped")
    if not prefix:
        raise SetupError("the prefix is empty: give that of `velocity setup JOB --into PREFIX`")
    metrics = [metric for template in setup.indices.values() for metric in template.metrics]
    with told():
        found = indices_of(client, pattern, setup.job, metrics)
        read = dict(_read(client, alias)) if client.indices.exists_alias(name=alias) else {}
    if not found:
        raise SetupError(f"no index of {setup.job} begins with {prefix}: replay into it first")
    return _State(alias, {each.stream or name for name, each in found.items()}, read)


def _read(client: Elasticsearch, alias: str) -> Iterable[tuple[str, _Swapped]]:
    for index, found in client.indices.get_mapping(index=alias).items():
        name = stream_of(index) or index
        swapped: Any = found["mappings"].get("_meta", {}).get(_SWAPPED)
        yield name, _Swapped(**swapped) if swapped else _Swapped(name, [])


def _remember(client: Elasticsearch, name: str, swapped: _Swapped) -> None:
    """Of a data stream each index behind it does."""
    for index, found in client.indices.get_mapping(index=name).items():
        meta = {**found["mappings"].get("_meta", {}), _SWAPPED: swapped._asdict()}
        client.indices.put_mapping(index=index, meta=meta)


def _moved(client: Elasticsearch, wanted: Swap) -> Swap:
    """Elasticsearch carries out all actions of one call together, or none."""
    actions = [
        {kind: {"index": name, "alias": wanted.alias}}
        for kind, names in (("add", wanted.added), ("remove", wanted.removed))
        for name in names
    ]
    if actions:
        with told():
            client.indices.update_aliases(actions=actions)
    return wanted
