"""A REST service on a real socket that fails in every way it is told to, and a lookup that asks it."""

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote

import requests

from velocity.io.lookup import MISSING, Failed
from velocity.io.lookup_shared import SharedLookup
from velocity.io.rest import RestLookup, Retries
from velocity.io.rest_breaker import Breaker, Breaking, Host
from velocity.io.rest_calls import Template
from velocity.io.rest_client import RestClient, session

Reply = Callable[["Call"], None]


class Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Service"

    def do_GET(self) -> None:
        self.keys = [unquote(key) for key in self.path.partition("ids=")[2].split(",")]
        self.reply()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(self.body)
        self.keys = json.loads(self.body)["ids"] if self.body.startswith(b'{"ids"') else []
        self.reply()

    do_PUT = do_POST

    def reply(self) -> None:
        with self.server.lock:
            self.server.paths.append(self.path)
            self.server.calls.append(self.keys)
            self.server.requests.append(dict(self.headers))
            reply = self.server.script.pop(0) if self.server.script else self.server.usual
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

    def __init__(
        self, script: Iterable[Reply] = (), knows: Iterable[Any] = (), usual: "Reply | None" = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self.usual = usual or known
        self.lock = threading.Lock()
        self.script = list(script)
        self.objects = {str(key): {"id": key, "city": f"City of {key}"} for key in knows}
        self.calls: list[list[Any]] = []
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.requests: list[dict[str, str]] = []
        self.moved = 0
        self.sent_all = threading.Event()
        self.over = threading.Event()

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.host}/providers?token=q5ecret&ids={{keys}}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the game


@contextmanager
def service(
    *script: Reply, knows: Iterable[Any] = (), usual: Reply | None = None
) -> Iterator[Service]:
    with Service(script, knows, usual) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def known(call: Call) -> None:
    known = call.server.objects
    objects = [known[str(key)] for key in call.keys if str(key) in known]
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


class Pauses(list[float]):
    """Stands for sleep: takes no time, remembers how long it was to be."""

    def __call__(self, seconds: float) -> bool:
        self.append(seconds)
        return True


class Answers(NamedTuple):
    found: Mapping[str, Any]
    missing: set[str]
    failed: Mapping[str, str]
    refused: set[str]
    counts: Mapping[str, int]
    samples: Mapping[str, Sequence[int]]
    states: Mapping[str, int]


class Client(SharedLookup):
    """A lookup as a process has it, its answers by key."""

    def lookup(self, keys: Sequence[str]) -> Answers:
        return by_key(keys, self.begin(keys)())


def by_key(keys: Sequence[str], answers: Any) -> Answers:
    values = dict(zip(keys, answers.in_rows(), strict=True))
    failed = {key: value for key, value in values.items() if isinstance(value, Failed)}
    missing = {key for key, value in values.items() if value is MISSING}
    found = {k: value for k, value in values.items() if k not in failed and k not in missing}
    return Answers(
        found,
        missing,
        {key: value.error for key, value in failed.items()},
        {key for key, value in failed.items() if value.refused},
        *answers[1:4],
    )


def whole(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    return answer


def client(
    url: str | Template,
    *,
    clock: Callable[[], float] = lambda: 0.0,
    pauses: Pauses | None = None,
    sessions: Callable[[RestLookup], requests.Session] = session,
    host: Host | None = None,
    **options: Any,
) -> Client:
    options = {"retries": Retries(total=2), "breaker": Breaking(failures=1000), **options}
    sleep = Pauses() if pauses is None else pauses
    calls = url if isinstance(url, Template) else Template(url, id=("id",))
    config = RestLookup(calls, **options)
    hosts = host or Host(Breaker(config.breaker, clock=clock))
    rest = RestClient(
        config,
        clock=clock,
        sleep=sleep,
        uniform=lambda low, high: high,
        sessions=sessions,
        hosts=lambda name: hosts,
    )
    return Client(rest, whole, config.cache, clock=clock)
