"""What a replay has done, so that one that was killed goes on where it was."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from apache_beam.io.filesystems import FileSystems

Stretch = tuple[int, int]
"""From and to, in epoch milliseconds."""
_DONE: Final = "done"


class StateUnusable(Exception):
    """A file of a replay's state can't be used; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class ReplayState:
    """A file that names the stretches of time whose documents are written, and of which replay.

    ``replay`` says what makes it this one and no other: a file of another is not taken for it.
    """

    path: str
    replay: Mapping[str, Any]

    def done(self) -> dict[Stretch, int]:
        """What is done, each with how many documents were left out; nothing if there is no such
        file. Raises ``StateUnusable``."""
        if not FileSystems.exists(self.path):
            return {}
        with FileSystems.open(self.path) as file:
            text = file.read()
        try:
            found = json.loads(text)
            done = {(int(a), int(b)): int(left_out) for a, b, left_out in found.pop(_DONE)}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StateUnusable(f"{self.path} is no state of a replay: remove it") from None
        if found != dict(self.replay):
            raise StateUnusable(
                f"{self.path} is the state of another replay: name another file with --state"
            )
        return done

    def add(self, done: Mapping[Stretch, int]) -> None:
        """Writes what is done now, all of it, in place of what was there."""
        stretches = sorted((*stretch, left_out) for stretch, left_out in done.items())
        text = json.dumps({**self.replay, _DONE: stretches}, indent=1)
        hidden = f"{self.path}.tmp"
        with FileSystems.create(hidden) as file:
            file.write(text.encode())
        FileSystems.rename([hidden], [self.path])

    def forget(self) -> None:
        """The replay has ended: it may be made again from its start."""
        with suppress(FileNotFoundError):
            if FileSystems.exists(self.path):
                FileSystems.delete([self.path])
