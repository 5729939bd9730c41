"""The REST lookup, against a service on a real socket that fails in every way it can."""

import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rest_service import (
    Answers,
    Call,
    Pauses,
    Reply,
    Service,
    by_key,
    client,
    echo,
    endless,
    known,
    reset,
    service,
    silent,
    status,
    whole,
)
from velocity.io.budget import Budget
from velocity.io.lookup_cache import Cache
from velocity.io.rest import RestLookup, Retries, Timeouts, Verdict, verdict
from velocity.io.rest_breaker import Breaker, Breaking, Host
from velocity.io.rest_calls import NoAnswer, Request, Template
from velocity.io.rest_client import session
from velocity.io.rest_tokens import NoToken, Token, Tokens

pytestmark = pytest.mark.embedded

SECRET = "Bearer s3cr3t-t0ken-of-the-clinic"


def the_error(answers: Answers) -> str:
    (error,) = set(answers.failed.values())
    return error


@pytest.mark.parametrize(("keys", "max_keys"), [(0, 3), (1, 3), (3, 3), (7, 3), (10, 1), (8, 100)])
def test_unknown_keys_take_as_few_calls_as_max_keys_allows(keys: int, max_keys: int) -> None:
    names = [f"k{n}" for n in range(keys)]
    with service(knows=names) as server, client(server.url, max_keys=max_keys) as rest:
        answers = rest.lookup(names[::-1])
        assert len(server.calls) == ceil(keys / max_keys)
        assert sorted(server.calls) == [
            names[at : at + max_keys] for at in range(0, keys, max_keys)
        ]
    assert dict(answers.found) == {name: server.objects[name] for name in names}
    made = {name: count for name, count in answers.counts.items() if count}
    assert made == {
        name: count
        for name, count in {
            "rest_calls": ceil(keys / max_keys),
            "rest_keys": keys,
            "cache_misses": keys,
        }.items()
        if count
    }
    assert sum(answers.samples.get("rest_call_keys", ())) == keys
    assert len(answers.samples.get("rest_call_ms", ())) == ceil(keys / max_keys)


def test_a_key_that_the_answer_leaves_out_is_missing() -> None:
    with service(knows=["a"]) as server, client(server.url) as rest:
        answers = rest.lookup(["a", "b"])
    assert answers.found.keys() == {"a"}
    assert answers.missing == {"b"}
    assert not answers.failed


def test_an_integer_id_answers_for_its_text() -> None:
    with service(knows=[7]) as server, client(server.url) as rest:
        assert rest.lookup(["7"]).found == {"7": {"id": 7, "city": "City of 7"}}


def test_answers_that_nobody_asked_for_are_not_taken() -> None:
    uninvited = status(200, b'[{"id": "a"}, {"id": "c"}]')
    with service(uninvited) as server, client(server.url) as rest:
        assert rest.lookup(["a"]).found.keys() == {"a"}
        assert rest.lookup(["c"]).missing == {"c"}
        assert server.calls == [["a"], ["c"]]


def test_items_are_found_at_their_path() -> None:
    nested = status(200, b'{"data": {"items": [{"id": "a"}]}}')
    with (
        service(nested) as server,
        client(Template(server.url, id=("id",), items="data.items")) as rest,
    ):
        assert rest.lookup(["a"]).found == {"a": {"id": "a"}}


def test_a_retry_comes_no_sooner_than_retry_after_says() -> None:
    pauses = Pauses()
    script = (status(429, Retry_After="7"), status(503, Retry_After="soon"))
    with service(*script, knows=["a"]) as server, client(server.url, pauses=pauses) as rest:
        answers = rest.lookup(["a"])
        assert server.calls == [["a"]] * 3
    assert answers.found.keys() == {"a"}
    assert pauses == [7.0, 0.4]
    assert (answers.counts["rest_calls"], answers.counts["rest_retries"]) == (3, 2)


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_storm_ends_when_the_retries_are_used_up(code: int) -> None:
    pauses = Pauses()
    script = [status(code)] * 3
    with service(*script, knows=["a"]) as server, client(server.url, pauses=pauses) as rest:
        answers = rest.lookup(["a"])
        assert server.calls == [["a"]] * 3
        assert pauses == [0.2, 0.4]
        assert f"status {code}" in the_error(answers)
        assert rest.lookup(["a"]).found.keys() == {"a"}, "a failure was remembered"


def test_a_key_that_spoils_its_call_is_found_and_the_others_are_answered() -> None:
    def bad_for_c(call: Call) -> None:
        (call.answer(422, b"") if "c" in call.keys else echo(call))

    with service(usual=bad_for_c) as server, client(server.url) as rest:
        answers = rest.lookup(list("abcd"))
        assert server.calls == [["a", "b", "c", "d"], ["a", "b"], ["c", "d"], ["c"], ["d"]]
    assert answers.found.keys() == {"a", "b", "d"}
    assert answers.failed.keys() == answers.refused == {"c"}
    assert answers.counts["rest_splits"] == 2


@pytest.mark.parametrize("code", [413, 414, 431])
def test_a_call_that_is_too_large_is_split_and_the_next_ones_stay_small(code: int) -> None:
    def two_at_most(call: Call) -> None:
        (call.answer(code, b"") if len(call.keys) > 2 else echo(call))

    with service(usual=two_at_most) as server, client(server.url) as rest:
        assert rest.lookup(list("abcdefgh")).found.keys() == set("abcdefgh")
        assert [len(keys) for keys in server.calls] == [8, 4, 2, 2, 4, 2, 2]
        server.calls.clear()
        assert rest.lookup(list("ijkl")).found.keys() == set("ijkl")
        assert [len(keys) for keys in server.calls] == [2, 2]


def test_an_answer_that_is_too_large_is_asked_for_in_parts() -> None:
    body = len(json.dumps([{"id": key} for key in "ab"]))
    with service(usual=echo) as server, client(server.url, max_bytes=body) as rest:
        assert rest.lookup(list("abcd")).found.keys() == set("abcd")
        assert len(server.calls) == 3


def test_a_call_that_takes_too_long_is_split_so_that_the_slow_key_is_alone() -> None:
    def slow_for_a(call: Call) -> None:
        (silent(call) if "a" in call.keys else echo(call))

    # A second, so that the others are answered in time on a busy machine too.
    options: dict[str, Any] = {"timeouts": Timeouts(read=1), "retries": Retries(total=2)}
    with service(usual=slow_for_a) as server, client(server.url, **options) as rest:
        answers = rest.lookup(list("abcd"))
        assert answers.failed.keys() == {"a"}
        assert answers.found.keys() == set("bcd")
        assert answers.refused == set()


START = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 ", b"O"),
        (START + b"Content-Length: 2\r\nX-Slow: ", b"."),
        (START + b"Content-Length: 1000\r\n\r\n", b" "),
        (START + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["before it", "status line", "headers", "body", "chunks"],
)
def test_an_answer_that_comes_in_drops_is_given_up_at_the_total_deadline(
    begin: bytes, drop: bytes
) -> None:
    def drops(call: Call) -> None:
        call.close_connection = True
        call.wfile.write(begin)
        for _ in range(1000):
            call.wfile.write(drop)
            call.server.moved += 1
            if call.server.over.wait(0.001):
                return

    with service(drops) as server:
        server.moved = 0
        # Ten seconds of this clock pass with each drop.
        timeouts = Timeouts(read=10, total=100)
        options: dict[str, Any] = {"timeouts": timeouts, "retries": Retries(total=0)}
        with client(server.url, clock=lambda: 10.0 * server.moved, **options) as rest:
            assert "not all came within 100 s" in the_error(rest.lookup(["a"]))
        assert server.moved < 1000


def test_an_answer_that_stops_in_its_headers_is_given_up_at_the_total_deadline() -> None:
    def stops(call: Call) -> None:
        call.close_connection = True
        call.wfile.write(START + b"X-Slow: ")
        call.server.over.wait()

    options: dict[str, Any] = {"retries": Retries(total=0), "clock": time.monotonic}
    timeouts = Timeouts(read=3600, total=0.2)
    with service(stops) as server, client(server.url, timeouts=timeouts, **options) as rest:
        assert "not all came within 0.2 s" in the_error(rest.lookup(["a"]))


def test_each_call_of_a_connection_has_all_of_its_time() -> None:
    moved = [0.0]

    def late(call: Call) -> None:
        moved[0] += 90
        known(call)

    options: dict[str, Any] = {"timeouts": Timeouts(total=100), "clock": lambda: moved[0]}
    with service(late, late, late, knows="abc") as server, client(server.url, **options) as rest:
        for key in "abc":
            assert rest.lookup([key]).found.keys() == {key}


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (status(200, b"<html>proxy", Content_Type="text/html"), "not JSON"),
        (status(200, b"\xff\xfe\xfa"), "not JSON"),
        (status(200, b""), "not JSON"),
        (status(200, b'[{"id": "a", "v": NaN}]'), "not JSON"),
        (status(200, b"[" * 100_000), "not JSON"),
        (status(200, b'{"error": "busy"}'), "is not a list"),
        (status(200, b'[{"key": "a"}]'), "no string or integer 'id'"),
        (status(200, b'[{"id": null}]'), "no string or integer 'id'"),
        (status(200, b'[{"id": true}]'), "no string or integer 'id'"),
        (status(200, b'["a"]'), "no string or integer 'id'"),
        (status(403, b"forbidden"), "not status 200"),
        (status(204), "not status 200"),
    ],
)
def test_what_is_no_answer_fails_at_once_and_is_described(reply: Reply, says: str) -> None:
    with service(reply) as server, client(server.url) as rest:
        answers = rest.lookup(["a", "b"])
        assert len(server.calls) == 1
    assert answers.failed.keys() == {"a", "b"}
    error = the_error(answers)
    assert error.startswith(f"http://127.0.0.1:{server.server_port}/providers: ")
    assert says in error
    assert "status 2" in error or "status 403" in error
    assert "content type" in error
    assert len(error) < 500


def test_a_body_without_the_path_of_its_items_fails() -> None:
    lacking = status(200, b'{"data": []}')
    with (
        service(lacking) as server,
        client(Template(server.url, id=("id",), items="data.items")) as rest,
    ):
        assert "has nothing at 'data.items'" in the_error(rest.lookup(["a"]))


def test_404_for_a_key_asked_alone_means_missing() -> None:
    with service(status(404)) as server, client(server.url) as rest:
        assert rest.lookup(["a"]).missing == {"a"}


def test_404_for_several_keys_says_nothing_of_each() -> None:
    def unknown_without_a(call: Call) -> None:
        (echo(call) if call.keys == ["a"] else call.answer(404, b""))

    with service(usual=unknown_without_a) as server, client(server.url) as rest:
        answers = rest.lookup(["a", "b"])
    assert answers.found.keys() == {"a"}
    assert answers.missing == {"b"}


def test_a_body_of_just_max_bytes_is_taken_and_one_byte_more_is_not() -> None:
    body = b'[{"id": "a"}]'
    with service(*[status(200, body)] * 2) as server:
        with client(server.url, max_bytes=len(body)) as rest:
            assert rest.lookup(["a"]).found.keys() == {"a"}
        with client(server.url, max_bytes=len(body) - 1) as rest:
            assert "more than max_bytes (12)" in the_error(rest.lookup(["a"]))


@pytest.mark.parametrize(
    "reply", [endless(200), endless(302, Location="/else"), endless(400), endless(503)]
)
def test_no_answer_is_read_without_bound(reply: Reply) -> None:
    with service(*[reply] * 3) as server, client(server.url, max_bytes=100_000) as rest:
        assert rest.lookup(["a"]).failed.keys() == {"a"}
        assert not server.sent_all.is_set()


def test_an_answer_cut_off_in_its_body_is_asked_for_again() -> None:
    with service(reset, knows=["a"]) as server, client(server.url) as rest:
        answers = rest.lookup(["a"])
    assert answers.found.keys() == {"a"}
    assert answers.counts["rest_retries"] == 1


@pytest.mark.parametrize("sessions", [session, lambda config: requests.Session()])
def test_a_redirect_is_not_followed_and_the_error_says_so(
    sessions: Callable[[RestLookup], requests.Session],
) -> None:
    with service(status(302, Location="/else?ids=a"), knows=["a"]) as server:
        with client(server.url, sessions=sessions) as rest:
            error = the_error(rest.lookup(["a"]))
        assert server.calls == [["a"]]
    assert "a redirect, which is not followed" in error
    assert "/else" not in error


def test_an_answer_slower_than_the_read_timeout_is_not_waited_for() -> None:
    options: dict[str, Any] = {"timeouts": Timeouts(read=0.05), "retries": Retries(total=1)}
    with service(silent, silent, knows=["a"]) as server, client(server.url, **options) as rest:
        answers = rest.lookup(["a"])
        assert "ReadTimeout" in the_error(answers)
    assert (answers.counts["rest_calls"], answers.counts["rest_retries"]) == (2, 1)


def test_a_service_that_is_not_there_fails_the_keys() -> None:
    with service() as server:
        url = server.url
    with client(url) as rest:
        answers = rest.lookup(["a", "b"])
    assert answers.failed.keys() == {"a", "b"}
    assert "Connection refused" in the_error(answers)
    assert answers.counts["rest_calls"] == 3


def test_a_cached_key_is_not_asked_for_until_its_time_is_over() -> None:
    now = [0.0]
    cache = Cache(ttl=600, missing_ttl=30)
    with service(knows=["a"]) as server:
        with client(server.url, clock=lambda: now[0], cache=cache) as rest:
            first = rest.lookup(["a", "b"])
            for now[0], asked in [(29.9, 1), (30.0, 2), (599.9, 3), (600.0, 4), (1199.9, 5)]:
                again = rest.lookup(["a", "b"])
                assert again[:3] == first[:3]
                assert len(server.calls) == asked
        assert server.calls == [["a", "b"], ["b"], ["b"], ["a"], ["b"]]
    assert again.counts["cache_hits"] == again.counts["cache_misses"] == 1


def test_an_old_answer_is_used_while_a_new_one_is_asked_for_behind_it() -> None:
    now = [0.0]
    cache = Cache(ttl=10, stale_while_revalidate=5)
    clocked: dict[str, Any] = {"clock": lambda: now[0], "cache": cache}
    with service(knows=["a"]) as server, client(server.url, **clocked) as rest:
        rest.lookup(["a"])
        server.objects["a"]["city"] = "moved"
        now[0] = 12.0
        old = rest.lookup(["a"])
        assert old.found["a"]["city"] == "City of a"
        assert old.counts["cache_stale"] == 1
        while len(server.calls) < 2 or rest._flights:
            time.sleep(0.01)
        new = rest.lookup(["a"])
        assert new.found["a"]["city"] == "moved"
        assert old.counts.get("rest_calls", 0) + new.counts.get("rest_calls", 0) == 1


def test_an_old_answer_stands_in_where_the_service_fails_and_not_for_ever() -> None:
    now = [0.0]
    cache = Cache(ttl=10, stale_if_error=60)
    clocked: dict[str, Any] = {"clock": lambda: now[0], "cache": cache}
    with service(knows=["a"]) as server, client(server.url, **clocked) as rest:
        rest.lookup(["a"])
        server.usual = status(500)
        now[0] = 69.9
        again = rest.lookup(["a"])
        assert again.found["a"]["city"] == "City of a"
        assert again.counts["cache_stale"] == 1
        now[0] = 70.0
        assert rest.lookup(["a"]).failed.keys() == {"a"}


def test_no_key_is_asked_for_twice_at_the_same_time() -> None:
    held = threading.Event()
    asked = threading.Event()

    def hold(call: Call) -> None:
        asked.set()
        held.wait(30)
        echo(call)

    with service(usual=hold) as server, client(server.url, max_keys=2) as rest:
        first = rest.begin(["a", "b", "c"])
        asked.wait(30)
        second = rest.begin(["b", "c", "d"])
        with ThreadPoolExecutor(4) as threads:
            more = [threads.submit(rest.lookup, ["a", "d"]) for _ in range(4)]
            held.set()
            assert by_key(["b", "c", "d"], second()).found.keys() == {"b", "c", "d"}
            assert by_key(["a", "b", "c"], first()).found.keys() == {"a", "b", "c"}
            assert all(answer.result().found.keys() == {"a", "d"} for answer in more)
        assert sorted(key for keys in server.calls for key in keys) == ["a", "b", "c", "d"]


def test_more_keys_than_the_cache_holds_are_all_answered() -> None:
    names = [f"k{n}" for n in range(50)]
    options: dict[str, Any] = {"cache": Cache(size=3), "max_keys": 7}
    with service(knows=names) as server, client(server.url, **options) as rest:
        assert rest.lookup(names).found.keys() == set(names)


def test_as_many_calls_as_concurrency_run_at_once_on_as_many_connections() -> None:
    together = threading.Barrier(4, timeout=30)
    connections: set[int] = set()

    def meet(call: Call) -> None:
        together.wait()
        connections.add(call.client_address[1])
        echo(call)

    names = [f"k{n}" for n in range(12)]
    with service(*[meet] * 12) as server, client(server.url, max_keys=1, concurrency=4) as rest:
        assert rest.lookup(names).found.keys() == set(names)
    assert len(connections) == 4


def test_equal_lookups_share_one_cache_also_after_pickling() -> None:
    with service(knows=["a"]) as server:
        calls = Template(server.url, id=("id",))
        lookup = RestLookup(calls, headers={"Authorization": SECRET})
        copy = pickle.loads(pickle.dumps(lookup))
        assert copy == lookup
        first, again = lookup.begin(["a"], whole)(), copy.begin(["a"], whole)()
        assert first.values == again.values == [server.objects["a"]]
        assert len(server.calls) == 1
        other = RestLookup(calls, headers={"Authorization": "another"})
        assert other.begin(["a"], whole)().values == [server.objects["a"]]
        assert len(server.calls) == 2, "a lookup with other credentials saw cached answers"


def test_neither_secrets_nor_keys_are_shown() -> None:
    def tell_all(call: Call) -> None:
        body = f"{SECRET} or {SECRET[7:]} of patient-1"
        call.answer(400, body.encode() + b"." * 500, {"X-Private": "no"})

    headers = {"Authorization": SECRET, "X-Empty": ""}
    with service(tell_all, reset, knows=["a"]) as server:
        options: dict[str, Any] = {"headers": headers, "retries": Retries(total=0)}
        config = RestLookup(Template(server.url, id=("id",)), **options)
        with client(server.url, **options) as rest:
            shown = [repr(config), the_error(rest.lookup(["patient-1"]))]
            shown.append(the_error(rest.lookup(["patient-1"])))
        assert server.requests[0]["Authorization"] == SECRET
    with client(server.url, **options) as rest:
        shown.append(the_error(rest.lookup(["patient-1"])))
    for text in shown:
        for secret in (SECRET, SECRET[7:], "q5ecret", "patient-1", "X-Private"):
            assert secret not in text
    assert "*** or *** of ***" in shown[1]


def test_nothing_is_carried_from_one_call_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with service(status(200, b"[]", Set_Cookie="seen=1")) as server:
        with client(server.url, headers={"Authorization": SECRET}) as rest:
            rest.lookup(["a"])
            rest.lookup(["b"])
        assert [call["Authorization"] for call in server.requests] == [SECRET, SECRET]
        assert "Cookie" not in server.requests[1]


def test_a_key_that_the_url_cannot_hold_is_missing_and_never_asked() -> None:
    with service(*[echo] * 2) as server:
        with client(server.url) as rest:
            assert rest.lookup(["", ".."]).missing == {""}
        assert server.calls == [[".."]]
        path = f"http://127.0.0.1:{server.server_port}/providers/{{keys}}"
        with client(path) as rest:
            answers = rest.lookup(["..", "."])
        assert answers.missing == {".", ".."}
        assert server.calls == [[".."]]


@pytest.fixture(scope="module")
def echoing() -> Iterator[Service]:
    with service() as server:
        server.script = [echo] * 1_000_000
        yield server


@settings(max_examples=60, deadline=None)
@given(st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=6))
def test_every_key_arrives_as_it_is(echoing: Service, keys: set[str]) -> None:
    with client(echoing.url, max_keys=4) as rest:
        assert rest.lookup(sorted(keys)).found == {key: {"id": key} for key in keys}


@given(
    retry=st.integers(0, 100),
    retry_after=st.none() | st.text() | st.integers(-5, 10**6).map(str),
    part=st.floats(0, 1),
)
def test_a_pause_is_never_longer_than_its_limits(
    retry: int, retry_after: str | None, part: float
) -> None:
    retries = Retries(longest=10, longest_retry_after=60)
    pause = retries.pause(retry, retry_after, lambda low, high: low + part * (high - low))
    assert 0 <= pause <= (10 if retry_after is None else 60)


def test_a_retry_after_that_is_over_asks_for_no_pause() -> None:
    over = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert Retries().pause(0, over, lambda low, high: low) == 0.0


URL = "http://127.0.0.1:1/providers?ids={keys}"
CALLS = Template(URL, id=("id",))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Template("http://127.0.0.1:1/providers"), "url: write {keys} once"),
        (lambda: Template("http://127.0.0.1:1/{keys}/{keys}"), "url: write {keys} once"),
        (lambda: Template("http://127.0.0.1:1/{key}/{keys}"), "url: write {keys} once"),
        (lambda: Template("http://127.0.0.1:1/{keys}/{kye}"), "url: {kye} is no part of the key"),
        (lambda: Template("ftp://127.0.0.1/{keys}"), "url: start with http"),
        (lambda: Template("http://u:p@127.0.0.1/{keys}"), "url: move the cred"),
        (lambda: Template("http://127.0.0.1/#{keys}"), "url: {keys} goes into"),
        (lambda: Template("http://{key}.example/"), "url: {keys} goes into"),
        (lambda: Template(URL, id=("",)), "id: name the field"),
        (lambda: Template(URL, id=("a b",)), "id: 'a b' is no JMESPath"),
        (lambda: Template(URL, items="a..b"), "items: 'a..b' is no JMESPath"),
        (lambda: Template(URL, columns=("a", "b")), "url: {keys} is for a key of one column"),
        (lambda: Template("http://h/{a}", columns=("a", "b")), "url: write {b}, a part"),
        (lambda: Template("http://h", "POST", {"i": "{keys}"}, ("a", "b")), "id: name the fields"),
        (lambda: RestLookup(CALLS, max_keys=0), "max_keys"),
        (lambda: RestLookup(CALLS, concurrency=0), "concurrency"),
        (lambda: RestLookup(CALLS, max_bytes=0), "max_bytes"),
        (lambda: RestLookup(CALLS, rate=0), "rate: give"),
        (lambda: RestLookup(CALLS, headers={"X-Key": "s3cr3t\n"}), "headers: 'X-Key'"),
        (lambda: RestLookup(CALLS, headers={"X-Key": "s3cr3t\u2013"}), "headers: 'X-Key'"),
        (lambda: RestLookup(CALLS, headers={"X Key": "s3cr3t"}), "headers: 'X Key'"),
        (lambda: RestLookup("nosuch:Calls"), "python: 'nosuch' can't be imported"),
        (lambda: RestLookup("json:Calls"), "python: 'json' has no 'Calls'"),
        (lambda: RestLookup("json:loads"), "python: json:loads has no request"),
        (lambda: RestLookup("json"), "python: give MODULE:NAME"),
        (lambda: Breaking(failures=0), "breaker.failures"),
        (lambda: Breaking(open_for=0), "breaker.open_for"),
        (lambda: Token(), "token: give exactly one"),
        (lambda: Token("http://h", command="x"), "token: give exactly one"),
        (lambda: Token("http://h"), "token: url needs client_id"),
        (lambda: Token(command="'"), "token.command: "),
        (lambda: Cache(stale_if_error=-1), "cache.stale_if_error"),
        (lambda: Cache(redis="127.0.0.1"), "cache.redis: give redis://"),
        (lambda: Timeouts(total=0), "timeouts.total"),
        (lambda: Timeouts(connect=0), "timeouts.connect"),
        (lambda: Timeouts(read=-1), "timeouts.read"),
        (lambda: Retries(total=-1), "retries.total"),
        (lambda: Retries(base=-1), "retries.base"),
        (lambda: Retries(base=5, longest=1), "retries.longest"),
        (lambda: Retries(longest_retry_after=-1), "retries.longest_retry_after"),
        (lambda: Cache(ttl=-1), "cache.ttl"),
        (lambda: Cache(missing_ttl=-1), "cache.missing_ttl"),
        (lambda: Cache(size=0), "cache.size"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_key(
    make: Callable[[], object], says: str
) -> None:
    with pytest.raises(ValueError) as raised:
        make()
    assert str(raised.value).startswith(says)
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (408, Verdict.RETRY),
        (429, Verdict.RETRY),
        (500, Verdict.RETRY),
        (504, Verdict.RETRY),
        (400, Verdict.SPLIT),
        (404, Verdict.SPLIT),
        (413, Verdict.SPLIT),
        (401, Verdict.RENEW),
        (403, Verdict.FAIL),
        (204, Verdict.FAIL),
        (301, Verdict.FAIL),
        (501, Verdict.FAIL),
    ],
)
def test_a_status_says_what_to_do(status: int, what: Verdict) -> None:
    assert verdict(status) is what


def test_a_service_that_fails_is_left_alone_and_one_call_shows_that_it_is_back() -> None:
    now = [0.0]
    host = Host(Breaker(Breaking(failures=3, open_for=5), clock=lambda: now[0]))
    options: dict[str, Any] = {"retries": Retries(total=0), "cache": Cache(missing_ttl=0)}
    down = status(503)
    with service(usual=down) as server, client(server.url, host=host, **options) as rest:
        for key in "abcdef":
            answers = rest.lookup([key])
        assert server.calls == [["a"], ["b"], ["c"]]
        assert "not asked, as calls failed several times in a row; the last: not status 200" in (
            the_error(answers)
        )
        assert not answers.refused
        assert answers.counts["rest_held"] == 1
        assert answers.states == {"breaker_rest": 2}

        now[0] = 5.0
        assert rest.lookup(["g"]).failed.keys() == {"g"}  # the probe
        assert rest.lookup(["h"]).failed.keys() == {"h"}
        assert server.calls[3:] == [["g"]]

        now[0], server.usual = 10.0, echo
        assert rest.lookup(["i"]).found.keys() == {"i"}
        answers = rest.lookup(["j"])
        assert answers.found.keys() == {"j"}
        assert answers.states == {"breaker_rest": 0}


def test_429_asks_for_patience_and_opens_no_breaker() -> None:
    host = Host(Breaker(Breaking(failures=1)))
    script = [status(429)] * 2
    with service(*script, usual=echo) as server, client(server.url, host=host) as rest:
        assert rest.lookup(["a"]).found.keys() == {"a"}


def test_calls_to_a_host_keep_their_rate() -> None:
    pauses = Pauses()
    host = Host(Breaker(Breaking()), Budget(4.0, clock=lambda: 0.0))
    options: dict[str, Any] = {"max_keys": 1, "concurrency": 1, "pauses": pauses}
    with service(usual=echo) as server, client(server.url, host=host, **options) as rest:
        assert rest.lookup(list("abcd")).found.keys() == set("abcd")
    assert pauses == [0.25, 0.5, 0.75]


def test_a_body_is_posted_with_the_keys_as_the_job_has_them() -> None:
    body = {"ids": "{keys}", "fields": ["city"], "of": {"tenant": "x"}}
    with service(knows=[7, 8]) as server:
        template = Template(f"{server.host}/find", "POST", body, ("n",), frozenset({"n"}), ("id",))
        with client(template) as rest:
            found = rest.lookup(["7", "8", "9"])
        assert server.paths == ["/find"]
        assert server.calls == [[7, 8, 9]]
        assert server.requests[0]["Content-Type"] == "application/json"
    assert found.found.keys() == {"7", "8"}
    assert found.missing == {"9"}


def test_a_service_that_takes_one_key_is_asked_for_each_alone() -> None:
    def one(call: Call) -> None:
        key = unquote(call.path.rpartition("/")[2])
        (call.answer(404, b"") if key == "z" else call.answer(200, json.dumps({"n": key}).encode()))

    with service(usual=one) as server, client(Template(f"{server.host}/p/{{key}}")) as rest:
        answers = rest.lookup(["a", "b/c", "z"])
        assert sorted(server.paths) == ["/p/a", "/p/b%2Fc", "/p/z"]
    assert answers.found == {"a": {"n": "a"}, "b/c": {"n": "b/c"}}
    assert answers.missing == {"z"}


def test_a_key_of_several_columns_is_asked_for_by_its_parts() -> None:
    def stock(call: Call) -> None:
        call.answer(200, json.dumps({"path": call.path}).encode())

    with service(usual=stock) as server:
        template = Template(f"{server.host}/{{shop}}?item={{item}}", columns=("shop", "item"))
        with client(template) as rest:
            answers = rest.lookup(["S 1\x1fA&B", "S 1", "S\x1f"])
    assert answers.found == {"S 1\x1fA&B": {"path": "/S%201?item=A%26B"}}
    assert answers.missing == {"S 1", "S\x1f"}, "a part that is not there was asked for"


def test_keys_of_several_columns_are_posted_together_and_told_apart_by_their_ids() -> None:
    def pairs(call: Call) -> None:
        wanted = json.loads(call.body)["ids"]
        found = [{"of": pair, "n": i} for i, pair in enumerate(wanted) if pair["item"] != 9]
        call.answer(200, json.dumps({"rows": found}).encode())

    with service(usual=pairs) as server:
        template = Template(
            f"{server.host}/find",
            "POST",
            {"ids": "{keys}"},
            ("shop", "item"),
            frozenset({"item"}),
            ("of.shop", "of.item"),
            "rows",
        )
        with client(template) as rest:
            answers = rest.lookup(["a\x1f1", "a\x1f2", "b\x1f9"])
        assert json.loads(server.bodies[0]) == {
            "ids": [{"shop": "a", "item": 1}, {"shop": "a", "item": 2}, {"shop": "b", "item": 9}]
        }
    assert {key: answer["n"] for key, answer in answers.found.items()} == {"a\x1f1": 0, "a\x1f2": 1}
    assert answers.missing == {"b\x1f9"}


def test_answers_may_be_an_object_by_key() -> None:
    by_id = status(200, b'{"data": {"a": {"n": 1}, "b": null, "x": {"n": 2}}}')
    with service(by_id) as server, client(Template(server.url, items="data")) as rest:
        answers = rest.lookup(["a", "b", "c"])
    assert answers.found == {"a": {"n": 1}}
    assert answers.missing == {"b", "c"}


@pytest.mark.parametrize(
    ("template", "body", "says"),
    [
        ({}, b"[]", "is not an object by key; give id for a list"),
        ({}, b'{"a": 7}', "holds what is not an object"),
        ({"items": "abs(x)"}, b'{"x": "y"}', "items can't be found: JMESPathTypeError"),
    ],
)
def test_what_is_no_object_by_key_is_told(template: Any, body: bytes, says: str) -> None:
    with service(status(200, body)) as server, client(Template(server.url, **template)) as rest:
        assert says in the_error(rest.lookup(["a"]))


class Reversed:
    """A hook: this service has its keys reversed, and answers in lines."""

    def can_ask(self, key: str) -> bool:
        return key.isalpha()

    def request(self, keys: Sequence[str]) -> Request:
        lines = "\n".join(key[::-1] for key in keys)
        return Request("POST", f"{os.environ['REVERSED']}/lines", lines.encode())

    def answers(self, body: bytes, keys: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        if body == b"?":
            raise NoAnswer("a question")
        lines = [line.split("=") for line in body.decode().splitlines()]
        return {key[::-1]: {"value": value} for key, value in lines}


def test_a_class_of_ones_own_makes_requests_and_reads_answers_and_the_rest_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lines(call: Call) -> None:
        call.answer(200, b"\n".join(key + b"=1" for key in call.body.split()))

    script = (status(503), status(413), status(200, b"?"))
    with service(*script, usual=lines) as server:
        monkeypatch.setenv("REVERSED", server.host)
        config = RestLookup("tests.test_rest:Reversed", retries=Retries(base=0))
        answers = by_key(["ab", "cd", "7"], config.begin(["ab", "cd", "7"], whole)())
    assert answers.missing == {"7"}
    assert answers.found == {"cd": {"value": "1"}}
    assert the_error(answers).startswith("tests.test_rest:Reversed: a question: status 200")
    assert answers.counts["rest_retries"] == answers.counts["rest_splits"] == 1


def test_a_token_is_renewed_before_it_ends_and_when_it_is_not_taken() -> None:
    now, issued = [0.0], [0]

    def tokens(call: Call) -> None:
        if call.path == "/token":
            assert call.body == b"grant_type=client_credentials&scope=read"
            assert call.headers["Authorization"].startswith("Basic ")
            issued[0] += 1
            token = {"access_token": f"t{issued[0]}", "expires_in": 100, "token_type": "bearer"}
            return call.answer(200, json.dumps(token).encode())
        good = call.headers["Authorization"] == f"Bearer t{max(issued[0], revoked[0])}"
        return echo(call) if good else call.answer(401, b"")

    revoked = [0]
    with service(usual=tokens) as server:
        token = Token(f"{server.host}/token", "me", "s3cr3t", scope="read")
        options: dict[str, Any] = {"clock": lambda: now[0], "token": token}
        with client(server.url, **options) as rest:
            assert rest.lookup(["a"]).found.keys() == {"a"}
            assert rest.lookup(["b"]).found.keys() == {"b"}
            assert issued == [1]
            now[0] = 71.0  # within the margin of its end
            assert rest.lookup(["c"]).found.keys() == {"c"}
            assert issued == [2]
            revoked[0] = 3
            answers = rest.lookup(["d"])
            assert answers.found.keys() == {"d"}
            assert issued == [3]
            revoked[0] = 9  # no token is taken: once is enough
            answers = rest.lookup(["e"])
            assert "status 401" in the_error(answers)
            assert issued == [4]
    assert "s3cr3t" not in repr(token)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (status(403), "answered with status 403 and no token"),
        (status(200, b"[]"), "answered with status 200 and no token"),
        (status(200, b"<html>"), "JSONDecodeError"),
        (status(200, b'{"access_token": "a b"}'), "what came is no token"),
    ],
)
def test_without_a_token_nothing_is_asked_and_the_error_says_why(reply: Reply, says: str) -> None:
    with service(usual=reply) as server:
        token = Token(f"{server.host}/token", "me", "s3cr3t")
        with client(server.url, token=token) as rest:
            assert says in the_error(rest.lookup(["a"]))
        assert set(server.paths) == {"/token"}


def test_a_token_that_comes_in_drops_is_given_up() -> None:
    def drops(call: Call) -> None:
        call.close_connection = True
        call.wfile.write(START)
        for n in range(1000):
            call.wfile.write(b"X-Slow: %d\r\n" % (n % 10) if n % 20 == 0 else b"")
            if call.server.over.wait(0.01):
                return
        body = b'{"access_token": "t0ken"}'
        call.wfile.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    with service(drops) as server:
        tokens = Tokens(Token(f"{server.host}/token", "me", "s3cr3t"), within=0.5)
        with pytest.raises(NoToken, match="ReadTimeout"):
            tokens.get()


@pytest.mark.parametrize(
    ("command", "says"),
    [("false", "ended with 1"), ("/nosuch/command", "FileNotFoundError"), ("true", "no token")],
)
def test_a_command_that_gives_no_token_is_told(command: str, says: str) -> None:
    with pytest.raises(NoToken, match=says):
        Tokens(Token(command=command)).get()


def test_a_token_of_a_command_is_sent_and_is_asked_for_again_after_its_time() -> None:
    now = [0.0]
    options: dict[str, Any] = {"clock": lambda: now[0], "token": Token(command="echo t0ken")}
    with service(usual=echo) as server, client(server.url, **options) as rest:
        rest.lookup(["a"])
        assert server.requests[0]["Authorization"] == "Bearer t0ken"
