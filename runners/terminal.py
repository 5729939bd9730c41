"""What commands share of the terminal: output that programs can read, and times as users give them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import typer
from rich.console import Console


def output(*, markup: bool = True) -> Console:
    """The standard output; where it is no terminal, each row of a table stays on one line."""
    made = Console(highlight=False, markup=markup)
    if not made.is_terminal:
        made.width = 10_000  # whoever reads it breaks the lines
    return made


def time_with_offset(text: str, option: str | None = None) -> datetime:
    """A time of RFC 3339; raises ``typer.BadParameter``, which names the option if it is given.

    >>> time_with_offset("2026-01-05T00:00:00Z")
    datetime.datetime(2026, 1, 5, 0, 0, tzinfo=datetime.timezone.utc)
    """
    with suppress(ValueError):
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found
    raise typer.BadParameter(
        "a time with its offset is wanted, such as 2026-01-05T00:00:00Z", param_hint=option
    )


@contextmanager
def every(seconds: float, show: Callable[[], None]) -> Iterator[None]:
    """Calls ``show`` again and again in a thread of its own, for as long as it is entered."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            show()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
