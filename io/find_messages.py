"""Messages that hold a text, looked for in all of a job's topics, or in its raw archive."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.archive_files import Kind, files_of, open_parquet
from velocity.io.archive_read import Between, groups, rows_of
from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_consumer import offsets_to_read, open_consumer
from velocity.io.kafka_readers import READERS
from velocity.io.kafka_topics import topics_of
from velocity.io.records import MESSAGES

_AT_ONCE = 20_000

Progress = Callable[[int, int], None]
"""Told how many messages have been looked at, of how many."""


def in_kafka(
    config: KafkaConfig,
    topics: Sequence[str],
    text: bytes,
    *,
    since: datetime | None = None,
    progress: Progress = lambda done, of: None,
) -> Iterator[pa.RecordBatch]:
    """Batches of those ``MESSAGES`` whose value holds the text, up to the end as it is now.

    Raises ``KafkaReadError``.
    """
    with closing(open_consumer(config)) as consumer:
        parts = [
            part
            for topic in topics_of(consumer, config, topics)
            for part in offsets_to_read(consumer, config, topic, since or "earliest", "latest")
        ]
    of, before = sum(part.stop - part.start for part in parts), 0
    for part in parts:
        if part.start == part.stop:
            continue
        reader = READERS.take(config, part.topic, part.partition, part.start)
        try:
            while reader.position < part.stop:
                found = reader.poll(min(_AT_ONCE, part.stop - reader.position))
                if not found.num_rows:
                    reader.expect_more()
                wanted = found.filter(pc.match_substring(found["value"], text))
                if wanted.num_rows:
                    yield wanted
                progress(before + reader.position - part.start, of)
        finally:
            reader.close()
        before += part.stop - part.start


def in_raw_archive(
    path: str, job: str, text: bytes, *, since: datetime | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of those archived ``MESSAGES`` whose value holds the text."""
    for file in files_of(path, Kind.RAW, job, since):
        with open_parquet(file.path) as opened:
            for group in range(opened.num_row_groups):
                table = opened.read_row_group(group, MESSAGES.names)
                found = table.filter(pc.match_substring(table["value"], text))
                for batch in found.combine_chunks().to_batches():
                    yield batch.cast(MESSAGES)


def in_enriched_archive(
    path: str, job: str, schema: pa.Schema, column: str, value: str, between: Between | None
) -> Iterator[pa.RecordBatch]:
    """Archived rows of ``schema`` whose column, as text, is the value."""
    times = (between.first, between.last) if between else (None, None)
    everything = between or Between(-(2**63), 2**63 - 1)
    for file in files_of(path, Kind.ENRICHED, job, *times):
        with open_parquet(file.path) as opened:
            wanted = [name for name in schema.names if name in opened.schema_arrow.names]
            if column not in wanted:
                continue
            for group in groups(opened, file.path, everything):
                table = opened.read_row_group(group, [*wanted, "_offset"])
                table = table.filter(pc.equal(table[column].cast(pa.string()), value))
                if table.num_rows:
                    yield from rows_of(table, file, schema).combine_chunks().to_batches()
