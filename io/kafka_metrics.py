"""What a read tells of each partition, by counters and gauges that name its topic and number."""

from functools import cache
from typing import Any

from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from velocity.io.metrics import counter, gauge


class PartitionMetrics:
    """The metrics of one partition: ``<name>_<topic>_<partition>`` in the namespace ``velocity``."""

    def __init__(self, topic: str, partition: int) -> None:
        def of(make: Any, name: str) -> Any:
            return make(name, topic=topic, partition=partition)

        self._messages, self._bytes = of(counter, "messages"), of(counter, "bytes")
        self._lag, self._delay = of(gauge, "lag"), of(gauge, "delay_ms")
        self._watermark = of(gauge, "watermark_ms")

    def read(self, messages: int, size: int) -> None:
        """So many messages, and bytes of their values."""
        self._messages.inc(messages)
        self._bytes.inc(size)

    def seen(self, newest: Timestamp, now: Timestamp) -> None:
        """The greatest event time of a batch, and when it was read."""
        self._delay.set(_millis(now - newest))

    def bundle_ended(self, lag: int | None, watermark: Timestamp) -> None:
        """How many offsets are not read yet, if that is known, and where the watermark is."""
        if lag is not None:
            self._lag.set(lag)
        if watermark > MIN_TIMESTAMP:
            self._watermark.set(_millis(watermark))


def _millis(time: Any) -> int:
    return int(time.micros // 1000)


@cache
def metrics_of(topic: str, partition: int) -> PartitionMetrics:
    """Those of a partition; made once, for a name is looked up in each bundle otherwise."""
    return PartitionMetrics(topic, partition)
