"""What pages of the documentation have that can be run: their files, and their commands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SHELL = ("sh", "sh run", "bash", "console")


class Line(NamedTuple):
    """A command as a page shows it."""

    page: Path
    section: str
    """The heading that it is under."""
    number: int
    text: str
    shown: tuple[str, ...] = ()
    """What the page says it prints, after ``#>``."""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.number}"

    @property
    def command(self) -> str:
        """Without the remark at its end."""
        return re.sub(r"\s+# .*", "", self.text)


class Fence(NamedTuple):
    """A block that is no shell's: a file, an output, or an example."""

    page: Path
    section: str
    number: int
    info: str
    body: str

    @property
    def file(self) -> str:
        found = re.search(r"file=(\S+)", self.info)
        return found[1] if found else ""


def parts(page: Path) -> Iterator[Line | Fence]:
    """A page's commands, of blocks that are indented or fenced as a shell's, and its other fences."""
    section, fence, body, text = "", "", "", ""
    began = number = 0
    inside, waiting = False, None
    for number, raw in enumerate(page.read_text("utf-8").splitlines(), 1):
        if raw.startswith("```"):
            if inside and fence not in SHELL:
                yield Fence(page, section, began, fence, body)
            inside = not inside
            fence, body, began = raw.strip("`").strip(), "", 0
        elif inside and fence not in SHELL:
            body, began = f"{body}{raw}\n", began or number
        elif inside or raw.startswith("    "):
            if raw.startswith("#> "):
                assert waiting, f"{page}:{number}: of which command?"
                waiting = waiting._replace(shown=(*waiting.shown, raw[3:]))
                continue
            began, text = began or number, text + raw.strip().removeprefix("$ ")
            if text.endswith("\\"):
                text = text[:-1]
                continue
            if waiting:
                yield waiting
            waiting = Line(page, section, began, text) if text else None
            text, began = "", 0
            continue
        elif raw.startswith("#"):
            section = raw.strip("# ")
        if waiting:
            yield waiting
            waiting = None
    if waiting:
        yield waiting
