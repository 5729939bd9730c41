"""What is remembered of submissions: their files, which Flink reads while they run, and the job."""

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from velocity.runners.flink_rest import Flink
from velocity.runners.stack_paths import state_folder

FILE: Final = "submission.json"


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that was submitted to a cluster from here."""

    name: str
    flink: str
    """The URL of the cluster's REST interface."""
    command: Sequence[str]
    """The command that submitted it, as far as it holds for a next time; without Beam's options."""
    own: Sequence[str]
    """The user's options for Beam."""

    def resuming(self, savepoint: str) -> str:
        """The command that goes on from a savepoint, as a line for a shell.

        >>> Submission("n", "http://f", ["velocity", "run", "a job.yaml"], ["-x"]).resuming("/s")
        "velocity run 'a job.yaml' --from-savepoint /s -- -x"
        """
        own = ["--", *self.own] if self.own else []
        return shlex.join([*self.command, "--from-savepoint", savepoint, *own])


def folder() -> Path:
    """Holds a folder for each submission, by its name in Flink."""
    return state_folder() / "flink-jobs"


def remember(submission: Submission) -> None:
    place = folder() / submission.name
    place.mkdir(parents=True, exist_ok=True)
    (place / FILE).write_text(json.dumps(asdict(submission)) + "\n")


def recall(name: str) -> Submission | None:
    """The submission of this name; None if it was made elsewhere, or is long gone."""
    return next((s for s in _submissions() if s.name == name), None)


def forget_ended(flink: Flink) -> Path:
    """Deletes the files of those jobs of a cluster that have ended, and returns ``folder()``."""
    ours = [submission for submission in _submissions() if submission.flink == flink.url]
    if ours:
        living = {job.name for job in flink.jobs() if not job.ended}
        for submission in ours:
            if submission.name not in living:
                shutil.rmtree(folder() / submission.name)
    return folder()


def _submissions() -> Iterator[Submission]:
    for file in sorted(folder().glob(f"*/{FILE}")):
        yield Submission(**json.loads(file.read_text()))
