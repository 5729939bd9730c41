"""Laws of how a process ends: as an interpreter would, and in any case."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.embedded

BEGIN = """
import atexit, sys, threading, time
from velocity.runners.leave import run_and_leave
"""


def end(script: str) -> tuple[int, str, str]:
    """The exit code of a process, and what it printed."""
    command = [sys.executable, "-c", BEGIN + script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("lambda: None", 0, ""),
        ("lambda: sys.exit()", 0, ""),
        ("lambda: sys.exit(3)", 3, ""),
        ("lambda: sys.exit('no such job')", 1, "no such job\n"),
    ],
)
def test_a_process_ends_with_the_code_of_its_command(command: str, code: int, told: str) -> None:
    assert end(f"run_and_leave({command})") == (code, "", told)


def test_an_error_that_nobody_expected_is_shown() -> None:
    code, _, told = end("run_and_leave(lambda: 1 / 0)")
    assert code == 1
    assert told.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize(
    "script", ["raise KeyboardInterrupt", "threading.Thread(target=wait).start()"]
)
def test_ctrl_c_ends_it_whenever_it_comes(script: str) -> None:
    code = f"""
import _thread
def wait():
    time.sleep(0.2)
    _thread.interrupt_main()
    time.sleep(0.2)
def command():
    {script}
run_and_leave(command)
"""
    assert end(code)[0] == 130


def test_output_that_can_not_be_written_is_no_success() -> None:
    script = """
sys.stdout = open("/dev/full", "w")
run_and_leave(lambda: print("lost"))
"""
    code, _, told = end(script)
    assert (code, told) == (1, "/dev/full can't be written: [Errno 28] No space left on device\n")


def test_a_process_needs_no_outputs() -> None:
    assert end("sys.stdout = sys.stderr = None\nrun_and_leave(lambda: None)") == (0, "", "")


def test_what_was_begun_is_done_before_the_end() -> None:
    script = """
def work():
    time.sleep(0.2)
    print("worked")

def command():
    atexit.register(print, "at exit")
    threading.Thread(target=work).start()
    print("said", end=" ")

run_and_leave(command)
"""
    assert end(script) == (0, "said worked\nat exit\n", "")


def test_a_lock_that_a_daemon_thread_holds_keeps_no_process_from_its_end() -> None:
    """As gRPC's threads hold the one that the finalizers of its streams want."""
    script = """
lock, held = threading.Lock(), threading.Event()

class Stream:
    def __del__(self):
        lock.acquire()

def hold():
    with lock:
        held.set()
        time.sleep(1_000)

stream = Stream()
threading.Thread(target=hold, daemon=True).start()
held.wait()
run_and_leave(lambda: sys.exit(3))
"""
    assert end(script) == (3, "", "")
