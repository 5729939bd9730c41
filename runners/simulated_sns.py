"""Amazon SNS as an HTTPS endpoint sees it: notifications signed, and pushed until they are taken."""

import base64
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from queue import Queue
from types import TracebackType
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.x509.oid import NameOID

from velocity.io.kafka_config import KafkaConfig
from velocity.io.records import Cause
from velocity.io.sns import Routes
from velocity.io.sns_delivery import Delivery
from velocity.io.sns_http import SnsServer, Subscriber
from velocity.io.sns_signature import Verifier
from velocity.pipelines.notifications import topic_arn
from velocity.pipelines.simulator import Scenario, SimulatedMessage, simulate

UNTAKEN: Final = (Cause.EMPTY, Cause.NOT_UTF8)
"""What SNS takes from no publisher: a message is text, and not empty."""
CONNECTIONS: Final = 8
TRIES: Final = 20


def published(scenario: Scenario) -> Iterator[SimulatedMessage]:
    """The scenario's messages that SNS takes, bare: what is in Kafka once all have come through."""
    bare = replace(scenario, sns=False)
    return (message for message in simulate(bare) if message.cause not in UNTAKEN)


class SimulatedSns:
    """Signs with a certificate of its own, and pushes a scenario's envelopes over HTTP.

    An endpoint takes them for AWS's if its ``verifier`` is this one's, whose clock is that of the
    scenario: what it pushes was published a moment ago.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = replace(scenario, sns=True)
        self._now = scenario.start
        self._key = generate_private_key(65537, 2048)
        self.verifier = Verifier(fetch=lambda url: self._certificate(), clock=lambda: self._now)
        self.answers: Counter[int] = Counter()
        """Of the endpoint, by status."""

    def _certificate(self) -> bytes:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "simulated SNS")])
        start = self._scenario.start
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(start - timedelta(days=1))
            .not_valid_after(start + timedelta(days=3650))
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    def signed(self, envelope: bytes) -> bytes:
        """The envelope with a signature that holds (version 2)."""
        fields = json.loads(envelope)
        names = ("Message", "MessageId", "Timestamp", "TopicArn", "Type")
        text = "".join(f"{name}\n{fields[name]}\n" for name in names)
        signature = self._key.sign(text.encode(), PKCS1v15(), hashes.SHA256())
        fields |= {"SignatureVersion": "2", "Signature": base64.b64encode(signature).decode()}
        return json.dumps(fields, separators=(",", ":")).encode()

    def push(
        self,
        port: int,
        *,
        rate: float | None = None,
        progress: Callable[[int], None] = lambda sent: None,
        stop: threading.Event | None = None,
    ) -> int:
        """Pushes all to an endpoint on 127.0.0.1, in order but for some dozen messages at a time.

        Returns how many it took. Raises ``RuntimeError`` for one that it refuses, or that it did not
        take in ``TRIES`` tries: in a demo none may be lost.
        """
        stop = stop or threading.Event()
        queues: list[Queue[bytes | None]] = [Queue(2) for _ in range(CONNECTIONS)]
        failed: list[Exception] = []
        threads = [
            threading.Thread(target=self._sender, args=(port, queue, failed, stop), daemon=True)
            for queue in queues
        ]
        for thread in threads:
            thread.start()
        sent = 0
        began = time.monotonic()
        for message in self._taken():
            if stop.is_set() or failed:
                break
            if rate is not None and (ahead := began + sent / rate - time.monotonic()) > 0:
                stop.wait(ahead)
            # No older than what is in flight: SNS signs and sends in one moment.
            self._now = datetime.fromtimestamp(message.timestamp_ms / 1000, UTC)
            queues[hash(message.key) % CONNECTIONS].put(message.value)
            sent += 1
            if not sent % 50:
                progress(sent)
        for queue in queues:
            queue.put(None)
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        progress(sent)
        return self.answers[200]

    def _taken(self) -> Iterable[SimulatedMessage]:
        return (message for message in simulate(self._scenario) if message.cause not in UNTAKEN)

    def _sender(
        self,
        port: int,
        queue: "Queue[bytes | None]",
        failed: list[Exception],
        stop: threading.Event,
    ) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while (envelope := queue.get()) is not None:
                if failed or stop.is_set():
                    continue  # but empty the queue, or who fills it would wait for ever
                try:
                    self._deliver(connection, self.signed(envelope), stop)
                except Exception as error:  # noqa: BLE001  push raises it
                    failed.append(error)
        finally:
            connection.close()

    def _deliver(
        self, connection: http.client.HTTPConnection, body: bytes, stop: threading.Event
    ) -> None:
        told = ""
        for attempt in range(TRIES):
            try:
                connection.request("POST", "/", body, {"Content-Type": "text/plain"})
                answer = connection.getresponse()
                told = f"{answer.status} {answer.read().decode()}"
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                told = f"{type(error).__name__}: {error}"
            else:
                self.answers[answer.status] += 1
                if answer.status == 200:
                    return
                if answer.status < 500:
                    break
            if stop.wait(min(0.1 * 2**attempt, 5.0)):
                return
        raise RuntimeError(f"the endpoint does not take a notification: {told}")


class Ingress:
    """The endpoint of ``velocity ingest sns`` in this process, for what a ``SimulatedSns`` pushes."""

    def __init__(self, sns: SimulatedSns, bootstrap_servers: str, topics: dict[str, str]) -> None:
        """``topics``: of a domain's topic that of Kafka."""
        routes = Routes({topic_arn(name): to for name, to in topics.items()}, "transaction_id")
        delivery = Delivery(KafkaConfig(bootstrap_servers), timedelta(seconds=10))
        self.subscriber = Subscriber(routes, delivery, sns.verifier)
        self._server = SnsServer(("127.0.0.1", 0), self.subscriber)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="ingress"
        )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def publishing(sns: SimulatedSns, port: int, rate: float | None) -> Iterator[threading.Thread]:
    """Pushes in a thread of its own for as long as it is entered, or until all is pushed."""
    stop = threading.Event()
    thread = threading.Thread(
        target=sns.push, args=(port,), kwargs={"rate": rate, "stop": stop}, name="publisher"
    )
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()
