"""The workload on Quix Streams: as many processes of one consumer group as there are workers."""

import multiprocessing
import signal
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import orjson
from common import MAX_LATENESS_S, Arguments, Cities, arguments, document, document_id
from quixstreams import Application
from quixstreams.dataframe.windows import Count, Max, Sum
from quixstreams.models import JSONDeserializer, JSONSerializer
from quixstreams.sinks.community.elasticsearch import ElasticsearchSink

END_KEYS = 32
"""So many keys that each partition has some of them."""


def enrich(cities: Cities) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """What a window needs of an event. Messages come one by one, so each look-up is of one provider:
    only the first of a provider waits for it.
    """

    def enriched(event: dict[str, Any]) -> list[dict[str, Any]]:
        amount = event["amount"]
        if event["domain"] == "end":
            # Windows close by later events of their partition alone, and never by a clock.
            return [{"key": f"end|end|{n}", "amount": amount} for n in range(END_KEYS)]
        provider = event["provider_id"]
        city = cities.of((provider,))[provider]
        return [{"key": f"{event['domain']}|{event['event_type']}|{city}", "amount": amount}]

    return enriched


def to_document(window: dict[str, Any], key: str, _time: int, _headers: Any) -> dict[str, Any]:
    domain, event_type, city = key.split("|")
    return document(
        window["start"], domain, event_type, city, window["n"], window["total"], window["most"]
    )


def event_time(value: Any, _headers: Any, _timestamp: float, _type: Any) -> int:
    time: int = value["event_time"]
    return time


def dropped(*_: object) -> bool:
    """Whether a late event is logged: at this rate that would be what takes the time."""
    return False


def run(given: Arguments) -> None:
    with tempfile.TemporaryDirectory(prefix="speed-quix-") as state:
        app = Application(
            broker_address=given.kafka,
            consumer_group=given.index,
            auto_offset_reset="earliest",
            # By it the first process learns that another has come, three seconds later by default:
            # until then it reads on, and windows that it closes are closed for the other too.
            consumer_extra_config={"heartbeat.interval.ms": 200},
            state_dir=state,  # of this process alone
            loglevel="WARNING",
        )
        loads = JSONDeserializer(loads=orjson.loads)
        topic = app.topic(given.topic, value_deserializer=loads, timestamp_extractor=event_time)
        sdf = app.dataframe(topic)
        sdf = sdf.apply(enrich(Cities(given.rest)), expand=True)
        sdf = sdf.group_by(
            "key",
            value_serializer=JSONSerializer(dumps=orjson.dumps),
            value_deserializer=loads,
            key_serializer="str",
            key_deserializer="str",
        )
        sdf = sdf.tumbling_window(
            timedelta(minutes=1), grace_ms=timedelta(seconds=MAX_LATENESS_S), on_late=dropped
        )
        sdf = sdf.agg(n=Count(), total=Sum("amount"), most=Max("amount"))
        # By the time of the partition: by that of the key, its last window would stay open.
        sdf = sdf.final(closing_strategy="partition")
        sdf = sdf.apply(to_document, metadata=True)
        sdf.sink(
            ElasticsearchSink(
                given.elasticsearch,
                given.index,
                document_id_setter=lambda item: document_id(item.value),
            )
        )
        app.run()


def main(given: Arguments) -> None:
    """Each process is a consumer, as its guide to scaling says."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run, args=(given,)) for _ in range(given.workers)]
    for process in processes:
        process.start()

    def stop(*_: object) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    for process in processes:
        process.join()


if __name__ == "__main__":
    main(arguments())
