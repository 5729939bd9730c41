"""The alias of a job moved to indices that a replay has filled, all at once, and back."""

from typing import NamedTuple

from elasticsearch import Elasticsearch

from velocity.io.elastic_index import IndexPattern
from velocity.io.elastic_setup import Setup, SetupError, indices_of, told


class Swap(NamedTuple):
    """What an alias reads now, and what no longer."""

    alias: str
    added: list[str]
    removed: list[str]


def swap(client: Elasticsearch, setup: Setup, prefix: str) -> Swap:
    """Has the job's alias read the indices that begin with ``prefix``, in one step for readers.

    Each takes the place of the index named as it is without the prefix. Other indices of the alias
    stay: a replay of January leaves February as it is. A second swap changes nothing.

    Raises ``SetupError`` if the job has no alias, or nothing is there to swap in.
    """
    alias, old, new = _state(client, setup, prefix)
    with told():
        client.indices.refresh(index=sorted(new))  # what was written last is seen too
    added = sorted(name for name, reads in new.items() if not reads)
    replaced = {name.removeprefix(prefix) for name in new}
    removed = sorted(name for name in replaced & old.keys() if old[name])
    return _moved(client, Swap(alias, added, removed))


def rollback(client: Elasticsearch, setup: Setup, prefix: str) -> Swap:
    """Takes a swap back: the alias reads again what it read before.

    Raises ``SetupError`` if nothing is left that it read: readers would find nothing.
    """
    alias, old, new = _state(client, setup, prefix)
    removed = sorted(name for name, reads in new.items() if reads)
    before = {name.removeprefix(prefix) for name in removed}
    if before and not before & old.keys():
        raise SetupError(
            f"{alias} can't go back from {prefix}: {', '.join(sorted(before))} is there no more"
        )
    added = sorted(name for name in before & old.keys() if not old[name])
    return _moved(client, Swap(alias, added, removed))


def _state(
    client: Elasticsearch, setup: Setup, prefix: str
) -> tuple[str, dict[str, bool], dict[str, bool]]:
    """The alias, the indices with and without the prefix, and whether the alias reads each."""
    alias, pattern = setup.alias, setup.pattern
    if alias is None:
        raise SetupError("sinks.elasticsearch.alias: this job has none that could be swapped")
    if not prefix:
        raise SetupError("the prefix is empty: give that of `velocity setup JOB --into PREFIX`")
    with told():
        reads: set[str] = set()
        if client.indices.exists_alias(name=alias):
            reads = set(client.indices.get_alias(name=alias))
        metrics = [metric for template in setup.indices.values() for metric in template.metrics]
        old, new = (
            {
                found.stream or index: (found.stream or index) in reads
                for index, found in indices_of(client, names, setup.job, metrics).items()
            }
            for names in (pattern, IndexPattern(prefix + pattern.pattern))
        )
    if not new:
        raise SetupError(f"no index of {setup.job} begins with {prefix}: replay into it first")
    return alias, old, new


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
