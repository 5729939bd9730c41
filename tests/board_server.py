"""Boards in a process of their own, which a test of pages asks for: Playwright's loop is in the test's.

Commands come on stdin, a JSON object a line: ``{"serve": …}`` and ``{"stop": URL}``; each is answered
by a line, the board's address.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.board_jobs import JOB, T0, board, served
from velocity.io.dead_letter_counts import Failed


class Letters:
    """Dead letters of two causes."""

    def counts(self) -> dict[Failed, int]:
        return {Failed("orders", "late", T0): 1_234, Failed("orders", "not_utf8", T0): 5}

    def close(self) -> None:
        """Nothing is held open."""


class Boards:
    """The process, as a test has it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.board_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    @contextmanager
    def served(
        self, path: Path, jobs: Sequence[str] = (JOB,), *, letters: bool = False, port: int = 0
    ) -> Iterator[str]:
        """The address of a board over a SQLite file, which need not be there yet."""
        wanted = {"path": str(path), "jobs": list(jobs), "letters": letters, "port": port}
        url = self._ask({"serve": wanted})
        try:
            yield url
        finally:
            self._ask({"stop": url})

    def _ask(self, command: object) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        assert answer, "the process that serves boards has ended"
        return answer

    def close(self) -> None:
        self._process.communicate()  # it ends as its input does
        assert self._process.returncode == 0


def main() -> None:
    serving = {}
    for line in sys.stdin:
        command = json.loads(line)
        if wanted := command.get("serve"):
            letters = [Letters()] if wanted["letters"] else []
            made = served(Path(wanted["path"]), board(*wanted["jobs"]), letters, wanted["port"])
            url = made.__enter__()
            serving[url] = made
        else:
            url = command["stop"]
            serving.pop(url).__exit__(None, None, None)
        print(url, flush=True)


if __name__ == "__main__":
    main()
