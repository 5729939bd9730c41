"""Servers that live inside this process: a Kafka broker, and the REST service of a directory."""

import ctypes
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import confluent_kafka.cimpl
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

PARTITION_BYTES: Final = 5 * 1024 * 1024
"""What the embedded broker keeps of a partition, as compressed by the producer."""


class EmbeddedKafka:
    """librdkafka's mock broker: any Kafka client reaches it over TCP, and it needs no server.

    It answers produce, fetch, metadata, groups and transactions, takes messages of up to 100 MB,
    and creates a topic that it is asked for with four partitions. It does not create topics for
    an admin client, nor answer for the offset of a time. It keeps the newest ``PARTITION_BYTES``
    of each partition and silently forgets what came before: ``forgotten`` tells.
    Source: ``rdkafka_mock.h`` and ``rdkafka_mock.c`` of librdkafka, whose C interface is used here
    because the Python one offers neither a topic's partitions nor a certain end.

    >>> with EmbeddedKafka({"orders": 6}) as kafka:
    ...     kafka.bootstrap_servers.startswith("127.0.0.1:"), kafka.forgotten("orders")
    (True, 0)
    """

    def __init__(self, topics: Mapping[str, int] | None = None, brokers: int = 1) -> None:
        """``topics``: those to create at the start, each with its number of partitions."""
        self._topics = dict(topics or {})
        self._brokers = brokers
        self._library: Any = None
        self._client: int | None = None
        self._cluster: int | None = None

    def __enter__(self) -> Self:
        self._library = _librdkafka()
        self._client = _client(self._library)
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, self._brokers)
        try:
            for topic, partitions in self._topics.items():
                self.create_topic(topic, partitions)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._cluster is not None:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._cluster = None
        if self._client is not None:
            self._library.rd_kafka_destroy(self._client)
            self._client = None

    @property
    def bootstrap_servers(self) -> str:
        """Its address, ``127.0.0.1:port``; of several brokers, all with commas between."""
        servers = self._library.rd_kafka_mock_cluster_bootstraps(self._running())
        return str(servers.decode("ascii"))

    def create_topic(self, topic: str, partitions: int) -> None:
        """Creates a topic; raises ``KafkaException`` if there is one of that name."""
        if partitions < 1:
            raise ValueError(f"partitions of {topic} must be 1 or more, not {partitions}")
        code = self._library.rd_kafka_mock_topic_create(
            self._running(), topic.encode("utf-8"), partitions, self._brokers
        )
        if code:
            raise KafkaException(KafkaError(code))

    def lead(self, topic: str, partition: int, broker: int) -> None:
        """Makes a broker, counted from 1, the partition's leader: the others no longer serve it."""
        code = self._library.rd_kafka_mock_partition_set_leader(
            self._running(), topic.encode("utf-8"), partition, broker
        )
        if code:
            raise KafkaException(KafkaError(code))

    def forgotten(self, topic: str, timeout: float = 10.0) -> int:
        """How many of the topic's messages it no longer has, for want of room."""
        settings = {"bootstrap.servers": self.bootstrap_servers, "group.id": "velocity-embedded"}
        with closing(Consumer(settings)) as consumer:
            partitions = consumer.list_topics(topic, timeout).topics[topic].partitions
            return sum(
                consumer.get_watermark_offsets(TopicPartition(topic, p), timeout)[0]
                for p in partitions
            )

    def _running(self) -> int:
        if self._cluster is None:
            raise RuntimeError("EmbeddedKafka is not running: enter it with `with`")
        return self._cluster


def _librdkafka() -> Any:
    """The library that confluent-kafka has loaded: a symbol is sought in what a module links to."""
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[Any, ...]] = {
        "rd_kafka_conf_new": (pointer,),
        "rd_kafka_conf_set": (number, pointer, text, text, text, ctypes.c_size_t),
        "rd_kafka_new": (pointer, number, pointer, text, ctypes.c_size_t),
        "rd_kafka_destroy": (None, pointer),
        "rd_kafka_mock_cluster_new": (pointer, pointer, number),
        "rd_kafka_mock_cluster_destroy": (None, pointer),
        "rd_kafka_mock_cluster_bootstraps": (text, pointer),
        "rd_kafka_mock_topic_create": (number, pointer, text, number, number),
        "rd_kafka_mock_partition_set_leader": (
            number,
            pointer,
            text,
            ctypes.c_int32,
            ctypes.c_int32,
        ),
    }
    for name, (result, *arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise RuntimeError(
                f"confluent-kafka shows no {name} on this system: use a real broker"
            ) from error
        function.restype = result
        function.argtypes = arguments
    return library


def _client(library: Any) -> int:
    """The librdkafka client that a mock cluster belongs to; it talks to nobody itself."""
    error = ctypes.create_string_buffer(512)
    conf = library.rd_kafka_conf_new()
    # It would warn that it has no broker to talk to.
    library.rd_kafka_conf_set(conf, b"log_level", b"3", error, len(error))
    producer = 0
    client = library.rd_kafka_new(producer, conf, error, len(error))
    if client is None:
        raise RuntimeError(f"librdkafka: {error.value.decode()}")
    return int(client)


class DirectoryService:
    """A REST service on 127.0.0.1 that answers what it knows of ids, from tables of JSON objects.

    ``GET /<table>?ids=a,b,c`` answers a JSON list of the objects known, in the order asked for;
    ids unknown to it are left out. An unknown table is a 404, a call without ids a 400.
    ``latency`` is what each call takes longer, in seconds.

    >>> with DirectoryService({"providers": {"a": {"id": "a", "city": "Medan"}}}) as service:
    ...     service.url.startswith("http://127.0.0.1:"), service.calls
    (True, 0)
    """

    def __init__(
        self,
        tables: Mapping[str, Mapping[str, Mapping[str, Any]]],
        *,
        latency: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._tables = {
            f"/{name}": {key: json.dumps(row).encode("utf-8") for key, row in rows.items()}
            for name, rows in tables.items()
        }
        self._latency = latency
        self._sleep = sleep
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.calls = 0
        """Calls answered with a list."""
        self.keys = 0
        """Ids asked for in them."""

    def __enter__(self) -> Self:
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="directory"
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        server, thread = self._running(), self._thread
        server.shutdown()
        server.hang_up()
        server.server_close()
        if thread is not None:
            thread.join()
        self._server = self._thread = None

    @property
    def url(self) -> str:
        """Where it listens, ``http://127.0.0.1:port``, without a slash at the end."""
        return f"http://127.0.0.1:{self._running().server_address[1]}"

    def answer(self, target: str) -> tuple[HTTPStatus, bytes]:
        """The status and the JSON for a request's path and query."""
        parts = urlsplit(target)
        rows = self._tables.get(parts.path)
        if rows is None:
            return HTTPStatus.NOT_FOUND, b'{"error": "no such table"}'
        keys = [key for ids in parse_qs(parts.query).get("ids", ()) for key in ids.split(",")]
        if not keys:
            return HTTPStatus.BAD_REQUEST, b'{"error": "ids is missing: ?ids=a,b,c"}'
        if self._latency:
            self._sleep(self._latency)
        with self._lock:
            self.calls += 1
            self.keys += len(keys)
        known: Iterable[bytes] = (rows[key] for key in dict.fromkeys(keys) if key in rows)
        return HTTPStatus.OK, b"[" + b",".join(known) + b"]"

    def _running(self) -> "_Server":
        if self._server is None:
            raise RuntimeError("DirectoryService is not running: enter it with `with`")
        return self._server


class _Server(ThreadingHTTPServer):
    """Knows its connections, because an idle one that is kept alive would keep its thread."""

    daemon_threads = False  # server_close() waits for these only.
    request_queue_size = 128

    def __init__(self, service: DirectoryService) -> None:
        self.service = service
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports what a handler raised, unless the client has gone: no answer is owed to it."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        """Ends every connection, so that the threads that serve them end."""
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # The client has hung up before us.
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # Head and body leave in one packet.
    server: _Server

    def do_GET(self) -> None:
        status, body = self.server.service.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Calls are counted, not logged."""
