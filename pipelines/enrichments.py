"""The enrichments of a job: which wait for which, and what each one asks."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from velocity.io.beam_handlers import BeamLookup
from velocity.io.lookup import Answers, Keep, Lookup
from velocity.io.lookup_cache import Cache
from velocity.io.rest import RestLookup, Retries, Timeouts
from velocity.io.rest_breaker import Breaking
from velocity.io.rest_calls import Template
from velocity.io.rest_tokens import Token
from velocity.pipelines.job import EnrichmentSpec, TokenSpec
from velocity.transforms.answers import Added
from velocity.transforms.enrich import Enrichment

Text = Callable[..., str]
"""Of a text and its place in the job, with the environment's values in place of ``${NAME}``."""


def levels(specs: Sequence[EnrichmentSpec]) -> list[list[int]]:
    """The enrichments by their numbers: those of one level are looked up at once, after the last's.

    An enrichment waits for those before it that add a column of its key.

    >>> def spec(name, key, column):
    ...     return EnrichmentSpec(name=name, get="http://h/{keys}", key=key, id="i", add={column: "c"})
    >>> levels([spec("shop", "shop_id", "area_id"), spec("area", "area_id", "x"), spec("p", "p", "y")])
    [[0, 2], [1]]
    """
    found: list[list[int]] = []
    level_of: dict[str, int] = {}
    for i, spec in enumerate(specs):
        level = max((level_of[key] + 1 for key in spec.keys if key in level_of), default=0)
        level_of |= dict.fromkeys(spec.add, level)
        found += [[] for _ in range(level + 1 - len(found))]
        found[level].append(i)
    return found


class _Nobody:
    """Stands for a lookup where none is asked: the columns of an enrichment depend on none."""

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        raise NotImplementedError("there is nobody to ask")


def added(spec: EnrichmentSpec) -> dict[str, Added]:
    return {column: Added(what.path, what.type) for column, what in spec.add.items()}


def enrichment(spec: EnrichmentSpec, lookup: Lookup | None = None) -> Enrichment:
    """What an enrichment adds and how; without ``lookup`` it serves for its schema alone."""
    return Enrichment(
        lookup or _Nobody(),
        spec.keys,
        added(spec),
        spec.on_missing,
        spec.on_error,
        spec.wait_at_most.total_seconds(),
        spec.name,
    )


def lookup(spec: EnrichmentSpec, types: Mapping[str, str], text: Text) -> Lookup:
    """What answers for an enrichment; ``types`` are those of the columns there are."""
    cache = Cache(
        _seconds(spec.cache.ttl),
        _seconds(spec.cache.missing_ttl),
        spec.cache.size,
        _seconds(spec.cache.stale_while_revalidate),
        _seconds(spec.cache.stale_if_error),
        None if spec.cache.redis is None else text(spec.cache.redis, "cache", "redis"),
    )
    if spec.beam is not None:
        return BeamLookup(spec.beam, spec.keys, cache, spec.concurrency)
    return RestLookup(
        _calls(spec, types, text),
        max_keys=spec.max_keys,
        name=spec.name,
        headers={n: text(value, "headers", n) for n, value in spec.headers.items()},
        token=_token(spec.token, text) if spec.token else None,
        timeouts=Timeouts(
            *map(_seconds, (spec.timeouts.connect, spec.timeouts.read, spec.timeouts.total))
        ),
        retries=Retries(spec.retries),
        breaker=Breaking(spec.breaker.failures, _seconds(spec.breaker.open_for)),
        rate=spec.rate,
        cache=cache,
        concurrency=spec.concurrency,
    )


def _calls(spec: EnrichmentSpec, types: Mapping[str, str], text: Text) -> Template | str:
    if spec.python is not None:
        return spec.python
    ids = (spec.id,) if isinstance(spec.id, str) else tuple(spec.id or ())
    numbers = frozenset(key for key in spec.keys if types.get(key) == "int64")
    if spec.get is not None:
        url, method, body = text(spec.get, "get"), "GET", None
    else:
        url, method = text(spec.post or "", "post"), "POST"
        body = _filled(spec.body, text, "body")
    try:
        return Template(url, method, body, spec.keys, numbers, ids, spec.items)
    except ValueError as error:
        # A job has the address under the name of its method.
        raise ValueError(str(error).replace("url: ", f"{method.lower()}: ", 1)) from None


def _filled(body: Any, text: Text, *place: str | int) -> Any:
    match body:
        case str():
            return text(body, *place)
        case dict():
            return {name: _filled(value, text, *place, name) for name, value in body.items()}
        case list():
            return [_filled(value, text, *place, i) for i, value in enumerate(body)]
    return body


def _token(spec: TokenSpec, text: Text) -> Token:
    def given(name: str) -> str | None:
        value: str | None = getattr(spec, name)
        return None if value is None else text(value, "token", name)

    return Token(
        given("url"),
        given("client_id") or "",
        given("client_secret") or "",
        given("scope"),
        given("command"),
        _seconds(spec.ttl),
    )


def _seconds(duration: timedelta) -> float:
    return duration.total_seconds()
