"""Ids of a metric's own: a template that no two keys and windows fill alike."""

import hashlib
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from velocity.transforms.id_begins import begin_of
from velocity.transforms.windows import Days, Fixed, Global, Session, Sliding, Window

LONGEST: Final = 512
"""Bytes of an id: Elasticsearch's limit."""
_LONGEST_BEGIN: Final = 128
_START: Final = "window_start"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_]|[^\x00-\x7f]")
"""What a value is written with as it is; all else is %XX, and null is %null."""
_TIMES: Final = {
    "%Y%m%d": timedelta(days=1),
    "%Y%m%d%H": timedelta(hours=1),
    "%Y%m%d%H%M": timedelta(minutes=1),
    "%Y%m%d%H%M%S": timedelta(seconds=1),
}
"""Directives in their order, and how far apart two times are at least that they tell apart."""


@dataclass(frozen=True, slots=True)
class IdTemplate:
    """The ids of a metric's documents: ``order-{order_id}/{window_start}``.

    It has each column of the key and, unless the window is global, ``{window_start}``: in epoch
    milliseconds, or in UTC by a format as long as that tells all windows apart; of sessions it is
    their slot's. ``{job}`` and ``{metric}`` are their names. What is no letter, digit or underscore
    in a value is written as %XX, and null as %null; so text between two values, of which one
    character at least is none of these, always shows where one ends.

    Raises ``ValueError`` for a template by which two documents could have one id.

    >>> hour = Fixed(timedelta(hours=1))
    >>> ids = IdTemplate("{metric}/{window_start:%Y-%m-%dT%H}/{city}", "j", "m", ["city"], hour)
    >>> ids.of(3_600_000, ["Kota Baru"]), ids.of(0, [None])
    ('m/1970-01-01T01/Kota%20Baru', 'm/1970-01-01T00/%null')
    >>> IdTemplate("{city}{window_start}", "j", "m", ["city"], hour)
    Traceback (most recent call last):
    ValueError: id: between {city} and {window_start} put a character such as / - : or space, or nobody \
could tell where one ends
    """

    template: str
    job: str
    metric: str
    by: Sequence[str]
    window: Window

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise ValueError(f"id: {error}") from None
        values: list[str] = []
        between = last = ""
        for text, name, spec, conversion in parts:
            between += text
            if name is None:
                continue
            self._check(name, spec or "", conversion)
            if name in ("job", "metric"):
                between += getattr(self, name)
                continue
            if values and not _PLAIN.sub("", between).replace("%", ""):
                raise ValueError(
                    f"id: between {{{last}}} and {{{name}}} put a character such as / - : or space, "
                    "or nobody could tell where one ends"
                )
            values.append(name)
            between, last = "", name
        missing = [f"{{{name}}}" for name in self.by if name not in values]
        if _START not in values and not isinstance(self.window, Global):
            missing.append(f"{{{_START}}}")
        if missing:
            raise ValueError(
                f"id: {', '.join(missing)} must be in it, or documents of several keys or windows "
                "would have one id"
            )
        if len(self.begin.encode()) > _LONGEST_BEGIN:
            raise ValueError(f"id: begin with {_LONGEST_BEGIN} bytes at most")

    def _check(self, name: str, spec: str, conversion: str | None) -> None:
        if name not in (*self.by, _START, "job", "metric"):
            there = ", ".join(f"{{{n}}}" for n in (*self.by, _START, "job", "metric"))
            raise ValueError(f"id: {{{name}}} is not known here; there are: {there}")
        if conversion or (spec and name != _START):
            raise ValueError(f"id: {{{name}}} takes no format")
        if name == _START and isinstance(self.window, Global):
            raise ValueError("id: a global window has no start: leave {window_start} out")
        if spec:
            apart = _TIMES.get("".join(re.findall("%.", spec)))
            if apart is None or "{" in spec:
                raise ValueError(
                    "id: give {window_start} a format of %Y %m %d, then %H %M %S as far as is needed, "
                    "or none"
                )
            if apart > (step := _step(self.window)):
                raise ValueError(
                    f"id: windows begin {step} apart or more, which {{window_start:{spec}}} does not "
                    "tell apart: give it a longer format, or none"
                )

    @property
    def begin(self) -> str:
        """What all ids begin with."""
        return begin_of(self.template, self.job, self.metric)

    def of(self, start: int, dimensions: Sequence[Any]) -> str:
        """Of a window's start (a session's slot) in epoch milliseconds, and the values of the key.

        One that would be longer than 512 bytes is its begin and a SHA-256.
        """
        given = dict(zip(self.by, map(_written, dimensions), strict=True))
        id_ = ""
        for text, name, spec, _ in string.Formatter().parse(self.template):
            id_ += text
            if name == _START:
                id_ += _time(start, spec) if spec else _written(start)
            elif name:
                id_ += getattr(self, name) if name in ("job", "metric") else given[name]
        if len(id_.encode()) > LONGEST:
            return self.begin + hashlib.sha256(id_.encode()).hexdigest()
        return id_


def _step(window: Window) -> timedelta:
    """How far apart two windows begin at least."""
    match window:
        case Fixed(size=size):
            return size
        case Sliding(every=every):
            return every
        case Session(gap=gap):
            return gap  # of slots
        case Days():
            return timedelta(hours=12)  # shorter days no zone has
    raise AssertionError(window)


def _time(millis: int, spec: str) -> str:
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=millis)
    return time.strftime(spec.replace("%Y", f"{time.year:04}"))


def _written(value: Any) -> str:
    if value is None:
        return "%null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "".join(c if _PLAIN.fullmatch(c) else f"%{ord(c):02X}" for c in str(value))
