"""A proxy before an HTTP server that answers in its place, or hangs up before or after it did."""

import json
import random
import socket
import threading
from collections import Counter
from contextlib import suppress
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import urllib3

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})


class Fault(StrEnum):
    """What becomes of a request."""

    TOO_MANY = "429"
    UNAVAILABLE = "503"
    CUT_BEFORE = "cut before"
    """The connection ends, and the server has heard nothing."""
    CUT_AFTER = "cut after"
    """The server has done what was asked, and the connection ends without an answer."""
    CUT_MIDWAY = "cut midway"
    """The same, after the half of an answer."""
    TOO_MANY_ITEMS = "429 to items"
    """The server has done what was asked; half of a bulk's documents are told 429 all the same."""


class Proxy:
    """Passes requests on, until it is told to misbehave. ``struck`` counts what it did.

    ``target`` is a URL without a path. Of the requests that come while it misbehaves, ``share``
    meet the fault.
    """

    def __init__(self, target: str, seed: int) -> None:
        self.target = target
        self.struck: Counter[Fault] = Counter()
        self.http = urllib3.PoolManager(maxsize=16, timeout=120.0, retries=False)
        self._random = random.Random(seed)
        self._fault: Fault | None = None
        self._share = 0.0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self._server.request_queue_size = 128
        self._server.daemon_threads = True  # an idle connection shall not keep it
        self._server.proxy = self  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        self._server.server_bind()
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.http.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def misbehave(self, fault: Fault, share: float = 1.0) -> None:
        with self._lock:
            self._fault, self._share = fault, share

    def calm(self) -> None:
        with self._lock:
            self._fault = None

    def fate(self) -> Fault | None:
        """Of the request that has come."""
        with self._lock:
            return self._fault if self._random.random() < self._share else None

    def note(self, fault: Fault) -> None:
        with self._lock:
            self.struck[fault] += 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def _pass(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.fate()
        if fault in (Fault.TOO_MANY, Fault.UNAVAILABLE):
            proxy.note(fault)
            self._answer(int(fault), {"Content-Type": "text/plain"}, b"come back later")
            return
        if fault is Fault.CUT_BEFORE:
            proxy.note(fault)
            self._hang_up()
            return
        asked = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        try:
            answer = proxy.http.request(
                self.command,
                proxy.target + self.path,
                body=body or None,
                headers=asked,
                redirect=False,
                decode_content=False,
            )
        except urllib3.exceptions.HTTPError:  # as the client would see it without us
            self._hang_up()
            return
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
        content = answer.data
        if fault is Fault.CUT_AFTER:
            proxy.note(fault)
            self._hang_up()
        elif fault is Fault.CUT_MIDWAY:
            proxy.note(fault)
            self._answer(answer.status, headers, content, cut=True)
        else:
            if fault is Fault.TOO_MANY_ITEMS and (refused := refuse_items(content)) is not None:
                proxy.note(fault)
                content = refused
            self._answer(answer.status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _pass

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client was faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """What struck is counted, not logged."""


def refuse_items(body: bytes) -> bytes | None:
    """The answer to a bulk, every second of its items refused; None if it is no such answer.

    >>> refuse_items(b'{"items":[{"index":{"status":201}},{"index":{"status":201}}]}')
    b'{"items": [{"index": {"status": 429, "error": {"type": "busy"}}}, {"index": {"status": 201}}]}'
    """
    try:
        answer: Any = json.loads(body)
    except ValueError:
        return None
    items = answer.get("items") if isinstance(answer, dict) else None
    if not items:
        return None
    for item in items[::2]:
        for action in item:
            item[action] = {"status": 429, "error": {"type": "busy"}}
    return json.dumps(answer).encode()
