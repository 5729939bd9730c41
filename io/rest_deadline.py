"""HTTP calls that end in time: an answer that comes in drops is given up, be it in its headers."""

import errno
import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http.client import HTTPResponse
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter


class _Deadline:
    def __init__(self, total: float, clock: Callable[[], float]) -> None:
        self._total, self._clock, self._end = total, clock, clock() + total

    def left(self) -> float:
        return self._end - self._clock()

    def error(self) -> TimeoutError:
        return TimeoutError(errno.ETIMEDOUT, f"not all came within {self._total:g} s")


_now: Final[ContextVar[_Deadline | None]] = ContextVar("deadline", default=None)


@contextmanager
def within(total: float, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """All of an answer whose call is made in here must have come in ``total`` seconds.

    That includes its body, also where it is read later. The session must have a
    ``DeadlineAdapter``. What comes too late raises what a read timeout does.
    """
    before = _now.set(_Deadline(total, clock))
    try:
        yield
    finally:
        _now.reset(before)


class _Bytes(io.RawIOBase):
    """What comes from a socket. Its own timeout is for each next piece; here it shrinks as well."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: _Deadline) -> None:
        self._raw, self._sock, self._deadline = raw, sock, deadline
        self._each = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline.left()
        if left > 0:
            self._sock.settimeout(left if self._each is None else min(left, self._each))
            try:
                return self._raw.readinto(buffer)
            except TimeoutError:
                if self._deadline.left() > 0:
                    raise
        raise self._deadline.error()

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        deadline = _now.get()
        if deadline is not None:
            self.fp = io.BufferedReader(_Bytes(self.fp.detach(), sock, deadline))


class DeadlineAdapter(HTTPAdapter):
    """An adapter whose connections keep to ``within``; those through a proxy too."""

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*arguments, **options)
        kind: Any = pool.ConnectionCls
        if kind.response_class is not _Response:
            pool.ConnectionCls = type(kind.__name__, (kind,), {"response_class": _Response})
        return pool


def mount(session: requests.Session, *, connections: int = 1) -> None:
    """Has the session make its calls by a ``DeadlineAdapter``, so many at once."""
    adapter = DeadlineAdapter(pool_connections=1, pool_maxsize=connections)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
