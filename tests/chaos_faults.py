"""The faults of the chaos suite: what each does to the world, and in which rounds it does so."""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

from tests.chaos_proxy import Fault, Proxy
from tests.cluster import Cluster, until
from velocity.runners.flink_errors import FlinkError
from velocity.runners.stack_process import ProcessId, identify, living_processes, send
from velocity.runners.stack_state import read_state

PATIENCE = 300.0
"""Seconds in which the job must be well again after a fault, on a busy machine."""

SERVERS = {
    "taskmanager-1": "flink",
    "jobmanager": "flink",
    "zookeeper": "flink",
    "workers": "flink",
    "kafka": "kafka",
    "elasticsearch": "elasticsearch",
}
"""By server, the component that starts it."""

WORKER = "python worker"


class World:
    """A job on real servers, with a proxy before Elasticsearch and one before its REST service."""

    def __init__(self, cluster: Cluster, job: Path, proxies: dict[str, Proxy]) -> None:
        self.cluster = cluster
        self.proxies = proxies
        self.path = job
        self.job = ""
        """Its id on Flink."""
        self._up = Lock()

    def start(self, *options: str) -> None:
        told = ("--runner", "flink", "--detach", "--name", "chaos", "--checkpoint-interval", "5s")
        self.job = self.cluster("run", self.path, *told, *options).strip()

    def stop(self) -> str:
        """With a savepoint, whose path is returned."""
        return str(json.loads(self.cluster("stop", self.job, "--json"))["savepoint"])

    def up(self, component: str) -> None:
        with self._up:  # a command waits for another, but not for ever
            self.cluster("stack", "up", component)

    def process(self, name: str, rng: random.Random) -> ProcessId:
        """The living process of a server, or a Python worker; waits for one to be there."""
        found: list[ProcessId] = []

        def look() -> bool:
            if name == WORKER:
                found[:] = filter(None, map(identify, self.cluster.workers()))
            else:
                servers = read_state(self.cluster.folder).components[SERVERS[name]].servers
                recorded = [server.process for server in servers if server.name == name]
                found[:] = [id_ for id_ in recorded if identify(id_.pid) == id_]
            return bool(found)

        until(look, PATIENCE)
        return rng.choice(found)

    def ended(self, name: str) -> bool:
        servers = read_state(self.cluster.folder).components[SERVERS[name]].servers
        return any(identify(s.process.pid) != s.process for s in servers if s.name == name)

    def well_since(self, moment: datetime) -> datetime:
        """When the first checkpoint was complete that began after a moment; waits for it.

        A JobManager that was cut from ZooKeeper for long ends itself; whoever supervises it in
        production starts it again, and so does this.
        """
        ends: list[datetime] = []

        def look() -> bool:
            with suppress(FlinkError):  # there is no JobManager, or it does not know the job yet
                last = self.cluster.flink.checkpoints(self.job)
                if last.last_at is not None and last.last_at > moment:
                    ends.append(last.last_at + last.last_duration)
            if not ends and self.ended("jobmanager"):
                self.up(SERVERS["jobmanager"])
            return bool(ends)

        until(look, PATIENCE)
        return ends[0]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    ``strike`` does it to its end (what was killed has been started again, what was paused goes
    on), and returns the moment from which the way back is measured.
    """

    name: str
    target: str
    """Two kinds of one target are not done at once."""
    strike: Callable[[World, random.Random], datetime]
    alone: bool = False


@dataclass(frozen=True)
class Struck:
    """A fault that was done."""

    kind: str
    recovery: timedelta


def struck(kind: Kind, delay: float, world: World, rng: random.Random) -> Struck:
    """Does a fault after a delay, and waits until the job is well."""
    time.sleep(delay)
    since = kind.strike(world, rng)
    over = datetime.now(UTC)
    return Struck(kind.name, world.well_since(over) - since)


def _kill(server: str) -> Kind:
    def strike(world: World, rng: random.Random) -> datetime:
        process = world.process(server, rng)
        at = datetime.now(UTC)
        send(process, signal.SIGKILL, living_processes)
        if server != WORKER:  # Flink itself starts another one
            time.sleep(rng.uniform(0, 5))
            until(lambda: identify(process.pid) != process, PATIENCE)  # or it seems to be up
            world.up(SERVERS[server])
        return at

    return Kind(f"SIGKILL of {server}", server, strike)


def _pause(server: str) -> Kind:
    def strike(world: World, rng: random.Random) -> datetime:
        process = world.process(server, rng)
        send(process, signal.SIGSTOP, living_processes)
        try:
            time.sleep(rng.uniform(3, 30))
        finally:
            send(process, signal.SIGCONT, living_processes)
        return datetime.now(UTC)

    return Kind(f"SIGSTOP of {server}", server, strike)


def _misbehave(which: str, fault: Fault) -> Kind:
    def strike(world: World, rng: random.Random) -> datetime:
        proxy = world.proxies[which]
        before = proxy.struck[fault]
        proxy.misbehave(fault, rng.choice([0.3, 0.7, 1.0]))
        try:
            time.sleep(rng.uniform(3, 15))
            until(lambda: proxy.struck[fault] > before, PATIENCE)
        finally:
            proxy.calm()
        return datetime.now(UTC)

    return Kind(f"{which}: {fault}", f"{which} by proxy", strike)


def _savepoint() -> Kind:
    def strike(world: World, rng: random.Random) -> datetime:
        at = datetime.now(UTC)
        savepoint = world.stop()
        time.sleep(rng.uniform(0, 5))
        # One subtask would not fit: Flink's ids of operators depend on what can be chained.
        world.start("--from-savepoint", savepoint, "--parallelism", str(rng.randint(2, 3)))
        return at

    # Flink takes no savepoint of a job that is just failing.
    return Kind("stop with savepoint, resume", "job", strike, alone=True)


KINDS: tuple[Kind, ...] = (
    *(_kill(server) for server in (WORKER, *SERVERS)),
    *(_pause(server) for server in (WORKER, *SERVERS)),
    *(_misbehave("elasticsearch", fault) for fault in Fault),
    *(_misbehave("rest", fault) for fault in Fault if fault is not Fault.TOO_MANY_ITEMS),
    _savepoint(),
)


def deal(rng: random.Random) -> Iterator[list[Kind]]:
    """The faults of each round, one to three at once, without end: all kinds come equally often.

    >>> rounds = deal(random.Random(1))
    >>> dealt = [kind for _ in range(60) for kind in next(rounds)]
    >>> counts = [sum(kind is other for other in dealt) for kind in KINDS]
    >>> max(counts) - min(counts) <= 2
    True
    """
    deck: list[Kind] = []
    while True:
        wanted = rng.choice([1, 2, 3, 3])
        hand: list[Kind] = []
        while len(hand) < wanted:
            if not deck:
                deck = rng.sample(KINDS, len(KINDS))
            fits = [k for k in deck if not any(k.alone or k.target == h.target for h in hand)]
            if not fits or (hand and hand[0].alone):
                break
            hand.append(fits[0])
            deck.remove(fits[0])
        yield hand


def plain(struck: Struck) -> dict[str, Any]:
    return {"kind": struck.kind, "recovery": struck.recovery.total_seconds()}
