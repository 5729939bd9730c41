"""The command ``velocity workers``: what starts Python workers beside a TaskManager, as a module too."""

import json
import logging
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer

from velocity.runners.exit_codes import codes
from velocity.runners.leave import run_and_leave
from velocity.runners.logs import configure, wanted
from velocity.runners.stack_ports import HOST
from velocity.runners.terminal import Json

PORT: Final = 50_000

_REAP_EVERY: Final = 5.0

_log = logging.getLogger("velocity.runners.workers_cli")  # it may run as __main__


def add_workers_command(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(
        epilog="Example: velocity workers --metrics-host 0.0.0.0 --metrics-port 9260. More:"
        f" docs/runners.md. {codes(_0='told to stop (SIGTERM, Ctrl-C)')}"
    )(workers)


def workers(
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where it listens for Flink. Whoever reaches it can have it run code.",
        ),
    ] = HOST,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")] = PORT,
    metrics_host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where it listens for Prometheus.")
    ] = HOST,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Of /metrics, which adds up what its workers count.",
            show_default="no metrics",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start Python workers as a Flink cluster asks for them: one pool beside each TaskManager.

    Workers run this Python and this Velocity, which have to be those that submit jobs. They end with
    their jobs, and all of them when this command is told to stop.
    """
    from velocity.runners.stack_metrics import WorkersMetrics, serve_metrics
    from velocity.runners.stack_workers import WorkerPool, serve

    configure(wanted())
    ended = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: ended.set())
    with ExitStack() as stack:
        folder = url = None
        if metrics_port is not None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="velocity-metrics-")))
        pool = WorkerPool(metrics=folder)
        if folder is not None and metrics_port is not None:
            told = WorkersMetrics(folder, pool.alive)
            metrics, bound = serve_metrics(metrics_port, told, metrics_host)
            stack.callback(metrics.shutdown)
            url = f"http://{metrics_host}:{bound}/metrics"
            _log.info("metrics for Prometheus on %s", url)
        server, bound = serve(port, pool, host)
        _log.info("workers for Python %s on %s:%d", sys.version.split()[0], host, bound)
        if as_json:
            print(json.dumps({"workers": f"{host}:{bound}", "metrics": url}), flush=True)
        while not ended.wait(_REAP_EVERY):
            pool.reap()
        pool.close()
        server.stop(1.0)


if __name__ == "__main__":
    run_and_leave(lambda: typer.run(workers))
