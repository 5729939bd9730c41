"""Answers that workers share, in a real Redis."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.rest_service import by_key, service, whole
from velocity.io.lookup_cache import Cache
from velocity.io.lookup_redis import SharedAnswers
from velocity.io.lookup_shared import SharedLookup
from velocity.io.rest import RestLookup
from velocity.io.rest_calls import Template
from velocity.io.rest_client import RestClient

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(
        shutil.which("redis-server") is None,
        reason="needs a redis-server: apt install redis-server",
    ),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as process:
        url = f"redis://127.0.0.1:{port}/0"
        try:
            deadline = time.monotonic() + 60
            while not _answers(url):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return bool(redis.Redis.from_url(url).ping())
    except redis.ConnectionError:
        return False


def worker(url: str, shared: SharedAnswers) -> SharedLookup:
    config = RestLookup(Template(url, id=("id",)))
    return SharedLookup(RestClient(config), whole, Cache(), shared=shared)


def shares(url: str, space: str = "providers", **times: Any) -> SharedAnswers:
    return SharedAnswers(url, space, **{"ttl": 60.0, "missing_ttl": 30.0, **times})


def test_what_one_worker_has_asked_no_other_asks_again(server: str) -> None:
    with service(knows=["a"]) as asked:
        with worker(asked.url, shares(server)) as one, worker(asked.url, shares(server)) as two:
            first = by_key(["a", "z"], one.begin(["a", "z"])())
            again = by_key(["a", "z"], two.begin(["a", "z"])())
        assert asked.calls == [["a", "z"]]
    assert first.found == again.found == {"a": {"id": "a", "city": "City of a"}}
    assert first.missing == again.missing == {"z"}
    assert again.counts["cache_shared"] == 2
    shown: Any = redis.Redis.from_url(server).keys()
    assert len(shown) == 2
    assert all(key.rpartition(b":")[2] not in (b"a", b"z") for key in shown)


def test_lookups_that_differ_share_nothing_and_times_end(server: str) -> None:
    shares(server).put({"a": {"n": 1}, "z": None})
    assert shares(server).get(["a", "z", "b"]) == {"a": {"n": 1}, "z": None}
    assert shares(server, "patients").get(["a"]) == {}
    unkept = shares(server, "x", ttl=0.0, missing_ttl=0.0)
    unkept.put({"a": {"n": 1}, "z": None})
    assert unkept.get(["a", "z"]) == {}
    client = redis.Redis.from_url(server)
    names: Any = client.keys()
    left: Any = [client.pttl(name) for name in names]
    assert all(0 < time <= 60_000 for time in left)


def test_without_redis_services_are_asked_and_it_is_left_alone_for_a_while() -> None:
    now = [0.0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"redis://127.0.0.1:{free.getsockname()[1]}/0"
    shared = shares(nobody, clock=lambda: now[0])
    with service(knows=["a"]) as asked, worker(asked.url, shared) as one:
        answers = by_key(["a"], one.begin(["a"])())
    assert answers.found.keys() == {"a"}
    assert answers.counts["cache_shared_errors"] == 1
    assert shared.get(["a"]) is None
