"""``velocity`` for shells of tests: what it imports, which takes seconds, is imported once for all.

A server has it imported and forks for each command. The ``velocity`` of the shell hands its arguments,
folder, environment and files over, passes Ctrl-C on, and ends with the command's exit code: each command is a
process of its own as ever, and shells see no difference but in the time it takes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parent.parent

_COMMAND = """\
#!{python} -IS
import json, os, signal, socket, sys
said = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    server.connect({path!r})
    socket.send_fds(server, [b"-"], [0, 1, 2])
    server.sendall(said)
    server.shutdown(socket.SHUT_WR)
    answers = server.makefile()
    process = int(answers.readline())
    signal.signal(signal.SIGINT, lambda *_: os.kill(process, signal.SIGINT))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    status = int(answers.readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""

_PRELOADED = (
    "velocity.pipelines.graph",
    "velocity.pipelines.replay",
    "velocity.runners.board",
    "velocity.runners.cli",
    "velocity.runners.flink_submit",
    "velocity.runners.replay_run",
    "velocity.runners.run",
    "velocity.runners.whole",
)


@contextmanager
def warm_velocity(folder: Path) -> Iterator[Path]:
    """A folder for the search path of shells, whose ``velocity`` is there until the end."""
    folder.mkdir()
    path = folder / "socket"
    command = folder / "velocity"
    command.write_text(_COMMAND.format(python=sys.executable, path=str(path)), "utf-8")
    command.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_velocity", str(path)],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    with server.stdout:
        try:
            assert server.stdout.readline() == b"ready\n"
            yield folder
        finally:
            # Its group: the commands too, if any still runs.
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _serve(path: str) -> None:
    """Returns in a process for each command, with all that is the command's in place."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                break
            client.close()
            _reap()
    _keep(client)


def _reap() -> None:
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                return
        except ChildProcessError:
            return


def _keep(client: socket.socket) -> None:
    """Returns in the command's process; its parent tells the shell's how it ends."""
    _, files, _, _ = socket.recv_fds(client, 1, 3)
    with client, client.makefile("rb") as said:
        arguments, folder, environ = json.load(said)
        process = os.fork()
        if process:
            client.sendall(f"{process}\n".encode())
            for file in files:
                os.close(file)
            _, status = os.waitpid(process, 0)
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["velocity", *arguments]
    sys.path.remove(str(_ROOT))  # of the server, by PYTHONPATH


def _main() -> None:
    for name in _PRELOADED:
        __import__(name)
    _serve(sys.argv[1])
    from velocity.runners.cli import main

    main()


if __name__ == "__main__":
    _main()
