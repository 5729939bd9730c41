"""Each page of the documentation as a scenario: its commands, top to bottom, in a folder of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import requests

from tests.docs_pages import ROOT, Fence, Line, parts

WITHIN: Final = 300.0
"""Seconds for a command: a test waits for it, and measures nothing."""

NOT_RUN: Final[Mapping[str, str]] = {
    r"make (demo|test)": ".ci/run begins with it",
    r"make test-chaos.*": "it takes an hour; .ci/run has it run for some minutes",
    r"python benchmarks/.*": "a benchmark takes minutes, and tells nothing of a busy machine",
    r"aws .*": "it needs an account at AWS",
    r"velocity run job\.yaml --runner prism": "tests/test_stack_jobs.py runs it, if there is Go",
    r"velocity run job\.yaml --runner flink --flink-master local": (
        "tests/test_stack_flink_local.py runs it"
    ),
    r"velocity workers .*": "tests/test_stack_workers.py runs it",
    r"velocity run job\.yaml --runner flink -- --(setup_file|extra_package)=.*": (
        "tests/test_stack_flink_job.py runs it"
    ),
}
"""Commands of pages that no scenario runs, and why."""


class Step(NamedTuple):
    """What a command is expected to do, beside ending with 0."""

    shows: str = ""
    """What it prints, as a regular expression."""
    ends: bool = True
    """Whether it ends by itself; else it is interrupted, once it has shown that."""
    code: int = 0
    """How it ends when it is interrupted."""
    serves: str = ""
    """A path of the address that it then tells, which answers 200."""
    more: str = ""
    """Options at its end, with which it takes less time."""
    instead: Callable[["World"], Mapping[str, str]] | None = None
    """Words of it that stand for something, and for what."""
    before: Callable[["World"], object] | None = None
    after: Callable[["World"], object] | None = None


class Page(NamedTuple):
    """A page, or what of it is run at one place."""

    name: str
    steps: Mapping[str, Step] = {}
    """By the command's text; what is not here runs, and ends with 0."""
    begin: Callable[["World"], object] | None = None
    sections: tuple[str, ...] = ()
    """The headings whose commands are run; all, if there are none here."""
    again: tuple[str, ...] = ()
    """Headings under which commands that the page has had before are not run once more."""
    fences: Mapping[str, Callable[["World", str], object]] = {}
    """Checks of outputs that no command of the page has printed, by how they begin."""

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return ROOT / self.name

    def lines(self) -> Iterator[Line]:
        """The commands that this runs."""
        for part in parts(self.path):
            if isinstance(part, Line) and self.has(part) and not_run(part) is None:
                yield part

    def has(self, part: Line | Fence) -> bool:
        return not self.sections or part.section in self.sections


def not_run(line: Line) -> str | None:
    """The rule by which it is not run, if one says so."""
    return next((rule for rule in NOT_RUN if re.fullmatch(rule, line.command)), None)


@dataclass
class World:
    """Where a page's commands run."""

    folder: Path
    environ: dict[str, str]
    named: dict[str, str] = field(default_factory=dict)
    """What pages call servers and the like, and what they are here."""
    told: list[str] = field(default_factory=list)
    """What the commands have printed."""

    def play(self, page: Page) -> None:
        if page.begin:
            page.begin(self)
        had: set[str] = set()
        for part in parts(page.path):
            if isinstance(part, Fence):
                if part.file:
                    (self.folder / part.file).write_text(part.body, "utf-8")
                elif part.info == "text" and page.has(part):
                    self._compare(page, part)
            elif part.command in had and part.section in page.again:
                continue
            elif page.has(part) and not_run(part) is None:
                had.add(part.command)
                self._step(part, page.steps.get(part.command, Step()))

    def run(self, text: str, code: int = 0, within: float = WITHIN) -> str:
        """A line of a shell; what it prints, on both its outputs."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            timeout=within,
        )
        assert done.returncode == code, f"{text}\n{done.stdout}"
        self.told.append(done.stdout)
        return done.stdout

    def _step(self, line: Line, step: Step) -> None:
        if step.before:
            step.before(self)
        text = line.command
        instead = step.instead(self) if step.instead else {}
        for word, meant in {**self.named, **instead}.items():
            text = text.replace(word, meant)
        text = f"{text} {step.more}".rstrip()
        if exported := re.fullmatch(r"export (.*)", text):
            pairs = (pair.partition("=") for pair in exported[1].split())
            self.environ.update({name: value for name, _, value in pairs})
        elif step.ends:
            printed = self.run(text)
            for shown in line.shown:
                assert shown in printed, f"{line}: {text}\n{printed}"
            assert re.search(step.shows, printed), f"{line}: {text}\n{printed}"
        else:
            self._interrupt(line, text, step)
        if step.after:
            step.after(self)

    def _interrupt(self, line: Line, text: str, step: Step) -> None:
        """Runs what goes on without end until it has shown what it should, and ends it as Ctrl-C does."""
        printed = self.folder / f".printed-{line.number}"
        deadline = time.monotonic() + WITHIN
        with printed.open("wb") as file:
            run = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while not re.search(step.shows, printed.read_text("utf-8")):
                assert run.poll() is None, f"{line}: {text}\n{printed.read_text('utf-8')}"
                assert time.monotonic() < deadline, f"{line}: {text}\n{printed.read_text('utf-8')}"
                time.sleep(0.05)
            if step.serves:
                address = re.search(r"https?://[\w.:]+", printed.read_text("utf-8"))
                assert address
                url = address[0].rstrip("/") + step.serves
                assert requests.get(url, verify=False, timeout=60).status_code == 200
            os.killpg(run.pid, signal.SIGINT)
            code = run.wait(60)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
        text = printed.read_text("utf-8")
        assert code == step.code, f"{line}: ends with {code}\n{text}"
        self.told.append(text)

    def _compare(self, page: Page, fence: Fence) -> None:
        """Each line of an output was printed, or its own check holds."""
        for begin, check in page.fences.items():
            if fence.body.startswith(begin):
                check(self, fence.body)
                return
        printed = " ".join(" ".join(self.told).split())
        for shown in fence.body.splitlines():
            wanted = " ".join(re.sub(r"\s+# .*", "", shown).split())
            assert wanted in printed, f"{page}:{fence.number}: {shown}\n{printed}"


def environment(velocity: Path) -> dict[str, str]:
    """For shells: this ``velocity`` and this Python first, and no setting of whoever runs the tests."""
    path = os.pathsep.join([str(velocity), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name not in _SET}
    return {**kept, "PATH": path, "COLUMNS": "200"}


_SET: Final = ("KAFKA", "PROVIDERS", "PATIENTS", "ELASTICSEARCH", "VELOCITY_LOG_FORMAT")


def job(name: str, *, sink: str, letters: str = "{kafka: NAME.dead-letters}") -> str:
    """The ``job.yaml`` that pages speak of: orders of the simulated pharmacies, by city."""
    return _JOB.replace("SINK", sink).replace("LETTERS", letters).replace("NAME", name)


_JOB: Final = """\
job: NAME
source:
  kafka: {bootstrap_servers: "${KAFKA}", topics: [pharmacy.events]}
  event_time: event_time
  disorder: 30s
fields:
  event_id: {type: string, required: true}
  event_type: string
  event_time: timestamp
  provider_id: string
  amount: int64
enrich:
  - name: provider
    get: "${PROVIDERS}/providers?ids={keys}"
    key: provider_id
    id: id
    add: {city: city}
    retries: 0
    on_error: dead_letter
metrics:
  - name: orders_by_city
    where: event_type = 'order.created'
    by: [city]
    window: {fixed: 1m}
    emit: {early: 2s, lateness: 1h}
    values: {orders: count(), total: sum(amount)}
archive: {path: "${ARCHIVE}", raw: true, enriched: true}
sinks: SINK
dead_letters: LETTERS
"""
SQLITE: Final = "{sqlite: {path: documents.db}}"
ELASTICSEARCH: Final = (
    '{elasticsearch: {url: "${ELASTICSEARCH}", index: "NAME-{window_start:%Y.%m}"}}'
)
