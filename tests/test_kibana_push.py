"""Laws of the import into Kibana: all is there, or it is told what is not and why."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.dashboard_jobs import PIPELINES, board
from tests.kibana_server import KibanaServer, kibana
from velocity.io.kibana import (
    Failed,
    Kibana,
    KibanaRefused,
    KibanaUnreachable,
    NotAllImported,
)
from velocity.pipelines.grafana import dashboard
from velocity.pipelines.grafana import overview as grafana_overview
from velocity.pipelines.kibana import ndjson, saved_objects
from velocity.runners.cli import app

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def objects() -> list[Any]:
    return saved_objects(board("insurance"))


@pytest.fixture(scope="module")
def text(objects: list[Any]) -> str:
    return ndjson(objects)


@pytest.fixture
def server() -> Iterator[KibanaServer]:
    with kibana() as running:
        yield running


def test_all_objects_are_there_and_again_they_replace_themselves(
    server: KibanaServer, text: str, objects: list[Any]
) -> None:
    for _ in range(2):
        assert Kibana(server.url).push(text) == len(objects)
    assert list(server.objects.values()) == objects


def test_who_asks_is_told_and_a_space_is_a_part_of_the_address(
    server: KibanaServer, text: str
) -> None:
    Kibana(f"{server.url}/base/s/ops/", api_key="a2V5").push(text)
    Kibana(server.url, basic_auth=("user", "pass")).push(text)
    (first, key), (second, user) = server.asked
    assert first == "/base/s/ops/api/saved_objects/_import"
    assert key["Authorization"] == "ApiKey a2V5"
    assert second == "/api/saved_objects/_import"
    assert user["Authorization"] == "Basic dXNlcjpwYXNz"


def test_a_file_of_passwords_replaces_no_api_key(
    server: KibanaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    Kibana(server.url, api_key="a2V5").push(text)
    assert server.asked[0][1]["Authorization"] == "ApiKey a2V5"


def test_what_was_not_taken_is_named_with_its_reason_and_the_rest_is_there(
    server: KibanaServer, text: str, objects: list[Any]
) -> None:
    lens, dashboard = objects[1]["id"], objects[-1]["id"]
    server.refuses = {
        ("lens", lens): {"type": "unknown", "message": "disk is full", "statusCode": 507},
        ("dashboard", dashboard): {"type": "unsupported_type"},
    }
    with pytest.raises(NotAllImported) as caught:
        Kibana(server.url).push(text)
    assert caught.value.imported == len(server.objects) == len(objects) - 2
    assert [(f.type, f.id) for f in caught.value.failed] == [
        ("lens", lens),
        ("dashboard", dashboard),
    ]
    assert "disk is full" in str(caught.value)
    assert "8.11" in str(caught.value)


def test_a_reference_that_leads_nowhere_is_told(server: KibanaServer, objects: list[Any]) -> None:
    with pytest.raises(NotAllImported, match="it needs index-pattern velocity-insurance"):
        Kibana(server.url).push(ndjson(objects[1:]))


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (401, b'{"message": "no such key"}', "no such key; give an API key"),
        (403, b'{"message": "Unable to bulk_create"}', "needs the privilege"),
        (404, b"", "base path"),
        (413, b"<html>", "maxImportPayloadBytes"),
        (503, b"Kibana server is not ready yet", "try again"),
        (200, b"<html>login</html>", "is this Kibana"),
        (200, b"[]", "none of an import"),
        (200, b'{"success": true, "successCount": 1}', "tells of 1"),
        (200, b'{"success": false, "successCount": 0}', "tells of 0"),
    ],
)
def test_an_answer_that_is_none_of_an_import_is_refused_with_the_remedy(
    server: KibanaServer, status: int, answer: bytes, said: str, text: str
) -> None:
    server.answer = status, answer, {}
    with pytest.raises(KibanaRefused, match=said):
        Kibana(server.url).push(text)


def test_nothing_follows_to_where_an_answer_leads(server: KibanaServer, text: str) -> None:
    server.answer = 302, b"", {"Location": "/login?next=%2Fapi"}
    with pytest.raises(KibanaRefused, match="leads on to /login: give the URL of Kibana"):
        Kibana(server.url, api_key="a2V5").push(text)
    assert len(server.asked) == 1


def test_no_answer_at_all_is_told(text: str) -> None:
    with kibana() as gone:
        url = gone.url
    with pytest.raises(KibanaUnreachable):
        Kibana(url).push(text)


def test_errors_are_the_same_after_a_pickle() -> None:
    error = NotAllImported(1, [Failed("lens", "a", "why")])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    "url", ["kibana:5601", "ftp://kibana", "https://u:secret@kibana", "http://k/?a=b", "http:///x"]
)
def test_an_address_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL") as caught:
        Kibana(url)
    assert "secret" not in str(caught.value)


def test_secrets_show_in_no_repr() -> None:
    assert "secret" not in repr(Kibana("http://k", basic_auth=("user", "secret")))
    assert "secret" not in repr(Kibana("http://k", api_key="secret"))


# -- the command ----------------------------------------------------------------------------------


def velocity(*arguments: str | Path, **env: str) -> Result:
    return CliRunner().invoke(app, ["dashboards", "kibana", *map(str, arguments)], env=env)


def test_push_imports_what_out_writes(server: KibanaServer, tmp_path: Path) -> None:
    file, job = tmp_path / "all.ndjson", PIPELINES / "insurance.yaml"
    result = velocity(job, "--all", "--out", file, "--push", server.url, KIBANA_API_KEY="a2V5")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert list(server.objects.values()) == lines
    assert ("dashboard", "velocity") in server.objects
    assert server.asked[0][1]["Authorization"] == "ApiKey a2V5"
    assert result.stdout == f"{len(lines)} objects imported.\n"


def test_what_was_not_imported_is_code_1_and_named(
    server: KibanaServer, objects: list[Any]
) -> None:
    server.refuses = {("lens", objects[1]["id"]): {"type": "conflict"}}
    result = velocity(PIPELINES / "insurance.yaml", "--push", server.url)
    assert result.exit_code == 1
    assert objects[1]["id"] in result.stderr
    assert "Traceback" not in result.output


def test_without_push_or_out_the_objects_are_printed(text: str) -> None:
    result = velocity(PIPELINES / "insurance.yaml")
    assert result.exit_code == 0
    assert result.stdout == text


def test_grafanas_dashboard_is_printed_or_written(tmp_path: Path) -> None:
    command = ["dashboards", "grafana", str(PIPELINES / "insurance.yaml")]
    printed = CliRunner().invoke(app, command).stdout
    CliRunner().invoke(app, [*command, "--out", str(tmp_path / "d.json")])
    assert json.loads(printed) == dashboard(board("insurance"))
    assert (tmp_path / "d.json").read_text("utf-8") == printed


def test_several_of_grafanas_dashboards_are_written_into_a_folder(tmp_path: Path) -> None:
    paths = [str(PIPELINES / f"{name}.yaml") for name in ("insurance", "transactions")]
    command = ["dashboards", "grafana", *paths, "--all"]
    assert CliRunner().invoke(app, command).exit_code == 2
    folder = tmp_path / "new" / "monitoring"
    done = CliRunner().invoke(app, [*command, "--out", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    made = {Path(file).stem: json.loads(Path(file).read_text("utf-8")) for file in written(done)}
    boards = [board("insurance"), board("transactions")]
    assert made == {
        "velocity-insurance": dashboard(boards[0]),
        "velocity-transactions": dashboard(boards[1]),
        "velocity": grafana_overview(boards),
    }


def written(done: Result) -> list[str]:
    found: list[str] = json.loads(done.stdout)["written"]
    return found


def test_a_user_without_password_and_json_without_push_are_wrong_usage() -> None:
    job = PIPELINES / "insurance.yaml"
    assert velocity(job, "--push", "http://127.0.0.1:9", "--username", "me").exit_code == 2
    assert velocity(job, "--json").exit_code == 2


def test_a_wrong_job_is_code_1_and_named(tmp_path: Path) -> None:
    job = tmp_path / "wrong.yaml"
    job.write_text("job: wrong\n", "utf-8")
    result = velocity(job)
    assert result.exit_code == 1
    assert "wrong.yaml" in result.stderr
