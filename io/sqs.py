"""An SQS queue that subscribes to SNS topics, emptied into Kafka."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from velocity.io.kafka_producer import MessagesUndelivered, Record
from velocity.io.sns import NotANotification, Notification, Routes
from velocity.io.sns_delivery import Deliver


class Queue(Protocol):
    """What is used of boto3's SQS client."""

    def receive_message(self, **options: Any) -> Mapping[str, Any]: ...

    def delete_message_batch(self, **options: Any) -> Mapping[str, Any]: ...


class SqsConsumer:
    """Moves messages from a queue to Kafka; deletes each once Kafka has acknowledged it.

    The subscription must not be of raw message delivery: the envelope says which topic a message is
    of. What is no notification, of no known topic, or refused by Kafka for good is left in the queue,
    counted as ``rejected``, and goes where the queue's redrive policy sends it. A message may come
    twice, as SQS itself may deliver it twice; its header ``event_id`` tells.
    """

    def __init__(self, client: Queue, url: str, routes: Routes, deliver: Deliver) -> None:
        self._client, self._url, self._routes, self._deliver = client, url, routes, deliver
        self.counts: Counter[str] = Counter()

    def poll(self, wait: int = 20) -> int:
        """Moves up to ten messages, waiting up to so many seconds for the first; how many came."""
        answer = self._client.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=wait
        )
        messages = answer.get("Messages", [])
        records: list[Record] = []
        handles: dict[int, str] = {}
        for message in messages:
            try:
                record = self._routes.record(Notification.parse(message["Body"]))
            except NotANotification:
                self.counts["rejected"] += 1
                continue
            handles[id(record)] = message["ReceiptHandle"]
            records.append(record)
        try:
            refused = {id(refusal.record) for refusal in self._deliver(records)}
        except MessagesUndelivered:
            # All come again when the queue's visibility timeout has passed.
            self.counts["undelivered"] += len(records)
            return len(messages)
        if refused:
            self.counts["rejected"] += len(refused)
        self._delete([handles[id(record)] for record in records if id(record) not in refused])
        return len(messages)

    def run(self, stop: threading.Event) -> None:
        """Polls until told to stop."""
        while not stop.is_set():
            self.poll()

    def _delete(self, handles: Sequence[str]) -> None:
        if not handles:
            return
        entries = [{"Id": str(i), "ReceiptHandle": h} for i, h in enumerate(handles)]
        answer = self._client.delete_message_batch(QueueUrl=self._url, Entries=entries)
        failed = len(answer.get("Failed", []))
        self.counts["delivered"] += len(handles) - failed
        if failed:
            self.counts["undeleted"] += failed  # they come again
