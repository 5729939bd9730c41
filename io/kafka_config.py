"""How a Kafka cluster is named, for all that read from it or write to it."""

import logging
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaException

_LOG: Final = logging.getLogger("velocity.kafka")
_SERVERS: Final = "bootstrap.servers"
_CALLBACK: Final = "oauth_cb"


@dataclass(frozen=True)
class KafkaConfig:
    """A cluster's addresses (``host:port``, with commas between), and options for its clients.

    ``options`` are librdkafka's own and may hold secrets: they are never shown. Source:
    https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md
    ``oauth_cb`` is a function as in confluent-kafka, from what ``sasl.oauthbearer.config`` says to a
    token and the epoch seconds at which it expires; or its place, ``module:function``, for a job file.
    Either travels with the pipeline, and is called in the workers.

    >>> KafkaConfig("127.0.0.1:9092", {"sasl.password": "hush"})
    KafkaConfig(bootstrap_servers='127.0.0.1:9092')
    >>> KafkaConfig("")
    Traceback (most recent call last):
    ValueError: bootstrap_servers is empty: name the brokers as host:port
    """

    bootstrap_servers: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.bootstrap_servers:
            raise ValueError("bootstrap_servers is empty: name the brokers as host:port")
        if _SERVERS in self.options:
            raise ValueError(f"options has {_SERVERS}: give bootstrap_servers in its place")

    def __hash__(self) -> int:
        return hash(self.bootstrap_servers)  # of options a mapping need not have one

    def client(self, **overrides: Any) -> dict[str, Any]:
        """A client's configuration, with dots for the underscores of ``overrides``.

        librdkafka's own log goes to Python's, not to the standard error. Raises ``ValueError`` for an
        ``oauth_cb`` that can't be imported.

        >>> KafkaConfig("127.0.0.1:9092").client(linger_ms=50)["linger.ms"]
        50
        """
        return {
            "logger": _LOG,
            _SERVERS: self.bootstrap_servers,
            **self.options,
            **self._callback(),
            **{name.replace("_", "."): value for name, value in overrides.items()},
        }

    def _callback(self) -> dict[str, Any]:
        place = self.options.get(_CALLBACK)
        if not isinstance(place, str):
            return {}
        try:
            found = pkgutil.resolve_name(place)
            if callable(found):
                return {_CALLBACK: found}
            cause = "it is no function"
        except (ImportError, AttributeError, ValueError) as error:
            cause = str(error)
        raise ValueError(
            f"options: {_CALLBACK} is {place!r}, which can't be called ({cause}): give "
            "module:function, of a module that the workers have"
        )

    def refusal(self, error: KafkaException) -> str:
        """What is wrong with the options that librdkafka refuses; it quotes them, this does not."""
        text: str = error.args[0].str()
        for value in self.options.values():
            text = text.replace(f'"{value}"', '"***"')
        return f"{text}; correct KafkaConfig's options"
