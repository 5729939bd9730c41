"""Processes are known by pid, start and mark, and end by pid; real ones here, short-lived."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from velocity.runners.stack_errors import ServerFailed
from velocity.runners.stack_process import (
    MARK,
    Mark,
    Process,
    ProcessId,
    belongs,
    find,
    identify,
    launch,
    living_processes,
    marked,
    parse_ps,
    read_proc,
    send,
    terminate,
)

LEADER = ProcessId(100, "boot+1")


def process(pid: int, started: str, *, group: int, mark: str = "") -> Process:
    return Process(ProcessId(pid, started), group, rss=0, mark=mark)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    children: list[subprocess.Popen[bytes]] = []

    def begin(script: str) -> "subprocess.Popen[bytes]":
        children.append(
            launch(
                [sys.executable, "-c", f"{script}\nprint('ready', flush=True)\n{WAIT}"],
                mark=Mark(str(tmp_path), "run", "server"),
                log=tmp_path / "log" / "server.log",
                cwd=tmp_path,
                environ=os.environ,
            )
        )
        until(lambda: "ready" in (tmp_path / "log" / "server.log").read_text())
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.wait()


WAIT = "import signal\nwhile True: signal.pause()"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def mine(folder: Path) -> Callable[[], list[Process]]:
    return lambda: find([], lambda mark: mark.stack == str(folder))


def test_a_pid_given_to_another_process_is_not_taken_for_ours() -> None:
    other = process(100, "boot+9", group=100)
    assert find([LEADER], lambda mark: False, lambda: [other]) == []


def test_a_session_is_ours_with_its_leader() -> None:
    leader, child = process(100, "boot+1", group=100), process(101, "boot+2", group=100)
    assert find([LEADER], lambda mark: False, lambda: [leader, child]) == [leader, child]


def test_a_group_whose_leaders_pid_is_anothers_is_not_ours() -> None:
    child = process(101, "boot+9", group=100)
    assert not belongs(child, LEADER, {100: ProcessId(100, "boot+8")})


def test_orphans_are_found_by_their_mark() -> None:
    orphan = process(101, "boot+2", group=100, mark="/state|run-1|workers")
    assert find([], lambda mark: mark.server == "workers", lambda: [orphan]) == [orphan]


def test_marks_keep_a_folder_with_a_bar_in_its_name() -> None:
    mark = Mark("/a|b", "run", "kafka")
    assert Mark.parse(str(mark)) == mark
    assert Mark.parse("") is None


def test_ps_is_read_without_zombies() -> None:
    listed = (
        "    1     1  1024 Ss   Mon Nov 23 03:16:05 2026\n"
        "  812   812     0 Z    Mon Nov 23 03:17:05 2026\n"
        " 1812   812  2048 S+   Mon Nov  3 03:18:05 2026\n"
    )
    found = parse_ps(listed)
    assert [(p.id.pid, p.group, p.rss) for p in found] == [
        (1, 1, 1024 * 1024),
        (1812, 812, 2048 * 1024),
    ]


def test_proc_is_read_past_names_with_brackets_and_without_zombies(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("boot\n")
    numbers = " ".join(["0"] * 16)
    for pid, state in ((7, "S"), (8, "Z")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) b) {state} 1 7 {numbers} 42 0 3 0\n")
        (tmp_path / str(pid) / "environ").write_bytes(b"A=1\0" + f"{MARK}=/s|r|n".encode() + b"\0")
    (found,) = read_proc(tmp_path)
    assert found == Process(ProcessId(7, "boot+42"), 7, 3 * os.sysconf("SC_PAGE_SIZE"), "/s|r|n")


def test_this_process_is_alive_and_the_same_each_time() -> None:
    first, second = identify(os.getpid()), identify(os.getpid())
    assert first is not None
    assert first == second


def test_a_launched_process_leads_its_own_session_and_bears_its_mark(
    start: Callable[[str], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    child = start("")
    (found,) = mine(tmp_path)()
    assert found.id.pid == found.group == child.pid
    assert os.getsid(child.pid) == child.pid
    assert found.rss > 0


def test_the_last_log_is_kept(
    start: Callable[[str], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    start("print('first')")
    start("print('second')")
    assert "first" in (tmp_path / "log" / "server.log.1").read_text()
    assert "first" not in (tmp_path / "log" / "server.log").read_text()


def test_sigterm_is_enough_for_a_process_that_obeys(
    start: Callable[[str], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    child = start("")
    assert terminate(mine(tmp_path)) == 1
    assert child.wait() == -signal.SIGTERM


def test_a_process_that_ignores_sigterm_is_killed(
    start: Callable[[str], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    child = start("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert terminate(mine(tmp_path), patience=0.2) == 1
    assert child.wait() == -signal.SIGKILL


def test_children_of_a_killed_server_are_found_and_ended(
    start: Callable[[str], "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    child = start(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])"
    )
    until(lambda: len(mine(tmp_path)()) == 2)
    child.kill()
    child.wait()
    assert len(mine(tmp_path)()) == 1
    assert terminate(mine(tmp_path)) == 1
    assert mine(tmp_path)() == []


def test_a_reused_pid_is_never_signalled(
    start: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    child = start("")
    send(ProcessId(child.pid, "another time"), signal.SIGKILL, living_processes)
    found = identify(child.pid)
    assert found is not None
    send(found, signal.SIGKILL, living_processes)
    assert child.wait() == -signal.SIGKILL


def test_what_outlives_sigkill_is_reported() -> None:
    hours = iter(range(0, 1000, 5))
    undying = process(2**22 + 1, "never", group=1)  # above any pid of Linux
    with pytest.raises(ServerFailed, match=f"Processes {2**22 + 1} do not end"):
        terminate(lambda: [undying], clock=lambda: float(next(hours)), sleep=lambda seconds: None)


def test_a_mark_on_this_process_lasts_for_the_block_only() -> None:
    with marked(Mark("/s", "r", "up")):
        assert os.environ[MARK] == "/s|r|up"
    assert MARK not in os.environ
