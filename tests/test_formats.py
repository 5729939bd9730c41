"""Formats: the event is found in its envelope or encoding, and one bad message costs no other."""

import base64
import json
import pickle
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from confluent_kafka import Producer
from confluent_kafka.schema_registry import (
    Schema,
    SchemaReference,
    SchemaRegistryClient,
    topic_subject_name_strategy,
)
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pool, timestamp_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.field_types import FIELDS
from velocity.io.avro_format import AvroFormat, AvroReaders
from velocity.io.kafka import ReadFromKafka
from velocity.io.kafka_config import KafkaConfig
from velocity.io.protobuf_format import ProtobufFormat
from velocity.io.records import DEAD_LETTERS, Decoded, Format, messages, messages_of
from velocity.io.schema_registry import RegistryUnavailable, SchemaRegistry, UnknownSchema
from velocity.pipelines.graph import Graph, JobError, UnsetVariable
from velocity.pipelines.jobfile import JobFileError, check, parse
from velocity.pipelines.plan import plan
from velocity.pipelines.recompute import Message as Recorded
from velocity.pipelines.recompute import recompute
from velocity.pipelines.reference import EXAMPLE
from velocity.runners.embedded import EmbeddedKafka
from velocity.transforms.decode import JsonDecoder
from velocity.transforms.sns import SnsEnvelope

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS = st.fixed_dictionaries(
    {
        "s": st.text(st.characters(codec="utf-8")),
        "n": st.integers(-(2**63), 2**63 - 1),
        "d": st.floats(allow_nan=False, allow_infinity=False),
        "b": st.booleans(),
        "t": st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)).map(
            lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)
        ),
        "at": st.integers(0, 10**12),
    }
)


def decoder(format: Format | None) -> JsonDecoder:
    return JsonDecoder(FIELDS, "at", clock=lambda: NOW, format=format)


def events_of(decoded: Decoded) -> list[dict[str, Any]]:
    rows = decoded.rows.select(list(FIELDS)).to_pylist()
    return [row | {"at": round(row["at"].timestamp() * 1000)} for row in rows]


def causes(decoded: Decoded) -> list[str]:
    found: list[str] = decoded.dead_letters["cause"].to_pylist()
    return found


def assert_each_as_alone(values: list[bytes | None], decoding: JsonDecoder) -> None:
    """A batch gives what its messages give one by one, and each message whole."""
    together = decoding.decode(messages(values))
    alone = [decoding.decode(messages([value])) for value in values]
    assert events_of(together) == [event for one in alone for event in events_of(one)]
    assert causes(together) == [cause for one in alone for cause in causes(one)]
    came = [*messages_of(together.rows)["value"].to_pylist()]
    came += together.dead_letters["value"].to_pylist()
    key = lambda value: (value is not None, value)
    assert sorted(came, key=key) == sorted(values, key=key)


# -- SNS ------------------------------------------------------------------------------------------


def as_json(event: dict[str, Any]) -> bytes:
    return json.dumps(event | {"t": event["t"].isoformat()}).encode()


def envelope(event: bytes, **changes: Any) -> bytes:
    """As SNS writes it; a change to None leaves a key out."""
    whole = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:ap-southeast-1:123456789012:orders",
        "Subject": None,
        "Message": event.decode(),
        "Timestamp": "2026-01-01T00:00:00.000Z",
        "SignatureVersion": "1",
        "MessageAttributes": {"event_type": {"Type": "String", "Value": "order.created"}},
    } | changes
    return json.dumps({k: v for k, v in whole.items() if v is not None}).encode()


@given(st.lists(st.tuples(EVENTS, st.booleans()), max_size=5))
def test_an_event_of_sns_is_the_same_in_its_envelope_and_bare(
    given: list[tuple[dict[str, Any], bool]],
) -> None:
    values: list[bytes | None] = [
        envelope(as_json(event)) if wrapped else as_json(event) for event, wrapped in given
    ]
    decoded = decoder(SnsEnvelope()).decode(messages(values))
    assert events_of(decoded) == [event for event, _ in given]
    assert messages_of(decoded.rows)["value"].to_pylist() == values


INNER = b'{"at": 1}'
BAD_NOTIFICATIONS = {
    "a confirmation": (envelope(INNER, Type="SubscriptionConfirmation"), "wrong_envelope"),
    "no type": (envelope(INNER, Type=None), "wrong_envelope"),
    "no message": (envelope(INNER, Message=None), "wrong_envelope"),
    "a message that is no text": (envelope(INNER, Message={"at": 1}), "wrong_envelope"),
    "a number for a type": (envelope(INNER, Type=1), "wrong_envelope"),
    "two messages": (envelope(INNER)[:-1] + b', "Message": "{}"}', "wrong_envelope"),
    "a message that is no JSON": (envelope(b"{"), "invalid_json"),
    "an empty message": (envelope(b""), "empty"),
    "an event without its time": (envelope(b'{"s": ""}'), "missing_field"),
    "half an envelope": (envelope(INNER)[:100], "invalid_json"),
    "a raw event without its time": (b'{"Type": 1, "Message": {"at": 1}}', "missing_field"),
    "nothing": (b"", "empty"),
    "a tombstone": (None, "empty"),
}


@pytest.mark.parametrize("name", BAD_NOTIFICATIONS)
def test_a_bad_notification_is_a_dead_letter_with_its_cause(name: str) -> None:
    value, cause = BAD_NOTIFICATIONS[name]
    rows, dead = decoder(SnsEnvelope()).decode(messages([value]))
    assert rows.num_rows == 0
    assert dead["cause"].to_pylist() == [cause]
    assert dead["value"].to_pylist() == [value]
    assert dead.schema == DEAD_LETTERS


def test_a_raw_event_may_have_names_of_the_envelope() -> None:
    value = b'{"Type": 7, "Message": {"text": "x"}, "at": 1}'
    assert decoder(SnsEnvelope()).decode(messages([value])).rows.num_rows == 1


NOTIFICATIONS = st.one_of(
    EVENTS.map(as_json),
    EVENTS.map(as_json).map(envelope),
    st.sampled_from([value for value, _ in BAD_NOTIFICATIONS.values()]),
    st.binary(),
)


@given(st.lists(NOTIFICATIONS, max_size=6))
def test_notifications_of_a_batch_don_t_notice_each_other(values: list[bytes | None]) -> None:
    assert_each_as_alone(values, decoder(SnsEnvelope()))


def test_the_recomputation_reads_notifications_too() -> None:
    job = parse(job_with("sns").encode(), "job.yaml").job
    order = {"event_type": "order.created", "event_time": "2026-01-01T00:00:00Z", "amount": 5}
    bare = json.dumps(order).encode()
    sent = [bare, envelope(bare), envelope(bare, Type="Other"), envelope(b"{"), b"["]
    at = int(NOW.timestamp() * 1000)
    documents = recompute(
        job, [Recorded(value, at) for value in sent], {"provider": lambda key: None}
    )
    assert [document.events for document in documents.values()] == [2]


# -- A registry -----------------------------------------------------------------------------------


class Registry:
    """A Schema Registry's REST API, as far as clients and serializers of Kafka use it.

    Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html
    """

    def __init__(self) -> None:
        self.schemas: list[dict[str, Any]] = []
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.broken: tuple[int, bytes] | None = None
        """What is answered in place of all else."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                self._answer(*registry.get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*registry.post(self.path, body))

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def client(self) -> SchemaRegistryClient:
        return SchemaRegistryClient({"url": self.url})

    def get(self, path: str) -> tuple[int, bytes]:
        if self.broken:
            return self.broken
        match unquote(urlsplit(path).path).strip("/").split("/"):
            case ["schemas", "ids", number] if int(number) in range(1, len(self.schemas) + 1):
                return 200, json.dumps(self.schemas[int(number) - 1]).encode()
            case ["subjects", subject, "versions", version] if subject in self.subjects:
                schema = self.subjects[subject][int(version) - 1]
                found = {"subject": subject, "version": int(version), "id": schema}
                return 200, json.dumps(found | self.schemas[schema - 1]).encode()
        return 404, b'{"error_code": 40403, "message": "Schema not found"}'

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        _, subject, *_ = unquote(urlsplit(path).path).strip("/").split("/")
        self.schemas.append(body)
        self.subjects.setdefault(subject, []).append(len(self.schemas))
        return 200, json.dumps({"id": len(self.schemas)}).encode()


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    found = Registry()
    yield found
    found.close()


@pytest.fixture
def own() -> Iterator[Registry]:
    """A registry of a test's own, to be broken."""
    found = Registry()
    yield found
    found.close()


ONCE = {"max.retries": 0}
CONTEXT = SerializationContext("orders", MessageField.VALUE)
CONF = {"subject.name.strategy": topic_subject_name_strategy}
AVRO = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "s", "type": "string"},
        {"name": "n", "type": ["null", "long"], "default": None},
        {"name": "d", "type": "double"},
        {"name": "b", "type": "boolean"},
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "at", "type": "long"},
        {"name": "ignored", "type": ["null", "double"], "default": None},
    ],
}


def avro(registry: Registry, schema: Any = AVRO) -> Any:
    """What writes events, by confluent-kafka's own serializer."""
    serialize = AvroSerializer(registry.client, json.dumps(schema), conf=CONF)
    return lambda event: serialize(event | {"ignored": float("nan")}, CONTEXT)


def event_class(**numbers: int) -> type[Message]:
    """The Protobuf message of an event, in a file that imports another and nests it."""
    types = {
        "s": FieldDescriptorProto.TYPE_STRING,
        "n": FieldDescriptorProto.TYPE_INT64,
        "d": FieldDescriptorProto.TYPE_DOUBLE,
        "b": FieldDescriptorProto.TYPE_BOOL,
        "at": FieldDescriptorProto.TYPE_UINT64,
    }
    file = FileDescriptorProto(name="orders.proto", package="orders", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    file.message_type.add(name="First")
    holder = file.message_type.add(name="Holder")
    event = holder.nested_type.add(name="Event")
    for number, (name, kind) in enumerate(types.items(), 1):
        event.field.add(name=name, type=kind, number=number, label=1)
    event.field.add(name="t", type=11, type_name=".google.protobuf.Timestamp", number=9, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    made: type[Message] = GetMessageClass(pool.FindMessageTypeByName("orders.Holder.Event"))
    return made


def protobuf(registry: Registry) -> Any:
    made = event_class()
    serialize = ProtobufSerializer(made, registry.client, CONF)

    def write(event: dict[str, Any]) -> bytes:
        message = made(**{name: value for name, value in event.items() if name != "t"})
        message.t.FromDatetime(event["t"])
        return serialize(message, CONTEXT)  # type: ignore[no-any-return]

    return write


FORMATS: dict[str, tuple[Any, Any]] = {
    "avro": (avro, AvroFormat),
    "protobuf": (protobuf, ProtobufFormat),
}
kinds = pytest.mark.parametrize("kind", FORMATS)


def of(kind: str, registry: Registry) -> tuple[Any, JsonDecoder]:
    writer, format = FORMATS[kind]
    made = format(SchemaRegistry(registry.url, ONCE), list(FIELDS))
    return writer(registry), decoder(made)


@pytest.mark.embedded
@kinds
def test_what_was_encoded_is_decoded(kind: str, registry: Registry) -> None:
    encode, decoding = of(kind, registry)

    @settings(max_examples=30)
    @given(st.lists(EVENTS, max_size=5))
    def law(events: list[dict[str, Any]]) -> None:
        decoded = decoding.decode(messages([encode(event) for event in events]))
        assert events_of(decoded) == events
        assert causes(decoded) == []

    law()


@pytest.mark.embedded
@kinds
def test_bad_messages_spoil_no_neighbours(kind: str, registry: Registry) -> None:
    encode, decoding = of(kind, registry)
    bad = st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=40).map(lambda rest: bytes([0, 0, 0, 0, 1]) + rest),
        st.binary(max_size=9).map(lambda rest: bytes([0, 9, 9, 9, 9]) + rest),
        st.none(),
    )

    @settings(max_examples=50)
    @given(st.lists(st.one_of(EVENTS.map(encode), bad), max_size=6))
    def law(values: list[bytes | None]) -> None:
        assert_each_as_alone(values, decoding)

    law()


@pytest.mark.embedded
@kinds
def test_a_message_cut_short_is_a_dead_letter(kind: str, registry: Registry) -> None:
    encode, decoding = of(kind, registry)
    whole = encode({"s": "x" * 9, "n": 1, "d": 1.0, "b": True, "t": NOW, "at": 5})
    decoded = decoding.decode(messages([whole[:12], whole, whole[:3], b"{}"]))
    assert causes(decoded) == ["not_of_schema"] * 3
    assert decoded.rows.num_rows == 1


@pytest.mark.embedded
@kinds
def test_a_schema_that_the_registry_does_not_know_is_asked_for_once(
    kind: str, own: Registry
) -> None:
    _, decoding = of(kind, own)
    unknown = bytes([0, 0, 0, 0, 77, 1, 2, 3])
    for _ in range(2):
        decoded = decoding.decode(messages([unknown, unknown]))
        assert causes(decoded) == ["unknown_schema"] * 2
    assert "no schema 77" in decoded.dead_letters["error"][0].as_py()
    assert len(own.asked) == 1


@pytest.mark.embedded
def test_a_schema_that_comes_later_is_found_after_a_minute(own: Registry) -> None:
    time = 0.0
    readers = AvroReaders(SchemaRegistry(own.url, ONCE), clock=lambda: time)
    with pytest.raises(UnknownSchema):
        readers.of(1)
    time = 59.0
    own.post("/subjects/orders/versions", {"schema": json.dumps(AVRO)})
    with pytest.raises(UnknownSchema):
        readers.of(1)
    time = 61.0
    readers.of(1)


@pytest.mark.embedded
@pytest.mark.parametrize(
    "answer",
    [
        (500, b'{"error_code": 50001, "message": "Error in the backend data store"}'),
        (401, b'{"error_code": 401, "message": "Unauthorized"}'),
        (404, b"no such page"),  # of a proxy, or another service
        (200, b"<html>"),
    ],
    ids=lambda answer: str(answer[0]),
)
def test_a_registry_that_fails_fails_the_bundle_until_it_is_mended(
    own: Registry, answer: tuple[int, bytes]
) -> None:
    encode, decoding = of("avro", own)
    sent = messages([encode({"s": "", "n": 1, "d": 1.0, "b": True, "t": NOW, "at": 5})])
    own.broken = answer
    with pytest.raises(RegistryUnavailable, match=f"cannot get schema 1 at {own.url}"):
        decoding.decode(sent)
    own.broken = None
    assert decoding.decode(sent).rows.num_rows == 1


@pytest.mark.embedded
def test_a_registry_that_is_down_is_named_without_its_secrets() -> None:
    down = Registry()
    down.close()
    at = down.url.replace("//", "//user:hush@")
    format = AvroFormat(SchemaRegistry(at, ONCE), ["at"])
    with pytest.raises(RegistryUnavailable, match="is the registry up") as raised:
        decoder(format).decode(messages([bytes([0, 0, 0, 0, 1, 2])]))
    assert "hush" not in str(raised.value) + repr(format)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.embedded
def test_a_schema_of_another_kind_is_told(own: Registry) -> None:
    avro(own)({"s": "", "n": 1, "d": 1.0, "b": True, "t": NOW, "at": 5})
    format = ProtobufFormat(SchemaRegistry(own.url, ONCE), ["at"])
    decoded = decoder(format).decode(messages([bytes([0, 0, 0, 0, 1, 0])]))
    assert causes(decoded) == ["unknown_schema"]
    assert decoded.dead_letters["error"].to_pylist() == ["schema 1 is AVRO, not PROTOBUF"]


@pytest.mark.embedded
def test_each_message_is_read_by_the_schema_that_wrote_it(own: Registry) -> None:
    older = {
        "type": "record",
        "name": "Event",
        "fields": [{"name": "at", "type": "long"}, {"name": "s", "type": "string"}],
    }
    first, second = avro(own, older), avro(own)
    event = {"s": "x", "n": None, "d": 1.0, "b": True, "t": NOW, "at": 5}
    _, decoding = of("avro", own)
    values = [first({"at": 1, "s": "old"}), second(event), first({"at": 2, "s": "again"})]
    assert events_of(decoding.decode(messages(values))) == [
        {"s": "old", "n": None, "d": None, "b": None, "t": None, "at": 1},
        event,
        {"s": "again", "n": None, "d": None, "b": None, "t": None, "at": 2},
    ]


@pytest.mark.embedded
def test_what_has_no_place_in_a_field_is_a_dead_letter(own: Registry) -> None:
    schema = {
        "type": "record",
        "name": "Event",
        "fields": [
            {"name": "at", "type": "long"},
            {"name": "d", "type": ["null", "double"], "default": None},
            {"name": "n", "type": ["null", "string"], "default": None},
            {"name": "s", "type": ["null", "bytes", {"type": "array", "items": "int"}]},
        ],
    }
    encode = avro(own, schema)
    rest = {"at": 1, "s": None, "d": None, "n": None}
    _, decoding = of("avro", own)
    values = [
        encode(rest | change)
        for change in ({"d": float("nan")}, {"n": "7"}, {"s": [1]}, {"s": b"\xff\x00"})
    ]
    decoded = decoding.decode(messages(values))
    assert causes(decoded) == ["wrong_type"] * 3
    assert decoded.rows["s"].to_pylist() == [base64.b64encode(b"\xff\x00").decode()]


@pytest.mark.embedded
def test_a_schema_may_refer_to_others(own: Registry) -> None:
    at = {"type": "record", "name": "At", "fields": [{"name": "ms", "type": "long"}]}
    client = own.client
    client.register_schema("at", Schema(json.dumps(at), "AVRO"))
    whole = {
        "type": "record",
        "name": "Event",
        "fields": [{"name": "at", "type": "long"}, {"name": "inner", "type": "At"}],
    }
    refers = Schema(json.dumps(whole), "AVRO", [SchemaReference("At", "at", 1)])
    serialize = AvroSerializer(own.client, refers, conf=CONF)
    _, decoding = of("avro", own)
    value = serialize({"at": 7, "inner": {"ms": 1}}, CONTEXT)
    assert [e["at"] for e in events_of(decoding.decode(messages([value])))] == [7]


@pytest.mark.embedded
def test_protobuf_says_what_was_not_set(registry: Registry) -> None:
    """Zero where there is no presence, nothing where there is."""
    made = event_class()
    serialize = ProtobufSerializer(made, registry.client, CONF)
    _, decoding = of("protobuf", registry)
    [event] = events_of(decoding.decode(messages([serialize(made(at=5), CONTEXT)])))
    assert event == {"s": "", "n": 0, "d": 0.0, "b": False, "t": None, "at": 5}


@pytest.mark.embedded
@kinds
def test_a_pipeline_reads_a_topic_by_its_registry(kind: str, own: Registry) -> None:
    encode, decoding = of(kind, own)
    event = {"s": "x", "n": 1, "d": 1.0, "b": True, "t": NOW, "at": 5}
    with EmbeddedKafka({"orders": 1}) as broker:
        config = KafkaConfig(broker.bootstrap_servers)
        producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
        for value in (encode(event), b"garbage", encode(event | {"at": 6})):
            producer.produce("orders", value)
        producer.flush()

        def run() -> None:
            with beam.Pipeline(FnApiRunner()) as pipeline:
                rows, dead = pipeline | ReadFromKafka(
                    config, ["orders"], decoder=decoding, stop="latest"
                )
                read = rows | beam.FlatMap(lambda batch: batch["s"].to_pylist())
                assert_that(read, equal_to(["x", "x"]), "rows")
                letters = dead | beam.FlatMap(lambda batch: batch["value"].to_pylist())
                assert_that(letters, equal_to([b"garbage"]), "dead letters")

        own.broken = (503, b"")
        with pytest.raises(RegistryUnavailable, match="cannot get schema 1"):
            run()
        own.broken = None
        run()


# -- A job's ---------------------------------------------------------------------------------------


def job_with(format: str) -> str:
    return EXAMPLE.replace(
        "  event_time: event_time\n", f"  event_time: event_time\n  format: {format}\n", 1
    )


ENVIRONMENT = {"KAFKA": "127.0.0.1:9092", "REGISTRY": "https://user:hush@127.0.0.1:8081"}
REGISTRY_JOBS = {
    "short": '{avro: "${REGISTRY}"}',
    "avro": '{avro: {registry: "${REGISTRY}", options: {max.retries: 1}}}',
    "protobuf": '{protobuf: {registry: "${REGISTRY}"}}',
}


@pytest.mark.parametrize("name", REGISTRY_JOBS)
def test_a_job_names_its_registry(name: str) -> None:
    job = parse(job_with(REGISTRY_JOBS[name]).encode(), "job.yaml").job
    read = Graph(job, ENVIRONMENT).read()
    format = read.decoder.format  # type: ignore[union-attr]
    assert isinstance(format, ProtobufFormat if name == "protobuf" else AvroFormat)
    assert list(format.fields) == list(job.fields)
    assert format.registry.url == ENVIRONMENT["REGISTRY"]
    assert "hush" not in repr(format)
    [step] = [step for step in plan(job) if step.name == "decode"]
    assert "${REGISTRY}" in step.details["format"]


@pytest.mark.parametrize(
    ("format", "place", "words"),
    [
        ("xml", "source.format", "json or sns"),
        ("snss", "source.format", "did you mean sns?"),
        ("{avro: {registri: x}}", "source.format.avro.registri", "did you mean registry?"),
        ("{arvo: x}", "source.format.arvo", "did you mean avro?"),
        ("{}", "source.format", "exactly one"),
    ],
)
def test_a_format_that_is_wrong_is_told_with_its_place(format: str, place: str, words: str) -> None:
    with pytest.raises(JobFileError) as raised:
        parse(job_with(format).encode(), "job.yaml")
    assert f"{place}: " in str(raised.value)
    assert words in str(raised.value)


def test_what_the_registry_s_client_refuses_is_told_with_its_place_and_no_secret() -> None:
    text = job_with('{avro: {registry: "${REGISTRY}", options: {nosuch: "${SECRET}"}}}')
    job, source = parse(text.encode(), "job.yaml")
    environment = ENVIRONMENT | {"SECRET": "hush"}
    with pytest.raises(JobError, match="nosuch") as raised:
        Graph(job, environment).read()
    assert raised.value.place[:3] == ("source", "format", "avro")
    assert "hush" not in "".join(map(str, check(job, environment, source)))
    with pytest.raises(UnsetVariable):
        Graph(job, {"KAFKA": "127.0.0.1:9092"}).read()
