"""The commands of ``velocity stack``."""

import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from velocity.runners.exit_codes import codes
from velocity.runners.stack import Interrupted, Stack
from velocity.runners.stack_components import NAMES, PORTS, Machine, Settings
from velocity.runners.stack_errors import StackError
from velocity.runners.stack_java import installed_jdks
from velocity.runners.stack_paths import cache_folder, state_folder
from velocity.runners.stack_status import ComponentStatus
from velocity.runners.terminal import Json, duration

PORT_NAMES: Final = tuple(port for ports in PORTS.values() for port in ports)

EXIT_CODES: Final = codes(3, 4, 5, 6, 7, 130, _0="all healthy", _1="not healthy, or another error")

stack_app = typer.Typer(
    name="stack",
    help="Real Kafka, Elasticsearch and Flink on this machine, without Docker.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
)

Components = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[kafka|elasticsearch|flink]...", help="Which components.", show_default="all"
    ),
]


@stack_app.command(
    epilog="Examples: velocity stack up · velocity stack up kafka --port kafka=19092 ·"
    f" velocity stack up flink --slots 8 --state-backend rocksdb. {EXIT_CODES}"
)
def up(
    components: Components = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete their data first.")] = False,
    port: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PORT",
            help=f"Port to listen on, of {', '.join(PORT_NAMES)}."
            " Else the usual one, or any free one where that is taken.",
        ),
    ] = None,
    task_managers: Annotated[
        int | None, typer.Option(min=1, help="Flink TaskManagers.", show_default="1")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Slots of each TaskManager.", show_default="4")
    ] = None,
    state_backend: Annotated[
        str | None, typer.Option(help="hashmap or rocksdb.", show_default="hashmap")
    ] = None,
    ha: Annotated[
        bool | None,
        typer.Option(
            "--ha/--no-ha",
            help="Whether Flink's jobs outlive their JobManager, by ZooKeeper.",
            show_default="no-ha",
        ),
    ] = None,
    prometheus: Annotated[
        bool | None,
        typer.Option(
            "--prometheus/--no-prometheus",
            help="Whether Flink tells its figures to Prometheus; its reporter listens on all of this"
            " machine's interfaces. Workers' figures are always there, on 127.0.0.1.",
            show_default="no-prometheus",
        ),
    ] = None,
    elasticsearch: Annotated[
        int | None,
        typer.Option(help="9 (JDK 21 or later) or 8 (JDK 17).", show_default="9 if a JDK allows"),
    ] = None,
    wait: Annotated[float, typer.Option(min=1, help="Seconds to wait for health.")] = 180.0,
    as_json: Json = False,
) -> None:
    """Start servers, and return when all are healthy. The first start downloads them.

    What runs already is kept as it is; a server of it that has ended is started again.
    """
    console = Console(stderr=True, highlight=False)
    began = time.monotonic()

    def report(name: str, message: str) -> None:
        console.print(
            f"{time.monotonic() - began:6.1f} s  {name:14} {message}", markup=False, soft_wrap=True
        )

    with _plain_errors(as_json):
        machine = Machine(jdks=installed_jdks(), cache=cache_folder())
        wishes: dict[str, Any] = {
            "task_managers": task_managers,
            "slots": slots,
            "state_backend": state_backend,
            "ha": ha,
            "prometheus": prometheus,
            "elasticsearch": elasticsearch,
        }
        asked = {name: wish for name, wish in wishes.items() if wish is not None}
        stack = Stack(state_folder())
        stack.up(
            machine,
            components or NAMES,
            settings=Settings(**asked),
            asked=asked,
            ports=_ports(port or []),
            fresh=fresh,
            wait=wait,
            report=report,
        )
        _show(stack.status(), as_json)


@stack_app.command(epilog=f"Example: velocity stack status --json. {EXIT_CODES}")
def status(as_json: Json = False) -> None:
    """Show what runs, where, with how much memory, and whether it is healthy."""
    with _plain_errors(as_json):
        found = Stack(state_folder()).status()
        _show(found, as_json)
        if not found and not as_json:
            print("Nothing is up. Start it: velocity stack up")
    if not found or not all(component.healthy for component in found):
        raise typer.Exit(1)


@stack_app.command(
    epilog="Examples: velocity stack logs kafka · velocity stack logs taskmanager-1 --follow."
    f" {EXIT_CODES}"
)
def logs(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Components or servers.", metavar="[NAME]...", show_default="all"),
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Print the end of the servers' logs."""
    with _plain_errors(as_json):
        stack = Stack(state_folder())
        found = stack.logs(names or [], lines)
        if not found:
            raise StackError("There is no such log. What runs: velocity stack status")
        if as_json:
            print(json.dumps(found))
            return
        for name, text in found.items():
            print(f"==> {name} <==\n{text}\n", flush=True)
        if follow:
            files = [s.log for c in stack.status() for s in c.servers if s.name in found]
            _follow(files)


@stack_app.command(
    epilog=f"Examples: velocity stack down · velocity stack down flink. {EXIT_CODES}"
)
def down(components: Components = None, as_json: Json = False) -> None:
    """Stop servers, and whatever a crashed command left. Data is kept for the next start."""
    console = Console(stderr=True, highlight=False)
    with _plain_errors(as_json):
        ended = Stack(state_folder()).down(
            components or NAMES,
            report=lambda name, message: console.print(
                f"{name:14} {message}", markup=False, soft_wrap=True
            ),
        )
        if as_json:
            print(json.dumps({"ended": ended}))
        else:
            print(f"{ended} process{'' if ended == 1 else 'es'} ended.")


@stack_app.command(
    epilog="Examples: velocity stack demo · velocity stack demo --events 5000 --job transactions."
    f" {EXIT_CODES}"
)
def demo(
    events: Annotated[int, typer.Option(min=1, help="Simulated events.")] = 20_000,
    rate: Annotated[float, typer.Option(min=1, help="Events pushed per second.")] = 100.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.")] = 1,
    job: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Which to run of the jobs that count.", show_default="all"
        ),
    ] = None,
    idle_after: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="After how long without events the last windows close.",
            show_default="the jobs' own, 1m",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the whole system on the stack, live, and check each document by recomputation.

    Brings up what is not up. SNS envelopes are pushed over HTTP, one job on Flink enriches, the others
    count into Elasticsearch. Ctrl-C cancels the jobs; the stack stays up.
    """
    console = Console(stderr=True, highlight=False)

    def report(name: str, message: str) -> None:
        console.print(f"{name:14} {message}", markup=False, soft_wrap=True)

    idle = None if idle_after is None else duration(idle_after, "--idle-after")
    with _plain_errors(as_json):
        stack = Stack(state_folder())
        machine = Machine(jdks=installed_jdks(), cache=cache_folder())
        state = stack.up(machine, NAMES, settings=Settings(slots=8), report=report)

        from velocity.runners.stack_demo import StackDemo

        made = StackDemo(
            state, events=events, rate=rate, seed=seed, only=job or (), idle_after=idle,
            console=console,
        )  # fmt: skip
        code = made.run()
        if as_json:
            print(json.dumps({"exact": code == 0, "events": events}))
        raise typer.Exit(code)


def _ports(given: Sequence[str]) -> dict[str, int]:
    ports = {}
    for option in given:
        name, _, number = option.partition("=")
        if name not in PORT_NAMES or not number.isdecimal() or not 0 < int(number) < 65536:
            raise typer.BadParameter(
                f"{option!r} is not NAME=PORT with a name of {', '.join(PORT_NAMES)}",
                param_hint="--port",
            )
        ports[name] = int(number)
    return ports


def _show(found: Sequence[ComponentStatus], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"components": [_plain(component) for component in found]}))
        return
    if not found:
        return
    table = Table(box=None, pad_edge=False)
    for title in ("component", "version", "server", "pid", "memory", "health"):
        table.add_column(title, justify="right" if title in ("pid", "memory") else "left")
    for component in found:
        for server in component.servers:
            table.add_row(
                component.name,
                component.version,
                server.name,
                str(server.pid or "ended"),
                f"{server.rss / 2**20:.0f} MB",
                "healthy" if server.healthy else "not healthy",
            )
    Console(highlight=False).print(table)
    print()
    for component in found:
        for name, address in component.addresses.items():
            print(f"{name:14} {address}")


def _plain(component: ComponentStatus) -> dict[str, Any]:
    servers = [{**asdict(server), "log": str(server.log)} for server in component.servers]
    return {**asdict(component), "servers": servers, "healthy": component.healthy}


def _follow(files: Sequence[Path]) -> None:
    ends = {file: file.stat().st_size for file in files}
    while True:
        for file, end in ends.items():
            with file.open("rb") as content:
                if file.stat().st_size < end:  # the server was started again
                    end = 0
                content.seek(end)
                new = content.read()
            ends[file] = end + len(new)
            sys.stdout.write(new.decode(errors="replace"))
        sys.stdout.flush()
        time.sleep(0.5)


@contextmanager
def _plain_errors(as_json: bool) -> Iterator[None]:
    """Errors as one message and an exit code, without a traceback."""
    try:
        yield
    except StackError as error:
        if as_json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        else:
            print(f"velocity stack: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print("velocity stack: interrupted", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    except Interrupted as signalled:
        raise typer.Exit(128 + signalled.signum) from None


if __name__ == "__main__":
    stack_app()
