"""What a pool's workers count, for Prometheus: added up over all of them, and over those that ended.

A worker's files stay when it ends. They are added to one of all ended workers of the job, so that
counters never fall and files don't pile up; and a job that has had no worker for a while is forgotten.
"""

import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from velocity.runners.stack_ports import HOST

FORGET_AFTER: Final = 600.0
"""Seconds without a worker after which a job's figures are gone: long enough to be scraped."""

_ENDED: Final = "ended"


class WorkersMetrics:
    """A collector of prometheus_client: all that the workers under a folder count."""

    def __init__(
        self,
        root: Path,
        alive: Callable[[], Collection[int]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._alive, self._clock = root, alive, clock
        self._seen: dict[Path, float] = {}
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Any]:
        with self._lock:
            alive = {str(pid) for pid in self._alive()}
            for folder in sorted(self._root.iterdir()):
                self._tidy(folder, alive)
            yield from MultiProcessCollector.merge(map(str, sorted(self._root.glob("*/*.db"))))

    def _tidy(self, folder: Path, alive: Collection[str]) -> None:
        files = [path for path in folder.glob("*.db") if _owner(path) != _ENDED]
        now = self._clock()
        if any(_owner(path) in alive for path in files):
            self._seen[folder] = now
        elif now - self._seen.setdefault(folder, now) >= FORGET_AFTER:
            del self._seen[folder]
            shutil.rmtree(folder)
            return
        for path in files:
            if _owner(path) not in alive:
                _add_to_ended(path)


def _owner(path: Path) -> str:
    """The process that writes a file, such as ``counter_4711.db``."""
    return path.stem.rpartition("_")[2]


def _add_to_ended(path: Path) -> None:
    """Gauges of what has ended say nothing; what it counted was counted all the same."""
    kind = path.name.partition("_")[0]
    if kind != "gauge":
        ended = MmapedDict(str(path.with_name(f"{kind}_{_ENDED}.db")))
        try:
            for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(path)):
                before, _ = ended.read_value(key)
                ended.write_value(key, before + value, timestamp)
        finally:
            ended.close()
    path.unlink()


def serve_metrics(port: int, metrics: WorkersMetrics, host: str = HOST) -> tuple[WSGIServer, int]:
    """Serves ``/metrics``; port 0 takes any. Returns the server and its port."""
    registry = CollectorRegistry()
    registry.register(metrics)
    server, _ = start_http_server(port, host, registry)
    return server, server.server_port
