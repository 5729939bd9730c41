"""What ``json_native.c`` has; see ``json_plain``, its only user."""

from typing import TypeAlias

Field: TypeAlias = tuple[bytes, str, int, int]
"""Name, type (that of a decimal without its figures), precision and scale."""

Column: TypeAlias = tuple[int, bytes, bytes] | tuple[int, bytes, bytes, bytes]
"""How many nulls, validity (bits), and values; of strings their ends (int32) and their bytes."""

def read(
    fields: tuple[Field, ...],
    valid: object,
    ends: object,
    data: object,
    first: int,
    count: int,
    most: int,
) -> tuple[int, tuple[Column, ...], bytes]:
    """Reads the objects among the texts from ``first`` on that are plain, of ``most`` bytes each.

    Of the texts there are the buffers of an Arrow array of binaries; ``valid`` is empty where no text is
    null. Gives the number of rows, their columns, and the positions (int64) of the other texts.
    ``ValueError`` for buffers that are none of such an array.
    """
