"""Logs: a line of text or a JSON object for each record, with its job, step and partition.

What comes again and again is told once a minute, with how often it was left out. Nothing of an event
is logged, and no option of a job, which may be a secret: ``Discreet`` holds what would.
"""

import json
import logging
import os
import re
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TextIO

VARIABLE: Final = "VELOCITY_LOG_FORMAT"
"""Of the environment: how all of Velocity's processes log, unless told otherwise."""

EVERY: Final = 60.0
"""Seconds for which a record like the one before is left out."""

MOST_KINDS: Final = 1_000
"""Kinds of records that are remembered; of more, the one that was seen least lately is new again."""

PLACE: Final = ("topic", "partition", "offset")
"""What a record may say of where it comes from: ``extra`` of a call of the logger."""


class Format(StrEnum):
    """How a record is written."""

    TEXT = "text"
    JSON = "json"


def wanted(environ: Mapping[str, str] = os.environ) -> Format:
    """The format that the environment asks for; raises ``ValueError`` if there is none such.

    >>> wanted({})
    <Format.TEXT: 'text'>
    """
    given = environ.get(VARIABLE) or Format.TEXT
    try:
        return Format(given)
    except ValueError:
        raise ValueError(f"{VARIABLE} is {given!r}: give text or json") from None


def step() -> str | None:
    """The step of the graph that runs in this thread, if one does; Beam is not imported for it."""
    sampler: Any = sys.modules.get("apache_beam.runners.worker.statesampler")
    tracker = sampler.get_current_tracker() if sampler else None
    state = tracker.current_state() if tracker else None
    context = getattr(state, "name_context", None)
    return getattr(context, "step_name", None) or None


class ToJson(logging.Formatter):
    """A record as one line of JSON: ``time``, ``level``, ``logger``, ``message`` and what it is about.

    ``job``, ``stage``, ``topic``, ``partition``, ``offset``, ``suppressed`` and ``error`` are there
    if they are known. Of an error that is no own one of Velocity only the kind is told, and where it
    was raised: its text may hold what was in a message.
    """

    def __init__(self, job: str | None = None) -> None:
        super().__init__()
        self._job = job

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "job": self._job,
            "stage": step(),
            **{name: getattr(record, name, None) for name in (*PLACE, "suppressed")},
            "error": error_of(record),
        }
        known = {name: value for name, value in said.items() if value is not None}
        return json.dumps(known, ensure_ascii=False, default=str)


class ToText(logging.Formatter):
    """A record as one line of text."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) + told_again(record)


def told_again(record: logging.LogRecord) -> str:
    """How many like it were left out before it, for people."""
    left_out = getattr(record, "suppressed", None)
    return f" (and {left_out:,} like it before)" if left_out else ""


def error_of(record: logging.LogRecord) -> dict[str, Any] | None:
    """What a record's exception is, and where it comes from, without values of variables."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return None
    frames = traceback.extract_tb(error.__traceback__)
    said: dict[str, Any] = {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-10:]],
    }
    if type(error).__module__.startswith("velocity."):
        said["message"] = str(error)
    return said


class Repeats(logging.Filter):
    """Lets a record through if none like it was within ``every`` seconds; the next tells of the others.

    Alike are records of one line of code that say where they come from alike.

    >>> now = [0.0]
    >>> repeats = Repeats(clock=lambda: now[0])
    >>> def record(n): return logging.LogRecord("velocity", 30, "x.py", 1, "%d", (n,), None)
    >>> [repeats.filter(record(n)) for n in range(3)]
    [True, False, False]
    >>> now[0] = 60.0
    >>> last = record(3)
    >>> repeats.filter(last), last.suppressed
    (True, 2)
    """

    def __init__(
        self,
        every: float = EVERY,
        *,
        most: int = MOST_KINDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._every, self._most, self._clock = every, most, clock
        self._kinds: OrderedDict[tuple[Any, ...], _Kind] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        place = (getattr(record, name, None) for name in PLACE[:2])
        of_velocity = record.name.startswith("velocity")
        # Others' records are alike by their text: one line of theirs may say all sorts of things.
        text = record.msg if of_velocity else record.getMessage()
        key = (record.name, record.pathname, record.lineno, text, *place)
        now = self._clock()
        kind = self._kinds.get(key)
        if kind is not None and now - kind.told < self._every:
            kind.left_out += 1
            self._kinds.move_to_end(key)
            return False
        if kind is not None and kind.left_out:
            record.suppressed = kind.left_out
        self._kinds[key] = _Kind(now)
        self._kinds.move_to_end(key)
        while len(self._kinds) > self._most:
            self._kinds.popitem(last=False)
        return True


@dataclass
class _Kind:
    told: float
    left_out: int = 0


class Discreet(logging.Filter):
    """Takes out of Beam's own records what may be a secret, or of an event.

    A worker tells all of a job's options as it starts: they go by their names. And when a bundle
    fails it writes the error's text into its message: the kind of error is enough here, for the
    runner is told the rest.

    >>> record = logging.LogRecord("apache_beam.x", 30, "x", 1, "Unparseable: --key=k1 -a", (), None)
    >>> Discreet().filter(record), record.getMessage()
    (True, 'Unparseable: --key=*** -a')
    """

    _OPTION: Final = re.compile(r"(--[\w-]+)[= ][^\s',]+")
    _KIND: Final = re.compile(
        r"^([A-Za-z_][\w.]*(?:Error|Exception|[A-Z]\w+))(?::|$)", re.MULTILINE
    )

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("apache_beam") and record.name != "root":
            return True
        text = record.getMessage()
        if text.startswith("Pipeline_options"):
            return False
        if record.exc_info or "Traceback" in text or "traceback" in text:
            kinds = self._KIND.findall(text)
            error = error_of(record) or {"type": kinds[-1] if kinds else "unknown"}
            text = f"a bundle or its worker failed: {error['type']}"
            if "message" in error:
                text += f": {error['message']}"
            record.exc_info = record.exc_text = None
        record.msg, record.args = self._OPTION.sub(r"\1=***", text), ()
        return True


class _ToStderr(logging.StreamHandler[TextIO]):
    """To the standard error as it is when a record comes, for it may be another one by then."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure(format_: Format, *, job: str | None = None, level: int = logging.NOTSET) -> None:
    """Has all of this process's records of weight, from a level on, written to the standard error."""
    handler = _ToStderr()
    handler.setLevel(level)
    handler.setFormatter(ToJson(job) if format_ is Format.JSON else ToText())
    guard(handler)
    root = logging.getLogger()
    for other in [h for h in root.handlers if isinstance(h, _ToStderr)]:
        root.removeHandler(other)
    root.addHandler(handler)
    logging.getLogger("velocity").setLevel(logging.INFO)


def guard(handler: logging.Handler) -> None:
    """Has a handler leave out repeats, and what is nobody's business."""
    handler.addFilter(Discreet())
    handler.addFilter(Repeats())
