"""What ``kafka_native.c`` has; see ``kafka_batches``, its only user."""

from typing import TypeAlias, final

Binary: TypeAlias = tuple[bytes, bytes, bytes | None]
"""Ends (int32, one more than rows), data, and validity (bits) where something is null."""

Headers: TypeAlias = tuple[bytes, bytes, Binary, Binary]
"""Ends and validity of the lists, names, values."""

Columns: TypeAlias = tuple[bytes, bytes, bytes | None, Binary | None, Binary, Headers | None]
"""Offsets and timestamps (int64), the timestamps' validity, keys, values, headers; None: all null."""

class Client:
    """A client of librdkafka: a capsule, which may outlive it."""

def bind(path: str) -> None:
    """Takes librdkafka's functions from a library that is loaded and has them; else ``ImportError``."""

def made() -> Client:
    """The client that this thread made last with this library as a plugin; ``RuntimeError`` if none."""

@final
class Queue:
    """The messages of a partition, which from now on come here and not to its consumer."""

    def __init__(self, client: Client, topic: str, partition: int) -> None: ...
    def poll(
        self, most: int, timeout: int
    ) -> tuple[int, int, int, Columns | None, tuple[int, str] | None]:
        """Waits for so many messages, for 16 MiB or for so many milliseconds.

        Gives how many messages and events came; how many messages; the position after them, -1 if
        nothing tells it; the messages; and the code and text of the error that ended them.
        """

    def close(self) -> None:
        """To be called before the consumer's own ``close``."""
