"""How a Kafka cluster is named, for all that read from it or write to it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaException

_LOG: Final = logging.getLogger("velocity.kafka")
_SERVERS: Final = "bootstrap.servers"


@dataclass(frozen=True)
class KafkaConfig:
    """A cluster's addresses (``host:port``, with commas between), and options for its clients.

    ``options`` are librdkafka's own and may hold secrets: they are never shown. Source:
    https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md

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

        librdkafka's own log goes to Python's, not to the standard error.

        >>> KafkaConfig("127.0.0.1:9092").client(linger_ms=50)["linger.ms"]
        50
        """
        return {
            "logger": _LOG,
            _SERVERS: self.bootstrap_servers,
            **self.options,
            **{name.replace("_", "."): value for name, value in overrides.items()},
        }

    def refusal(self, error: KafkaException) -> str:
        """What is wrong with the options that librdkafka refuses; it quotes them, this does not."""
        text: str = error.args[0].str()
        for value in self.options.values():
            text = text.replace(f'"{value}"', '"***"')
        return f"{text}; correct KafkaConfig's options"
