"""What every way in from SNS does: messages into Kafka, told as taken only once they are there."""

from collections.abc import Callable, Sequence
from datetime import timedelta

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_producer import PRODUCERS, Outbox, Producers, Record, Refusal, producing


class Delivery:
    """Delivers records to Kafka, from any thread; all of a process share one producer."""

    def __init__(
        self,
        config: KafkaConfig,
        deadline: timedelta = timedelta(seconds=10),
        producers: Producers = PRODUCERS,
    ) -> None:
        self._config, self._deadline = producing(config, deadline), deadline
        self._producers = producers
        self._held = producers.take(self._config)  # else it would close after each request

    def __call__(self, records: Sequence[Record]) -> list[Refusal]:
        """Returns once the broker has acknowledged all but those that it will never take.

        Raises ``MessagesUndelivered`` if it did not within the deadline: some may be there.
        """
        outbox = Outbox(self._config, self._deadline, self._producers)
        for record in records:
            outbox.send(record)
        refused = outbox.settle().refused
        self._held = self._producers.take(self._config)
        return refused


Deliver = Callable[[Sequence[Record]], list[Refusal]]
"""``Delivery``, or what stands in for it."""
