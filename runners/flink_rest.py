"""A client of Flink's REST interface: jobs, how they are, and how they are stopped.

Source: https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

import urllib3

from velocity.runners.flink_errors import (
    FlinkRefused,
    FlinkUnreachable,
    SavepointFailed,
    UnknownJob,
    root_cause,
)

ENDED: Final = frozenset({"FINISHED", "FAILED", "CANCELED", "SUSPENDED"})
"""The states that a job does not leave."""

NO_WATERMARK: Final = (-(2**63), 2**63 - 1)
"""What Flink says before the first watermark, and after the last: a source that has ended."""

DISTRIBUTIONS: Final = ("rest_call_ms", "rest_call_keys")
"""Metrics that Flink has as text: asked to add them up, it writes a stack trace into its log."""

_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class FlinkJob:
    """A job as the cluster lists it."""

    id: str
    name: str
    state: str
    """``RUNNING``, ``RESTARTING``, ``FINISHED`` and others of Flink's ``JobStatus``."""
    started: datetime
    duration: timedelta
    tasks: Mapping[str, int]
    """How many subtasks are in which state, in lower case; ``total`` of them."""

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def running(self) -> bool:
        """Whether each of its tasks runs, or has ended as it should."""
        working = self.tasks.get("running", 0) + self.tasks.get("finished", 0)
        return self.state == "RUNNING" and 0 < self.tasks["total"] == working


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What became of a job's checkpoints since it was submitted."""

    completed: int
    failed: int
    last_at: datetime | None = None
    """When the last completed one was begun; None before the first."""
    last_size: int = 0
    """Bytes of the last completed one."""
    last_duration: timedelta = timedelta()
    last_path: str | None = None
    """Where the last completed one is; None if nothing outside of Flink can name it."""
    restored_from: str | None = None
    """The path of the savepoint or checkpoint that the job last came back from."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed, or was restarted."""

    at: datetime
    cause: str
    """The innermost cause in a few lines."""


class Flink:
    """A cluster, by the address of its REST interface: ``HOST:PORT`` or a URL.

    Every call raises ``FlinkUnreachable`` if nothing answers there, ``UnknownJob`` for a job that
    the cluster does not know, and ``FlinkRefused`` for what else it does not do.
    """

    def __init__(self, address: str, *, timeout: float = 15.0) -> None:
        address = address.rstrip("/")
        self.url = address if "://" in address else f"http://{address}"
        self._http = urllib3.PoolManager(timeout=timeout, retries=False)

    def version(self) -> str:
        """Of the cluster, such as ``1.19.3``."""
        return str(self._call("GET", "/overview")["flink-version"])

    def slots(self) -> tuple[int, int]:
        """How many slots are free, and how many there are."""
        found = self._call("GET", "/overview")
        return found["slots-available"], found["slots-total"]

    def jobs(self) -> list[FlinkJob]:
        """All jobs that the cluster remembers, the latest first."""
        listed = self._call("GET", "/jobs/overview")["jobs"]
        jobs = [
            FlinkJob(
                job["jid"],
                job["name"],
                job["state"],
                _time(job["start-time"]),
                timedelta(milliseconds=job["duration"]),
                job["tasks"],
            )
            for job in listed
        ]
        return sorted(jobs, key=lambda job: job.started, reverse=True)

    def find(self, wanted: str) -> FlinkJob:
        """The job of this id, or the one of this name that has not ended."""
        jobs = self.jobs()
        found = [job for job in jobs if job.id == wanted]
        found = found or [job for job in jobs if job.name == wanted and not job.ended]
        if len(found) > 1:
            ids = ", ".join(job.id for job in found)
            raise UnknownJob(f"{len(found)} jobs are named {wanted}: give one's id, of {ids}")
        if found:
            return found[0]
        ended = [job for job in jobs if job.name == wanted]
        if ended:
            raise UnknownJob(
                f"job {wanted} has ended: {ended[0].state}; give its id, {ended[0].id}"
            )
        running = ", ".join(job.name for job in jobs if not job.ended) or "none"
        raise UnknownJob(f"no job {wanted!r} on {self.url}; running: {running}")

    def vertices(self, job: str) -> list[str]:
        """The ids of a job's vertices, sources first."""
        return [vertex["id"] for vertex in self._call("GET", f"/jobs/{job}")["vertices"]]

    def watermark(self, job: str, vertices: list[str]) -> datetime | None:
        """The smallest watermark that any subtask has come to; None before the first.

        What has ended (such as the impulse that starts a source) holds nothing back.
        """
        least: int | None = None
        for vertex in vertices:
            for subtask in self._call("GET", f"/jobs/{job}/vertices/{vertex}/watermarks"):
                value = int(subtask["value"])
                if value == NO_WATERMARK[0]:
                    return None
                if value != NO_WATERMARK[1]:
                    least = value if least is None else min(least, value)
        return None if least is None else _time(least)

    def counters(self, job: str, vertices: list[str], namespace: str) -> dict[str, int]:
        """Beam's counters of a namespace by name, summed over a job's tasks.

        They begin at 0 again when the job's tasks are restarted.
        """
        sums: dict[str, int] = {}
        marker = f".{namespace}_"
        for vertex in vertices:
            base = f"/jobs/{job}/vertices/{vertex}/subtasks/metrics"
            found = (m["id"] for m in self._call("GET", base) if marker in m["id"])
            ids = [id_ for id_ in found if id_.rpartition(marker)[2] not in DISTRIBUTIONS]
            for some in _portions(ids):
                wanted = quote(",".join(some), safe=",")
                for metric in self._call("GET", f"{base}?get={wanted}&agg=sum"):
                    name = metric["id"].rpartition(marker)[2]
                    sums[name] = sums.get(name, 0) + int(metric["sum"])
        return sums

    def restarts(self, job: str) -> int:
        """How often the job has been restarted since it was submitted."""
        found = self._call("GET", f"/jobs/{job}/metrics?get=numRestarts")
        return int(found[0]["value"]) if found else 0

    def checkpoints(self, job: str) -> Checkpoints:
        found = self._call("GET", f"/jobs/{job}/checkpoints")
        counts, latest = found["counts"], found["latest"] or {}
        restored = latest.get("restored")
        path = restored["external_path"] if restored else None
        last = latest.get("completed")
        if not last:
            return Checkpoints(counts["completed"], counts["failed"], restored_from=path)
        return Checkpoints(
            counts["completed"],
            counts["failed"],
            _time(last["trigger_timestamp"]),
            last["state_size"],
            timedelta(milliseconds=last["end_to_end_duration"]),
            None if last["external_path"].startswith("<") else last["external_path"],
            path,
        )

    def kept_checkpoint(
        self,
        job: str,
        *,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> str | None:
        """The path of the checkpoint that is kept of a job that was cancelled or failed; of one that had
        made none, of what it had come from.

        None if Flink keeps none: the job was submitted without the wish to keep it, began anew and
        made none, or ended as it should. Waits until a job that is being cancelled has ended, as others may
        follow until then; raises ``FlinkRefused`` if it has not after ``patience`` seconds.
        """
        try:
            kept = self._call("GET", f"/jobs/{job}/checkpoints/config")["externalization"]
        except FlinkRefused:  # a batch has no checkpoints
            return None
        deadline = clock() + patience
        while (state := self._call("GET", f"/jobs/{job}")["state"]) not in ENDED:
            if clock() >= deadline:
                raise FlinkRefused(
                    f"job {job} is to end, and has not after {patience:.0f} s; Flink is still at it:"
                    f" see velocity jobs. When it has, `velocity stop {job}` tells its checkpoint"
                )
            sleep(0.2)
        if not kept["enabled"] or state == "FINISHED":
            return None
        if state == "CANCELED" and kept["delete_on_cancellation"]:
            return None
        # Flink answers from what it last gathered, so long ago at the most.
        sleep(self._call("GET", "/config")["refresh-interval"] / 1000)
        found = self.checkpoints(job)
        return found.last_path if found.completed else found.restored_from

    def failures(self, job: str) -> list[Failure]:
        """Why the job failed or was restarted, the latest first; Flink remembers a few."""
        found = self._call("GET", f"/jobs/{job}/exceptions")
        return [
            Failure(_time(entry["timestamp"]), root_cause(entry["stacktrace"]))
            for entry in found["exceptionHistory"]["entries"]
        ]

    def cancel(self, job: str) -> None:
        """Ends a job where it stands; returns when Flink has taken the order."""
        self._call("PATCH", f"/jobs/{job}?mode=cancel")

    def stop(
        self,
        job: str,
        *,
        directory: str | None = None,
        drain: bool = False,
        patience: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> str:
        """Stops a job with a savepoint, and returns the savepoint's path when it has stopped.

        To ``drain`` is to end its sources, and close all of its windows, before that.
        ``directory`` is a path or URL that the cluster's machines can write to; None is the one
        that the cluster is configured with. Raises ``SavepointFailed`` if it could not be written
        (the job goes on), or is not after ``patience`` seconds.
        """
        order = {"drain": drain, **({"targetDirectory": directory} if directory else {})}
        request = self._call("POST", f"/jobs/{job}/stop", order)["request-id"]
        deadline = clock() + patience
        while True:
            answer = self._call("GET", f"/jobs/{job}/savepoints/{request}")
            if answer["status"]["id"] == "COMPLETED":
                break
            if clock() >= deadline:
                raise SavepointFailed(
                    f"no savepoint of job {job} after {patience:.0f} s; Flink is still at it:"
                    " see velocity jobs, and its log"
                )
            sleep(0.2)
        operation = answer["operation"]
        if "location" in operation:
            return str(operation["location"])
        cause = root_cause(operation["failure-cause"]["stack-trace"])
        raise SavepointFailed(
            f"no savepoint of job {job} was made, and it goes on: {cause}. Mend that and stop it again,"
            " or give another folder with --to; docs/operations.md says how to go on from its last"
            " checkpoint"
        )

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            answer = self._http.request(method, self.url + path, json=body)
        except urllib3.exceptions.HTTPError as error:
            raise FlinkUnreachable(
                f"no Flink answers at {self.url} ({type(error).__name__}): start one with"
                " `velocity stack up`, or give its address with --flink-master HOST:PORT"
            ) from None
        try:
            content = json.loads(answer.data or b"{}")
        except ValueError:
            raise FlinkUnreachable(
                f"what answers at {self.url} is no Flink: HTTP {answer.status}, no JSON; give the"
                " address of Flink's REST interface with --flink-master"
            ) from None
        if answer.status < 400:
            return content
        cause = root_cause("\n".join(content.get("errors", [])))
        job = _ID.search(path)
        if answer.status == 404 and job and "Could not find Flink job" in cause:
            raise UnknownJob(
                f"no job {job[0]} on {self.url}; it forgets jobs an hour after they end"
            )
        raise FlinkRefused(f"Flink at {self.url} answers {answer.status}: {cause}")


def _portions(ids: list[str], most: int = 40) -> Iterator[list[str]]:
    """So few at a time that a URL stays shorter than the 4,096 bytes that Flink reads."""
    some: list[str] = []
    for id_ in ids:
        if (some and len(quote(",".join([*some, id_]))) > 3000) or len(some) == most:
            yield some
            some = []
        some.append(id_)
    if some:
        yield some


def _time(millis: int) -> datetime:
    return datetime.fromtimestamp(millis / 1000, UTC)
