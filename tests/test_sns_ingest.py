"""Laws of the ways in from SNS: nothing forged gets in, nothing that was acknowledged is lost."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import typer
from confluent_kafka import Consumer, TopicPartition
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer

from velocity.io.kafka_config import KafkaConfig
from velocity.io.kafka_producer import MessagesUndelivered, Record, Refusal
from velocity.io.sns import MESSAGE_ID, NotANotification, Notification, Routes, routes_of
from velocity.io.sns_delivery import Delivery
from velocity.io.sns_http import LARGEST, SnsServer, Subscriber
from velocity.io.sns_lambda import Undelivered, move
from velocity.io.sns_signature import Forged, Verifier, of_aws
from velocity.io.sqs import SqsConsumer
from velocity.runners.embedded import EmbeddedKafka
from velocity.runners.ingest_cli import _delivery, kafka_option

NOW = datetime(2026, 1, 5, 7, tzinfo=UTC)
ARN = "arn:aws:sns:ap-southeast-1:123456789012:orders"
CERTIFICATE = "https://sns.ap-southeast-1.amazonaws.com/SimpleNotificationService-1.pem"
ROUTES = Routes({ARN: "orders"}, "order.id")
VELOCITY = [sys.executable, "-c", "from velocity.runners.cli import main; main()"]


class Sns:
    """Signs as SNS does, with a certificate of its own."""

    def __init__(self, now: datetime = NOW, key: Any = None) -> None:
        self.now = now
        self._key = key or rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
        self.pem = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    def signed(self, version: str = "1", **fields: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "Type": "Notification",
            "MessageId": "m1",
            "TopicArn": ARN,
            "Message": '{"order": {"id": "o1"}}',
            "Timestamp": f"{self.now:%Y-%m-%dT%H:%M:%S}.000Z",
            "SignatureVersion": version,
            "SigningCertURL": CERTIFICATE,
            **fields,
        }
        names = ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"]
        if given["Type"] != "Notification":
            names = [
                "Message",
                "MessageId",
                "SubscribeURL",
                "Timestamp",
                "Token",
                "TopicArn",
                "Type",
            ]
        text = "".join(f"{name}\n{given[name]}\n" for name in names if name in given)
        hash_ = hashes.SHA1() if version == "1" else hashes.SHA256()
        signature = self._key.sign(text.encode(), padding.PKCS1v15(), hash_)
        return {**given, "Signature": base64.b64encode(signature).decode()}


@pytest.fixture(scope="module")
def aws() -> Sns:
    return Sns()


def verifier(aws: Sns, clock: Callable[[], datetime] = lambda: NOW) -> Verifier:
    return Verifier(fetch=lambda url: aws.pem, clock=clock)


def parsed(fields: Any) -> Notification:
    return Notification.parse(json.dumps(fields))


@pytest.mark.parametrize("version", ["1", "2"])
def test_what_sns_signed_is_accepted_with_a_subject_and_without(aws: Sns, version: str) -> None:
    verifier(aws).check(parsed(aws.signed(version)))
    verifier(aws).check(parsed(aws.signed(version, Subject="new")))


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    "changed",
    [
        {"Message": "other"},
        {"TopicArn": ARN + "2"},
        {"MessageId": "m2"},
        {"Timestamp": "2026-01-05T07:00:01.000Z"},
        {"Subject": "slipped in"},
        {"Signature": base64.b64encode(b"x" * 256).decode()},
        {"Signature": "no base64!"},
        {"SignatureVersion": "3"},
        {"Type": "Other"},
        {"SigningCertURL": "https://evil.example/SimpleNotificationService-1.pem"},
        {"SigningCertURL": "https://sns.x.amazonaws.com/SimpleNotificationService-1.pem"},
        {"SigningCertURL": CERTIFICATE.replace("https", "http")},
        {"SigningCertURL": CERTIFICATE.replace("https://", "https://a@")},
        {"SigningCertURL": CERTIFICATE + ".html"},
    ],
    ids=lambda changed: " ".join(changed),
)
def test_what_was_changed_on_its_way_is_forged(
    aws: Sns, version: str, changed: dict[str, str]
) -> None:
    with pytest.raises(Forged):
        verifier(aws).check(parsed({**aws.signed(version), **changed}))


def test_a_signature_of_another_key_or_a_certificate_out_of_date_is_refused(aws: Sns) -> None:
    with pytest.raises(Forged, match="not that of its certificate"):
        verifier(aws).check(parsed(Sns().signed()))
    with pytest.raises(Forged, match="not valid now"):
        verifier(aws, lambda: NOW + timedelta(days=2)).check(parsed(aws.signed()))
    elliptic = Verifier(fetch=lambda url: Sns(key=ec.generate_private_key(ec.SECP256R1())).pem,
                        clock=lambda: NOW)  # fmt: skip
    with pytest.raises(Forged, match="no RSA key"):
        elliptic.check(parsed(aws.signed()))


def test_a_notification_of_long_ago_is_refused_as_a_replay(aws: Sns) -> None:
    with pytest.raises(Forged, match="replay"):
        verifier(aws, lambda: NOW + timedelta(minutes=61)).check(parsed(aws.signed()))


def test_a_certificate_is_fetched_once(aws: Sns) -> None:
    fetched = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return aws.pem

    checks = Verifier(fetch=fetch, clock=lambda: NOW)
    for version in ("1", "2", "1"):
        checks.check(parsed(aws.signed(version)))
    assert fetched == [CERTIFICATE]


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription",
        "https://sns.eu-west-1.amazonaws.com:8443/",
        "https://sns.eu-west-1.amazonaws.com.evil.example/",
        "https://evil.example/sns.eu-west-1.amazonaws.com",
        "https://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "",
    ],
)
def test_no_address_but_those_of_sns_is_visited(url: str) -> None:
    with pytest.raises(Forged):
        of_aws(url)


def test_attributes_become_headers_and_a_path_the_key(aws: Sns) -> None:
    attributes = {
        "kind": {"Type": "String", "Value": "new"},
        "size": {"Type": "Number", "Value": "7"},
        "raw": {"Type": "Binary", "Value": base64.b64encode(b"\x00\xff").decode()},
        "odd": {"Type": "Binary", "Value": "no base64!"},
        "half": {"Type": "String", "Value": "\ud800"},
    }
    record = ROUTES.record(parsed({**aws.signed(), "MessageAttributes": attributes}))
    assert dict(record.headers) == {
        "kind": b"new", "size": b"7", "raw": b"\x00\xff", "odd": b"no base64!",
        "half": b"\xed\xa0\x80", MESSAGE_ID: b"m1",
    }  # fmt: skip
    assert (record.topic, record.key, record.timestamp) == ("orders", b"o1", 1_767_596_400_000)
    assert record.value == b'{"order": {"id": "o1"}}'


@pytest.mark.parametrize(
    ("message", "key"),
    [
        ('{"order": {"id": 7}}', b"7"), ('{"order": {"id": null}}', None), ('{"order": 1}', None),
        ('{"order": {"id": {}}}', None), ("{}", None), ("no JSON", None), ("", None),
        ('{"order": {"id": "\\ud800"}}', b"\xed\xa0\x80"),
    ],
)  # fmt: skip
def test_a_message_that_names_no_key_has_none(aws: Sns, message: str, key: bytes | None) -> None:
    record = ROUTES.record(parsed({**aws.signed(), "Message": message}))
    assert (record.key, record.value) == (key, message.encode())


@pytest.mark.parametrize(
    "changed",
    [{"Message": None}, {"MessageId": 7}, {"Timestamp": "yesterday"}, {"MessageAttributes": [1]},
     {"MessageAttributes": {"a": "b"}}, {"TopicArn": "arn:aws:sns:r:1:other"},
     {"MessageId": "\ud800"}, {"MessageAttributes": {"\ud800": {"Type": "String", "Value": "v"}}}],
)  # fmt: skip
def test_what_is_no_notification_of_a_known_topic_becomes_no_message(
    aws: Sns, changed: dict[str, Any]
) -> None:
    with pytest.raises(NotANotification):
        ROUTES.record(parsed({**aws.signed(), **changed}))


# -- pushed over HTTP -----------------------------------------------------------------------------


class Kafka:
    """Takes records, or not."""

    def __init__(self) -> None:
        self.taken: list[Record] = []
        self.down = False
        self.refuses = False
        self.broken = False

    def __call__(self, records: Sequence[Record]) -> list[Refusal]:
        if self.broken:
            raise ZeroDivisionError
        if self.down:
            raise MessagesUndelivered("no broker", "orders", len(records))
        if self.refuses:
            return [Refusal(record, "too large", True) for record in records]
        self.taken += records
        return []


@pytest.fixture
def kafka() -> Kafka:
    return Kafka()


@pytest.fixture
def visited() -> list[str]:
    return []


@pytest.fixture
def server(aws: Sns, kafka: Kafka, visited: list[str]) -> Iterator[SnsServer]:
    def visit(url: str) -> bytes:
        visited.append(url)
        return b""

    subscriber = Subscriber(ROUTES, kafka, verifier(aws), fetch=visit)
    with SnsServer(("127.0.0.1", 0), subscriber) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def post(port: int, body: bytes | dict[str, Any], **headers: str) -> int:
    given = json.dumps(body).encode() if isinstance(body, dict) else body
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            "POST", "/", given, {name.replace("_", "-"): v for name, v in headers.items()}
        )
        return connection.getresponse().status
    finally:
        connection.close()


def port_of(server: SnsServer) -> int:
    return int(server.server_address[1])


@pytest.mark.embedded
def test_a_notification_is_in_kafka_before_it_is_answered_200(
    server: SnsServer, kafka: Kafka, aws: Sns
) -> None:
    assert post(port_of(server), aws.signed("2")) == 200
    assert [record.key for record in kafka.taken] == [b"o1"]


@pytest.mark.embedded
def test_what_sns_repeats_is_answered_200_and_sent_once(
    server: SnsServer, kafka: Kafka, aws: Sns
) -> None:
    kafka.down = True
    assert post(port_of(server), aws.signed()) == 503
    kafka.down = False
    assert post(port_of(server), aws.signed()) == 200
    assert post(port_of(server), aws.signed()) == 200
    assert len(kafka.taken) == 1
    assert server.subscriber.counts == {"undelivered": 1, "delivered": 1, "repeated": 1}


@pytest.mark.embedded
def test_what_is_forged_malformed_too_large_or_unsigned_is_refused_by_4xx(
    server: SnsServer, kafka: Kafka, aws: Sns
) -> None:
    port = port_of(server)
    assert post(port, {**aws.signed(), "Message": "other"}) == 403
    assert post(port, b"[") == 400
    assert post(port, aws.signed(TopicArn="arn:aws:sns:r:1:other")) == 400
    assert post(port, b"x", Content_Length=str(LARGEST + 1)) == 413
    assert post(port, b"x", Content_Length="-1") == 411
    assert post(port, b"{}", x_amz_sns_rawdelivery="true") == 403
    kafka.refuses = True
    assert post(port, aws.signed()) == 422
    assert kafka.taken == []


@pytest.mark.embedded
def test_who_sends_a_request_a_byte_at_a_time_is_hung_up_on_and_holds_up_nobody(
    aws: Sns, kafka: Kafka
) -> None:
    now = [0.0]
    subscriber = Subscriber(ROUTES, kafka, verifier(aws))
    server = SnsServer(
        ("127.0.0.1", 0), subscriber, patience=10, connections=2, clock=lambda: now[0]
    )
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            slow, idle, third = (
                socket.create_connection(("127.0.0.1", port_of(server))) for _ in range(3)
            )
            slow.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
            third.settimeout(10)
            assert third.recv(1) == b""  # of three one is too many
            assert subscriber.counts["turned_away"] == 1
            now[0] = 9.0
            slow.sendall(b" ")
            now[0] = 10.5  # each byte came in time, and the request did not
            for held in (slow, idle):
                held.settimeout(10)
                assert held.recv(1) == b""
            deadline = time.monotonic() + 10
            while (status := attempt(server, aws)) is None and time.monotonic() < deadline:
                time.sleep(0.01)  # until their threads have ended
            assert status == 200
        finally:
            server.shutdown()
            thread.join()


def attempt(server: SnsServer, aws: Sns) -> int | None:
    try:
        return post(port_of(server), aws.signed())
    except (OSError, http.client.HTTPException):
        return None


@pytest.mark.embedded
def test_a_request_that_kafka_keeps_waiting_is_not_hung_up_on(aws: Sns) -> None:
    now, entered, done = [0.0], threading.Event(), threading.Event()

    def slow(records: Sequence[Record]) -> list[Refusal]:
        entered.set()
        assert done.wait(30)
        return []

    server = SnsServer(
        ("127.0.0.1", 0), Subscriber(ROUTES, slow, verifier(aws)), patience=5, clock=lambda: now[0]
    )
    with server, ThreadPoolExecutor(1) as pool:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        answer = pool.submit(post, port_of(server), aws.signed())
        assert entered.wait(30)
        now[0] = 100.0
        server.service_actions()
        done.set()
        assert answer.result() == 200
        server.shutdown()
        thread.join()


def test_secrets_of_kafka_come_from_the_environment_or_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "password"
    file.write_text("from the file\n")
    assert kafka_option("sasl.password", f"@{file}", {}) == "from the file"
    assert kafka_option("a", "x ${A}", {"A": "1"}) == "x 1"
    for wrong in ("${NOSUCH}", f"@{tmp_path}/nosuch"):
        with pytest.raises(typer.BadParameter, match=r"sasl\.password.*(NOSUCH|nosuch)"):
            kafka_option("sasl.password", wrong, {})


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ("sasl.password=hush", True),
        ("sasl.password=${HUSH}", False),
        ("ssl.key.pem=hush", True),
        ("sasl.oauthbearer.client.secret=hush", True),
        ("sasl.oauthbearer.token.endpoint.url=http://127.0.0.1:1", False),
        ("linger.ms=5", False),
    ],
)
def test_a_secret_that_is_written_out_is_warned_of_without_being_repeated(
    given: str, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUSH", "hush")
    with suppress(ValueError):  # of a key that is none
        _delivery("127.0.0.1:1", [given])
    told = capsys.readouterr().err
    assert ("everyone on this machine" in told) == warned
    assert "hush" not in told


@pytest.mark.embedded
def test_a_defect_of_ours_is_told_and_the_message_comes_again(
    server: SnsServer, kafka: Kafka, aws: Sns, capfd: pytest.CaptureFixture[str]
) -> None:
    kafka.broken = True
    with pytest.raises(http.client.RemoteDisconnected):
        post(port_of(server), aws.signed())
    kafka.broken = False
    assert post(port_of(server), aws.signed()) == 200
    assert server.subscriber.counts == {"broken": 1, "delivered": 1}
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.embedded
def test_a_subscription_is_confirmed_if_its_topic_is_known_and_its_address_is_of_sns(
    server: SnsServer, visited: list[str], aws: Sns
) -> None:
    url = "https://sns.ap-southeast-1.amazonaws.com/?Action=ConfirmSubscription&Token=t"
    wanted = {"Type": "SubscriptionConfirmation", "Token": "t", "SubscribeURL": url}
    port = port_of(server)
    assert post(port, aws.signed(**wanted)) == 200
    assert visited == [url]
    assert post(port, aws.signed(**wanted | {"SubscribeURL": "https://127.0.0.1/"})) == 403
    assert post(port, aws.signed(**wanted, TopicArn="arn:aws:sns:r:1:other")) == 400
    assert post(port, {**aws.signed(**wanted), "Token": "u"}) == 403
    assert visited == [url]


def in_kafka(servers: str, topic: str) -> list[Any]:
    settings = {"bootstrap.servers": servers, "group.id": "test", "enable.auto.commit": False}
    consumer = Consumer(settings)
    try:
        partitions = list(consumer.list_topics(topic).topics[topic].partitions)
        places = [TopicPartition(topic, p) for p in partitions]
        left = sum(consumer.get_watermark_offsets(place, 30)[1] for place in places)
        consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
        found: list[Any] = []
        while len(found) < left:
            found += consumer.consume(1000, 1)
        return found
    finally:
        consumer.close()


@pytest.mark.embedded
def test_a_killed_endpoint_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    aws = Sns(now=datetime.now(UTC))
    (tmp_path / CERTIFICATE.rpartition("/")[2]).write_bytes(aws.pem)
    bodies = [aws.signed(MessageId=f"m{i}") for i in range(1_000)]
    acknowledged: list[str] = []
    with EmbeddedKafka({"orders": 4}) as kafka:
        command = [
            *VELOCITY, "ingest", "sns", "--listen", "127.0.0.1:0", "--route", f"{ARN}=orders",
            "--bootstrap-servers", kafka.bootstrap_servers, "--signing-certificates", str(tmp_path),
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline().rpartition(":")[2])

                def send(body: dict[str, Any]) -> None:
                    try:
                        if post(port, body) == 200:
                            acknowledged.append(body["MessageId"])
                    except (OSError, http.client.HTTPException):
                        return  # it has been killed
                    if len(acknowledged) >= 200:  # two threads may make it 201 at once
                        os.kill(server.pid, signal.SIGKILL)

                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(send, bodies))
            finally:
                server.kill()
        found = [
            dict(m.headers())[MESSAGE_ID].decode()
            for m in in_kafka(kafka.bootstrap_servers, "orders")
        ]
    assert 200 <= len(acknowledged) < len(bodies)
    assert set(acknowledged) <= set(found)


@pytest.mark.embedded
def test_an_endpoint_that_is_told_to_stop_ends_well() -> None:
    command = [*VELOCITY, "ingest", "sns", "--listen", "127.0.0.1:0", "--route", f"{ARN}=orders"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            server.terminate()
            _, told = server.communicate(timeout=300)
            assert (server.returncode, b"nothing came" in told) == (0, True)
        finally:
            server.kill()


# -- from a queue ---------------------------------------------------------------------------------


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "ap-southeast-1",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=60)  # of the test before
    yield environment["AWS_ENDPOINT_URL"]
    server.stop()


def subscribed() -> tuple[Any, str, Any, str]:
    """SNS and a topic, SQS and a queue that subscribes to it."""
    sns, sqs = boto3.client("sns"), boto3.client("sqs")
    topic = sns.create_topic(Name="orders")["TopicArn"]
    queue = sqs.create_queue(QueueName="orders", Attributes={"VisibilityTimeout": "0"})["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn["QueueArn"])
    return sns, topic, sqs, queue


def left_in(sqs: Any, queue: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
    return sum(int(found[name]) for name in names)


@pytest.mark.embedded
def test_a_queue_is_emptied_into_kafka_and_what_did_not_arrive_stays(
    moto: str, kafka: Kafka
) -> None:
    sns, topic, sqs, queue = subscribed()
    attributes = {"kind": {"DataType": "String", "StringValue": "new"}}
    for i in range(12):
        message = json.dumps({"order": {"id": i}})
        sns.publish(TopicArn=topic, Message=message, MessageAttributes=attributes)
    consumer = SqsConsumer(sqs, queue, routes_of([f"{topic}=orders"], "order.id"), kafka)

    kafka.down = True
    assert consumer.poll(0) == 10
    assert (kafka.taken, left_in(sqs, queue)) == ([], 12)
    kafka.down = False
    while consumer.poll(0):
        pass
    assert left_in(sqs, queue) == 0
    assert {record.key for record in kafka.taken} == {b"%d" % i for i in range(12)}
    assert all(dict(record.headers)["kind"] == b"new" for record in kafka.taken)


@pytest.mark.embedded
def test_what_is_no_notification_stays_in_the_queue(moto: str, kafka: Kafka) -> None:
    sns, topic, sqs, queue = subscribed()
    sqs.send_message(QueueUrl=queue, MessageBody="no JSON")
    sns.publish(TopicArn=topic, Message="{}")
    consumer = SqsConsumer(sqs, queue, routes_of([f"{topic}=orders"]), kafka)
    assert consumer.poll(0) == 2
    assert (len(kafka.taken), left_in(sqs, queue)) == (1, 1)
    assert consumer.counts == {"rejected": 1, "delivered": 1}


@pytest.mark.embedded
def test_a_killed_consumer_of_a_queue_loses_nothing(moto: str) -> None:
    sns, topic, sqs, queue = subscribed()
    for i in range(20):
        entries = [{"Id": str(j), "Message": f"{i}-{j}"} for j in range(5)]
        sns.publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries)
    with EmbeddedKafka({"orders": 4}) as kafka:
        command = [
            *VELOCITY, "ingest", "sqs", "--queue", queue, "--route", f"{topic}=orders",
            "--bootstrap-servers", kafka.bootstrap_servers, "--threads", "2",
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE) as consumer:
            try:
                assert consumer.stdout is not None
                consumer.stdout.readline()
                while left_in(sqs, queue) > 60:
                    assert consumer.poll() is None
            finally:
                consumer.kill()
        arrived = {m.value().decode() for m in in_kafka(kafka.bootstrap_servers, "orders")}
        rest = Kafka()
        others = SqsConsumer(sqs, queue, routes_of([f"{topic}=orders"]), rest)
        while others.poll(0):
            pass
    left = {(record.value or b"").decode() for record in rest.taken}
    assert arrived | left == {f"{i}-{j}" for i in range(20) for j in range(5)}
    assert len(arrived) >= 40


# -- Lambda ---------------------------------------------------------------------------------------


def test_lambda_raises_for_what_sns_must_send_again(aws: Sns, kafka: Kafka) -> None:
    event = {"Records": [{"EventSource": "aws:sns", "Sns": aws.signed()}]}
    assert move(event, ROUTES, kafka) == {"batchItemFailures": []}
    assert [record.key for record in kafka.taken] == [b"o1"]
    kafka.down = True
    with pytest.raises(Undelivered):
        move(event, ROUTES, kafka)


def test_lambda_reports_which_messages_of_a_queue_must_come_again(aws: Sns, kafka: Kafka) -> None:
    bodies = [json.dumps(aws.signed(MessageId=f"m{i}")) for i in range(3)]
    bodies[1] = "no JSON"
    records = [
        {"eventSource": "aws:sqs", "messageId": f"q{i}", "body": body}
        for i, body in enumerate(bodies)
    ]
    answer = move({"Records": records}, ROUTES, kafka)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "q1"}]}
    assert [dict(record.headers)[MESSAGE_ID] for record in kafka.taken] == [b"m0", b"m2"]
    kafka.down = True
    every = [{"itemIdentifier": f"q{i}"} for i in (1, 0, 2)]
    assert move({"Records": records}, ROUTES, kafka) == {"batchItemFailures": every}


def test_lambda_needs_neither_beam_nor_arrow() -> None:
    """The function's archive may have 250 MB at most."""
    code = (
        "import sys, velocity.io.sns_lambda\n"
        "print([m for m in ('apache_beam', 'pyarrow', 'duckdb', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.embedded
def test_delivery_returns_once_the_broker_has_all(aws: Sns) -> None:
    with EmbeddedKafka({"orders": 2}) as kafka:
        delivery = Delivery(KafkaConfig(kafka.bootstrap_servers))
        records = [ROUTES.record(parsed(aws.signed(MessageId=f"m{i}"))) for i in range(50)]
        assert delivery(records) == []
        assert len(in_kafka(kafka.bootstrap_servers, "orders")) == 50
