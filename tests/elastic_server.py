"""Elasticsearch as far as ``_bulk`` goes, over real sockets, with faults when they are asked for."""

import json
import ssl
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from velocity.io.elastic_answers import Answer, Fate
from velocity.io.elastic_bulk import Bulks, Operation, Retry

CONFLICT = """{"index": {"_index": "t", "_id": "1", "status": 409, "error": {
    "type": "version_conflict_engine_exception", "index_uuid": "y62", "shard": "0", "index": "t",
    "reason": "[1]: version conflict, current version [5] is higher or equal to the one provided"
}}}"""
MAPPING = """{"index": {"status": 400, "error": {"type": "document_parsing_exception",
    "reason": "[1:7] failed to parse field [n] of type [long] in document with id '3'.",
    "caused_by": {"type": "illegal_argument_exception", "reason": "For input string: \\"x\\""}}}}"""
BUSY = """{"index": {"status": 429, "error": {"type": "es_rejected_execution_exception",
    "reason": "rejected execution of coordinating operation"}}}"""


class Store:
    """Elasticsearch as far as ``_bulk`` goes: keeps the greatest external version, and may fail."""

    def __init__(self, *faults: str) -> None:
        self.faults = deque(faults)
        self.documents: dict[str, int] = {}
        """Versions by id, of those deleted too."""
        self.gone: set[str] = set()
        self.sent: list[list[str]] = []
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def bulks(self, retry: Retry | None = None, jitter: float = 0.5) -> Bulks:
        return Bulks(
            self.send,
            retry or Retry(),
            timedelta(seconds=30),
            self.sleep,
            lambda: jitter,
            lambda: self.now,
        )

    def send(self, operations: Sequence[Operation], timeout: float) -> Answer:
        self.sent.append([o.id for o in operations])
        fault = self.faults.popleft() if self.faults else ""
        if fault == "down":
            return Answer(Fate.RETRY, (), "HTTP 503: overloaded")
        if fault == "unauthorized":
            return Answer(Fate.FAIL, (), "HTTP 401: missing authentication")
        if fault == "split" or any(o.id == "poison" for o in operations):
            return Answer(Fate.SPLIT, (), "HTTP 400: id is too long")
        busy = [fault == "busy" and i % 2 == 0 for i in range(len(operations))]
        items = [
            json.loads(BUSY) if late else self._item(o)
            for o, late in zip(operations, busy, strict=True)
        ]
        if fault == "cut":  # applied, but nobody hears of it
            return Answer(Fate.RETRY, (), "connection lost")
        return Answer(Fate.READ, items, "")

    def _item(self, o: Operation) -> Mapping[str, Any]:
        if b"unmappable" in (o.source or b""):
            return json.loads(MAPPING)  # type: ignore[no-any-return]
        if self.documents.get(o.id, -1) >= o.version:
            return json.loads(CONFLICT)  # type: ignore[no-any-return]
        there = o.id in self.documents.keys() - self.gone
        self.documents[o.id] = o.version
        if o.source is None:
            self.gone.add(o.id)
            return {"delete": {"status": 200 if there else 404}}
        self.gone.discard(o.id)
        return {"index": {"status": 201}}


class Server(ThreadingHTTPServer):
    """Answers ``_bulk`` as Elasticsearch does, except for the faults, one for each call."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "https" if tls else "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.faults: deque[str] = deque()
        self.store = Store()
        self.calls: Counter[str] = Counter()
        self.largest_body = 10**9
        self.authorization: set[str | None] = set()
        self.indices: set[str] = set()
        self.spoken: set[str | None] = set()
        """The media types of what came and of what is wanted back."""
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def server_close(self) -> None:
        self.closing.set()
        super().server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self.server.faults.popleft() if self.server.faults else ""
        self.server.calls[fault] += 1
        self.server.authorization.add(self.headers["Authorization"])
        self.server.spoken |= {self.headers["Content-Type"], self.headers["Accept"]}
        if fault == "hang":
            self.server.closing.wait()
            self.close_connection = True
        elif fault.isdigit():
            self._answer(int(fault), {"error": {"type": "fault", "reason": "asked for"}})
        elif fault == "page":
            self._answer(200, b"<html>", "text/html")
        elif len(body) > self.server.largest_body:
            self._answer(413, b"")
        else:
            self._apply(body, fault)

    do_POST = do_PUT

    def _apply(self, body: bytes, fault: str) -> None:
        lines = body.splitlines()
        actions = [json.loads(line)["index"] for line in lines[::2]]
        self.server.indices.update(action["_index"] for action in actions)
        operations = [
            Operation(a["_index"], a["_id"], a["version"], b"", source)
            for a, source in zip(actions, lines[1::2], strict=True)
            if a["version_type"] == "external"
        ]
        if any(len(o.id) > 512 for o in operations):
            reason = {"type": "action_request_validation_exception", "reason": "id is too long"}
            self._answer(400, {"error": reason, "status": 400})
            return
        self.server.store.faults.append("busy" if fault == "busy" else "")
        items = self.server.store.send(operations, 0).items
        if fault == "cut":
            self.close_connection = True
        elif fault == "short":
            self._answer(200, {"items": items[:-1]})
        else:
            self._answer(200, {"errors": True, "items": items})

    def _answer(self, status: int, body: Any, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("X-Elastic-Product", "Elasticsearch")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server at work, until the end of the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
