"""The alias of a job moved to indices that a replay has filled, all at once, and back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from elasticsearch import Elasticsearch

from velocity.io.elastic_index import IndexPattern
from velocity.io.elastic_setup import Setup, SetupError, indices_of, stream_of, told

Query = Mapping[str, Any]
"""Of Elasticsearch's query language."""

_REPLAYED: Final = "velocity_replayed"
"""In the ``_meta`` of an index: queries for what replays were to write into it."""
_SWAPPED: Final = "velocity_swapped"
"""In the ``_meta`` of an index that was swapped in: whose place it has, and what it replaced there,
which after a second correction is the first one."""


class Swap(NamedTuple):
    """What an alias reads now, and what no longer."""

    alias: str
    added: list[str]
    removed: list[str]
    narrowed: list[str]
    """Of these still what no replay was to write anew."""

    def lines(self) -> Iterator[str]:
        """For people: ``+`` is read now, ``~`` in part, ``-`` no longer."""
        for sign, names in (("+", self.added), ("~", self.narrowed), ("-", self.removed)):
            yield from (f"{self.alias} {sign} {name}" for name in names)


def reaching_into(
    start: int, stop: int, until: int, stops: Mapping[str, int] | None = None
) -> Query:
    """The documents of windows that reach into ``start`` to ``stop``, and are over at ``until``.

    Epoch milliseconds. ``stops`` are those of metrics that have their own.

    >>> reaching_into(0, 5, 7)["bool"]["filter"][0]["range"]["window_start"]["lt"]
    5
    >>> any_other, alerts = reaching_into(0, 5, 7, {"alerts": 3})["bool"]["should"]
    >>> alerts["bool"]["filter"][-1]
    {'term': {'metric': 'alerts'}}
    """
    form = {"format": "epoch_millis"}

    def before(end: int) -> list[Query]:
        return [
            {"range": {"window_start": {"lt": end, **form}}},
            {"range": {"window_end": {"gt": start, "lte": until, **form}}},
        ]

    if not stops:
        return {"bool": {"filter": before(stop)}}
    others = {"bool": {"filter": before(stop), "must_not": [{"terms": {"metric": list(stops)}}]}}
    own = [
        {"bool": {"filter": [*before(end), {"term": {"metric": metric}}]}}
        for metric, end in stops.items()
    ]
    return {"bool": {"should": [others, *own]}}


def replayed(client: Elasticsearch, setup: Setup, prefix: str, documents: Query) -> None:
    """Remembers, in the indices that begin with ``prefix``, which documents a replay was to write.

    A swap hides these of the indices before, and no others.
    """
    with told():
        for name in indices_of(client, _pattern(setup, prefix), setup.job, _metrics(setup)):
            meta = _meta(client, name)
            if documents not in meta.get(_REPLAYED, []):
                again = {**meta, _REPLAYED: [*meta.get(_REPLAYED, []), documents]}
                client.indices.put_mapping(index=name, meta=again)


def swap(client: Elasticsearch, setup: Setup, prefix: str) -> Swap:
    """Has the job's alias read the indices that begin with ``prefix``, in one step for readers.

    Each takes the place of the index named as it is without the prefix, or of the one that has that
    place by an earlier swap: of these the alias reads no more what replays were to write anew
    (``replayed``), and the rest as before. Where no replay has said that, it reads nothing of them.
    Other indices of the alias stay: a replay of January leaves February as it is. A second swap
    changes nothing.

    Raises ``SetupError`` if the job has no alias, or nothing is there to swap in.
    """
    state = _look(client, setup, prefix)
    read = dict(state.read)
    with told():
        client.indices.refresh(index=sorted(state.new))  # what was written last is seen too
        for name in sorted(state.new - state.read.keys()):
            place = name.removeprefix(prefix)
            before = sorted(other for other, of in state.read.items() if of.place == place)
            read[name] = _remember(client, name, place, before)
            _forget(client, name, read)  # it was below them once, and is above them now
    return _moved(client, state, read)


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
        read = {name: of for name, of in state.read.items() if name not in removed}
        for name in removed:
            _forget(client, name, read)
        for name in before:
            read.setdefault(name, _swapped(name, _meta(client, name)))
    return _moved(client, state, read)


class _Swapped(NamedTuple):
    place: str
    replaced: Sequence[str]
    written: Sequence[Query]
    """What replays were to write into it; nothing where it is not known."""


@dataclass(frozen=True)
class _State:
    alias: str
    new: set[str]
    """What begins with the prefix."""
    read: Mapping[str, _Swapped]
    """What the alias reads."""
    filters: Mapping[str, Query | None]
    """And how much of it."""


def _pattern(setup: Setup, prefix: str) -> IndexPattern:
    return IndexPattern(prefix + setup.pattern.pattern)


def _metrics(setup: Setup) -> list[str]:
    return [metric for template in setup.indices.values() for metric in template.metrics]


def _look(client: Elasticsearch, setup: Setup, prefix: str) -> _State:
    alias = setup.alias
    if alias is None:
        raise SetupError("sinks.elasticsearch.alias: this job has none that could be swapped")
    if not prefix:
        raise SetupError("the prefix is empty: give that of `velocity setup JOB --into PREFIX`")
    with told():
        found = indices_of(client, _pattern(setup, prefix), setup.job, _metrics(setup))
        there = client.indices.exists_alias(name=alias)
        read = dict(_read(client, alias)) if there else {}
        filters = dict(_filters(client, alias)) if there else {}
    if not found:
        raise SetupError(f"no index of {setup.job} begins with {prefix}: replay into it first")
    return _State(alias, {each.stream or name for name, each in found.items()}, read, filters)


def _read(client: Elasticsearch, alias: str) -> Iterable[tuple[str, _Swapped]]:
    for index, found in client.indices.get_mapping(index=alias).items():
        name = stream_of(index) or index
        yield name, _swapped(name, found["mappings"].get("_meta", {}))


def _filters(client: Elasticsearch, alias: str) -> Iterable[tuple[str, Query | None]]:
    for index, found in client.indices.get_alias(name=alias).items():
        yield stream_of(index) or index, found["aliases"][alias].get("filter")


def _meta(client: Elasticsearch, name: str) -> dict[str, Any]:
    """Of a data stream that of the newest index behind it."""
    found = client.indices.get_mapping(index=name)
    meta: dict[str, Any] = found[max(found)]["mappings"].get("_meta", {})
    return meta


def _swapped(name: str, meta: Mapping[str, Any]) -> _Swapped:
    was = meta.get(_SWAPPED, {"place": name, "replaced": []})
    return _Swapped(was["place"], was["replaced"], meta.get(_REPLAYED, []))


def _remember(client: Elasticsearch, name: str, place: str, replaced: Sequence[str]) -> _Swapped:
    """Of a data stream each index behind it does."""
    swapped = {"place": place, "replaced": list(replaced)}
    for index, found in client.indices.get_mapping(index=name).items():
        meta = {**found["mappings"].get("_meta", {}), _SWAPPED: swapped}
        client.indices.put_mapping(index=index, meta=meta)
    return _swapped(name, _meta(client, name))


def _forget(client: Elasticsearch, name: str, read: dict[str, _Swapped]) -> None:
    """Has those that replaced an index do so no more."""
    for other, of in list(read.items()):
        if name in of.replaced:
            left = [below for below in of.replaced if below != name]
            read[other] = _remember(client, other, of.place, left)


def _layers(read: Mapping[str, _Swapped]) -> dict[str, Query | None]:
    """What an alias reads of each index, of those that have one place and replaced one another.

    >>> first, second = {"term": {"n": 1}}, {"term": {"n": 2}}
    >>> _layers({
    ...     "jan": _Swapped("jan", [], []),
    ...     "a-jan": _Swapped("jan", ["jan"], [first]),
    ...     "b-jan": _Swapped("jan", ["a-jan", "jan"], [second]),
    ... })["a-jan"]
    {'bool': {'must_not': [{'term': {'n': 2}}]}}
    >>> _layers({"feb": _Swapped("feb", [], []), "a-feb": _Swapped("feb", ["feb"], [])})
    {'a-feb': None}
    """
    layers: dict[str, Query | None] = {}
    for name in read:
        # In one order, for the filter is held against the one that is there.
        above = [of.written for _, of in sorted(read.items()) if name in of.replaced]
        hidden = [query for written in above for query in written]
        if all(above):
            layers[name] = {"bool": {"must_not": hidden}} if hidden else None
    return layers


def _moved(client: Elasticsearch, state: _State, read: Mapping[str, _Swapped]) -> Swap:
    """Elasticsearch carries out all actions of one call together, or none."""
    layers = _layers(read)
    removed = sorted(state.read.keys() - layers.keys())
    changed = [
        name
        for name in sorted(layers)
        if name not in state.read or layers[name] != state.filters.get(name)
    ]
    actions: list[Mapping[str, Any]] = [
        {"remove": {"index": name, "alias": state.alias}} for name in removed
    ]
    for name in changed:
        if state.filters.get(name) and not layers[name]:  # a data stream's would stay
            actions.append({"remove": {"index": name, "alias": state.alias}})
        filtered = {"filter": layers[name]} if layers[name] else {}
        actions.append({"add": {"index": name, "alias": state.alias, **filtered}})
    if actions:
        with told():
            client.indices.update_aliases(actions=actions)
    narrowed = [name for name in changed if layers[name]]
    added = [name for name in changed if name not in narrowed]
    return Swap(state.alias, added, removed, narrowed)
