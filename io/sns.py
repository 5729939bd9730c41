"""Notifications of Amazon SNS, and the Kafka messages they become."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from velocity.io.kafka_producer import Record

# Nothing heavy is imported here, neither Beam nor Arrow: a Lambda function is made of this.

MESSAGE_ID: Final = "event_id"
"""The header that is the same however often SNS delivers a notification: its ``MessageId``."""


class NotANotification(ValueError):
    """What came is no message of SNS, or of a topic that is not in the table: why."""


@dataclass(frozen=True, slots=True)
class Notification:
    """A message of SNS, of any type; ``fields`` are those of its JSON, by SNS's own names.

    Source: https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    """

    type: str
    message_id: str
    topic_arn: str
    message: str
    timestamp: datetime
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: bytes | str) -> "Notification":
        """Of an HTTP request's body, or of an SQS message's.

        >>> Notification.parse(b"[]")
        Traceback (most recent call last):
        velocity.io.sns.NotANotification: a JSON object of SNS is wanted
        """
        try:
            given = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise NotANotification(f"a JSON object of SNS is wanted: {error}") from error
        if not isinstance(given, dict):
            raise NotANotification("a JSON object of SNS is wanted")
        return cls.of(given)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Notification":
        """Of the object, as Lambda hands it over under ``Sns``."""
        names = ("Type", "MessageId", "TopicArn", "Message", "Timestamp")
        for name in names:
            if not isinstance(given.get(name), str):
                raise NotANotification(f"field {name}: text is wanted, as SNS sends it")
        try:
            timestamp = datetime.fromisoformat(given["Timestamp"])
        except ValueError:
            raise NotANotification(f"field Timestamp: {given['Timestamp']!r}") from None
        attributes = given.get("MessageAttributes") or {}
        if not isinstance(attributes, dict) or not all(
            isinstance(a, dict) and isinstance(a.get("Value"), str) for a in attributes.values()
        ):
            raise NotANotification("field MessageAttributes: names with a Type and a Value")
        try:
            "".join([given["MessageId"], *attributes]).encode()
        except UnicodeEncodeError:  # no header of Kafka can hold it, and no message of AWS has it
            raise NotANotification("half a surrogate pair in an id or a name") from None
        return cls(
            given["Type"],
            given["MessageId"],
            given["TopicArn"],
            given["Message"],
            timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC),
            attributes,
            {name: value for name, value in given.items() if isinstance(value, str)},
        )


@dataclass(frozen=True, slots=True)
class Routes:
    """Which SNS topic goes to which Kafka topic, and where a message names its key.

    >>> routes = Routes({"arn:aws:sns:r:1:orders": "orders"}, key="order.id")
    >>> found = Notification("Notification", "m1", "arn:aws:sns:r:1:orders",
    ...     '{"order": {"id": 7}}', datetime(2026, 1, 5, tzinfo=UTC),
    ...     {"kind": {"Type": "String", "Value": "new"}})
    >>> routes.record(found)  # doctest: +NORMALIZE_WHITESPACE
    Record(key=b'7', value=b'{"order": {"id": 7}}',
           headers=(('kind', b'new'), ('event_id', b'm1')), timestamp=1767571200000, topic='orders',
           partition=None)
    """

    topics: Mapping[str, str]
    """``TopicArn`` to Kafka topic."""
    key: str | None = None
    """A path into the message, a JSON object: names with dots between. Without, or where there is
    nothing, a message has no key."""

    def topic(self, arn: str) -> str:
        """Raises ``NotANotification`` for one that is not in the table."""
        try:
            return self.topics[arn]
        except KeyError:
            raise NotANotification(f"no route for topic {arn}: add one") from None

    def record(self, notification: Notification) -> Record:
        """The Kafka message: the notification's own message, its attributes as headers."""
        headers = [(name, _value(attribute)) for name, attribute in notification.attributes.items()]
        headers.append((MESSAGE_ID, notification.message_id.encode()))
        return Record(
            self._key(notification.message),
            _encoded(notification.message),
            tuple(headers),
            round(notification.timestamp.timestamp() * 1000),
            self.topic(notification.topic_arn),
        )

    def _key(self, message: str) -> bytes | None:
        if self.key is None:
            return None
        try:
            found = json.loads(message)
        except (ValueError, RecursionError):
            return None  # the pipeline's decoder sets it aside, with its cause
        for name in self.key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if found is None or isinstance(found, dict | list):
            return None
        return _encoded(found if isinstance(found, str) else json.dumps(found))


def _value(attribute: Mapping[str, str]) -> bytes:
    if attribute.get("Type") == "Binary":
        try:
            return base64.b64decode(attribute["Value"], validate=True)
        except binascii.Error:
            pass  # it is kept as it came
    return _encoded(attribute["Value"])


def _encoded(text: str) -> bytes:
    """In UTF-8, also what JSON's escapes can say and UTF-8 cannot: half a surrogate pair."""
    return text.encode("utf-8", "surrogatepass")


def routes_of(pairs: list[str], key: str | None = None) -> Routes:
    """A table of ``ARN=TOPIC``, as a command line gives it.

    >>> routes_of(["orders"])
    Traceback (most recent call last):
    ValueError: a route such as arn:aws:sns:REGION:ACCOUNT:NAME=TOPIC is wanted, not orders
    """
    table = {}
    for pair in pairs:
        arn, equals, topic = pair.partition("=")
        if not (equals and topic and arn.startswith("arn:")):
            raise ValueError(
                f"a route such as arn:aws:sns:REGION:ACCOUNT:NAME=TOPIC is wanted, not {pair}"
            )
        table[arn] = topic
    return Routes(table, key)
