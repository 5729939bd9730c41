"""A Schema Registry: what decodes messages that name their schema by its number there."""

import re
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from functools import partial
from math import isfinite
from threading import Lock
from time import monotonic
from typing import Any, Final

import orjson
import pyarrow as pa
from cachetools import TTLCache
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from velocity.io.records import Cause, Failure, Texts

_NOT_FOUND: Final = 40403
"""The registry's own code for a number that it does not have; a proxy's 404 has none."""
_UNKNOWN_FOR: Final = timedelta(minutes=1)
"""How long the registry is not asked again for such a number: bad messages come in crowds."""
_TIMEOUT: Final = 10
"""Seconds for an answer, where the options don't say; else the client would wait for ever."""
_HEAD: Final = 5
"""A zero byte and the number in four bytes begin each message."""

Read = Callable[[bytes], Any]
"""Makes an event of what follows the number; a mapping of fields to values, if the event is one."""


class RegistryUnavailable(Exception):
    """The registry did not give a schema, so the bundle fails, and its runner tries it again."""


class UnknownSchema(Exception):
    """There is no schema of that number in the registry, or none that can be used."""


@dataclass(frozen=True)
class SchemaRegistry:
    """Where a registry is, and options of its client, which may hold secrets and are never shown.

    ``options`` are those of confluent-kafka's ``SchemaRegistryClient``: ``basic.auth.user.info``,
    ``ssl.ca.location`` and others.

    >>> SchemaRegistry("https://user:hush@registry:8081", {"max.retries": 5})
    SchemaRegistry('https://…@registry:8081')
    >>> SchemaRegistry("registry:8081")
    Traceback (most recent call last):
    ValueError: url 'registry:8081' must begin with http:// or https://
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.shown!r} must begin with http:// or https://")
        try:
            self.open()
        except OSError:
            pass  # a certificate may be on the workers alone
        except (TypeError, ValueError) as error:
            raise ValueError(f"options: {self._masked(str(error))}") from None

    def __hash__(self) -> int:
        return hash(self.url)  # of options a mapping need not have one

    def __repr__(self) -> str:
        return f"SchemaRegistry({self.shown!r})"

    @property
    def shown(self) -> str:
        """The address without who asks there."""
        return re.sub(r"//[^/@]*@", "//…@", self.url)

    def open(self) -> SchemaRegistryClient:
        """A client, which connects when it is asked for something."""
        return SchemaRegistryClient({"timeout": _TIMEOUT, **self.options, "url": self.url})

    def unavailable(self, asking: str, error: Exception) -> RegistryUnavailable:
        """The error to raise when the registry does not answer as it should."""
        said = self._masked(str(error)) or type(error).__name__
        return RegistryUnavailable(
            f"cannot {asking} at {self.shown}: {said}; "
            "is the registry up, and are its address and credentials right?"
        )

    def _masked(self, text: str) -> str:
        for value in self.options.values():
            if isinstance(value, str) and value:
                text = text.replace(value, "***")
        return text.replace(self.url, self.shown)


class Readers(ABC):
    """What reads messages of each schema; one in a process for each registry and kind of schema."""

    KIND: str
    """As the registry calls it."""
    FORMAT: str | None = None
    """In which form to ask for schemas, if not as they were registered."""

    def __init__(self, registry: SchemaRegistry, clock: Callable[[], float] = monotonic) -> None:
        self._registry, self._client = registry, registry.open()
        self._readers: dict[int, Read] = {}
        self._lock = Lock()
        self._unknown: TTLCache[int, str] = TTLCache(
            100_000, _UNKNOWN_FOR.total_seconds(), timer=clock
        )

    def of(self, number: int) -> Read:
        """Raises ``UnknownSchema``, which is the message's fault, or ``RegistryUnavailable``."""
        if (read := self._readers.get(number)) is not None:
            return read
        with self._lock:  # bundles of several partitions run at a time
            if (read := self._readers.get(number)) is None:
                read = self._readers[number] = self._new(number)
        return read

    def _new(self, number: int) -> Read:
        if (error := self._unknown.get(number)) is not None:
            raise UnknownSchema(error)
        try:
            schema = self._ask(f"get schema {number}", lambda: self._schema(number))
            if schema.schema_type != self.KIND:
                raise UnknownSchema(f"schema {number} is {schema.schema_type}, not {self.KIND}")
            return self.read(schema)
        except UnknownSchema as unknown:
            self._unknown[number] = str(unknown)
            raise

    @abstractmethod
    def read(self, schema: Schema) -> Read:
        """What reads messages of a schema; raises ``UnknownSchema`` if it is no schema."""

    def referenced(self, schema: Schema) -> dict[str | None, Schema]:
        """The schemas that a schema refers to, by the names under which it does."""
        found = {}
        for reference in schema.references or ():
            asking = f"get version {reference.version} of {reference.subject}"
            found[reference.name] = self._ask(asking, partial(self._version, reference))
        return found

    def _version(self, named: SchemaReference) -> Schema:
        return self._client.get_version(
            named.subject or "", named.version or "latest", fmt=self.FORMAT
        ).schema

    def _schema(self, number: int) -> Schema:
        try:
            return self._client.get_schema(number, fmt=self.FORMAT)
        except SchemaRegistryError as error:
            if error.error_code == _NOT_FOUND:
                raise UnknownSchema(f"the registry has no schema {number}") from None
            raise

    def _ask(self, asking: str, ask: Callable[[], Schema]) -> Schema:
        try:
            return ask()
        except UnknownSchema:
            raise
        except Exception as error:  # of its HTTP client, of JSON, of tokens: no schema is to be had
            raise self._registry.unavailable(asking, error) from error


def events(messages: pa.RecordBatch, readers: Readers, fields: Sequence[str]) -> Texts:
    """The events of ``MESSAGES``, each with these fields as JSON.

    Times are RFC 3339, dates and UUIDs text, decimals numbers, and bytes Base64.
    """
    texts: list[bytes | None] = []
    failures: list[Failure] = []
    for position, value in enumerate(messages["value"].to_pylist()):
        try:
            texts.append(_text(value, readers, fields) if value else value)
        except _Bad as bad:
            texts.append(None)
            failures.append(Failure(position, bad.cause, bad.error))
    return Texts(pa.array(texts, pa.binary()), failures)


class _Bad(Exception):
    """What is wrong with a message."""

    def __init__(self, cause: Cause, error: str) -> None:
        super().__init__(cause, error)
        self.cause, self.error = cause, error


def _text(value: bytes, readers: Readers, fields: Sequence[str]) -> bytes:
    if len(value) < _HEAD or value[0]:
        raise _Bad(Cause.NOT_OF_SCHEMA, "does not begin with a zero byte and a schema's number")
    number = int.from_bytes(value[1:_HEAD], "big")
    try:
        read = readers.of(number)
    except UnknownSchema as unknown:
        raise _Bad(Cause.UNKNOWN_SCHEMA, str(unknown)) from None
    try:
        event = read(value[_HEAD:])
    except Exception as error:  # noqa: BLE001 (bytes at random make a parser raise anything)
        raise _Bad(
            Cause.NOT_OF_SCHEMA, f"not of schema {number}: {type(error).__name__}: {error}"
        ) from None
    if not isinstance(event, Mapping):
        raise _Bad(Cause.NOT_AN_OBJECT, f"schema {number} is not that of a record")
    known = {name: event[name] for name in fields if name in event}
    for name, found in known.items():
        if isinstance(found, float) and not isfinite(found):  # as null it would pass
            raise _Bad(Cause.WRONG_TYPE, f"field {name}: not a finite number")
    try:
        return orjson.dumps(known, _plain)
    except TypeError as error:
        raise _Bad(Cause.WRONG_TYPE, f"{error}") from None


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return b64encode(value).decode()
        case Decimal() if value.is_finite():
            return orjson.Fragment(f"{value:f}")
    raise TypeError(f"no field can hold a {type(value).__name__}")
