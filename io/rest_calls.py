"""How keys become a request, and an answer's body the objects of keys."""

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import jmespath
from jmespath.exceptions import JMESPathError

from velocity.io.lookup import PART

KEYS: Final = "{keys}"
KEY: Final = "{key}"
_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z][A-Za-z0-9_]*)\}")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Request(NamedTuple):
    """One request. ``body`` is sent as it is, ``headers`` with those of every call."""

    method: str
    url: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}


class NoAnswer(Exception):
    """A body is no answer; ``args[0]`` says in what, without anything of the body."""


class Calls(Protocol):
    """What a service is asked, and how its answers are read. Used from several threads.

    Write one in Python for what the templates of ``Template`` can't say; ``python`` in a job file
    names it. Connections, retries, breaker, splitting and cache are the same for all.
    """

    def request(self, keys: Sequence[str]) -> Request:
        """Of up to ``max_keys`` keys; of a key of several columns ``parts`` gives the parts."""

    def answers(self, body: bytes, keys: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """The objects by key; keys left out are not known. Raises ``NoAnswer``."""

    def can_ask(self, key: str) -> bool:
        """Whether a request can hold the key; one that it can't is not known."""


def parts(key: str) -> list[str]:
    """The parts of a key of several columns.

    >>> parts("P-1\\x1fBandung")
    ['P-1', 'Bandung']
    """
    return key.split(PART)


def require(condition: bool, error: str) -> None:
    if not condition:
        raise ValueError(error)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises ``ValueError`` that names the header, and never shows a value."""
    for name, value in headers.items():
        require(
            _HEADER_NAME.fullmatch(name) is not None
            and value.isascii()
            and value.isprintable()
            and value == value.strip(),
            f"headers: {name!r} needs the name of an HTTP header, and a value of printable "
            "ASCII without blanks around it",
        )


def search(path: str, option: str) -> Any:
    """A compiled JMESPath expression; raises ``ValueError`` that names the option."""
    try:
        return jmespath.compile(path)
    except JMESPathError as error:
        # Its own text draws an arrow under the place, over several lines.
        first = str(error).splitlines()[0]
        raise ValueError(f"{option}: {path!r} is no JMESPath expression: {first}") from None


@dataclass(frozen=True)
class Template:
    """Calls by templates, as a job file has them.

    In ``url``, percent-encoded, and in the texts of the JSON ``body``, ``{keys}`` stands for all keys
    of a call and ``{key}`` for the one key of a call, as the parts of a key of several columns do by
    the names in ``columns``. In ``url`` commas are between keys. A text of ``body`` that is
    ``{keys}`` and nothing else becomes a list of the keys; of several columns a list of objects.
    Keys of the columns ``numbers`` are JSON numbers where they are all of the text.

    ``items``, a JMESPath expression, says where the body has the answers. ``id``, JMESPath
    expressions too, one for each column, says where each item of a list has its key, a string or an
    integer; without ``id`` the answers are an object by key, or, for a call of one key, the one
    object. Of several objects with one key the last counts; keys not asked for are ignored.
    """

    url: str
    method: str = "GET"
    body: Any = field(default=None, hash=False)
    columns: tuple[str, ...] = ("key",)
    numbers: frozenset[str] = frozenset()
    id: tuple[str, ...] = ()
    items: str | None = None

    def __post_init__(self) -> None:
        where = "url" if self.body is None else "url or body"
        places = list(_places([self.url, self.body]))
        require(
            places.count("keys") <= 1
            and ("keys" in places) != any(n in places for n in self._names),
            f"{where}: write {{keys}} once, where the keys go, or {{key}} for one key a call",
        )
        url = urlsplit(self.url)
        require(
            url.scheme in ("http", "https") and bool(url.hostname),
            "url: start with http://HOST or https://HOST",
        )
        require("@" not in url.netloc, "url: move the credentials into headers")
        require(
            not _PLACEHOLDER.search(url.scheme + url.netloc + url.fragment),
            "url: {keys} goes into the path or the query",
        )
        unknown = [p for p in _places(self.url) if p not in ("keys", *self._names)]
        require(
            not unknown,  # in a body it may be GraphQL
            f"url: {{{''.join(unknown[:1])}}} is no part of the key; write {{keys}} or "
            + " or ".join(f"{{{name}}}" for name in self._names),
        )
        if not self.many and len(self.columns) > 1:
            left = [name for name in self.columns if name not in places]
            require(not left, f"{where}: write {{{''.join(left[:1])}}}, a part of the key, too")
        if self.many:
            in_url = KEYS in self.url
            require(
                len(self.columns) == 1 or not in_url,
                "url: {keys} is for a key of one column; write its parts, for one key a call",
            )
            require(
                bool(self.id) or len(self.columns) == 1,
                "id: name the fields of an answered object that hold its key, one for each column",
            )
        require(
            len(self.id) in (0, len(self.columns)) and all(self.id),
            "id: name the field of an answered object that holds its key, one for each column",
        )
        _ = self._compiled

    @property
    def many(self) -> bool:
        """Whether a call takes several keys."""
        return "keys" in set(_places([self.url, self.body]))

    @property
    def _names(self) -> tuple[str, ...]:
        return ("key",) if len(self.columns) == 1 else self.columns

    @property
    def _compiled(self) -> tuple[Any, list[Any]]:
        """Compiled expressions: JMESPath keeps them, and they would not be equal to their like."""
        items = search(self.items, "items") if self.items else None
        return items, [search(path, "id") for path in self.id]

    def request(self, keys: Sequence[str]) -> Request:
        """
        >>> one = Template("http://h/stock/{shop}?item={item}", columns=("shop", "item"))
        >>> one.request(["S/1\\x1fA 7"]).url
        'http://h/stock/S%2F1?item=A%207'
        >>> many = Template("http://h/find", "POST", {"ids": "{keys}"}, id=("id",))
        >>> many.request(["a", "b"]).body
        b'{"ids": ["a", "b"]}'
        """
        if self.many:
            values = {"keys": ",".join(quote(key, safe="") for key in keys)}
        else:
            values = {
                n: quote(p, safe="") for n, p in zip(self._names, self._parts(keys[0]), strict=True)
            }
        url = _PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), self.url)
        if self.body is None:
            return Request(self.method, url)
        body = json.dumps(self._filled(self.body, keys), ensure_ascii=False).encode()
        return Request(self.method, url, body, {"Content-Type": "application/json"})

    def _filled(self, body: Any, keys: Sequence[str]) -> Any:
        if isinstance(body, Mapping):
            return {name: self._filled(value, keys) for name, value in body.items()}
        if isinstance(body, list | tuple):
            return [self._filled(value, keys) for value in body]
        if not isinstance(body, str):
            return body
        if body == KEYS:
            if len(self.columns) == 1:
                return [self._value(self.columns[0], key) for key in keys]
            return [
                {
                    c: self._value(c, part)
                    for c, part in zip(self.columns, self._parts(key), strict=True)
                }
                for key in keys
            ]
        if self.many:
            return body.replace(KEYS, ",".join(keys))
        values = dict(zip(self._names, self._parts(keys[0]), strict=True))
        if (whole := _PLACEHOLDER.fullmatch(body)) and whole[1] in values:
            column = self.columns[self._names.index(whole[1])]
            return self._value(column, values[whole[1]])
        return _PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), body)

    def _parts(self, key: str) -> list[str]:
        return [key] if len(self.columns) == 1 else parts(key)

    def _value(self, column: str, text: str) -> Any:
        return int(text) if column in self.numbers else text

    def can_ask(self, key: str) -> bool:
        """An empty key could stand for "all", and URL libraries resolve dots in a path (RFC 3986,
        5.2.4), which asks another resource."""
        its = self._parts(key)
        if len(its) != len(self.columns) or "" in its:
            return False
        in_path = _PLACEHOLDER.search(urlsplit(self.url).path) is not None
        return not in_path or not {".", ".."} & set(its)

    def answers(self, body: bytes, keys: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """
        >>> Template("http://h/?ids={keys}", id=("id",)).answers(b'[{"id": 7, "n": 1}]', ["7"])
        {'7': {'id': 7, 'n': 1}}
        >>> Template("http://h/?ids={keys}", items="data").answers(b'{"data": {"a": {}}}', ["a"])
        {'a': {}}
        >>> Template("http://h/{key}").answers(b'{"n": 1}', ["a"])
        {'a': {'n': 1}}
        """
        answer = _json(body)
        items, ids = self._compiled
        where = "the answer"
        if items is not None:
            try:
                answer = items.search(answer)
            except JMESPathError as error:
                raise NoAnswer(f"items can't be found: {type(error).__name__}") from None
            where = str(self.items)
            if answer is None:
                raise NoAnswer(f"the answer has nothing at {where!r}")
        if ids:
            return _listed(answer, ids, self.id, where, keys)
        if not self.many:
            if not isinstance(answer, dict | None):
                raise NoAnswer(f"{where} is not an object")
            return {keys[0]: answer} if answer else {}
        if not isinstance(answer, dict):
            raise NoAnswer(f"{where} is not an object by key; give id for a list")
        return _checked({key: answer[key] for key in keys if answer.get(key) is not None}, where)


def _listed(
    answer: Any, ids: Sequence[Any], names: Sequence[str], where: str, keys: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    if not isinstance(answer, list):
        raise NoAnswer(f"{where} is not a list")
    objects: dict[str, Mapping[str, Any]] = {}
    wanted = set(keys)
    for item in answer:
        found = [id_.search(item) if isinstance(item, dict) else None for id_ in ids]
        for value, name in zip(found, names, strict=True):
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise NoAnswer(f"an item has no string or integer {name!r}")
        key = PART.join(map(str, found))
        if key in wanted:
            objects[key] = item
    return objects


def _checked(found: dict[str, Any], where: str) -> dict[str, Mapping[str, Any]]:
    if not all(isinstance(value, dict) for value in found.values()):
        raise NoAnswer(f"{where} holds what is not an object")
    return found


def _json(body: bytes) -> Any:
    try:
        # Python's own reader takes NaN and Infinity, which are no JSON (RFC 8259).
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise NoAnswer("not JSON") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _places(template: Any) -> Iterator[str]:
    """The names that stand in braces in the texts of a template."""
    match template:
        case str():
            yield from (match[1] for match in _PLACEHOLDER.finditer(template))
        case Mapping():
            for value in template.values():
                yield from _places(value)
        case list() | tuple():
            for value in template:
                yield from _places(value)


def imported(path: str, option: str) -> Any:
    """What ``module:name`` names. Raises ``ValueError`` that names the option and the remedy.

    >>> imported("json:loads", "python").__name__
    'loads'
    """
    module, colon, name = path.partition(":")
    require(bool(module and colon and name), f"{option}: give MODULE:NAME, not {path!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(
            f"{option}: {module!r} can't be imported: {error}; install it where the job is checked "
            "and where it runs"
        ) from None
    except AttributeError:
        raise ValueError(f"{option}: {module!r} has no {name!r}") from None
