"""An endpoint that SNS pushes notifications to, over HTTPS."""

import json
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

import requests
from cachetools import TTLCache

from velocity.io.kafka_producer import MessagesUndelivered
from velocity.io.sns import NotANotification, Notification, Routes
from velocity.io.sns_delivery import Deliver
from velocity.io.sns_signature import Forged, Verifier, fetch, of_aws

LARGEST: Final = 1024 * 1024
"""Bytes of a request: a message of SNS has 256 KB at most, and JSON escapes may double it."""
PATIENCE: Final = 60.0
"""Seconds within which a connection's next request must have come whole, however slowly it drips."""
CONNECTIONS: Final = 512
"""At a time: each has a thread."""


class Answer(NamedTuple):
    """What a request is answered: SNS takes 2xx as delivered, repeats after 5xx, and gives up
    after 4xx, into the subscription's dead-letter queue if it has one."""

    status: HTTPStatus
    text: str


class Subscriber:
    """What an endpoint makes of requests: subscriptions confirmed, notifications into Kafka.

    A notification is answered 200 only once Kafka has acknowledged it. One that SNS repeats, as
    its 200 was lost, is answered 200 and not sent again, for as long as its ``MessageId`` is
    remembered (``remembered`` of them, for as long as a notification may be old).
    """

    def __init__(
        self,
        routes: Routes,
        deliver: Deliver,
        verifier: Verifier,
        *,
        fetch: Callable[[str], bytes] = fetch,
        remembered: int = 1_000_000,
    ) -> None:
        self._routes, self._deliver, self._verifier = routes, deliver, verifier
        self._fetch = fetch
        self._taken: TTLCache[str, None] = TTLCache(remembered, 3600)
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """Requests by what was made of them."""

    def take(self, body: bytes) -> Answer:
        """The answer to a request's body."""
        try:
            notification = Notification.parse(body)
            self._routes.topic(notification.topic_arn)
            self._verifier.check(notification)
            return self._take(notification)
        except NotANotification as error:
            return self._answer("rejected", HTTPStatus.BAD_REQUEST, str(error))
        except Forged as error:
            return self._answer("forged", HTTPStatus.FORBIDDEN, str(error))
        except requests.RequestException as error:
            text = f"SNS can't be reached: {type(error).__name__}"
            return self._answer("unverified", HTTPStatus.SERVICE_UNAVAILABLE, text)
        except MessagesUndelivered as error:
            return self._answer("undelivered", HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    def _take(self, notification: Notification) -> Answer:
        if notification.type == "SubscriptionConfirmation":
            self._fetch(of_aws(notification.fields["SubscribeURL"]))
            return self._answer("confirmed", HTTPStatus.OK, notification.topic_arn)
        if notification.type == "UnsubscribeConfirmation":
            return self._answer("unsubscribed", HTTPStatus.OK, notification.topic_arn)
        with self._lock:
            if notification.message_id in self._taken:
                return self._answer("repeated", HTTPStatus.OK, "taken before")
        if refused := self._deliver([self._routes.record(notification)]):
            return self._answer("refused", HTTPStatus.UNPROCESSABLE_ENTITY, refused[0].error)
        with self._lock:
            self._taken[notification.message_id] = None
        return self._answer("delivered", HTTPStatus.OK, "")

    def _answer(self, what: str, status: HTTPStatus, text: str) -> Answer:
        self.counts[what] += 1
        return Answer(status, text)


class SnsServer(ThreadingHTTPServer):
    """Serves a ``Subscriber``; with ``tls`` over HTTPS, which SNS wants if nothing before does it.

    ``GET /health`` answers 200 and the counts of requests, for load balancers and people. No client
    holds a thread for longer than ``patience`` seconds beyond what its requests take Kafka: not by
    silence, nor by a request that comes a byte at a time. Of more than ``connections`` the latest is
    closed at once, and counted as ``turned_away``; SNS tries again.
    """

    daemon_threads = True  # a client that hangs must not hold up the end
    request_queue_size = 256

    def __init__(
        self,
        address: tuple[str, int],
        subscriber: Subscriber,
        tls: ssl.SSLContext | None = None,
        *,
        patience: float = PATIENCE,
        connections: int = CONNECTIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.subscriber = subscriber
        self._tls = tls
        self._patience, self._connections, self._clock = patience, connections, clock
        self._open: dict[socket.socket, float | None] = {}
        """By connection, when it is closed; None while its request is at work."""
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            admitted = len(self._open) < self._connections
            if admitted:
                self._open[request] = self._clock() + self._patience
        if admitted:
            super().process_request(request, client_address)
        else:
            self.subscriber.counts["turned_away"] += 1
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shakes hands here, in the request's own thread, so that no client holds up others."""
        request.settimeout(self._patience)
        try:
            channel = request
            if self._tls is not None:
                channel = self._tls.wrap_socket(request, server_side=True)
                with self._lock:  # the plain socket has handed its connection over
                    self._open[channel] = self._open.pop(request)
            request = channel
            super().finish_request(channel, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def whole(self, connection: socket.socket) -> None:
        """A request has come whole: from now on it is we who take time."""
        with self._lock:
            self._open[connection] = None

    def answered(self, connection: socket.socket) -> None:
        """The next request may come."""
        with self._lock:
            self._open[connection] = self._clock() + self._patience

    def service_actions(self) -> None:
        """Hangs up where a request is overdue; ``serve_forever`` calls it again and again."""
        now = self._clock()
        with self._lock:
            overdue = [c for c, until in self._open.items() if until is not None and until < now]
        for connection in overdue:
            with suppress(OSError):  # it has gone meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone, or shook hands wrongly, is owed nothing; its message comes again.

        So does one that we failed at, which is told on the standard error.
        """
        self.subscriber.counts["broken"] += 1
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one packet
    server: SnsServer

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._send(Answer(HTTPStatus.LENGTH_REQUIRED, "give a Content-Length"), close=True)
        elif int(length) > LARGEST:
            text = f"{LARGEST} bytes are the most that is taken"
            self._send(Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text), close=True)
        elif self.headers.get("x-amz-sns-rawdelivery") == "true":
            self.rfile.read(int(length))
            text = "raw message delivery is not signed: switch it off for this subscription"
            self._send(Answer(HTTPStatus.FORBIDDEN, text))
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                self.server.whole(self.connection)
                self._send(self.server.subscriber.take(body))

    def do_GET(self) -> None:
        if self.path == "/health":
            counts = dict(self.server.subscriber.counts)
            self._send(Answer(HTTPStatus.OK, json.dumps(counts)))
        else:
            self._send(Answer(HTTPStatus.NOT_FOUND, ""))

    def _send(self, answer: Answer, *, close: bool = False) -> None:
        body = answer.text.encode()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        if close:  # what is left of the request is not read
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.server.answered(self.connection)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted, not logged."""
