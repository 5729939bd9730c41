"""The Elasticsearch sink: whatever fails, each document is written, stale or a dead letter."""

import base64
import json
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from tests.elastic_server import BUSY, CONFLICT, MAPPING, Server, Store, serving
from velocity.io.documents import Rejection, rejected
from velocity.io.elastic import WriteToElasticsearch, deletion, operation
from velocity.io.elastic_answers import Fate, Verdict, judge, judge_request
from velocity.io.elastic_bulk import Buffer, DocumentsUnwritten, Limits, Operation, Retry
from velocity.io.elastic_connection import Connection
from velocity.io.elastic_index import IndexPattern
from velocity.io.records import Document, WithDeadLetters

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JANUARY = 1_767_225_600_000


def doc(id: str, events: int = 1, pane: str = "late", **values: Any) -> Document:
    return Document("Job", "metric", JANUARY, JANUARY + 1, {}, values, events, pane, id)


def op(id: str, events: int = 1, **values: Any) -> Operation:
    return operation(doc(id, events, **values), IndexPattern("orders"), NOW)


# -- literal answers ------------------------------------------------------------------------------

BREAKER = """{"index": {"status": 429, "error": {"type": "circuit_breaking_exception",
    "reason": "[parent] Data too large", "durability": "TRANSIENT"}}}"""
FLOOD = """{"index": {"status": 429, "error": {"type": "cluster_block_exception", "reason":
    "index [t] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark]"}}}"""
WRITE_BLOCK = """{"index": {"status": 403, "error": {"type": "cluster_block_exception",
    "reason": "index [t] blocked by: [FORBIDDEN/8/index write (api)];"}}}"""
NO_SHARD = """{"index": {"status": 503, "error": {"type": "unavailable_shards_exception",
    "reason": "[t][0] primary shard is not active Timeout: [1m]"}}}"""
NO_INDEX = """{"index": {"status": 404, "error": {"type": "index_not_found_exception",
    "reason": "no such index [t] and [action.auto_create_index] is [false]"}}}"""
NOT_ALLOWED = """{"index": {"status": 403, "error": {"type": "security_exception",
    "reason": "action [indices:data/write/bulk[s]] is unauthorized for user [velocity]"}}}"""
CLOSED = """{"index": {"_index": "t", "_id": "1", "status": 400, "error": {
    "type": "index_closed_exception", "reason": "closed", "index_uuid": "y62", "index": "t"}}}"""
NO_ROOM = """{"index": {"status": 400, "error": {"type": "validation_exception", "reason":
    "Validation Failed: 1: this action would add [2] shards, but this cluster currently has
    [1000]/[1000] maximum normal shards open;"}}}""".replace("\n", " ")
IMMENSE = """{"index": {"status": 400, "error": {"type": "illegal_argument_exception", "reason":
    "Document contains at least one immense term in field=\\"dimensions.city\\""}}}""".replace(
    "\n", " "
)
CREATED_TWICE = """{"create": {"status": 409, "error": {
    "type": "version_conflict_engine_exception",
    "reason": "[1]: version conflict, document already exists (current version [1])"}}}"""
DELETED = """{"delete": {"_index": "t", "_id": "1", "_version": 7, "result": "deleted",
    "status": 200}}"""
NOT_THERE = """{"delete": {"_index": "t", "_id": "1", "_version": 7, "result": "not_found",
    "status": 404}}"""
OTHER_CONFLICT = """{"index": {"status": 409, "error": {"type": "some_other_exception",
    "reason": "not about versions"}}}"""


@pytest.mark.parametrize(
    ("item", "verdict", "error"),
    [
        ('{"index": {"status": 201}}', Verdict.WRITTEN, ""),
        ('{"index": {"status": 200}}', Verdict.WRITTEN, ""),
        (CONFLICT, Verdict.STALE, "version_conflict_engine_exception: [1]: version conflict"),
        (BUSY, Verdict.RETRY, "es_rejected_execution_exception: rejected"),
        (BREAKER, Verdict.RETRY, "circuit_breaking_exception: [parent]"),
        (FLOOD, Verdict.RETRY, "cluster_block_exception: index [t]"),
        (WRITE_BLOCK, Verdict.RETRY, "cluster_block_exception: index [t]"),
        (NO_SHARD, Verdict.RETRY, "unavailable_shards_exception: [t][0]"),
        (MAPPING, Verdict.REJECTED, "document_parsing_exception: [1:7] failed to parse field [n]"),
        (IMMENSE, Verdict.REJECTED, "illegal_argument_exception: Document contains"),
        (NO_INDEX, Verdict.RETRY, "index_not_found_exception: no such index"),
        (NOT_ALLOWED, Verdict.RETRY, "security_exception: action"),
        (CLOSED, Verdict.RETRY, "index_closed_exception: closed"),
        (NO_ROOM, Verdict.RETRY, "validation_exception: Validation Failed"),
        (CREATED_TWICE, Verdict.STALE, "version_conflict_engine_exception: [1]"),
        (DELETED, Verdict.WRITTEN, ""),
        (NOT_THERE, Verdict.WRITTEN, ""),
        (OTHER_CONFLICT, Verdict.REJECTED, "some_other_exception: not about versions"),
        ('{"index": {"status": 500, "error": "plain words"}}', Verdict.RETRY, "plain words"),
    ],
)
def test_each_document_is_judged_by_its_own_answer(item: str, verdict: Verdict, error: str) -> None:
    judged, told = judge(json.loads(item))
    assert judged is verdict
    assert told.startswith(error)


@pytest.mark.parametrize(
    ("statuses", "fate"),
    [
        ([200], Fate.READ),
        ([0, 408, 429, 500, 502, 503, 504], Fate.RETRY),
        ([413], Fate.SPLIT),
        ([301, 400, 401, 403, 404, 405], Fate.FAIL),  # in no words of Elasticsearch
    ],
)
def test_a_request_fares_by_its_status(statuses: list[int], fate: Fate) -> None:
    assert {judge_request(status) for status in statuses} == {fate}


@pytest.mark.parametrize(
    ("status", "type_", "fate"),
    [
        (403, "cluster_block_exception", Fate.RETRY),
        (429, "circuit_breaking_exception", Fate.RETRY),
        (400, "action_request_validation_exception", Fate.SPLIT),
        (400, "media_type_header_exception", Fate.FAIL),  # else each document would be rejected
        (403, "security_exception", Fate.FAIL),
    ],
)
def test_a_request_that_is_refused_fares_by_the_reason(status: int, type_: str, fate: Fate) -> None:
    body = {"error": {"type": type_, "reason": "as it says"}, "status": status}
    assert judge_request(status, body) is fate


# -- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("Orders", "lower case"),
        ("orders,others", "lower case"),
        ("orders-{window_start:%Y:%m}", "lower case"),
        ("-orders", "begin with"),
        (".orders", "begin with"),
        ("", "begin with"),
        ("x" * 256, "255 bytes"),
        ("orders-{window_end:%Y}", "is not one of"),
        ("orders-{}", "is not one of"),
        ("orders-{job.name}", "is not one of"),
        ("orders-{job!r}", "is not one of"),
        ("orders-{job:>9}", "takes no format"),
        ("orders-{window_start}", "a format of"),
        ("orders-{window_start:%B}", "a format of"),
        ("orders-{window_start:{job}}", "a format of"),
        ("orders-{window_start:%Y%}", "a format of"),
        ("orders-{job", "'}'"),
    ],
)
def test_an_index_that_cannot_be_is_refused_with_its_remedy(pattern: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as refusal:
        IndexPattern(pattern)
    assert repr(pattern) in str(refusal.value)


def test_the_index_follows_from_the_windows_start_in_utc() -> None:
    pattern = IndexPattern("velocity-{job}-{metric}-{window_start:%Y.%m.%d}")
    assert pattern.name(doc("1")) == "velocity-job-metric-2026.01.01"


def test_secrets_show_nowhere() -> None:
    for sink in (
        WriteToElasticsearch("http://127.0.0.1:9", "orders", api_key="hush"),
        WriteToElasticsearch("http://127.0.0.1:9", "orders", basic_auth=("velocity", "hush")),
    ):
        shown = repr(sink) + str(sink) + repr(vars(sink)) + repr(vars(sink._sink))
        assert "hosts=" in shown
        assert "hush" not in shown


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"hosts": ()}, "give URLs"),
        ({"hosts": ("127.0.0.1:9200",)}, "is a URL"),
        ({"hosts": ("http://velocity:hush@127.0.0.1:9200",)}, "basic_auth"),
        ({"hosts": ("http://h",), "api_key": "hush", "basic_auth": ("u", "hush")}, "give one"),
        ({"hosts": ("http://h",), "request_timeout": timedelta()}, "more than zero"),
        ({"hosts": ("http://h",), "cloud_id": "mine:aCRlcyRr"}, "or else a cloud_id"),
        ({"cloud_id": "mine"}, "copy it whole"),
        ({"cloud_id": "mine:bm9uZQ=="}, "copy it whole"),
        ({"hosts": ("https://h",), "fingerprint": "ab:cd"}, "64 hexadecimal digits"),
        ({"hosts": ("https://h",), "fingerprint": "a" * 64, "ca_certs": "ca.crt"}, "give one"),
        ({"hosts": ("https://h", "http://i"), "fingerprint": "a" * 64}, "for https"),
        ({"hosts": ("http://h",), "ca_certs": "ca.crt"}, "for https"),
    ],
)
def test_a_connection_that_cannot_be_is_refused_with_its_remedy(
    options: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy) as refusal:
        Connection(**options)
    assert "hush" not in str(refusal.value)


def test_a_cloud_id_stands_for_its_deployments_address() -> None:
    encoded = base64.b64encode(b"eu.example.com:9243$abc123$def456").decode()
    with Connection(cloud_id=f"production:{encoded}", api_key="a2V5").open() as client:
        [node] = client.transport.node_pool.all()
        assert node.base_url == "https://abc123.eu.example.com:9243"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Limits(documents=0),
        lambda: Limits(age=timedelta()),
        lambda: Limits(size=0),
        lambda: Retry(initial=timedelta()),
        lambda: Retry(longest=timedelta(hours=1)),
    ],
)
def test_limits_and_retries_that_cannot_be_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"give at least|needs"):
        make()


# -- the bulk being filled ------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9), st.integers(0, 200))),
    st.integers(1, 4),
    st.integers(200, 900),
)
def test_a_bulk_keeps_its_limits_and_the_greatest_version_of_each_document(
    added: list[tuple[str, int, int]], documents: int, size: int
) -> None:
    buffer = Buffer(Limits(documents, size), clock=lambda: 0)
    operations = [op(id, events, pad="x" * pad) for id, events, pad in added]
    bulks = [buffer.add(each) for each in operations]
    for before, new in zip(bulks, operations, strict=True):
        full = len(before) == documents or sum(each.size for each in before) + new.size > size
        assert not before or full  # it is never sent early
    bulks.append(buffer.take())
    kept = [each for bulk in bulks for each in bulk]
    for bulk in bulks:
        assert len(bulk) <= documents
        assert len(bulk) <= 1 or sum(each.size for each in bulk) <= size
        assert len({each.id for each in bulk}) == len(bulk)
    assert len(kept) + buffer.superseded == len(operations)
    greatest = {id: max(o.version for o in operations if o.id == id) for id, *_ in added}
    assert {id: max(k.version for k in kept if k.id == id) for id in greatest} == greatest


def test_a_version_that_is_superseded_takes_no_room() -> None:
    buffer = Buffer(Limits(size=3 * op("a").size))
    assert [buffer.add(op(id, n)) for id, n in [("a", 1), ("a", 2), ("a", 3), ("b", 1)]] == [[]] * 4


def test_a_bulk_is_sent_once_its_first_document_has_waited_long_enough() -> None:
    time = [0.0]
    buffer = Buffer(Limits(age=timedelta(seconds=5)), clock=lambda: time[0])
    taken = []
    for at, id in [(100, "a"), (102, "b"), (104.9, "c"), (105, "d"), (109.9, "e"), (110, "f")]:
        time[0] = at
        taken.append("".join(o.id for o in buffer.add(op(id))))
    assert taken == ["", "", "", "abc", "", "de"]


def test_of_a_document_and_its_deletion_the_greater_version_is_sent() -> None:
    for events, kept in [(1, None), (9, op("a", 9).source)]:
        buffer = Buffer(Limits())
        buffer.add(deletion("orders", "a", 7))
        buffer.add(op("a", events))
        assert [operation.source for operation in buffer.take()] == [kept]


def test_the_size_of_a_bulk_is_that_of_its_body() -> None:
    each = op("1")
    assert each.size == len(each.action + b"\n" + (each.source or b"") + b"\n")
    gone = deletion("orders", "1", 7)
    assert gone.size == len(gone.action + b"\n")


def test_what_has_merged_is_a_deletion_that_nothing_of_its_generation_outdoes() -> None:
    gone = operation(doc("a", pane="merged"), IndexPattern("orders"), NOW)
    assert gone.lines == deletion("orders", "a", 2**48 - 1).lines
    later = operation(replace(doc("a", 1, "early"), generation=1), IndexPattern("orders"), NOW)
    assert op("a", 10**9).version < gone.version < later.version


def test_the_index_of_a_session_is_that_of_its_slot_wherever_its_start_moves_to() -> None:
    pattern, slot = IndexPattern("orders-{window_start:%Y.%m}"), JANUARY - 1
    began = [replace(doc("a"), window_start=start, slot=slot) for start in (JANUARY, slot)]
    assert {pattern.name(document) for document in began} == {"orders-2025.12"}


def test_deletions_count_as_far_as_they_took_a_document_away() -> None:
    store = Store()
    bulks = store.bulks()
    assert bulks.write([op("a"), op("b")]).written == 2
    first = bulks.write([deletion("t", "a", 99), deletion("t", "c", 99), op("b")])
    assert (first.written, first.stale, first.removed) == (0, 1, 1)
    again = bulks.write([deletion("t", "a", 99), op("a", 5)])
    assert (again.written, again.stale, again.removed) == (0, 1, 0)
    buffer = Buffer(Limits())
    for operation_ in (op("a"), deletion("t", "a", 99), deletion("t", "a", 99)):
        buffer.add(replace(operation_, index="t"))
    assert buffer.superseded == 1


# -- retries, without a network -------------------------------------------------------------------


def test_only_what_failed_is_sent_again() -> None:
    store = Store("busy")
    outcome = store.bulks().write([op("a"), op("b"), op("c", unmappable=1)])
    assert store.sent == [["a", "b", "c"], ["a", "c"]]
    assert (outcome.written, len(outcome.rejected), outcome.calls, outcome.retries) == (2, 1, 2, 1)


def test_each_wait_may_be_twice_as_long_as_the_last() -> None:
    store = Store("down", "busy", "cut", "down")
    store.bulks(jitter=0.5).write([op("a")])
    assert store.slept == [0.1, 0.2, 0.4, 0.8]


def test_past_the_deadline_the_bundle_fails_and_says_what_went_wrong_first() -> None:
    store = Store("busy", *["down"] * 1_000)
    with pytest.raises(DocumentsUnwritten) as failure:
        store.bulks(jitter=0.999).write([op("a"), op("b"), op("c")])
    assert (failure.value.index, failure.value.count) == ("orders", 2)
    assert "es_rejected_execution_exception" in failure.value.error
    assert 30 < store.now < 60


def test_when_no_retry_helps_the_bundle_fails_at_once() -> None:
    store = Store("unauthorized")
    with pytest.raises(DocumentsUnwritten, match="401"):
        store.bulks().write([op("a")])
    assert store.slept == []


def test_a_refused_bulk_is_halved_in_order_and_waits_for_nothing() -> None:
    store = Store("split", "", "split")
    assert store.bulks().write([op(id) for id in "abcde"]).written == 5
    assert store.sent == [list("abcde"), list("ab"), list("cde"), ["c"], list("de")]
    assert store.slept == []


def test_one_document_that_spoils_its_request_is_found_and_rejected_alone() -> None:
    store = Store()
    outcome = store.bulks().write([op(id) for id in ("a", "b", "poison", "c", "d", "e")])
    assert store.documents.keys() == set("abcde")
    assert [(r.id, r.error) for r in outcome.rejected] == [("poison", "HTTP 400: id is too long")]


def test_an_empty_bulk_is_not_sent() -> None:
    store = Store()
    assert store.bulks().write([]).calls == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", "poison"]), st.integers(1, 9), st.booleans()),
        max_size=20,
    ),
    st.lists(st.sampled_from(["", "down", "busy", "cut", "split"]), max_size=12),
    st.integers(1, 5),
)
def test_whatever_fails_the_greatest_version_stays_and_each_document_is_booked_once(
    added: list[tuple[str, int, bool]], faults: list[str], documents: int
) -> None:
    store, buffer = Store(*faults), Buffer(Limits(documents))
    bulks = store.bulks()
    operations = [op(i, e, **({"unmappable": 1} if bad else {})) for i, e, bad in added]
    sent = [buffer.add(each) for each in operations] + [buffer.take()]
    outcomes = [bulks.write(bulk) for bulk in sent]
    booked = sum(o.written + o.stale + len(o.rejected) for o in outcomes)
    assert booked + buffer.superseded == len(operations)
    good = [o for o in operations if o.id != "poison" and b"unmappable" not in (o.source or b"")]
    lost = {r.id for o in outcomes for r in o.rejected}
    for id in {o.id for o in good} - lost:
        assert store.documents[id] == max(o.version for o in good if o.id == id)


def test_its_error_crosses_a_worker() -> None:
    error = DocumentsUnwritten("HTTP 503", "orders", 3)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "3 documents" in str(error)


# -- the sink, over a socket ----------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


FAST = Retry(timedelta(milliseconds=1), timedelta(milliseconds=5), timedelta(seconds=20))


def sink(server: Server, **options: Any) -> WriteToElasticsearch:
    at_now = partial(datetime, 2026, 1, 1, tzinfo=UTC)
    index = "velocity-{job}-{window_start:%Y.%m}"
    return WriteToElasticsearch(server.url, index, retry=FAST, now=at_now, **options)


def run(server: Server, documents: list[Document], dead: list[Any], **options: Any) -> Counter[str]:
    """Counters of a job that writes documents; ``dead`` are the dead letters it must put out."""
    pipeline = beam.Pipeline(FnApiRunner())
    told = (
        pipeline
        | beam.Create(documents, reshuffle=False)
        | sink(server, **options)
        | beam.FlatMap(lambda batch: batch.to_pylist())
        | beam.Map(lambda row: (row["cause"], row["topic"], row["key"], row["error"]))
    )
    assert_that(told, equal_to(dead))
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query()["counters"]
    return Counter({c.key.metric.name: c.committed for c in found})


@pytest.mark.embedded
def test_documents_are_written_in_bulk_under_their_id_and_version(server: Server) -> None:
    seen = run(server, [doc("1", 2), doc("2", 1, "early"), doc("1", 1)], [])
    assert server.store.documents == {"1": 5, "2": 2}
    assert server.indices == {"velocity-job-2026.01"}
    assert (seen["documents_written"], seen["documents_stale"], seen["bulk_calls"]) == (2, 1, 1)


@pytest.mark.embedded
@pytest.mark.parametrize("fault", ["busy", "503", "429", "cut", "short", "page"])
def test_what_passes_is_outlasted(server: Server, fault: str) -> None:
    server.faults.extend([fault, fault])
    seen = run(server, [doc("1"), doc("2"), doc("3")], [])
    assert server.store.documents == {"1": 3, "2": 3, "3": 3}
    assert (seen["sink_retries"], seen["bulk_calls"]) == (2, 3)
    assert server.calls[fault] == 2


@pytest.mark.embedded
def test_an_answer_lost_after_the_write_does_no_harm(server: Server) -> None:
    server.faults.append("cut")
    seen = run(server, [doc("1", 4)], [])
    assert server.store.sent == [["1"], ["1"]]
    assert server.store.documents == {"1": 9}
    assert (seen["documents_written"], seen["documents_stale"]) == (0, 1)


@pytest.mark.embedded
def test_a_server_that_hangs_is_asked_again(server: Server) -> None:
    server.faults.append("hang")
    run(server, [doc("1")], [], request_timeout=timedelta(milliseconds=200))
    assert server.store.documents == {"1": 3}
    assert server.calls["hang"] == 1


@pytest.mark.embedded
def test_a_bulk_too_large_for_the_server_is_halved_until_it_fits(server: Server) -> None:
    server.largest_body = 700
    whole = doc("whole", pad="x" * 1_000)
    dead = ("rejected", "velocity-job-2026.01", b"whole", "HTTP 413: no reason given")
    run(server, [*(doc(str(i)) for i in range(8)), whole], [dead])
    assert server.store.documents.keys() == set("01234567")


@pytest.mark.embedded
def test_rejected_documents_become_dead_letters_and_the_others_are_written(server: Server) -> None:
    error = json.loads(MAPPING)["index"]["error"]
    index, long = "velocity-job-2026.01", "x" * 600
    dead = [
        ("rejected", index, b"2", f'{error["type"]}: {error["reason"]}; For input string: "x"'),
        (
            "rejected",
            index,
            long.encode(),
            "HTTP 400: action_request_validation_exception: id is too long",
        ),
    ]
    seen = run(server, [doc("1"), doc("2", unmappable=1), doc(long), doc("3")], dead)
    assert server.store.documents.keys() == {"1", "3"}
    assert (seen["documents_written"], seen["dead_letters_rejected"]) == (2, 2)


@pytest.mark.embedded
def test_a_dead_letter_holds_the_document_and_joins_the_earlier_ones(server: Server) -> None:
    earlier = rejected([Rejection("elsewhere", "0", b"{}", "no")], NOW)
    with beam.Pipeline(FnApiRunner()) as pipeline:
        documents = (
            pipeline
            | beam.Create([doc("1", unmappable=1)])
            | beam.WindowInto(beam.window.FixedWindows(60))
        )
        came_with = pipeline | "Earlier" >> beam.Create([earlier])
        values = (
            WithDeadLetters(documents, came_with)
            | sink(server)
            | beam.FlatMap(lambda batch: [json.loads(row["value"]) for row in batch.to_pylist()])
        )
        assert_that(values, equal_to([{}, doc("1", unmappable=1).body(NOW)]))


@pytest.mark.embedded
def test_bulks_are_sent_by_count_and_the_rest_as_the_bundle_ends(server: Server) -> None:
    run(server, [doc(str(i)) for i in range(5)], [], limits=Limits(documents=2))
    assert [len(bulk) for bulk in server.store.sent] == [2, 2, 1]


@pytest.mark.embedded
def test_without_the_right_to_write_the_job_fails_and_nothing_is_retried(server: Server) -> None:
    server.faults.extend(["401"] * 9)
    with pytest.raises(Exception, match=r"1 documents not written.*velocity-job-2026.01.*HTTP 401"):
        run(server, [doc("1")], [], api_key="a2V5")
    assert server.calls["401"] == 1
    assert server.authorization == {"ApiKey a2V5"}


@pytest.mark.embedded
def test_where_nobody_listens_the_job_fails_at_its_deadline(server: Server) -> None:
    server.shutdown()
    server.server_close()
    soon = Retry(*[timedelta(milliseconds=ms) for ms in (1, 5, 20)])
    with (
        pytest.raises(Exception, match="documents not written"),
        beam.Pipeline(FnApiRunner()) as pipeline,
    ):
        _ = (
            pipeline
            | beam.Create([doc("1")])
            | WriteToElasticsearch(server.url, "orders", retry=soon)
        )


@pytest.mark.embedded
def test_versions_written_by_many_jobs_in_any_order_converge(server: Server) -> None:
    documents = [doc(str(i % 7), 1 + i // 7) for i in range(70)]
    chance = random.Random(7)
    for _ in range(3):
        chance.shuffle(documents)
        server.faults.extend(chance.choices(["", "busy", "cut", "503"], k=4))
        run(server, documents, [], limits=Limits(documents=3))
    assert server.store.documents == {str(i): 21 for i in range(7)}
