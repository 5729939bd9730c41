"""Decodes one batch again and again, in each format, and prints what a core does in a second.

python benchmarks/formats.py

Counted is the time of this process alone, not the clock's. Each format is checked to give all rows.
"""

import io
import json
import time
from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from confluent_kafka.schema_registry import Schema
from fastavro import parse_schema, schemaless_writer
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from velocity.io import avro_format, protobuf_format
from velocity.io.avro_format import AvroFormat, AvroReaders
from velocity.io.protobuf_format import ProtobufFormat, ProtobufReaders
from velocity.io.records import Format, messages
from velocity.io.schema_registry import Readers, SchemaRegistry
from velocity.transforms.decode import JsonDecoder
from velocity.transforms.fields import Field
from velocity.transforms.sns import SnsEnvelope

BATCH = 5_000
TIMES = 20
TYPES = {
    "event_id": "string",
    "event_type": "string",
    "event_time": "timestamp_ms",
    "provider_id": "string",
    "patient_id": "string",
    "amount": "int64",
    "distance_km": "double",
}
START = datetime(2026, 1, 1, tzinfo=UTC)


def event(number: int) -> dict[str, object]:
    return {
        "event_id": f"{number:032x}",
        "event_type": "order.created",
        "event_time": int((START + timedelta(milliseconds=number)).timestamp() * 1000),
        "provider_id": f"pharmacy-{number % 300:04d}",
        "patient_id": f"patient-{number % 9000:05d}",
        "amount": 1000 * (number % 500),
        "distance_km": number % 97 / 10,
    }


def envelope(text: bytes) -> bytes:
    head = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:ap-southeast-1:123456789012:orders",
        "Message": text.decode(),
        "Timestamp": "2026-01-01T00:00:00.000Z",
        "SignatureVersion": "1",
        "Signature": "x" * 344,
        "SigningCertURL": "https://sns.ap-southeast-1.amazonaws.com/SimpleNotificationService.pem",
    }
    return json.dumps(head).encode()


def avro(events: list[dict[str, object]], readers: Readers) -> list[bytes]:
    names = {"string": "string", "timestamp_ms": "long", "int64": "long", "double": "double"}
    fields = [{"name": name, "type": names[type]} for name, type in TYPES.items()]
    schema = {"type": "record", "name": "Event", "fields": fields}
    readers._readers[1] = readers.read(Schema(json.dumps(schema), "AVRO"))
    parsed, values = parse_schema(schema), []
    for one in events:
        out = io.BytesIO()
        schemaless_writer(out, parsed, one)
        values.append(b"\0\0\0\0\1" + out.getvalue())
    return values


def protobuf(events: list[dict[str, object]], readers: Readers) -> list[bytes]:
    numbers = {"string": 9, "timestamp_ms": 3, "int64": 3, "double": 1}
    file = FileDescriptorProto(name="event.proto", syntax="proto3")
    message = file.message_type.add(name="Event")
    for number, (name, type) in enumerate(TYPES.items(), 1):
        message.field.add(name=name, type=numbers[type], number=number, label=1)
    readers._readers[1] = readers.read(
        Schema(b64encode(file.SerializeToString()).decode(), "PROTOBUF")
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = GetMessageClass(pool.FindMessageTypeByName("Event"))
    return [b"\0\0\0\0\1\0" + made(**one).SerializeToString() for one in events]


def rate(batch: pa.RecordBatch, format: Format | None) -> float:
    fields = {name: Field(type) for name, type in TYPES.items()}
    decoder = JsonDecoder(fields, "event_time", format=format, clock=lambda: START)
    decoder.decode(batch)
    begin = time.process_time()
    for _ in range(TIMES):
        rows, dead = decoder.decode(batch)
        assert (rows.num_rows, dead.num_rows) == (BATCH, 0)
    return TIMES * BATCH / (time.process_time() - begin)


def main() -> None:
    events = [event(number) for number in range(BATCH)]
    bare = [json.dumps(one).encode() for one in events]
    registry, fields = SchemaRegistry("http://127.0.0.1:1"), list(TYPES)
    # No registry is needed: its one schema is put where the reader would keep it.
    of_avro, of_protobuf = avro_format._readers(registry), protobuf_format._readers(registry)
    assert isinstance(of_avro, AvroReaders)
    assert isinstance(of_protobuf, ProtobufReaders)
    rows: list[tuple[str, list[bytes], Format | None]] = [
        ("json", bare, None),
        ("sns, in envelopes", [envelope(text) for text in bare], SnsEnvelope()),
        ("sns, bare", bare, SnsEnvelope()),
        ("avro", avro(events, of_avro), AvroFormat(registry, fields)),
        ("protobuf", protobuf(events, of_protobuf), ProtobufFormat(registry, fields)),
    ]
    print(f"{'format':20} {'bytes/message':>14} {'events/s':>10}")
    for name, values, format in rows:
        size = sum(map(len, values)) / BATCH
        print(f"{name:20} {size:14.0f} {rate(messages(values), format):10,.0f}", flush=True)


if __name__ == "__main__":
    main()
