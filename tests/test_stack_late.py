"""Late events on a real Flink: in a document or in the dead letters, as the recomputation has it."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.cluster import VELOCITY, interrupt
from tests.flink_jobs import in_time, not_final, stored
from velocity.io.dead_letter_store import ParquetLetters
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import Message, recompute_all
from velocity.runners.embedded import EmbeddedKafka

pytestmark = pytest.mark.stack

T0 = 1_767_225_600_000  # 2026-01-01T00:00:00Z
JOB = """
job: late
source:
  kafka: {bootstrap_servers: "${KAFKA}", topics: [events]}
  event_time: at
  disorder: 5s
  idle_after: 5s
fields: {at: timestamp_ms, k: string, v: int64}
metrics:
  - {name: minute, by: [k], window: {fixed: 1m}, emit: {early: 1s}, values: {n: count()}}
  - {name: patient, window: {fixed: 1m}, emit: {lateness: 40s}, values: {spread: stddev(v)}}
  - {name: hour, window: {fixed: 1h}, values: {n: count(), most: "top(k, 2)", latest: last(v)}}
  - {name: sliding, by: [k], window: {sliding: 2m, every: 30s}, values: {total: sum(v)}}
  - {name: visit, by: [k], window: {session: 10s}, values: {n: count(), first: first(v)}}
  - name: stay
    by: [k]
    window: {session: 10s}
    emit: {early: 1s, lateness: 40s}
    values: {n: count(), total: sum(v), last: last(v)}
  - {name: ever, by: [k], window: {global: true}, emit: {early: 1s}, id: "ever-{k}", values: {n: count()}}
sinks: {sqlite: {path: documents.db}}
dead_letters: {parquet: dead}
"""


def test_each_late_event_is_a_dead_letter_that_names_its_metrics_and_no_other_is_missing(
    tmp_path: Path,
) -> None:
    """Four partitions that are read at once, each with events far behind its own latest."""
    job, store, dead = tmp_path / "job.yaml", tmp_path / "documents.db", tmp_path / "dead"
    job.write_text(JOB)
    messages: list[Message] = []
    with EmbeddedKafka({"events": 4}) as kafka:
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        draw = random.Random(7)
        for partition in range(4):
            for i in range(5_000):
                behind = draw.choice([0, 0, 0, 0, 3_000, 6_000, 90_000])
                at = T0 + i * 100 + partition * 700_000 - draw.randrange(behind + 1)
                event = {"at": at, "k": draw.choice("abcdefgh"), "v": draw.randrange(100)}
                value = json.dumps(event).encode()
                producer.produce("events", value, partition=partition, timestamp=at)
                messages.append(Message(value, at, partition))
            producer.flush(30)
        expected = recompute_all(parse(JOB.encode(), "job.yaml").job, messages, {})
        assert {name for _, name in expected.late} == {
            "minute",
            "patient",
            "hour",
            "sliding",
            "visit",
            "stay",
        }
        command = ["run", job, "--runner", "flink", "--flink-master", "local"]
        command += ["--sqlite", store, "--dead-letters", dead]
        environ = {"KAFKA": kafka.bootstrap_servers, "VELOCITY_STATE": str(tmp_path / "state")}

        with (tmp_path / "stderr").open("wb") as told:
            run = subprocess.Popen(
                [*VELOCITY, *map(str, command)], env={**os.environ, **environ}, stderr=told
            )
        try:
            left = in_time(
                lambda: not_final(expected.documents, stored(store)),
                goes_on=lambda: run.poll() is None,
            )
            assert left[:5] == [], (tmp_path / "stderr").read_text()
        finally:
            interrupt(run)
    found = ParquetLetters(str(dead), "late").read()
    assert found.problems == []
    named = set()
    for letter in found.letters:
        assert (letter.stage, letter.cause) == ("metrics", "late")
        assert letter.partition is not None
        assert letter.offset is not None
        position = letter.partition * 5_000 + letter.offset
        assert letter.value == messages[position].value
        named |= {
            (position, part.split(" (window from ")[0])
            for part in letter.error.removeprefix("too late for ").split("; the")[0].split("), ")
        }
    assert named == expected.late
