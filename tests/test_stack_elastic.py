"""Real Elasticsearch, 8.19 and 9: set up from a job, written to, in trouble, and read by an alias."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch
from typer.testing import CliRunner

from tests import replay_jobs
from tests.board_jobs import board, graph, job_text
from tests.cluster import until
from tests.test_totals import ASK, added_up, alert, documents_of
from velocity.io.elastic import deletion, operation
from velocity.io.elastic_alias import Swap, reaching_into, replayed, rollback, swap
from velocity.io.elastic_answers import Verdict, judge
from velocity.io.elastic_bulk import Bulks, DocumentsUnwritten, Operation, Retry, send
from velocity.io.elastic_connection import Connection
from velocity.io.elastic_index import IndexPattern
from velocity.io.elastic_setup import SetupError, apply
from velocity.io.elastic_totals import ElasticTotals
from velocity.io.records import MERGED, Document
from velocity.io.totals import StoreDown, Totals
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import parse
from velocity.pipelines.recompute import differences
from velocity.pipelines.templates import into, setup_of
from velocity.runners.cli import app
from velocity.runners.stack_java import installed_jdks
from velocity.runners.stack_state import read_state

pytestmark = pytest.mark.stack

BOTH = pytest.mark.parametrize("node", [9, 8], indirect=True, scope="module")
"""For what a server of 8 might take in another way."""

JOB = """\
job: NAME
source: {kafka: {bootstrap_servers: h:1, topics: [t]}, event_time: at}
fields: {at: timestamp, city: string, open: bool, code: int64, amount: int64, fee: double}
metrics:
  - name: orders
    by: [city, open, code]
    window: {fixed: 1m}
    values: {n: count(), total: sum(amount), fees: sum(fee), last: max(at), city: min(city)}
sinks: {elasticsearch: {url: "URL", index: "NAME-{window_start:%Y.%m}"}}
dead_letters: {parquet: d}
"""
JANUARY, FEBRUARY, MARCH = 1_767_225_600_000, 1_769_904_000_000, 1_772_323_200_000
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Node:
    """A server of the local stack."""

    folder: Path

    def stack(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "velocity.runners.stack_cli", *arguments]
        subprocess.run(command, env={**os.environ, "VELOCITY_STATE": str(self.folder)}, check=True)

    def kill(self) -> None:
        [server] = read_state(self.folder).components["elasticsearch"].servers
        os.kill(server.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module", params=[9])
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    if request.param == 9 and not any(jdk.feature >= 21 for jdk in installed_jdks()):
        pytest.skip("NOT TESTED: Elasticsearch 9 needs a JDK 21 or later; none is here")
    node = Node(tmp_path_factory.mktemp("elasticsearch"))
    try:
        node.stack("up", "elasticsearch", "--elasticsearch", str(request.param))
        yield node
    finally:
        node.stack("down")


@pytest.fixture(scope="module")
def url(node: Node) -> str:
    found = read_state(node.folder).address("elasticsearch")
    assert found is not None
    return found


@pytest.fixture
def client(url: str) -> Iterator[Elasticsearch]:
    with Connection((url,)).open() as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of a test's own job, index and templates."""
    return f"t{abs(hash(request.node.name)) % 10**9}"


@pytest.fixture
def job(url: str, name: str) -> Job:
    return parse(JOB.replace("NAME", name).replace("URL", url).encode(), "job.yaml").job


def changed(job: Job, **sink: Any) -> Job:
    made = job.model_dump()
    made["sinks"]["elasticsearch"] |= sink
    return Job.model_validate(made)


def with_values(job: Job, **values: str) -> Job:
    made = job.model_dump()
    made["metrics"][0]["values"] = values
    return Job.model_validate(made)


def states(client: Elasticsearch, job: Job, prefix: str = "") -> list[str]:
    return [str(each) for each in apply(client, setup_of(Graph(job, {}), prefix))]


def doc(id: str, start: int = JANUARY, events: int = 1, **values: Any) -> Document:
    city = {"city": "Solo", "open": True, "code": 7}
    return Document("j", "orders", start, start + 60_000, city, values, events, "late", id)


def op(job: Job, document: Document, **options: Any) -> Operation:
    return operation(document, Graph(job, {}).index, NOW, **options)


def answers(client: Elasticsearch, *operations: Operation) -> list[tuple[Verdict, str]]:
    answer = send(client, operations, 60)
    assert answer.error == ""
    return [judge(item) for item in answer.items]


def verdicts(client: Elasticsearch, *operations: Operation) -> list[Verdict]:
    return [verdict for verdict, _ in answers(client, *operations)]


def found(client: Elasticsearch, index: str, **query: Any) -> list[str]:
    client.indices.refresh(index=index)
    hits = client.search(index=index, **query)["hits"]["hits"]
    return sorted(hit["_id"] for hit in hits)


# -- set up ---------------------------------------------------------------------------------------


@BOTH
def test_the_second_set_up_changes_nothing(client: Elasticsearch, job: Job, name: str) -> None:
    job = changed(job, settings={"number_of_replicas": 0, "refresh_interval": "5s"})
    first = states(client, job)
    assert [line.split()[0] for line in first] == ["created"] * 4
    second = states(client, job)
    assert [line.split()[0] for line in second[:3]] == ["unchanged"] * 3
    assert verdicts(client, op(job, doc("1", n=1))) == [Verdict.WRITTEN]
    third = states(client, job)
    assert {line.split()[0] for line in third} == {"unchanged"}
    assert third[-2:] == [f"unchanged  index {name}-2026.01", f"unchanged  alias velocity-{name}"]


@BOTH
def test_documents_are_found_and_counted_by_the_fields_of_the_job(
    client: Elasticsearch, job: Job, name: str
) -> None:
    states(client, job)
    values: dict[str, Any] = {
        "n": 2,
        "total": 2**60 + 1,
        "fees": 0.5,
        "last": "2026-01-01T00:00:30.000Z",
    }
    written = op(job, doc("1", **values, city="x" * 40_000, made_up={"a": {"b": 1}}))
    assert verdicts(client, written) == [Verdict.WRITTEN]
    alias = f"velocity-{name}"
    for field, value in {
        "dimensions.city": "Solo",
        "dimensions.open": True,
        "dimensions.code": 7,
        "values.total": 2**60 + 1,
        "values.last": "2026-01-01T00:00:30Z",
        "pane": "late",
    }.items():
        assert found(client, alias, query={"term": {field: value}}) == ["1"], field
    assert found(client, alias, query={"exists": {"field": "values.made_up"}}) == []
    mapping = client.indices.get_mapping(index=f"{name}-2026.01")[f"{name}-2026.01"]["mappings"]
    assert "made_up" not in mapping["properties"]["values"]["properties"]
    total = client.search(index=alias, size=0, aggs={"fees": {"sum": {"field": "values.fees"}}})[
        "aggregations"
    ]["fees"]["value"]
    assert total == 0.5


def test_what_a_job_adds_is_added_to_the_indices_that_are_there(
    client: Elasticsearch, job: Job, name: str
) -> None:
    states(client, job)
    verdicts(client, op(job, doc("1", n=1)))
    lines = states(client, with_values(job, n="count()", cities="distinct(city)"))
    assert f"changed    index {name}-2026.01: fields added" in lines
    assert f"changed    component template velocity-{name}@mappings" in lines
    verdicts(client, op(job, doc("2", cities=3)))
    assert found(client, f"velocity-{name}", query={"term": {"values.cities": 3}}) == ["2"]


@BOTH
def test_an_index_that_does_not_fit_is_named_and_nothing_is_changed(
    client: Elasticsearch, job: Job, name: str
) -> None:
    before = verdicts(client, op(job, doc("1", n=1, total="twelve")))  # as its fields were guessed
    assert before == [Verdict.WRITTEN]
    with pytest.raises(SetupError) as refusal:
        states(client, job)
    told = str(refusal.value)
    assert f"{name}-2026.01: values.total is text there, and long in the job" in told
    assert f"{name}-2026.01: dimensions.city is text there, and keyword in the job" in told
    assert "--into PREFIX" in told
    assert not client.indices.exists_index_template(name=f"velocity-{name}")


def test_the_users_own_component_goes_before_ours(
    client: Elasticsearch, job: Job, name: str
) -> None:
    client.cluster.put_component_template(
        name=f"velocity-{name}@custom",
        template={"mappings": {"properties": {"values": {"properties": {"n": {"type": "float"}}}}}},
    )
    states(client, job)
    verdicts(client, op(job, doc("1", n=1)))
    index = f"{name}-2026.01"
    mapping = client.indices.get_mapping(index=index)[index]["mappings"]["properties"]
    assert mapping["values"]["properties"]["n"]["type"] == "float"
    assert mapping["values"]["properties"]["total"]["type"] == "long"
    assert {line.split()[0] for line in states(client, job)} == {"unchanged"}


def test_a_second_job_for_the_same_names_is_refused(
    client: Elasticsearch, job: Job, name: str
) -> None:
    states(client, job)
    other = job.model_copy(update={"job": f"{name}b"})
    with pytest.raises(SetupError, match=r"begin sinks.elasticsearch.index in another way"):
        states(client, other)


def test_without_lifecycle_management_the_rest_is_set_up_and_a_note_says_so(
    client: Elasticsearch, job: Job, name: str
) -> None:
    lines = states(client, changed(job, retention=timedelta(days=90)))
    assert lines[0].startswith(f"note       lifecycle policy velocity-{name}: this server has no")
    assert [line.split()[0] for line in lines[1:]] == ["created"] * 4
    assert verdicts(client, op(job, doc("1", n=1))) == [Verdict.WRITTEN]


def test_an_alias_that_is_an_index_is_refused(client: Elasticsearch, job: Job, name: str) -> None:
    client.indices.create(index=f"taken-{name}")
    with pytest.raises(SetupError, match=r"alias: taken-.* is the name of an index"):
        states(client, changed(job, alias=f"taken-{name}"))


# -- answers to documents -------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("trouble", "cure", "kind"),
    [
        (
            lambda client, index: client.indices.close(index=index),
            lambda client, index: client.indices.open(index=index),
            "index_closed_exception",
        ),
        *(
            (
                lambda client, index, block=block: client.indices.put_settings(
                    index=index, settings={f"index.blocks.{block}": True}
                ),
                lambda client, index, block=block: client.indices.put_settings(
                    index=index, settings={f"index.blocks.{block}": None}
                ),
                "cluster_block_exception",
            )
            for block in ("write", "read_only", "read_only_allow_delete")
        ),
    ],
    ids=["closed", "write", "read_only", "read_only_allow_delete"],
)
def test_an_index_that_is_shut_is_waited_for_and_takes_the_document_once_it_is_open(
    client: Elasticsearch, job: Job, name: str, trouble: Any, cure: Any, kind: str
) -> None:
    states(client, job)
    index = f"{name}-2026.01"
    verdicts(client, op(job, doc("1", n=1)))
    trouble(client, index)
    [(verdict, error), (elsewhere, _)] = answers(
        client, op(job, doc("1", events=2, n=2)), op(job, doc("2", FEBRUARY, n=2))
    )
    assert (verdict, elsewhere) == (Verdict.RETRY, Verdict.WRITTEN)
    assert error.startswith(kind)

    slept: list[float] = []

    def mend(seconds: float) -> None:
        slept.append(seconds)
        cure(client, index)

    def write(sleep: Callable[[float], None], retry: Retry) -> Any:
        bulks = Bulks(
            lambda operations, timeout: send(client, operations, timeout),
            retry,
            timedelta(seconds=60),
            sleep,
            lambda: 0.001,
        )
        return bulks.write([op(job, doc("1", events=3, n=3))])

    with pytest.raises(DocumentsUnwritten, match=kind):
        write(lambda _: None, Retry.lasting(timedelta(milliseconds=1)))
    outcome = write(mend, Retry.lasting(timedelta(minutes=5)))
    assert (outcome.written, len(slept)) == (1, 1)
    assert client.get(index=index, id="1")["_source"]["values"] == {"n": 3}


@BOTH
def test_what_can_never_be_stored_is_rejected_alone_with_the_reason(
    client: Elasticsearch, job: Job
) -> None:
    states(client, job)
    told = answers(
        client,
        op(job, doc("1", n="many")),
        op(job, doc("2", total=2**63)),
        op(job, doc("3", n=3)),
        op(job, doc("4", fees=float("nan"))),
    )
    assert [verdict for verdict, _ in told] == [
        Verdict.REJECTED,
        Verdict.REJECTED,
        Verdict.WRITTEN,
        Verdict.REJECTED,
    ]
    assert told[0][1].startswith("document_parsing_exception: ")
    assert "values.n" in told[0][1]
    assert "values.total" in told[1][1]


@BOTH
def test_a_cluster_that_takes_no_further_index_is_waited_for(
    client: Elasticsearch, job: Job
) -> None:
    states(client, job)
    client.cluster.put_settings(persistent={"cluster.max_shards_per_node": 1})
    try:
        [(verdict, error)] = answers(client, op(job, doc("1", n=1)))
        assert (verdict, error.split(":")[0]) == (Verdict.RETRY, "validation_exception")
    finally:
        client.cluster.put_settings(persistent={"cluster.max_shards_per_node": None})
    assert verdicts(client, op(job, doc("1", n=1))) == [Verdict.WRITTEN]


def test_a_cluster_that_makes_no_index_by_itself_is_waited_for(
    client: Elasticsearch, job: Job
) -> None:
    client.cluster.put_settings(persistent={"action.auto_create_index": "false"})
    try:
        [(verdict, error)] = answers(client, op(job, doc("1", n=1)))
        assert (verdict, error.split(":")[0]) == (Verdict.RETRY, "index_not_found_exception")
    finally:
        client.cluster.put_settings(persistent={"action.auto_create_index": None})


@BOTH
def test_the_greatest_version_stays_and_a_deletion_is_a_version_too(
    client: Elasticsearch, job: Job, name: str
) -> None:
    states(client, job)
    index = f"{name}-2026.01"
    written, stale = Verdict.WRITTEN, Verdict.STALE
    assert verdicts(client, op(job, doc("1", events=2, n=2))) == [written]
    assert verdicts(client, op(job, doc("1", events=2, n=9))) == [stale]
    assert verdicts(client, deletion(index, "1", 4)) == [stale]
    assert verdicts(client, deletion(index, "1", 7), deletion(index, "2", 7)) == [written, written]
    assert verdicts(client, op(job, doc("1", events=2, n=2))) == [stale]  # it stays away
    assert found(client, index) == []
    assert verdicts(client, op(job, doc("1", events=4, n=4))) == [written]


@BOTH
def test_what_has_merged_goes_stays_away_and_comes_again_in_a_later_generation(
    client: Elasticsearch, job: Job, name: str
) -> None:
    made = job.model_dump()
    made["metrics"][0] |= {"window": {"session": "1m"}, "emit": {"lateness": "1h"}}
    job = Job.model_validate(made)
    states(client, job)
    slot = FEBRUARY - 60_000
    orphan = replace(doc("1", FEBRUARY - 1, events=2, n=2), slot=slot)
    moved = replace(doc("1", FEBRUARY, events=1, n=1), slot=slot)
    merged = replace(doc("1", slot), pane=MERGED, slot=slot)
    index, written = f"{name}-2026.01", Verdict.WRITTEN
    assert verdicts(client, op(job, moved), op(job, orphan)) == [written, written]
    assert found(client, f"velocity-{name}") == ["1"]
    unknown = replace(merged, id="2")
    assert verdicts(client, op(job, merged), op(job, unknown)) == [written, written]
    later = replace(orphan, events=10**9)
    assert verdicts(client, op(job, later), op(job, replace(later, id="2"))) == [Verdict.STALE] * 2
    assert found(client, f"velocity-{name}") == []
    assert verdicts(client, op(job, replace(moved, generation=1))) == [written]
    assert found(client, index) == ["1"]
    last = replace(merged, generation=32_767)
    assert verdicts(client, op(job, last)) == [written]
    settings = client.indices.get_settings(index=index)[index]["settings"]["index"]
    assert settings["gc_deletes"] == "1h"


def test_an_id_too_long_spoils_no_other_document(client: Elasticsearch, job: Job) -> None:
    states(client, job)
    bulks = Bulks(
        lambda operations, timeout: send(client, operations, timeout),
        Retry(),
        timedelta(seconds=60),
    )
    outcome = bulks.write([op(job, doc(id_, n=1)) for id_ in ("1", "x" * 600, "2", "3")])
    assert (outcome.written, [r.id for r in outcome.rejected]) == (3, ["x" * 600])
    assert "HTTP 400" in outcome.rejected[0].error


def test_a_server_that_is_killed_and_started_again_has_each_document_once(
    node: Node, client: Elasticsearch, job: Job, name: str
) -> None:
    states(client, job)
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:  # it was tried in vain before
            node.stack("up", "elasticsearch")

    bulks = Bulks(
        lambda operations, timeout: send(client, operations, timeout),
        Retry.lasting(timedelta(minutes=5)),
        timedelta(seconds=60),
        wait,
    )
    written = 0
    for i in range(4):
        if i == 2:
            node.kill()
        outcome = bulks.write([op(job, doc(f"{i}-{n}", n=n)) for n in range(50)])
        written += outcome.written
        assert outcome.rejected == []
    assert (written, len(waits) >= 3) == (200, True)
    client.indices.refresh(index=f"velocity-{name}")
    assert client.count(index=f"velocity-{name}")["count"] == 200


def test_a_set_up_beside_a_running_writer_keeps_no_document_back(
    client: Elasticsearch, url: str, job: Job, name: str
) -> None:
    states(client, job)
    ended = threading.Event()
    booked: list[Verdict] = []

    def write() -> None:
        with Connection((url,)).open() as own:
            for n in range(10_000):
                booked.extend(verdicts(own, op(job, doc(str(n), n=n))))
                if ended.is_set():
                    return

    writer = threading.Thread(target=write)
    writer.start()
    until(lambda: booked != [])
    for i in range(3):
        values = {f"v{n}": "count()" for n in range(i + 1)}
        assert any("fields added" in line for line in states(client, with_values(job, **values)))
    ended.set()
    writer.join()
    assert set(booked) == {Verdict.WRITTEN}
    client.indices.refresh(index=f"velocity-{name}")
    assert client.count(index=f"velocity-{name}")["count"] == len(booked)


# -- data streams ---------------------------------------------------------------------------------


@BOTH
def test_a_data_stream_takes_each_document_once(client: Elasticsearch, job: Job, name: str) -> None:
    job = changed(job, index=f"{name}-stream", data_stream=True, retention=timedelta(days=30))
    assert [line.split()[0] for line in states(client, job)] == ["created"] * 4
    once = [op(job, doc(id_, n=1), create_only=True) for id_ in "12"]
    assert verdicts(client, *once) == [Verdict.WRITTEN] * 2
    assert verdicts(client, *once) == [Verdict.STALE] * 2  # a bundle that is tried again
    assert found(client, f"velocity-{name}") == ["1", "2"]
    [backing] = client.indices.get_mapping(index=f"{name}-stream")
    assert backing.startswith(f".ds-{name}-stream-")
    assert {line.split()[0] for line in states(client, job)} == {"unchanged"}
    with pytest.raises(SetupError, match=rf"data stream {name}-stream is there"):
        states(client, changed(job, data_stream=False, retention=None))


# -- aliases --------------------------------------------------------------------------------------


@BOTH
def test_an_alias_is_swapped_to_what_a_replay_has_written_and_back(
    client: Elasticsearch, job: Job, name: str
) -> None:
    own = setup_of(Graph(job, {}))
    alias = f"velocity-{name}"
    states(client, job)
    verdicts(client, op(job, doc("old", n=1)), op(job, doc("next", FEBRUARY, n=1)))

    other = into(job, "corrected-")
    with pytest.raises(SetupError, match="replay into it first"):
        swap(client, own, "corrected-")
    states(client, other, "corrected-")
    verdicts(client, op(other, doc("new", n=2)))
    assert found(client, alias) == ["next", "old"]  # nobody reads what is not whole

    for _ in range(2):
        moved = swap(client, own, "corrected-")
        assert found(client, alias) == ["new", "next"]
    assert (moved.added, moved.removed) == ([], [])
    states(client, job)  # the live job starts again: the swap holds
    assert found(client, alias) == ["new", "next"]

    back = rollback(client, own, "corrected-")
    assert (back.added, back.removed) == ([f"{name}-2026.01"], [f"corrected-{name}-2026.01"])
    assert found(client, alias) == ["next", "old"]
    rollback(client, own, "corrected-")
    assert found(client, alias) == ["next", "old"]

    verdicts(client, op(other, doc("also", FEBRUARY, n=2)), op(other, doc("only", MARCH, n=2)))
    for _ in range(2):
        swap(client, own, "corrected-")
        assert found(client, alias) == ["also", "new", "only"]
    client.indices.delete(index=f"{name}-2026.01")
    with pytest.raises(SetupError, match=f"{name}-2026.01 is there no more"):
        rollback(client, own, "corrected-")  # not even February, which is there
    assert found(client, alias) == ["also", "new", "only"]


def test_what_replaced_nothing_is_read_no_more_after_a_rollback(
    client: Elasticsearch, job: Job, name: str
) -> None:
    own, other = setup_of(Graph(job, {})), into(job, "corrected-")
    states(client, job)
    states(client, other, "corrected-")
    verdicts(client, op(job, doc("old", n=1)), op(other, doc("only", MARCH, n=2)))
    swap(client, own, "corrected-")
    assert found(client, f"velocity-{name}") == ["old", "only"]
    rollback(client, own, "corrected-")
    assert found(client, f"velocity-{name}") == ["old"]


def test_a_second_correction_takes_the_place_of_the_first_and_gives_it_back(
    client: Elasticsearch, job: Job, name: str
) -> None:
    own, alias = setup_of(Graph(job, {})), f"velocity-{name}"
    states(client, job)
    verdicts(client, op(job, doc("old", n=1)))
    for prefix in ("a-", "b-"):
        states(client, into(job, prefix), prefix)
        verdicts(client, op(into(job, prefix), doc(prefix, n=2)))
        swap(client, own, prefix)
        assert found(client, alias) == [prefix]
    rollback(client, own, "b-")
    assert found(client, alias) == ["a-"]
    rollback(client, own, "a-")
    assert found(client, alias) == ["old"]


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_a_swap_hides_what_was_replayed_and_nothing_else(
    client: Elasticsearch, job: Job, name: str, stream: bool
) -> None:
    if stream:
        job = changed(job, index=f"{name}-stream", data_stream=True)
    own, alias, minute = setup_of(Graph(job, {})), f"velocity-{name}", 60_000

    def write(to: Job, *documents: Document) -> None:
        verdicts(client, *(op(to, document, create_only=stream) for document in documents))

    states(client, job)
    write(job, *(doc(f"m{n}", JANUARY + n * minute) for n in range(3)))
    for n, prefix in enumerate(("a-", "b-")):
        other, start = into(job, prefix), JANUARY + n * minute
        states(client, other, prefix)
        write(other, doc(f"{prefix}m{n}", start))
        for _ in range(2):
            replayed(client, own, prefix, reaching_into(start, start + minute, MARCH))
        moved = swap(client, own, prefix)
        assert moved.removed == []
    both = ["a-m0", "b-m1", "m2"]
    assert found(client, alias) == both
    # The live job goes on, in what was replayed and after it.
    write(job, doc("m0 late", JANUARY), doc("m3", JANUARY + 3 * minute))
    assert found(client, alias) == [*both, "m3"]
    for prefix in ("a-", "b-"):
        assert swap(client, own, prefix) == Swap(alias, [], [], [])
    # In any order.
    rollback(client, own, "a-")
    assert found(client, alias) == ["b-m1", "m0", "m0 late", "m2", "m3"]
    swap(client, own, "a-")
    assert found(client, alias) == [*both, "m3"]
    rollback(client, own, "b-")
    assert found(client, alias) == ["a-m0", "m1", "m2", "m3"]
    rollback(client, own, "a-")
    assert found(client, alias) == ["m0", "m0 late", "m1", "m2", "m3"]


def test_what_a_replay_was_to_write_is_known_by_its_windows(
    client: Elasticsearch, job: Job, name: str
) -> None:
    states(client, job)
    minute = 60_000
    some = [doc(f"m{n}", JANUARY + n * minute) for n in range(5)]
    alerts = [replace(each, id=f"alert {each.id}", metric="alerts") for each in some]
    verdicts(client, *(op(job, document) for document in [*some, *alerts]))
    stop = JANUARY + 4 * minute
    query = reaching_into(JANUARY + minute + 1, stop, stop, {"alerts": JANUARY + 3 * minute})
    wanted = ["alert m1", "alert m2", "m1", "m2", "m3"]
    assert found(client, f"velocity-{name}", query=query) == wanted
    query = reaching_into(JANUARY + minute, stop, stop - 1)
    wanted = ["alert m1", "alert m2", "m1", "m2"]
    assert found(client, f"velocity-{name}", query=query) == wanted


def test_a_replay_corrects_by_a_generation_or_a_swap_and_overwrites_nothing_that_knows_more(
    url: str, client: Elasticsearch, name: str, tmp_path: Path
) -> None:
    path, alias = tmp_path / "job.yaml", f"velocity-{name}"
    sink = f'{{elasticsearch: {{url: "{url}", index: "{name}-{{window_start:%Y.%m}}"}}}}'
    text = replay_jobs.JOB.replace("job: orders", f"job: {name}")
    text = text.replace("{sqlite: {path: /nonexistent/documents.db}}", sink)
    [ever] = [line for line in text.splitlines(keepends=True) if "global: true" in line]
    text = text.replace(ever, "")  # no range holds all of it
    text += f"archive: {{path: {tmp_path}/archive, raw: true}}\n"
    corrected = text.replace("by: [city]", "by: [city]\n    where: amount > 25")
    job, right = (parse(each.encode(), "job.yaml").job for each in (text, corrected))
    history = [replay_jobs.Event(minute, "s1", 20 + minute % 2 * 10) for minute in range(120)]
    replay_jobs.archive(job, history)
    day = replay_jobs.START, replay_jobs.START + timedelta(days=1)
    wanted, wanted_now = (replay_jobs.recomputed(each, history, *day) for each in (job, right))
    [id_] = [each for each, document in wanted.items() if document.metric == "by_day"]

    def replay(of: str, *options: str) -> str:
        path.write_text(of)
        between = ("--from", day[0].isoformat(), "--to", day[1].isoformat(), "--workers", "1")
        done = CliRunner().invoke(app, ["replay", str(path), *between, *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    def read() -> dict[str, Any]:
        client.indices.refresh(index=alias)
        return {
            h["_id"]: h["_source"] for h in client.search(index=alias, size=999)["hits"]["hits"]
        }

    total = len(wanted)
    states(client, job)
    assert f"{total} new, 0 changed" in replay(text, "--compare")
    assert client.indices.get(index=f"{name}-*", allow_no_indices=True).body == {}
    replay(text)
    assert list(differences(wanted, read())) == []
    assert f"{total} the same" in replay(text, "--compare")

    # The live job has counted an event more: it stays, and the correction counts fewer yet.
    body = read()[id_]
    live = Document(
        name,
        "by_day",
        body["window_start"],
        body["window_end"],
        {},
        {"orders": 121},
        121,
        "late",
        id_,
    )
    start = int(datetime.fromisoformat(body["window_start"]).timestamp() * 1000)
    verdicts(client, op(job, replace(live, window_start=start, window_end=start + 86_400_000)))
    replay(text)
    assert read()[id_]["values"] == {"orders": 121}
    said = replay(corrected, "--compare")
    assert f"{total - 1} the same, 1 older than what is stored" in said
    replay(corrected)
    assert read()[id_]["values"] == {"orders": 121}

    # Of another day of the month, and not replayed.
    after = int(day[1].timestamp() * 1000) + 60_000
    verdicts(client, op(job, replace(live, id="after", window_start=after, window_end=after + 1)))
    replay(text, "--into", "corrected-", "--generation", "2")
    assert read()[id_]["values"] == {"orders": 121}
    said = replay(corrected, "--into", "corrected-", "--generation", "3", "--swap")
    assert said.splitlines() == [
        f"{alias} + corrected-{name}-2026.01",
        f"{alias} ~ {name}-2026.01",
    ]
    swapped = read()
    assert swapped.pop("after")["values"] == {"orders": 121}
    assert list(differences(wanted_now, swapped)) == []
    done = CliRunner().invoke(app, ["alias", "rollback", str(path), "corrected-"])
    assert done.exit_code == 0, done.output
    assert read()[id_]["values"] == {"orders": 121}

    said = replay(corrected, "--generation", "1", "--compare")
    assert f"1 changed, {total - 1} the same" in said
    assert f"~ {id_}: " in said
    assert "events 121 → 60" in said
    replay(corrected, "--generation", "1")
    client.delete(index=f"{name}-2026.01", id="after")
    assert list(differences(wanted_now, read())) == []


def test_the_command_says_what_it_has_changed(
    url: str, client: Elasticsearch, job: Job, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.replace("NAME", name).replace("URL", url))

    def velocity(*arguments: str) -> str:
        command = [sys.executable, "-c", "from velocity.runners.cli import main; main()"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert velocity("setup", str(path)).splitlines()[0].startswith("created")
    verdicts(client, op(job, doc("1", n=1)), op(into(job, "b-"), doc("1", n=1)))
    assert velocity("alias", "swap", str(path), "b-").splitlines() == [
        f"velocity-{name} + b-{name}-2026.01",
        f"velocity-{name} - {name}-2026.01",
    ]
    back = json.loads(velocity("alias", "rollback", str(path), "b-", "--json"))
    assert back["removed"] == [f"b-{name}-2026.01"]


def test_an_index_pattern_knows_the_names_that_it_makes() -> None:
    pattern = IndexPattern("{job}-{metric}-{window_start:%Y.%m}")
    made = pattern.name(doc("1"))
    assert pattern.makes(made, "j", ["orders"])
    assert not pattern.makes(f"corrected-{made}", "j", ["orders"])
    assert not pattern.makes(made, "j", ["order"])


# -- the board ------------------------------------------------------------------------------------


@BOTH
def test_the_board_is_told_what_adding_up_the_documents_gives(
    client: Elasticsearch, url: str, name: str
) -> None:
    """As SQLite's answers are in test_totals.py: so both stores tell the same."""
    text = job_text(name)
    for old, new in (("by_all", "m"), ("n: count(), least: min(amount)", "n: count()")):
        text = text.replace(old, new)
    text = text.replace("most: max(amount)", "amount: max(amount)").replace(
        "by: [city, tier, open, code]", "by: [city, open]"
    )
    shown = graph(text.replace("http://h:1", url))
    list(apply(client, setup_of(shown)))
    store = ElasticTotals(client, [f"velocity-{name}"], board(text).types)
    assert store.latest() == {} and store.keys([name], "city", "", 9) == []
    assert store.totals([replace(ASK, job=name, split=("city",))]) == [Totals((), (), False)]

    chance = random.Random(7)
    cities = ("Jakarta", "Solo", "Depok", None)
    panes = ("early", "on_time", "late")
    rows = [
        (
            chance.randrange(-3, 13),
            chance.choice(cities),
            chance.random() < 0.5,
            chance.choice(panes),
            chance.randrange(1, 10),
            chance.choice([None, chance.randrange(10**9)]),
        )
        for _ in range(150)
    ]
    documents = [replace(d, job=name) for d in documents_of(rows)]
    alerts = [
        replace(alert(id_, status, JANUARY + i, city), job=name)
        for i, (id_, status, city) in enumerate(
            [("t1", "stuck", "Solo"), ("t2", "stuck", "Depok"), ("t3", "resolved", "Solo")]
        )
    ]
    operations = [operation(d, shown.index, NOW) for d in [*documents, *alerts]]
    assert set(verdicts(client, *operations)) == {Verdict.WRITTEN}
    client.indices.refresh(index=f"{name}-*")

    asks = [
        replace(ASK, job=name, every=every, where=where, split=split, top=top)
        for every in (None, 60_000, 300_000)
        for where in ((), (("city", "Solo"),), (("open", "true"),))
        for split in ((), ("city",), ("city", "open"))
        for top in (2, 9)
    ]
    assert store.totals(asks) == [added_up(documents, ask) for ask in asks]
    latest = store.latest()[name, "m"]
    assert latest.window_start == max(d.window_start for d in documents)
    assert store.latest()[name, "m"] == store.latest()[name, "m"]
    assert store.keys([name], "city", "So", 9) == ["Solo"]
    assert store.keys([name], "open", "t", 9) == ["true"]

    # Found although it was written at the same time as the others, and is no newer.
    mark = store.latest()[name, "m"].mark
    changed = replace(documents[0], events=documents[0].events + 50)
    assert verdicts(client, operation(changed, shown.index, NOW)) == [Verdict.WRITTEN]
    until(lambda: store.latest()[name, "m"].mark != mark, 30)


@BOTH
def test_the_board_lists_the_stuck_transactions_of_elasticsearch(
    client: Elasticsearch, url: str, name: str
) -> None:
    text = (Path(__file__).parent.parent / "pipelines" / "transactions.yaml").read_text()
    text = text.replace("job: transactions", f"job: {name}").replace("velocity-transactions", name)
    shown = Graph(parse(text.encode(), "job.yaml").job, {"ELASTICSEARCH": url})
    list(apply(client, setup_of(shown)))
    found = [
        ("t1", "stuck", JANUARY + 5, "Solo"),
        ("t2", "stuck", JANUARY, "Depok"),
        ("t3", "resolved", JANUARY, "Solo"),
    ]
    for given in found:
        written = operation(replace(alert(*given), job=name), shown.index, NOW)
        assert verdicts(client, written) == [Verdict.WRITTEN]
    client.indices.refresh(index=f"{name}-*")
    store = ElasticTotals(client, [f"velocity-{name}"], {})
    alerts = store.alerts([name], JANUARY, JANUARY + 60_000, (), 9)
    assert [(a.transaction, a.since) for a in alerts.oldest] == [
        ("t2", JANUARY),
        ("t1", JANUARY + 5),
    ]
    assert (alerts.stuck, alerts.by_status) == (2, {"stuck": 2, "resolved": 1})
    assert store.alerts([name], JANUARY, JANUARY + 60_000, (("city", "Solo"),), 9).stuck == 1


def test_an_elasticsearch_that_is_not_there_is_down_with_its_reason() -> None:
    store = ElasticTotals(Connection(("http://127.0.0.1:1",)).open(), ["velocity-x"], {})
    with pytest.raises(StoreDown, match="Elasticsearch: "):
        store.latest()
    store.close()
