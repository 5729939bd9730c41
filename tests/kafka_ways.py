"""The two ways in which Kafka's messages become batches, for the tests that both must pass."""

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from velocity.io.kafka_batches import columns_unavailable

WAYS = ("columns", "messages")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Reads of the test go that way: by columns in C, or by a Python object for each message."""
    go(request.param, monkeypatch)
    yield request.param


def go(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELOCITY_KAFKA_COLUMNS", "on" if way == "columns" else "off")
    why_not = columns_unavailable() if way == "columns" else None
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    if why_not and not (shutil.which("cc") and headers.exists()):
        pytest.skip(why_not)
    assert why_not is None, f"what builds it is here, and yet: {why_not}"
