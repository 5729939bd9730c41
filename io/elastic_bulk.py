"""Bulk requests to Elasticsearch: how one is filled, sent, and sent again as far as it failed."""

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from elasticsearch import (
    ApiError,
    Elasticsearch,
    SerializationError,
    TransportError,
    UnsupportedProductError,
)

from velocity.io.documents import Rejection
from velocity.io.elastic_answers import Answer, Fate, Verdict, error_in, judge, judge_request
from velocity.io.elastic_connection import not_reached

# -- requests -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a bulk may grow; a single document may be larger."""

    documents: int = 1_000
    size: int = 5_000_000
    """Bytes of the request's body."""
    age: timedelta = timedelta(seconds=5)
    """How long its first document may wait for further ones of its bundle."""

    def __post_init__(self) -> None:
        if self.documents < 1 or self.size < 1 or self.age <= timedelta():
            raise ValueError(f"{self}: give at least 1 of each, and an age")


@dataclass(frozen=True, slots=True)
class Operation:
    """One document of a bulk, encoded, or its deletion."""

    index: str
    id: str
    version: int
    action: bytes
    """The line of ``_bulk`` that says what is done to which document."""
    source: bytes | None
    """The line after it: the document. A deletion has none."""
    due: int | None = None
    """As ``velocity.io.records.Document`` has it."""

    @property
    def lines(self) -> tuple[bytes, ...]:
        return (self.action,) if self.source is None else (self.action, self.source)

    @property
    def size(self) -> int:
        """Bytes in the request's body."""
        return sum(len(line) + 1 for line in self.lines)


class Buffer:
    """The bulk that is being filled: of several versions of one document only the greatest."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._operations: dict[tuple[str, str], Operation] = {}
        self._size, self._began = 0, 0.0
        self.superseded = 0
        """Documents left out since the bulk was begun."""

    def add(self, new: Operation) -> list[Operation]:
        """Takes an operation in; returns the bulk to send before it, or an empty one."""
        key = (new.index, new.id)
        old = self._operations.get(key)
        if old is not None:
            left_out = new if old.version >= new.version else old
            self.superseded += left_out.source is not None
            if left_out is new:
                return []
            self._size -= self._operations.pop(key).size
        bulk = self.take() if self._is_full(new) else []
        if not self._operations:
            self._began = self._clock()
        self._operations[key] = new
        self._size += new.size
        return bulk

    def _is_full(self, new: Operation) -> bool:
        return (
            len(self._operations) >= self._limits.documents
            or self._size + new.size > self._limits.size
            or self._clock() - self._began >= self._limits.age.total_seconds()
        )

    def take(self) -> list[Operation]:
        """The bulk so far, which may be empty; another is begun."""
        taken = list(self._operations.values())
        self._operations, self._size = {}, 0
        return taken


# -- service --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with full jitter, which spreads the clients that failed together.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    initial: timedelta = timedelta(milliseconds=200)
    longest: timedelta = timedelta(seconds=15)
    deadline: timedelta = timedelta(seconds=60)
    """Time for one bulk with all its retries."""

    def __post_init__(self) -> None:
        if not timedelta() < self.initial <= self.longest <= self.deadline:
            raise ValueError(f"{self}: needs 0 < initial <= longest <= deadline")

    @classmethod
    def lasting(cls, deadline: timedelta) -> "Retry":
        """With the usual waits, or shorter ones if the deadline is sooner.

        >>> Retry.lasting(timedelta(seconds=1)).longest
        datetime.timedelta(seconds=1)
        """
        return cls(min(cls().initial, deadline), min(cls().longest, deadline), deadline)

    def delay(self, failures: int, jitter: float) -> float:
        """Seconds to wait after so many failures in a row; ``jitter`` is random in [0, 1).

        >>> Retry().delay(1, 0.5), Retry().delay(3, 0.5), Retry().delay(1000, 0.5)
        (0.1, 0.4, 7.5)
        """
        bound = self.initial.total_seconds() * 2.0 ** min(failures - 1, 60)
        return jitter * min(bound, self.longest.total_seconds())


def send(client: Elasticsearch, operations: Sequence[Operation], timeout: float) -> Answer:
    """One ``_bulk`` call; every error of the network or the server is an answer too."""
    lines: list[Any] = [line for o in operations for line in o.lines]
    try:
        response = client.options(request_timeout=timeout).bulk(
            operations=lines,
            filter_path=["error", "status", "items.*.status", "items.*.error"],
        )
    except UnsupportedProductError as error:
        return Answer(Fate.FAIL, (), error.message)
    except ApiError as error:
        status = error.meta.status
        told = f"HTTP {status}: {error_in(error.body)}"
        return Answer(judge_request(status, error.body), (), told)
    except (TransportError, SerializationError) as error:
        return Answer(judge_request(0), (), not_reached(error))
    body = response.body if isinstance(response.body, dict) else {}
    items = body.get("items", ())
    if len(items) != len(operations):
        return Answer(judge_request(0), (), f"{len(items)} answers to {len(operations)} documents")
    return Answer(Fate.READ, items, "")


class DocumentsUnwritten(RuntimeError):
    """Elasticsearch did not take documents, so their bundle failed and its runner tries again."""

    def __init__(self, error: str, index: str, count: int) -> None:
        # The error comes first because Beam adds the step's name to the first argument.
        super().__init__(error, index, count)
        self.error, self.index, self.count = error, index, count

    def __str__(self) -> str:
        return (
            f"{self.count} documents not written, the first of them to {self.index}: {self.error}"
        )


@dataclass
class Outcome:
    """What became of a bulk; each document is counted once, deletions only as far as they did it."""

    written: int = 0
    stale: int = 0
    removed: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    calls: int = 0
    retries: int = 0
    """How many of the calls repeated one that failed, in whole or in part."""


@dataclass(frozen=True)
class Bulks:
    """Writes bulks, sending again only what may yet succeed."""

    send: Callable[[Sequence[Operation], float], Answer]
    retry: Retry
    request_timeout: timedelta
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic
    """Seconds."""

    def write(self, bulk: Sequence[Operation]) -> Outcome:
        """Returns when each document is written, stale or rejected.

        An answer that was lost after the write does no harm: the retry finds the same version
        there, and the document counts as stale.

        Raises ``DocumentsUnwritten`` past the deadline, or when no retry can help.
        """
        outcome = Outcome()
        end = self.clock() + self.retry.deadline.total_seconds()
        waiting = deque([list(bulk)] if bulk else [])
        failures, first_error = 0, ""
        while waiting:
            sent = waiting.popleft()
            timeout = min(self.request_timeout.total_seconds(), max(end - self.clock(), 1.0))
            answer = self.send(sent, timeout)
            outcome.calls += 1
            failed, error = self._read(sent, answer, outcome, waiting)
            if not failed:
                continue
            failures += 1
            first_error = first_error or error
            delay = self.retry.delay(failures, self.jitter())
            if answer.fate is Fate.FAIL or self.clock() + delay >= end:
                count = len(failed) + sum(map(len, waiting))
                raise DocumentsUnwritten(first_error, failed[0].index, count)
            outcome.retries += 1
            self.sleep(delay)
            waiting.appendleft(failed)
        return outcome

    def _read(
        self,
        sent: list[Operation],
        answer: Answer,
        outcome: Outcome,
        waiting: deque[list[Operation]],
    ) -> tuple[list[Operation], str]:
        """Books what is settled; returns what failed, with the first error."""
        if answer.fate in (Fate.RETRY, Fate.FAIL):
            return sent, answer.error
        if answer.fate is Fate.SPLIT:
            if len(sent) == 1:
                outcome.rejected.append(_rejection(sent[0], answer.error))
            else:
                half = len(sent) // 2
                waiting.extendleft((sent[half:], sent[:half]))
            return [], ""
        failed, first_error = [], ""
        for operation, item in zip(sent, answer.items, strict=True):
            verdict, error = judge(item)
            if verdict is Verdict.WRITTEN and operation.source is None:
                outcome.removed += item["delete"]["status"] != 404
            elif verdict is Verdict.WRITTEN:
                outcome.written += 1
            elif verdict is Verdict.STALE:
                outcome.stale += operation.source is not None
            elif verdict is Verdict.REJECTED:
                outcome.rejected.append(_rejection(operation, error))
            else:
                failed.append(operation)
                first_error = first_error or error
        return failed, first_error


def _rejection(operation: Operation, error: str) -> Rejection:
    return Rejection(operation.index, operation.id, operation.source or b"", error)
