"""Fields for the tests of what is decoded: one of each type but decimals."""

from typing import Final

from velocity.transforms.fields import Field

FIELDS: Final = {
    "s": Field("string"),
    "n": Field("int64"),
    "d": Field("double"),
    "b": Field("bool"),
    "t": Field("timestamp"),
    "at": Field("timestamp_ms"),
}
