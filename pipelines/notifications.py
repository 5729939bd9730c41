"""Simulated events as SNS delivers them: in the envelope of a notification."""

import json
from typing import Final

from velocity.pipelines.payloads import stamp

_ACCOUNT: Final = "arn:aws:sns:ap-southeast-1:000000000000:"


def topic_arn(topic: str) -> str:
    """The SNS topic that feeds a Kafka topic.

    >>> topic_arn("pharmacy.events")
    'arn:aws:sns:ap-southeast-1:000000000000:pharmacy-events'
    """
    return _ACCOUNT + topic.replace(".", "-")


def notification(topic: str, message: str, message_id: str, sent: int, event_type: str) -> bytes:
    """An event in the envelope in which SNS delivers it, its signature a dummy.

    Source: https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
    """
    envelope = {
        "Type": "Notification",
        "MessageId": message_id,
        "TopicArn": topic_arn(topic),
        "Message": message,
        "Timestamp": stamp(sent),
        "SignatureVersion": "1",
        "Signature": "c2ltdWxhdGVk",
        "SigningCertURL": "https://sns.ap-southeast-1.amazonaws.com/SimpleNotificationService.pem",
        "UnsubscribeURL": "https://sns.ap-southeast-1.amazonaws.com/?Action=Unsubscribe",
        "MessageAttributes": {"event_type": {"Type": "String", "Value": event_type}},
    }
    return json.dumps(envelope, separators=(",", ":")).encode()
