"""The formats of messages whose schemas are in a registry, by name; they need an extra."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from velocity.io.records import Format

EXTRA = "schema-registry"


def registry_format(
    kind: Literal["avro", "protobuf"], url: str, options: Mapping[str, Any], fields: Sequence[str]
) -> Format:
    """``AvroFormat`` or ``ProtobufFormat`` of the registry at an address.

    Raises ``ValueError`` for what can't be used, and if the extra is not installed, without which
    all else of Velocity works.
    """
    try:
        from velocity.io.schema_registry import SchemaRegistry

        if kind == "avro":
            from velocity.io.avro_format import AvroFormat

            return AvroFormat(SchemaRegistry(url, options), fields)
        from velocity.io.protobuf_format import ProtobufFormat

        return ProtobufFormat(SchemaRegistry(url, options), fields)
    except ImportError as error:
        raise ValueError(
            f"{kind} needs {error.name}: pip install 'velocity[{EXTRA}]', here and on the workers"
        ) from error
