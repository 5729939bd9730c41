"""An AWS Lambda function that moves notifications of SNS to Kafka; docs/ingest.md deploys it.

Handler: ``velocity.io.sns_lambda.handler``. It is configured by its environment:

``KAFKA``          ``HOST:PORT``, several with commas between
``ROUTES``         a JSON object, ``TopicArn`` to Kafka topic
``KEY``            optional: path of the message's key, ``transaction_id``
``KAFKA_OPTIONS``  optional: a JSON object of librdkafka's options, security among them

It may be subscribed to the topics itself, or to SQS queues that are (with
``ReportBatchItemFailures``). From a queue only what did not reach Kafka comes again. SNS itself
repeats an invocation as a whole, whose one notification it is.
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_producer import MessagesUndelivered
from velocity.io.sns import NotANotification, Notification, Routes
from velocity.io.sns_delivery import Deliver, Delivery


class Undelivered(RuntimeError):
    """Notifications that did not reach Kafka, so that AWS invokes the function again."""


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """What AWS calls."""
    return move(event, *_configured())


def move(event: Mapping[str, Any], routes: Routes, deliver: Deliver) -> dict[str, Any]:
    """Delivers an event's notifications; the answer names those of SQS that have to come again.

    Raises ``Undelivered`` if any of SNS has to.
    """
    failed: list[str] = []
    records, names = [], []
    for given in event["Records"]:
        queued = given.get("eventSource") == "aws:sqs"
        name = given["messageId"] if queued else ""
        try:
            found = Notification.parse(given["body"]) if queued else Notification.of(given["Sns"])
            record = routes.record(found)
        except NotANotification as error:
            print(f"not delivered: {error}")  # into the function's log
            failed.append(name)
            continue
        records.append(record)
        names.append(name)
    try:
        refused = [refusal.record for refusal in deliver(records)]
    except MessagesUndelivered as error:
        # Some may be there; consumers tell by the header event_id.
        print(f"not delivered: {error}")
        failed += names
    else:
        failed += [
            name
            for name, record in zip(names, records, strict=True)
            if any(record is other for other in refused)
        ]
    if "" in failed:
        raise Undelivered(f"{len(failed)} of {len(event['Records'])} notifications")
    return {"batchItemFailures": [{"itemIdentifier": name} for name in failed]}


@cache
def _configured() -> tuple[Routes, Deliver]:
    options = json.loads(os.environ.get("KAFKA_OPTIONS", "{}"))
    routes = Routes(json.loads(os.environ["ROUTES"]), os.environ.get("KEY"))
    return routes, Delivery(KafkaConfig(os.environ["KAFKA"], options))
