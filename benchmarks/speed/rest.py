"""The REST service that each system asks for its providers: over a real socket, with a delay."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Self
from urllib.parse import parse_qs, urlsplit

import orjson
import workload


class RestService:
    """Answers ``GET /providers?ids=a,b`` and counts the calls; ``asked`` is set by the first.

    >>> import urllib.request
    >>> with RestService() as rest:
    ...     answer = urllib.request.urlopen(f"{rest.url}/providers?ids=provider-0001")
    ...     answer.read(), rest.calls, rest.asked.is_set()
    (b'{"providers":[{"id":"provider-0001","city":"Surabaya"}]}', 1, True)
    """

    def __init__(self) -> None:
        self.calls = 0
        self.asked = Event()
        self.first_call = 0.0
        """When, of ``time.monotonic``."""
        self._lock = Lock()

    def count(self) -> None:
        with self._lock:
            self.calls += 1
            if not self.asked.is_set():
                self.first_call = time.monotonic()
                self.asked.set()

    def __enter__(self) -> Self:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                service.count()
                ids = parse_qs(urlsplit(self.path).query).get("ids", [""])[0].split(",")
                if len(ids) > workload.MAX_IDS:
                    return self.send_error(413)
                time.sleep(workload.REST_SECONDS)
                known = [{"id": i, "city": workload.city_of(i)} for i in ids]
                body = orjson.dumps({"providers": known})
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Not each call."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
