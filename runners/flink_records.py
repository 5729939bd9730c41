"""What is remembered of submissions: their files, which Flink reads while they run, and the job."""

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

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
    """Holds a folder for each submission."""
    return state_folder() / "flink-jobs"


def place_of(flink: str, name: str) -> Path:
    """The folder of a job, by its cluster and its name there: two clusters may have one of one name."""
    return folder() / f"{name}@{urlsplit(flink).netloc.replace(':', '-')}"


def remember(submission: Submission) -> None:
    place = place_of(submission.flink, submission.name)
    place.mkdir(parents=True, exist_ok=True)
    (place / FILE).write_text(json.dumps(asdict(submission)) + "\n")


def recall(flink: str, name: str) -> Submission | None:
    """The submission to a cluster under a name; None if it was made elsewhere, or is long gone."""
    file = place_of(flink, name) / FILE
    return _read(file) if file.is_file() else None


def forget_ended(flink: Flink) -> None:
    """Deletes the files of those jobs of a cluster that have ended."""
    submissions = {file.parent: _read(file) for file in folder().glob(f"*/{FILE}")}
    if ours := {place: one.name for place, one in submissions.items() if one.flink == flink.url}:
        living = {job.name for job in flink.jobs() if not job.ended}
        for place, name in ours.items():
            if name not in living:
                shutil.rmtree(place)


def _read(file: Path) -> Submission:
    return Submission(**json.loads(file.read_text()))
