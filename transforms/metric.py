"""What a metric is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from velocity.transforms.windows import Window


@dataclass(frozen=True)
class Metric:
    """What is counted: which events, by which columns, in which windows, shown when."""

    name: str
    values: Mapping[str, str]
    """Names in the document, each with its aggregate: ``sum(amount)``."""
    window: Window
    by: Sequence[str] = ()
    """Columns whose values make the key."""
    where: str | None = None
    """A SQL condition that an event must meet to count."""
    early: timedelta | None = None
    """How often a window that is still open shows what it has, in processing time."""
    lateness: timedelta = timedelta(0)
    """How long after the watermark has passed a window late events still count in it."""
    id: str | None = None
    """Of its documents, a template (``velocity.transforms.ids``); None for ``document_id``."""

    def __post_init__(self) -> None:
        if self.early is not None and (self.early % _SECOND or self.early < _SECOND):
            raise ValueError(f"metric {self.name}, early: whole seconds, at least one, are wanted")
        if self.lateness < timedelta(0):
            raise ValueError(f"metric {self.name}, lateness: zero or more is wanted")


_SECOND: Final = timedelta(seconds=1)
