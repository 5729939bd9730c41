"""How fast simulated events come into a real Kafka, and what one costs.

    velocity stack up kafka
    python benchmarks/simulator.py --rate 100000 --processes 2 --seconds 60

sends as ``velocity simulate`` does, and asks the broker each second how far its topics are.
"""

import argparse
import os
import resource
import sys
import threading
import time
from contextlib import suppress
from itertools import pairwise
from statistics import median

from confluent_kafka import Consumer, KafkaException, TopicPartition
from soak import processor_time  # beside this file

from velocity.pipelines.domains import DOMAINS
from velocity.pipelines.simulator import Scenario
from velocity.runners.produce import produce_by
from velocity.runners.stack_paths import state_folder
from velocity.runners.stack_state import read_state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=float, default=100_000, help="events per second")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--echoes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--sns", action="store_true")
    arguments = parser.parse_args()
    state = read_state(state_folder())
    kafka = state.address("kafka")
    if kafka is None:
        print("no Kafka is up: velocity stack up kafka", file=sys.stderr)
        return 1
    broker = state.components["kafka"].servers[0].process.pid
    scenario = Scenario(
        events=int(arguments.rate * arguments.seconds),
        rate=arguments.rate,
        echoes=arguments.echoes,
        sns=arguments.sns,
    )
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "velocity-benchmark"})
    ended, seen = threading.Event(), [(time.monotonic(), in_topics(consumer))]

    def look() -> None:
        while not ended.wait(1.0):
            with suppress(KafkaException):  # of a topic that is just being made
                seen.append((time.monotonic(), in_topics(consumer)))

    looking = threading.Thread(target=look, daemon=True)  # so that Ctrl-C ends it too
    looking.start()
    before, began = processor_time(broker), time.monotonic()
    try:
        produced = produce_by(arguments.processes, scenario, kafka, rate=arguments.rate)
    finally:
        ended.set()
        looking.join()
    seconds, of_broker = time.monotonic() - began, processor_time(broker) - before
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    of_senders, n = used.ru_utime + used.ru_stime, produced.messages
    steps = [(to - since) / (t - s) for (s, since), (t, to) in pairwise(seen) if to > since]
    print(f"{n:,} events in {seconds:.1f} s, starting included: {n / seconds:,.0f}/s")
    sending = [(t, count) for (t, count), (_, after) in pairwise(seen) if after > count]
    sending.append(next((t, count) for t, count in seen if count == seen[-1][1]))
    (since, first), (until, last) = sending[0], sending[-1]
    print(f"while sending: {(last - first) / (until - since):,.0f}/s over {until - since:.0f} s;"
          f" in a second of it {median(steps):,.0f} (median), {max(steps):,.0f} at most")  # fmt: skip
    print(f"CPU time: {1e6 * of_senders / n:.1f} µs an event for the simulator, {used.ru_maxrss / 1024:,.0f}"
          f" MiB in a process; {1e6 * of_broker / n:.1f} µs for the broker")  # fmt: skip
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0


def in_topics(consumer: Consumer) -> int:
    """How many messages the four topics have."""
    topics = consumer.list_topics(timeout=30).topics
    places = [
        TopicPartition(domain.topic, number)
        for domain in DOMAINS.values()
        if domain.topic in topics
        for number in topics[domain.topic].partitions
    ]
    return sum(consumer.get_watermark_offsets(place, timeout=30)[1] for place in places)


if __name__ == "__main__":
    sys.exit(main())
