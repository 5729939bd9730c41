"""Messages in Protobuf, of schemas in a registry."""

import io
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

# The second brings what a schema may import without a reference, such as Timestamp, into the pool.
import pyarrow as pa
from confluent_kafka.schema_registry import Schema, protobuf  # noqa: F401
from confluent_kafka.schema_registry.serde import SchemaId
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from velocity.io.records import Texts
from velocity.io.schema_registry import Read, Readers, SchemaRegistry, UnknownSchema, events

_HEAD = bytes(5)
_WRAPPERS = {
    f"google.protobuf.{kind}Value"
    for kind in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
}


@dataclass(frozen=True)
class ProtobufFormat:
    """A format (``velocity.io.records.Format``): Protobuf messages in Confluent's framing.

    ``fields`` names the message's fields that are wanted. Each message is read with the schema that
    wrote it, as the registry has it: no generated class is needed. A ``google.protobuf.Timestamp`` is a
    field of the type ``timestamp``, an enum's value its name, a wrapper what it wraps. A field that has
    no presence and was not set is its default, zero or empty: that is all that Protobuf says of it.
    """

    registry: SchemaRegistry
    fields: Sequence[str]

    def texts(self, messages: pa.RecordBatch) -> Texts:
        """Raises ``RegistryUnavailable``."""
        return events(messages, _readers(self.registry), self.fields)


class ProtobufReaders(Readers):
    KIND = "PROTOBUF"
    FORMAT = "serialized"

    def read(self, schema: Schema) -> Read:
        pool = descriptor_pool.DescriptorPool()
        try:
            file = self._add(pool, "its schema", schema)
        except (DecodeError, KeyError, TypeError, ValueError) as error:
            raise UnknownSchema(f"its schema can't be read: {error}") from None
        classes: dict[tuple[int, ...], type[Message]] = {}

        def read(payload: bytes) -> Mapping[str, Any]:
            framed = SchemaId(self.KIND)
            rest = framed.from_bytes(io.BytesIO(_HEAD + payload))
            indexes = tuple(framed.message_indexes or ())
            if (made := classes.get(indexes)) is None:
                descriptor = pool.FindMessageTypeByName(_name(file, indexes))
                classes[indexes] = made = GetMessageClass(descriptor)
            return _Event(made.FromString(rest.read()))

        return read

    def _add(
        self, pool: descriptor_pool.DescriptorPool, name: str, schema: Schema
    ) -> FileDescriptorProto:
        """Adds a schema's file under a name, after all that it imports."""
        file = FileDescriptorProto.FromString(b64decode(schema.schema_str or "", validate=True))
        file.name = name
        referenced = self.referenced(schema)
        for imported in file.dependency:
            if imported in referenced:
                self._add(pool, imported, referenced[imported])
            else:
                _copy(pool, imported)
        pool.Add(file)
        return file


def _copy(pool: descriptor_pool.DescriptorPool, name: str) -> None:
    """Adds a file that everyone has. Raises ``KeyError`` if it is none of them."""
    file = FileDescriptorProto()
    descriptor_pool.Default().FindFileByName(name).CopyToProto(file)
    for imported in file.dependency:
        _copy(pool, imported)
    pool.Add(file)


def _name(file: FileDescriptorProto, indexes: Sequence[int]) -> str:
    """The full name of a message by its position in the file, and in the messages that hold it."""
    names, held = [file.package] if file.package else [], file.message_type
    for index in indexes:
        if not 0 <= index < len(held):
            raise IndexError(f"the schema has no message {list(indexes)}")
        message: DescriptorProto = held[index]
        names.append(message.name)
        held = message.nested_type
    return ".".join(names)


class _Event(Mapping[str, Any]):
    """The fields of a message that it has, each as a plain value."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._fields = message.DESCRIPTOR.fields_by_name

    def __contains__(self, name: object) -> bool:
        field = self._fields.get(name)
        return field is not None and (not field.has_presence or self._message.HasField(name))

    def __getitem__(self, name: str) -> Any:
        value, field = getattr(self._message, name), self._fields[name]
        if field.message_type is not None and isinstance(value, Message):
            kind = field.message_type.full_name
            if kind == "google.protobuf.Timestamp":
                return value.ToJsonString()
            return value.value if kind in _WRAPPERS else {}
        if isinstance(value, str | bytes | int | float):
            return _enumerated(field, value) if field.enum_type is not None else value
        return []  # repeated, or a map: no field of a job can hold it

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._fields if name in self)

    def __len__(self) -> int:
        return len(list(iter(self)))


def _enumerated(field: FieldDescriptor, number: Any) -> Any:
    """The value's name; of a number that the schema does not name, the number."""
    named = field.enum_type.values_by_number.get(number)
    return named.name if named else number


@cache
def _readers(registry: SchemaRegistry) -> Readers:
    return ProtobufReaders(registry)
