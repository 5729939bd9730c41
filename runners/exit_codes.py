"""The exit codes of all commands: one table, and the line of it that a command's help ends with."""

from typing import Final

MEANINGS: Final = {
    0: "done",
    1: "it is wrong, failed, or can't be done",
    2: "wrong usage",
    3: "a JDK, Maven or pip is missing",
    4: "a package is not the pinned one",
    5: "a port is taken",
    6: "a server failed",
    7: "another command is at work on the same stack",
    8: "done, but documents are left out that go on outside of what was read",
    130: "Ctrl-C",
}
"""What a code means, whatever the command; 3 to 7 are of ``velocity stack``, 8 of
``velocity replay``. A command that another
signal N ends has 128 + N."""


def codes(*given: int, **own: str) -> str:
    """The end of a command's help: 0, 1 and 2, those given, and what it says of one in its own words.

    >>> codes(130, _1="Flink cannot")
    'Exit codes: 0 done · 1 Flink cannot · 2 wrong usage · 130 Ctrl-C'
    """
    words = {int(code.removeprefix("_")): text for code, text in own.items()}
    wanted = sorted({0, 1, 2, *given, *words})
    return "Exit codes: " + " · ".join(
        f"{code} {words.get(code, MEANINGS[code])}" for code in wanted
    )
