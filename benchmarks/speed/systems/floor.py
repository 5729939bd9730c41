"""The floor: what one Python process can do at all, by confluent-kafka, orjson and dicts, with no framework.

It keeps no state that outlives it, writes no early results and knows no retries.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
import requests
from confluent_kafka import Consumer, TopicPartition
from elasticsearch import Elasticsearch, helpers

sys.path.insert(0, str(Path(__file__).parents[1]))
from workload import MAX_IDS, MAX_LATENESS_S, MINUTE_MS, PARTITIONS, document_id


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("kafka", "topic", "rest", "elasticsearch", "index"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--workers", type=int, default=1, help="it has one, whatever this says")
    given = parser.parse_args()
    consumer = Consumer(
        {
            "bootstrap.servers": given.kafka,
            "group.id": given.index,
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 10,  # by default it fetches no more for a second once full
        }
    )
    consumer.assign([TopicPartition(given.topic, p, 0) for p in range(PARTITIONS)])
    session = requests.Session()
    elastic = Elasticsearch(given.elasticsearch)
    cities: dict[str, str] = {}
    newest = [0] * PARTITIONS
    windows: defaultdict[int, dict[tuple[str, str, str], list[int]]] = defaultdict(dict)
    while True:
        messages = consumer.consume(10_000, 0.5)
        events = [(m.partition(), orjson.loads(m.value())) for m in messages]
        unknown = list({e["provider_id"] for _, e in events} - cities.keys())
        for first in range(0, len(unknown), MAX_IDS):
            ids = ",".join(unknown[first : first + MAX_IDS])
            answer = session.get(f"{given.rest}/providers", params={"ids": ids}, timeout=10)
            answer.raise_for_status()
            cities |= {one["id"]: one["city"] for one in answer.json()["providers"]}
        for partition, event in events:
            time, amount = event["event_time"], event["amount"]
            newest[partition] = max(newest[partition], time)
            window = windows[time - time % MINUTE_MS]
            key = event["domain"], event["event_type"], cities[event["provider_id"]]
            if (counted := window.get(key)) is None:
                window[key] = [1, amount, amount]
            else:
                counted[0] += 1
                counted[1] += amount
                counted[2] = max(counted[2], amount)
        watermark = min(newest) - MAX_LATENESS_S * 1000
        closed = [start for start in windows if start + MINUTE_MS <= watermark]
        actions = [action(given.index, start, windows.pop(start)) for start in closed]
        helpers.bulk(elastic, (one for some in actions for one in some))


def action(
    index: str, start: int, window: dict[tuple[str, str, str], list[int]]
) -> list[dict[str, Any]]:
    return [
        {
            "_index": index,
            "_id": document_id(start, *key),
            "window": start,
            **dict(zip(("domain", "event_type", "city"), key, strict=True)),
            **dict(zip(("n", "total", "most"), counted, strict=True)),
        }
        for key, counted in window.items()
    ]


if __name__ == "__main__":
    main()
