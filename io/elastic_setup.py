"""Templates, policy, mappings and alias brought to a server: what is missing is added, no more."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from elasticsearch import ApiError, Elasticsearch, TransportError, UnsupportedProductError

from velocity.io.elastic_answers import error_in
from velocity.io.elastic_connection import not_reached
from velocity.io.elastic_index import IndexPattern

Template = Mapping[str, Any]
"""The body of a component or index template, as the server's REST interface has it."""


class Policy(NamedTuple):
    """A policy of index lifecycle management."""

    name: str
    body: Mapping[str, Any] | None
    """None: it is someone else's, and must be there."""


class IndexTemplate(NamedTuple):
    """A template for the indices of some metrics."""

    metrics: Sequence[str]
    mapping: Mapping[str, Any]
    """As one of its components has it."""
    body: Template


@dataclass(frozen=True)
class Setup:
    """What a job's indices need: components and index templates by name, and what goes with them."""

    job: str
    pattern: IndexPattern
    components: Mapping[str, Template]
    indices: Mapping[str, IndexTemplate]
    custom: str
    """A component that is the user's own: what it says goes before what we say."""
    alias: str | None
    policy: Policy | None
    data_stream: bool = False


class Change(NamedTuple):
    """What was done about one thing; ``state`` is unchanged, created, changed or a note."""

    state: str
    what: str
    name: str
    about: str = ""

    def __str__(self) -> str:
        return f"{self.state:9}  {self.what} {self.name}" + (self.about and f": {self.about}")


class SetupError(RuntimeError):
    """A server that can't be set up as it is: why, and the remedy."""


def apply(client: Elasticsearch, setup: Setup) -> Iterator[Change]:
    """Brings all of it to the server; the second time nothing changes.

    Beside a running job it does no harm: templates rule indices that are yet to be made, to those
    that are there only fields are added, and nothing is taken away.

    Raises ``SetupError`` before anything is changed if an index that is there has another mapping,
    and if the server is not reached or refuses.
    """
    with told():
        if setup.alias:
            _check_free(client, setup.alias)
        found: dict[str, Found] = {}
        lacking: dict[str, Mapping[str, Any]] = {}
        wrong: list[str] = []
        custom = _there(client.cluster.get_component_template, setup.custom, "component_template")
        for template in setup.indices.values():
            mapping = _overlaid(
                template.mapping, (custom or {}).get("template", {}).get("mappings")
            )
            there = indices_of(client, setup.pattern, setup.job, template.metrics)
            found |= there
            for index, each in there.items():
                differing, lacks = _compared(index, each, mapping, setup.data_stream)
                wrong += differing
                if lacks:
                    lacking[index] = mapping
        if wrong:
            raise SetupError(_UNFIT.format("\n  ".join(sorted(wrong))))
        without_ilm = False
        if setup.policy:
            change = _policy(client, setup.policy)
            without_ilm = change.state == "note"
            yield change
        for name, body in setup.components.items():
            body = _without_lifecycle(body) if without_ilm else body
            before = _there(client.cluster.get_component_template, name, "component_template")
            state = _state(before, body)
            if state != "unchanged":
                client.cluster.put_component_template(
                    name=name, template=body["template"], meta=body["_meta"]
                )
            yield Change(state, "component template", name)
        for name, (_, _, body) in setup.indices.items():
            before = _there(client.indices.get_index_template, name, "index_template")
            state = _state(before, body)
            if state != "unchanged":
                arguments = {"meta" if k == "_meta" else k: v for k, v in body.items()}
                client.indices.put_index_template(name=name, **arguments)
            yield Change(state, "index template", name)
        for index in sorted(found):
            if index in lacking:
                client.indices.put_mapping(index=index, **lacking[index])
                yield Change("changed", "index", index, "fields added")
            else:
                yield Change("unchanged", "index", index)
        if setup.alias:
            yield from _alias(client, setup.alias, sorted(found), setup.data_stream)


@contextmanager
def told() -> Iterator[None]:
    """Errors of client and server as ``SetupError``, with the remedy."""
    try:
        yield
    except UnsupportedProductError as error:
        raise SetupError(
            f"sinks.elasticsearch: this is no Elasticsearch: {error.message}"
        ) from error
    except ApiError as error:
        status, text = error.meta.status, error_in(error.body)
        raise SetupError(f"HTTP {status}: {text}{_remedy(status, text)}") from error
    except TransportError as error:
        raise SetupError(f"sinks.elasticsearch: {not_reached(error)}") from error


def _remedy(status: int, text: str) -> str:
    if status == 401:
        return "; check api_key, or username and password, of sinks.elasticsearch"
    if status == 403:
        return (
            "; the user needs the cluster privileges manage_index_templates and manage_ilm, and "
            "manage on the job's indices and alias. Or another runs `velocity setup JOB`, and the "
            "job has sinks.elasticsearch.setup: by_command"
        )
    if "media_type_header" in text:
        return "; for a server of version 8: pip install 'elasticsearch<9'"
    if "has index patterns" in text:
        return (
            "; another job, or someone else, has a template for the same names: begin "
            "sinks.elasticsearch.index in another way"
        )
    return ""


# -- what is there --------------------------------------------------------------------------------


class Found(NamedTuple):
    """An index, or the data stream that holds it."""

    mapping: Mapping[str, Any]
    stream: str | None


_BACKING: Final = re.compile(r"\.ds-(.+)-\d{4}\.\d{2}\.\d{2}-\d{6}")


def indices_of(
    client: Elasticsearch, pattern: IndexPattern, job: str, metrics: Sequence[str]
) -> dict[str, Found]:
    """The job's indices that are there, with those behind its data streams."""
    answer = client.indices.get_mapping(
        index=pattern.wildcard(job),
        expand_wildcards=["open", "closed", "hidden"],
        ignore_unavailable=True,
        allow_no_indices=True,
    )
    found = {}
    for index, body in answer.items():
        stream = stream_of(index)
        if pattern.makes(stream or index, job, metrics):
            found[index] = Found(body["mappings"], stream)
    return found


def stream_of(index: str) -> str | None:
    """The data stream that an index stands behind, if it does.

    >>> stream_of(".ds-orders-2026.01.05-000001"), stream_of("orders-2026.01")
    ('orders', None)
    """
    backing = _BACKING.fullmatch(index)
    return backing[1] if backing else None


_UNFIT: Final = """\
indices that are there don't fit the job:
  {}
Write to others, by another sinks.elasticsearch.index or by `velocity setup JOB --into PREFIX` and \
a replay; or give what has changed a new name; or, if nobody needs them, delete these indices."""


def _compared(
    index: str, found: Found, wanted: Mapping[str, Any], data_stream: bool
) -> tuple[list[str], bool]:
    """What differs in an index, and whether it lacks anything."""
    if data_stream is not (found.stream is not None):
        other = f"data stream {found.stream}" if found.stream else f"index {index}"
        return [
            f"{other} is there, and data_stream is {str(data_stream).lower()} in the job"
        ], False
    wrong = []
    lacks = str(found.mapping.get("dynamic", "true")) != wanted["dynamic"]
    for path, want, have in _fields(wanted, found.mapping):
        if have is None:
            lacks = True
        elif _type(have) != _type(want):
            wrong.append(f"{index}: {path} is {_type(have)} there, and {_type(want)} in the job")
    return wrong, lacks


def _overlaid(mapping: Mapping[str, Any], custom: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A mapping with what the user's own component says of its fields."""
    if not custom:
        return mapping
    properties = dict(mapping.get("properties", {}))
    for name, field in custom.get("properties", {}).items():
        ours = properties.get(name, {})
        nested = "properties" in field and "properties" in ours
        properties[name] = {"type": "object", **_overlaid(ours, field)} if nested else field
    others = {name: value for name, value in custom.items() if name != "properties"}
    return {**mapping, **others, "properties": properties}


def _fields(
    wanted: Mapping[str, Any], there: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any] | None]]:
    """Each wanted field with its own mapping and the one that is there."""
    for name, want in wanted.get("properties", {}).items():
        have = there.get("properties", {}).get(name)
        yield f"{path}{name}", want, have
        if have is not None:
            yield from _fields(want, have, f"{path}{name}.")


def _type(field: Mapping[str, Any]) -> str:
    kind = str(field.get("type", "object"))
    return (
        f"{kind} (enabled: false)" if str(field.get("enabled", "true")).lower() == "false" else kind
    )


# -- what is wanted -------------------------------------------------------------------------------


def _there(get: Any, name: str, key: str) -> Any:
    """A template's body, None if it is not there."""
    try:
        answer = get(name=name)
    except ApiError as error:
        if error.meta.status == 404:
            return None
        raise
    return answer[f"{key}s"][0][key]


_ADDED: Final = re.compile(
    r"(created|modified)_date.*|data_stream\.(hidden|allow_custom_routing)|.*lifecycle\.enabled"
)
"""What the server gives back of a template beside what it was given."""


def _state(there: Any, wanted: Template) -> str:
    if there is None:
        return "created"
    same = ("data_stream" in there, _plain(there)) == ("data_stream" in wanted, _plain(wanted))
    return "unchanged" if same else "changed"


def _plain(body: Any, path: str = "") -> dict[str, str]:
    """Leaves by path, as the server gives them back: settings are text.

    >>> _plain({"template": {"settings": {"index": {"codec": "best", "shards": 2}}}})
    {'template.settings.index.codec': 'best', 'template.settings.index.shards': '2'}
    """
    if not isinstance(body, Mapping):
        text = str(body).lower() if isinstance(body, bool) else str(body)
        return {} if _ADDED.fullmatch(path) else {path: text}
    leaves: dict[str, str] = {}
    for name, value in body.items():
        leaves |= _plain(value, f"{path}.{name}" if path else name)
    return leaves


def _policy(client: Elasticsearch, policy: Policy) -> Change:
    what = "lifecycle policy"
    try:
        there = client.ilm.get_lifecycle(name=policy.name).body.get(policy.name)
    except ApiError as error:
        if error.meta.status in (400, 405, 410):  # as a server answers that has not this interface
            return Change(
                "note",
                what,
                policy.name,
                "this server has no lifecycle management, so it deletes no index by itself: delete "
                "old ones by `DELETE /INDEX` as they come of age",
            )
        if error.meta.status != 404:
            raise
        there = None
    if policy.body is None:
        if there is None:
            raise SetupError(
                f"sinks.elasticsearch.ilm_policy: the server has no policy {policy.name}; make it "
                "first, or give retention instead"
            )
        return Change("unchanged", what, policy.name)
    # The server adds defaults of its own to the phases; the note on our policies says which it is.
    if there is not None and there["policy"].get("_meta") == policy.body["_meta"]:
        return Change("unchanged", what, policy.name)
    client.ilm.put_lifecycle(name=policy.name, policy=policy.body)
    return Change("created" if there is None else "changed", what, policy.name)


def _without_lifecycle(body: Template) -> Template:
    template = dict(body["template"])
    if "settings" in template:
        settings = template["settings"]["index"]
        kept = {name: value for name, value in settings.items() if name != "lifecycle.name"}
        template["settings"] = {"index": kept}
    return {**body, "template": template}


def _check_free(client: Elasticsearch, alias: str) -> None:
    if client.indices.exists(index=alias) and not client.indices.exists_alias(name=alias):
        raise SetupError(
            f"sinks.elasticsearch.alias: {alias} is the name of an index; give another, or null"
        )


def _alias(
    client: Elasticsearch, alias: str, found: Sequence[str], data_stream: bool
) -> Iterator[Change]:
    """The template gives the alias to what is made later; here it goes to what is there.

    Only if nobody bears it yet: what lacks it later was taken out of it, by a swap for one.
    """
    if client.indices.exists_alias(name=alias):
        yield Change("unchanged", "alias", alias)
        return
    if not found:
        yield Change("created", "alias", alias, "by the first index")
        return
    names = sorted({_BACKING.sub(r"\1", index) for index in found}) if data_stream else found
    client.indices.update_aliases(
        actions=[{"add": {"index": name, "alias": alias}} for name in names]
    )
    yield Change("created", "alias", alias, f"of {', '.join(names)}")
