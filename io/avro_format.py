"""Messages in Avro, of schemas in a registry."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
from confluent_kafka.schema_registry import Schema
from fastavro import schemaless_reader
from fastavro.schema import SchemaParseException, UnknownType, parse_schema

from velocity.io.records import Texts
from velocity.io.schema_registry import Read, Readers, SchemaRegistry, UnknownSchema, events


@dataclass(frozen=True)
class AvroFormat:
    """A format (``velocity.io.records.Format``): Avro records in Confluent's framing.

    ``fields`` names the record's fields that are wanted. Each message is read with the schema that wrote
    it, whose evolution is seen as fields that come and go. ``timestamp-millis`` and ``-micros`` are
    fields of the type ``timestamp``; bare longs of epoch milliseconds ``timestamp_ms``.

    The registry's client is confluent-kafka's; records are read by fastavro, as in its
    ``AvroDeserializer``, which expands the schema anew for each message and takes three times as long.
    """

    registry: SchemaRegistry
    fields: Sequence[str]

    def texts(self, messages: pa.RecordBatch) -> Texts:
        """Raises ``RegistryUnavailable``."""
        return events(messages, _readers(self.registry), self.fields)


class AvroReaders(Readers):
    KIND = "AVRO"

    def read(self, schema: Schema) -> Read:
        named: dict[str, Any] = {}
        try:
            parsed = self._parse(schema, named)
        except (SchemaParseException, UnknownType, ValueError) as error:
            raise UnknownSchema(f"its schema can't be read: {error}") from None
        return lambda payload: schemaless_reader(io.BytesIO(payload), parsed, None)

    def _parse(self, schema: Schema, named: dict[str, Any]) -> Any:
        """Those it refers to come first, for it takes their names from ``named``."""
        for other in self.referenced(schema).values():
            self._parse(other, named)
        return parse_schema(json.loads(schema.schema_str or ""), named_schemas=named)


@cache
def _readers(registry: SchemaRegistry) -> Readers:
    return AvroReaders(registry)
