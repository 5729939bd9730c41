"""Setting up a server over a socket: lifecycle management as Elastic's distribution answers it."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from velocity.io.elastic_setup import Change, SetupError, apply
from velocity.pipelines.graph import Graph
from velocity.pipelines.job import Job
from velocity.pipelines.jobfile import parse
from velocity.pipelines.templates import setup_of

pytestmark = pytest.mark.embedded

JOB = """\
job: orders
source: {kafka: {bootstrap_servers: h:1, topics: [t]}, event_time: at}
fields: {at: timestamp, city: string}
metrics: [{name: orders, by: [city], window: {fixed: 1m}, values: {n: count()}}]
sinks: {elasticsearch: {url: "URL", index: "orders-{window_start:%Y.%m}", retention: 90d}}
dead_letters: {parquet: d}
"""


class Server(ThreadingHTTPServer):
    """Keeps templates and policies, and has no index; an error of its own where one is asked for.

    Its answers are those of Elasticsearch 8.19 and 9:
    https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-ilm-get-lifecycle
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kept: dict[str, Any] = {}
        self.put: list[str] = []
        self.errors: dict[str, tuple[int, Any]] = {}
        """By the beginning of a path."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._failed():
            self.server.put.append(self.path)
            self.server.kept[self.path] = body
            self._answer(200, {"acknowledged": True})

    def do_HEAD(self) -> None:
        if not self._failed():
            self._answer(404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self._failed():
            return
        if path.endswith("/_mapping"):
            self._answer(200, {})
        elif path not in self.server.kept:
            kind = {"type": "resource_not_found_exception", "reason": f"not found: {path}"}
            self._answer(404, {"error": {"root_cause": [kind], **kind}, "status": 404})
        else:
            self._answer(200, _given_back(path, self.server.kept[path]))

    def _failed(self) -> bool:
        for begin, (status, error) in self.server.errors.items():
            if self.path.startswith(begin):
                self._answer(status, error)
                return True
        return False

    def _answer(self, status: int, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("X-Elastic-Product", "Elasticsearch")
        self.send_header("Content-Type", "application/vnd.elasticsearch+json;compatible-with=8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps the test's output clean."""


def _given_back(path: str, body: Mapping[str, Any]) -> Any:
    name = path.rpartition("/")[2]
    if "/_ilm/" in path:
        policy = json.loads(json.dumps(body["policy"]))
        policy["phases"]["hot"]["min_age"] = "0ms"
        policy["phases"]["delete"]["actions"]["delete"] = {"delete_searchable_snapshot": True}
        unused: dict[str, list[str]] = {"indices": [], "data_streams": []}
        unused["composable_templates"] = []
        modified = "2026-01-05T00:00:00.000Z"
        return {
            name: {
                "version": 1,
                "modified_date": modified,
                "policy": policy,
                "in_use_by": unused,
            }
        }
    [kind] = re.findall(r"/_(component|index)_template/", path)
    return {f"{kind}_templates": [{"name": name, f"{kind}_template": body}]}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def changes(server: Server, **sink: Any) -> list[Change]:
    made = parse(JOB.replace("URL", server.url).encode(), "job.yaml").job.model_dump()
    made["sinks"]["elasticsearch"] |= sink
    graph = Graph(Job.model_validate(made), {})
    with graph.elasticsearch.open() as client:
        return list(apply(client, setup_of(graph)))


def test_the_policy_deletes_indices_of_age_and_is_put_once(server: Server) -> None:
    first = changes(server)
    assert first[0] == Change("created", "lifecycle policy", "velocity-orders")
    policy = server.kept["/_ilm/policy/velocity-orders"]["policy"]
    assert policy["phases"]["delete"] == {"min_age": "121d", "actions": {"delete": {}}}
    settings = server.kept["/_component_template/velocity-orders%40settings"]
    assert settings["template"]["settings"]["index"]["lifecycle.name"] == "velocity-orders"
    put = list(server.put)
    second = changes(server)
    assert {change.state for change in second[:-1]} == {"unchanged"}
    assert server.put == put


def test_another_retention_changes_the_policy_alone(server: Server) -> None:
    changes(server)
    server.put.clear()
    found = changes(server, retention=timedelta(days=30))
    assert found[0] == Change("changed", "lifecycle policy", "velocity-orders")
    assert server.put == ["/_ilm/policy/velocity-orders"]


def test_a_policy_of_the_users_own_is_left_as_it_is_and_must_be_there(server: Server) -> None:
    with pytest.raises(SetupError, match=r"ilm_policy: the server has no policy mine"):
        changes(server, retention=None, ilm_policy="mine")
    assert server.put == []
    server.kept["/_ilm/policy/mine"] = {
        "policy": {"phases": {"hot": {}, "delete": {"actions": {}}}}
    }
    found = changes(server, retention=None, ilm_policy="mine")
    assert found[0] == Change("unchanged", "lifecycle policy", "mine")
    assert "/_ilm/policy/mine" not in server.put
    settings = server.kept["/_component_template/velocity-orders%40settings"]
    assert settings["template"]["settings"]["index"]["lifecycle.name"] == "mine"


NO_HANDLER = {"error": "no handler found for uri [/_ilm/policy/velocity-orders] and method [GET]"}
SERVERLESS = {
    "error": {
        "type": "api_not_available_exception",
        "reason": "Request for uri [/_ilm/policy/velocity-orders] with method [GET] exists but is "
        "not available when running in serverless mode",
    },
    "status": 410,
}


@pytest.mark.parametrize(("status", "answer"), [(400, NO_HANDLER), (410, SERVERLESS)])
def test_without_lifecycle_management_no_index_is_told_of_a_policy(
    server: Server, status: int, answer: Any
) -> None:
    server.errors["/_ilm"] = (status, answer)
    note, *others = changes(server)
    assert note.state == "note"
    assert "deletes no index by itself" in note.about
    assert {change.state for change in others} == {"created"}
    settings = server.kept["/_component_template/velocity-orders%40settings"]
    assert settings["template"]["settings"] == {"index": {}}


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (401, {"type": "security_exception", "reason": "missing"}, "check api_key, or username"),
        (403, {"type": "security_exception", "reason": "unauthorized"}, "setup: by_command"),
        (
            400,
            {"type": "media_type_header_exception", "reason": "Accept version must be 8 or 7"},
            r"pip install 'elasticsearch<9'",
        ),
    ],
)
def test_a_server_that_refuses_is_told_with_the_remedy(
    server: Server, status: int, error: Any, remedy: str
) -> None:
    server.errors["/_component_template"] = (status, {"error": error, "status": status})
    with pytest.raises(SetupError, match=f"HTTP {status}: .*{remedy}"):
        changes(server)


def test_a_server_that_is_not_reached_is_told(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(SetupError, match=r"sinks.elasticsearch: .*refused"):
        changes(server)
