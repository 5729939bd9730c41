"""The REST lookup, against a service on a real socket that fails in every way it can."""

import json
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from velocity.io.records import Answers
from velocity.io.rest import Cache, RestLookup, Retries, Timeouts
from velocity.io.rest_client import RestClient, session

pytestmark = pytest.mark.embedded

Reply = Callable[["Call"], None]
SECRET = "Bearer s3cr3t-t0ken-of-the-clinic"


class Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Service"

    def do_GET(self) -> None:
        self.keys = [unquote(key) for key in self.path.partition("ids=")[2].split(",")]
        with self.server.lock:
            self.server.calls.append(self.keys)
            self.server.requests.append(dict(self.headers))
            reply = self.server.script.pop(0) if self.server.script else known
        reply(self)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Service(ThreadingHTTPServer):
    """Answers each call by the next reply of ``script``; without one, what it knows."""

    def __init__(self, script: Iterable[Reply] = (), knows: Iterable[Any] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self.lock = threading.Lock()
        self.script = list(script)
        self.objects = {str(key): {"id": key, "city": f"City of {key}"} for key in knows}
        self.calls: list[list[str]] = []
        self.requests: list[dict[str, str]] = []
        self.sent_all = threading.Event()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/providers?token=q5ecret&ids={{keys}}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the game


@contextmanager
def service(*script: Reply, knows: Iterable[Any] = ()) -> Iterator[Service]:
    with Service(script, knows) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


class Pauses(list[float]):
    """Stands for sleep: takes no time, remembers how long it was to be."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def client(
    url: str,
    *,
    clock: Callable[[], float] = lambda: 0.0,
    pauses: Pauses | None = None,
    **options: Any,
) -> RestClient:
    options = {"id": "id", "retries": Retries(total=2), **options}
    sleep = Pauses() if pauses is None else pauses
    return RestClient(
        RestLookup(url, **options), clock=clock, sleep=sleep, uniform=lambda low, high: high
    )


def known(call: Call) -> None:
    objects = [call.server.objects[key] for key in call.keys if key in call.server.objects]
    call.answer(200, json.dumps(objects).encode())


def echo(call: Call) -> None:
    call.answer(200, json.dumps([{"id": key} for key in call.keys]).encode())


def status(code: int, body: bytes = b"", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda call: call.answer(code, body, named)


def endless(code: int, **headers: str) -> Reply:
    def reply(call: Call) -> None:
        call.send_response(code)
        for name, value in headers.items():
            call.send_header(name, value)
        call.send_header("Content-Length", str(64_000_000))
        call.end_headers()
        for _ in range(1000):
            call.wfile.write(b"[" * 64_000)
        call.server.sent_all.set()

    return reply


def reset(call: Call) -> None:
    call.send_response(200)
    call.send_header("Content-Length", "1000")
    call.end_headers()
    call.wfile.write(b'[{"id": "a"')
    call.close_connection = True
    os.close(call.connection.detach())


def silent(call: Call) -> None:
    call.close_connection = True
    if not call.server.over.wait(2):
        echo(call)  # too late for a client that keeps its timeout


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
    assert answers.counts == {
        "rest_calls": ceil(keys / max_keys),
        "rest_retries": 0,
        "rest_keys": keys,
        "cache_hits": 0,
        "cache_misses": keys,
    }


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
    with service(nested) as server, client(server.url, items="data.items") as rest:
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


def test_a_failed_call_fails_its_own_keys_only() -> None:
    def bad_for_b(call: Call) -> None:
        (call.answer(400, b"") if "b" in call.keys else echo(call))

    with service(*[bad_for_b] * 2) as server, client(server.url, max_keys=2) as rest:
        answers = rest.lookup(["a", "b", "c", "d"])
    assert answers.found.keys() == {"c", "d"}
    assert answers.failed.keys() == {"a", "b"}


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
        (status(400, b"bad request"), "not status 200"),
        (status(204), "not status 200"),
    ],
)
def test_what_is_no_answer_fails_at_once_and_is_described(reply: Reply, says: str) -> None:
    with service(reply) as server, client(server.url) as rest:
        answers = rest.lookup(["a", "b"])
        assert len(server.calls) == 1
    assert answers.failed.keys() == {"a", "b"}
    error = the_error(answers)
    assert f"GET http://127.0.0.1:{server.server_port}/providers: " in error
    assert says in error
    assert "status 2" in error or "status 400" in error
    assert "content type" in error
    assert len(error) < 500


def test_a_body_without_the_path_of_its_items_fails() -> None:
    lacking = status(200, b'{"data": []}')
    with service(lacking) as server, client(server.url, items="data.items") as rest:
        assert "no field 'items'" in the_error(rest.lookup(["a"]))


def test_404_for_a_key_asked_alone_means_missing() -> None:
    with service(status(404)) as server, client(server.url) as rest:
        assert rest.lookup(["a"]).missing == {"a"}


def test_404_for_several_keys_fails_them() -> None:
    with service(status(404)) as server, client(server.url) as rest:
        answers = rest.lookup(["a", "b"])
    assert answers.failed.keys() == {"a", "b"}
    assert not answers.missing


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
        with RestClient(RestLookup(server.url, id="id"), sessions=sessions) as rest:
            error = the_error(rest.lookup(["a"]))
        assert server.calls == [["a"]]
    assert "a redirect, which is not followed" in error
    assert "/else" not in error


def test_an_answer_slower_than_the_read_timeout_is_not_waited_for() -> None:
    options: dict[str, Any] = {"timeouts": Timeouts(read=0.05), "retries": Retries(total=1)}
    with service(silent, silent, knows=["a"]) as server, client(server.url, **options) as rest:
        answers = rest.lookup(["a"])
        assert len(server.calls) == 2
        assert "ReadTimeout" in the_error(answers)
    assert answers.counts["rest_retries"] == 1


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
        lookup = RestLookup(server.url, id="id", headers={"Authorization": SECRET})
        copy = pickle.loads(pickle.dumps(lookup))
        assert copy == lookup
        assert lookup.lookup(["a"]).found == copy.lookup(["a"]).found
        assert len(server.calls) == 1
        other = RestLookup(server.url, id="id", headers={"Authorization": "another"})
        assert other.lookup(["a"]).found.keys() == {"a"}
        assert len(server.calls) == 2, "a lookup with other credentials saw cached answers"


def test_neither_secrets_nor_keys_are_shown() -> None:
    def tell_all(call: Call) -> None:
        call.answer(400, f"{SECRET} or {SECRET[7:]}".encode() + b"." * 500, {"X-Private": "no"})

    headers = {"Authorization": SECRET, "X-Empty": ""}
    with service(tell_all, reset, knows=["a"]) as server:
        options: dict[str, Any] = {"headers": headers, "retries": Retries(total=0)}
        config = RestLookup(server.url, id="id", **options)
        with client(server.url, **options) as rest:
            shown = [repr(config), the_error(rest.lookup(["patient-1"]))]
            shown.append(the_error(rest.lookup(["patient-1"])))
        assert server.requests[0]["Authorization"] == SECRET
    with client(server.url, **options) as rest:
        shown.append(the_error(rest.lookup(["patient-1"])))
    for text in shown:
        for secret in (SECRET, SECRET[7:], "q5ecret", "patient-1", "X-Private"):
            assert secret not in text
    assert "*** or ***" in shown[1]


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
        assert answers.counts["rest_calls"] == 0


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


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RestLookup("http://127.0.0.1:1/providers", id="id"), "url: write {keys} once"),
        (lambda: RestLookup("ftp://127.0.0.1/{keys}", id="id"), "url: start with http"),
        (lambda: RestLookup("http://u:p@127.0.0.1/{keys}", id="id"), "url: move the cred"),
        (lambda: RestLookup("http://127.0.0.1/#{keys}", id="id"), "url: {keys} goes into"),
        (lambda: RestLookup(URL, id=""), "id: name the field"),
        (lambda: RestLookup(URL, id="id", items="a..b"), "items: give a dotted path"),
        (lambda: RestLookup(URL, id="id", max_keys=0), "max_keys"),
        (lambda: RestLookup(URL, id="id", concurrency=0), "concurrency"),
        (lambda: RestLookup(URL, id="id", max_bytes=0), "max_bytes"),
        (lambda: RestLookup(URL, id="id", headers={"X-Key": "s3cr3t\n"}), "headers: 'X-Key'"),
        (lambda: RestLookup(URL, id="id", headers={"X-Key": "s3cr3t\u2013"}), "headers: 'X-Key'"),
        (lambda: RestLookup(URL, id="id", headers={"X Key": "s3cr3t"}), "headers: 'X Key'"),
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
