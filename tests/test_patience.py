"""Who waits does not hold up the end of the process."""

import subprocess
import sys

import pytest

SLEEPS = """
import threading
from concurrent.futures import ThreadPoolExecutor
from velocity.io import patience

def wait():
    begun.set()
    print("waited to the end" if patience.sleep(3600) else "woken", flush=True)

begun = threading.Event()
{start}
begun.wait()
"""


@pytest.mark.parametrize(
    "start", ["ThreadPoolExecutor().submit(wait)", "threading.Thread(target=wait).start()"]
)
def test_a_thread_that_sleeps_lets_its_process_end(start: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLEEPS.format(start=start)],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stdout == "woken\n"
