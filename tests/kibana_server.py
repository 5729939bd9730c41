"""Kibana as far as its import goes, over a real socket."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class KibanaServer(ThreadingHTTPServer):
    """Keeps objects by type and id; refuses those that refer to what it has not, and some at will."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], Any] = {}
        self.refuses: dict[tuple[str, str], dict[str, Any]] = {}
        """Errors by the type and id of an object."""
        self.answer: tuple[int, bytes, dict[str, str]] | None = None
        """Instead of an import's."""
        self.asked: list[tuple[str, dict[str, str | None]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, objects: list[Any], overwrite: bool) -> dict[str, Any]:
        there = {*self.objects, *((o["type"], o["id"]) for o in objects)}
        errors, taken = [], 0
        for found in objects:
            key = found["type"], found["id"]
            lacking = [r for r in found["references"] if (r["type"], r["id"]) not in there]
            error = self.refuses.get(key)
            if lacking:
                error = {"type": "missing_references", "references": lacking}
            elif key in self.objects and not overwrite:
                error = {"type": "conflict"}
            if error:
                errors.append({"type": key[0], "id": key[1], "meta": {}, "error": error})
            else:
                self.objects[key] = found
                taken += 1
        answer: dict[str, Any] = {"success": not errors, "successCount": taken, "warnings": []}
        return answer | ({"errors": errors} if errors else {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: KibanaServer

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name: self.headers[name] for name in ("Authorization", "kbn-xsrf")}
        self.server.asked.append((url.path, headers))
        if self.server.answer is not None:
            status, text, more = self.server.answer
            self._answer(status, text, more)
        elif self.headers["kbn-xsrf"] is None:
            self._answer(400, b'{"message": "Request must contain a kbn-xsrf header."}')
        elif not url.path.endswith("/api/saved_objects/_import"):
            self._answer(404, b'{"statusCode": 404, "error": "Not Found", "message": "Not Found"}')
        else:
            overwrite = parse_qs(url.query).get("overwrite") == ["true"]
            objects = [json.loads(line) for line in self._file(body).splitlines()]
            self._answer(200, json.dumps(self.server.take(objects, overwrite)).encode())

    def _file(self, body: bytes) -> bytes:
        """The one part of a form, whose name has to end as Kibana wants it."""
        boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
        part = body.split(b"--" + boundary)[1]
        head, _, content = part.partition(b"\r\n\r\n")
        assert b'name="file"' in head
        assert b'.ndjson"' in head
        return content.removesuffix(b"\r\n")

    def _answer(self, status: int, text: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""


@contextmanager
def kibana() -> Iterator[KibanaServer]:
    """The server at work, until the end of the block."""
    with KibanaServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
