"""The names of indices: one for each document by its window's time, and all that a pattern makes."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from velocity.io.records import Document

_ILLEGAL: Final = re.compile(r'[\\/*?"<>| ,#:A-Z]')
_DIRECTIVE: Final = re.compile(r"%(.?)")
_DATES: Final = {
    "Y": (r"\d{4}", timedelta(days=366)),
    "G": (r"\d{4}", timedelta(days=371)),
    "m": (r"\d{2}", timedelta(days=31)),
    "V": (r"\d{2}", timedelta(days=7)),
    "d": (r"\d{2}", timedelta(days=1)),
    "j": (r"\d{3}", timedelta(days=1)),
    "H": (r"\d{2}", timedelta(hours=1)),
}
"""What each directive makes of a time, and how long a time makes the same of it, at most."""


@dataclass(frozen=True, slots=True)
class IndexPattern:
    """The name of a document's index: ``{window_start:%Y.%m}`` (UTC), ``{job}`` and ``{metric}``.

    What ``{job}`` and ``{metric}`` stand for is put in lower case, as index names must be.
    Source of the rules: Elasticsearch's create index API, "Path parameters".

    >>> pattern = IndexPattern("velocity-{job}-{window_start:%Y.%m}")
    >>> pattern.name(Document("Pharmacy", "m", 1_767_225_600_000, 0, {}, {}, 1, "late", "1"))
    'velocity-pharmacy-2026.01'
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            fields = list(string.Formatter().parse(self.pattern))
        except ValueError as error:
            raise ValueError(f"index {self.pattern!r}: {error}") from error
        for _, name, spec, conversion in fields:
            if name is None:
                continue
            if name not in ("window_start", "job", "metric") or conversion:
                raise self._wrong(f"{{{name}}} is not one of {{window_start}}, {{job}}, {{metric}}")
            if name != "window_start" and spec:
                raise self._wrong(f"{{{name}}} takes no format")
            given = set(_DIRECTIVE.findall(spec or ""))
            if name == "window_start" and (
                "{" in (spec or "") or not given or given - _DATES.keys()
            ):
                raise self._wrong("give {window_start} a format of %Y %m %d %H %G %V %j")
        sample = self.name(Document("job", "metric", 0, 0, {}, {}, 1, "late", "id"))
        if _ILLEGAL.search(self.pattern.format(window_start=_Epoch(), job="", metric="")):
            raise self._wrong('use lower case and none of \\ / * ? " < > | , # : or space')
        if sample[:1] in ("", "-", "_", "+", ".") or len(sample.encode()) > 255:
            raise self._wrong("begin with a letter or digit, and keep to 255 bytes")

    @property
    def by_metric(self) -> bool:
        """Whether each metric has indices of its own."""
        return any(name == "metric" for _, name, _, _ in string.Formatter().parse(self.pattern))

    @property
    def period(self) -> timedelta | None:
        """The longest span of windows that share an index; None: all windows do.

        >>> IndexPattern("orders-{window_start:%G.%V}").period
        datetime.timedelta(days=7)
        """
        formats = [spec or "" for _, _, spec, _ in string.Formatter().parse(self.pattern)]
        directives = set(_DIRECTIVE.findall("".join(formats)))
        return min((_DATES[directive][1] for directive in directives), default=None)

    def wildcard(self, job: str, metric: str = "*") -> str:
        """What Elasticsearch takes for all indices of a job, or of one metric of it.

        >>> IndexPattern("{job}-{metric}-{window_start:%Y.%m}").wildcard("Orders", "revenue")
        'orders-revenue-*'
        """
        names = {"job": job.lower(), "metric": metric.lower()}
        return re.sub(r"\*+", "*", self.pattern.format(window_start=_Any("*"), **names))

    def makes(self, index: str, job: str, metrics: Sequence[str]) -> bool:
        """Whether it is the name of one of the job's indices; a wildcard takes in others too.

        >>> pattern = IndexPattern("{job}-{window_start:%Y.%m}")
        >>> pattern.makes("orders-2026.01", "orders", []), pattern.makes("orders-eu", "orders", [])
        (True, False)
        """
        parts = []
        names = "|".join(re.escape(metric.lower()) for metric in metrics)
        for text, name, spec, _ in string.Formatter().parse(self.pattern):
            parts.append(re.escape(text))
            if name == "window_start":
                parts.append(_DIRECTIVE.sub(lambda d: _DATES[d[1]][0], re.escape(spec or "")))
            elif name is not None:
                parts.append(re.escape(job.lower()) if name == "job" else f"({names})")
        return re.fullmatch("".join(parts), index) is not None

    def _wrong(self, remedy: str) -> ValueError:
        return ValueError(f"index {self.pattern!r}: {remedy}")

    def name(self, document: Document) -> str:
        time = document.window_start if document.slot is None else document.slot
        start = datetime.fromtimestamp(time // 1000, UTC)
        job, metric = document.job.lower(), document.metric.lower()
        return self.pattern.format(window_start=start, job=job, metric=metric)


class _Epoch:
    def __format__(self, spec: str) -> str:
        return datetime.fromtimestamp(0, UTC).strftime(spec)


@dataclass(frozen=True, slots=True)
class _Any:
    text: str

    def __format__(self, spec: str) -> str:
        return self.text
