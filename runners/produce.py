"""Writes a simulated scenario to a Kafka broker."""

import gc
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, Message, Producer

from velocity.io.kafka_config import KafkaConfig
from velocity.pipelines.simulator import Scenario, SimulatedMessage, simulate

SETTINGS: Final[dict[str, Any]] = {
    "enable.idempotence": True,  # A retry must not add duplicates that the scenario doesn't know.
    "compression.type": "lz4",  # zstd takes half as much again of a message's time
    "linger.ms": 50,
    "batch.num.messages": 10_000,
    "queue.buffering.max.messages": 200_000,
    "delivery.report.only.error": True,  # a call for each that arrived would take a third of the time
}


class DeliveryError(RuntimeError):
    """The broker did not take a message."""


@dataclass(frozen=True, slots=True)
class Produced:
    """What the broker has acknowledged, and whether Ctrl-C ended it before the scenario did."""

    messages: int
    interrupted: bool


def produce(
    scenario: Scenario,
    bootstrap_servers: str,
    *,
    topics_prefix: str = "",
    rate: float | None = None,
    progress: Callable[[int], None] | None = None,
    timeout: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Produced:
    """Sends the scenario's messages in their order, partitioned by key, and waits for the last.

    ``rate`` is in messages per second of the wall clock, without end if None. ``progress`` is
    called with the count of messages sent, every 1,000 or ten times a second. A message that the broker has not
    acknowledged within ``timeout`` seconds raises ``DeliveryError``. ``KeyboardInterrupt`` ends
    the sending: what has been sent is still delivered, and reported.
    """
    if rate is not None and not rate > 0:
        raise ValueError(f"rate must be more than 0 messages per second, or None, not {rate}")
    every = 1000 if rate is None else min(1000, max(1, int(rate / 10)))
    handed_over = 0

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise DeliveryError(f"{message.topic()}: {error.str()}")

    producer = Producer(
        SETTINGS
        | KafkaConfig(bootstrap_servers).client(message_timeout_ms=round(timeout * 1000))
        | {"on_delivery": on_delivery}
    )
    interrupted = False
    try:
        begin = clock()
        for sent, message in enumerate(simulate(scenario)):
            if rate is not None and (ahead := begin + sent / rate - clock()) > 0:
                producer.poll(0)
                sleep(ahead)
            _send(producer, topics_prefix + message.topic, message)
            handed_over += 1
            if not (sent + 1) % every:
                producer.poll(0)
                if progress is not None:
                    progress(sent + 1)
    except KeyboardInterrupt:
        interrupted = True
    # A message times out before the flush does, so the cause is reported where there is one.
    if left := producer.flush(timeout + 5):
        raise DeliveryError(f"{left} messages unacknowledged after {timeout + 5:g} s")
    return Produced(handed_over, interrupted)


def produce_by(
    processes: int,
    scenario: Scenario,
    bootstrap_servers: str,
    *,
    rate: float | None = None,
) -> Produced:
    """As ``produce``, by several processes at once: each sends a part of the scenario.

    What they send is ``scenario.divided(processes)``, the same whenever it is sent. Ctrl-C reaches
    all of them, as they are of one terminal.
    """
    share = rate and rate / processes
    context = multiprocessing.get_context("spawn")  # librdkafka does not survive a fork
    # The simulator makes no cycles: to look for them among all that it keeps takes a third of its time.
    with ProcessPoolExecutor(processes, context, initializer=gc.disable) as pool:
        parts = [
            pool.submit(produce, part, bootstrap_servers, rate=share)
            for part in scenario.divided(processes)
        ]
        done = [part.result() for part in parts]
    return Produced(sum(p.messages for p in done), any(p.interrupted for p in done))


def _send(producer: Producer, topic: str, message: SimulatedMessage) -> None:
    while True:
        try:
            producer.produce(topic, message.value, message.key, timestamp=message.timestamp_ms)
            return
        except BufferError:
            # Full: the broker is slower than the simulator. It drains, or messages time out.
            producer.poll(0.1)
